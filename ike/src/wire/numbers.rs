//! Numbers of the IANA registry "Internet Key Exchange Version 2 (IKEv2) Parameters". Numbers that
//! have no name in this file become `Unknown`.

use std::fmt;

macro_rules! numbers {
    ($(#[$meta:meta])* $name:ident: $int:ty { $($variant:ident = $value:literal $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $(#[doc = concat!($text, " (", stringify!($value), ").")] $variant,)+
            /// A number that has no name in this file. [`From`] never makes this variant from one
            /// of the numbers above.
            Unknown($int),
        }

        impl From<$int> for $name {
            fn from(number: $int) -> Self {
                match number {
                    $($value => Self::$variant,)+
                    other => Self::Unknown(other),
                }
            }
        }

        impl From<$name> for $int {
            fn from(name: $name) -> Self {
                match name {
                    $($name::$variant => $value,)+
                    $name::Unknown(other) => other,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$variant => f.write_str($text),)+
                    Self::Unknown(other) => write!(f, "{} {other}", stringify!($name)),
                }
            }
        }
    };
}

numbers! {
    /// Exchange types.
    ExchangeType: u8 {
        IkeSaInit = 34 "IKE_SA_INIT",
        IkeAuth = 35 "IKE_AUTH",
        CreateChildSa = 36 "CREATE_CHILD_SA",
        Informational = 37 "INFORMATIONAL",
        IkeSessionResume = 38 "IKE_SESSION_RESUME",
        IkeIntermediate = 43 "IKE_INTERMEDIATE",
        IkeFollowupKe = 44 "IKE_FOLLOWUP_KE",
    }
}

numbers! {
    /// Payload types.
    PayloadType: u8 {
        None = 0 "none",
        SecurityAssociation = 33 "SA",
        KeyExchange = 34 "KE",
        IdInitiator = 35 "IDi",
        IdResponder = 36 "IDr",
        Certificate = 37 "CERT",
        CertificateRequest = 38 "CERTREQ",
        Authentication = 39 "AUTH",
        Nonce = 40 "Nonce",
        Notify = 41 "N",
        Delete = 42 "D",
        VendorId = 43 "V",
        TrafficSelectorsInitiator = 44 "TSi",
        TrafficSelectorsResponder = 45 "TSr",
        Encrypted = 46 "SK",
        Configuration = 47 "CP",
        Eap = 48 "EAP",
        EncryptedFragment = 53 "SKF",
    }
}

numbers! {
    /// Security protocol identifiers.
    Protocol: u8 {
        None = 0 "none",
        Ike = 1 "IKE",
        Ah = 2 "AH",
        Esp = 3 "ESP",
    }
}

numbers! {
    /// Transform types.
    TransformType: u8 {
        Encryption = 1 "ENCR",
        Prf = 2 "PRF",
        Integrity = 3 "INTEG",
        KeyExchange = 4 "KE",
        SequenceNumbers = 5 "ESN",
        AdditionalKeyExchange1 = 6 "ADDKE1",
        AdditionalKeyExchange2 = 7 "ADDKE2",
        AdditionalKeyExchange3 = 8 "ADDKE3",
        AdditionalKeyExchange4 = 9 "ADDKE4",
        AdditionalKeyExchange5 = 10 "ADDKE5",
        AdditionalKeyExchange6 = 11 "ADDKE6",
        AdditionalKeyExchange7 = 12 "ADDKE7",
    }
}

numbers! {
    /// Identification payload ID types.
    IdType: u8 {
        Ipv4Address = 1 "ID_IPV4_ADDR",
        Fqdn = 2 "ID_FQDN",
        Rfc822Address = 3 "ID_RFC822_ADDR",
        Ipv6Address = 5 "ID_IPV6_ADDR",
        DerAsn1Dn = 9 "ID_DER_ASN1_DN",
        DerAsn1Gn = 10 "ID_DER_ASN1_GN",
        KeyId = 11 "ID_KEY_ID",
        Null = 13 "ID_NULL",
    }
}

numbers! {
    /// Certificate encodings.
    CertificateEncoding: u8 {
        Pkcs7 = 1 "PKCS #7 wrapped X.509 certificate",
        X509Signature = 4 "X.509 Certificate - Signature",
        CertificateRevocationList = 7 "Certificate Revocation List (CRL)",
        RawPublicKey = 15 "Raw Public Key",
        HashAndUrl = 12 "Hash and URL of X.509 certificate",
    }
}

numbers! {
    /// Authentication methods.
    AuthMethod: u8 {
        RsaSignature = 1 "RSA Digital Signature",
        SharedKey = 2 "Shared Key Message Integrity Code",
        DssSignature = 3 "DSS Digital Signature",
        EcdsaP256Sha256 = 9 "ECDSA with SHA-256 on the P-256 curve",
        EcdsaP384Sha384 = 10 "ECDSA with SHA-384 on the P-384 curve",
        EcdsaP521Sha512 = 11 "ECDSA with SHA-512 on the P-521 curve",
        Null = 13 "NULL Authentication",
        DigitalSignature = 14 "Digital Signature",
    }
}

numbers! {
    /// Hash algorithms of SIGNATURE_HASH_ALGORITHMS (RFC 7427, RFC 8420).
    HashAlgorithm: u16 {
        Sha1 = 1 "SHA1",
        Sha2_256 = 2 "SHA2-256",
        Sha2_384 = 3 "SHA2-384",
        Sha2_512 = 4 "SHA2-512",
        Identity = 5 "Identity",
    }
}

numbers! {
    /// Notify message types: errors up to 16383, status types above. Those from 40960 on are for
    /// private use (RFC 7296 3.10.1) and ours: they count only if the peer has sent our vendor ID.
    NotifyType: u16 {
        UnsupportedCriticalPayload = 1 "UNSUPPORTED_CRITICAL_PAYLOAD",
        InvalidIkeSpi = 4 "INVALID_IKE_SPI",
        InvalidMajorVersion = 5 "INVALID_MAJOR_VERSION",
        InvalidSyntax = 7 "INVALID_SYNTAX",
        InvalidMessageId = 9 "INVALID_MESSAGE_ID",
        InvalidSpi = 11 "INVALID_SPI",
        NoProposalChosen = 14 "NO_PROPOSAL_CHOSEN",
        InvalidKePayload = 17 "INVALID_KE_PAYLOAD",
        AuthenticationFailed = 24 "AUTHENTICATION_FAILED",
        SinglePairRequired = 34 "SINGLE_PAIR_REQUIRED",
        NoAdditionalSas = 35 "NO_ADDITIONAL_SAS",
        InternalAddressFailure = 36 "INTERNAL_ADDRESS_FAILURE",
        FailedCpRequired = 37 "FAILED_CP_REQUIRED",
        TsUnacceptable = 38 "TS_UNACCEPTABLE",
        InvalidSelectors = 39 "INVALID_SELECTORS",
        UnacceptableAddresses = 40 "UNACCEPTABLE_ADDRESSES",
        UnexpectedNatDetected = 41 "UNEXPECTED_NAT_DETECTED",
        TemporaryFailure = 43 "TEMPORARY_FAILURE",
        ChildSaNotFound = 44 "CHILD_SA_NOT_FOUND",
        StateNotFound = 47 "STATE_NOT_FOUND",
        InitialContact = 16384 "INITIAL_CONTACT",
        SetWindowSize = 16385 "SET_WINDOW_SIZE",
        AdditionalTsPossible = 16386 "ADDITIONAL_TS_POSSIBLE",
        IpcompSupported = 16387 "IPCOMP_SUPPORTED",
        NatDetectionSourceIp = 16388 "NAT_DETECTION_SOURCE_IP",
        NatDetectionDestinationIp = 16389 "NAT_DETECTION_DESTINATION_IP",
        Cookie = 16390 "COOKIE",
        UseTransportMode = 16391 "USE_TRANSPORT_MODE",
        HttpCertLookupSupported = 16392 "HTTP_CERT_LOOKUP_SUPPORTED",
        RekeySa = 16393 "REKEY_SA",
        EspTfcPaddingNotSupported = 16394 "ESP_TFC_PADDING_NOT_SUPPORTED",
        NonFirstFragmentsAlso = 16395 "NON_FIRST_FRAGMENTS_ALSO",
        MobikeSupported = 16396 "MOBIKE_SUPPORTED",
        AdditionalIp4Address = 16397 "ADDITIONAL_IP4_ADDRESS",
        AdditionalIp6Address = 16398 "ADDITIONAL_IP6_ADDRESS",
        NoAdditionalAddresses = 16399 "NO_ADDITIONAL_ADDRESSES",
        UpdateSaAddresses = 16400 "UPDATE_SA_ADDRESSES",
        Cookie2 = 16401 "COOKIE2",
        NoNatsAllowed = 16402 "NO_NATS_ALLOWED",
        MultipleAuthSupported = 16404 "MULTIPLE_AUTH_SUPPORTED",
        Redirect = 16407 "REDIRECT",
        ChildlessIkev2Supported = 16418 "CHILDLESS_IKEV2_SUPPORTED",
        QuickCrashDetection = 16419 "QUICK_CRASH_DETECTION",
        Ikev2FragmentationSupported = 16430 "IKEV2_FRAGMENTATION_SUPPORTED",
        SignatureHashAlgorithms = 16431 "SIGNATURE_HASH_ALGORITHMS",
        UsePpk = 16435 "USE_PPK",
        PpkIdentity = 16436 "PPK_IDENTITY",
        NoPpkAuth = 16437 "NO_PPK_AUTH",
        IntermediateExchangeSupported = 16438 "INTERMEDIATE_EXCHANGE_SUPPORTED",
        AdditionalKeyExchange = 16441 "ADDITIONAL_KEY_EXCHANGE",
        MappedAddress = 40960 "MAPPED_ADDRESS",
        RelayRequest = 40961 "RELAY_REQUEST",
        RelayOpened = 40962 "RELAY_OPENED",
        RelayRefused = 40963 "RELAY_REFUSED",
        HubLeaving = 40964 "HUB_LEAVING",
        RelayTcpOpened = 40965 "RELAY_TCP_OPENED",
    }
}

impl NotifyType {
    /// Returns whether this type reports an error (RFC 7296 3.10.1: types 0 to 16383).
    pub fn is_error(self) -> bool {
        u16::from(self) < 16384
    }

    /// Returns whether the sender states that it has removed the IKE SA or never created it, if
    /// this is in IKE_AUTH or in INFORMATIONAL (RFC 7296 2.21.2).
    pub fn ends_ike_sa(self) -> bool {
        matches!(self, Self::AuthenticationFailed | Self::InvalidSyntax | Self::UnsupportedCriticalPayload)
    }
}

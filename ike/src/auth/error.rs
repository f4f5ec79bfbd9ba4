//! The reasons why an authentication fails, and why configured credentials cannot be used.

use x509_parser::time::ASN1Time;

use super::limits::{MAX_CERTIFICATE, MAX_CHAIN};
use crate::config::Identity;
use crate::event::PeerErrorKind;
use crate::wire::{AuthMethod, IdType};

/// The reason why a peer's authentication is refused, or why we cannot authenticate to the peer.
/// Each text states what was expected, what was received, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// The peer's ID payload has an unsupported type.
    #[error("the peer's identity is of type {0}, which cannot be configured here")]
    UnknownIdType(IdType),
    /// The peer sent an identity other than the configured one.
    #[error(
        "expected the peer to be {expected}, but it says it is {claimed}; correct remote_id here or the peer's own identity"
    )]
    UnexpectedIdentity {
        /// The configured `remote_id`.
        expected: Identity,
        /// The identity in the peer's ID payload.
        claimed: Identity,
    },
    /// The peer used an authentication method other than the configured one.
    #[error("expected {expected}, the peer used \"{found}\"; configure the same authentication on both sides")]
    Method {
        /// What the configured authentication needs: a signature, or a shared key.
        expected: &'static str,
        /// The method in the peer's AUTH payload.
        found: AuthMethod,
    },
    /// The pre-shared keys differ.
    #[error("the peer's AUTH does not match our pre-shared key; compare the pre-shared key on both sides")]
    SharedKey,
    /// The peer sent no CERT payload with an X.509 certificate.
    #[error("the peer sent no X.509 certificate; configure it to send its certificate always")]
    NoCertificate,
    /// The peer's certificate cannot be parsed. Holds the parser's reason.
    #[error("the peer's certificate cannot be read: {0}")]
    MalformedCertificate(String),
    /// A certificate in the peer's chain has expired.
    #[error("the peer's certificate or one of its issuers expired at {}, and our clock says {}; renew it, or correct the clock", Timestamp(*not_after), Timestamp(*now))]
    Expired {
        /// notAfter, seconds since 1970-01-01 UTC.
        not_after: u64,
        /// Our clock, seconds since 1970-01-01 UTC.
        now: u64,
    },
    /// A certificate in the peer's chain is not valid yet.
    #[error("the peer's certificate or one of its issuers is valid from {} on, and our clock says {}; correct the clock", Timestamp(*not_before), Timestamp(*now))]
    NotYetValid {
        /// notBefore, seconds since 1970-01-01 UTC.
        not_before: u64,
        /// Our clock, seconds since 1970-01-01 UTC.
        now: u64,
    },
    /// The certificate was issued before the node of this name joined again with another key.
    #[error(
        "the certificate of {peer} with serial {serial} is revoked: it is valid from {} on, and only certificates from {} on are accepted; \
         the node that uses it has an older key of that name and must join again", Timestamp(*not_before), Timestamp(*since)
    )]
    Revoked {
        /// The peer that sent the certificate.
        peer: Identity,
        /// Serial number, hexadecimal.
        serial: String,
        /// notBefore, seconds since 1970-01-01 UTC.
        not_before: u64,
        /// Certificates whose notBefore is earlier are revoked. Seconds since 1970-01-01 UTC.
        since: u64,
    },
    /// A revocation list has a certificate of the peer's chain.
    #[error(
        "the certificate with serial {serial} of issuer {issuer} is revoked since {} (reason {reason}), as the revocation list {list} says; \
         its owner needs a new one", Timestamp(*since)
    )]
    RevokedByList {
        /// Serial number, hexadecimal.
        serial: String,
        /// Issuer of the certificate and of the list, quoted.
        issuer: String,
        /// revocationDate, seconds since 1970-01-01 UTC.
        since: u64,
        /// The reason code of RFC 5280 5.3.1.
        reason: &'static str,
        /// The name of the list.
        list: String,
    },
    /// It is not known whether a certificate of the peer's chain is revoked, and the configuration
    /// demands that.
    #[error(
        "it is not known whether the certificate with serial {serial} is revoked: {why} (issuer {issuer}); provide a current revocation list \
         of this issuer, or set revocation = \"relaxed\""
    )]
    RevocationUnknown {
        /// Serial number, hexadecimal.
        serial: String,
        /// Issuer of the certificate, quoted.
        issuer: String,
        /// Why no list answers.
        why: String,
    },
    /// The peer's chain leads to none of our trust anchors.
    #[error(
        "the peer's certificate (issuer {issuer}) leads to none of our trust anchors; add its CA here, or configure the peer to send the intermediates"
    )]
    UnknownIssuer {
        /// Issuer of the end entity certificate, quoted.
        issuer: String,
    },
    /// The peer's chain is refused for another reason. Holds that reason.
    #[error("the peer's certificate chain is unacceptable: {0}")]
    Chain(String),
    /// The peer's certificate has none of the required extended key usages.
    #[error(
        "the peer's certificate (subject {subject}) has none of the extended key usages that its role needs; check that it was issued for the right role"
    )]
    LacksKeyUsage {
        /// Subject of the end entity certificate, quoted.
        subject: String,
    },
    /// The key usage of the peer's certificate does not allow signatures.
    #[error(
        "the key usage of the peer's certificate (subject {subject}) excludes signatures; issue one with digitalSignature"
    )]
    NotForSignatures {
        /// Subject of the end entity certificate, quoted.
        subject: String,
    },
    /// The peer's certificate is not for the identity in its ID payload.
    #[error("the peer says it is {claimed}, its certificate is for {certified}")]
    NotCertified {
        /// The identity in the ID payload.
        claimed: Identity,
        /// The names in the certificate.
        certified: String,
    },
    /// The peer's certificate lacks the URI that the configuration requires.
    #[error("expected the URI {expected} in the peer's certificate, which is for {certified}")]
    LacksUri {
        /// The configured `remote_uri`.
        expected: String,
        /// The names in the certificate.
        certified: String,
    },
    /// The signature algorithm or the certificate's key is not supported. Holds its name.
    #[error(
        "the peer signed with an algorithm or key that is not supported ({0}); supported are Ed25519, ECDSA on P-256 or P-384 with SHA-2, and RSA of 2048 bits or more with SHA-2"
    )]
    UnsupportedSignature(String),
    /// The signature algorithm does not fit the certificate's key.
    #[error("the peer's signature algorithm does not fit its certificate's key")]
    AlgorithmMismatch,
    /// The signature is wrong.
    #[error(
        "the peer's signature is wrong: it does not hold the key of its certificate, or the exchange was tampered with"
    )]
    Signature,
    /// The peer does not accept any signature that our key can make.
    #[error("our {key} key cannot make a signature that the peer understands (it accepts {accepted})")]
    NoCommonSignature {
        /// The type of our key.
        key: &'static str,
        /// The hash algorithms in the peer's SIGNATURE_HASH_ALGORITHMS.
        accepted: String,
    },
    /// The cryptographic library failed to sign with our key.
    #[error("signing failed")]
    Signing,
}

impl AuthError {
    /// Returns the kind of this error in reports.
    pub fn kind(&self) -> PeerErrorKind {
        match self {
            Self::UnknownIdType(_) => PeerErrorKind::UnknownIdentity,
            Self::UnexpectedIdentity { .. } | Self::NotCertified { .. } | Self::LacksUri { .. } => {
                PeerErrorKind::WrongIdentity
            }
            Self::NoCertificate
            | Self::MalformedCertificate(_)
            | Self::Expired { .. }
            | Self::NotYetValid { .. }
            | Self::Revoked { .. }
            | Self::RevokedByList { .. }
            | Self::RevocationUnknown { .. }
            | Self::UnknownIssuer { .. }
            | Self::Chain(_)
            | Self::LacksKeyUsage { .. }
            | Self::NotForSignatures { .. } => PeerErrorKind::UntrustedCertificate,
            Self::Method { .. }
            | Self::SharedKey
            | Self::UnsupportedSignature(_)
            | Self::AlgorithmMismatch
            | Self::Signature => PeerErrorKind::AuthenticationFailed,
            Self::NoCommonSignature { .. } | Self::Signing => PeerErrorKind::Local,
        }
    }
}

/// The reason why configured credentials cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The pre-shared key is empty.
    #[error("the pre-shared key is empty")]
    EmptyPsk,
    /// Our name or mail address has a control character.
    #[error("our name or mail address has a control character, such as a line break; remove it")]
    ControlCharacter,
    /// The configured certificate chain is empty.
    #[error("no certificate of our own")]
    NoCertificate,
    /// Our certificate chain has more than [`MAX_CHAIN`] certificates. Holds the number of
    /// certificates.
    #[error("{0} certificates in the chain; the limit is {limit}", limit = MAX_CHAIN)]
    ChainTooLong(usize),
    /// One of our certificates is larger than [`MAX_CERTIFICATE`]. Holds the size, bytes.
    #[error("a certificate of {0} octets; the limit is {limit}", limit = MAX_CERTIFICATE)]
    CertificateTooLarge(usize),
    /// Our certificate cannot be parsed.
    #[error("our certificate is not DER of an X.509 certificate with an Ed25519, ECDSA (P-256, P-384) or RSA key")]
    MalformedCertificate,
    /// Our private key cannot be parsed.
    #[error("the private key is not PKCS#8 of an Ed25519, ECDSA (P-256, P-384) or RSA (2048 to 4096 bits) key")]
    UnsupportedKey,
    /// Our private key does not belong to our certificate.
    #[error("the private key does not belong to the certificate")]
    KeyMismatch,
    /// No trust anchor is configured.
    #[error("no trust anchor: no peer could be authenticated")]
    NoTrustAnchor,
    /// A trust anchor cannot be parsed.
    #[error("a trust anchor is not DER of an X.509 certificate")]
    MalformedTrustAnchor,
    /// A revocation list has the name of one of our trust anchors as issuer, but not its
    /// signature.
    #[error("the revocation list {list} names {issuer} as its issuer, but {why}; get it again from the issuer")]
    ForeignRevocationList {
        /// The name of the list.
        list: String,
        /// Issuer of the list, quoted.
        issuer: String,
        /// Why the signature does not count.
        why: &'static str,
    },
}

/// Shows seconds since 1970-01-01 UTC as date and time.
pub(super) struct Timestamp(pub(super) u64);

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let time = i64::try_from(self.0).ok().and_then(|time| ASN1Time::from_timestamp(time).ok());
        match time {
            Some(time) => write!(f, "{time}"),
            None => write!(f, "{} s after 1970", self.0),
        }
    }
}

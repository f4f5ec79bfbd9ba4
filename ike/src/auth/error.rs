//! What can be wrong with a proof, and with our own credentials.

use x509_parser::time::ASN1Time;

use super::limits::{MAX_CERTIFICATE, MAX_CHAIN};
use crate::config::Identity;
use crate::event::PeerErrorKind;
use crate::wire::{AuthMethod, IdType};

/// Why a peer is not believed, or why we cannot prove ourselves to it. Each says what was expected,
/// what came and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// The peer's ID payload is of a type that we do not know.
    #[error("the peer's identity is of type {0}, which cannot be configured here")]
    UnknownIdType(IdType),
    /// It says that it is somebody else.
    #[error(
        "expected the peer to be {expected}, it says it is {claimed}; correct remote_id here or the identity there"
    )]
    UnexpectedIdentity {
        /// Who was expected.
        expected: Identity,
        /// Who it says it is.
        claimed: Identity,
    },
    /// It authenticates in another way than configured, or in one that we do not know.
    #[error("expected {expected}, the peer used \"{found}\"; configure the same authentication on both sides")]
    Method {
        /// What was expected.
        expected: &'static str,
        /// What came.
        found: AuthMethod,
    },
    /// The pre-shared keys differ.
    #[error("the peer's AUTH does not match our pre-shared key; compare the pre-shared key on both sides")]
    SharedKey,
    /// No CERT with an X.509 certificate.
    #[error("the peer sent no X.509 certificate; let it send its certificate always")]
    NoCertificate,
    /// Its certificate cannot be read.
    #[error("the peer's certificate cannot be read: {0}")]
    MalformedCertificate(String),
    /// A certificate of its chain is expired.
    #[error("the peer's certificate or one of its issuers expired at {}, our clock says {}; renew it, or correct the clock", Timestamp(*not_after), Timestamp(*now))]
    Expired {
        /// Not after, seconds since 1970.
        not_after: u64,
        /// Our time, seconds since 1970.
        now: u64,
    },
    /// A certificate of its chain is not valid yet.
    #[error("the peer's certificate or one of its issuers is valid from {} on, our clock says {}; correct the clock", Timestamp(*not_before), Timestamp(*now))]
    NotYetValid {
        /// Not before, seconds since 1970.
        not_before: u64,
        /// Our time, seconds since 1970.
        now: u64,
    },
    /// It was issued before the peer got another identity.
    #[error(
        "the certificate of {peer} with serial {serial} is revoked: it is valid from {} on, and only those from {} on count; \
         whoever shows it has an older key of that name and must join anew", Timestamp(*not_before), Timestamp(*since)
    )]
    Revoked {
        /// Who showed it.
        peer: Identity,
        /// Serial number, hexadecimal.
        serial: String,
        /// Its beginning, seconds since 1970.
        not_before: u64,
        /// From when on certificates count, seconds since 1970.
        since: u64,
    },
    /// No trust anchor has issued it.
    #[error(
        "the peer's certificate (issuer {issuer}) leads to none of our trust anchors; add its CA here or let it send the intermediates"
    )]
    UnknownIssuer {
        /// The leaf's issuer.
        issuer: String,
    },
    /// Its chain is unacceptable for another reason.
    #[error("the peer's certificate chain is unacceptable: {0}")]
    Chain(String),
    /// It lacks every extended key usage that was asked for.
    #[error(
        "the peer's certificate (subject {subject}) has none of the extended key usages that its role needs; has it the right role?"
    )]
    LacksKeyUsage {
        /// The leaf's subject.
        subject: String,
    },
    /// It is not for the identity that the peer says it has.
    #[error("the peer says it is {claimed}, its certificate is for {certified}")]
    NotCertified {
        /// Who it says it is.
        claimed: Identity,
        /// For whom the certificate is.
        certified: String,
    },
    /// It lacks the URI that was asked for.
    #[error("expected the URI {expected} in the peer's certificate, which is for {certified}")]
    LacksUri {
        /// What was asked for.
        expected: String,
        /// For whom the certificate is.
        certified: String,
    },
    /// The signature is of an algorithm that we do not know, or the certificate's key is.
    #[error(
        "the peer signed with an algorithm or key that is not supported ({0}); supported are Ed25519 and ECDSA on P-256 or P-384 with SHA-256 or SHA-384"
    )]
    UnsupportedSignature(String),
    /// The signature is of an algorithm that does not fit the certificate's key.
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
        /// Our kind of key.
        key: &'static str,
        /// The hash algorithms of its SIGNATURE_HASH_ALGORITHMS.
        accepted: String,
    },
    /// Signing failed.
    #[error("signing failed")]
    Signing,
}

impl AuthError {
    /// What kind of failure it is.
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
            | Self::UnknownIssuer { .. }
            | Self::Chain(_)
            | Self::LacksKeyUsage { .. } => PeerErrorKind::UntrustedCertificate,
            Self::Method { .. }
            | Self::SharedKey
            | Self::UnsupportedSignature(_)
            | Self::AlgorithmMismatch
            | Self::Signature => PeerErrorKind::AuthenticationFailed,
            Self::NoCommonSignature { .. } | Self::Signing => PeerErrorKind::Local,
        }
    }
}

/// Why configured credentials cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// A pre-shared key without octets.
    #[error("the pre-shared key is empty")]
    EmptyPsk,
    /// No certificate of our own.
    #[error("no certificate of our own")]
    NoCertificate,
    /// Too many certificates.
    #[error("{0} certificates in the chain, at most {limit} are possible", limit = MAX_CHAIN)]
    ChainTooLong(usize),
    /// Too large a certificate.
    #[error("a certificate of {0} octets, at most {limit} are possible", limit = MAX_CERTIFICATE)]
    CertificateTooLarge(usize),
    /// Our certificate cannot be read.
    #[error("our certificate is not DER of an X.509 certificate with an Ed25519 or ECDSA P-256 key")]
    MalformedCertificate,
    /// The key cannot be read.
    #[error("the private key is not PKCS#8 of an Ed25519 or ECDSA P-256 key")]
    UnsupportedKey,
    /// The key is another one than the certificate's.
    #[error("the private key does not belong to the certificate")]
    KeyMismatch,
    /// No trust anchor.
    #[error("no trust anchor: no peer could be believed")]
    NoTrustAnchor,
    /// A trust anchor cannot be read.
    #[error("a trust anchor is not DER of an X.509 certificate")]
    MalformedTrustAnchor,
}

/// Seconds since 1970 as people write them.
struct Timestamp(u64);

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let time = i64::try_from(self.0).ok().and_then(|time| ASN1Time::from_timestamp(time).ok());
        match time {
            Some(time) => write!(f, "{time}"),
            None => write!(f, "{} s after 1970", self.0),
        }
    }
}

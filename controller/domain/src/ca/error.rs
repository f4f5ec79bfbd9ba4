//! The reasons why the authorities cannot be used or changed.

/// Maximum number of trusted authorities. Each one adds a certificate to every certificate chain.
pub(super) const MOST_TRUSTED: usize = 4;

/// The reason why the authorities cannot be used or changed.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file cannot be read or written.
    #[error("{path}: {error}")]
    File {
        /// Path of the file.
        path: std::path::PathBuf,
        /// The system's error.
        error: std::io::Error,
    },
    /// A file has unexpected content.
    #[error("{path} {why}")]
    Content {
        /// Path of the file.
        path: std::path::PathBuf,
        /// The fault and its remedy.
        why: String,
    },
    /// The file or the Secret with the authorities could not be read or written.
    #[error("the authorities cannot be stored or read: {0}")]
    Storage(String),
    /// The stored document cannot be used.
    #[error("the stored authorities cannot be used: {0}; restore them from a backup")]
    Document(String),
    /// The stored document lacks every authority that nodes trust.
    #[error(
        "registered nodes have certificates of an authority ({0}) that is not stored any more: restore it from a backup (the Secret \
         edge-cni-ca, or ca.json in state_dir); without a backup every node must join again: start with an empty store"
    )]
    Lost(String),
    /// Another replica changed the document at the same moment.
    #[error("another replica changed the authorities at the same moment; try again")]
    Conflict,
    /// The authority's own certificate has expired.
    #[error("the authority {subject} expired at {at}; `edge-controller ca rollover` begins a new one")]
    Ended {
        /// Subject of the expired certificate.
        subject: String,
        /// Time at which the certificate expired, RFC 3339.
        at: String,
    },
    /// The limit of trusted authorities is reached.
    #[error(
        "{MOST_TRUSTED} authorities are trusted already; retire the oldest first: `edge-controller ca list`, `edge-controller ca retire`"
    )]
    TooMany,
    /// The operator's files contain the authority that is in use, so there is no new one to roll
    /// over to.
    #[error("{0} holds the authority that is in use; put the new authority into ca_certificate and ca_key first")]
    SameOperatorCa(std::path::PathBuf),
    /// The operator's files contain an authority that was in use before.
    #[error("{0} holds an authority that was in use before; provide a new one, with a new key")]
    FormerOperatorCa(std::path::PathBuf),
    /// The key hash prefix matches no trusted authority, or more than one.
    #[error(
        "not exactly one trusted authority has a key hash that begins with {0:?} (at least 8 digits); `edge-controller ca list` shows them"
    )]
    NoSuch(String),
    /// The signing authority cannot be retired.
    #[error("authority {0} is the one that signs; roll over first: `edge-controller ca rollover`")]
    Active(String),
    /// The signing library refused the certificate.
    #[error("cannot sign: {0}")]
    Sign(#[from] rcgen::Error),
    /// A stored serial number is not hexadecimal.
    #[error("a stored serial number is not hexadecimal")]
    Serial,
    /// The operating system provides no random numbers.
    #[error(transparent)]
    Random(#[from] crate::random::NoRandomness),
}

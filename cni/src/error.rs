//! Errors in the form of the CNI specification: JSON on standard output with a code and a message,
//! and an exit status other than 0.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::path::Path;

/// The reason why an operation failed. The content is in a box, so that a fallible function returns
/// a pointer instead of a hundred bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Error(Box<Failure>);

/// The content of an [`Error`]. The message states what was expected, what was found and what to
/// do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) message: String,
    pub(crate) details: String,
}

/// A result with the [`Error`] of this crate.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Error codes. Codes below 100 are defined by the CNI specification ("Error"), codes from 100 on
/// by this plugin (`docs/cni.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// The plugin does not support the configuration's cniVersion.
    IncompatibleVersion = 1,
    /// The configuration has a key that the plugin does not support.
    UnsupportedField = 2,
    /// An environment variable is missing or invalid.
    InvalidEnvironment = 4,
    /// Reading or writing failed.
    Io = 5,
    /// The configuration is not JSON.
    Decode = 6,
    /// The configuration contains an impossible or contradictory value.
    InvalidConfig = 7,
    /// The operation may succeed later without any action, for example because no address is free
    /// at the moment.
    TryAgainLater = 11,
    /// STATUS: no pod can be attached at the moment.
    NotAvailable = 50,
    /// A file in the state directory is corrupt.
    DamagedState = 100,
    /// This container already has this interface.
    AlreadyAttached = 101,
    /// A name that the plugin needs on the host or in the pod is already in use.
    NameTaken = 102,
    /// The kernel refused a request.
    Kernel = 103,
    /// The guard that prevents pods' packets from leaving in clear cannot be installed. No pod is
    /// attached without it.
    Guard = 104,
    /// No address is free, and no further segment will become available.
    RangeFull = 105,
    /// CHECK: the container is no longer configured as ADD left it.
    NotAsAttached = 106,
    /// An nftables table cannot be created: the bridge's filter, or the table that blocks outside
    /// hosts from reaching pods. Without it no pod is attached, unless the operator allows it.
    Filter = 107,
}

impl Error {
    /// Creates an error with this message.
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self(Box::new(Failure { code, message: message.into(), details: String::new() }))
    }

    /// Creates an error about a file. `what` is the verb that failed, for example `read`.
    pub(crate) fn io(what: &str, path: &Path, error: impl fmt::Display) -> Self {
        Self::new(Code::Io, format!("cannot {what} {}: {error}", path.display()))
    }

    /// Returns the same error with another code.
    pub(crate) fn with_code(mut self, code: Code) -> Self {
        self.code = code;
        self
    }

    /// Adds details that help an operator to find the cause.
    pub(crate) fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// Prefixes the message with its subject, such as the pod or the file.
    pub(crate) fn with_subject(mut self, subject: impl fmt::Display) -> Self {
        self.message = format!("{subject}: {}", self.message);
        self
    }
}

impl Deref for Error {
    type Target = Failure;

    fn deref(&self) -> &Failure {
        &self.0
    }
}

impl DerefMut for Error {
    fn deref_mut(&mut self) -> &mut Failure {
        &mut self.0
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, " ({})", self.details) }
    }
}

/// Converts the error of an [`std::io`] or [`rustix`] call on a path into an [`Error`].
pub(crate) trait Context<T> {
    /// Converts the error of a result. `what` is the verb that failed, such as "read" or "create".
    fn context(self, what: &str, path: &Path) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn context(self, what: &str, path: &Path) -> Result<T> {
        self.map_err(|error| Error::io(what, path, error))
    }
}

//! The reasons why a netlink request fails.

use std::io;
use std::time::Duration;

use super::frame::KernelRefusal;

/// Maximum time to wait for the kernel's response. The kernel handles a request within the system
/// call that sends it, so this timeout only matters if a response was lost.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of attempts to read a dump, which must be repeated if the table changes while it
/// is read. With the delays between them, the attempts take at least 1.4 s: on a node that starts
/// fifty pods at once, the links change all the time.
pub(super) const DUMP_ATTEMPTS: u32 = 42;

/// The reason why a request failed. Holds no bytes of the request or the response.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused the request.
    #[error("{request}: {refusal}")]
    Rejected {
        /// The request.
        request: &'static str,
        /// The kernel's response.
        refusal: KernelRefusal,
    },
    /// There was no response within 5 s.
    #[error("{request}: no answer from the kernel within {ANSWER_TIMEOUT:?}")]
    Timeout {
        /// The request.
        request: &'static str,
    },
    /// Messages were lost, since the receive buffer was full. The caller's copy of the state may be
    /// out of date and must be read again.
    #[error("netlink messages were lost (ENOBUFS): the state must be read again")]
    Overrun,
    /// In every attempt, the table changed while it was dumped.
    #[error("{request}: changed during each of {DUMP_ATTEMPTS} attempts to read it")]
    Interrupted {
        /// The request.
        request: &'static str,
    },
    /// A response was malformed.
    #[error("{request}: the kernel's answer was not understood: {reason}")]
    Malformed {
        /// The request.
        request: &'static str,
        /// How the response is malformed. Holds no bytes of the response.
        reason: String,
    },
    /// The socket failed.
    #[error("{doing}: {error}")]
    Io {
        /// The operation.
        doing: &'static str,
        /// The cause.
        error: io::Error,
    },
}

impl Error {
    /// Returns the error number of the kernel's refusal, or `None` if the kernel did not refuse.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Rejected { refusal, .. } => Some(refusal.errno),
            _ => None,
        }
    }

    pub(super) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Error::Io { doing, error }
    }
}

/// The result of a request.
pub type Result<T, E = Error> = std::result::Result<T, E>;

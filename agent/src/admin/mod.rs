//! The socket `admin.sock` (mode 0600) on which the operator's commands ask a running agent: one
//! JSON line each way.

pub mod client;
pub mod server;

use serde::{Deserialize, Serialize};

use crate::status::Status;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "lowercase")]
pub enum Request {
    /// Everything.
    Status,
    /// Rekey the CHILD_SA with a peer.
    Rekey {
        /// Its name.
        peer: String,
    },
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "lowercase")]
pub enum Answer {
    /// To [`Request::Status`].
    Status {
        /// The document that `status --json` prints.
        status: Box<Status>,
    },
    /// Done, or begun.
    Done,
    /// Not done.
    Failed {
        /// Why, and what to do.
        reason: String,
    },
}

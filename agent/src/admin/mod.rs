//! The socket `admin.sock` (mode 0600) on which the operator's commands ask a running agent: one
//! JSON line each way.

pub mod client;
pub mod server;

use serde::{Deserialize, Serialize};

use crate::status::Status;

/// A request of an `edge-agent` command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "lowercase")]
pub enum Request {
    /// The status document.
    Status,
    /// Rekey the CHILD_SA with a peer.
    Rekey {
        /// The peer's name.
        peer: String,
    },
}

/// The agent's response.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "lowercase")]
pub enum Response {
    /// Response to [`Request::Status`].
    Status {
        /// The document that `status --json` prints.
        status: Box<Status>,
    },
    /// The request is carried out or under way.
    Done,
    /// The request failed.
    Failed {
        /// The reason, and what to do.
        reason: String,
    },
}

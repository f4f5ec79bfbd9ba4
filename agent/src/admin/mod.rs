//! The socket `admin.sock` (mode 0600), on which the operator's commands send requests to a running
//! agent: one JSON line in each direction.

pub mod capture_stream;
pub mod client;
mod response;
pub mod server;
mod socket_path;

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::host::Obstacle;
use crate::status::Status;
use crate::tunnels::CapturedBatch;
pub use socket_path::socket_path;

/// A request from an `edge-agent` command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "lowercase")]
pub enum AdminRequest {
    /// Requests the document that `status --json` prints.
    Status,
    /// Requests the same document in a form that is written part by part. Used instead of
    /// [`Self::Status`] for requests that come over the socket.
    #[serde(skip)]
    StatusInParts,
    /// Requests what probes need. Unlike [`Self::Status`], it costs the same with any number of
    /// peers, and does not wait for other requests.
    Health,
    /// Rekeys the CHILD_SAs or the IKE SA with a peer.
    Rekey {
        /// Name of the peer as `status` lists it.
        peer: String,
        /// Whether to rekey the IKE SA.
        #[serde(default)]
        ike: bool,
        /// Name of the configured child whose CHILD_SAs are rekeyed; `None` for all CHILD_SAs with
        /// the peer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        child: Option<String>,
    },
    /// Copies the decrypted IKE messages to and from these addresses until the connection is
    /// closed.
    Capture {
        /// The peer's addresses.
        addresses: BTreeSet<IpAddr>,
    },
}

/// What probes need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Health {
    /// Version of the current view, as the thread of the tunnels reports it.
    pub view_version: Option<u64>,
    /// Whether the node's firewall is installed.
    pub firewall: bool,
    /// Obstacles that keep pods' packets from arriving.
    pub obstacles: Vec<Obstacle>,
}

/// The reply of the running agent to an [`AdminRequest`].
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "answer", rename_all = "lowercase")]
pub enum AdminResponse {
    /// Response to [`AdminRequest::Status`].
    Status {
        /// The document that `status --json` prints.
        status: Box<Status>,
    },
    /// Response to [`AdminRequest::Health`].
    Health {
        /// What probes need.
        health: Health,
    },
    /// Response to [`AdminRequest::Capture`]. The first batch is sent immediately and is empty.
    /// Later batches are sent whenever there are messages.
    Captured {
        /// The messages since the last batch.
        batch: CapturedBatch,
    },
    /// The request has been carried out, or has been started.
    Done,
    /// The request was not carried out.
    Failed {
        /// The reason, and how to solve the problem.
        reason: String,
    },
}

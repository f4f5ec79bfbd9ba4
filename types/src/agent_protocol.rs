//! The protocol between plugin and agent: bincode frames ([`crate::frame`]) on the agent's unix
//! socket (mode 0600). A connection carries one request and one response.

use serde::{Deserialize, Serialize};

use crate::api::Family;

/// Default path of the agent's socket.
pub const AGENT_SOCKET: &str = "/run/edge-cni/agent.sock";

/// How long the plugin waits for the response to [`AgentRequest::RequestSegment`] before it fails
/// with CNI error 11, seconds.
pub const SEGMENT_REQUEST_TIMEOUT_SECONDS: u64 = 5;

/// A request of the plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentRequest {
    /// Free addresses run short: request another segment. The agent responds when the new segments
    /// are in the state directory, or at once if an earlier request has brought some since the
    /// plugin counted.
    RequestSegment {
        /// The families that run short.
        stock: Vec<Stock>,
    },
    /// An ADD took addresses: the agent checks whether it needs a new spare segment. It responds at
    /// once.
    AddressesTaken {
        /// Every family that has a segment.
        stock: Vec<Stock>,
    },
    /// Checks that the agent runs. CNI STATUS sends it.
    Ping,
}

/// How many addresses of a family the plugin has, counted at one time under the shared lock.
/// `free + leased` is what all segments hold that the plugin saw. From it the agent knows whether
/// segments have come since, and how large the spare is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stock {
    /// The family.
    pub family: Family,
    /// Addresses in this node's segments that are free for pods.
    pub free: u64,
    /// Addresses in this node's segments that a pod has.
    pub leased: u64,
}

/// A response of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentResponse {
    /// Done. The state directory holds the result.
    Done,
    /// It failed.
    Failed {
        /// What was asked, why it failed, what to do. The text goes into the pod's events.
        reason: String,
        /// Whether another try later may help (the controller cannot be reached) or not (the range
        /// is full).
        temporary: bool,
    },
}

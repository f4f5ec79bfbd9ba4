//! The protocol between plugin and agent: bincode frames ([`crate::frame`]) on the agent's unix
//! socket (mode 0600). A connection carries one request and one response.

use serde::{Deserialize, Serialize};

use crate::api::Family;

/// Default path of the agent's socket.
pub const AGENT_SOCKET: &str = "/run/edge-cni/agent.sock";

/// Maximum time for which the plugin waits for the response to [`AgentRequest::RequestSegment`],
/// seconds. The plugin then fails with CNI error 11.
pub const SEGMENT_REQUEST_TIMEOUT_SECONDS: u64 = 5;

/// A request from the plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentRequest {
    /// Requests another segment, because few free addresses are left. The agent responds when the
    /// new segments are in the state directory, or immediately if an earlier request has added
    /// segments since the plugin counted its addresses.
    RequestSegment {
        /// The families that need addresses.
        stock: Vec<Stock>,
    },
    /// Reports that an ADD took addresses. The agent checks whether it needs a new spare segment,
    /// and responds immediately.
    AddressesTaken {
        /// Every family that has a segment.
        stock: Vec<Stock>,
    },
    /// Checks whether the agent is running. The plugin sends it for CNI STATUS.
    Ping,
}

/// The number of addresses of a family that the plugin has, counted at one time under the shared
/// lock. `free + leased` is the number of addresses in all segments that the plugin saw. It shows
/// the agent whether segments were added since the count, and how many spare addresses there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stock {
    /// The family.
    pub family: Family,
    /// Number of addresses in this node's segments that are free for pods.
    pub free: u64,
    /// Number of addresses in this node's segments that pods have.
    pub leased: u64,
}

/// A response from the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentResponse {
    /// The request was carried out. The result is in the state directory.
    Done,
    /// The request failed.
    Failed {
        /// The request, why it failed, and what to do. The text goes into the pod's events.
        reason: String,
        /// Whether a later attempt may succeed (for example if the controller cannot be reached),
        /// or not (the range is full).
        temporary: bool,
    },
}

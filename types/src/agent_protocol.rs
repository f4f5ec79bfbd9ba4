//! What plugin and agent say to each other on the agent's unix socket (mode 0600), as bincode
//! frames ([`crate::frame`]). One request a connection, one answer.

use serde::{Deserialize, Serialize};

use crate::api::Family;

/// Default path of the agent's socket.
pub const AGENT_SOCKET: &str = "/run/edge-cni/agent.sock";

/// How long the plugin waits for an application's answer before it gives up with CNI error 11,
/// seconds.
pub const APPLICATION_TIMEOUT_SECONDS: u64 = 5;

/// What the plugin asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentRequest {
    /// Free addresses run short: apply for another segment. The agent answers when the new segments
    /// stand in the state directory, or at once if another application has brought some since the
    /// plugin looked.
    ApplyForSegment {
        /// Families that run short.
        stock: Vec<Stock>,
    },
    /// An ADD took addresses: lets the agent look whether the spare is used up. Answered at once.
    AddressesTaken {
        /// Every family of which there is a segment.
        stock: Vec<Stock>,
    },
    /// Whether the agent is there. CNI STATUS.
    Ping,
}

/// How many addresses of a family the plugin has, counted in one look under the shared lock.
/// `free + leased` is what all segments hold that the plugin saw; so the agent can tell whether
/// segments have come since, and what the spare is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stock {
    /// Which family.
    pub family: Family,
    /// Addresses for pods in this node's segments that no pod has.
    pub free: u64,
    /// Addresses in this node's segments that a pod has.
    pub leased: u64,
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentResponse {
    /// Done; the state directory holds the outcome.
    Done,
    /// It could not be done, and why, in words for the pod's events.
    Failed {
        /// What was asked, what stood in the way, what to do.
        reason: String,
        /// Whether trying again later may help (the cloud cannot be reached) or not (the range is
        /// full).
        temporary: bool,
    },
}

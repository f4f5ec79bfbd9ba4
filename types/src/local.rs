//! What plugin and agent say to each other on the agent's unix socket (mode 0600), as bincode frames ([`crate::frame`]).
//! One request a connection, one answer.

use serde::{Deserialize, Serialize};

use crate::api::Family;

/// Default path of the agent's socket.
pub const AGENT_SOCKET: &str = "/run/edge-cni/agent.sock";

/// How long the plugin waits for an application's answer before it gives up with CNI error 11, seconds.
pub const APPLICATION_TIMEOUT_SECONDS: u64 = 5;

/// What the plugin asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentRequest {
    /// Free addresses run short: apply for another segment. The agent answers when the new segments stand in the state directory,
    /// or at once if another application has brought enough meanwhile.
    ApplyForSegment {
        /// Families that run short.
        families: Vec<Family>,
        /// Addresses that the plugin sees free, a family in the order of `families`; lets the agent join two applications into one.
        free: Vec<u64>,
    },
    /// An ADD took addresses: lets the agent look whether the spare is used up. Answered at once.
    AddressesTaken,
    /// Whether the agent is there. CNI STATUS.
    Ping,
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
        /// Whether trying again later may help (the cloud cannot be reached) or not (the range is full).
        temporary: bool,
    },
}

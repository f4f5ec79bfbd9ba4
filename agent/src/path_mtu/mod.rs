//! The path MTU of tunnels, measured with probes (packetization layer path MTU discovery, RFC 4821,
//! RFC 8899). A router that drops large ESP packets without an ICMP error, or whose errors are
//! filtered, is found in this way. This module does no I/O.
//!
//! - `check_pace`: the rate of checks over all paths.
//! - [`encapsulation`]: the sizes of packets before and after ESP.
//! - `network_limits`: the limits by the networks to which the paths lead.
//! - `search`: the search for the largest packet that a path carries.
//! - [`table`]: the paths to all peers, and the probes that wait for an answer.

mod check_pace;
pub mod encapsulation;
mod network_limits;
mod search;
pub mod table;

pub use encapsulation::Encapsulation;
pub use network_limits::NetworkLimits;
pub use table::{Change, PathMtu, PathMtuTable, PeerPath, Probe};

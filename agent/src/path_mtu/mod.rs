//! The path MTU of tunnels, measured with probes (packetization layer path MTU discovery, RFC 4821,
//! RFC 8899). A router that drops large ESP packets without an ICMP error, or whose errors are
//! filtered, is found in this way. This module does no I/O.
//!
//! - [`encapsulation`]: the sizes of packets before and after ESP.
//! - `search`: the search for the largest packet that a path carries.
//! - [`table`]: the paths to all peers, and the probes that wait for an answer.

pub mod encapsulation;
mod search;
pub mod table;

pub use encapsulation::Encapsulation;
pub use table::{PathMtu, PathMtuTable, PeerPath, Probe};

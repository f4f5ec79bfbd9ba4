//! A blind relay on a hub, for two nodes that find no path to each other: the hub has a UDP port
//! for each of them, and copies datagrams from one port to the other without looking into them. IKE
//! and ESP in UDP go that way as between any two ends with NATs between them, so the hub reads
//! nothing.
//!
//! Both nodes must ask for each other within their IKE SAs with the hub. Each asks only for a node
//! in its own view, so no node is relayed to one that may not talk to it, and nobody else's quota
//! is used up.
//!
//! - [`RelayRequests`]: a node's requests: for which peers, when, and to which hub. No I/O.
//! - [`HubRelays`]: a hub's answers, and its open pairs.
//! - `table`: who has asked a hub for whom, the open pairs, and their limits. No I/O.
//! - `pair`: which datagrams of one pair are copied, and to where. No I/O.
//! - `open_pairs`: the tasks that copy datagrams.
//! - `sockets`: the sockets of a pair.

mod hub;
mod open_pairs;
mod pair;
mod requests;
mod sockets;
mod table;

pub use hub::{HubRelays, Outgoing};
pub use open_pairs::RelayEnd;
pub use requests::{Opened, OpenedRelay, RelayRequests};

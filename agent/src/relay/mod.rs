//! A blind relay on a hub, for two nodes that find no direct path to each other. The hub opens a
//! UDP port for each of the two nodes, and copies datagrams from one port to the other without
//! reading them. The nodes send IKE and ESP in UDP through the ports, as between any two ends
//! behind NATs. The hub has no keys for them.
//!
//! Each of the two nodes must request the relay within its IKE SA with the hub. A node requests
//! relays only to nodes in its own view, so no node is relayed to one that may not talk to it, and
//! no node can use up the quota of another.
//!
//! - [`RelayRequests`]: a node's requests for relays: to which peers, when, and from which hub. It
//!   does no I/O.
//! - [`HubRelays`]: a hub's answers to requests, and its open pairs.
//! - `table`: the requests that wait at a hub, the open pairs, and their limits. It does no I/O.
//! - `pair`: which datagrams of one pair are copied, and to which address. It does no I/O.
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

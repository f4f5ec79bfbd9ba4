//! A blind relay on a hub, for two nodes that find no direct path to each other. The hub opens a
//! UDP port for each of the two nodes, and copies datagrams from one port to the other without
//! reading them. The nodes send IKE and ESP in UDP through the ports, as between any two ends
//! behind NATs. The hub has no keys for them. A node that reaches the hub only by TCP opens another
//! TCP connection for the pair, with IKE and ESP in it (RFC 9329).
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
//! - `sockets`: the sockets and connections of a pair.
//! - `frames`: the frames in a connection.
//! - [`AwaitedStreams`]: hands accepted connections over to their pairs.
//! - `ends`: what the two ends of a pair are called.

mod awaited_streams;
mod ends;
mod frames;
mod hub;
mod open_pairs;
mod pair;
mod requests;
mod sockets;
mod table;

pub use awaited_streams::AwaitedStreams;
pub use ends::{EndRandom, RelayEnd};
pub use hub::{HubRelays, Outgoing};
pub use requests::{Opened, OpenedRelay, RelayRequests};

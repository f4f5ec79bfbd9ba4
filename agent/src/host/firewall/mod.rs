//! The nftables table `inet edge-cni`, which decides which senders may use the tunnels and which
//! may reach pods, and which sets the source addresses of outgoing packets.
//!
//! XFRM policies decide between which networks packets may flow, but they do not check the sender
//! of a packet. The table checks it. `docs/firewall.md` describes each chain, and the path of each
//! kind of packet.
//!
//! - `contents`: the contents of the table, derived from the configuration and the desired state.
//!   It does no I/O.
//! - `counters`: the counters of dropped packets, and the meaning of each.
//! - `expressions`: expressions and statements in nft's JSON format, from which the rules are
//!   built.
//! - `remote_changes`: changes of the sets after a few networks behind tunnels came or went. It
//!   does no I/O.
//! - `rules`: the commands for `nft -j` that create the table. It does no I/O.
//! - `set_elements`: the netlink messages that change a few elements of the sets.
//! - `sets`: the table's named sets, and the commands that change them. It does no I/O.
//! - `nft`: access to the table in the kernel through `nft -j`.

mod contents;
mod counters;
mod expressions;
mod nft;
mod remote_changes;
mod rules;
mod set_elements;
mod sets;

pub use contents::{Firewall, FirewallLinks, PODS_TABLE, TABLE};
pub use nft::{DroppedPackets, KernelTable, dropped_packets, read, remove, remove_bridge_filter};
pub(in crate::host) use nft::{SetUpdate, list, run};
pub(crate) use nft::{pods_table_exists, remove_pods_table};
pub(in crate::host) use set_elements::SetElements;

#[cfg(test)]
mod tests;

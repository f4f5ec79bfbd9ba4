//! The nftables table `inet edge-cni`: it decides which senders may use the tunnels and which may
//! reach pods, and sets the source addresses of packets that leave.
//!
//! XFRM policies decide between which networks packets may flow, but they do not check the sender
//! of a packet. The table does that. `docs/firewall.md` describes each chain, and the path of each
//! kind of packet.
//!
//! - `contents`: the contents of the table, derived from configuration and desired state. No I/O.
//! - `counters`: the counters of dropped packets, and the meaning of each.
//! - `expressions`: the parts of rules in nft's JSON.
//! - `rules`: the table as commands of `nft -j`. No I/O.
//! - `sets`: the networks in its sets, and the commands that change them. No I/O.
//! - `nft`: applies, updates, reads and removes the table.

mod contents;
mod counters;
mod expressions;
mod nft;
mod rules;
mod sets;

pub use contents::{Firewall, FirewallLinks, PODS_TABLE, TABLE};
pub use nft::{DroppedPackets, KernelTable, dropped_packets, read, remove, remove_bridge_filter};
pub(in crate::host) use nft::{list, run};
pub(crate) use nft::{pods_table_exists, remove_pods_table};

#[cfg(test)]
mod tests;

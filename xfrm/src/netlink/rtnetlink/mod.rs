//! The messages of rtnetlink(7) that edge-cni sends and reads: links, addresses and routes.
//!
//! `netlink-packet-route` has types for all attributes of all kinds of links. They would add 300
//! KiB of machine code that the plugin never runs, and the plugin's size limit is 1 MiB. The types
//! in this module therefore write and read only the attributes that programs in this repository
//! use, and skip all others. Tests compare them with that library.

mod address;
mod link;
mod route;
#[cfg(test)]
mod tests;
mod values;

pub use address::{AddressMessage, AddressRequest};
pub use link::{BridgePort, BridgePortState, LinkMessage, LinkRequest, attribute};
pub use route::{NextHop, RouteMessage, RouteRequest};

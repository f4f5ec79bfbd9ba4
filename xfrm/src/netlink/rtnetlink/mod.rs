//! The messages of rtnetlink(7) that edge-cni sends and reads: links, addresses and routes.
//!
//! `netlink-packet-route` has types for all attributes of all kinds of links. With them the plugin
//! would carry 300 KiB of machine code that it never runs, and it may have 1 MiB. So these types
//! write and read what a program here looks at, and skip other attributes. Tests compare them with
//! that library.

mod address;
mod link;
mod route;
#[cfg(test)]
mod tests;
mod values;

pub use address::{AddressMessage, AddressRequest};
pub use link::{BridgePort, BridgePortState, LinkMessage, LinkRequest, attribute};
pub use route::{NextHop, RouteMessage, RouteRequest};

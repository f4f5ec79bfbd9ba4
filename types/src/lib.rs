//! The messages that the three programs exchange, and the files that they share on disk.
//!
//! - [`name`]: node and community names, checked when they are parsed.
//! - [`view`]: a node's view, that is, the node itself and the peers with which it may communicate.
//! - [`api`]: the bodies of the controller's HTTP API (`/v1`).
//! - [`connectivity`]: the bodies for checks whether nodes reach each other.
//! - [`page`]: the bodies of the HTTP API for sessions on the operator's page.
//! - [`agent_protocol`]: the protocol between plugin and agent, on the agent's unix socket.
//! - [`shared_files`]: the files below the state directory that plugin and agent share.
//! - [`forwarding`]: the record of whether we turned forwarding on, and of the uplinks whose
//!   settings we changed for it.
//! - [`durable`]: files that are replaced as a whole and survive a power cut.
//! - [`error`]: formats an error and its causes in one line, for logs.
//! - [`exposition`]: the text formats of `/metrics`.
//! - [`frame`]: bincode frames with a size limit and a version byte.
//! - `jitter`: delays of random length, only with the feature `jitter`.
//! - [`network`]: relations between two networks, networks with a special use, and names of
//!   bridges.
//! - [`pods`]: the patterns for pods in configuration files, and limits of other keys.
//! - [`pki`]: the names and key usages in certificates.
//! - [`shared_list`]: a list whose copies share what does not change.
//! - [`token`]: the join token, with which a new node joins.
//! - [`traffic`]: the traffic of a node's tunnels.
//! - [`view_frames`]: the frames between node and controller on an upgraded connection.
//!
//! Nodes and controller ignore unknown keys in messages from each other, so that programs one minor
//! version apart work together. They refuse unknown keys in input from the operator.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

pub mod agent_protocol;
pub mod api;
pub mod connectivity;
pub mod durable;
pub mod error;
pub mod exposition;
pub mod forwarding;
pub mod frame;
#[cfg(feature = "jitter")]
pub mod jitter;
pub mod name;
pub mod network;
pub mod page;
pub mod pki;
pub mod pods;
pub mod shared_files;
pub mod shared_list;
pub mod token;
pub mod traffic;
pub mod view;
pub mod view_frames;

pub use ipnetwork::IpNetwork;
pub use name::{Communities, Community, NameError, NodeName};
pub use shared_list::SharedList;
pub use token::JoinToken;
pub use view::{AddressSource, CommunityTunnels, NodeAddress, NodeView, Peer, Role, SharedPeer, ViewChange};

//! The messages that the three programs exchange, and the files that they share on disk.
//!
//! - [`name`]: node and community names, checked when they are parsed.
//! - [`view`]: the data about itself and its peers that a node gets from the controller.
//! - [`api`]: bodies of the controller's HTTP API (`/v1`).
//! - [`page`]: bodies about sessions of the operator's page.
//! - [`agent_protocol`]: the protocol between plugin and agent, on the agent's unix socket.
//! - [`shared_files`]: files below the state directory that plugin and agent share.
//! - [`forwarding`]: the file that records whether we turned forwarding on.
//! - [`durable`]: replacement of a file that is safe against power cuts.
//! - [`error`]: errors with their causes, in one line.
//! - [`exposition`]: the text formats of metrics.
//! - [`frame`]: frames in bincode, with a size limit and a version byte.
//! - `jitter`: waits of random length, only with the feature of this name.
//! - [`network`]: whether one network contains or overlaps another, or has a special use.
//! - [`pods`]: patterns for pods in configuration files.
//! - [`pki`]: the names and usages in certificates.
//! - [`token`]: the join token that brings a new node in.
//!
//! Nodes and controller ignore unknown keys in messages from each other, so that programs one minor
//! version apart work together. They refuse unknown keys in input from the operator.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

pub mod agent_protocol;
pub mod api;
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
pub mod token;
pub mod view;

pub use ipnetwork::IpNetwork;
pub use name::{Communities, Community, NameError, NodeName};
pub use token::JoinToken;
pub use view::{AddressSource, NodeAddress, NodeView, Peer, Role, SharedPeer, ViewChange};

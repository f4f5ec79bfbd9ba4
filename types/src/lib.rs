//! What travels between the three programs and what they share on disk.
//!
//! - [`name`]: node and community names, parsed at the edge so that the rest need not doubt them.
//! - [`view`]: what the controller tells a node about itself and its peers.
//! - [`api`]: bodies of the controller's HTTP API (`/v1`).
//! - [`agent_protocol`]: frames on the agent's unix socket, between plugin and agent.
//! - [`store`]: files below the state directory that plugin and agent share.
//! - [`forwarding`]: who turned forwarding on, another such file.
//! - [`durable`]: replacing a file so that a power cut does no harm.
//! - [`error`]: errors with their causes, in one line.
//! - [`frame`]: the one place that knows bincode, with its size limit and version byte.
//! - [`jitter`]: waits of random length; a feature.
//! - [`network`]: whether one network contains or overlaps another.
//! - [`pods`]: which pods an operator means.
//! - [`pki`]: how a certificate says who its holder is.
//! - [`token`]: the join token that brings a new node in.
//!
//! Unknown keys are ignored in everything that travels between nodes and controller, so that
//! programs one minor version apart work together. What the operator sends is refused with unknown
//! keys.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

pub mod agent_protocol;
pub mod api;
pub mod durable;
pub mod error;
pub mod forwarding;
pub mod frame;
#[cfg(feature = "jitter")]
pub mod jitter;
pub mod name;
pub mod network;
pub mod pki;
pub mod pods;
pub mod store;
pub mod token;
pub mod view;

pub use ipnetwork::IpNetwork;
pub use name::{Communities, Community, NameError, NodeName};
pub use token::JoinToken;
pub use view::{Endpoint, EndpointSource, NodeView, Peer, Role, ViewChange};

//! IKEv2 (RFC 7296) as a library without input or output: datagrams and time go in, datagrams and
//! events come out.
//!
//! One `Endpoint` holds all IKE SAs of a node. Its owner feeds it datagrams (`handle`) and time
//! (`handle_timeout`), and drains `poll_transmit`, `poll_event` and `poll_timeout` afterwards.
//! Randomness, the clock of the world and SPIs come through [`Environment`]; so a whole network of
//! endpoints runs in one thread of a test.
//!
//! - [`config`]: who the peers are and what may be negotiated with them.
//! - [`endpoint`]: the `Endpoint` itself, and what its owner must do in which order.
//! - [`event`]: what the owner must do in the kernel and may tell people.
//! - [`wire`]: messages as bytes.
//! - [`crypto`]: key exchange, key derivation, and the protection of messages.
//! - [`auth`]: how both ends prove who they are.
//!
//! Inside: `sa` has the states and exchanges of one IKE SA, `tunnel` the CHILD_SAs of one peer and
//! the order of their events, `negotiate` what both ends agree upon, `timer` and `output` what they
//! say. Whole networks of endpoints are tried in `tests/simulation`, hostile ones in
//! `tests/hostile`.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

pub mod auth;
pub mod config;
pub mod crypto;
pub mod endpoint;
mod environment;
pub mod event;
mod negotiate;
mod output;
mod sa;
pub mod secret;
pub mod time;
mod timer;
mod tunnel;
pub mod wire;

pub use config::{Auth, ChildConfig, EndpointConfig, Identity, PeerConfig, PeerName};
pub use endpoint::Endpoint;
pub use environment::{Environment, Transmit};
pub use event::{ChildId, ChildSa, Event, IkeId, OutboundSwitch};
pub use secret::Secret;
pub use time::Instant;

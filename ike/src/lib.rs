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
pub use event::{ChildId, ChildSa, Event, IkeId, OutboundSwitch};
pub use secret::Secret;
pub use time::Instant;

use std::net::{IpAddr, SocketAddr};

/// What an `Endpoint` cannot know by itself. Like time, it is handed in with every call.
pub trait Environment {
    /// Fills with cryptographically secure random bytes.
    fn fill_random(&mut self, bytes: &mut [u8]);
    /// Seconds since 1970-01-01 UTC, for certificates: max(clock, build time, last time kept on
    /// disk).
    fn unix_time(&self) -> u64;
    /// Reserves an SPI for an inbound ESP SA towards `local` (XFRM_MSG_ALLOCSPI). `None`: the
    /// kernel refused; the CHILD_SA fails.
    fn allocate_spi(&mut self, peer: &PeerName, local: IpAddr, remote: IpAddr) -> Option<u32>;
    /// The address from which the kernel would speak to `remote`, for peers without a configured
    /// local address. `None`: unknown; the peer will then believe in a NAT before us and send ESP
    /// in UDP.
    fn source_address(&mut self, remote: IpAddr) -> Option<IpAddr> {
        let _ = remote;
        None
    }
    /// Gives back a reserved SPI that no [`ChildSa`] event has carried.
    fn release_spi(&mut self, peer: &PeerName, local: IpAddr, spi: u32);
}

/// A datagram to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Address and port to send from. The port tells the socket; where it is the NAT traversal
    /// port, the payload already carries the non-ESP marker (RFC 3948 2.2). An unspecified address
    /// lets the kernel choose.
    pub local: SocketAddr,
    /// Where to.
    pub remote: SocketAddr,
    /// UDP payload.
    pub payload: Vec<u8>,
}

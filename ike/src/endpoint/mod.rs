//! All IKE SAs of a node behind one door: datagrams are routed to them, peers are begun with, limits are held.
//!
//! # What the owner does
//! After every call, and in this order: drain [`Endpoint::poll_event`] and carry every event out in the kernel; then drain
//! [`Endpoint::poll_transmit`] and send; then wait until [`Endpoint::poll_timeout`] or for the next datagram. Events come before the
//! transmits that depend on them: a peer may use an SA as soon as it has our answer.

mod snapshot;

pub use snapshot::{ChildStatus, ChildUse, IkeStatus, PeerStatus, Phase};

use std::net::{IpAddr, SocketAddr};

use crate::config::{EndpointConfig, PeerConfig, PeerName};
use crate::event::Event;
use crate::time::Instant;
use crate::{Environment, Transmit};

/// The IKEv2 end of a node.
#[derive(Debug)]
pub struct Endpoint {
    config: EndpointConfig,
}

impl Endpoint {
    /// An endpoint without peers.
    pub fn new(config: EndpointConfig) -> Self {
        Self { config }
    }

    /// Adds a peer, or updates the one of this name in place. A running tunnel is left alone, except where identities changed (it is
    /// ended and begun anew) or the PSK or selectors changed (a new IKE SA replaces it without a gap).
    pub fn set_peer(&mut self, _config: PeerConfig, _now: Instant, _env: &mut dyn Environment) {}

    /// Forgets a peer: its IKE SAs are deleted (the peer is told), its SAs reported down.
    pub fn remove_peer(&mut self, _name: &PeerName, _now: Instant, _env: &mut dyn Environment) {}

    /// Takes a datagram as it came from a socket: `local` is the address it was sent to (IP_PKTINFO) with the socket's port, the payload
    /// still carries the non-ESP marker where the socket is that of `nat_port`.
    pub fn handle(
        &mut self,
        _datagram: &[u8],
        _local: SocketAddr,
        _remote: SocketAddr,
        _now: Instant,
        _env: &mut dyn Environment,
    ) {
    }

    /// Does what is due. To be called at [`Self::poll_timeout`]; earlier or later does no harm.
    pub fn handle_timeout(&mut self, _now: Instant, _env: &mut dyn Environment) {}

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        None
    }

    /// The next event, to be carried out before transmits are sent.
    pub fn poll_event(&mut self) -> Option<Event> {
        None
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// Begins with a peer now, whether or not it is configured to be begun with; ends a wait after a failure. False: no such peer.
    pub fn connect(&mut self, _name: &PeerName, _now: Instant, _env: &mut dyn Environment) -> bool {
        false
    }

    /// Rekeys the peer's CHILD_SA now. False: there is none.
    pub fn rekey_child(&mut self, _name: &PeerName, _now: Instant, _env: &mut dyn Environment) -> bool {
        false
    }

    /// Replaces the peer's IKE SA by a new one now, without a gap. False: there is none.
    pub fn rekey_ike(&mut self, _name: &PeerName, _now: Instant, _env: &mut dyn Environment) -> bool {
        false
    }

    /// Deletes the peer's IKE SAs and does not begin again by itself until [`Self::connect`] or a changed configuration. False: no such peer.
    pub fn terminate(&mut self, _name: &PeerName, _now: Instant, _env: &mut dyn Environment) -> bool {
        false
    }

    /// Checks now whether the peer is alive (RFC 7296 2.4). False: there is no IKE SA.
    pub fn check_liveness(&mut self, _name: &PeerName, _now: Instant, _env: &mut dyn Environment) -> bool {
        false
    }

    /// Our own address `old` is gone; `new` is to be used in its stead. SAs move or are made anew at once, without waiting for timeouts;
    /// peers that are being begun with are begun with again.
    pub fn local_address_changed(&mut self, _old: IpAddr, _new: IpAddr, _now: Instant, _env: &mut dyn Environment) {}

    /// Everything there is.
    pub fn snapshot(&self) -> Vec<PeerStatus> {
        Vec::new()
    }

    /// The settings.
    pub fn config(&self) -> &EndpointConfig {
        &self.config
    }
}

//! All IKE SAs of a node behind one door: datagrams are routed to them, peers are begun with,
//! limits are held.
//!
//! # What the owner does
//! After every call, and in this order: drain [`Endpoint::poll_event`] and carry every event out in
//! the kernel; then drain [`Endpoint::poll_transmit`] and send; then wait until
//! [`Endpoint::poll_timeout`] or for the next datagram. Events come before the transmits that
//! depend on them: a peer may use an SA as soon as it has our answer.
//!
//! # Two IKE SAs with one peer
//! Both ends may begin at once. Then the IKE SA begun by the smaller identity stays; otherwise the
//! newer replaces the older. Whoever began the survivor deletes the other one: he knows that the
//! survivor is up at both ends. So that both ends decide alike, an end whose IKE SA would lose
//! gives it up while it is still in IKE_SA_INIT, and nobody replaces an IKE SA of which he is the
//! responder before the initiator has spoken on it.

mod attempt;
mod commands;
mod configure;
mod connect;
mod dispatch;
mod duplicate_sas;
mod established;
mod initiation_guard;
mod peer;
mod snapshot;
mod state;

pub use crate::tunnel::ChildUse;
pub use snapshot::{ChildStatus, IkeStatus, PeerStatus, Phase};
pub use state::Endpoint;

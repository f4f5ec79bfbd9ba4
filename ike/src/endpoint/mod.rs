//! The IKEv2 endpoint of a node. It routes datagrams to IKE SAs, starts attempts to reach peers,
//! and enforces the limits.
//!
//! # Duties of the owner
//! After every call, the owner does the following, in this order:
//! 1. Drain [`Endpoint::poll_event`] and carry out every event in the kernel.
//! 2. Drain [`Endpoint::poll_transmit`] and send the datagrams.
//! 3. Wait until [`Endpoint::poll_timeout`] or for the next datagram.
//!
//! Events come before the datagrams that depend on them: a peer may use an SA as soon as it has our
//! response.
//!
//! # Two IKE SAs with one peer
//! Both ends may initiate at the same time. In that case the IKE SA initiated by the end with the
//! smaller identity stays. Otherwise, the newer IKE SA replaces the older one. The initiator of the
//! surviving IKE SA deletes the other one, because only this end can be sure that the survivor is
//! up at both ends. Both ends must reach the same decision. Therefore an end whose IKE SA would not
//! survive stops its attempt if the attempt is still in IKE_SA_INIT. An end that is the responder
//! of an IKE SA does not replace it before the initiator has sent a message on it.

mod acquire;
mod address_leases;
mod answer_limit;
mod attempt;
mod attempt_queue;
mod capturing;
mod commands;
mod configure;
mod connect;
mod dispatch;
mod duplicate_sas;
mod half_open;
mod init_request_guard;
mod key_exchange_budget;
mod peer;
mod peer_index;
mod sa_lifecycle;
mod snapshot;
mod source;
mod state;
mod waiting_attempts;

pub use crate::child_sas::ChildUse;
pub use snapshot::{ChildStatus, IkeStatus, PeerStatus, Phase};
pub use state::Endpoint;

#[cfg(test)]
mod tests;

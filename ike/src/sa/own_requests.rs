//! The requests of an established IKE SA: those in the queue, and the outstanding one.

use std::net::IpAddr;

use super::child::ReservedSpi;
use super::mobike::Cookie2;
use super::profile::Profile;
use super::rekey_collision::RekeyCollision;
use crate::crypto::InitiatorKeyExchange;
use crate::event::{ChildId, IkeId};
use crate::output::Context;
use crate::purpose::Purpose;
use crate::wire::{AgentNotification, ExchangeType};

/// A request to send when the window is free.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum QueuedRequest {
    /// An empty INFORMATIONAL request (RFC 7296 2.4).
    Liveness,
    /// Create a CHILD_SA for this purpose, because there is none.
    CreateChild(Purpose),
    /// Replace a CHILD_SA by CREATE_CHILD_SA with REKEY_SA (RFC 7296 1.3.3).
    RekeyChild(ChildId),
    /// Send DELETE with our SPI of a CHILD_SA (RFC 7296 1.4.1).
    DeleteChild(ChildId),
    /// Delete a CHILD_SA that only the peer has.
    DeleteUnused(UnusedChild),
    /// Delete a CHILD_SA that we have already removed, because its lifetime has ended.
    DeleteRemoved(ChildId),
    /// Move to the present addresses (RFC 4555 3.5). Only the original initiator sends this
    /// request.
    UpdateAddresses,
    /// Announce our present addresses to the peer (RFC 4555 3.6).
    AnnounceAddresses,
    /// Check whether the peer receives at the address of its UPDATE_SA_ADDRESSES (RFC 4555 3.7).
    CheckAddress,
    /// Send a notification for private use to an agent of ours.
    NotifyAgent(AgentNotification),
    /// Replace the IKE SA by CREATE_CHILD_SA (RFC 7296 1.3.2).
    RekeyIke,
    /// Delete the IKE SA.
    DeleteIke,
}

/// Our request that has not been answered yet.
#[derive(Debug)]
pub(super) enum OutstandingRequest {
    Liveness(LivenessCheck),
    /// Holds the additional addresses that it announces, if it announces any.
    UpdateAddresses(Cookie2, Option<Vec<IpAddr>>),
    /// Holds the announced addresses: the one in use, and the additional ones.
    AnnounceAddresses(IpAddr, Vec<IpAddr>),
    CheckAddress(Cookie2),
    NotifyAgent(AgentNotification),
    CreateChild(Box<CreateChildRequest>),
    RekeyIke(Box<RekeyIkeRequest>),
    DeleteChild(ChildId),
    DeleteUnused(UnusedChild),
    DeleteRemoved(ChildId),
    DeleteIke,
    /// The response is ignored, since the IKE SA was reported down.
    Abandoned,
}

/// Our liveness check.
#[derive(Debug, Clone, Copy)]
pub(super) struct LivenessCheck {
    /// Whether the request detects NATs.
    pub(super) detects_nats: bool,
    /// Whether ESP had stopped when it was sent.
    pub(super) esp_stopped: bool,
}

/// Our request for a CHILD_SA.
#[derive(Debug)]
pub(super) struct CreateChildRequest {
    /// The CHILD_SA to replace.
    pub(super) old: Option<ChildId>,
    /// The purpose of the CHILD_SA.
    pub(super) purpose: Purpose,
    pub(super) inbound: ReservedSpi,
    pub(super) nonce: [u8; 32],
    pub(super) key: Option<InitiatorKeyExchange>,
    /// Whether the peer has already requested another group.
    pub(super) group_changed: bool,
    /// The peer's simultaneous rekey of the same CHILD_SA, if there is one.
    pub(super) collision: Option<RekeyCollision<ChildId>>,
    /// The peer's SPIs of unknown CHILD_SAs that it has deleted since the request was sent. If the
    /// response is late, the CHILD_SA that this request creates may be among them.
    pub(super) deleted: Vec<u32>,
}

/// Maximum length of [`CreateChildRequest::deleted`]. An honest peer deletes at most one. Further
/// deletions are not recorded. A CHILD_SA whose deletion was not recorded ends after a liveness
/// check or when its lifetime expires.
const MAX_DELETED: usize = 16;

impl CreateChildRequest {
    /// Records that the peer deletes a CHILD_SA that we do not know.
    pub(super) fn note_deletion(&mut self, spi: u32) {
        if self.deleted.len() < MAX_DELETED && !mutation!("deletion_before_response_forgotten") {
            self.deleted.push(spi);
        }
    }
}

/// Our request that rekeys the IKE SA.
#[derive(Debug)]
pub(super) struct RekeyIkeRequest {
    /// Our SPI of the new IKE SA.
    pub(super) spi: u64,
    pub(super) nonce: [u8; 32],
    pub(super) key: InitiatorKeyExchange,
    /// Whether the peer has already requested another group.
    pub(super) group_changed: bool,
    /// The peer's simultaneous rekey of the same IKE SA, if there is one.
    pub(super) collision: Option<RekeyCollision<IkeId>>,
}

/// A CHILD_SA that only the peer has installed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UnusedChild {
    /// Our SPI, which identifies the CHILD_SA in our DELETE.
    pub(crate) inbound: ReservedSpi,
    /// The peer's SPI, which identifies the CHILD_SA in the peer's DELETE. `None` if the peer's
    /// response had no SPI.
    pub(crate) outbound: Option<u32>,
}

impl QueuedRequest {
    /// Releases the reserved SPI, if there is one.
    pub(super) fn release(self, profile: &Profile, cx: &mut Context<'_>) {
        if let Self::DeleteUnused(unused) = self {
            unused.inbound.release(profile, cx);
        }
    }
}

impl OutstandingRequest {
    /// Returns the exchange type in the header of the request and its response.
    pub(super) fn exchange(&self) -> ExchangeType {
        match self {
            Self::CreateChild(_) | Self::RekeyIke(_) => ExchangeType::CreateChildSa,
            _ => ExchangeType::Informational,
        }
    }

    /// Releases the reserved SPI, if there is one.
    pub(super) fn release(self, profile: &Profile, cx: &mut Context<'_>) {
        match self {
            Self::CreateChild(request) => request.inbound.release(profile, cx),
            Self::DeleteUnused(unused) => unused.inbound.release(profile, cx),
            Self::Liveness(_)
            | Self::UpdateAddresses(..)
            | Self::AnnounceAddresses(..)
            | Self::CheckAddress(_)
            | Self::NotifyAgent(_)
            | Self::RekeyIke(_)
            | Self::DeleteChild(_)
            | Self::DeleteRemoved(_)
            | Self::DeleteIke
            | Self::Abandoned => {}
        }
    }
}

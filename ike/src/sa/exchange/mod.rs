//! The exchanges on an established IKE SA: how each is begun, answered and finished. They
//! interleave: our request and the peer's may be under way at the same time, and about the same
//! CHILD_SA.

mod create_child;
mod informational;
mod rekey_ike;

pub(super) use create_child::answer as answer_create_child_sa;
pub(super) use informational::answer as answer_informational;

use create_child::CreateChild;

use super::Profile;
use super::child::ReservedSpi;
use super::established::{IkeSa, SaStep};
use crate::event::ChildId;
use crate::output::Context;
use crate::tunnel::Tunnel;
use crate::wire::{Delete, ExchangeType, Payload, Payloads};

/// Something to begin when the window is free.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// An empty INFORMATIONAL request (RFC 7296 2.4).
    Liveness,
    /// A CHILD_SA where there is none.
    CreateChild,
    /// A new CHILD_SA for an old one.
    RekeyChild(ChildId),
    /// Delete a CHILD_SA.
    DeleteChild(ChildId),
    /// Delete a CHILD_SA that only the peer has made.
    DeleteUnused(ReservedSpi),
    /// Delete the IKE SA.
    DeleteIke,
}

/// Our request that is under way.
#[derive(Debug)]
pub(super) enum PendingRequest {
    Liveness,
    CreateChild(Box<CreateChild>),
    DeleteChild(ChildId),
    DeleteUnused(ReservedSpi),
    DeleteIke,
    /// Nobody wants to know any more.
    Abandoned,
}

impl Task {
    /// Sends the request; `None` if there is no more need.
    pub(super) fn begin(self, sa: &mut IkeSa, tunnel: &mut Tunnel, cx: &mut Context<'_>) -> Option<PendingRequest> {
        match self {
            Self::Liveness => {
                sa.channel.request(ExchangeType::Informational, &Payloads::new(), cx);
                Some(PendingRequest::Liveness)
            }
            Self::CreateChild => CreateChild::begin(sa, None, None, tunnel, cx),
            Self::RekeyChild(old) => CreateChild::begin(sa, Some(old), None, tunnel, cx),
            Self::DeleteChild(id) => {
                tunnel.live(id).filter(|child| child.owner == sa.spi())?;
                informational::delete(sa, Delete::child(id.0), cx);
                Some(PendingRequest::DeleteChild(id))
            }
            Self::DeleteUnused(reserved) => {
                informational::delete(sa, Delete::child(reserved.spi), cx);
                Some(PendingRequest::DeleteUnused(reserved))
            }
            Self::DeleteIke => {
                informational::delete(sa, Delete::Ike, cx);
                Some(PendingRequest::DeleteIke)
            }
        }
    }

    /// Leaves nothing reserved behind.
    pub(super) fn release(self, profile: &Profile, cx: &mut Context<'_>) {
        if let Self::DeleteUnused(reserved) = self {
            reserved.release(profile, cx);
        }
    }
}

impl PendingRequest {
    /// Its exchange type.
    pub(super) fn exchange(&self) -> ExchangeType {
        match self {
            Self::CreateChild(_) => ExchangeType::CreateChildSa,
            _ => ExchangeType::Informational,
        }
    }

    /// Takes the answer.
    pub(super) fn finish(
        self,
        sa: &mut IkeSa,
        payloads: &Payloads,
        tunnel: &mut Tunnel,
        cx: &mut Context<'_>,
    ) -> SaStep {
        match self {
            Self::Liveness | Self::Abandoned => SaStep::Continue,
            Self::CreateChild(exchange) => exchange.finish(sa, payloads, tunnel, cx),
            Self::DeleteChild(id) => {
                informational::deleted(sa, id, tunnel, cx);
                SaStep::Continue
            }
            Self::DeleteUnused(reserved) => {
                reserved.release(&sa.profile, cx);
                SaStep::Continue
            }
            Self::DeleteIke => SaStep::Closed(super::established::CloseReason::ByUs),
        }
    }

    /// Leaves nothing reserved behind.
    pub(super) fn release(self, profile: &Profile, cx: &mut Context<'_>) {
        match self {
            Self::CreateChild(exchange) => exchange.release(profile, cx),
            Self::DeleteUnused(reserved) => reserved.release(profile, cx),
            Self::Liveness | Self::DeleteChild(_) | Self::DeleteIke | Self::Abandoned => {}
        }
    }
}

/// An answer that is one notification.
fn single_notify(notify: crate::wire::Notify) -> Payloads {
    Payloads::from(vec![Payload::Notify(notify)])
}

//! Our requests: begun when the window is free, finished by the peer's response.

use super::{create_child_request, informational};
use crate::output::Context;
use crate::sa::ike_sa::{CloseReason, IkeSa, SaStep};
use crate::sa::task::{PendingRequest, Task};
use crate::tunnel::Tunnel;
use crate::wire::{Delete, ExchangeType, Payloads};

/// Sends the request of a task. `None` if it is no longer needed.
pub(in crate::sa) fn begin(
    task: Task,
    sa: &mut IkeSa,
    tunnel: &mut Tunnel,
    cx: &mut Context<'_>,
) -> Option<PendingRequest> {
    match task {
        Task::Liveness => {
            sa.channel.request(ExchangeType::Informational, &Payloads::new(), cx);
            Some(PendingRequest::Liveness)
        }
        Task::CreateChild => create_child_request::begin(sa, None, None, tunnel, cx),
        Task::RekeyChild(old) => create_child_request::begin(sa, Some(old), None, tunnel, cx),
        Task::DeleteChild(id) => {
            tunnel.live(id).filter(|child| child.owner == sa.spi())?;
            let peers =
                tunnel.live(id).filter(|_| mutation!("delete_names_peers_spi")).map(|child| child.sa.outbound_spi);
            informational::delete(sa, Delete::child(peers.unwrap_or(id.0)), cx);
            Some(PendingRequest::DeleteChild(id))
        }
        Task::DeleteUnused(reserved) => {
            informational::delete(sa, Delete::child(reserved.spi), cx);
            Some(PendingRequest::DeleteUnused(reserved))
        }
        Task::DeleteRemoved(id) => {
            informational::delete(sa, Delete::child(id.0), cx);
            Some(PendingRequest::DeleteRemoved)
        }
        Task::DeleteIke => {
            informational::delete(sa, Delete::Ike, cx);
            Some(PendingRequest::DeleteIke)
        }
    }
}

/// Takes the response to a request.
pub(in crate::sa) fn finish(
    request: PendingRequest,
    sa: &mut IkeSa,
    payloads: &Payloads,
    tunnel: &mut Tunnel,
    cx: &mut Context<'_>,
) -> SaStep {
    match request {
        PendingRequest::Liveness | PendingRequest::DeleteRemoved | PendingRequest::Abandoned => SaStep::Continue,
        PendingRequest::CreateChild(request) => create_child_request::finish(*request, sa, payloads, tunnel, cx),
        PendingRequest::DeleteChild(id) => {
            informational::deleted(sa, id, tunnel, cx);
            SaStep::Continue
        }
        PendingRequest::DeleteUnused(reserved) => {
            reserved.release(&sa.profile, cx);
            SaStep::Continue
        }
        PendingRequest::DeleteIke => SaStep::Closed(CloseReason::ByUs),
    }
}

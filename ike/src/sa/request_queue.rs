//! The queue of an IKE SA's own requests, and what the queued and the outstanding requests are
//! about.

use super::ike_sa::IkeSa;
use super::own_requests::{OutstandingRequest, QueuedRequest};
use crate::event::ChildId;
use crate::output::Context;
use crate::purpose::Purpose;

impl IkeSa {
    /// Returns whether the IKE SA is requesting a CHILD_SA, will request one, or is about to end,
    /// so that another IKE SA creates one.
    pub(crate) fn brings_child(&self) -> bool {
        let queued = |request: &QueuedRequest| matches!(request, QueuedRequest::CreateChild(_));
        self.is_closing()
            || self.missing.next().is_some()
            || self.queue.iter().any(queued)
            || matches!(self.outstanding, Some(OutstandingRequest::CreateChild(_) | OutstandingRequest::DeleteIke))
    }

    /// Does the same as [`Self::brings_child`], for a CHILD_SA of this purpose.
    pub(crate) fn brings(&self, purpose: &Purpose) -> bool {
        let queued =
            |request: &QueuedRequest| matches!(request, QueuedRequest::CreateChild(queued) if queued == purpose);
        let asked = |request: &OutstandingRequest| match request {
            OutstandingRequest::CreateChild(request) => {
                request.purpose == *purpose || (purpose.part.is_none() && request.purpose.child == purpose.child)
            }
            OutstandingRequest::DeleteIke => true,
            _ => false,
        };
        self.is_closing()
            || self.missing.is_planned(purpose)
            || self.queue.iter().any(queued)
            || self.outstanding.as_ref().is_some_and(asked)
    }

    /// Returns whether a request for a CHILD_SA is outstanding or queued.
    pub(super) fn is_asking(&self) -> bool {
        matches!(self.outstanding, Some(OutstandingRequest::CreateChild(_)))
            || self.queue.iter().any(|request| matches!(request, QueuedRequest::CreateChild(_)))
    }

    /// Returns whether a request for a CHILD_SA of this configured child is outstanding or queued.
    pub(super) fn is_asking_for(&self, purpose: &Purpose) -> bool {
        let asked = matches!(&self.outstanding, Some(OutstandingRequest::CreateChild(request)) if request.purpose.child == purpose.child);
        asked
            || self
                .queue
                .iter()
                .any(|request| matches!(request, QueuedRequest::CreateChild(queued) if queued.child == purpose.child))
    }

    pub(super) fn release_queue(&mut self, cx: &mut Context<'_>) {
        for request in std::mem::take(&mut self.queue) {
            request.release(&self.profile, cx);
        }
    }

    /// Queues a request before all others.
    pub(super) fn enqueue_first(&mut self, request: QueuedRequest) {
        self.queue.retain(|queued| *queued != request);
        self.queue.push_front(request);
    }

    pub(super) fn enqueue(&mut self, request: QueuedRequest) {
        if !self.queue.contains(&request) {
            self.queue.push_back(request);
        }
    }

    /// Removes requests about a CHILD_SA from the queue.
    pub(super) fn drop_requests_of(&mut self, id: ChildId) {
        self.queue.retain(|request| !matches!(request, QueuedRequest::RekeyChild(child) | QueuedRequest::DeleteChild(child) if *child == id));
    }

    /// Returns whether we are about to delete a CHILD_SA.
    pub(super) fn is_deleting(&self, id: ChildId) -> bool {
        matches!(self.outstanding, Some(OutstandingRequest::DeleteChild(child)) if child == id)
            || self.queue.contains(&QueuedRequest::DeleteChild(id))
    }

    /// Returns whether we are about to delete a CHILD_SA that only the peer has.
    pub(super) fn is_deleting_unused(&self) -> bool {
        let queued = |request: &QueuedRequest| matches!(request, QueuedRequest::DeleteUnused(_));
        matches!(self.outstanding, Some(OutstandingRequest::DeleteUnused(_))) || self.queue.iter().any(queued)
    }

    /// Cancels the deletion of a CHILD_SA that only the peer has, if `outbound` is the peer's SPI
    /// of it and our DELETE is still queued. Returns our SPI in that case.
    pub(super) fn take_unused(&mut self, outbound: u32, cx: &mut Context<'_>) -> Option<u32> {
        let is = |request: &QueuedRequest| matches!(request, QueuedRequest::DeleteUnused(unused) if unused.outbound == Some(outbound));
        let at = self.queue.iter().position(is)?;
        let Some(QueuedRequest::DeleteUnused(unused)) = self.queue.remove(at) else { return None };
        let spi = unused.inbound.spi;
        unused.inbound.release(&self.profile, cx);
        Some(spi)
    }
}

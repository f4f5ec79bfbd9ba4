//! Our requests, which are sent when the window is free, and the peer's responses to them.

use super::{addresses, agent_notifications, create_child_request, informational, lost_mapping, rekey_ike_request};
use crate::child_sas::ChildSas;
use crate::output::Context;
use crate::sa::ike_sa::{CloseReason, IkeSa, SaStep};
use crate::sa::own_requests::{LivenessCheck, OutstandingRequest, QueuedRequest};
use crate::wire::{Delete, ExchangeType, NotifyType, Payloads};

/// Sends a queued request. Returns `None` if it is no longer needed.
pub(super) fn begin(
    queued: QueuedRequest,
    sa: &mut IkeSa,
    child_sas: &mut ChildSas,
    cx: &mut Context<'_>,
) -> Option<OutstandingRequest> {
    match queued {
        QueuedRequest::Liveness => {
            let payloads = addresses::of_liveness_check(sa);
            sa.channel.request(ExchangeType::Informational, &payloads, cx);
            cx.out.sent.liveness_checks = cx.out.sent.liveness_checks.saturating_add(1);
            let detects_nats = payloads.notify(NotifyType::NatDetectionSourceIp).is_some();
            let esp_stopped = sa.channel.signs.esp_has_stopped();
            Some(OutstandingRequest::Liveness(LivenessCheck { detects_nats, esp_stopped }))
        }
        QueuedRequest::UpdateAddresses => addresses::update(sa, cx),
        QueuedRequest::AnnounceAddresses => addresses::announce(sa, cx),
        QueuedRequest::CheckAddress => addresses::check(sa, cx),
        QueuedRequest::NotifyAgent(notification) => agent_notifications::notify(sa, notification, cx),
        QueuedRequest::CreateChild(purpose) => create_child_request::begin(sa, None, purpose, None, child_sas, cx),
        QueuedRequest::RekeyChild(old) => {
            let purpose = child_sas.live(old)?.sa.purpose.clone();
            create_child_request::begin(sa, Some(old), purpose, None, child_sas, cx)
        }
        QueuedRequest::DeleteChild(id) => {
            //= RFC 7296 1.4 MUST 3: about a CHILD_SA on its IKE SA
            child_sas.live(id).filter(|child| child.owner == sa.spi())?;
            let peers =
                child_sas.live(id).filter(|_| mutation!("delete_names_peers_spi")).map(|child| child.sa.outbound_spi);
            //= RFC 7296 1.4.1 MUST 2: each end closes what it receives with
            informational::delete(sa, Delete::child(peers.unwrap_or(id.0)), cx);
            Some(OutstandingRequest::DeleteChild(id))
        }
        QueuedRequest::DeleteUnused(unused) => {
            informational::delete(sa, Delete::child(unused.inbound.spi), cx);
            Some(OutstandingRequest::DeleteUnused(unused))
        }
        QueuedRequest::DeleteRemoved(id) => {
            informational::delete(sa, Delete::child(id.0), cx);
            Some(OutstandingRequest::DeleteRemoved(id))
        }
        QueuedRequest::RekeyIke => rekey_ike_request::begin(sa, None, cx),
        QueuedRequest::DeleteIke => {
            //= RFC 7296 1.4 MUST 2: about an IKE SA on that IKE SA
            informational::delete(sa, Delete::Ike, cx);
            Some(OutstandingRequest::DeleteIke)
        }
    }
}

/// Handles the response to a request.
pub(super) fn finish(
    request: OutstandingRequest,
    sa: &mut IkeSa,
    payloads: &Payloads,
    child_sas: &mut ChildSas,
    cx: &mut Context<'_>,
) -> SaStep {
    let of_addresses = matches!(
        request,
        OutstandingRequest::UpdateAddresses(..)
            | OutstandingRequest::AnnounceAddresses(..)
            | OutstandingRequest::CheckAddress(_)
    );
    let step = match request {
        OutstandingRequest::Liveness(check) => {
            if check.detects_nats {
                addresses::liveness_checked(sa, payloads);
            }
            if check.esp_stopped {
                lost_mapping::replace_children(sa, child_sas, cx.now);
            }
            SaStep::Continue
        }
        OutstandingRequest::NotifyAgent(_) | OutstandingRequest::DeleteRemoved(_) | OutstandingRequest::Abandoned => {
            SaStep::Continue
        }
        OutstandingRequest::UpdateAddresses(cookie, additional) => {
            addresses::updated(sa, cookie, additional, payloads, child_sas, cx)
        }
        OutstandingRequest::AnnounceAddresses(address, additional) => {
            addresses::announced(sa, address, additional, payloads, cx)
        }
        OutstandingRequest::CheckAddress(cookie) => addresses::checked(sa, cookie, payloads, child_sas, cx),
        OutstandingRequest::CreateChild(request) => create_child_request::finish(*request, sa, payloads, child_sas, cx),
        OutstandingRequest::RekeyIke(request) => rekey_ike_request::finish(*request, sa, payloads, cx),
        OutstandingRequest::DeleteChild(id) => {
            informational::deleted(sa, id, child_sas, cx);
            SaStep::Continue
        }
        //= RFC 7296 1.4.1 MUST NOT 6: no SPI is free before the answer
        OutstandingRequest::DeleteUnused(unused) => {
            unused.inbound.release(&sa.profile, cx);
            SaStep::Continue
        }
        OutstandingRequest::DeleteIke => SaStep::Closed(CloseReason::ByUs),
    };
    if !of_addresses && matches!(step, SaStep::Continue) {
        addresses::announce_from_new_address(sa);
    }
    step
}

//! INFORMATIONAL: deletion (RFC 7296 1.4.1), liveness (2.4), errors after IKE_AUTH (2.21).

use super::addresses;
use crate::child_sas::ChildSas;
use crate::event::{ChildId, DownReason};
use crate::output::Context;
use crate::sa::failure::{self, INFORMATIONAL};
use crate::sa::ike_sa::{CloseReason, IkeSa, SaStep};
use crate::sa::own_requests::OutstandingRequest;
use crate::wire::{Delete, ExchangeType, Payload, Payloads, Protocol};

/// Sends a request that deletes an SA.
pub(super) fn delete(sa: &mut IkeSa, delete: Delete, cx: &mut Context<'_>) {
    sa.channel.request(ExchangeType::Informational, &Payloads::from(vec![Payload::Delete(delete)]), cx);
}

/// Handles the peer's response to our deletion of a CHILD_SA. The peer has confirmed the deletion,
/// or has deleted the CHILD_SA at the same time.
pub(super) fn deleted(sa: &mut IkeSa, id: ChildId, child_sas: &mut ChildSas, cx: &mut Context<'_>) {
    let purpose = child_sas.live(id).map(|child| child.sa.purpose.clone());
    child_sas.retire(id, sa.profile.config.timing.linger, DownReason::Replaced, cx.now, cx.out);
    if let Some(purpose) = purpose {
        sa.keep_last_child(&purpose, child_sas, cx.now);
    }
}

/// Answers an INFORMATIONAL request.
pub(super) fn answer(sa: &mut IkeSa, payloads: &Payloads, child_sas: &mut ChildSas, cx: &mut Context<'_>) -> SaStep {
    //= RFC 7296 2.20 MUST 1: no version is told
    let mut answer = Payloads::new();
    //= RFC 7296 2.21.4 MUST NOT 10: such a notification changes nothing
    let mut step = SaStep::Continue;
    let mut ours = Vec::new();
    for delete in payloads.deletes() {
        match delete {
            //= RFC 7296 1.4.1 REQUIRED 9: an empty response to the IKE SA's DELETE
            //= RFC 7296 2.8.2 REQUIRED 4: DELETE ends our rekey
            //= RFC 7296 2.25.2 SHOULD 4: closed while we rekey it
            //= RFC 7296 2.25.2 SHOULD 5: closed while we close it
            Delete::Ike => step = SaStep::Closed(CloseReason::ByPeer),
            Delete::Children { protocol: Protocol::Esp, spis } => {
                //= RFC 7296 2.25.2 SHOULD 7: deletions while we rekey the IKE SA
                ours.extend(spis.iter().filter_map(|spi| child_deleted(sa, *spi, child_sas, cx)));
            }
            Delete::Children { .. } => {}
        }
    }
    if !ours.is_empty() {
        //= RFC 7296 1.4.1 REQUIRED 7: the response names the other direction
        //= RFC 7296 2.25.1 SHOULD 6: closed while we rekey it
        answer.push(Payload::Delete(Delete::Children { protocol: Protocol::Esp, spis: ours }));
    }
    sa.take_notifications(payloads, cx);
    let change = addresses::answer(sa, payloads, &mut answer, child_sas, cx);
    //= RFC 7296 1.4 MUST 4: every request is answered
    sa.channel.respond(ExchangeType::Informational, &answer, cx);
    addresses::follow(sa, change, cx);
    // RFC 7296 2.21.2: the initiator could not accept our IKE_AUTH response.
    //= RFC 7296 2.21.2 REQUIRED 6: three notifications end the IKE SA
    if let Some(notify) = payloads.notifies().find(|notify| notify.kind.ends_ike_sa()) {
        return SaStep::Closed(CloseReason::Failed(failure::notified(
            INFORMATIONAL,
            notify.kind,
            &sa.profile.config,
            None,
        )));
    }
    step
}

/// Handles the peer's deletion of the CHILD_SA with `spi` as the peer's inbound SPI. Returns our
/// SPI for the response, unless we are also deleting the CHILD_SA: in that case each end has sent
/// its own SPI in its request (RFC 7296 1.4.1).
fn child_deleted(sa: &mut IkeSa, spi: u32, child_sas: &mut ChildSas, cx: &mut Context<'_>) -> Option<u32> {
    //= RFC 7296 2.25.1 SHOULD 7: closed and not there
    let Some(id) = child_sas.by_outbound_spi(sa.spi(), spi) else {
        if let Some(OutstandingRequest::CreateChild(request)) = &mut sa.outstanding {
            request.note_deletion(spi);
        }
        return sa.take_unused(spi, cx);
    };
    //= RFC 7296 1.4.1 MUST 4: deletions cross
    //= RFC 7296 2.25.1 SHOULD 5: closed while we close it
    let crossing = matches!(sa.outstanding, Some(OutstandingRequest::DeleteChild(pending)) if pending == id);
    sa.drop_requests_of(id);
    let purpose = child_sas.live(id)?.sa.purpose.clone();
    let alone = child_sas.ids_for(sa.spi(), &purpose).len() == 1;
    let reason = if alone { DownReason::DeletedByPeer } else { DownReason::Replaced };
    //= RFC 7296 1.4.1 MUST 3: the named SAs are closed
    child_sas.retire(id, sa.profile.config.timing.linger, reason, cx.now, cx.out);
    sa.keep_last_child(&purpose, child_sas, cx.now);
    if alone && !sa.is_asking_for(&purpose) {
        let wait = sa.child_deleted(&purpose, child_sas, cx);
        if !wait.is_zero() {
            let error = failure::child_deleted_soon(&purpose, &sa.profile.config);
            sa.report_child(&purpose.child, failure::tried_again(error, false, wait), cx);
        }
    }
    //= RFC 7296 1.4.1 MUST NOT 5: no SPI twice in crossing deletions
    ((!crossing || mutation!("crossing_deletion_repeated")) && !mutation!("deletion_of_one_direction")).then_some(id.0)
}

//! CREATE_CHILD_SA for CHILD_SAs as the initiator: we create or rekey one (RFC 7296 1.3.1, 1.3.3,
//! 2.25).

use std::sync::Arc;
use std::time::Duration;

use super::addresses;
use crate::child_sas::{Arrival, ChildSas};
use crate::config::{Group, Mode, NextLayer, PeerConfig};
use crate::crypto::{InitiatorKeyExchange, Nonces};
use crate::event::{ChildId, ChildSa, DownReason, PeerError, PeerErrorKind};
use crate::negotiate::{self, ChildKeyExchange, Traffic};
use crate::output::Context;
use crate::purpose::Purpose;
use crate::sa::child::{NegotiatedChild, ReservedSpi};
use crate::sa::failure::{self, CREATE_CHILD_SA};
use crate::sa::ike_sa::{IkeSa, SaStep};
use crate::sa::missing_children::PutOffBy;
use crate::sa::own_requests::{CreateChildRequest, OutstandingRequest, QueuedRequest, UnusedChild};
use crate::wire::{ExchangeType, InvalidMessage, Notify, NotifyType, Payload, Payloads};

/// Minimum delay after TEMPORARY_FAILURE (RFC 7296 2.25). A random time of up to the same length is
/// added, so that two ends that refuse each other do not try again at the same time.
//= RFC 7296 2.25 MUST 3: wait
const TEMPORARY_FAILURE_WAIT: Duration = Duration::from_millis(500);

/// Sends the request for a CHILD_SA of this purpose, which replaces `old`. `group` is the key
/// exchange method that the peer requested, if it requested one.
pub(super) fn begin(
    sa: &mut IkeSa,
    old: Option<ChildId>,
    purpose: Purpose,
    group: Option<Group>,
    child_sas: &mut ChildSas,
    cx: &mut Context<'_>,
) -> Option<OutstandingRequest> {
    let me = sa.spi();
    match old {
        // The request is not needed if the old CHILD_SA is gone, or if the peer has replaced it.
        Some(old) => child_sas.live(old).filter(|child| child.owner == me).map(|_| ())?,
        None if child_sas.serves(me, &purpose) => return None,
        None => {}
    }
    let profile = Arc::clone(&sa.profile);
    let config = &profile.config;
    // If the child is no longer configured, there is nothing to request: a new IKE SA replaces this
    // one.
    let child = config.child_named(&purpose.child)?;
    let in_use = old.and_then(|old| child_sas.live(old)).map(|child| Arc::clone(&child.sa));
    if sa.lifetime.must_be_replaced() && in_use.as_ref().is_some_and(|in_use| !config.allows(in_use)) {
        // RFC 7296 2.9.2: a rekey keeps the selectors, which are no longer configured. A new IKE SA
        // will have others.
        return None;
    }
    //= RFC 7296 2.8 SHOULD NOT 4: an equivalent CHILD_SA
    //= RFC 7296 2.9.2 SHOULD NOT 4: no packet in a rekey
    let asked = asked(config, &purpose, in_use.as_deref())?;
    if let Err(obstacle) = negotiate::check_ends(child, sa.channel.path.ends()) {
        sa.report_child(&child.name, failure::mode(CREATE_CHILD_SA, &child.name, obstacle), cx);
        sa.retry_child_later(old, &purpose, config.timing.child_retry_max(), child_sas, cx);
        return None;
    }
    let Some(inbound) = ReservedSpi::new(&sa.profile, &sa.channel, cx) else {
        sa.report(failure::no_spi(CREATE_CHILD_SA), cx);
        sa.retry_child_later(old, &purpose, config.timing.child_retry_max(), child_sas, cx);
        return None;
    };
    //= RFC 7296 1.3 MUST 1: KEi is in the offer
    let groups = || child.proposals.iter().flat_map(|proposal| &proposal.groups).copied();
    // The peer has agreed to the group of the IKE SA. pluto 4.10 accepts no other one by default,
    // and answers INVALID_SYNTAX instead of INVALID_KE_PAYLOAD.
    let present = sa.channel.keys().suite.group;
    let configured = groups().find(|group| *group == present).or_else(|| groups().next());
    let group_changed = group.is_some();
    //= RFC 7296 1.3 MUST 2: KEi is of a likely group
    let key = match group.or(configured).map(|group| InitiatorKeyExchange::start(group, cx.env)).transpose() {
        Ok(key) => key,
        Err(error) => {
            inbound.release(&sa.profile, cx);
            sa.report(PeerError::new(CREATE_CHILD_SA, PeerErrorKind::Local, error.to_string()), cx);
            sa.retry_child_later(old, &purpose, config.timing.child_retry_max(), child_sas, cx);
            return None;
        }
    };
    //= RFC 7296 3.9 MUST NOT 2: no nonce twice
    let nonce: [u8; 32] = if mutation!("nonce_of_rekey_not_drawn") { [1; 32] } else { cx.random() };
    let mut payloads = Payloads::new();
    //= RFC 7296 1.3.3 MUST 1: REKEY_SA
    payloads.extend(old.map(|old| Payload::Notify(Notify::about_child(NotifyType::RekeySa, old.0))));
    payloads.extend(negotiate::mode_payload(child.mode));
    payloads.push(Payload::SecurityAssociation(negotiate::offer_esp(&child.proposals, inbound.spi, true)));
    payloads.push(Payload::Nonce(nonce.to_vec()));
    //= RFC 7296 3.4 MUST NOT 4: no KE without a group
    payloads.extend(key.as_ref().map(|key| Payload::KeyExchange(key.payload())));
    payloads.push(Payload::TrafficSelectorsInitiator(asked.local_selectors()));
    payloads.push(Payload::TrafficSelectorsResponder(asked.remote_selectors()));
    sa.channel.request(ExchangeType::CreateChildSa, &payloads, cx);
    let request =
        CreateChildRequest { old, purpose, inbound, nonce, key, group_changed, collision: None, deleted: Vec::new() };
    Some(OutstandingRequest::CreateChild(Box::new(request)))
}

/// Chooses the delay after TEMPORARY_FAILURE.
pub(super) fn temporary_failure_wait(cx: &mut Context<'_>) -> Duration {
    let tenth = TEMPORARY_FAILURE_WAIT.saturating_sub(cx.jittered(TEMPORARY_FAILURE_WAIT));
    TEMPORARY_FAILURE_WAIT.saturating_add(tenth.saturating_mul(10))
}

/// Installs the negotiated CHILD_SA, or handles the error in the response.
pub(super) fn finish(
    request: CreateChildRequest,
    sa: &mut IkeSa,
    payloads: &Payloads,
    child_sas: &mut ChildSas,
    cx: &mut Context<'_>,
) -> SaStep {
    if let Some(notify) = payloads.error() {
        return refused(request, notify, sa, child_sas, cx);
    }
    let CreateChildRequest { old, purpose: asked_for, inbound, nonce, key, collision, deleted, .. } = request;
    let in_use = old.and_then(|old| child_sas.live(old)).map(|child| Arc::clone(&child.sa));
    let (negotiated, theirs) =
        match accept_response(sa, &asked_for, payloads, &nonce, key, old.is_some(), in_use.as_deref()) {
            Ok(accepted) => accepted,
            Err(error) => {
                // The peer has installed the CHILD_SA, and we cannot use it.
                let outbound = payloads.proposals().ok().and_then(|proposals| proposals.first()?.child_spi());
                if outbound.is_some_and(|spi| deleted.contains(&spi)) {
                    // It has deleted it again.
                    inbound.release(&sa.profile, cx);
                } else {
                    sa.enqueue(QueuedRequest::DeleteUnused(UnusedChild { inbound, outbound }));
                }
                sa.report_child(&asked_for.child, error, cx);
                let wait = sa.profile.config.timing.child_retry_max();
                sa.retry_child_later(old, &asked_for, wait, child_sas, cx);
                return SaStep::Continue;
            }
        };
    if deleted.contains(&negotiated.outbound_spi) {
        // Only the peer had the CHILD_SA, and has deleted it.
        inbound.release(&sa.profile, cx);
        deleted_early(old, &asked_for, sa, child_sas, cx);
        return SaStep::Continue;
    }
    let purpose = negotiated.purpose.clone();
    // The peer's CHILD_SA may be for another part of the traffic.
    let same = |id: &ChildId| child_sas.live(*id).is_none_or(|child| child.sa.purpose == purpose);
    if let Some(collision) = collision.filter(|collision| same(&collision.peers_sa)) {
        let ours = Nonces { initiator: &nonce, responder: &theirs };
        //= RFC 7296 2.8.1 SHOULD 3: the lowest nonce goes
        if collision.makes_ours_redundant(ours) && child_sas.live(collision.peers_sa).is_some() {
            if mutation!("redundant_child_not_deleted") {
                inbound.release(&sa.profile, cx);
                return SaStep::Continue;
            }
            let outbound = Some(negotiated.outbound_spi);
            sa.enqueue(QueuedRequest::DeleteUnused(UnusedChild { inbound, outbound }));
            return SaStep::Continue;
        }
        if let Some(other) = child_sas.live_mut(collision.peers_sa) {
            //= RFC 7296 2.8.1 REQUIRED 5: the winner deletes the old SA
            other.redundant = !mutation!("redundant_child_not_marked");
        }
    }
    let new = negotiated.into_sa(inbound, true, &sa.channel);
    let me = sa.spi();
    let replaced = old.filter(|old| child_sas.live(*old).is_some());
    let mut superfluous: Vec<ChildId> = match replaced {
        None if old.is_some() => child_sas.ids_for(me, &purpose),
        _ => Vec::new(),
    };
    //= RFC 7296 2.8.1 SHOULD 3: the lowest nonce goes
    superfluous.retain(|id| child_sas.live(*id).is_none_or(|child| !child.redundant));
    let arrival = match replaced {
        Some(old) => Arrival::RekeyedByUs(old),
        None => Arrival::Ready,
    };
    let lifetime = sa.profile.child_lifetime(cx);
    child_sas.add(new, me, arrival, lifetime, cx.now, cx.out);
    sa.missing.cancel(&asked_for);
    sa.negotiation_succeeded(Some(&asked_for.child));
    if let Some(old) = replaced {
        // The rekey was queued again if the CHILD_SA moved to this IKE SA while it was under way.
        sa.drop_requests_of(old);
        if let Some(child) = child_sas.live_mut(old) {
            child.rekey = None;
        }
    }
    //= RFC 7296 2.8 REQUIRED 3: the old CHILD_SA is deleted
    for id in replaced.into_iter().chain(superfluous).filter(|_| !mutation!("replaced_child_not_deleted")) {
        sa.enqueue(QueuedRequest::DeleteChild(id));
    }
    sa.schedule_cleanup(cx.now);
    SaStep::Continue
}

fn refused(
    request: CreateChildRequest,
    notify: &Notify,
    sa: &mut IkeSa,
    child_sas: &mut ChildSas,
    cx: &mut Context<'_>,
) -> SaStep {
    let CreateChildRequest { old, purpose, inbound, group_changed, collision, .. } = request;
    inbound.release(&sa.profile, cx);
    //= RFC 7296 2.8.1 REQUIRED 6: a refusal after the peer's rekey
    if collision.is_some_and(|collision| child_sas.live(collision.peers_sa).is_some()) {
        // The peer's rekey has replaced the old CHILD_SA.
        return SaStep::Continue;
    }
    let timing = sa.profile.config.timing;
    match notify.kind {
        NotifyType::TemporaryFailure => {
            return put_off(old, &purpose, sa, child_sas, cx);
        }
        NotifyType::InvalidKePayload if !group_changed => {
            let child = sa.profile.config.child_named(&purpose.child);
            let offered = |group: &Group| {
                child.is_some_and(|child| child.proposals.iter().any(|proposal| proposal.groups.contains(group)))
            };
            let group = notify.data_u16().and_then(Group::from_number).filter(offered);
            match group {
                Some(group) => sa.outstanding = begin(sa, old, purpose, Some(group), child_sas, cx),
                None => return refused_for_good(old, &purpose, notify.kind, sa, child_sas, cx),
            }
        }
        // RFC 7296 2.25: the peer no longer has the CHILD_SA that we rekey. Unless the peer's
        // DELETE for it is in transit, we create a new one.
        NotifyType::ChildSaNotFound if old.is_some() => {
            if let Some(old) = old
                && child_sas.live(old).is_some()
            {
                //= RFC 7296 2.25 SHOULD 7: a lost CHILD_SA is made again
                child_sas.retire(old, timing.linger, DownReason::Failed, cx.now, cx.out);
                sa.keep_last_child(&purpose, child_sas, cx.now);
                if !child_sas.serves(sa.spi(), &purpose) {
                    sa.missing.plan_again(purpose, cx.now);
                }
            }
        }
        // The peer accepts no more CHILD_SAs on this IKE SA (RFC 7296 1.3). Create the CHILD_SA
        // with a new IKE SA.
        NotifyType::NoAdditionalSas
            if sa.refused_child_needs_new_ike_sa(old, &purpose, notify.kind, child_sas, cx.now) =>
        {
            sa.retry_child_later(old, &purpose, timing.child_retry_max(), child_sas, cx);
            return SaStep::BringFirstChild;
        }
        //= RFC 7296 2.21.3 REQUIRED 4: INVALID_SYNTAX in a response
        kind => return refused_for_good(old, &purpose, kind, sa, child_sas, cx),
    }
    SaStep::Continue
}

/// Handles TEMPORARY_FAILURE. If it goes on, it becomes the last error, and finally counts as a
/// refusal for good: a new IKE SA replaces this one if it can create the CHILD_SA and endangers no
/// other one.
fn put_off(
    old: Option<ChildId>,
    purpose: &Purpose,
    sa: &mut IkeSa,
    child_sas: &mut ChildSas,
    cx: &mut Context<'_>,
) -> SaStep {
    let longest = sa.profile.config.timing.child_retry_max();
    let put_off =
        sa.missing.put_off(purpose, PutOffBy::TemporaryFailure, (temporary_failure_wait(cx), longest), cx.now);
    //= RFC 7296 2.25 SHOULD 4: not for ever
    if put_off.lasts(cx.now) && !sa.is_closing() {
        return refused_for_good(old, purpose, NotifyType::TemporaryFailure, sa, child_sas, cx);
    }
    //= RFC 7296 2.25 MUST NOT 2: no repetition at once
    let wait = if mutation!("temporary_failure_ignored") { Duration::ZERO } else { put_off.wait };
    if wait >= longest && put_off.goes_on(cx.now) {
        let error = failure::child_refused(NotifyType::TemporaryFailure, purpose, &sa.profile.config);
        let in_use = old.is_some_and(|old| child_sas.live(old).is_some());
        sa.report_child(&purpose.child, failure::tried_again(error, in_use, wait), cx);
    }
    sa.retry_child_later(old, purpose, wait, child_sas, cx);
    addresses::check_mapping(sa);
    SaStep::Continue
}

/// Handles a new CHILD_SA that the peer has deleted before its response. If it goes on, it becomes
/// the last error.
fn deleted_early(
    old: Option<ChildId>,
    purpose: &Purpose,
    sa: &mut IkeSa,
    child_sas: &mut ChildSas,
    cx: &mut Context<'_>,
) {
    let timing = sa.profile.config.timing;
    let longest = timing.child_retry_max();
    let put_off = sa.missing.put_off(purpose, PutOffBy::Deletion, (timing.retry, longest), cx.now);
    if put_off.wait >= longest && put_off.goes_on(cx.now) {
        let error = failure::child_deleted_soon(purpose, &sa.profile.config);
        let in_use = old.is_some_and(|old| child_sas.live(old).is_some());
        sa.report_child(&purpose.child, failure::tried_again(error, in_use, longest), cx);
    }
    sa.retry_child_later(old, purpose, put_off.wait, child_sas, cx);
}

/// Handles a permanent refusal of this CHILD_SA, for example because the peer requires another key
/// exchange method. A new IKE SA may create the first child. Other CHILD_SAs are requested again
/// later.
fn refused_for_good(
    old: Option<ChildId>,
    purpose: &Purpose,
    kind: NotifyType,
    sa: &mut IkeSa,
    child_sas: &mut ChildSas,
    cx: &mut Context<'_>,
) -> SaStep {
    let profile = Arc::clone(&sa.profile);
    let wait = profile.config.timing.child_retry_max();
    let new_ike_sa = sa.refused_child_needs_new_ike_sa(old, purpose, kind, child_sas, cx.now);
    let mut error = failure::child_refused(kind, purpose, &profile.config);
    if !new_ike_sa {
        error = failure::tried_again(error, old.is_some_and(|old| child_sas.live(old).is_some()), wait);
    }
    sa.report_child(&purpose.child, error, cx);
    sa.retry_child_later(old, purpose, wait, child_sas, cx);
    if !new_ike_sa || mutation!("refused_child_rekey_given_up") { SaStep::Continue } else { SaStep::BringFirstChild }
}

/// Returns the traffic to request: that of the CHILD_SA in use, if there is one (RFC 7296 2.9.2).
fn asked<'a>(config: &'a PeerConfig, purpose: &'a Purpose, in_use: Option<&'a ChildSa>) -> Option<Traffic<'a>> {
    //= RFC 7296 2.9.2 SHOULD 2: ask for what is in use
    in_use.map_or_else(|| config.traffic(purpose), |in_use| Some(in_use.into()))
}

/// Returns the result of the negotiation and the peer's nonce, if the response is within our offer.
/// `rekey` states whether the CHILD_SA replaces another one, which is `in_use` if it still exists.
fn accept_response(
    sa: &IkeSa,
    asked_for: &Purpose,
    payloads: &Payloads,
    ours: &[u8],
    key: Option<InitiatorKeyExchange>,
    rekey: bool,
    in_use: Option<&ChildSa>,
) -> Result<(NegotiatedChild, Vec<u8>), PeerError> {
    let config = &sa.profile.config;
    let malformed = |error: InvalidMessage| failure::invalid(CREATE_CHILD_SA, error);
    let answer = payloads.proposals().map_err(malformed)?;
    let nonce = payloads.nonce().map_err(malformed)?;
    sa.channel.keys().suite.prf.check_nonce(nonce).map_err(malformed)?;
    let exchange = ChildKeyExchange::Configured { sent: key.as_ref().map(|key| key.group().number()) };
    let child = config.child_named(&asked_for.child);
    let chosen = child
        .and_then(|child| negotiate::choose_esp(answer, &child.proposals, exchange))
        .filter(|chosen| {
            negotiate::is_one_choice(answer)
                && (chosen.suite.group.is_none() || chosen.suite.group == key.as_ref().map(InitiatorKeyExchange::group))
        })
        .ok_or_else(|| failure::no_esp_proposal(CREATE_CHILD_SA, config, child, answer))?;
    if let Some(child) = child {
        //= RFC 7296 1.3.1 MUST 2: tunnel mode that is not wanted is deleted
        negotiate::check_response(child, payloads)
            .map_err(|obstacle| failure::mode(CREATE_CHILD_SA, &child.name, obstacle))?;
    }
    let local = payloads.selectors_initiator().map_err(malformed)?;
    let remote = payloads.selectors_responder().map_err(malformed)?;
    let mode = child.map_or(Mode::Tunnel, |child| child.mode);
    //= RFC 7296 2.23.1 REQUIRED 7: substituted in the response too
    let substituted = negotiate::substitute(mode, sa.channel.path.ends(), local, remote);
    let (local, remote) =
        substituted.as_ref().map_or((local, remote), |it| (it.local.as_slice(), it.remote.as_slice()));
    // RFC 7296 2.9.2: the selectors of the new CHILD_SA must not be narrower than those of the
    // CHILD_SA in use.
    let selectors = asked(config, asked_for, in_use)
        .and_then(|asked| negotiate::accept_narrowed(asked, local, remote))
        //= RFC 7296 2.9.2 MUST NOT 1: a rekey narrows nothing
        .filter(|narrowed| in_use.is_none_or(|old| narrowed.covers(old.into())))
        .ok_or_else(|| failure::no_selectors(CREATE_CHILD_SA, config, child, local, remote))?;
    let shared = match key.filter(|_| chosen.suite.group.is_some()) {
        Some(key) => {
            let shared = key.finish(payloads.key_exchange().map_err(malformed)?);
            Some(shared.map_err(|error| PeerError::new(CREATE_CHILD_SA, PeerErrorKind::Protocol, error.to_string()))?)
        }
        None => None,
    };
    let nonces = Nonces { initiator: ours, responder: nonce };
    let keys = sa.channel.keys().child(chosen.suite.cipher, nonces, shared.as_ref());
    let (purpose, next_layer) = match (in_use, child) {
        (Some(old), _) => (old.purpose.clone(), old.next_layer),
        (None, Some(child)) if !rekey => (config.purpose(child, &selectors), child.next_layer),
        (None, child) => (asked_for.clone(), child.map_or(NextLayer::ANY, |child| child.next_layer)),
    };
    let (outbound_spi, suite) = (chosen.child_spi(), chosen.suite);
    let negotiated = NegotiatedChild { purpose, next_layer, mode, outbound_spi, suite, selectors, keys };
    Ok((negotiated, nonce.to_vec()))
}

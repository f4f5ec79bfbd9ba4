//! CREATE_CHILD_SA for CHILD_SAs as the responder: the peer creates or rekeys one (RFC 7296 1.3.1,
//! 1.3.3, 2.25).

use std::sync::Arc;

use super::rekey_ike_response;
use super::{ErrorResponse, check_rate, invalid_share, single_notify};
use crate::child_sas::{Arrival, ChildSas, Spi};
use crate::config::{ChildConfig, PeerConfig};
use crate::crypto::{KeyExchangeError, Nonces, ResponderKeyExchange};
use crate::event::{ChildId, ChildSa, NotServed};
use crate::negotiate::{self, ChildKeyExchange, ChildOffer, Disagreement};
use crate::output::Context;
use crate::purpose::Purpose;
use crate::sa::child::{self, ReservedSpi};
use crate::sa::failure::{self, CREATE_CHILD_SA};
use crate::sa::ike_sa::{IkeSa, SaStep};
use crate::sa::own_requests::{OutstandingRequest, QueuedRequest};
use crate::sa::rekey_collision::RekeyCollision;
use crate::wire::{ExchangeType, InvalidMessage, Notify, NotifyType, Payload, Payloads, Protocol};

/// Maximum number of CHILD_SAs of one purpose under one IKE SA. Further CHILD_SAs are refused with
/// NO_ADDITIONAL_SAS. Simultaneous rekeys by both ends lead to three: the old one and a new one
/// from each end. One more may be waiting for its deletion.
const MAX_OF_PURPOSE: usize = 4;

/// Answers a CREATE_CHILD_SA request, either for a CHILD_SA or for the IKE SA.
pub(super) fn answer(sa: &mut IkeSa, payloads: &Payloads, child_sas: &mut ChildSas, cx: &mut Context<'_>) -> SaStep {
    let rekeys_ike =
        payloads.proposals().is_ok_and(|offers| offers.iter().any(|offer| offer.protocol == Protocol::Ike));
    if rekeys_ike {
        return rekey_ike_response::answer(sa, payloads, child_sas, cx);
    }
    let answer = match answer_child(sa, payloads, child_sas, cx) {
        Ok(answer) => answer,
        //= RFC 7296 2.21.3 MUST 1: errors are answered
        Err((notify, error)) => {
            if let Some(error) = error {
                sa.report(error, cx);
            }
            //= RFC 7296 1.3.1 SHOULD NOT 3: a refusal ends no IKE SA
            single_notify(notify)
        }
    };
    sa.channel.respond(ExchangeType::CreateChildSa, &answer, cx);
    SaStep::Continue
}

fn answer_child(
    sa: &mut IkeSa,
    payloads: &Payloads,
    child_sas: &mut ChildSas,
    cx: &mut Context<'_>,
) -> Result<Payloads, ErrorResponse> {
    let malformed = |error: InvalidMessage| (error.notify(), Some(failure::invalid(CREATE_CHILD_SA, error)));
    let offers = payloads.proposals().map_err(malformed)?;
    let nonce = payloads.nonce().map_err(malformed)?;
    sa.channel.keys().suite.prf.check_nonce(nonce).map_err(malformed)?;
    let remote = payloads.selectors_initiator().map_err(malformed)?;
    let local = payloads.selectors_responder().map_err(malformed)?;
    let old = child_to_replace(sa, payloads, child_sas)?;

    let profile = Arc::clone(&sa.profile);
    let config = &profile.config;
    let key_exchange = payloads.key_exchange().ok();
    let sent = key_exchange.map(|key_exchange| key_exchange.group);
    let in_use = old.and_then(|old| child_sas.live(old)).map(|child| Arc::clone(&child.sa));
    // The CHILD_SA of a rekey has the same purpose as the old one.
    let candidates =
        config.children().filter(|child| in_use.as_ref().is_none_or(|old| old.purpose.child == child.name));
    let me = sa.spi();
    let missing = |child: &ChildConfig| !child_sas.serves(me, &Purpose::whole(&child.name));
    let exchange = ChildKeyExchange::Configured { sent };
    let no_selectors = || {
        let child = in_use.as_ref().and_then(|old| config.child_named(&old.purpose.child));
        let error = failure::no_selectors(CREATE_CHILD_SA, config, child, local, remote);
        (Notify::new(NotifyType::TsUnacceptable), Some(error))
    };
    let mode = negotiate::mode_of(payloads);
    let offer = ChildOffer { proposals: offers, local, remote, mode, ends: sa.channel.path.ends() };
    let agreed = negotiate::agree(candidates, offer, exchange, missing);
    let agreed = agreed.map_err(|disagreement| {
        if let Some(old) = old.filter(|_| matches!(disagreement, Disagreement::Proposals(_))) {
            sa.replace_after_refusal(old, child_sas, cx.now);
        }
        let (error, notify) = failure::disagreement(CREATE_CHILD_SA, &disagreement, config, &offer);
        let refused = match &in_use {
            Some(old) => Some(&old.purpose.child),
            None => disagreement.child().filter(|child| !child_sas.serves(me, &Purpose::whole(child))),
        };
        match refused {
            Some(child) => {
                sa.report_child(child, error, cx);
                (notify, None)
            }
            None => (notify, Some(error)),
        }
    })?;
    // RFC 7296 2.9.2: the selectors of the new CHILD_SA must not be narrower than those of the
    // CHILD_SA that it replaces.
    //= RFC 7296 2.9.2 MUST NOT 3: the responder keeps what is in use
    let kept = in_use.as_ref().is_none_or(|old| agreed.selectors.covers((&**old).into()));
    if !kept && !mutation!("selectors_narrowed_by_rekey") {
        return Err(no_selectors());
    }
    let purpose =
        in_use.as_ref().map_or_else(|| config.purpose(agreed.child, &agreed.selectors), |old| old.purpose.clone());
    check_limits(config, me, old, &purpose, child_sas)?;
    let exchanged = match agreed.chosen.suite.group {
        //= RFC 7296 3.3.6 MUST 13: NONE leaves KE out
        None => {
            check_rate(child_sas, cx.now)?;
            None
        }
        Some(group) => {
            //= RFC 7296 1.3 MUST 3: INVALID_KE_PAYLOAD names the group
            let wanted = || (Notify::invalid_ke(group.number()), None);
            let theirs = key_exchange.filter(|theirs| theirs.group == group.number()).ok_or_else(wanted)?;
            check_rate(child_sas, cx.now)?;
            let failed = |error: KeyExchangeError| match error.is_local() {
                true => (Notify::new(NotifyType::NoAdditionalSas), None),
                false => invalid_share(error),
            };
            let ours = ResponderKeyExchange::respond(group, theirs, cx.env).map_err(failed)?;
            let payload = Payload::KeyExchange(ours.payload());
            Some((payload, ours.secret().map_err(failed)?))
        }
    };
    let inbound = ReservedSpi::new(&sa.profile, &sa.channel, cx)
        .ok_or_else(|| (Notify::new(NotifyType::TemporaryFailure), Some(failure::no_spi(CREATE_CHILD_SA))))?;
    //= RFC 7296 3.9 MUST NOT 2: no nonce twice
    let ours: [u8; 32] = cx.random();
    let (payload, shared) = exchanged.unzip();
    let nonces = Nonces { initiator: nonce, responder: &ours };
    let keys = sa.channel.keys().child(agreed.chosen.suite.cipher, nonces, shared.as_ref());
    let exchanged = std::iter::once(Payload::Nonce(ours.to_vec())).chain(payload);
    let (new, answer) = child::grant(agreed, purpose, keys, inbound, exchanged, &sa.channel);
    if mode != new.mode && !std::mem::replace(&mut sa.negotiated.not_served.transport_mode, true) {
        let declined = NotServed { transport_mode: true, ..NotServed::default() };
        declined.sentences().for_each(|sentence| tracing::warn!("{sentence}"));
    }
    //= RFC 7296 2.8 MUST 10: ready before the response
    add_child_of_peer(sa, old, new, nonces, child_sas, cx);
    Ok(Payloads::from(answer))
}

/// Returns the CHILD_SA that the request replaces. Returns `None` if the request is for an
/// additional CHILD_SA.
fn child_to_replace(sa: &IkeSa, payloads: &Payloads, child_sas: &ChildSas) -> Result<Option<ChildId>, ErrorResponse> {
    let me = sa.spi();
    let refuse = |kind| Err((Notify::new(kind), None));
    // RFC 7296 2.25.2: refuse if the IKE SA is about to end, or if we are rekeying it.
    //= RFC 7296 2.25.2 SHOULD 6: no CHILD_SA while we rekey the IKE SA
    let rekeying = matches!(sa.outstanding, Some(OutstandingRequest::RekeyIke(_)));
    if sa.is_closing() || (rekeying && !mutation!("child_made_while_ike_is_rekeyed")) {
        //= RFC 7296 2.25 SHOULD 1: TEMPORARY_FAILURE
        return refuse(NotifyType::TemporaryFailure);
    }
    let Some(rekey) = payloads.notify(NotifyType::RekeySa) else {
        return Ok(None);
    };
    let spi = rekey.child_spi().unwrap_or_default();
    //= RFC 7296 2.25.1 SHOULD 4: rekeyed and not there
    let Some(old) = child_sas.by_outbound_spi(me, spi) else {
        // RFC 7296 2.25.1: this may be a CHILD_SA that we are about to delete because we cannot use
        // it, or one that our request created and for which the response has not arrived yet.
        let not_known_yet = matches!(sa.outstanding, Some(OutstandingRequest::CreateChild(_)))
            && !mutation!("child_of_late_response_not_found");
        if sa.is_deleting_unused() || not_known_yet {
            return refuse(NotifyType::TemporaryFailure);
        }
        let spi = if mutation!("unknown_child_not_named") { 0 } else { spi };
        //= RFC 7296 2.25 SHOULD 5: CHILD_SA_NOT_FOUND
        //= RFC 7296 2.25 REQUIRED 6: it names the SPI
        return Err((Notify::about_child(NotifyType::ChildSaNotFound, spi), None));
    };
    // RFC 7296 2.25.1: refuse if we are about to delete the CHILD_SA.
    //= RFC 7296 2.25.1 SHOULD 1: rekeyed while we close it
    if sa.is_deleting(old) && !mutation!("deleted_child_rekeyed") {
        refuse(NotifyType::TemporaryFailure)
    } else {
        //= RFC 7296 2.25.1 SHOULD 2: rekeyed while we rekey it
        Ok(Some(old))
    }
}

/// Returns an error if the limits do not allow another CHILD_SA of this purpose.
fn check_limits(
    config: &PeerConfig,
    owner: Spi,
    old: Option<ChildId>,
    purpose: &Purpose,
    child_sas: &ChildSas,
) -> Result<(), ErrorResponse> {
    let purposes = child_sas.purposes_of(owner);
    let known = purposes.contains(purpose);
    // A peer that requests a second CHILD_SA of the same purpose has lost the first one. If one
    // CHILD_SA carries all traffic, however, a peer requests a second one only if both ends request
    // one at the same time.
    let again = known && old.is_none() && config.max_children <= 1;
    // RFC 7296 1.3: NO_ADDITIONAL_SAS.
    let error = if again || child_sas.ids_for(owner, purpose).len() >= MAX_OF_PURPOSE {
        None
    } else if !known && purposes.len() >= config.max_children && !mutation!("children_without_limit") {
        (config.max_children > 1).then(|| failure::too_many_children(purpose, config))
    } else {
        return Ok(());
    };
    Err((Notify::new(NotifyType::NoAdditionalSas), error))
}

/// Adds the CHILD_SA that the peer's request created.
fn add_child_of_peer(
    sa: &mut IkeSa,
    old: Option<ChildId>,
    new: ChildSa,
    nonces: Nonces<'_>,
    child_sas: &mut ChildSas,
    cx: &mut Context<'_>,
) {
    let me = sa.spi();
    let lifetime = sa.profile.child_lifetime(cx);
    let purpose = new.purpose.clone();
    let arrival = match old {
        Some(old) => Arrival::RekeyedByPeer(old),
        // The peer has lost the previous CHILD_SA.
        None if !child_sas.ids_for(me, &purpose).is_empty() => Arrival::Ready,
        None => Arrival::Waiting,
    };
    let new = child_sas.add(new, me, arrival, lifetime, cx.now, cx.out);
    if let Some(OutstandingRequest::CreateChild(ours)) = &mut sa.outstanding {
        if ours.old == old && ours.purpose.child == purpose.child {
            //= RFC 7296 2.25.1 SHOULD 3: the redundant one is known
            ours.collision = Some(RekeyCollision::new(new, nonces));
        } else if let Some(collision) = ours.collision.as_mut().filter(|collision| old == Some(collision.peers_sa)) {
            collision.follow_rekey(new);
        }
    }
    if let Some(old) = old {
        sa.drop_requests_of(old);
        if let Some(child) = child_sas.live_mut(old) {
            child.rekey = None;
        }
    }
    if let Some(old) = old.filter(|_| mutation!("responder_deletes_replaced")) {
        sa.enqueue(QueuedRequest::DeleteChild(old));
    }
    sa.missing.cancel(&purpose);
    sa.missing.cancel(&Purpose::whole(&purpose.child));
    sa.negotiation_succeeded(Some(&purpose.child));
    sa.schedule_cleanup(cx.now);
}

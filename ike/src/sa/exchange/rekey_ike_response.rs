//! CREATE_CHILD_SA for the IKE SA as the responder: the peer rekeys it (RFC 7296 1.3.2, 2.8.2,
//! 2.18, 2.25.2).

use super::{ErrorResponse, check_rate, invalid_share, single_notify};
use crate::child_sas::ChildSas;
use crate::config::Group;
use crate::crypto::{IkeRole, KeyExchangeError, Nonces, ResponderKeyExchange};
use crate::event::IkeId;
use crate::negotiate;
use crate::output::Context;
use crate::sa::failure::{self, CREATE_CHILD_SA};
use crate::sa::ike_sa::{IkeSa, SaStep};
use crate::sa::own_requests::OutstandingRequest;
use crate::sa::rekey_collision::RekeyCollision;
use crate::wire::{ExchangeType, InvalidMessage, Notify, NotifyType, Payload, Payloads};

/// Answers a request that rekeys the IKE SA.
pub(super) fn answer(sa: &mut IkeSa, payloads: &Payloads, child_sas: &mut ChildSas, cx: &mut Context<'_>) -> SaStep {
    match negotiate(sa, payloads, child_sas, cx) {
        Ok((new, answer)) => {
            sa.channel.respond(ExchangeType::CreateChildSa, &answer, cx);
            SaStep::Rekeyed { new, redundant: None }
        }
        Err((notify, error)) => {
            sa.channel.respond(ExchangeType::CreateChildSa, &single_notify(notify), cx);
            if let Some(error) = error {
                sa.report(error, cx);
            }
            SaStep::Continue
        }
    }
}

fn negotiate(
    sa: &mut IkeSa,
    payloads: &Payloads,
    child_sas: &mut ChildSas,
    cx: &mut Context<'_>,
) -> Result<(Box<IkeSa>, Payloads), ErrorResponse> {
    // RFC 7296 2.25.2: a rekey is refused while we create or delete CHILD_SAs on the IKE SA, and
    // when the IKE SA is about to end. 2.8.2: it is also refused after the IKE SA was rekeyed.
    //= RFC 7296 2.25.1 SHOULD 8: the IKE SA waits for CHILD_SAs
    //= RFC 7296 2.25.2 SHOULD 1: rekeyed while we rekey it
    let quiet =
        matches!(sa.outstanding, None | Some(OutstandingRequest::Liveness(_) | OutstandingRequest::RekeyIke(_)));
    //= RFC 7296 2.8.2 SHOULD 3: no second rekey
    //= RFC 7296 2.25.2 SHOULD 3: rekeyed while we close it
    let going = sa.is_closing() && !mutation!("ike_rekeyed_twice");
    if !(quiet || mutation!("ike_rekeyed_while_busy")) || going {
        //= RFC 7296 2.25 SHOULD 1: TEMPORARY_FAILURE
        return Err((Notify::new(NotifyType::TemporaryFailure), None));
    }
    let malformed = |error: InvalidMessage| (error.notify(), Some(failure::invalid(CREATE_CHILD_SA, error)));
    let config = &sa.profile.config;
    let offers = payloads.proposals().map_err(malformed)?;
    let nonce = payloads.nonce().map_err(malformed)?;
    //= RFC 7296 2.18 MUST 1: a new key exchange
    let theirs = payloads.key_exchange().map_err(malformed)?;
    let chosen = negotiate::choose_ike(offers, &config.ike_proposals, Some(theirs.group)).ok_or_else(|| {
        (Notify::new(NotifyType::NoProposalChosen), Some(failure::no_ike_proposal(&config.ike_proposals, offers)))
    })?;
    chosen.suite.prf.check_nonce(nonce).map_err(malformed)?;
    let peer_spi = chosen.ike_spi().ok_or_else(|| (Notify::new(NotifyType::InvalidSyntax), None))?;
    let group: Group = chosen.suite.group;
    if theirs.group != group.number() {
        //= RFC 7296 1.3 MUST 3: INVALID_KE_PAYLOAD names the group
        return Err((Notify::invalid_ke(group.number()), None));
    }
    check_rate(child_sas, cx.now)?;
    let failed = |error: KeyExchangeError| match error.is_local() {
        true => (Notify::new(NotifyType::TemporaryFailure), None),
        false => invalid_share(error),
    };
    let ours = ResponderKeyExchange::respond(group, theirs, cx.env).map_err(failed)?;
    let payload = Payload::KeyExchange(ours.payload());
    let shared = ours.secret().map_err(failed)?;
    let our_nonce: [u8; 32] = cx.random();
    //= RFC 7296 2.6 MUST 1: unique SPIs
    let our_spi = u64::from_be_bytes(cx.random()).max(1);
    let ike = IkeId { initiator: peer_spi, responder: our_spi };
    let nonces = Nonces { initiator: nonce, responder: &our_nonce };
    let keys = sa.channel.keys().rekey(chosen.suite, nonces, ike, &shared);
    let new = sa.successor(keys, ike, IkeRole::Responder, cx);
    if let Some(OutstandingRequest::RekeyIke(ours)) = &mut sa.outstanding {
        //= RFC 7296 2.25.2 SHOULD 2: the redundant one is known
        ours.collision = Some(RekeyCollision::new(ike, nonces));
    }
    let mut answer = Payloads::new();
    //= RFC 7296 1.3.2 REQUIRED 3: new SPIs in the SA payload
    answer.push(Payload::SecurityAssociation(vec![chosen.response(our_spi.to_be_bytes().to_vec())]));
    answer.push(Payload::Nonce(our_nonce.to_vec()));
    answer.push(payload);
    Ok((new, answer))
}

//! CREATE_CHILD_SA for the IKE SA itself (RFC 7296 1.3.2, 2.18), as responder. We do not begin it:
//! we replace an IKE SA by IKE_SA_INIT and IKE_AUTH (2.8.3), which check the certificate again.

use super::error_response::{ErrorResponse, invalid_share, single_notify};
use crate::config::Group;
use crate::crypto::{IkeRole, KeyExchangeError, Nonces, ResponderKeyExchange};
use crate::event::{Event, IkeDetails, IkeId};
use crate::negotiate;
use crate::output::Context;
use crate::sa::channel::Channel;
use crate::sa::failure::{self, CREATE_CHILD_SA};
use crate::sa::ike_sa::{IkeSa, Lifecycle, SaStep};
use crate::sa::initiation::Initiation;
use crate::sa::own_requests::OutstandingRequest;
use crate::tunnel::Tunnel;
use crate::wire::{ExchangeType, InvalidMessage, Notify, NotifyType, Payload, Payloads};

/// Answers a request that rekeys the IKE SA.
pub(super) fn answer(sa: &mut IkeSa, payloads: &Payloads, tunnel: &mut Tunnel, cx: &mut Context<'_>) -> SaStep {
    match negotiate(sa, payloads, cx) {
        Ok((new, answer)) => {
            sa.channel.respond(ExchangeType::CreateChildSa, &answer, cx);
            tunnel.move_to(sa.spi(), new.spi());
            sa.lifecycle = Lifecycle::Superseded(new.ike());
            sa.schedule_cleanup(cx.now);
            SaStep::Rekeyed(new)
        }
        Err((notify, error)) => {
            sa.channel.respond(ExchangeType::CreateChildSa, &single_notify(notify), cx);
            if let Some(error) = error {
                cx.out.event(Event::PeerFailed { peer: sa.profile.config.name.clone(), error });
            }
            SaStep::Continue
        }
    }
}

fn negotiate(
    sa: &mut IkeSa,
    payloads: &Payloads,
    cx: &mut Context<'_>,
) -> Result<(Box<IkeSa>, Payloads), ErrorResponse> {
    // RFC 7296 2.25.2: refused while CHILD_SAs are being made or deleted on it, and when it is
    // about to go.
    let quiet = matches!(sa.outstanding, None | Some(OutstandingRequest::Liveness)) && sa.queue.is_empty();
    if !(quiet || mutation!("ike_rekeyed_while_busy")) || sa.lifecycle != Lifecycle::Active {
        return Err((Notify::new(NotifyType::TemporaryFailure), None));
    }
    let malformed = |error: InvalidMessage| (error.notify(), Some(failure::invalid(CREATE_CHILD_SA, error)));
    let config = &sa.profile.config;
    let offers = payloads.proposals().map_err(malformed)?;
    let nonce = payloads.nonce().map_err(malformed)?;
    let theirs = payloads.key_exchange().map_err(malformed)?;
    let chosen = negotiate::choose_ike(offers, &config.ike_proposals, Some(theirs.group)).ok_or_else(|| {
        (Notify::new(NotifyType::NoProposalChosen), Some(failure::no_ike_proposal(&config.ike_proposals)))
    })?;
    chosen.suite.prf.check_nonce(nonce).map_err(malformed)?;
    let peer_spi = chosen.spi.as_slice().try_into().map(u64::from_be_bytes).unwrap_or_default();
    if peer_spi == 0 {
        return Err((Notify::new(NotifyType::InvalidSyntax), None));
    }
    let group: Group = chosen.suite.group;
    if theirs.group != group.number() {
        return Err((Notify::invalid_ke(group.number()), None));
    }
    let failed = |error: KeyExchangeError| match error.is_local() {
        true => (Notify::new(NotifyType::TemporaryFailure), None),
        false => invalid_share(error),
    };
    let ours = ResponderKeyExchange::respond(group, theirs, cx.env).map_err(failed)?;
    let payload = Payload::KeyExchange(ours.payload());
    let shared = ours.secret().map_err(failed)?;
    let our_nonce: [u8; 32] = cx.random();
    let our_spi = u64::from_be_bytes(cx.random()).max(1);
    let ike = IkeId { initiator: peer_spi, responder: our_spi };
    let keys = sa.channel.keys.rekey(chosen.suite, Nonces { initiator: nonce, responder: &our_nonce }, ike, &shared);
    let timing = config.timing;
    let channel = Channel::new(keys, ike, IkeRole::Responder, sa.channel.path, sa.channel.fragments(), timing, cx.now);
    let details = IkeDetails { proposal: chosen.suite.to_string(), ..sa.details.clone() };
    let mut new = IkeSa::new(channel, sa.profile.clone(), details, Initiation::ByPeer(cx.now), cx);
    new.inherit_lifetime(sa, cx);
    let mut answer = Payloads::new();
    answer.push(Payload::SecurityAssociation(vec![chosen.response(our_spi.to_be_bytes().to_vec())]));
    answer.push(Payload::Nonce(our_nonce.to_vec()));
    answer.push(payload);
    Ok((Box::new(new), answer))
}

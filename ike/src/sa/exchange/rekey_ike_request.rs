//! CREATE_CHILD_SA for the IKE SA as the initiator: we rekey it (RFC 7296 1.3.2, 2.8.2, 2.18,
//! 2.25.2). If the peer refuses, IKE_SA_INIT and IKE_AUTH create a new IKE SA instead (2.8.3).

use std::time::Duration;

use super::addresses;
use super::create_child_request::temporary_failure_wait;
use crate::config::Group;
use crate::crypto::{IkeKeys, IkeRole, InitiatorKeyExchange, Nonces};
use crate::event::{IkeId, PeerError, PeerErrorKind};
use crate::negotiate;
use crate::output::Context;
use crate::sa::failure::{self, CREATE_CHILD_SA};
use crate::sa::ike_sa::{IkeSa, Lifecycle, SaStep};
use crate::sa::own_requests::{OutstandingRequest, QueuedRequest, RekeyIkeRequest};
use crate::wire::{ExchangeType, InvalidMessage, Notify, NotifyType, Payload, Payloads};

/// Maximum number of consecutive TEMPORARY_FAILURE responses, which take about a minute in total,
/// since the delays between them grow. After that, the ends may have different states (RFC 7296
/// 2.25), so IKE_SA_INIT creates a new IKE SA.
const MAX_TEMPORARY_FAILURES: u8 = 10;

/// Delay after key generation has failed on this node.
const LOCAL_FAILURE_WAIT: Duration = Duration::from_secs(60);

/// Sends the request. `group` is the key exchange method that the peer requested, if it requested
/// one.
pub(super) fn begin(sa: &mut IkeSa, group: Option<Group>, cx: &mut Context<'_>) -> Option<OutstandingRequest> {
    if sa.lifecycle != Lifecycle::Active {
        return None;
    }
    let config = sa.profile.config.clone();
    let group_changed = group.is_some();
    let groups = || config.ike_proposals.iter().flat_map(|proposal| &proposal.groups).copied();
    let present = sa.channel.keys().suite.group;
    let group = group.or_else(|| groups().find(|group| *group == present)).or_else(|| groups().next())?;
    //= RFC 7296 2.18 MUST 1: a new key exchange
    let key = match InitiatorKeyExchange::start(group, cx.env) {
        Ok(key) => key,
        Err(error) => {
            sa.report(PeerError::new(CREATE_CHILD_SA, PeerErrorKind::Local, error.to_string()), cx);
            sa.rekey_at = Some(cx.now + LOCAL_FAILURE_WAIT);
            return None;
        }
    };
    //= RFC 7296 2.6 MUST 1: unique SPIs
    let (nonce, spi): ([u8; 32], _) = (cx.random(), u64::from_be_bytes(cx.random()).max(1));
    let payloads = Payloads::from(vec![
        //= RFC 7296 1.3.2 REQUIRED 3: new SPIs in the SA payload
        Payload::SecurityAssociation(negotiate::offer_ike(&config.ike_proposals, &spi.to_be_bytes())),
        Payload::Nonce(nonce.to_vec()),
        //= RFC 7296 1.3.2 MUST 1: KEi in a rekey of the IKE SA
        Payload::KeyExchange(key.payload()),
    ]);
    sa.rekey_at = None;
    sa.channel.request(ExchangeType::CreateChildSa, &payloads, cx);
    let request = RekeyIkeRequest { spi, nonce, key, group_changed, collision: None };
    Some(OutstandingRequest::RekeyIke(Box::new(request)))
}

/// Creates the new IKE SA from the response, or handles its error.
pub(super) fn finish(request: RekeyIkeRequest, sa: &mut IkeSa, payloads: &Payloads, cx: &mut Context<'_>) -> SaStep {
    if let Some(notify) = payloads.error() {
        return refused(request, notify, sa, cx);
    }
    let RekeyIkeRequest { spi, nonce, key, collision, .. } = request;
    let (keys, ike, theirs) = match accept_response(sa, payloads, spi, &nonce, key) {
        Ok(accepted) => accepted,
        Err(error) => {
            // The peer now has another IKE SA, which we cannot use.
            sa.report(error, cx);
            return SaStep::Reauthenticate;
        }
    };
    let new = sa.successor(keys, ike, IkeRole::Initiator, cx);
    let ours = Nonces { initiator: &nonce, responder: &theirs };
    let peers_sa = collision.as_ref().map(|collision| collision.peers_sa);
    //= RFC 7296 2.8.2 SHOULD 1: the IKE SA of the lowest nonce goes
    let loses = collision
        .is_some_and(|collision| collision.makes_ours_redundant(ours) != mutation!("nonce_rule_of_ike_inverted"));
    if loses || sa.lifecycle == Lifecycle::Deleting {
        return SaStep::Redundant(new);
    }
    SaStep::Rekeyed { new, redundant: peers_sa }
}

fn refused(request: RekeyIkeRequest, notify: &Notify, sa: &mut IkeSa, cx: &mut Context<'_>) -> SaStep {
    if request.collision.is_some() || sa.lifecycle != Lifecycle::Active {
        // RFC 7296 2.8.2: the peer had rekeyed the IKE SA before our request arrived.
        return SaStep::Continue;
    }
    // A rekey may have been queued in the meantime. It would repeat the refused one at once.
    sa.queue.retain(|queued| *queued != QueuedRequest::RekeyIke);
    match notify.kind {
        //= RFC 7296 2.25 SHOULD 4: not for ever
        NotifyType::TemporaryFailure if sa.temporary_failures < MAX_TEMPORARY_FAILURES => {
            sa.temporary_failures = sa.temporary_failures.saturating_add(1);
            //= RFC 7296 2.25 MUST NOT 2: no repetition at once
            let longest = sa.profile.config.timing.child_retry_max();
            let wait = temporary_failure_wait(cx);
            let wait = wait.saturating_mul(1 << (sa.temporary_failures - 1)).min(longest.max(wait));
            let wait = if mutation!("refused_ike_rekey_repeated_at_once") { Duration::ZERO } else { wait };
            sa.rekey_at = Some(cx.now + wait);
            addresses::check_mapping(sa);
            return SaStep::Continue;
        }
        NotifyType::InvalidKePayload if !request.group_changed => {
            let offered =
                |group: &Group| sa.profile.config.ike_proposals.iter().any(|proposal| proposal.groups.contains(group));
            if let Some(group) = notify.data_u16().and_then(Group::from_number).filter(offered) {
                sa.outstanding = begin(sa, Some(group), cx);
                return SaStep::Continue;
            }
        }
        _ => {}
    }
    tracing::debug!(ike = ?sa.ike(), notify = %notify.kind, "the peer does not let the IKE SA be rekeyed; a new one replaces it");
    if mutation!("refused_ike_rekey_given_up") { SaStep::Continue } else { SaStep::Reauthenticate }
}

/// Returns the keys and SPIs of the new IKE SA and the peer's nonce, if the response is within our
/// offer.
fn accept_response(
    sa: &IkeSa,
    payloads: &Payloads,
    spi: u64,
    ours: &[u8],
    key: InitiatorKeyExchange,
) -> Result<(IkeKeys, IkeId, Vec<u8>), PeerError> {
    let config = &sa.profile.config;
    let malformed = |error: InvalidMessage| failure::invalid(CREATE_CHILD_SA, error);
    let answer = payloads.proposals().map_err(malformed)?;
    let nonce = payloads.nonce().map_err(malformed)?;
    let theirs = payloads.key_exchange().map_err(malformed)?;
    let chosen = negotiate::choose_ike(answer, &config.ike_proposals, Some(theirs.group))
        .filter(|chosen| negotiate::is_one_choice(answer) && chosen.suite.group == key.group())
        .filter(|chosen| chosen.ike_spi().is_some());
    let Some(chosen) = chosen else {
        let detail = "the peer's answer to the rekey of the IKE SA is not one of our proposals with its own SPI";
        return Err(PeerError::new(CREATE_CHILD_SA, PeerErrorKind::Protocol, detail.to_owned()));
    };
    chosen.suite.prf.check_nonce(nonce).map_err(malformed)?;
    let shared = key
        .finish(theirs)
        .map_err(|error| PeerError::new(CREATE_CHILD_SA, PeerErrorKind::Protocol, error.to_string()))?;
    let ike = IkeId { initiator: spi, responder: chosen.ike_spi().unwrap_or_default() };
    let nonces = Nonces { initiator: ours, responder: nonce };
    Ok((sa.channel.keys().rekey(chosen.suite, nonces, ike, &shared), ike, nonce.to_vec()))
}

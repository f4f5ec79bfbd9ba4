//! CREATE_CHILD_SA for CHILD_SAs: rekeying (RFC 7296 1.3.3, 2.8), also by both ends at once (2.8.1)
//! and across deletions (2.25).

use std::time::Duration;

use super::super::Profile;
use super::super::child::{NegotiatedChild, ReservedSpi};
use super::super::established::{IkeSa, SaStep};
use super::super::failure::{self, CREATE_CHILD_SA};
use super::{PendingRequest, Task, rekey_ike, single_notify};
use crate::config::Group;
use crate::crypto::{KeyPair, Nonces};
use crate::event::{ChildId, DownReason, Event, PeerError, PeerErrorKind};
use crate::negotiate::{self, ChildKeyExchange};
use crate::output::Context;
use crate::tunnel::{Arrival, Tunnel};
use crate::wire::{ExchangeType, InvalidMessage, Notify, NotifyType, Payload, Payloads, Protocol};

/// CHILD_SAs that one IKE SA may have at a time: one in use, one replacing it from either end, and
/// as many of the time before.
const MAX_CHILDREN: usize = 4;
/// Wait after TEMPORARY_FAILURE (RFC 7296 2.25), up to as much again at random.
const TEMPORARY_FAILURE_WAIT: Duration = Duration::from_millis(500);

/// Our request for a CHILD_SA.
#[derive(Debug)]
pub(in super::super) struct CreateChild {
    /// The one that it is to replace.
    old: Option<ChildId>,
    inbound: ReservedSpi,
    nonce: [u8; 32],
    key: Option<KeyPair>,
    /// The peer has asked for another group before.
    group_changed: bool,
    /// The peer replaces the same one at the same time.
    collision: Option<Collision>,
}

/// The CHILD_SA of the peer's exchange, and the lower one of its nonces.
#[derive(Debug)]
struct Collision {
    new: ChildId,
    lower_nonce: Vec<u8>,
}

impl CreateChild {
    /// Sends the request; with a key of `group` if the peer wants that one.
    pub(super) fn begin(
        sa: &mut IkeSa,
        old: Option<ChildId>,
        group: Option<Group>,
        tunnel: &mut Tunnel,
        cx: &mut Context<'_>,
    ) -> Option<PendingRequest> {
        let me = sa.spi();
        match old {
            // Gone meanwhile, or the peer was quicker.
            Some(old) => tunnel.live(old).filter(|child| child.owner == me).map(|_| ())?,
            None if tunnel.children_of(me).next().is_some() => return None,
            None => {}
        }
        let config = sa.profile.config.clone();
        let Some(inbound) = ReservedSpi::new(&sa.profile, &sa.channel, cx) else {
            sa.report(failure::no_spi(CREATE_CHILD_SA), cx);
            sa.retry_child_later(old, config.timing.retry_max, tunnel, cx);
            return None;
        };
        let configured = config.child.proposals.iter().flat_map(|proposal| &proposal.groups).copied().next();
        let group_changed = group.is_some();
        let key = match group.or(configured).map(|group| KeyPair::generate(group, cx.env)).transpose() {
            Ok(key) => key,
            Err(error) => {
                inbound.release(&sa.profile, cx);
                sa.report(PeerError::new(CREATE_CHILD_SA, PeerErrorKind::Local, error.to_string()), cx);
                sa.retry_child_later(old, config.timing.retry_max, tunnel, cx);
                return None;
            }
        };
        let nonce: [u8; 32] = cx.random();
        let mut payloads = Payloads::new();
        payloads.extend(old.map(|old| Payload::Notify(Notify::about_child(NotifyType::RekeySa, old.0))));
        payloads.push(Payload::SecurityAssociation(negotiate::offer_esp(&config.child.proposals, inbound.spi, true)));
        payloads.push(Payload::Nonce(nonce.to_vec()));
        payloads.extend(key.as_ref().map(|key| Payload::KeyExchange(key.payload())));
        payloads.push(Payload::TrafficSelectorsInitiator(negotiate::offer_selectors(&config.child.local)));
        payloads.push(Payload::TrafficSelectorsResponder(negotiate::offer_selectors(&config.child.remote)));
        sa.channel.request(ExchangeType::CreateChildSa, &payloads, cx);
        Some(PendingRequest::CreateChild(Box::new(Self { old, inbound, nonce, key, group_changed, collision: None })))
    }

    /// Leaves nothing reserved behind.
    pub(super) fn release(self, profile: &Profile, cx: &mut Context<'_>) {
        self.inbound.release(profile, cx);
    }

    /// Takes the answer.
    pub(super) fn finish(
        self,
        sa: &mut IkeSa,
        payloads: &Payloads,
        tunnel: &mut Tunnel,
        cx: &mut Context<'_>,
    ) -> SaStep {
        if let Some(notify) = payloads.error() {
            return self.refused(notify, sa, tunnel, cx);
        }
        let Self { old, inbound, nonce, key, collision, .. } = self;
        let (negotiated, theirs) = match accept_response(sa, payloads, &nonce, key) {
            Ok(accepted) => accepted,
            Err(error) => {
                // The peer has it now, and we cannot use it.
                sa.enqueue(Task::DeleteUnused(inbound));
                sa.report(error, cx);
                let wait = sa.profile.config.timing.retry_max;
                sa.retry_child_later(old, wait, tunnel, cx);
                return SaStep::Continue;
            }
        };
        let lower_nonce = lower(&nonce, &theirs);
        if let Some(Collision { new, lower_nonce: others }) = collision {
            // RFC 7296 2.8.1: the one made with the lowest of the four nonces goes, deleted by its
            // initiator.
            if *lower_nonce < *others && tunnel.live(new).is_some() {
                sa.enqueue(Task::DeleteUnused(inbound));
                return SaStep::Continue;
            }
            if let Some(other) = tunnel.live_mut(new) {
                other.redundant = true;
            }
        }
        let new = negotiated.into_sa(inbound, true, &sa.channel);
        let me = sa.spi();
        let replaced = old.filter(|old| tunnel.live(*old).is_some());
        let superfluous: Vec<ChildId> =
            if old.is_some() && replaced.is_none() { tunnel.ids_of(me) } else { Vec::new() };
        let arrival = match replaced {
            Some(old) => Arrival::RekeyedByUs(old),
            None => Arrival::Ready,
        };
        let rekey = Some(sa.profile.rekey_at(cx));
        tunnel.add(new, me, arrival, rekey, cx.now, cx.out);
        for id in replaced.into_iter().chain(superfluous) {
            sa.enqueue(Task::DeleteChild(id));
        }
        sa.schedule_cleanup(cx.now);
        SaStep::Continue
    }

    fn refused(self, notify: &Notify, sa: &mut IkeSa, tunnel: &mut Tunnel, cx: &mut Context<'_>) -> SaStep {
        let Self { old, inbound, group_changed, collision, .. } = self;
        inbound.release(&sa.profile, cx);
        if collision.is_some_and(|collision| tunnel.live(collision.new).is_some()) {
            // The peer's exchange has replaced the old one.
            return SaStep::Continue;
        }
        let timing = sa.profile.config.timing;
        match notify.kind {
            NotifyType::TemporaryFailure => {
                let wait = TEMPORARY_FAILURE_WAIT.saturating_add(
                    TEMPORARY_FAILURE_WAIT.saturating_sub(cx.jittered(TEMPORARY_FAILURE_WAIT)).saturating_mul(10),
                );
                sa.retry_child_later(old, wait, tunnel, cx);
            }
            NotifyType::InvalidKePayload if !group_changed => {
                let offered =
                    |group: &Group| sa.profile.config.child.proposals.iter().any(|p| p.groups.contains(group));
                let group = notify.data_u16().and_then(Group::from_number).filter(offered);
                match group {
                    Some(group) => sa.pending = Self::begin(sa, old, Some(group), tunnel, cx),
                    None => {
                        sa.report(failure::notified(CREATE_CHILD_SA, notify.kind, &sa.profile.config), cx);
                        sa.retry_child_later(old, timing.retry_max, tunnel, cx);
                    }
                }
            }
            // RFC 7296 2.25: what was to be rekeyed is gone there. If its deletion is not on the
            // way to us, a new one is made.
            NotifyType::ChildSaNotFound => {
                if let Some(old) = old
                    && tunnel.live(old).is_some()
                {
                    let alone = tunnel.ids_of(sa.spi()).len() == 1;
                    tunnel.retire(old, timing.linger, DownReason::Failed, cx.now, cx.out);
                    if alone {
                        sa.create_child_at = Some(cx.now);
                    }
                }
            }
            // The peer makes no more on this IKE SA (RFC 7296 1.3): a new IKE SA brings one.
            NotifyType::NoAdditionalSas => {
                sa.retry_child_later(old, timing.retry_max, tunnel, cx);
                return SaStep::Reauthenticate;
            }
            kind => {
                sa.report(failure::notified(CREATE_CHILD_SA, kind, &sa.profile.config), cx);
                sa.retry_child_later(old, timing.retry_max, tunnel, cx);
            }
        }
        SaStep::Continue
    }
}

/// What the peer's answer says, if it is within what we asked for; and its nonce.
fn accept_response(
    sa: &IkeSa,
    payloads: &Payloads,
    ours: &[u8],
    key: Option<KeyPair>,
) -> Result<(NegotiatedChild, Vec<u8>), PeerError> {
    let config = &sa.profile.config;
    let malformed = |error: InvalidMessage| failure::invalid(CREATE_CHILD_SA, error);
    let answer = payloads.proposals().map_err(malformed)?;
    let nonce = payloads.nonce().map_err(malformed)?;
    let exchange = ChildKeyExchange::Configured { sent: key.as_ref().map(|key| key.group().number()) };
    let chosen = negotiate::choose_esp(answer, &config.child.proposals, exchange)
        .filter(|chosen| {
            answer.len() == 1
                && (chosen.suite.group.is_none() || chosen.suite.group == key.as_ref().map(KeyPair::group))
        })
        .ok_or_else(|| failure::no_esp_proposal(CREATE_CHILD_SA, config))?;
    let local = payloads.selectors_initiator().map_err(malformed)?;
    let remote = payloads.selectors_responder().map_err(malformed)?;
    let selectors = negotiate::accept_narrowed(&config.child, local, remote)
        .ok_or_else(|| failure::no_selectors(CREATE_CHILD_SA, config))?;
    let shared = match key.filter(|_| chosen.suite.group.is_some()) {
        Some(key) => {
            let shared = key.agree(payloads.key_exchange().map_err(malformed)?);
            Some(shared.map_err(|error| PeerError::new(CREATE_CHILD_SA, PeerErrorKind::Protocol, error.to_string()))?)
        }
        None => None,
    };
    let nonces = Nonces { initiator: ours, responder: nonce };
    let keys = sa.channel.keys.child(chosen.suite.aead, nonces, shared.as_ref());
    Ok((NegotiatedChild { outbound_spi: chosen.child_spi(), suite: chosen.suite, selectors, keys }, nonce.to_vec()))
}

/// Answers a request.
pub(in super::super) fn answer(
    sa: &mut IkeSa,
    payloads: &Payloads,
    tunnel: &mut Tunnel,
    cx: &mut Context<'_>,
) -> SaStep {
    let rekeys_ike =
        payloads.proposals().is_ok_and(|offers| offers.iter().any(|offer| offer.protocol == Protocol::Ike));
    if rekeys_ike {
        return rekey_ike::answer(sa, payloads, tunnel, cx);
    }
    let answer = match answer_child(sa, payloads, tunnel, cx) {
        Ok(answer) => answer,
        Err((notify, error)) => {
            if let Some(error) = error {
                sa.report(error, cx);
            }
            single_notify(notify)
        }
    };
    sa.channel.respond(ExchangeType::CreateChildSa, &answer, cx);
    SaStep::Continue
}

/// The notification that refuses, and what to tell people if there is something to tell.
type ErrorResponse = (Notify, Option<PeerError>);

fn answer_child(
    sa: &mut IkeSa,
    payloads: &Payloads,
    tunnel: &mut Tunnel,
    cx: &mut Context<'_>,
) -> Result<Payloads, ErrorResponse> {
    let malformed = |error: InvalidMessage| (error.notify(), Some(failure::invalid(CREATE_CHILD_SA, error)));
    let offers = payloads.proposals().map_err(malformed)?;
    let nonce = payloads.nonce().map_err(malformed)?;
    let remote = payloads.selectors_initiator().map_err(malformed)?;
    let local = payloads.selectors_responder().map_err(malformed)?;
    let old = child_to_replace(sa, payloads, tunnel)?;

    let config = &sa.profile.config;
    let key_exchange = payloads.key_exchange().ok();
    let sent = key_exchange.map(|key_exchange| key_exchange.group);
    let chosen = negotiate::choose_esp(offers, &config.child.proposals, ChildKeyExchange::Configured { sent })
        .ok_or_else(|| {
            (Notify::new(NotifyType::NoProposalChosen), Some(failure::no_esp_proposal(CREATE_CHILD_SA, config)))
        })?;
    let selectors = negotiate::narrow(&config.child, local, remote).ok_or_else(|| {
        (Notify::new(NotifyType::TsUnacceptable), Some(failure::no_selectors(CREATE_CHILD_SA, config)))
    })?;
    let exchanged = match chosen.suite.group {
        None => None,
        Some(group) => {
            let wanted = || (Notify::invalid_ke(group.number()), None);
            let theirs = key_exchange.filter(|theirs| theirs.group == group.number()).ok_or_else(wanted)?;
            let local_failure = |_| (Notify::new(NotifyType::NoAdditionalSas), None);
            let ours = KeyPair::generate(group, cx.env).map_err(local_failure)?;
            let payload = Payload::KeyExchange(ours.payload());
            let shared = ours.agree(theirs).map_err(|error| {
                let error = PeerError::new(CREATE_CHILD_SA, PeerErrorKind::Protocol, error.to_string());
                (Notify::new(NotifyType::InvalidSyntax), Some(error))
            })?;
            Some((payload, shared))
        }
    };
    let inbound = ReservedSpi::new(&sa.profile, &sa.channel, cx)
        .ok_or_else(|| (Notify::new(NotifyType::TemporaryFailure), Some(failure::no_spi(CREATE_CHILD_SA))))?;
    let ours: [u8; 32] = cx.random();
    let (payload, shared) = exchanged.unzip();
    let keys = sa.channel.keys.child(chosen.suite.aead, Nonces { initiator: nonce, responder: &ours }, shared.as_ref());

    let mut answer = Payloads::new();
    answer.push(Payload::SecurityAssociation(vec![chosen.response(inbound.spi)]));
    answer.push(Payload::Nonce(ours.to_vec()));
    answer.extend(payload);
    answer.push(Payload::TrafficSelectorsInitiator(selectors.remote.clone()));
    answer.push(Payload::TrafficSelectorsResponder(selectors.local.clone()));
    let negotiated = NegotiatedChild { outbound_spi: chosen.child_spi(), suite: chosen.suite, selectors, keys };
    let new = negotiated.into_sa(inbound, false, &sa.channel);
    add_child_of_peer(sa, old, new, lower(nonce, &ours).to_vec(), tunnel, cx);
    Ok(answer)
}

/// Which CHILD_SA the request replaces; `None` if it asks for the one that there is not yet.
fn child_to_replace(sa: &IkeSa, payloads: &Payloads, tunnel: &Tunnel) -> Result<Option<ChildId>, ErrorResponse> {
    let me = sa.spi();
    let refuse = |kind| Err((Notify::new(kind), None));
    if sa.is_closing() {
        return refuse(NotifyType::TemporaryFailure);
    }
    if tunnel.children_of(me).count() >= MAX_CHILDREN {
        return refuse(NotifyType::NoAdditionalSas);
    }
    let Some(rekey) = payloads.notify(NotifyType::RekeySa) else {
        // One CHILD_SA a peer.
        return if tunnel.children_of(me).next().is_some() { refuse(NotifyType::NoAdditionalSas) } else { Ok(None) };
    };
    let spi = rekey.child_spi().unwrap_or_default();
    let Some(old) = tunnel.by_outbound_spi(me, spi) else {
        return Err((Notify::about_child(NotifyType::ChildSaNotFound, spi), None));
    };
    // RFC 7296 2.25.1: we are about to delete it.
    if sa.is_deleting(old) { refuse(NotifyType::TemporaryFailure) } else { Ok(Some(old)) }
}

/// Takes the CHILD_SA of the peer's request.
fn add_child_of_peer(
    sa: &mut IkeSa,
    old: Option<ChildId>,
    new: crate::event::ChildSa,
    lower_nonce: Vec<u8>,
    tunnel: &mut Tunnel,
    cx: &mut Context<'_>,
) {
    let me = sa.spi();
    let rekey = Some(sa.profile.rekey_at(cx));
    let arrival = old.map_or(Arrival::Waiting, Arrival::RekeyedByPeer);
    let new = tunnel.add(new, me, arrival, rekey, cx.now, cx.out);
    if let Some(PendingRequest::CreateChild(ours)) = &mut sa.pending
        && ours.old == old
    {
        ours.collision = Some(Collision { new, lower_nonce });
    }
    if let Some(old) = old {
        sa.drop_tasks_of(old);
        if let Some(child) = tunnel.live_mut(old) {
            child.rekey = None;
        }
    }
    sa.create_child_at = None;
    sa.schedule_cleanup(cx.now);
}

fn lower<'a>(a: &'a [u8], b: &'a [u8]) -> &'a [u8] {
    a.min(b)
}

impl Profile {
    /// When a CHILD_SA made now is to be rekeyed.
    pub(crate) fn rekey_at(&self, cx: &mut Context<'_>) -> crate::Instant {
        cx.now + cx.jittered(self.config.timing.child_lifetime)
    }
}

impl IkeSa {
    fn is_closing(&self) -> bool {
        self.lifecycle != super::super::established::Lifecycle::Active || self.queue.contains(&Task::DeleteIke)
    }

    fn report(&self, error: PeerError, cx: &mut Context<'_>) {
        cx.out.event(Event::PeerFailed { peer: self.profile.config.name.clone(), error });
    }

    /// Tries again later: to rekey, or to have a CHILD_SA at all.
    fn retry_child_later(&mut self, old: Option<ChildId>, wait: Duration, tunnel: &mut Tunnel, cx: &mut Context<'_>) {
        let alone = tunnel.children_of(self.spi()).next().is_none();
        match old.and_then(|old| tunnel.live_mut(old)) {
            Some(child) => child.rekey = Some(cx.now + wait),
            None if alone => self.create_child_at = Some(cx.now + wait),
            None => {}
        }
    }

    /// The last CHILD_SA went without another.
    pub(super) fn last_child_deleted(&mut self, cx: &mut Context<'_>) {
        self.schedule_child_creation(cx);
        if let Some(create) = &mut self.create_child_at {
            *create = cx.now + self.profile.config.timing.retry;
        }
    }
}

//! Keeps, rekeys, replaces and removes the established IKE SAs of a peer, as each [`SaStep`]
//! requires.

use std::time::Duration;

use super::state::{Endpoint, SaState, context};
use crate::child_sas::{ChildSas, Spi};
use crate::config::PeerName;
use crate::environment::Environment;
use crate::event::{DownReason, Event, IkeId, PeerError};
use crate::sa::failure;
use crate::sa::{CloseReason, IkeSa, Lifecycle, SaStep, Survivor};
use crate::time::Instant;

/// Age of an IKE SA from which a request without a response does not show that the peer drops it on
/// each IKE SA. Such a request begins soon after the authentication, and ends within this time.
const OLD: Duration = Duration::from_secs(70);

/// Returns until when a peer that does not respond has kept the IKE SA: not at all if it has
/// answered nothing since the authentication, unless that is long ago and there was no reason to
/// ask it.
fn kept_until(sa: &IkeSa, now: Instant) -> Instant {
    if now >= sa.authenticated() + OLD { now } else { sa.last_received() }
}

impl Endpoint {
    /// Carries out what an [`SaStep`] of an established IKE SA requires.
    pub(super) fn sa_step(
        &mut self,
        name: PeerName,
        sa: Box<IkeSa>,
        step: SaStep,
        now: Instant,
        env: &mut dyn Environment,
    ) {
        let spi = sa.spi();
        match step {
            SaStep::Continue => {
                self.sas.insert(spi, SaState::Established(name.clone(), sa));
                self.schedule(spi);
                self.delete_served(&name, now, env);
            }
            SaStep::Reauthenticate => self.replace_sa(name, sa, false, now, env),
            SaStep::BringFirstChild => self.replace_sa(name, sa, true, now, env),
            SaStep::End(reason, error) => {
                self.sas.insert(spi, SaState::Established(name.clone(), sa));
                self.end_sa(&name, spi, reason, error, now, env);
            }
            SaStep::Rekeyed { new, redundant } => self.rekeyed(name, sa, new, redundant, now, env),
            SaStep::Redundant(new) => {
                self.sas.insert(spi, SaState::Established(name.clone(), sa));
                self.schedule(spi);
                self.delete_redundant(&name, new, now, env);
            }
            SaStep::Closed(closed) => self.sa_closed(&name, sa, closed, now, env),
        }
    }

    /// Creates a new IKE SA in place of this one. If an attempt has failed, the next one waits. If
    /// only the peer can begin, this one is rekeyed again later. `for_child` states that the only
    /// reason is the first child.
    fn replace_sa(
        &mut self,
        name: PeerName,
        mut sa: Box<IkeSa>,
        for_child: bool,
        now: Instant,
        env: &mut dyn Environment,
    ) {
        let (spi, peer) = (sa.spi(), self.peers.get_mut(&name).filter(|peer| peer.sas.contains(&sa.spi())));
        let (authenticated, silent_since) = (sa.authenticated(), kept_until(&sa, now));
        let unanswered = sa.needs_patience(now).then(|| sa.waits_in());
        let begins = peer.is_some_and(|peer| {
            // The peer may drop this request on each IKE SA.
            if let Some(exchange) = unanswered.filter(|_| !peer.reauthenticate)
                && !peer.ended(authenticated, silent_since)
            {
                let mut cx = context!(self, now, env);
                // A refused CHILD_SA says more.
                if peer.last_error.is_none() {
                    let error = failure::silent_soon(exchange, now.saturating_since(authenticated));
                    peer.report_failure(error, cx.out);
                }
                peer.schedule_retry(&mut cx);
            }
            peer.only_for_child = for_child && (peer.only_for_child || !peer.reauthenticate);
            peer.reauthenticate = !peer.gives_addresses();
            peer.reauthenticate
        });
        if !begins {
            sa.rekey_again(now);
        }
        self.sas.insert(spi, SaState::Established(name.clone(), sa));
        self.schedule(spi);
        if begins && self.peers.get(&name).is_some_and(|peer| peer.needs_attempt(now)) {
            self.start_or_queue_attempt(&name, now, env);
        }
    }

    /// Handles a rekey of an IKE SA by either end: the new IKE SA takes over the CHILD_SAs.
    /// `redundant` is the IKE SA that the peer's simultaneous rekey created. Its CHILD_SAs also
    /// move to the new one (RFC 7296 2.8.2).
    fn rekeyed(
        &mut self,
        name: PeerName,
        mut old: Box<IkeSa>,
        mut new: Box<IkeSa>,
        redundant: Option<IkeId>,
        now: Instant,
        env: &mut dyn Environment,
    ) {
        let (replaced, spi) = (old.spi(), new.spi());
        // We are the responder of this IKE SA, so the responder's SPI is ours.
        let mut redundant = redundant.map(|ike| ike.responder).and_then(|spi| match self.sas.remove(&spi) {
            Some(SaState::Established(_, sa)) => Some(sa),
            _ => None,
        });
        // An IKE SA with a new authentication may have superseded the replaced IKE SA in the
        // meantime. Even in that case the peer has moved the CHILD_SAs.
        let present = redundant.as_ref().unwrap_or(&old).lifecycle();
        let superseded = match present {
            Lifecycle::Superseded(by) => self.survivor(&name, by),
            Lifecycle::Active | Lifecycle::Deleting => None,
        };
        match self.peers.get_mut(&name).filter(|peer| peer.sas.contains(&replaced)) {
            Some(peer) => {
                let mut cx = context!(self, now, env);
                let (local, remote) = new.addresses();
                cx.out.event(Event::IkeUp {
                    peer: name.clone(),
                    ike: new.ike(),
                    local,
                    remote,
                    initiator: new.initiator(),
                    details: new.details(),
                });
                peer.add_sa(spi);
                let ours = new.initiator();
                old.hand_over(&mut new, ours, &mut peer.child_sas, &mut cx);
                if let Some(redundant) = &mut redundant {
                    //= RFC 7296 2.8.2 MUST 2: the other one takes the CHILD_SAs
                    redundant.hand_over(&mut new, false, &mut peer.child_sas, &mut cx);
                }
                match superseded {
                    Some(by) => new.supersede_by_new_authentication(by, &mut peer.child_sas, &mut cx),
                    None => new.take_over(&mut peer.child_sas, &mut cx),
                }
                self.sas.insert(spi, SaState::Established(name.clone(), new));
            }
            None => self.delete_redundant(&name, new, now, env),
        }
        for sa in redundant.into_iter().chain([old]) {
            let spi = sa.spi();
            self.sas.insert(spi, SaState::Established(name.clone(), sa));
            self.schedule(spi);
        }
        self.limit_ike_sas(&name, spi, now, env);
        self.schedule(spi);
    }

    /// Deletes the peer's superseded IKE SAs whose CHILD_SAs have all been replaced.
    fn delete_served(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) {
        let Some(peer) = self.peers.get_mut(name).filter(|peer| peer.sas.len() > 1) else {
            return;
        };
        let sas = peer.sas.clone();
        let is_active = |spi: &Spi| matches!(self.sas.get(spi), Some(SaState::Established(_, sa)) if sa.lifecycle() == Lifecycle::Active);
        let active: Vec<Spi> = sas.iter().copied().filter(is_active).collect();
        for spi in &sas {
            if let Some(SaState::Established(_, sa)) = self.sas.get_mut(spi) {
                sa.delete_if_served(&active, &mut peer.child_sas, &mut context!(self, now, env));
            }
        }
        sas.into_iter().for_each(|spi| self.schedule(spi));
    }

    /// Returns the IKE SA with these SPIs as the one that supersedes another one, or `None` if it
    /// is gone.
    fn survivor(&self, name: &PeerName, ike: IkeId) -> Option<Survivor> {
        let sas = self.peers.get(name)?.sas.iter().filter_map(|spi| match self.sas.get(spi) {
            Some(SaState::Established(_, sa)) => Some(sa),
            _ => None,
        });
        sas.filter(|sa| sa.ike() == ike).map(|sa| sa.as_survivor()).next()
    }

    /// Moves the CHILD_SAs back to the old IKE SA until our rekey is complete. Both ends have
    /// rekeyed the IKE SA at the same time, and the peer deletes the IKE SA that its rekey created
    /// (RFC 7296 2.8.2).
    fn return_children(&mut self, name: &PeerName, gone: &mut IkeSa, now: Instant, env: &mut dyn Environment) {
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        for other in peer.sas.clone() {
            if let Some(SaState::Established(_, sa)) = self.sas.get_mut(&other)
                && sa.end_collision(gone.ike())
            {
                gone.hand_over_requests(sa, &mut context!(self, now, env));
                sa.take_addresses_of(gone);
                peer.child_sas.move_to(gone.spi(), other, now + peer.config().timing.retry);
            }
        }
    }

    /// Sends DELETE for a redundant IKE SA that our rekey created. That IKE SA was never reported
    /// up.
    fn delete_redundant(&mut self, name: &PeerName, mut sa: Box<IkeSa>, now: Instant, env: &mut dyn Environment) {
        if mutation!("redundant_ike_sa_not_deleted") {
            return;
        }
        let spi = sa.spi();
        sa.delete_reported_down(&mut ChildSas::new(name.clone()), &mut context!(self, now, env));
        self.sas.insert(spi, SaState::Established(name.clone(), sa));
        self.schedule(spi);
    }

    /// Ends an IKE SA. Reports it and its CHILD_SAs down with this reason immediately, and sends
    /// DELETE.
    pub(super) fn end_sa(
        &mut self,
        name: &PeerName,
        spi: Spi,
        reason: DownReason,
        error: PeerError,
        now: Instant,
        env: &mut dyn Environment,
    ) {
        let (Some(peer), Some(SaState::Established(_, sa))) = (self.peers.get_mut(name), self.sas.get_mut(&spi)) else {
            return;
        };
        for id in peer.child_sas.ids_with_lingering(spi) {
            peer.child_sas.remove_at_once(id, reason, &mut self.out);
        }
        let (ike, lifecycle, authenticated) = (sa.ike(), sa.lifecycle(), sa.authenticated());
        let ours = sa.initiation().by_us();
        let mut cx = context!(self, now, env);
        cx.out.event(Event::IkeDown { peer: name.clone(), ike, reason });
        peer.report_failure(error, cx.out);
        sa.delete_reported_down(&mut ChildSas::new(name.clone()), &mut cx);
        peer.remove_sa(spi);
        if peer.sas.is_empty() {
            let proven = peer.ended(authenticated, now);
            peer.forget_old_failure(now);
            // Otherwise the next packet would begin another one at once.
            let may_acquire = ours && !proven && !peer.terminated;
            if peer.attempt.is_none() && (peer.should_retry() || may_acquire) {
                peer.schedule_retry(&mut cx);
            }
        }
        self.reinstate(name, ike, lifecycle, now, env);
        self.schedule(spi);
        self.schedule_peer(name);
    }

    /// Handles the end of an IKE SA.
    fn sa_closed(
        &mut self,
        name: &PeerName,
        mut sa: Box<IkeSa>,
        reason: CloseReason,
        now: Instant,
        env: &mut dyn Environment,
    ) {
        let (spi, ike, lifecycle, authenticated) = (sa.spi(), sa.ike(), sa.lifecycle(), sa.authenticated());
        let (waits_in, kept_until) = (sa.waits_in(), kept_until(&sa, now));
        let (linger, ours) = (sa.profile().config.timing.linger, sa.initiation().by_us());
        if lifecycle != Lifecycle::Deleting {
            self.reinstate(name, ike, lifecycle, now, env);
            self.return_children(name, &mut sa, now, env);
        }
        let last_response = sa.release(&mut context!(self, now, env));
        self.keep_last_response(spi, last_response, now);
        if lifecycle == Lifecycle::Deleting {
            return;
        }
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        peer.remove_sa(spi);
        let other = match lifecycle {
            Lifecycle::Superseded(by) => Some(by),
            _ => peer.sas.iter().rev().find_map(|spi| match self.sas.get(spi) {
                Some(SaState::Established(_, other)) => Some(other.ike()),
                _ => None,
            }),
        };
        let mut cx = context!(self, now, env);
        let down_reason = match (&reason, other) {
            (CloseReason::ByPeer | CloseReason::ByUs, Some(_)) => DownReason::Replaced,
            (_, Some(_)) if lifecycle != Lifecycle::Active => DownReason::Replaced,
            (CloseReason::ByPeer, None) => DownReason::DeletedByPeer,
            (CloseReason::ByUs, None) => DownReason::DeletedByUs,
            (CloseReason::Timeout, _) => DownReason::Timeout,
            (CloseReason::Failed(_), _) => DownReason::Failed,
        };
        //= RFC 7296 1.4.1 REQUIRED 8: CHILD_SAs go with the IKE SA
        for id in peer.child_sas.ids_of(spi) {
            peer.child_sas.retire(id, linger, down_reason, now, cx.out);
        }
        match other {
            Some(new) if down_reason == DownReason::Replaced => {
                cx.out.event(Event::IkeReplaced { peer: name.clone(), old: ike, new });
            }
            _ => cx.out.event(Event::IkeDown { peer: name.clone(), ike, reason: down_reason }),
        }
        let (timeout, by_peer) = (matches!(reason, CloseReason::Timeout), matches!(reason, CloseReason::ByPeer));
        let by_us = matches!(reason, CloseReason::ByUs);
        if let CloseReason::Failed(error) = reason {
            peer.report_failure(error, cx.out);
        }
        let initiates = peer.should_initiate(now);
        let until = if timeout { kept_until } else { now };
        let proven = !peer.sas.is_empty() || peer.ended(authenticated, until);
        // Otherwise the next packet would begin another one at once.
        let may_acquire = ours && !by_us && !peer.terminated;
        if peer.sas.is_empty() && peer.attempt.is_none() && (initiates || may_acquire) {
            let age = now.saturating_since(authenticated);
            let error = match (by_peer, timeout) {
                (true, _) => Some(failure::deleted_soon(age)),
                (_, true) => Some(failure::silent_soon(waits_in, age)),
                _ => None,
            };
            // A refused CHILD_SA says more.
            if let Some(error) = error.filter(|_| !proven && peer.last_error.is_none()) {
                peer.report_failure(error, cx.out);
            }
            if timeout && proven && initiates {
                // The peer responded until a moment ago, so try again without a delay.
                peer.reset_backoff();
                self.start_or_queue_attempt(name, now, env);
            } else if initiates || !proven {
                peer.forget_old_failure(now);
                peer.schedule_retry(&mut cx);
            }
        }
        self.schedule_peer(name);
    }
}

//! Keeps, rekeys, replaces and removes the established IKE SAs of a peer, as their steps say.

use super::state::{Endpoint, SaState, context};
use crate::config::PeerName;
use crate::environment::Environment;
use crate::event::{DownReason, Event, PeerError};
use crate::sa::{CloseReason, IkeSa, Lifecycle, SaStep};
use crate::time::Instant;
use crate::tunnel::{Spi, Tunnel};

impl Endpoint {
    /// Handles the result of a step of an established IKE SA.
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
                self.sas.insert(spi, SaState::Established(name, sa));
                self.schedule(spi);
            }
            SaStep::Reauthenticate => {
                self.sas.insert(spi, SaState::Established(name.clone(), sa));
                self.schedule(spi);
                if let Some(peer) = self.peers.get_mut(&name) {
                    peer.reauthenticate = true;
                    self.start_attempt(&name, now, env);
                }
            }
            SaStep::End(reason, error) => {
                self.sas.insert(spi, SaState::Established(name.clone(), sa));
                self.end_sa(&name, spi, reason, error, now, env);
            }
            SaStep::Rekeyed(new) => self.rekeyed(name, sa, new),
            SaStep::Closed(closed) => self.sa_closed(&name, sa, closed, now, env),
        }
    }

    fn rekeyed(&mut self, name: PeerName, old: Box<IkeSa>, new: Box<IkeSa>) {
        let (local, remote) = new.addresses();
        let (spi, ike, details) = (new.spi(), new.ike(), new.details().clone());
        let event = Event::IkeUp { peer: name.clone(), ike, local, remote, initiator: new.initiator(), details };
        self.out.event(event);
        if let Some(peer) = self.peers.get_mut(&name) {
            peer.sas.push(spi);
        }
        let replaced = old.spi();
        self.sas.insert(replaced, SaState::Established(name.clone(), old));
        self.sas.insert(spi, SaState::Established(name, new));
        self.schedule(replaced);
        self.schedule(spi);
    }

    /// Ends an IKE SA: reports it and its CHILD_SAs down at once, says why, and sends DELETE.
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
        for id in peer.tunnel.ids_with_lingering(spi) {
            peer.tunnel.remove_at_once(id, reason, &mut self.out);
        }
        let (ike, lifecycle) = (sa.ike(), sa.lifecycle());
        let mut cx = context!(self, now, env);
        cx.out.event(Event::IkeDown { peer: name.clone(), ike, reason });
        peer.report_failure(error, cx.out);
        sa.delete_reported_down(&mut Tunnel::new(name.clone()), &mut cx);
        peer.sas.retain(|known| *known != spi);
        if peer.sas.is_empty() {
            peer.reauthenticate = false;
            if peer.attempt.is_none() && peer.should_initiate() {
                peer.schedule_retry(&mut cx);
            }
        }
        self.reinstate(name, ike, lifecycle);
        self.schedule(spi);
        self.schedule_peer(name);
    }

    /// An IKE SA is gone.
    fn sa_closed(
        &mut self,
        name: &PeerName,
        sa: Box<IkeSa>,
        reason: CloseReason,
        now: Instant,
        env: &mut dyn Environment,
    ) {
        let (spi, ike, lifecycle) = (sa.spi(), sa.ike(), sa.lifecycle());
        let linger = sa.profile().config.timing.linger;
        let last_response = sa.release(&mut context!(self, now, env));
        self.keep_last_response(spi, last_response, now);
        if lifecycle == Lifecycle::Deleting {
            return;
        }
        self.reinstate(name, ike, lifecycle);
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        peer.sas.retain(|known| *known != spi);
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
        for id in peer.tunnel.ids_of(spi) {
            peer.tunnel.retire(id, linger, down_reason, now, cx.out);
        }
        match other {
            Some(new) if down_reason == DownReason::Replaced => {
                cx.out.event(Event::IkeReplaced { peer: name.clone(), old: ike, new });
            }
            _ => cx.out.event(Event::IkeDown { peer: name.clone(), ike, reason: down_reason }),
        }
        let timeout = matches!(reason, CloseReason::Timeout);
        if let CloseReason::Failed(error) = reason {
            peer.report_failure(error, cx.out);
        }
        if peer.sas.is_empty() && peer.attempt.is_none() && peer.should_initiate() {
            if timeout {
                // The peer answered until lately: do not wait.
                peer.reset_backoff();
                self.start_attempt(name, now, env);
            } else {
                peer.schedule_retry(&mut cx);
            }
        }
        self.schedule_peer(name);
    }
}

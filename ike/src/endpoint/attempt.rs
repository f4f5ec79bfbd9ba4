//! Beginning with a peer: all its addresses at once, the first that proves itself wins, the others
//! are dropped without a word. Who answers and is somebody else ends that address only.

use std::net::SocketAddr;
use std::sync::Arc;

use super::peer::{Attempt, Outcome};
use super::{Context, Endpoint, Environment, Slot, context};
use crate::config::PeerName;
use crate::event::PeerError;
use crate::sa::{AuthStep, Dialing, InitStep, Turn};
use crate::time::Instant;
use crate::tunnel::Spi;

impl Endpoint {
    /// Begins with a peer, unless that is under way.
    pub(super) fn begin_attempt(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) {
        let Some(peer) = self.peers.get_mut(name).filter(|peer| peer.attempt.is_none()) else {
            return;
        };
        let current = peer.sas.last().and_then(|spi| match self.slots.get(spi) {
            Some(Slot::Up(_, sa)) => Some(sa),
            _ => None,
        });
        if current.is_some_and(|sa| !sa.is_confirmed()) {
            // The initiator may not know yet that this IKE SA is up, and would take ours for one
            // begun at the same time.
            peer.wait = Some(now + peer.config().timing.retry);
            self.schedule_peer(name);
            return;
        }
        let remotes = peer.remotes(current.map(|sa| sa.addresses().1), env);
        if remotes.is_empty() {
            if let Some(error) = peer.all_are_ours() {
                let mut cx = context!(self, now, env);
                if peer.last_error.as_ref() != Some(&error) {
                    peer.report(error, cx.out);
                }
                // Addresses change.
                peer.begin_later(&mut cx);
                self.schedule_peer(name);
            }
            return;
        }
        peer.wait = None;
        peer.attempt = Some(Attempt::default());
        self.dial(name, remotes, now, env);
        self.attempt_goes_on(name, now, env);
    }

    /// Sends IKE_SA_INIT to these addresses too, as part of the attempt under way.
    fn dial(&mut self, name: &PeerName, remotes: Vec<SocketAddr>, now: Instant, env: &mut dyn Environment) {
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        let Some(attempt) = &mut peer.attempt else {
            return;
        };
        let mut begun = Vec::new();
        for remote in remotes {
            match Dialing::begin(Arc::clone(&peer.profile), remote, &mut context!(self, now, env)) {
                Ok(dialing) => {
                    attempt.dial(dialing.spi(), remote);
                    begun.push(dialing);
                }
                Err(error) => attempt.note(remote, error),
            }
        }
        for dialing in begun {
            let spi = dialing.spi();
            self.slots.insert(spi, Slot::Dialing(name.clone(), Box::new(dialing)));
            self.schedule(spi);
        }
    }

    /// The peer may be elsewhere now. Addresses that are new join an attempt under way; a wait
    /// after a failure goes on, for the peer itself (or whoever speaks for it) decides how often
    /// its addresses change, and which third party they are.
    pub(super) fn addresses_changed(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) {
        let Some(peer) = self.peers.get(name).filter(|peer| peer.wanted() && peer.sas.is_empty()) else {
            return;
        };
        match &peer.attempt {
            Some(attempt) => {
                let mut new = peer.remotes(None, env);
                new.retain(|remote| !attempt.includes(remote.ip()));
                new.truncate(attempt.room());
                self.dial(name, new, now, env);
            }
            None if peer.wait.is_none() => self.begin_attempt(name, now, env),
            None => {}
        }
    }

    /// Stops beginning with a peer, without a word.
    pub(super) fn cancel_attempt(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) {
        let Some(attempt) = self.peers.get_mut(name).and_then(|peer| peer.attempt.take()) else {
            return;
        };
        for spi in attempt.dialing.into_iter().chain(attempt.authenticating) {
            if let Some(Slot::Authenticating(_, authenticating)) = self.slots.remove(&spi) {
                authenticating.abandon(&mut context!(self, now, env));
            }
            self.schedule(spi);
        }
    }

    /// What came of a step in IKE_SA_INIT.
    pub(super) fn init_step(
        &mut self,
        name: PeerName,
        spi: Spi,
        step: InitStep,
        now: Instant,
        env: &mut dyn Environment,
    ) {
        match step {
            InitStep::Stay(mut dialing) => {
                if let Some(notice) = dialing.take_notice()
                    && let Some(peer) = self.peers.get_mut(&name)
                    && peer.attempt.as_mut().is_some_and(|attempt| attempt.answered(spi, &notice))
                    && peer.sas.is_empty()
                {
                    peer.report(notice, &mut self.out);
                }
                self.slots.insert(spi, Slot::Dialing(name, dialing));
                self.schedule(spi);
            }
            InitStep::Authenticate(authenticating) => {
                if let Some(attempt) = self.peers.get_mut(&name).and_then(|peer| peer.attempt.as_mut()) {
                    attempt.dialing.retain(|dialing| *dialing != spi);
                    attempt.authenticating = Some(spi);
                }
                self.slots.insert(spi, Slot::Authenticating(name, authenticating));
                self.schedule(spi);
            }
            InitStep::Failed(error) => self.address_failed(&name, spi, error, now, env),
        }
    }

    /// What came of a step in IKE_AUTH.
    pub(super) fn auth_step(
        &mut self,
        name: PeerName,
        spi: Spi,
        step: AuthStep,
        now: Instant,
        env: &mut dyn Environment,
    ) {
        match step {
            AuthStep::Stay(authenticating) => {
                self.slots.insert(spi, Slot::Authenticating(name, authenticating));
                self.schedule(spi);
            }
            AuthStep::Up { sa, child } => {
                if let Some(attempt) = self.peers.get_mut(&name).and_then(|peer| peer.attempt.as_mut()) {
                    attempt.authenticating = None;
                }
                self.cancel_attempt(&name, now, env);
                self.admit(&name, sa, child, false, now, env);
            }
            AuthStep::Failed { error, channel } => {
                if let Some(channel) = channel {
                    self.slots.insert(spi, Slot::Telling(channel));
                }
                self.address_failed(&name, spi, error, now, env);
            }
        }
    }

    /// Whose turn it is in IKE_AUTH.
    pub(super) fn turn(&self, name: &PeerName) -> Turn {
        let Some(peer) = self.peers.get(name) else {
            return Turn::Wait;
        };
        match &peer.attempt {
            Some(attempt) if attempt.authenticating.is_some() => Turn::Wait,
            _ => Turn::Go { initial_contact: peer.sas.is_empty() && !peer.config().keep_existing },
        }
    }

    /// One address of a peer has failed: the next one that has answered is authenticated, or the
    /// attempt is over.
    pub(super) fn address_failed(
        &mut self,
        name: &PeerName,
        spi: Spi,
        error: PeerError,
        now: Instant,
        env: &mut dyn Environment,
    ) {
        self.schedule(spi);
        if let Some(attempt) = self.peers.get_mut(name).and_then(|peer| peer.attempt.as_mut()) {
            attempt.fail(spi, error);
            self.attempt_goes_on(name, now, env);
        }
    }

    fn attempt_goes_on(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) {
        let turn = self.turn(name);
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        let Some(attempt) = &peer.attempt else {
            return;
        };
        if turn != Turn::Wait {
            let parked =
                |spi: &Spi| matches!(self.slots.get(spi), Some(Slot::Dialing(_, dialing)) if dialing.is_parked());
            if let Some(next) = attempt.dialing.iter().copied().find(|spi| parked(spi))
                && let Some(Slot::Dialing(name, dialing)) = self.slots.remove(&next)
            {
                let step = dialing.unpark(turn, &mut context!(self, now, env));
                self.init_step(name, next, step, now, env);
                return;
            }
        }
        if !attempt.is_over() {
            return;
        }
        let outcome = peer.attempt.take().and_then(Attempt::outcome);
        let mut cx = context!(self, now, env);
        let needed = peer.sas.is_empty();
        // While it is up, that another IKE SA (begun by both ends at once) did not come to be is no
        // news.
        if needed || peer.replace {
            match outcome {
                Some(Outcome { error, reported: false }) => peer.report(error, cx.out),
                Some(Outcome { error, reported: true }) => peer.last_error = Some(error),
                None => {}
            }
            if peer.wanted() || peer.replace {
                peer.begin_later(&mut cx);
            }
        }
        self.schedule_peer(name);
    }
}

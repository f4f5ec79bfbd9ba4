//! Initiation: IKE_SA_INIT goes to all addresses of a peer at the same time. The first address
//! whose host authenticates as the peer is used. The handshakes with the other addresses are
//! abandoned without a message. If another host responds at an address, only that address fails.

use std::net::SocketAddr;
use std::sync::Arc;

use super::attempt::{Attempt, AttemptFailure};
use super::state::{Endpoint, SaState, context, peer_span};
use crate::child_sas::Spi;
use crate::config::PeerName;
use crate::environment::Environment;
use crate::event::{PeerError, PeerErrorKind};
use crate::sa::{AuthStep, AuthTurn, InitStep, InitiatorInit};
use crate::time::Instant;

impl Endpoint {
    /// Starts an attempt, unless one is running.
    pub(super) fn start_attempt(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) {
        let Some(peer) = self.peers.get_mut(name).filter(|peer| peer.attempt.is_none()) else {
            return;
        };
        // Only the peer can ask for its address. If we began, it would get none, and each attempt
        // would fail.
        if peer.gives_addresses() {
            peer.reauthenticate = false;
            return;
        }
        let current = peer.sas.last().and_then(|spi| match self.sas.get(spi) {
            Some(SaState::Established(_, sa)) => Some(sa),
            _ => None,
        });
        if current.is_some_and(|sa| sa.may_await_response(now)) {
            peer.retry_at = Some(now + peer.config().timing.retry);
            self.schedule_peer(name);
            return;
        }
        //= RFC 4555 3.1 SHOULD 1: all addresses are tried
        let remotes = peer.remotes(current.map(|sa| sa.addresses().1), env);
        if remotes.is_empty() {
            if let Some(error) = peer.only_own_addresses() {
                let mut cx = context!(self, now, env);
                if peer.last_error.as_ref() != Some(&error) {
                    peer.report_failure(error, cx.out);
                }
                // Schedule another attempt, since the addresses may change.
                peer.schedule_retry(&mut cx);
                self.schedule_peer(name);
            }
            return;
        }
        self.begin_attempt(name, remotes, now, env);
    }

    /// Starts an attempt at these addresses. There is at least one.
    fn begin_attempt(&mut self, name: &PeerName, remotes: Vec<SocketAddr>, now: Instant, env: &mut dyn Environment) {
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        peer.retry_at = None;
        peer.went_first = false;
        peer.attempt = Some(Attempt::default());
        self.leave_queues(name);
        self.send_init_to(name, remotes, now, env);
        self.continue_attempt(name, now, env);
    }

    /// Sends IKE_SA_INIT to further addresses, as part of the running attempt.
    fn send_init_to(&mut self, name: &PeerName, remotes: Vec<SocketAddr>, now: Instant, env: &mut dyn Environment) {
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        let Some(attempt) = &mut peer.attempt else {
            return;
        };
        let mut begun = Vec::new();
        for remote in remotes {
            let (profile, addresses) = (Arc::clone(&peer.profile), peer.internal_addresses.clone());
            match InitiatorInit::begin(profile, remote, addresses, &mut context!(self, now, env)) {
                Ok(init) => {
                    attempt.add_candidate(init.spi(), remote);
                    begun.push(init);
                }
                Err(error) => attempt.add_failed_candidate(remote, error),
            }
        }
        for init in begun {
            let spi = init.spi();
            self.sas.insert(spi, SaState::InitiatorInit(name.clone(), init));
            self.schedule(spi);
        }
    }

    /// Handles a change of the peer's addresses. `before` holds the old ones. A running attempt
    /// tries the new addresses too. The delay after a failure is shortened, but not ended: the peer
    /// chooses its addresses and how often they change, and must not make us send more messages.
    pub(super) fn addresses_changed(
        &mut self,
        name: &PeerName,
        before: &[SocketAddr],
        now: Instant,
        env: &mut dyn Environment,
    ) {
        self.follow_to_new_address(name, before, now, env);
        let Some(peer) = self.peers.get_mut(name).filter(|peer| peer.should_initiate(now) && peer.sas.is_empty())
        else {
            return;
        };
        match &peer.attempt {
            Some(attempt) => {
                let mut new = peer.remotes(None, env);
                new.retain(|remote| !attempt.includes(*remote));
                new.truncate(attempt.remaining_candidates());
                self.send_init_to(name, new, now, env);
            }
            None if peer.retry_at.is_none() => self.start_or_queue_attempt(name, now, env),
            None => {
                peer.shorten_wait(now);
                self.schedule_peer(name);
            }
        }
    }

    /// Tries the new addresses of a peer immediately if the address to which we send is no longer
    /// among them, so that traffic need not wait for a timeout. A running attempt, for example at
    /// the address of a relay, tries them too. The present IKE SA stays until another one is up,
    /// since the old path may still work.
    fn follow_to_new_address(
        &mut self,
        name: &PeerName,
        before: &[SocketAddr],
        now: Instant,
        env: &mut dyn Environment,
    ) {
        let Some(peer) = self.peers.get_mut(name).filter(|peer| peer.should_initiate(now)) else {
            return;
        };
        let Some(SaState::Established(_, sa)) = peer.sas.last().and_then(|spi| self.sas.get(spi)) else {
            return;
        };
        let current = sa.addresses().1.ip();
        let names = |remotes: &[SocketAddr]| remotes.iter().any(|remote| remote.ip() == current);
        // An address that was never configured is that of a NAT.
        if sa.may_await_response(now) || !names(before) || names(&peer.config().remotes) {
            return;
        }
        let mut remotes = peer.remotes(None, env);
        if let Some(attempt) = &peer.attempt {
            remotes.retain(|remote| !attempt.includes(*remote));
            remotes.truncate(attempt.remaining_candidates());
        }
        if remotes.is_empty() || !peer.may_follow(now) {
            return;
        }
        if peer.attempt.is_some() {
            self.send_init_to(name, remotes, now, env);
        } else {
            self.begin_attempt(name, remotes, now, env);
        }
    }

    /// Starts an attempt at some of the peer's configured addresses, to find a better path to a
    /// peer that is up. The present IKE SA stays until another one is up, and no event reports a
    /// failure. Returns false if the peer is not up or has only just initiated the IKE SA, if an
    /// attempt is already running, or if none of `addresses` is a configured address of the peer
    /// that can be tried.
    pub fn try_addresses(
        &mut self,
        name: &PeerName,
        addresses: &[SocketAddr],
        now: Instant,
        env: &mut dyn Environment,
    ) -> bool {
        let _span = peer_span(name).entered();
        let Some(peer) = self.peers.get(name).filter(|peer| peer.attempt.is_none()) else {
            return false;
        };
        let newest = peer.sas.last().and_then(|spi| self.sas.get(spi));
        if !matches!(newest, Some(SaState::Established(_, sa)) if !sa.may_await_response(now)) {
            return false;
        }
        let mut remotes = peer.remotes(None, env);
        remotes.retain(|remote| addresses.contains(remote));
        let any = !remotes.is_empty();
        if any {
            self.begin_attempt(name, remotes, now, env);
        }
        any
    }

    /// Stops a running attempt without sending or reporting anything.
    pub(super) fn cancel_attempt(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) {
        let Some(attempt) = self.peers.get_mut(name).and_then(|peer| peer.attempt.take()) else {
            return;
        };
        self.free_place(name, now, env);
        for spi in attempt.initiating.into_iter().chain(attempt.authenticating) {
            if let Some(SaState::InitiatorAuth(_, auth)) = self.sas.remove(&spi) {
                auth.release(&mut context!(self, now, env));
            }
            self.schedule(spi);
        }
    }

    /// Carries out what an [`InitStep`] requires.
    pub(super) fn init_step(
        &mut self,
        name: PeerName,
        spi: Spi,
        step: InitStep,
        now: Instant,
        env: &mut dyn Environment,
    ) {
        match step {
            InitStep::Stay(mut init) => {
                if let Some(error) = init.take_unverified_error()
                    && let Some(peer) = self.peers.get_mut(&name)
                    && peer.attempt.as_mut().is_some_and(|attempt| attempt.add_unverified_error(spi, &error))
                    && peer.sas.is_empty()
                {
                    peer.report_failure(error, &mut self.out);
                }
                self.sas.insert(spi, SaState::InitiatorInit(name, init));
                self.schedule(spi);
            }
            InitStep::Authenticate(auth) => {
                if let Some(attempt) = self.peers.get_mut(&name).and_then(|peer| peer.attempt.as_mut()) {
                    attempt.initiating.retain(|init| *init != spi);
                    attempt.authenticating = Some(spi);
                }
                self.sas.insert(spi, SaState::InitiatorAuth(name, auth));
                self.schedule(spi);
            }
            InitStep::Failed(error) => self.candidate_failed(&name, spi, error, now, env),
        }
    }

    /// Carries out what an [`AuthStep`] requires.
    pub(super) fn auth_step(
        &mut self,
        name: PeerName,
        spi: Spi,
        step: AuthStep,
        now: Instant,
        env: &mut dyn Environment,
    ) {
        match step {
            AuthStep::Stay(auth) => {
                self.sas.insert(spi, SaState::InitiatorAuth(name, auth));
                self.schedule(spi);
            }
            AuthStep::Up { sa, child } => {
                if let Some(attempt) = self.peers.get_mut(&name).and_then(|peer| peer.attempt.as_mut()) {
                    attempt.authenticating = None;
                }
                self.cancel_attempt(&name, now, env);
                self.add_established(&name, sa, child, false, now, env);
            }
            AuthStep::Failed { error, channel } => {
                if let Some(channel) = channel {
                    self.sas.insert(spi, SaState::Rejecting(channel));
                }
                self.candidate_failed(&name, spi, error, now, env);
            }
        }
    }

    /// Decides whether an address of the peer may start IKE_AUTH now.
    pub(super) fn auth_turn(&self, name: &PeerName) -> AuthTurn {
        let Some(peer) = self.peers.get(name) else {
            return AuthTurn::Wait;
        };
        match &peer.attempt {
            Some(attempt) if attempt.authenticating.is_some() => AuthTurn::Wait,
            _ => AuthTurn::Proceed {
                initial_contact: mutation!("initial_contact_always")
                    //= RFC 7296 2.4 MUST NOT 1: INITIAL_CONTACT only if we are alone
                    || peer.sas.is_empty() && !peer.config().keep_existing,
            },
        }
    }

    /// Handles the failure of one address. The next address that has responded starts IKE_AUTH. If
    /// no other address has responded, the attempt may be over.
    pub(super) fn candidate_failed(
        &mut self,
        name: &PeerName,
        spi: Spi,
        error: PeerError,
        now: Instant,
        env: &mut dyn Environment,
    ) {
        self.schedule(spi);
        if let Some(attempt) = self.peers.get_mut(name).and_then(|peer| peer.attempt.as_mut()) {
            attempt.fail_candidate(spi, error);
            self.continue_attempt(name, now, env);
        }
    }

    fn continue_attempt(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) {
        let turn = self.auth_turn(name);
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        let Some(attempt) = &peer.attempt else {
            return;
        };
        if turn != AuthTurn::Wait {
            let deferred = |spi: &Spi| matches!(self.sas.get(spi), Some(SaState::InitiatorInit(_, init)) if init.has_deferred_response());
            if let Some(next) = attempt.initiating.iter().copied().find(|spi| deferred(spi))
                && let Some(SaState::InitiatorInit(name, init)) = self.sas.remove(&next)
            {
                let step = init.resume(turn, &mut context!(self, now, env));
                self.init_step(name, next, step, now, env);
                return;
            }
        }
        if !attempt.is_over() {
            return;
        }
        let outcome = peer.attempt.take().and_then(Attempt::into_failure);
        if outcome.is_some() {
            peer.attempt_failed();
        }
        let mut cx = context!(self, now, env);
        let needed = peer.sas.is_empty();
        // While the peer is up, the failure of a second IKE SA (after a simultaneous initiation) is
        // not reported.
        if needed || peer.reauthenticate {
            // Some peers answer a refused child with nothing but the notification.
            let answered = |failure: &AttemptFailure| failure.error.kind != PeerErrorKind::Timeout;
            if peer.reauthenticate && peer.only_for_child && outcome.as_ref().is_some_and(answered) {
                for spi in &peer.sas {
                    if let Some(SaState::Established(_, sa)) = self.sas.get_mut(spi)
                        && sa.first_child_refused_in_auth(now)
                    {
                        peer.reauthenticate = false;
                    }
                }
            }
            match outcome {
                Some(AttemptFailure { error, reported: false }) => peer.report_failure(error, cx.out),
                Some(AttemptFailure { error, reported: true }) => peer.last_error = Some(error),
                None => {}
            }
            if peer.should_retry() {
                peer.schedule_retry(&mut cx);
            }
        }
        self.free_place(name, now, env);
        self.schedule_peer(name);
    }
}

//! All IKE SAs of a node behind one door: datagrams are routed to them, peers are begun with,
//! limits are held.
//!
//! # What the owner does
//! After every call, and in this order: drain [`Endpoint::poll_event`] and carry every event out in
//! the kernel; then drain [`Endpoint::poll_transmit`] and send; then wait until
//! [`Endpoint::poll_timeout`] or for the next datagram. Events come before the transmits that
//! depend on them: a peer may use an SA as soon as it has our answer.
//!
//! # Two IKE SAs with one peer
//! Both ends may begin at once. Then the IKE SA begun by the smaller identity stays; otherwise the
//! newer replaces the older. Whoever began the survivor deletes the other one: he knows that the
//! survivor is up at both ends. So that both ends decide alike, an end whose IKE SA would lose
//! gives it up while it is still in IKE_SA_INIT, and nobody replaces an IKE SA of which he is the
//! responder before the initiator has spoken on it.

mod connect;
mod dispatch;
mod duplicate_sas;
mod initiation_guard;
mod peer;
mod snapshot;

pub use crate::tunnel::ChildUse;
pub use snapshot::{ChildStatus, IkeStatus, PeerStatus, Phase};

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use initiation_guard::InitiationGuard;
use peer::{ConfigChange, Peer};

use crate::auth::CredentialError;
use crate::config::{EndpointConfig, PeerConfig, PeerName};
use crate::environment::{Environment, Transmit};
use crate::event::{DownReason, Event};
use crate::output::{Context, Output};
use crate::sa::failure::auth;
use crate::sa::{Channel, HalfOpen, IkeSa, InitiatorAuth, InitiatorInit, LastResponse, Lifecycle, Profile, Task};
use crate::time::Instant;
use crate::timer::Deadlines;
use crate::tunnel::{Spi, Tunnel};

/// How long the last answer on an IKE SA that is gone is repeated.
const LAST_RESPONSE_LIFETIME: Duration = Duration::from_secs(10);

/// The IKEv2 end of a node.
#[derive(Debug)]
pub struct Endpoint {
    config: EndpointConfig,
    peers: BTreeMap<PeerName, Peer>,
    sas: HashMap<Spi, SaState>,
    initiation_guard: InitiationGuard,
    deadlines: Deadlines<DeadlineOwner>,
    out: Output,
}

/// Whose deadline.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum DeadlineOwner {
    Sa(Spi),
    Peer(PeerName),
}

/// An IKE SA in whatever state, found by our SPI.
#[derive(Debug)]
enum SaState {
    InitiatorInit(PeerName, Box<InitiatorInit>),
    InitiatorAuth(PeerName, Box<InitiatorAuth>),
    HalfOpen(Box<HalfOpen>, Instant),
    Established(PeerName, Box<IkeSa>),
    /// The peer is being told that it was not believed.
    Rejecting(Box<Channel>),
    /// Gone; the last answer is repeated if it was lost.
    Closed(LastResponse, Instant),
}

/// Lends the parts of an endpoint that a step of an IKE SA needs.
macro_rules! context {
    ($endpoint:expr, $now:expr, $env:expr) => {
        Context { now: $now, env: &mut *$env, out: &mut $endpoint.out, config: &$endpoint.config }
    };
}
use context;

impl Endpoint {
    /// An endpoint without peers.
    pub fn new(config: EndpointConfig) -> Self {
        Self {
            config,
            peers: BTreeMap::new(),
            sas: HashMap::new(),
            initiation_guard: InitiationGuard::default(),
            deadlines: Deadlines::new(),
            out: Output::default(),
        }
    }

    /// Adds a peer, or updates the one of this name in place; the same configuration again changes
    /// nothing. Other `remotes` alone shorten no wait after a failure. A running tunnel is left
    /// alone, except where identities changed (it is ended and begun anew), the PSK or selectors
    /// changed (where we begin, a new IKE SA replaces it without a gap), or the peer's certificate
    /// is revoked by it (it is ended).
    ///
    /// # Errors
    /// If the credentials cannot be used; the configuration before stays.
    pub fn set_peer(
        &mut self,
        config: PeerConfig,
        now: Instant,
        env: &mut dyn Environment,
    ) -> Result<(), CredentialError> {
        let name = config.name.clone();
        let Some(peer) = self.peers.get(&name) else {
            let peer = Peer::new(Arc::new(Profile::new(config)?));
            self.initiation_guard.add_peer(&peer.profile);
            let begin = peer.should_initiate();
            self.peers.insert(name.clone(), peer);
            if begin {
                self.start_attempt(&name, now, env);
            }
            return Ok(());
        };
        let change = ConfigChange::between(peer.config(), &config);
        if change == ConfigChange::None {
            return Ok(());
        }
        let profile = Arc::new(Profile::new(config)?);
        if change == ConfigChange::Restart {
            self.delete_peer(&name, now, env);
            return self.set_peer(profile.config.clone(), now, env);
        }
        self.set_profile(&name, profile, now);
        self.delete_revoked_sas(&name, now, env);
        let Some(peer) = self.peers.get_mut(&name) else {
            return Ok(());
        };
        peer.terminated = false;
        if change == ConfigChange::Addresses {
            self.addresses_changed(&name, now, env);
            return Ok(());
        }
        peer.reset_backoff();
        peer.reauthenticate = change == ConfigChange::Reauthenticate && peer.should_initiate() && !peer.sas.is_empty();
        if peer.should_initiate() && (peer.reauthenticate || peer.sas.is_empty()) {
            self.cancel_attempt(&name, now, env);
            self.start_attempt(&name, now, env);
        }
        Ok(())
    }

    fn set_profile(&mut self, name: &PeerName, profile: Arc<Profile>, now: Instant) {
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        self.initiation_guard.add_peer(&profile);
        let old = std::mem::replace(&mut peer.profile, Arc::clone(&profile));
        self.initiation_guard.remove_peer(&old);
        for spi in peer.sas.clone() {
            if let Some(SaState::Established(_, sa)) = self.sas.get_mut(&spi) {
                sa.set_profile(Arc::clone(&profile), now);
            }
            self.schedule(spi);
        }
    }

    /// Forgets a peer: its IKE SAs are deleted (the peer is told), its SAs reported down.
    pub fn remove_peer(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) {
        self.delete_peer(name, now, env);
    }

    fn delete_peer(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) {
        self.cancel_attempt(name, now, env);
        self.delete_all_sas(name, now, env);
        if let Some(peer) = self.peers.remove(name) {
            self.initiation_guard.remove_peer(&peer.profile);
        }
        self.deadlines.set(DeadlineOwner::Peer(name.clone()), None);
    }

    /// Takes a datagram as it came from a socket: `local` is the address it was sent to
    /// (IP_PKTINFO) with the socket's port, the payload still carries the non-ESP marker where the
    /// socket is that of `nat_port`.
    pub fn handle(
        &mut self,
        datagram: &[u8],
        local: SocketAddr,
        remote: SocketAddr,
        now: Instant,
        env: &mut dyn Environment,
    ) {
        let message = if local.port() == self.config.nat_port {
            // RFC 3948 2.2, 2.3: ESP, which the kernel takes, and keepalives have no marker.
            datagram.strip_prefix(&[0; 4])
        } else {
            Some(datagram)
        };
        if let Some(message) = message {
            self.receive(message, local, remote, now, env);
        }
    }

    /// Does what is due. To be called at [`Self::poll_timeout`]; earlier or later does no harm.
    pub fn handle_timeout(&mut self, now: Instant, env: &mut dyn Environment) {
        // What becomes due by this waits for the next call: time passes between calls only.
        let due: Vec<DeadlineOwner> = std::iter::from_fn(|| self.deadlines.due(now)).collect();
        for owner in due {
            match owner {
                DeadlineOwner::Sa(spi) => self.handle_sa_timeout(spi, now, env),
                DeadlineOwner::Peer(name) => self.handle_peer_timeout(&name, now, env),
            }
        }
    }

    fn handle_peer_timeout(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) {
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        peer.tunnel.handle_timeout(now, &mut self.out);
        if peer.retry_at.is_some_and(|at| at <= now) {
            peer.retry_at = None;
            if peer.reauthenticate || (peer.sas.is_empty() && peer.should_initiate()) {
                self.start_attempt(name, now, env);
            }
        }
        self.schedule_peer(name);
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.out.transmits.pop_front()
    }

    /// The next event, to be carried out before transmits are sent.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.out.events.pop_front()
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.next()
    }

    /// Begins with a peer now, whether or not it is configured to be begun with; ends a wait after
    /// a failure. False: no such peer.
    pub fn connect(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) -> bool {
        let Some(peer) = self.peers.get_mut(name) else {
            return false;
        };
        peer.terminated = false;
        peer.reset_backoff();
        if peer.sas.is_empty() {
            self.start_attempt(name, now, env);
        }
        self.schedule_peer(name);
        true
    }

    /// Rekeys the peer's CHILD_SA now. False: there is none.
    pub fn rekey_child(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) -> bool {
        let Some(peer) = self.peers.get_mut(name) else {
            return false;
        };
        let Some((id, child)) = peer.tunnel.outbound().and_then(|id| Some((id, peer.tunnel.live_mut(id)?))) else {
            return false;
        };
        // Set by add() and taken when a replacement is under way: one is enough.
        if child.rekey.take().is_some() {
            let owner = child.owner;
            self.start_task(owner, Task::RekeyChild(id), now, env);
        }
        true
    }

    /// Replaces the peer's IKE SA by a new one now, without a gap. False: there is none.
    pub fn rekey_ike(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) -> bool {
        let Some(peer) = self.peers.get_mut(name).filter(|peer| !peer.sas.is_empty()) else {
            return false;
        };
        peer.reauthenticate = true;
        self.start_attempt(name, now, env);
        true
    }

    /// Deletes the peer's IKE SAs and does not begin again by itself until [`Self::connect`] or a
    /// changed configuration. False: no such peer.
    pub fn terminate(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) -> bool {
        let Some(peer) = self.peers.get_mut(name) else {
            return false;
        };
        peer.terminated = true;
        peer.reauthenticate = false;
        peer.retry_at = None;
        self.cancel_attempt(name, now, env);
        self.delete_all_sas(name, now, env);
        self.schedule_peer(name);
        true
    }

    /// Checks now whether the peer is alive (RFC 7296 2.4). False: there is no IKE SA.
    pub fn check_liveness(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) -> bool {
        let spi = self.peers.get(name).and_then(|peer| peer.sas.last().copied());
        if let Some(spi) = spi {
            self.start_task(spi, Task::Liveness, now, env);
        }
        spi.is_some()
    }

    /// Our own address `old` is gone; `new` is to be used in its stead. Where the peer follows us
    /// (it believes in a NAT before us), SAs move at once by one authentic message; elsewhere a new
    /// IKE SA replaces the old one at once. Nothing waits for timeouts.
    pub fn local_address_changed(&mut self, old: IpAddr, new: IpAddr, now: Instant, env: &mut dyn Environment) {
        for name in self.peers.keys().cloned().collect::<Vec<_>>() {
            let Some(peer) = self.peers.get(&name) else {
                continue;
            };
            if peer.config().local == Some(old)
                && let Ok(profile) = Profile::new(PeerConfig { local: Some(new), ..peer.config().clone() })
            {
                self.set_profile(&name, Arc::new(profile), now);
            }
            self.move_local_address(&name, old, new, now, env);
        }
    }

    fn move_local_address(
        &mut self,
        name: &PeerName,
        old: IpAddr,
        new: IpAddr,
        now: Instant,
        env: &mut dyn Environment,
    ) {
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        let mut replace = false;
        for spi in peer.sas.clone() {
            if let Some(SaState::Established(_, sa)) = self.sas.get_mut(&spi)
                && sa.addresses().0.ip() == old
            {
                let mut cx = context!(self, now, env);
                replace |=
                    !sa.change_local_address(new, &mut peer.tunnel, &mut cx) && sa.lifecycle() == Lifecycle::Active;
            }
        }
        peer.reauthenticate |= replace;
        let begin = replace || (peer.sas.is_empty() && (peer.should_initiate() || peer.attempt.is_some()));
        for spi in peer.sas.clone() {
            self.schedule(spi);
        }
        if begin {
            if let Some(peer) = self.peers.get_mut(name) {
                peer.reset_backoff();
            }
            self.cancel_attempt(name, now, env);
            self.start_attempt(name, now, env);
        }
    }

    /// Everything there is.
    pub fn snapshot(&self) -> Vec<PeerStatus> {
        self.peers.values().map(|peer| self.status(peer)).collect()
    }

    /// The settings.
    pub fn config(&self) -> &EndpointConfig {
        &self.config
    }

    /// Ends all IKE SAs of a peer: reported down at once, while the peer is still being told.
    fn delete_all_sas(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) {
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        peer.tunnel.clear(DownReason::DeletedByUs, &mut self.out);
        for spi in std::mem::take(&mut peer.sas) {
            if let Some(SaState::Established(_, sa)) = self.sas.get_mut(&spi) {
                let event = Event::IkeDown { peer: name.clone(), ike: sa.ike(), reason: DownReason::DeletedByUs };
                let mut cx = context!(self, now, env);
                cx.out.event(event);
                sa.delete_reported_down(&mut Tunnel::new(name.clone()), &mut cx);
            }
            self.schedule(spi);
        }
    }

    /// Ends the IKE SAs in which a peer showed a certificate that is revoked by now, and says so.
    /// Others with that peer stay.
    fn delete_revoked_sas(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) {
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        let mut ended = Vec::new();
        for spi in peer.sas.clone() {
            let Some(SaState::Established(_, sa)) = self.sas.get_mut(&spi) else {
                continue;
            };
            let Some(shown) = &sa.details().certificate else {
                continue;
            };
            let Err(error) = peer.profile.auth.check_not_revoked(shown, &peer.profile.config.remote_id) else {
                continue;
            };
            for id in peer.tunnel.ids_with_lingering(spi) {
                peer.tunnel.remove_at_once(id, DownReason::DeletedByUs, &mut self.out);
            }
            let ike = sa.ike();
            self.out.event(Event::IkeDown { peer: name.clone(), ike, reason: DownReason::DeletedByUs });
            peer.report_failure(auth(&error), &mut self.out);
            sa.delete_reported_down(&mut Tunnel::new(name.clone()), &mut context!(self, now, env));
            ended.push((spi, ike));
        }
        if ended.is_empty() {
            return;
        }
        peer.sas.retain(|spi| !ended.iter().any(|(ended, _)| ended == spi));
        if peer.sas.is_empty() && peer.attempt.is_none() && peer.should_initiate() {
            peer.schedule_retry(&mut context!(self, now, env));
        }
        for (spi, ike) in ended {
            self.reinstate(name, ike);
            self.schedule(spi);
        }
        self.schedule_peer(name);
    }

    fn start_task(&mut self, spi: Spi, task: Task, now: Instant, env: &mut dyn Environment) {
        if let Some(SaState::Established(name, sa)) = self.sas.get_mut(&spi)
            && let Some(peer) = self.peers.get_mut(name)
        {
            let mut cx = context!(self, now, env);
            sa.begin(task, &mut peer.tunnel, &mut cx);
        }
        self.schedule(spi);
    }

    /// Notes when an IKE SA wants to be looked at, and its peer.
    fn schedule(&mut self, spi: Spi) {
        let mut owner = None;
        let at = match self.sas.get(&spi) {
            None => None,
            Some(SaState::InitiatorInit(_, init)) => init.next_deadline(),
            Some(SaState::InitiatorAuth(_, auth)) => auth.next_deadline(),
            Some(SaState::HalfOpen(_, until) | SaState::Closed(_, until)) => Some(*until),
            Some(SaState::Rejecting(channel)) => channel.retransmit_at(),
            Some(SaState::Established(name, sa)) => {
                owner = Some(name.clone());
                sa.next_deadline(self.peers.get(name).map(|peer| &peer.tunnel))
            }
        };
        self.deadlines.set(DeadlineOwner::Sa(spi), at);
        if let Some(name) = owner {
            self.schedule_peer(&name);
        }
    }

    fn schedule_peer(&mut self, name: &PeerName) {
        let at = self.peers.get(name).and_then(Peer::next_deadline);
        self.deadlines.set(DeadlineOwner::Peer(name.clone()), at);
    }

    fn keep_last_response(&mut self, spi: Spi, last_response: Option<LastResponse>, now: Instant) {
        if let Some(last_response) = last_response {
            self.sas.insert(spi, SaState::Closed(last_response, now + LAST_RESPONSE_LIFETIME));
        }
        self.schedule(spi);
    }
}

//! The state of an endpoint: peers, IKE SAs by our SPI, deadlines, and output.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::address_leases::AddressLeases;
use super::attempt_queue::AttemptQueue;
use super::init_request_guard::InitRequestGuard;
use super::peer::Peer;
use super::peer_index::PeerIndex;
use super::waiting_attempts::AttemptKind;
use crate::child_sas::Spi;
use crate::config::{EndpointConfig, PeerName};
use crate::deadlines::Deadlines;
use crate::environment::Transmit;
use crate::event::Event;
use crate::jitter::Jitter;
use crate::output::{Output, SentRequests};
use crate::own_keys::OwnKeyMap;
use crate::sa::{Channel, HalfOpen, IkeSa, InitiatorAuth, InitiatorInit, LastResponse, Lifecycle};
use crate::time::Instant;

/// Time for which the last response of a deleted IKE SA is stored, so that it can be sent again if
/// it was lost.
const LAST_RESPONSE_LIFETIME: Duration = Duration::from_secs(10);

/// The IKEv2 endpoint of a node; see the [module](crate::endpoint).
#[derive(Debug)]
pub struct Endpoint {
    pub(super) config: EndpointConfig,
    pub(super) peers: BTreeMap<PeerName, Peer>,
    pub(super) peer_index: PeerIndex,
    pub(super) sas: OwnKeyMap<Spi, SaState>,
    pub(super) init_request_guard: InitRequestGuard,
    /// Attempts that only packets need.
    pub(super) acquire_queue: AttemptQueue,
    /// All other attempts that start without a command of the owner.
    pub(super) attempt_queue: AttemptQueue,
    pub(super) address_leases: AddressLeases,
    /// The internal addresses of an earlier run by peer, until the peer is configured.
    pub(super) former_addresses: BTreeMap<PeerName, Vec<IpAddr>>,
    pub(super) deadlines: Deadlines<DeadlineOwner>,
    pub(super) out: Output,
    pub(super) jitter: Jitter,
}

/// The owner of a deadline.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum DeadlineOwner {
    Sa(Spi),
    Peer(PeerName),
    /// The attempts that wait because of a limit.
    AttemptQueue(AttemptKind),
}

/// The state of one IKE SA.
#[derive(Debug)]
pub(super) enum SaState {
    InitiatorInit(PeerName, Box<InitiatorInit>),
    InitiatorAuth(PeerName, Box<InitiatorAuth>),
    HalfOpen(Box<HalfOpen>, Instant),
    Established(PeerName, Box<IkeSa>),
    /// The peer's authentication failed, and our error message is being sent.
    Rejecting(Box<Channel>),
    /// Deleted. Until this time, the last response is sent again if it was lost.
    Closed(Box<LastResponse>, Instant),
}

impl SaState {
    /// Returns the peer, or `None` if it has not sent its identity yet.
    pub(super) fn peer(&self) -> Option<&PeerName> {
        match self {
            Self::InitiatorInit(name, _) | Self::InitiatorAuth(name, _) | Self::Established(name, _) => Some(name),
            Self::HalfOpen(..) | Self::Rejecting(_) | Self::Closed(..) => None,
        }
    }
}

/// Borrows the parts of an endpoint that the functions of an IKE SA need.
macro_rules! context {
    ($endpoint:expr, $now:expr, $env:expr) => {
        $crate::output::Context {
            now: $now,
            env: &mut *$env,
            out: &mut $endpoint.out,
            jitter: &mut $endpoint.jitter,
            config: &$endpoint.config,
        }
    };
}
pub(super) use context;

impl Endpoint {
    /// Creates an endpoint without peers.
    pub fn new(config: EndpointConfig) -> Self {
        Self {
            config,
            peers: BTreeMap::new(),
            peer_index: PeerIndex::default(),
            sas: OwnKeyMap::default(),
            init_request_guard: InitRequestGuard::default(),
            acquire_queue: AttemptQueue::default(),
            attempt_queue: AttemptQueue::default(),
            address_leases: AddressLeases::default(),
            former_addresses: BTreeMap::new(),
            deadlines: Deadlines::new(),
            out: Output::default(),
            jitter: Jitter::default(),
        }
    }

    /// Returns the next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.out.transmits.pop_front()
    }

    /// Returns the next event. Carry it out before you send datagrams.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.out.events.pop_front()
    }

    /// Returns the time at which to call [`Self::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.next()
    }

    /// Returns how many requests of some kinds were sent so far.
    pub fn sent_requests(&self) -> SentRequests {
        self.out.sent
    }

    /// Returns the ports and limits that apply to all peers.
    pub fn config(&self) -> &EndpointConfig {
        &self.config
    }

    /// Sets the deadlines of an IKE SA and of its peer, and updates or removes its entry in the
    /// table of half-open IKE SAs. Call this after every change of [`Self::sas`].
    pub(super) fn schedule(&mut self, spi: Spi) {
        let mut owner = None;
        self.keep_outcome(spi);
        let state = self.sas.get(&spi);
        let fragments = match state {
            Some(SaState::HalfOpen(half_open, _)) => Some(half_open.fragment_octets()),
            _ => None,
        };
        self.init_request_guard.half_open.update(spi, fragments);
        let at = match state {
            None => None,
            Some(SaState::InitiatorInit(_, init)) => init.next_deadline(),
            Some(SaState::InitiatorAuth(_, auth)) => auth.next_deadline(),
            Some(SaState::HalfOpen(_, until) | SaState::Closed(_, until)) => Some(*until),
            Some(SaState::Rejecting(channel)) => channel.retransmit_at(),
            Some(SaState::Established(name, sa)) => {
                owner = Some(name.clone());
                sa.next_deadline(self.peers.get(name).map(|peer| &peer.child_sas))
            }
        };
        self.deadlines.set(DeadlineOwner::Sa(spi), at);
        if let Some(name) = owner {
            self.schedule_peer(&name);
        }
    }

    /// Stores the failure that an IKE SA in use has reported as the peer's latest failure. A
    /// success clears the stored failure. What fails or succeeds on an IKE SA that another one has
    /// replaced says nothing about the one in use.
    fn keep_outcome(&mut self, spi: Spi) {
        if let Some(SaState::Established(name, sa)) = self.sas.get_mut(&spi)
            && sa.lifecycle() == Lifecycle::Active
            && let Some(outcome) = sa.take_outcome()
            && let Some(peer) = self.peers.get_mut(name).filter(|peer| peer.sas.contains(&spi))
        {
            peer.last_error = outcome;
        }
    }

    pub(super) fn schedule_peer(&mut self, name: &PeerName) {
        let at = self.peers.get(name).and_then(Peer::next_deadline);
        self.deadlines.set(DeadlineOwner::Peer(name.clone()), at);
    }

    pub(super) fn keep_last_response(&mut self, spi: Spi, last_response: Option<LastResponse>, now: Instant) {
        if let Some(last_response) = last_response {
            self.sas.insert(spi, SaState::Closed(Box::new(last_response), now + LAST_RESPONSE_LIFETIME));
        }
        self.schedule(spi);
    }
}

/// Returns the tracing span for work on one peer, so that logs can be filtered by peer.
pub(super) fn peer_span(name: &PeerName) -> tracing::Span {
    tracing::info_span!("peer", peer = %name)
}

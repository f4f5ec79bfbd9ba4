//! Routes datagrams and deadlines to IKE SAs.

use std::net::SocketAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::init_request_guard::{HALF_OPEN_LIFETIME, InitDecision};
use super::peer::Peer;
use super::source::Source;
use super::state::{DeadlineOwner, Endpoint, SaState, context, peer_span};
use crate::auth::same_identity;
use crate::child_sas::{ChildSas, Spi};
use crate::config::{Identity, PeerName};
use crate::environment::Environment;
use crate::event::{Event, PeerError};
use crate::sa::failure::{IKE_SA_INIT, invalid};
use crate::sa::{AuthOutcome, AuthTurn, HalfOpen, IkeSa, InitOutcome, InitPolicy, Peers, Profile, WantedAddresses};
use crate::time::Instant;
use crate::wire::{ExchangeType, Header, InvalidMessage, Message, Payload, Payloads};

/// Maximum size of an IKE_SA_INIT request, bytes. Larger requests are dropped, since a request is
/// not authenticated and is stored until IKE_AUTH. RFC 7296 2 requires 3000 octets to be accepted.
/// A key exchange share of ML-KEM-1024 also fits.
//= RFC 7296 2 MUST 1: messages of 1280 octets
//= RFC 7296 2 SHOULD 2: messages of 3000 octets
const MAX_INIT_REQUEST: usize = 4096;

/// Maximum number of peers with the same address for which one datagram shortens a delay. Many
/// peers may be behind one NAT.
const MAX_HEARD_PEERS: usize = 8;

impl Endpoint {
    /// Handles a datagram from a socket. `local` is its destination address (IP_PKTINFO) with the
    /// socket's port. On the socket of `nat_port`, `datagram` still begins with the non-ESP marker.
    //= RFC 7296 2.11 MUST 1: requests from any port
    //= RFC 7296 2.23 MUST 2: messages from any port
    pub fn handle(
        &mut self,
        datagram: &[u8],
        local: SocketAddr,
        remote: SocketAddr,
        now: Instant,
        env: &mut dyn Environment,
    ) {
        let message = if local.port() == self.config.nat_port {
            // RFC 3948 2.2, 2.3: keepalives and ESP, which the kernel handles, have no marker.
            //= RFC 7296 2 MUST 3: four octets of zero on port 4500
            datagram.strip_prefix(&[0; 4])
        } else {
            Some(datagram)
        };
        if let Some(message) = message {
            self.receive(message, local, remote, now, env);
        }
    }

    /// Handles the deadlines that have passed. Call this at the time that [`Self::poll_timeout`]
    /// returns. An earlier or later call is harmless.
    pub fn handle_timeout(&mut self, now: Instant, env: &mut dyn Environment) {
        // Collect the due deadlines first. A deadline that becomes due during this work waits for
        // the next call.
        let due: Vec<DeadlineOwner> = std::iter::from_fn(|| self.deadlines.due(now)).collect();
        for owner in due {
            match owner {
                DeadlineOwner::Sa(spi) => self.handle_sa_timeout(spi, now, env),
                DeadlineOwner::Peer(name) => self.handle_peer_timeout(&name, now, env),
                DeadlineOwner::AttemptQueue(kind) => self.start_queued_attempts(kind, now, env),
            }
        }
    }

    fn handle_peer_timeout(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) {
        let _span = peer_span(name).entered();
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        peer.child_sas.handle_timeout(now, &mut self.out);
        if peer.retry_at.is_some_and(|at| at <= now) {
            peer.retry_at = None;
            if peer.needs_attempt(now) {
                self.start_or_queue_attempt(name, now, env);
            }
        }
        self.schedule_peer(name);
    }

    /// Handles an IKE message (without the non-ESP marker).
    pub(super) fn receive(
        &mut self,
        datagram: &[u8],
        local: SocketAddr,
        remote: SocketAddr,
        now: Instant,
        env: &mut dyn Environment,
    ) {
        let header = match Header::decode(datagram) {
            Ok(header) => header,
            Err(error) => return self.reject_version(error, datagram, local, remote, now, env),
        };
        self.out.capture_init(false, local, remote, datagram);
        if header.exchange == ExchangeType::IkeSaInit && !header.response {
            if header.from_initiator && header.responder_spi == 0 && header.message_id == 0 {
                self.receive_init(&header, datagram, local, remote, now, env);
            }
            return;
        }
        // The Initiator flag shows which of the two SPIs is ours.
        //= RFC 7296 2.6 REQUIRED 2: the SPI alone finds the IKE SA
        let spi = if header.from_initiator { header.responder_spi } else { header.initiator_spi };
        //= RFC 7296 2.21.4 MUST NOT 1: no answer to a response
        let Some(state) = self.sas.remove(&spi) else {
            //= RFC 7296 1.5 MUST NOT 1: nothing answers outside of an IKE SA
            // RFC 7296 2.21.4 allows INVALID_IKE_SPI in clear. A peer must not act on this
            // notification, so we do not send it.
            tracing::trace!(%remote, spi = format_args!("{spi:016x}"), "message for no IKE SA of ours");
            self.address_heard(remote, now);
            return;
        };
        let _span = state.peer().map(|name| peer_span(name).entered());
        match state {
            SaState::InitiatorInit(name, init) => {
                let turn = self.auth_turn(&name);
                let step = init.handle(datagram, local, remote, turn, &mut context!(self, now, env));
                self.init_step(name, spi, step, now, env);
            }
            SaState::InitiatorAuth(name, auth) => {
                let step = auth.handle(&header, datagram, local, remote, &mut context!(self, now, env));
                self.auth_step(name, spi, step, now, env);
            }
            SaState::HalfOpen(half_open, until) => {
                self.receive_auth(half_open, until, &header, datagram, (local, remote), now, env);
            }
            SaState::Established(name, sa) => {
                self.receive_established(name, sa, &header, datagram, (local, remote), now, env);
                self.receive_held(spi, now, env);
            }
            SaState::Rejecting(mut channel) => {
                channel.receive(&header, datagram, local, remote, &mut context!(self, now, env));
                if channel.busy() {
                    self.sas.insert(spi, SaState::Rejecting(channel));
                }
                self.schedule(spi);
            }
            SaState::Closed(mut last_response, until) => {
                last_response.repeat(datagram, local, remote, &mut context!(self, now, env));
                self.sas.insert(spi, SaState::Closed(last_response, until));
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn receive_established(
        &mut self,
        name: PeerName,
        mut sa: Box<IkeSa>,
        header: &Header,
        datagram: &[u8],
        (local, remote): (SocketAddr, SocketAddr),
        now: Instant,
        env: &mut dyn Environment,
    ) {
        let mut cx = context!(self, now, env);
        let (spi, mut has_more) = (sa.spi(), false);
        let step = match self.peers.get_mut(&name) {
            Some(peer) if peer.sas.contains(&spi) => {
                let before = peer.child_sas.children_of(spi).count();
                let step = sa.handle(header, datagram, local, remote, &mut peer.child_sas, &mut cx);
                has_more = peer.child_sas.children_of(spi).count() > before;
                if has_more {
                    peer.child_negotiated(sa.authenticated(), now);
                }
                step
            }
            // This IKE SA was reported down, so its messages no longer concern the peer's
            // CHILD_SAs.
            _ => sa.handle(header, datagram, local, remote, &mut ChildSas::new(name.clone()), &mut cx),
        };
        self.sa_step(name.clone(), sa, step, now, env);
        if has_more {
            self.supersede_earlier(&name, spi, now, env);
        }
    }

    /// Handles the requests that arrived before the one that was answered now (RFC 7296 2.3). Their
    /// number has a limit.
    fn receive_held(&mut self, spi: Spi, now: Instant, env: &mut dyn Environment) {
        while let Some(SaState::Established(_, sa)) = self.sas.get_mut(&spi)
            && let Some(held) = sa.take_held()
            && let Ok(header) = Header::decode(&held.datagram)
            && let Some(SaState::Established(name, sa)) = self.sas.remove(&spi)
        {
            self.receive_established(name, sa, &header, &held.datagram, (held.local, held.remote), now, env);
        }
    }

    /// Handles an unauthenticated datagram from this address. If the next attempt with a peer at
    /// this address is delayed after a failure, the delay is shortened, since the peer may be
    /// reachable again.
    fn address_heard(&mut self, remote: SocketAddr, now: Instant) {
        for name in self.peers_at(remote) {
            if let Some(peer) = self.peers.get_mut(&name) {
                peer.shorten_wait(now);
            }
            self.hasten_heard_peer(&name);
            self.schedule_peer(&name);
        }
    }

    /// Handles an IKE_SA_INIT request from this address that we have answered.
    fn request_heard(&mut self, remote: SocketAddr, now: Instant) {
        self.address_heard(remote, now);
        for name in self.peers_at(remote) {
            self.let_peer_go_first(&name, now);
        }
    }

    fn peers_at(&self, remote: SocketAddr) -> Vec<PeerName> {
        self.peer_index.at_address(remote.ip()).take(MAX_HEARD_PEERS).cloned().collect()
    }

    /// Handles a request with another major version. A request with a later version is answered
    /// with our version (RFC 7296 2.5). An IKEv1 request is not answered but reported, so that the
    /// operator can see why that peer does not connect.
    fn reject_version(
        &mut self,
        error: InvalidMessage,
        datagram: &[u8],
        local: SocketAddr,
        remote: SocketAddr,
        now: Instant,
        env: &mut dyn Environment,
    ) {
        tracing::trace!(%remote, %error, "datagram dropped");
        let InvalidMessage::MajorVersion(version) = error else {
            return;
        };
        let Some(header) = Header::peek(datagram).filter(|header| !header.response) else {
            return;
        };
        let begins = header.initiator_spi != 0 && header.responder_spi == 0;
        //= RFC 7296 2.5 SHOULD 3: INVALID_MAJOR_VERSION
        if version > 2 || (version == 1 && begins) {
            self.reject_unauthenticated(&header, error, version > 2, local, remote, now, env);
        }
    }

    /// Reports an unauthenticated message that cannot be parsed. Sends an error back if `answer` is
    /// set.
    #[allow(clippy::too_many_arguments)]
    fn reject_unauthenticated(
        &mut self,
        header: &Header,
        error: InvalidMessage,
        answer: bool,
        local: SocketAddr,
        remote: SocketAddr,
        now: Instant,
        env: &mut dyn Environment,
    ) {
        //= RFC 7296 2.21.4 REQUIRED 11: rate of answers
        if !self.init_request_guard.may_report(now) {
            return;
        }
        if answer {
            let payloads = Payloads::from(vec![Payload::Notify(error.notify())]);
            let answer = Message::response(header, header.responder_spi, payloads).encode();
            context!(self, now, env).out.message(local, remote, self.config.nat_port, &answer);
        }
        self.out.event(Event::Refused { from: remote, identity: None, error: invalid(IKE_SA_INIT, error) });
    }

    fn receive_init(
        &mut self,
        header: &Header,
        datagram: &[u8],
        local: SocketAddr,
        remote: SocketAddr,
        now: Instant,
        env: &mut dyn Environment,
    ) {
        if datagram.len() > MAX_INIT_REQUEST {
            tracing::trace!(%remote, octets = datagram.len(), "IKE_SA_INIT larger than any honest one");
            return;
        }
        let message = match Message::decode(datagram) {
            Ok(message) => message,
            Err(error) => {
                // RFC 7296 2.5: a message with an unknown critical payload is answered. 2.21.1: a
                // malformed message is not, since any host may have sent it.
                //= RFC 7296 3.10.1 REQUIRED 5: INVALID_SYNTAX is encrypted
                let answer = matches!(error, InvalidMessage::UnsupportedCriticalPayload(_));
                return self.reject_unauthenticated(header, error, answer, local, remote, now, env);
            }
        };
        if self.is_own_request(header.initiator_spi, local, remote) {
            return;
        }
        let mut cx = context!(self, now, env);
        let is_known = |address| self.peer_index.at_address(address).next().is_some();
        let source = Source::of_message(remote.ip(), is_known, cx.env);
        match self.init_request_guard.check(&message, datagram.len(), local, (remote, source), &self.config, &mut cx) {
            InitDecision::Discard => return,
            InitDecision::Retransmission(spi) => {
                if let Some(SaState::HalfOpen(half_open, _)) = self.sas.get_mut(&spi) {
                    if self.init_request_guard.returns_cookie(&message, remote, &mut cx) {
                        half_open.adopt_cookie(&message, datagram);
                    }
                    half_open.repeat(datagram, local, &mut cx);
                }
                return;
            }
            InitDecision::Accept => {}
        }
        let terms = self.peer_index.init_terms(remote.ip());
        let policy = InitPolicy {
            proposals: &terms.proposals(),
            request: terms.certificate_request(),
            force_encapsulation: terms.force_encapsulation(),
            childless: terms.allows_childless(),
        };
        match HalfOpen::answer(&message, datagram, local, remote, policy, &mut cx) {
            InitOutcome::HalfOpen(half_open) => {
                self.request_heard(remote, now);
                let spi = half_open.spi();
                let octets = half_open.octets();
                self.init_request_guard.key_exchanges.count(half_open.group(), source);
                let initiator_spi = message.header.initiator_spi;
                self.init_request_guard.half_open.insert(remote, initiator_spi, spi, octets, source);
                self.sas.insert(spi, SaState::HalfOpen(half_open, now + HALF_OPEN_LIFETIME));
                self.schedule(spi);
                self.limit_half_open(spi);
            }
            InitOutcome::Refused(notify, error) => {
                if self.init_request_guard.answer_limit.may_answer(source, now) {
                    //= RFC 7296 2.6 REQUIRED 3: SPI zero before there is one
                    let answer = Message::response(header, 0, Payloads::from(vec![Payload::Notify(notify)]));
                    cx.out.message(local, remote, cx.config.nat_port, &answer.encode());
                }
                error.into_iter().for_each(|error| self.report_refusal(remote, error, now));
            }
            InitOutcome::Unanswered(error) => self.report_refusal(remote, error, now),
            InitOutcome::Malformed(error) => self.reject_unauthenticated(header, error, false, local, remote, now, env),
        }
    }

    /// Reports the refusal of an IKE_SA_INIT request, unless there have been too many.
    fn report_refusal(&mut self, from: SocketAddr, error: PeerError, now: Instant) {
        if self.init_request_guard.may_report(now) {
            self.out.event(Event::Refused { from, identity: None, error });
        }
    }

    /// Removes half-open IKE SAs beyond the limits after one was added or has received a fragment.
    fn limit_half_open(&mut self, newest: Spi) {
        while let Some(spi) = self.init_request_guard.half_open.excess(newest, &self.config) {
            tracing::trace!(spi = format_args!("{spi:016x}"), "a half-open IKE SA makes room");
            self.sas.remove(&spi);
            self.schedule(spi);
        }
    }

    /// Returns whether an IKE_SA_INIT request is our own. A NAT can send it back to us, since a
    /// peer behind the same NAT has the same public address. We do not answer such a request: the
    /// handshake with that address times out, and those with other addresses continue.
    fn is_own_request(&self, initiator_spi: u64, local: SocketAddr, remote: SocketAddr) -> bool {
        let Some(SaState::InitiatorInit(peer, _)) = self.sas.get(&initiator_spi) else {
            return false;
        };
        tracing::debug!(%peer, %local, %remote, "our own IKE_SA_INIT came back; a NAT leads an address of the peer to this node");
        true
    }

    #[allow(clippy::too_many_arguments)]
    fn receive_auth(
        &mut self,
        half_open: Box<HalfOpen>,
        until: Instant,
        header: &Header,
        datagram: &[u8],
        (local, remote): (SocketAddr, SocketAddr),
        now: Instant,
        env: &mut dyn Environment,
    ) {
        let spi = half_open.spi();
        let guard = &mut self.init_request_guard;
        let source = guard.half_open.source(spi);
        // RFC 7296 2.6: both SPIs name the IKE SA. Keys are derived for both of them.
        if header.initiator_spi != half_open.initiator_spi()
            || source.is_some_and(|source| !guard.may_authenticate(source, now))
        {
            self.sas.insert(spi, SaState::HalfOpen(half_open, until));
            return;
        }
        let (peers, index) = (&self.peers, &self.peer_index);
        let find = |identity: &Identity, ours: Option<&Identity>| {
            let named = index.with_identity(identity).filter_map(|name| peers.get(name));
            find_peer(named, identity, ours, remote)
        };
        let leases = &mut self.address_leases;
        let mut lease = |peer: &PeerName, pool: &[IpNetwork], wanted: &WantedAddresses, env: &mut dyn Environment| {
            let is_up = |peer: &PeerName| peers.get(peer).is_some_and(|peer| !peer.sas.is_empty());
            leases.lease_wanted(peer, pool, wanted, now, is_up, |address| env.source_address(address) == Some(address))
        };
        let mut peers = Peers { find: &find, lease: &mut lease };
        let outcome = half_open.handle(header, datagram, local, remote, &mut peers, &mut context!(self, now, env));
        match outcome {
            AuthOutcome::Stay(half_open) => {
                self.sas.insert(spi, SaState::HalfOpen(half_open, until));
                self.schedule(spi);
                self.limit_half_open(spi);
            }
            AuthOutcome::Up { sa, child, initial_contact } => {
                let name = sa.profile().config.name.clone();
                let _span = peer_span(&name).entered();
                self.add_established(&name, sa, child, initial_contact, now, env);
            }
            AuthOutcome::Refused { peer, identity, from, error, last_response } => {
                if let Some(source) = source {
                    self.init_request_guard.count_refusal(source);
                }
                self.keep_last_response(spi, last_response, now);
                // Any host can claim a configured identity and then fail to authenticate. While the
                // peer is up, such a failure is not counted as the peer's.
                let is_down = |name: &PeerName| self.peers.get(name).is_some_and(|peer| !peer.child_sas.sends());
                let peer = peer.filter(is_down);
                let report = self.init_request_guard.may_report(now);
                let _span = peer.as_ref().map(|name| peer_span(name).entered());
                match peer.and_then(|name| self.peers.get_mut(&name)) {
                    Some(peer) if report => peer.report_failure(error, &mut self.out),
                    Some(peer) => peer.last_error = Some(error),
                    None if report => self.out.event(Event::Refused { from, identity, error }),
                    None => {}
                }
            }
        }
    }

    /// Handles the deadlines of an IKE SA that have passed.
    pub(super) fn handle_sa_timeout(&mut self, spi: Spi, now: Instant, env: &mut dyn Environment) {
        let Some(state) = self.sas.remove(&spi) else {
            return;
        };
        let _span = state.peer().map(|name| peer_span(name).entered());
        let mut cx = context!(self, now, env);
        match state {
            SaState::InitiatorInit(name, mut init) => match init.handle_timeout(&mut cx) {
                Ok(()) => {
                    if init.is_repeated() && self.auth_turn(&name) != AuthTurn::Wait {
                        self.free_place_of_silent_peer(&name, now, env);
                    }
                    self.sas.insert(spi, SaState::InitiatorInit(name, init));
                }
                Err(error) => self.candidate_failed(&name, spi, error, now, env),
            },
            SaState::InitiatorAuth(name, mut auth) => match auth.handle_timeout(&mut cx) {
                Ok(()) => {
                    if auth.is_repeated() {
                        self.free_place_of_silent_peer(&name, now, env);
                    }
                    self.sas.insert(spi, SaState::InitiatorAuth(name, auth));
                }
                Err(error) => {
                    auth.release(&mut cx);
                    self.candidate_failed(&name, spi, error, now, env);
                }
            },
            SaState::HalfOpen(_, until) | SaState::Closed(_, until) if until <= now => {}
            state @ (SaState::HalfOpen(..) | SaState::Closed(..)) => {
                self.sas.insert(spi, state);
            }
            SaState::Rejecting(mut channel) => {
                if channel.retransmit(false, &mut cx).is_some() {
                    self.sas.insert(spi, SaState::Rejecting(channel));
                }
            }
            SaState::Established(name, mut sa) => {
                let step = match self.peers.get_mut(&name) {
                    Some(peer) if peer.sas.contains(&spi) => sa.handle_timeout(&mut peer.child_sas, &mut cx),
                    _ => sa.handle_timeout(&mut ChildSas::new(name.clone()), &mut cx),
                };
                self.sa_step(name, sa, step, now, env);
            }
        }
        self.schedule(spi);
    }
}

/// Returns the peer whose identity is `identity` and, if the initiator sent IDr, whose
/// configuration has `ours` as our identity. If several peers match, returns the one that is
/// configured with the remote address.
fn find_peer<'a>(
    peers: impl Iterator<Item = &'a Peer>,
    identity: &Identity,
    ours: Option<&Identity>,
    remote: SocketAddr,
) -> Option<Arc<Profile>> {
    let matching = peers.filter(|peer| {
        let config = peer.config();
        same_identity(&config.remote_id, identity) && ours.is_none_or(|ours| same_identity(&config.local_id, ours))
    });
    let here = |peer: &&Peer| peer.config().remotes.iter().any(|known| known.ip() == remote.ip());
    matching.max_by_key(here).map(|peer| Arc::clone(&peer.profile))
}

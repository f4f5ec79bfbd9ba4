//! We begin: IKE_SA_INIT and IKE_AUTH as initiator (RFC 7296 1.2).

use std::net::SocketAddr;
use std::sync::Arc;

use super::Profile;
use super::channel::{Channel, Incoming, Retransmission};
use super::child::{Reserved, Terms};
use super::established::{Begun, IkeSa};
use super::failure::{self, IKE_AUTH, IKE_SA_INIT};
use super::path::Path;
use crate::auth::{Authenticator, Presented, SignedOctets};
use crate::config::Group;
use crate::crypto::{IkeKeys, KeyPair, Nonces, Role};
use crate::event::{ChildSa, IkeDetails, IkeId, PeerError, PeerErrorKind};
use crate::negotiate::{self, ChildKeyExchange};
use crate::output::Context;
use crate::time::Instant;
use crate::wire::{
    Certificate, ExchangeType, HashAlgorithm, Header, Id, InvalidMessage, Message, Notify, NotifyType, Payload,
    Payloads,
};

/// Cookies and changes of the key exchange method that are followed in one attempt; an honest peer asks for two.
const MAX_ROUNDS: u8 = 6;

/// IKE_SA_INIT was sent to one address.
#[derive(Debug)]
pub(crate) struct Dialing {
    profile: Arc<Profile>,
    begun: Instant,
    spi: u64,
    path: Path,
    /// What we say makes the peer believe in a NAT before us.
    forced: bool,
    nonce: [u8; 32],
    key: KeyPair,
    cookie: Option<Vec<u8>>,
    request: Vec<u8>,
    retransmission: Retransmission,
    rounds: u8,
    parked: Option<Parked>,
    notice: Option<PeerError>,
}

/// An answer that waits until another address has failed.
#[derive(Debug)]
struct Parked {
    datagram: Vec<u8>,
    local: SocketAddr,
    remote: SocketAddr,
}

/// What becomes of a [`Dialing`].
#[derive(Debug)]
pub(crate) enum InitStep {
    /// It goes on.
    Stay(Box<Dialing>),
    /// IKE_AUTH was sent.
    Authenticate(Box<Authenticating>),
    /// It cannot go on.
    Failed(PeerError),
}

impl Dialing {
    /// Sends IKE_SA_INIT.
    pub(crate) fn begin(profile: Arc<Profile>, remote: SocketAddr, cx: &mut Context<'_>) -> Result<Self, PeerError> {
        let groups = profile.config.ike_proposals.iter().flat_map(|proposal| &proposal.groups);
        let group = groups.copied().next().ok_or_else(|| {
            let detail = "no key exchange method is configured in ike_proposals".to_owned();
            PeerError::new(IKE_SA_INIT, PeerErrorKind::Local, detail)
        })?;
        let path = Path::to(&profile.config, remote, cx);
        let mut dialing = Self {
            begun: cx.now,
            spi: u64::from_be_bytes(cx.random()).max(1),
            // A source that is not known yet cannot be said truly either.
            forced: profile.config.force_encapsulation || path.local.ip().is_unspecified(),
            path,
            nonce: cx.random(),
            key: generate(group, cx)?,
            cookie: None,
            request: Vec::new(),
            retransmission: Retransmission::begin(&profile.config.timing, cx.now),
            rounds: 0,
            parked: None,
            notice: None,
            profile,
        };
        dialing.send(cx);
        Ok(dialing)
    }

    fn send(&mut self, cx: &mut Context<'_>) {
        let ike = IkeId { initiator: self.spi, responder: 0 };
        let mut payloads = Payloads::new();
        // RFC 7296 2.6: the cookie comes first, the rest stays as it was.
        payloads
            .extend(self.cookie.clone().map(|cookie| Payload::Notify(Notify::with_data(NotifyType::Cookie, cookie))));
        payloads.push(Payload::SecurityAssociation(negotiate::offer_ike(&self.profile.config.ike_proposals, &[])));
        payloads.push(Payload::KeyExchange(self.key.payload()));
        payloads.push(Payload::Nonce(self.nonce.to_vec()));
        payloads.extend(self.path.notifies(ike, self.forced).map(Payload::Notify));
        payloads.extend(capabilities().map(Payload::Notify));
        let header = Header {
            initiator_spi: self.spi,
            responder_spi: 0,
            exchange: ExchangeType::IkeSaInit,
            from_initiator: true,
            response: false,
            message_id: 0,
        };
        self.request = Message { header, payloads }.encode();
        self.retransmission = Retransmission::begin(&self.profile.config.timing, cx.now);
        self.transmit(cx);
    }

    fn transmit(&self, cx: &mut Context<'_>) {
        cx.out.message(self.path.local, self.path.remote, cx.config.nat_port, &self.request);
    }

    /// Our SPI.
    pub(crate) fn spi(&self) -> u64 {
        self.spi
    }

    /// An answer has come and waits.
    pub(crate) fn is_parked(&self) -> bool {
        self.parked.is_some()
    }

    /// Tells once what the peer (or anybody: it is not authentic) has answered.
    pub(crate) fn take_notice(&mut self) -> Option<PeerError> {
        self.notice.take()
    }

    /// When to call [`Self::handle_timeout`].
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.parked.is_none().then(|| self.retransmission.next())
    }

    /// Sends again. `Err`: it was sent often enough.
    pub(crate) fn handle_timeout(&mut self, cx: &mut Context<'_>) -> Result<(), PeerError> {
        if self.parked.is_some() || self.retransmission.next() > cx.now {
            return Ok(());
        }
        let timing = &self.profile.config.timing;
        match self.retransmission.again(timing, cx.now) {
            Some(()) => self.transmit(cx),
            None => return Err(failure::silence(IKE_SA_INIT, self.path.remote, timing.transmissions)),
        }
        Ok(())
    }

    /// Takes what came for our SPI. While another address of the peer is being authenticated, a good answer waits.
    pub(crate) fn handle(
        mut self: Box<Self>,
        datagram: &[u8],
        local: SocketAddr,
        remote: SocketAddr,
        turn: Turn,
        cx: &mut Context<'_>,
    ) -> InitStep {
        let Ok(message) = Message::decode(datagram) else {
            return InitStep::Stay(self);
        };
        let header = message.header;
        let expected = header.exchange == ExchangeType::IkeSaInit && header.response && header.message_id == 0;
        if !expected || self.parked.is_some() {
            return InitStep::Stay(self);
        }
        let payloads = &message.payloads;
        if let Some(cookie) = payloads.notify(NotifyType::Cookie) {
            // RFC 7296 2.6: 1 to 64 octets.
            if (1..=64).contains(&cookie.data.len()) && self.another_round() {
                self.cookie = Some(cookie.data.clone());
                self.send(cx);
            }
            return InitStep::Stay(self);
        }
        if let Some(notify) = payloads.notify(NotifyType::InvalidKePayload) {
            return match self.change_group(notify, cx) {
                Ok(()) => InitStep::Stay(self),
                Err(error) => InitStep::Failed(error),
            };
        }
        if let Some(notify) = payloads.error() {
            // RFC 7296 2.21.1: anybody could have sent this. It is told, and the attempt goes on.
            self.notice = Some(failure::notified(IKE_SA_INIT, notify.kind, &self.profile.config));
            return InitStep::Stay(self);
        }
        if turn == Turn::Wait {
            self.parked = Some(Parked { datagram: datagram.to_vec(), local, remote });
            return InitStep::Stay(self);
        }
        match self.check(&message) {
            Ok(()) => self.proceed(&message, datagram, local, turn, cx),
            Err(error) => {
                self.notice = Some(error);
                InitStep::Stay(self)
            }
        }
    }

    /// It is this address's turn: takes the answer that waited.
    pub(crate) fn unpark(mut self: Box<Self>, turn: Turn, cx: &mut Context<'_>) -> InitStep {
        match self.parked.take() {
            Some(Parked { datagram, local, remote }) => self.handle(&datagram, local, remote, turn, cx),
            None => InitStep::Stay(self),
        }
    }

    fn another_round(&mut self) -> bool {
        self.rounds = self.rounds.saturating_add(1);
        self.rounds <= MAX_ROUNDS
    }

    /// RFC 7296 1.3: the peer wants another key exchange method. Only one that we offered is taken.
    fn change_group(&mut self, notify: &Notify, cx: &mut Context<'_>) -> Result<(), PeerError> {
        let offered = |group: &Group| self.profile.config.ike_proposals.iter().any(|p| p.groups.contains(group));
        let wanted = notify.data_u16().and_then(Group::from_number).filter(offered);
        match wanted.filter(|group| *group != self.key.group()) {
            Some(group) if self.another_round() => {
                self.key = generate(group, cx)?;
                self.send(cx);
            }
            _ => self.notice = Some(failure::notified(IKE_SA_INIT, NotifyType::InvalidKePayload, &self.profile.config)),
        }
        Ok(())
    }

    /// Whether the answer is complete and within what we asked for. Nothing is used up by looking.
    fn check(&self, message: &Message) -> Result<(), PeerError> {
        let malformed = |error| failure::invalid(IKE_SA_INIT, error);
        let payloads = &message.payloads;
        payloads.nonce().map_err(malformed)?;
        let group = payloads.key_exchange().map_err(malformed)?.group;
        let answer = payloads.proposals().map_err(malformed)?;
        let chosen = negotiate::choose_ike(answer, &self.profile.config.ike_proposals, Some(group));
        let within =
            chosen.is_some_and(|chosen| chosen.suite.group == self.key.group() && group == chosen.suite.group.number());
        if !within || answer.len() != 1 || message.header.responder_spi == 0 {
            let detail = "the peer's answer is not one of our proposals with its own SPI".to_owned();
            return Err(PeerError::new(IKE_SA_INIT, PeerErrorKind::Protocol, detail));
        }
        Ok(())
    }

    fn proceed(
        mut self: Box<Self>,
        message: &Message,
        datagram: &[u8],
        local: SocketAddr,
        turn: Turn,
        cx: &mut Context<'_>,
    ) -> InitStep {
        let payloads = &message.payloads;
        let ike = IkeId { initiator: self.spi, responder: message.header.responder_spi };
        if self.path.local.ip().is_unspecified() {
            self.path.local.set_ip(local.ip());
        }
        self.path.detect(ike, payloads, self.forced);
        self.path.float(cx.config);
        let (Ok(proposals), Ok(key_exchange), Ok(nonce)) =
            (payloads.proposals(), payloads.key_exchange(), payloads.nonce())
        else {
            return InitStep::Stay(self);
        };
        let Some(chosen) =
            negotiate::choose_ike(proposals, &self.profile.config.ike_proposals, Some(key_exchange.group))
        else {
            return InitStep::Stay(self);
        };
        let Self { profile, begun, path, nonce: ours, key, request, .. } = *self;
        let shared = match key.agree(key_exchange) {
            Ok(shared) => shared,
            Err(error) => {
                return InitStep::Failed(PeerError::new(IKE_SA_INIT, PeerErrorKind::Protocol, error.to_string()));
            }
        };
        let keys = IkeKeys::initial(chosen.suite, Nonces { initiator: &ours, responder: nonce }, ike, &shared);
        let fragments = payloads.notify(NotifyType::Ikev2FragmentationSupported).is_some();
        let channel =
            Channel::new(keys, ike, Role::Initiator, path, fragments, profile.config.timing, cx.now).after_init();
        let secured = Secured {
            hashes: payloads.notify(NotifyType::SignatureHashAlgorithms).map(Notify::hashes),
            request,
            response: datagram.to_vec(),
            initiator_nonce: ours.to_vec(),
            responder_nonce: nonce.to_vec(),
        };
        match Authenticating::begin(profile, begun, channel, secured, turn, cx) {
            Ok(next) => InitStep::Authenticate(Box::new(next)),
            Err(error) => InitStep::Failed(error),
        }
    }
}

/// Whether an address of the peer may be authenticated now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Another one is being authenticated.
    Wait,
    /// Yes.
    Go {
        /// We have nothing with this peer: INITIAL_CONTACT (RFC 7296 2.4).
        initial_contact: bool,
    },
}

/// What IKE_SA_INIT leaves for IKE_AUTH.
#[derive(Debug)]
pub(super) struct Secured {
    pub(super) hashes: Option<Vec<HashAlgorithm>>,
    pub(super) request: Vec<u8>,
    pub(super) response: Vec<u8>,
    pub(super) initiator_nonce: Vec<u8>,
    pub(super) responder_nonce: Vec<u8>,
}

impl Secured {
    pub(super) fn nonces(&self) -> Nonces<'_> {
        Nonces { initiator: &self.initiator_nonce, responder: &self.responder_nonce }
    }

    pub(super) fn initiator_octets(&self, keys: &IkeKeys, id: &Id) -> SignedOctets {
        SignedOctets::initiator(keys, &self.request, &self.responder_nonce, id)
    }

    pub(super) fn responder_octets(&self, keys: &IkeKeys, id: &Id) -> SignedOctets {
        SignedOctets::responder(keys, &self.response, &self.initiator_nonce, id)
    }
}

/// IKE_AUTH was sent.
#[derive(Debug)]
pub(crate) struct Authenticating {
    profile: Arc<Profile>,
    begun: Instant,
    channel: Channel,
    secured: Secured,
    inbound: Reserved,
}

/// What becomes of an [`Authenticating`].
#[derive(Debug)]
pub(crate) enum AuthStep {
    /// It goes on.
    Stay(Box<Authenticating>),
    /// The peer is who it should be.
    Up {
        /// The IKE SA.
        sa: Box<IkeSa>,
        /// Its CHILD_SA, or why there is none.
        child: Result<ChildSa, PeerError>,
    },
    /// It is not, or does not want.
    Failed {
        /// Why.
        error: PeerError,
        /// Where the peer is still being told.
        channel: Option<Box<Channel>>,
    },
}

impl Authenticating {
    fn begin(
        profile: Arc<Profile>,
        begun: Instant,
        mut channel: Channel,
        secured: Secured,
        turn: Turn,
        cx: &mut Context<'_>,
    ) -> Result<Self, PeerError> {
        let config = &profile.config;
        let id = Id::from(&config.local_id);
        let octets = secured.initiator_octets(&channel.keys, &id);
        let authentication =
            profile.auth.prove(&octets, secured.hashes.as_deref()).map_err(|error| failure::auth(&error))?;
        let inbound = Reserved::new(&profile, &channel, cx).ok_or_else(|| failure::no_spi(IKE_AUTH))?;

        let mut payloads = Payloads::new();
        payloads.push(Payload::IdInitiator(id));
        payloads.extend(profile.auth.certificates().iter().cloned().map(Payload::Certificate));
        if turn == (Turn::Go { initial_contact: true }) {
            payloads.push_notify(Notify::new(NotifyType::InitialContact));
        }
        payloads.extend(profile.auth.certificate_request().map(Payload::CertificateRequest));
        payloads.push(Payload::IdResponder(Id::from(&config.remote_id)));
        payloads.push(Payload::Authentication(authentication));
        payloads.push(Payload::SecurityAssociation(negotiate::offer_esp(&config.child.proposals, inbound.spi, false)));
        payloads.push(Payload::TrafficSelectorsInitiator(negotiate::offer(&config.child.local)));
        payloads.push(Payload::TrafficSelectorsResponder(negotiate::offer(&config.child.remote)));
        channel.request(ExchangeType::IkeAuth, &payloads, cx);
        Ok(Self { profile, begun, channel, secured, inbound })
    }

    /// When to call [`Self::handle_timeout`].
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.channel.retransmit_at()
    }

    /// Sends again. `Err`: it was sent often enough; to be abandoned.
    pub(crate) fn handle_timeout(&mut self, cx: &mut Context<'_>) -> Result<(), PeerError> {
        if self.channel.retransmit_at().is_none_or(|at| at > cx.now) || self.channel.retransmit(cx).is_some() {
            return Ok(());
        }
        Err(failure::silence(IKE_AUTH, self.channel.path.remote, self.profile.config.timing.transmissions))
    }

    /// Leaves nothing behind.
    pub(crate) fn abandon(self, cx: &mut Context<'_>) {
        self.inbound.release(&self.profile, cx);
    }

    /// Takes what came for our SPI.
    pub(crate) fn handle(
        mut self: Box<Self>,
        header: &Header,
        datagram: &[u8],
        local: SocketAddr,
        remote: SocketAddr,
        cx: &mut Context<'_>,
    ) -> AuthStep {
        match self.channel.receive(header, datagram, local, remote, cx) {
            Incoming::Response(ExchangeType::IkeAuth, Ok(payloads)) => self.finish(&payloads, cx),
            Incoming::Response(_, Err(error)) => self.fail(failure::invalid(IKE_AUTH, error), true, cx),
            Incoming::Response(exchange, Ok(_)) => {
                let detail = format!("expected an answer to IKE_AUTH, got one to {exchange}");
                self.fail(PeerError::new(IKE_AUTH, PeerErrorKind::Protocol, detail), true, cx)
            }
            // Nothing can be asked of us before the peer has proven who it is.
            Incoming::Request(..) | Incoming::Nothing => AuthStep::Stay(self),
        }
    }

    fn fail(self, error: PeerError, tell: bool, cx: &mut Context<'_>) -> AuthStep {
        let Self { profile, mut channel, inbound, .. } = self;
        inbound.release(&profile, cx);
        // RFC 7296 2.21.2: an initiator that cannot accept the answer says so in an INFORMATIONAL exchange.
        let channel = tell.then(|| {
            let payloads = Payloads::from(vec![Payload::Notify(Notify::new(NotifyType::AuthenticationFailed))]);
            channel.request(ExchangeType::Informational, &payloads, cx);
            Box::new(channel)
        });
        AuthStep::Failed { error, channel }
    }

    fn finish(self, payloads: &Payloads, cx: &mut Context<'_>) -> AuthStep {
        let proof = match self.verify(payloads, cx) {
            Ok(proof) => proof,
            Err((error, tell)) => return self.fail(error, tell, cx),
        };
        let child = self.child(payloads);
        let Self { profile, begun, channel, inbound, .. } = self;
        let child = match child {
            Ok(terms) => Ok(terms.into_sa(inbound, true, &channel)),
            Err(error) => {
                inbound.release(&profile, cx);
                Err(error)
            }
        };
        let details = IkeDetails {
            proposal: channel.keys.suite.to_string(),
            authentication: proof,
            nat_local: channel.path.nat_local,
            nat_remote: channel.path.nat_remote,
        };
        AuthStep::Up { sa: Box::new(IkeSa::new(channel, profile, details, Begun::ByUs(begun), cx)), child }
    }

    /// The peer's proof. In the error, whether it is to be told.
    fn verify(&self, payloads: &Payloads, cx: &Context<'_>) -> Result<String, (PeerError, bool)> {
        let config = &self.profile.config;
        let Ok(authentication) = payloads.authentication() else {
            // RFC 7296 2.21.2: without AUTH there is no IKE SA, and the peer knows.
            return Err(match payloads.error() {
                Some(notify) => (failure::notified(IKE_AUTH, notify.kind, config), false),
                None => (
                    failure::invalid(IKE_AUTH, InvalidMessage::Missing(crate::wire::PayloadType::Authentication)),
                    true,
                ),
            });
        };
        let id = payloads.id_responder().map_err(|error| (failure::invalid(IKE_AUTH, error), true))?;
        let certificates: Vec<Certificate> = payloads.certificates().cloned().collect();
        let octets = self.secured.responder_octets(&self.channel.keys, id);
        let presented = Presented { id, certificates: &certificates, authentication };
        let proof = self.profile.auth.verify(&config.remote_id, presented, &octets, cx.env.unix_time());
        proof.map(|proof| proof.to_string()).map_err(|error| (failure::auth(&error), true))
    }

    fn child(&self, payloads: &Payloads) -> Result<Terms, PeerError> {
        let config = &self.profile.config;
        let malformed = |error| failure::invalid(IKE_AUTH, error);
        let answer = match payloads.proposals() {
            Ok(answer) => answer,
            Err(missing) => {
                let notified = payloads.error().map(|notify| failure::notified(IKE_AUTH, notify.kind, config));
                return Err(notified.unwrap_or_else(|| malformed(missing)));
            }
        };
        let chosen = negotiate::choose_esp(answer, &config.child.proposals, ChildKeyExchange::Ignored)
            .filter(|_| answer.len() == 1)
            .ok_or_else(|| failure::no_esp_proposal(IKE_AUTH, config))?;
        let local = payloads.selectors_initiator().map_err(malformed)?;
        let remote = payloads.selectors_responder().map_err(malformed)?;
        let selectors =
            negotiate::accept(&config.child, local, remote).ok_or_else(|| failure::no_selectors(IKE_AUTH, config))?;
        let keys = self.channel.keys.child(chosen.suite.aead, self.secured.nonces(), None);
        Ok(Terms { outbound_spi: chosen.child_spi(), suite: chosen.suite, selectors, keys })
    }
}

/// What both ends say of themselves in IKE_SA_INIT.
pub(super) fn capabilities() -> [Notify; 2] {
    [Notify::new(NotifyType::Ikev2FragmentationSupported), Notify::signature_hashes(&Authenticator::HASHES)]
}

fn generate(group: Group, cx: &mut Context<'_>) -> Result<KeyPair, PeerError> {
    KeyPair::generate(group, cx.env)
        .map_err(|error| PeerError::new(IKE_SA_INIT, PeerErrorKind::Local, error.to_string()))
}

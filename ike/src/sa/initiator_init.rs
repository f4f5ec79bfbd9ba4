//! IKE_SA_INIT as the initiator (RFC 7296 1.2).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::channel::Channel;
use super::childless;
use super::failure::{self, IKE_SA_INIT};
use super::init_transcript::{InitTranscript, capabilities};
use super::initiator_auth::InitiatorAuth;
use super::path::Path;
use super::profile::Profile;
use super::retransmission_timer::{Persistence, RetransmissionTimer};
use crate::childless::Childless;
use crate::config::Group;
use crate::crypto::{IkeKeys, IkeRole, IkeSuite, InitiatorKeyExchange, Nonces};
use crate::event::{IkeId, PeerError, PeerErrorKind};
use crate::negotiate;
use crate::output::Context;
use crate::time::Instant;
use crate::wire::{ExchangeType, Header, KeyExchange, Message, Notify, NotifyType, Payload, Payloads};

/// Maximum number of cookies and changes of the key exchange method in one attempt. An honest peer
/// requires at most two.
const MAX_ROUNDS: u8 = 6;

/// Maximum size of an IKE_SA_INIT response, bytes. This is large enough for a CERTREQ with 300
/// authorities. The response is stored until IKE_AUTH.
const MAX_INIT_RESPONSE: usize = 8192;

/// The state of an initiator that has sent IKE_SA_INIT to one address.
#[derive(Debug)]
pub(crate) struct InitiatorInit {
    profile: Arc<Profile>,
    begun: Instant,
    spi: u64,
    path: Path,
    /// Whether our NAT_DETECTION_SOURCE_IP makes the peer detect a NAT in front of us.
    forced: bool,
    nonce: [u8; 32],
    key: InitiatorKeyExchange,
    //= RFC 7296 2.6.1 SHOULD 1: the cookie stays for another group
    cookie: Option<Vec<u8>>,
    request: Vec<u8>,
    retransmission: RetransmissionTimer,
    rounds: u8,
    deferred: Option<DeferredResponse>,
    unverified_error: Option<PeerError>,
    /// The internal addresses that the peer gave us last.
    previous_addresses: Vec<IpAddr>,
}

/// A response that waits until the handshake with another address has failed.
#[derive(Debug)]
struct DeferredResponse {
    datagram: Vec<u8>,
    local: SocketAddr,
    remote: SocketAddr,
}

/// The parts of a response that was checked.
struct Accepted<'a> {
    /// The chosen suite, which we have offered.
    suite: IkeSuite,
    /// The share of the responder, for the method of our own share.
    key_exchange: &'a KeyExchange,
    nonce: &'a [u8],
}

/// The result of a message or deadline in IKE_SA_INIT.
#[derive(Debug)]
pub(crate) enum InitStep {
    /// IKE_SA_INIT has not ended.
    Stay(Box<InitiatorInit>),
    /// The response was usable, and IKE_AUTH was sent.
    Authenticate(Box<InitiatorAuth>),
    /// There was no usable response from this address.
    Failed(PeerError),
}

impl InitiatorInit {
    /// Sends the IKE_SA_INIT request to one address. `previous_addresses` are the internal
    /// addresses that the peer gave us last.
    pub(crate) fn begin(
        profile: Arc<Profile>,
        remote: SocketAddr,
        previous_addresses: Vec<IpAddr>,
        cx: &mut Context<'_>,
    ) -> Result<Box<Self>, PeerError> {
        let groups = profile.config.ike_proposals.iter().flat_map(|proposal| &proposal.groups);
        //= RFC 7296 3.3.6 SHOULD 10: a likely group first
        //= RFC 7296 3.4 SHOULD 3: the first group of the offer
        let group = groups.copied().next().ok_or_else(|| {
            let detail = "no key exchange method is configured in ike_proposals".to_owned();
            PeerError::new(IKE_SA_INIT, PeerErrorKind::Local, detail)
        })?;
        let path = Path::to(&profile.config, remote, cx);
        let mut init = Box::new(Self {
            begun: cx.now,
            //= RFC 7296 2.6 MUST 1: unique SPIs
            spi: u64::from_be_bytes(cx.random()).max(1),
            // If our source address is unknown, the correct hash of it is also unknown.
            forced: profile.config.force_encapsulation || path.local.ip().is_unspecified(),
            path,
            //= RFC 7296 2.10 MUST 1: random nonces
            nonce: cx.random(),
            key: start_key_exchange(group, cx)?,
            cookie: None,
            request: Vec::new(),
            retransmission: RetransmissionTimer::begin(&profile.config.timing, cx.now),
            rounds: 0,
            deferred: None,
            unverified_error: None,
            previous_addresses,
            profile,
        });
        init.send(cx);
        Ok(init)
    }

    fn send(&mut self, cx: &mut Context<'_>) {
        let ike = IkeId { initiator: self.spi, responder: 0 };
        let mut payloads = Payloads::new();
        // RFC 7296 2.6: the cookie is the first payload, and the other payloads are unchanged.
        payloads
            //= RFC 7296 2.6 MUST 6: the cookie comes first, the rest stays
            .extend(self.cookie.clone().map(|cookie| Payload::Notify(Notify::with_data(NotifyType::Cookie, cookie))));
        //= RFC 7296 1.2 MUST 5: all suites again
        //= RFC 7296 3.3.1 MUST 6: no SPI in IKE_SA_INIT
        //= RFC 7296 3.3.6 SHOULD 12: all groups again
        payloads.push(Payload::SecurityAssociation(negotiate::offer_ike(&self.profile.config.ike_proposals, &[])));
        //= RFC 7296 3.4 MUST 2: the group is in the offer
        payloads.push(Payload::KeyExchange(self.key.payload()));
        payloads.push(Payload::Nonce(self.nonce.to_vec()));
        //= RFC 7296 2.23 MUST 8: NAT_DETECTION in IKE_SA_INIT
        payloads.extend(self.path.notifies(ike, self.forced).map(Payload::Notify));
        payloads.extend(capabilities().map(Payload::Notify));
        let header = Header {
            initiator_spi: self.spi,
            //= RFC 7296 3.1 MUST 4: the responder's SPI begins as zero
            responder_spi: 0,
            exchange: ExchangeType::IkeSaInit,
            from_initiator: true,
            response: false,
            message_id: 0,
        };
        if mutation!("cookie_is_last") {
            let is_cookie =
                |payload: &Payload| matches!(payload, Payload::Notify(notify) if notify.kind == NotifyType::Cookie);
            let (last, first): (Vec<_>, Vec<_>) = payloads.iter().cloned().partition(is_cookie);
            payloads = first.into_iter().chain(last).collect();
        }
        //= RFC 7296 2.15 REQUIRED 2: the latest IKE_SA_INIT counts
        self.request = Message { header, payloads }.encode();
        self.retransmission = RetransmissionTimer::begin(&self.profile.config.timing, cx.now);
        self.transmit(cx);
    }

    fn transmit(&self, cx: &mut Context<'_>) {
        cx.out.message(self.path.local, self.path.remote, cx.config.nat_port, &self.request);
    }

    /// Returns our SPI, by which the endpoint finds the attempt.
    pub(crate) fn spi(&self) -> u64 {
        self.spi
    }

    /// Returns whether the request was sent more than once without a response.
    pub(crate) fn is_repeated(&self) -> bool {
        self.retransmission.sent() > 1
    }

    /// Returns whether a response has arrived and is deferred.
    pub(crate) fn has_deferred_response(&self) -> bool {
        self.deferred.is_some()
    }

    /// Takes the last unauthenticated error.
    pub(crate) fn take_unverified_error(&mut self) -> Option<PeerError> {
        self.unverified_error.take()
    }

    /// Returns the time at which to call [`Self::handle_timeout`].
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deferred.is_none().then(|| self.retransmission.next())
    }

    /// Retransmits the request if it is due. Returns an error if all transmissions are used up.
    pub(crate) fn handle_timeout(&mut self, cx: &mut Context<'_>) -> Result<(), PeerError> {
        if self.deferred.is_some() || self.retransmission.next() > cx.now {
            return Ok(());
        }
        let timing = &self.profile.config.timing;
        match self.retransmission.advance(timing, timing.transmissions, Persistence::None, false, cx.now) {
            Some(()) => {
                cx.out.sent.retransmissions = cx.out.sent.retransmissions.saturating_add(1);
                self.transmit(cx);
            }
            None => return Err(failure::silence(IKE_SA_INIT, self.path.remote, timing.transmissions)),
        }
        Ok(())
    }

    /// Handles a datagram for our SPI. While the handshake with another address of the peer is in
    /// IKE_AUTH, a good response is deferred.
    pub(crate) fn handle(
        mut self: Box<Self>,
        datagram: &[u8],
        local: SocketAddr,
        remote: SocketAddr,
        turn: AuthTurn,
        cx: &mut Context<'_>,
    ) -> InitStep {
        if datagram.len() > MAX_INIT_RESPONSE {
            return InitStep::Stay(self);
        }
        let Ok(message) = Message::decode(datagram) else {
            return InitStep::Stay(self);
        };
        let header = message.header;
        let expected = header.exchange == ExchangeType::IkeSaInit && header.response && header.message_id == 0;
        if !expected || self.deferred.is_some() {
            return InitStep::Stay(self);
        }
        let payloads = &message.payloads;
        if let Some(cookie) = payloads.notify(NotifyType::Cookie) {
            // RFC 7296 2.6: a cookie has 1 to 64 octets. If the same cookie arrives again, the
            // response is a duplicate, and the request with the cookie was already sent.
            //= RFC 7296 2.6.1 MUST NOT 2: another cookie is no failure
            let new = self.cookie.as_ref() != Some(&cookie.data);
            //= RFC 7296 2.6 MUST 5: 1 to 64 octets
            let usable = (1..=64).contains(&cookie.data.len()) && new;
            if usable && self.another_round() {
                self.cookie = Some(cookie.data.clone());
                if mutation!("nonce_changes_with_cookie") {
                    self.nonce = cx.random();
                }
                self.send(cx);
            } else if usable {
                self.unverified_error = Some(failure::too_many_cookies());
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
            // RFC 7296 2.21.1: any host could have sent this error. Report it, and continue the
            // attempt.
            //= RFC 7296 2.4 MUST NOT 3: nothing unprotected proves a failure
            //= RFC 7296 2.21.1 REQUIRED 1: go on after an unauthenticated error
            self.unverified_error = Some(failure::notified(IKE_SA_INIT, notify.kind, &self.profile.config, None));
            return InitStep::Stay(self);
        }
        if turn == AuthTurn::Wait {
            self.deferred = Some(DeferredResponse { datagram: datagram.to_vec(), local, remote });
            return InitStep::Stay(self);
        }
        match self.check(&message) {
            Ok(accepted) => self.proceed(&message, accepted, datagram, local, turn, cx),
            Err(error) => {
                self.unverified_error = Some(error);
                InitStep::Stay(self)
            }
        }
    }

    /// Handles the deferred response, since this address may start IKE_AUTH now.
    pub(crate) fn resume(mut self: Box<Self>, turn: AuthTurn, cx: &mut Context<'_>) -> InitStep {
        match self.deferred.take() {
            Some(DeferredResponse { datagram, local, remote }) => self.handle(&datagram, local, remote, turn, cx),
            None => InitStep::Stay(self),
        }
    }

    fn another_round(&mut self) -> bool {
        self.rounds = self.rounds.saturating_add(1);
        self.rounds <= MAX_ROUNDS
    }

    /// Switches to the key exchange method that the peer requests (RFC 7296 1.3). Accepts only a
    /// method that we offered.
    fn change_group(&mut self, notify: &Notify, cx: &mut Context<'_>) -> Result<(), PeerError> {
        let offered = |group: &Group| self.profile.config.ike_proposals.iter().any(|p| p.groups.contains(group));
        let wanted = notify.data_u16().and_then(Group::from_number).filter(offered);
        if wanted == Some(self.key.group()) && self.rounds > 0 {
            // This is a copy of a notification that we have already handled, or a response to a
            // copy of our first request.
            return Ok(());
        }
        match wanted.filter(|group| *group != self.key.group()) {
            //= RFC 7296 1.2 MUST 4: another group is taken up
            Some(group) if self.another_round() => {
                //= RFC 7296 3.3.6 SHOULD 11: a share of the wanted group
                self.key = start_key_exchange(group, cx)?;
                self.send(cx);
            }
            _ => {
                self.unverified_error =
                    Some(failure::notified(IKE_SA_INIT, NotifyType::InvalidKePayload, &self.profile.config, None))
            }
        }
        Ok(())
    }

    /// Checks that the response is complete and within our offer. Returns the parts of it that are
    /// needed next. Does not consume the key exchange.
    fn check<'a>(&self, message: &'a Message) -> Result<Accepted<'a>, PeerError> {
        let malformed = |error| failure::invalid(IKE_SA_INIT, error);
        let payloads = &message.payloads;
        let nonce = payloads.nonce().map_err(malformed)?;
        let key_exchange = payloads.key_exchange().map_err(malformed)?;
        let (answer, group) = (payloads.proposals().map_err(malformed)?, key_exchange.group);
        //= RFC 7296 3.3.6 MUST 5: the answer is one of our proposals
        let suite = negotiate::choose_ike(answer, &self.profile.config.ike_proposals, Some(group))
            .map(|chosen| chosen.suite)
            .filter(|suite| suite.group == self.key.group() && suite.group.number() == group)
            .filter(|_| negotiate::is_one_choice(answer) && message.header.responder_spi != 0);
        //= RFC 7296 3.3.6 MUST 6: otherwise it is over
        let Some(suite) = suite else {
            let detail = "the peer's answer is not one of our proposals with its own SPI".to_owned();
            return Err(PeerError::new(IKE_SA_INIT, PeerErrorKind::Protocol, detail));
        };
        suite.prf.check_nonce(nonce).map_err(malformed)?;
        Ok(Accepted { suite, key_exchange, nonce })
    }

    fn proceed(
        mut self: Box<Self>,
        message: &Message,
        accepted: Accepted<'_>,
        datagram: &[u8],
        local: SocketAddr,
        turn: AuthTurn,
        cx: &mut Context<'_>,
    ) -> InitStep {
        let Accepted { suite, key_exchange, nonce } = accepted;
        let payloads = &message.payloads;
        let ike = IkeId { initiator: self.spi, responder: message.header.responder_spi };
        if self.path.local.ip().is_unspecified() {
            self.path.local.set_ip(local.ip());
        }
        self.path.nat_traversal = self.path.detect(ike, payloads, self.forced);
        //= RFC 7296 2.23 MUST 12: the initiator moves to port 4500
        self.path.float(cx.config, self.profile.config.speaks_mobike());
        //= RFC 6023 3 MUST NOT 2: only if the responder supports it
        let supported = childless::is_supported(payloads) || mutation!("childless_unasked");
        let childless = match self.profile.config.childless {
            Childless::Never | Childless::Allow => false,
            Childless::Prefer => supported,
            Childless::Force if supported => true,
            Childless::Force => return InitStep::Failed(failure::no_childless()),
        };
        let Self { profile, begun, path, nonce: ours, key, request, previous_addresses, .. } = *self;
        let shared = match key.finish(key_exchange) {
            Ok(shared) => shared,
            Err(error) => {
                return InitStep::Failed(PeerError::new(IKE_SA_INIT, PeerErrorKind::Protocol, error.to_string()));
            }
        };
        let keys = IkeKeys::initial(suite, Nonces { initiator: &ours, responder: nonce }, ike, &shared);
        let fragments = payloads.notify(NotifyType::Ikev2FragmentationSupported).is_some();
        let channel = Channel::new(keys, ike, IkeRole::Initiator, path, fragments, Some(Arc::clone(&profile)), cx.now)
            .after_init();
        let transcript = InitTranscript {
            hashes: payloads.notify(NotifyType::SignatureHashAlgorithms).map(Notify::hashes),
            request,
            response: datagram.to_vec(),
            initiator_nonce: ours.to_vec(),
            responder_nonce: nonce.to_vec(),
            childless: supported,
        };
        match InitiatorAuth::begin(
            profile,
            begun,
            channel,
            transcript,
            turn == (AuthTurn::Proceed { initial_contact: true }),
            previous_addresses,
            childless,
            cx,
        ) {
            Ok(next) => InitStep::Authenticate(next),
            Err(error) => InitStep::Failed(error),
        }
    }
}

/// The decision whether an address of the peer may start IKE_AUTH now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AuthTurn {
    /// The handshake with another address is in IKE_AUTH.
    Wait,
    /// No handshake with another address is in IKE_AUTH.
    Proceed {
        /// Whether to send INITIAL_CONTACT, because we have no SA with this peer (RFC 7296 2.4).
        initial_contact: bool,
    },
}

fn start_key_exchange(group: Group, cx: &mut Context<'_>) -> Result<InitiatorKeyExchange, PeerError> {
    InitiatorKeyExchange::start(group, cx.env)
        .map_err(|error| PeerError::new(IKE_SA_INIT, PeerErrorKind::Local, error.to_string()))
}

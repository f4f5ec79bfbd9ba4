//! IKE_SA_INIT and IKE_AUTH as the responder (RFC 7296 1.2).

use std::net::SocketAddr;
use std::sync::Arc;

use super::agent_peer::AgentPeer;
use super::channel::{Channel, Incoming};
use super::child_in_auth::{self, RefusedChild};
use super::childless;
use super::failure::{self, IKE_AUTH, IKE_SA_INIT};
use super::ike_sa::IkeSa;
use super::init_transcript::{InitTranscript, capabilities};
use super::initiation::Initiation;
use super::internal_address::{self, LeaseAddresses};
use super::last_response::{LastResponse, MAX_REPEATS};
use super::mobike::{self, Mobike};
use super::negotiated::Negotiated;
use super::path::Path;
use super::profile::Profile;
use crate::auth::{Presented, Proof};
use crate::childless::Childless;
use crate::config::{Group, Identity, IkeProposal, PeerName};
use crate::crypto::{IkeKeys, IkeRole, IkeSuite, ResponderKeyExchange};
use crate::event::{ChildSa, IkeId, NotServed, PeerCertificate, PeerError, PeerErrorKind};
use crate::negotiate;
use crate::output::Context;
use crate::time::Instant;
use crate::wire::{
    Certificate, CertificateRequest, ExchangeType, Header, Id, InvalidMessage, Message, Notify, NotifyType, Payload,
    Payloads,
};

/// The settings for the response to an IKE_SA_INIT request, before the peer is known.
pub(crate) struct InitPolicy<'a> {
    /// Proposals of the peers that may have sent the request, best first.
    pub(crate) proposals: &'a [&'a IkeProposal],
    /// Trust anchors of the peers that may have sent the request.
    pub(crate) request: Option<CertificateRequest>,
    /// Whether to make the peer detect a NAT in front of us.
    pub(crate) force_encapsulation: bool,
    /// Whether to announce that IKE_AUTH need not create a CHILD_SA.
    pub(crate) childless: bool,
}

/// Finds the peer with an identity and, if the initiator sent IDr, with our identity.
pub(crate) type FindPeer<'a> = dyn Fn(&Identity, Option<&Identity>) -> Option<Arc<Profile>> + 'a;

/// The configured peers, and the internal addresses for them.
pub(crate) struct Peers<'a> {
    pub(crate) find: &'a FindPeer<'a>,
    pub(crate) lease: &'a mut LeaseAddresses<'a>,
}

/// The result of an IKE_SA_INIT request.
#[derive(Debug)]
pub(crate) enum InitOutcome {
    /// The request was answered, and we wait for IKE_AUTH.
    HalfOpen(Box<HalfOpen>),
    /// The request is to be answered with this error notification, and no state is stored. There is
    /// no error if the initiator only has to use another group.
    Refused(Notify, Option<PeerError>),
    /// A payload is missing, so the request was not answered.
    Malformed(InvalidMessage),
    /// The request was not answered, because its share does not belong to the group, or because no
    /// key could be made.
    Unanswered(PeerError),
}

/// Estimated size of a half-open IKE SA without its messages and fragments, bytes: keys, nonces and
/// the state.
const HALF_OPEN_OVERHEAD: usize = 1024;

/// The state after IKE_SA_INIT was answered. The shared secret is computed only when IKE_AUTH
/// arrives.
#[derive(Debug)]
pub(crate) struct HalfOpen {
    begun: Instant,
    ike: IkeId,
    path: Path,
    suite: IkeSuite,
    fragments: bool,
    transcript: InitTranscript,
    key_state: KeyState,
    /// How often the response was sent again.
    repeats: u8,
}

#[derive(Debug)]
enum KeyState {
    Pending(ResponderKeyExchange),
    Derived(Box<Channel>),
    /// The peer's share cannot be used.
    Invalid,
}

impl HalfOpen {
    /// Answers a request. If a cookie was required, the caller has checked it.
    pub(crate) fn answer(
        message: &Message,
        datagram: &[u8],
        local: SocketAddr,
        remote: SocketAddr,
        policy: InitPolicy<'_>,
        cx: &mut Context<'_>,
    ) -> InitOutcome {
        let payloads = &message.payloads;
        let (offers, key_exchange, nonce) = match (payloads.proposals(), payloads.key_exchange(), payloads.nonce()) {
            (Ok(offers), Ok(key_exchange), Ok(nonce)) => (offers, key_exchange, nonce),
            (Err(error), ..) | (_, Err(error), _) | (.., Err(error)) => return InitOutcome::Malformed(error),
        };
        let Some(chosen) = negotiate::choose_ike(offers, policy.proposals.iter().copied(), Some(key_exchange.group))
        else {
            //= RFC 7296 2.7 MUST 3: one proposal or NO_PROPOSAL_CHOSEN
            let notify = Notify::new(NotifyType::NoProposalChosen);
            let ours: Vec<IkeProposal> = policy.proposals.iter().copied().cloned().collect();
            return InitOutcome::Refused(notify, Some(failure::no_ike_proposal(&ours, offers)));
        };
        if let Err(error) = chosen.suite.prf.check_nonce(nonce) {
            return InitOutcome::Malformed(error);
        }
        if key_exchange.group != chosen.suite.group.number() {
            // RFC 7296 1.2: the initiator guessed another group.
            //= RFC 7296 3.4 MUST 5: INVALID_KE_PAYLOAD
            return InitOutcome::Refused(Notify::invalid_ke(chosen.suite.group.number()), None);
        }
        let key_exchange = match ResponderKeyExchange::respond(chosen.suite.group, key_exchange, cx.env) {
            Ok(key_exchange) => key_exchange,
            Err(error) => {
                let kind = if error.is_local() { PeerErrorKind::Local } else { PeerErrorKind::Protocol };
                return InitOutcome::Unanswered(PeerError::new(IKE_SA_INIT, kind, error.to_string()));
            }
        };
        //= RFC 7296 2.6 MUST 1: unique SPIs
        let ike = IkeId { initiator: message.header.initiator_spi, responder: u64::from_be_bytes(cx.random()).max(1) };
        let mut path = Path::without_nat(local, remote);
        // The initiator computed its hashes without a responder's SPI (RFC 7296 2.23).
        let forced = policy.force_encapsulation;
        path.nat_traversal = path.detect(IkeId { responder: 0, ..ike }, payloads, forced);
        //= RFC 7296 2.10 MUST 1: random nonces
        let ours: [u8; 32] = cx.random();

        let mut answer = Payloads::new();
        answer.push(Payload::SecurityAssociation(vec![chosen.response(Vec::new())]));
        answer.push(Payload::KeyExchange(key_exchange.payload()));
        answer.push(Payload::Nonce(ours.to_vec()));
        if path.nat_traversal {
            //= RFC 7296 2.23 MUST 8: NAT_DETECTION in IKE_SA_INIT
            answer.extend(path.notifies(ike, forced).map(Payload::Notify));
        }
        answer.extend(policy.request.map(Payload::CertificateRequest));
        answer.extend(capabilities().map(Payload::Notify));
        if policy.childless {
            //= RFC 6023 3 MUST 1: a supporting responder announces it
            //= RFC 6023 3 MUST NOT 5: and no other one
            answer.push_notify(childless::supported());
        }
        let response = Message::response(&message.header, ike.responder, answer).encode();
        cx.out.message(local, remote, cx.config.nat_port, &response);
        let transcript = InitTranscript {
            childless: false,
            hashes: payloads.notify(NotifyType::SignatureHashAlgorithms).map(Notify::hashes),
            request: datagram.to_vec(),
            response,
            initiator_nonce: nonce.to_vec(),
            responder_nonce: ours.to_vec(),
        };
        let fragments = payloads.notify(NotifyType::Ikev2FragmentationSupported).is_some();
        let key_state = KeyState::Pending(key_exchange);
        InitOutcome::HalfOpen(Box::new(Self {
            begun: cx.now,
            ike,
            path,
            suite: chosen.suite,
            fragments,
            transcript,
            key_state,
            repeats: 0,
        }))
    }

    /// Returns the approximate size in memory, bytes, without fragments.
    pub(crate) fn octets(&self) -> usize {
        let messages = self.transcript.request.len().saturating_add(self.transcript.response.len());
        HALF_OPEN_OVERHEAD.saturating_add(messages)
    }

    /// Returns the size of the fragments of IKE_AUTH, bytes.
    pub(crate) fn fragment_octets(&self) -> usize {
        match &self.key_state {
            KeyState::Derived(channel) => channel.fragment_octets(),
            KeyState::Pending(_) | KeyState::Invalid => 0,
        }
    }

    /// Returns the method of the key exchange.
    pub(crate) fn group(&self) -> Group {
        self.suite.group
    }

    /// Returns our SPI, by which the endpoint finds the half-open IKE SA.
    pub(crate) fn spi(&self) -> u64 {
        self.ike.responder
    }

    /// Handles a request that repeats an earlier one with a cookie that we have requested (RFC 7296
    /// 2.6). The response to an earlier transmission without the cookie may have crossed our cookie
    /// request. AUTH covers the request that the initiator sent last (2.15), so this request
    /// replaces the earlier one if they differ only in the cookie.
    pub(crate) fn adopt_cookie(&mut self, message: &Message, datagram: &[u8]) {
        let without_cookie = |message: &Message| -> Payloads {
            let is_cookie =
                |payload: &Payload| matches!(payload, Payload::Notify(notify) if notify.kind == NotifyType::Cookie);
            message.payloads.iter().filter(|payload| !is_cookie(payload)).cloned().collect()
        };
        let earlier = Message::decode(&self.transcript.request);
        if earlier.is_ok_and(|earlier| without_cookie(&earlier) == without_cookie(message)) {
            //= RFC 7296 2.15 REQUIRED 2: the latest IKE_SA_INIT counts
            self.transcript.request = datagram.to_vec();
        }
    }

    /// Sends the IKE_SA_INIT response again if this datagram is the same request. The datagram may
    /// have arrived at another address of this node than before.
    pub(crate) fn repeat(&mut self, datagram: &[u8], local: SocketAddr, cx: &mut Context<'_>) {
        //= RFC 7296 2.1 REQUIRED 9: IKE_SA_INIT again is the whole message
        if self.transcript.request == datagram && self.repeats < MAX_REPEATS {
            self.repeats = self.repeats.saturating_add(1);
            //= RFC 7296 2.11 MUST 2: the response goes back
            cx.out.message(local, self.path.remote, cx.config.nat_port, &self.transcript.response);
        }
    }

    /// Returns the initiator's SPI. Together with the address it identifies a retransmission.
    pub(crate) fn initiator_spi(&self) -> u64 {
        self.ike.initiator
    }

    /// Derives the keys. IKE_AUTH may come from a different port than IKE_SA_INIT, since the
    /// initiator switches to port 4500, which a NAT may map differently (RFC 7296 2.23).
    fn derive_keys(&mut self, local: SocketAddr, remote: SocketAddr, cx: &Context<'_>) {
        let KeyState::Pending(key_exchange) = std::mem::replace(&mut self.key_state, KeyState::Invalid) else {
            return;
        };
        let Ok(shared) = key_exchange.secret() else {
            return;
        };
        let path = Path { local, remote, ..self.path };
        let keys = IkeKeys::initial(self.suite, self.transcript.nonces(), self.ike, &shared);
        let channel = Channel::new(keys, self.ike, IkeRole::Responder, path, self.fragments, None, cx.now);
        self.key_state = KeyState::Derived(Box::new(channel.after_init()));
    }

    /// Handles a datagram for our SPI.
    pub(crate) fn handle(
        mut self: Box<Self>,
        header: &Header,
        datagram: &[u8],
        local: SocketAddr,
        remote: SocketAddr,
        peers: &mut Peers<'_>,
        cx: &mut Context<'_>,
    ) -> AuthOutcome {
        if header.exchange != ExchangeType::IkeAuth || header.response {
            return AuthOutcome::Stay(self);
        }
        if matches!(self.key_state, KeyState::Pending(_)) {
            self.derive_keys(local, remote, cx);
        }
        let mut channel = match std::mem::replace(&mut self.key_state, KeyState::Invalid) {
            KeyState::Derived(channel) => channel,
            other => {
                self.key_state = other;
                return AuthOutcome::Stay(self);
            }
        };
        let incoming = channel.receive(header, datagram, local, remote, cx);
        //= RFC 7296 1.4 MUST 1: no INFORMATIONAL before IKE_AUTH
        let Incoming::Request(ExchangeType::IkeAuth, payloads) = incoming else {
            self.key_state = KeyState::Derived(channel);
            return AuthOutcome::Stay(self);
        };
        // The sender has the keys, so this is its address, even if unauthenticated datagrams for
        // our SPI came from other addresses.
        channel.begin_at(local, remote);
        let identity = payloads.as_ref().ok().and_then(|payloads| payloads.id_initiator().ok()?.identity());
        let payloads = match payloads {
            Ok(payloads) => payloads,
            Err(error) => {
                let rejection =
                    //= RFC 7296 2.21.2 MUST 2: a malformed IKE_AUTH is rejected whole
                    AuthRejection { notify: error.notify(), error: failure::invalid(IKE_AUTH, error), peer: None };
                return reject(*channel, identity, rejection, remote, cx);
            }
        };
        match self.authenticate(&payloads, identity.as_ref(), &mut channel, peers.find, cx) {
            Ok(authenticated) => self.accept(&payloads, channel, authenticated, peers.lease, cx),
            Err(rejection) => reject(*channel, identity, *rejection, remote, cx),
        }
    }

    /// Finds the peer and checks its authentication. `identity` is the one of IDi, unless it has a
    /// type that cannot be configured.
    fn authenticate(
        &self,
        payloads: &Payloads,
        identity: Option<&Identity>,
        channel: &mut Channel,
        find: &FindPeer<'_>,
        cx: &Context<'_>,
    ) -> Result<Authenticated, Box<AuthRejection>> {
        let malformed = |error: InvalidMessage| AuthRejection {
            notify: error.notify(),
            error: failure::invalid(IKE_AUTH, error),
            peer: None,
        };
        let id = payloads.id_initiator().map_err(malformed)?;
        let ours = payloads.id_responder().ok().and_then(Id::identity);
        let Some(profile) = identity.and_then(|identity| find(identity, ours.as_ref())) else {
            let detail = match (identity, ours) {
                (Some(identity), Some(ours)) => {
                    format!("{identity} asks for {ours}; no peer with this remote_id and local_id is configured here")
                }
                (Some(identity), None) => format!("{identity} is the remote_id of no peer configured here"),
                (None, _) => format!("an identity of type {} cannot be configured here", id.kind),
            };
            return Err(AuthRejection::authentication(
                PeerError::new(IKE_AUTH, PeerErrorKind::UnknownIdentity, detail),
                None,
            ));
        };
        let name = profile.config.name.clone();
        let refused = |error: PeerError| AuthRejection::authentication(error, Some(name.clone()));
        let authentication = payloads.authentication().map_err(|_| {
            let detail = "the peer sent no AUTH: it wants EAP, which is not supported; configure a pre-shared key or certificates at the peer";
            refused(PeerError::new(IKE_AUTH, PeerErrorKind::AuthenticationFailed, detail.to_owned()))
        })?;
        let certificates: Vec<Certificate> = payloads.certificates().cloned().collect();
        let octets = self.transcript.initiator_octets(channel.keys(), id);
        let presented = Presented { id, certificates: &certificates, authentication };
        let (proof, certificate) = profile
            .auth
            .authenticate(&profile.config.remote_id, presented, &octets, cx.env.unix_time())
            .map_err(|error| refused(failure::auth(&error)))?;
        // These refusals come after AUTH, since they show that the identity is configured.
        // IKE_SA_INIT was answered with the proposals of all peers. Now that the peer is known,
        // only its proposals are allowed.
        //= RFC 7296 3.3.4 MUST 5: nothing else is accepted
        if !profile.config.ike_proposals.iter().any(|proposal| proposal.allows(self.suite)) {
            let request = Message::decode(&self.transcript.request);
            let offers =
                request.as_ref().ok().and_then(|request| request.payloads.proposals().ok()).unwrap_or_default();
            let error = failure::no_ike_proposal(&profile.config.ike_proposals, offers);
            let notify = Notify::new(NotifyType::NoProposalChosen);
            return Err(Box::new(AuthRejection { notify, error, peer: Some(name) }));
        }
        if profile.config.speaks_mobike()
            && mobike::finds_unexpected_nat(payloads, channel.path.local, channel.path.remote)
        {
            //= RFC 4555 3.9 REQUIRED 3: UNEXPECTED_NAT_DETECTED
            let notify = Notify::new(NotifyType::UnexpectedNatDetected);
            return Err(Box::new(AuthRejection {
                notify,
                error: failure::unexpected_nat(&channel.path),
                peer: Some(name),
            }));
        }
        let our_id = Id::from(&profile.config.local_id);
        let octets = self.transcript.responder_octets(channel.keys(), &our_id);
        let authentication = profile
            .auth
            .prove(&octets, self.transcript.hashes.as_deref())
            .map_err(|error| refused(failure::auth(&error)))?;
        channel.profile = Some(Arc::clone(&profile));
        let mut answer = Payloads::new();
        answer.push(Payload::IdResponder(our_id));
        //= RFC 7296 3.7 SHOULD 2: what is asked for is sent
        answer.extend(profile.auth.certificates().iter().cloned().map(Payload::Certificate));
        answer.push(Payload::Authentication(authentication));
        Ok(Authenticated { profile, proof, certificate, answer })
    }

    fn accept(
        &self,
        payloads: &Payloads,
        mut channel: Box<Channel>,
        authenticated: Authenticated,
        lease: &mut LeaseAddresses<'_>,
        cx: &mut Context<'_>,
    ) -> AuthOutcome {
        let Authenticated { profile, proof, certificate, mut answer } = authenticated;
        let (internal_addresses, refusal) = match internal_address::assign(payloads, &profile.config, lease, cx) {
            Ok(addresses) => (addresses, None),
            Err(refusal) => (Vec::new(), Some(refusal)),
        };
        let profile = profile.with_internal_addresses(&internal_addresses);
        //= RFC 6023 3 MUST 3: no CHILD_SA in the request, none in the response
        //= RFC 6023 3 MUST NOT 4: and the other way round
        //= RFC 6023 3 SHOULD 6: otherwise INVALID_SYNTAX
        let left_out = childless::leaves_out_child(payloads) && profile.config.childless != Childless::Never;
        let child = match refusal {
            Some(refusal) => Err(refusal.into()),
            None if left_out => Ok(None),
            None if profile.config.childless == Childless::Force => Err(failure::child_in_auth(&profile.config).into()),
            None => child_in_auth::answer(payloads, &self.transcript, &channel, &profile, cx).map(Some),
        };
        let mut refused_child = None;
        let mut not_served = NotServed {
            internal_address: internal_address::is_ignored(payloads, &profile.config),
            transport_mode: false,
        };
        let child = match child {
            Ok(None) => {
                let response = internal_address::response(&internal_addresses, payloads);
                answer.extend(response.map(Payload::Configuration));
                Ok(None)
            }
            Ok(Some((child, chosen))) => {
                //= RFC 7296 2.19 MUST 3: CP is in the message with SA
                let response = internal_address::response(&internal_addresses, payloads);
                answer.extend(response.map(Payload::Configuration));
                answer.extend(chosen);
                not_served.transport_mode = negotiate::mode_of(payloads) != child.mode;
                Ok(Some(child))
            }
            Err(RefusedChild { child, mut error, notify }) => {
                // The address that the peer does not get may be the reason.
                for sentence in not_served.sentences() {
                    error.detail.push_str("; ");
                    error.detail.push_str(sentence);
                }
                // RFC 7296 1.2: the IKE SA is created even without a CHILD_SA.
                //= RFC 7296 1.2 REQUIRED 7: the IKE SA stays without a CHILD_SA
                answer.push_notify(notify);
                refused_child = child.map(|child| (child, error.clone()));
                Err(error)
            }
        };
        let announced = mobike::own_additional(cx.config, &profile.config, channel.path.local.ip());
        let mobike = Mobike::negotiated(&profile.config, payloads, announced, &channel.path);
        if let Some(mobike) = &mobike {
            answer.extend(mobike::supported(&mobike.announced));
        }
        let mut agent = AgentPeer::negotiated(&profile.config, payloads);
        if let Some(agent) = &mut agent {
            answer.extend(agent.in_response(&profile.config, channel.path.remote));
        }
        answer.extend(channel.window_size());
        channel.respond(ExchangeType::IkeAuth, &answer, cx);
        channel.open_window();
        let negotiated = Negotiated::new(proof, certificate, &channel.path, internal_addresses, not_served);
        let initial_contact = payloads.notify(NotifyType::InitialContact).is_some();
        let sa = IkeSa::new(*channel, profile, negotiated, Initiation::ByPeer(self.begun), cx);
        let mut sa = sa.with_mobike(mobike).with_agent(agent);
        if let Some((child, error)) = refused_child {
            sa.child_failed_in_auth(&child, error);
        }
        AuthOutcome::Up { sa, child, initial_contact }
    }
}

#[derive(Debug)]
struct Authenticated {
    profile: Arc<Profile>,
    proof: Proof,
    certificate: Option<PeerCertificate>,
    answer: Payloads,
}

#[derive(Debug)]
struct AuthRejection {
    notify: Notify,
    error: PeerError,
    peer: Option<PeerName>,
}

impl AuthRejection {
    fn authentication(error: PeerError, peer: Option<PeerName>) -> Box<Self> {
        //= RFC 7296 2.21.2 SHOULD 1: AUTHENTICATION_FAILED
        Box::new(Self { notify: Notify::new(NotifyType::AuthenticationFailed), error, peer })
    }
}

/// The result of a datagram in IKE_AUTH.
#[derive(Debug)]
pub(crate) enum AuthOutcome {
    /// IKE_AUTH has not arrived.
    Stay(Box<HalfOpen>),
    /// The peer is authenticated, and the response was sent.
    Up {
        /// The IKE SA.
        sa: Box<IkeSa>,
        /// The CHILD_SA, or the reason why there is none. `None` if the peer left it out.
        child: Result<Option<ChildSa>, PeerError>,
        /// Whether the peer sent INITIAL_CONTACT.
        initial_contact: bool,
    },
    /// Authentication failed, and an error was sent to the peer.
    Refused {
        /// The configured peer that the initiator claimed to be, if there is one.
        peer: Option<PeerName>,
        /// The identity that the initiator sent.
        identity: Option<Identity>,
        /// The initiator's address.
        from: SocketAddr,
        /// The reason for the refusal.
        error: PeerError,
        /// The response, so that it can be sent again if it was lost.
        last_response: Option<LastResponse>,
    },
}

fn reject(
    mut channel: Channel,
    identity: Option<Identity>,
    rejection: AuthRejection,
    from: SocketAddr,
    cx: &mut Context<'_>,
) -> AuthOutcome {
    let AuthRejection { notify, error, peer } = rejection;
    //= RFC 7296 2.21.2 MUST 3: by one of two notifications
    channel.respond(ExchangeType::IkeAuth, &Payloads::from(vec![Payload::Notify(notify)]), cx);
    AuthOutcome::Refused { peer, identity, from, error, last_response: channel.into_last_response() }
}

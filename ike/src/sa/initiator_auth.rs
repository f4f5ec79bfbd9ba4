//! IKE_AUTH as the initiator (RFC 7296 1.2).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::agent_peer::{self, AgentPeer};
use super::channel::{Channel, Incoming};
use super::child::{NegotiatedChild, ReservedSpi};
use super::failure::{self, IKE_AUTH};
use super::ike_sa::IkeSa;
use super::init_transcript::InitTranscript;
use super::initiation::Initiation;
use super::internal_address;
use super::mobike::{self, Mobike};
use super::negotiated::Negotiated;
use super::profile::Profile;
use crate::auth::{Presented, Proof};
use crate::event::{ChildSa, NotServed, PeerCertificate, PeerError, PeerErrorKind};
use crate::negotiate::{self, ChildKeyExchange, Traffic};
use crate::output::Context;
use crate::purpose::Purpose;
use crate::time::Instant;
use crate::wire::{
    Certificate, Delete, ExchangeType, Header, Id, InvalidMessage, Notify, NotifyType, Payload, PayloadType, Payloads,
};

/// The state of an initiator that has sent IKE_AUTH.
#[derive(Debug)]
pub(crate) struct InitiatorAuth {
    profile: Arc<Profile>,
    begun: Instant,
    channel: Channel,
    transcript: InitTranscript,
    /// The SPI of the CHILD_SA. `None` if IKE_AUTH leaves it out (RFC 6023).
    inbound: Option<ReservedSpi>,
    /// The internal addresses that the peer gave us last.
    previous_addresses: Vec<IpAddr>,
}

/// The result of a message or deadline in IKE_AUTH.
#[derive(Debug)]
pub(crate) enum AuthStep {
    /// The response has not arrived.
    Stay(Box<InitiatorAuth>),
    /// The peer is authenticated.
    Up {
        /// The IKE SA.
        sa: Box<IkeSa>,
        /// The CHILD_SA, or the reason why there is none. `None` if we left it out.
        child: Result<Option<ChildSa>, PeerError>,
    },
    /// The peer's authentication failed, or the peer refused ours.
    Failed {
        /// The exchange, what was expected, and what was received.
        error: PeerError,
        /// Set while our error message is being sent to the peer.
        channel: Option<Box<Channel>>,
    },
}

impl InitiatorAuth {
    /// Sends the IKE_AUTH request, with our AUTH, and without a CHILD_SA if `childless` is set.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn begin(
        profile: Arc<Profile>,
        begun: Instant,
        mut channel: Channel,
        transcript: InitTranscript,
        initial_contact: bool,
        previous_addresses: Vec<IpAddr>,
        childless: bool,
        cx: &mut Context<'_>,
    ) -> Result<Box<Self>, PeerError> {
        let config = &profile.config;
        let id = Id::from(&config.local_id);
        let octets = transcript.initiator_octets(channel.keys(), &id);
        let authentication =
            profile.auth.prove(&octets, transcript.hashes.as_deref()).map_err(|error| failure::auth(&error))?;
        negotiate::check_ends(&config.child, channel.path.ends())
            .map_err(|obstacle| failure::mode(IKE_AUTH, &config.child.name, obstacle))?;
        let reserve = |cx| ReservedSpi::new(&profile, &channel, cx).ok_or_else(|| failure::no_spi(IKE_AUTH));
        let inbound = if childless { None } else { Some(reserve(&mut *cx)?) };

        let mut payloads = Payloads::new();
        //= RFC 7296 2.5 SHOULD 15: the usual order of payloads
        payloads.push(Payload::IdInitiator(id));
        //= RFC 7296 3.6 SHOULD 1: certificates are sent
        payloads.extend(profile.auth.certificates().iter().cloned().map(Payload::Certificate));
        if initial_contact {
            //= RFC 7296 2.4 MUST 2: INITIAL_CONTACT in the first IKE_AUTH
            payloads.push_notify(Notify::new(NotifyType::InitialContact));
        }
        payloads.extend(profile.auth.certificate_request().map(Payload::CertificateRequest));
        payloads.push(Payload::IdResponder(Id::from(&config.remote_id)));
        payloads.push(Payload::Authentication(authentication));
        //= RFC 7296 2.19 MUST 1: the client asks in IKE_AUTH
        //= RFC 7296 2.19 MUST 2: CP before SA
        payloads.extend(internal_address::request(config, &previous_addresses).map(Payload::Configuration));
        //= RFC 6023 5 REQUIRED 1: nothing about a CHILD_SA
        if let Some(inbound) = &inbound {
            payloads.extend(negotiate::mode_payload(config.child.mode));
            let offer = negotiate::offer_esp(&config.child.proposals, inbound.spi, false);
            payloads.push(Payload::SecurityAssociation(offer));
            let asked = Traffic::from(&config.child);
            payloads.push(Payload::TrafficSelectorsInitiator(asked.local_selectors()));
            payloads.push(Payload::TrafficSelectorsResponder(asked.remote_selectors()));
        }
        if config.speaks_mobike() {
            //= RFC 4555 3.2 MUST 1: MOBIKE is announced in IKE_AUTH
            payloads.extend(mobike::supported(&mobike::own_additional(cx.config, config, channel.path.local.ip())));
            if !channel.path.nat_traversal {
                //= RFC 4555 3.9 MUST 1: NO_NATS_ALLOWED without NAT traversal
                payloads.push_notify(Notify::no_nats_allowed(channel.path.local, channel.path.remote));
            }
        }
        payloads.extend(agent_peer::vendor_id(config));
        payloads.extend(channel.window_size());
        channel.request(ExchangeType::IkeAuth, &payloads, cx);
        Ok(Box::new(Self { profile, begun, channel, transcript, inbound, previous_addresses }))
    }

    /// Returns the time at which to call [`Self::handle_timeout`].
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.channel.retransmit_at()
    }

    /// Returns whether the request was sent more than once without a response.
    pub(crate) fn is_repeated(&self) -> bool {
        self.channel.is_repeated()
    }

    /// Retransmits the request if it is due. Returns an error if all transmissions are used up. The
    /// caller must then call [`Self::release`].
    pub(crate) fn handle_timeout(&mut self, cx: &mut Context<'_>) -> Result<(), PeerError> {
        if self.channel.retransmit_at().is_none_or(|at| at > cx.now) || self.channel.retransmit(false, cx).is_some() {
            return Ok(());
        }
        Err(failure::silence(IKE_AUTH, self.channel.path.remote, self.profile.config.timing.transmissions))
    }

    /// Releases the reserved SPI.
    pub(crate) fn release(self, cx: &mut Context<'_>) {
        if let Some(inbound) = self.inbound {
            inbound.release(&self.profile, cx);
        }
    }

    /// Handles a datagram for our SPI.
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
            // Requests are ignored until the peer is authenticated.
            Incoming::Request(..) | Incoming::Nothing => AuthStep::Stay(self),
        }
    }

    fn fail(self: Box<Self>, error: PeerError, tell: bool, cx: &mut Context<'_>) -> AuthStep {
        let Self { profile, mut channel, inbound, .. } = *self;
        if let Some(inbound) = inbound {
            inbound.release(&profile, cx);
        }
        // RFC 7296 2.21.2: an initiator that cannot accept the response reports this in an
        // INFORMATIONAL exchange. The notification alone ends the IKE SA, but libreswan acts on
        // DELETE only.
        let channel = (tell && !mutation!("refused_responder_not_told")).then(|| {
            let mut payloads = Payloads::new();
            payloads.push_notify(Notify::new(NotifyType::AuthenticationFailed));
            if !mutation!("refused_responder_not_deleted") {
                payloads.push(Payload::Delete(Delete::Ike));
            }
            channel.request(ExchangeType::Informational, &payloads, cx);
            Box::new(channel)
        });
        AuthStep::Failed { error, channel }
    }

    fn finish(mut self: Box<Self>, payloads: &Payloads, cx: &mut Context<'_>) -> AuthStep {
        let (proof, certificate) = match self.verify(payloads, cx) {
            Ok(verified) => verified,
            Err((error, tell)) => return self.fail(error, tell, cx),
        };
        // RFC 7296 2.21.2: with such an error, the peer has no IKE SA. If it says that it has made
        // the CHILD_SA, it is told to delete both.
        if let Some(ends) = payloads.notifies().find(|notify| notify.kind.ends_ike_sa()) {
            let error = failure::notified(IKE_AUTH, ends.kind, &self.profile.config, None);
            return self.fail(error, payloads.proposals().is_ok(), cx);
        }
        let remote = self.channel.path.remote.ip();
        let given =
            internal_address::of_response(payloads, &self.profile.config, &self.previous_addresses, remote, cx.env);
        // With another answer, the peer may have installed the CHILD_SA.
        let refused = given.is_ok() && payloads.proposals().is_err() && payloads.error().is_some();
        let (child, internal_addresses) = match given {
            Ok(addresses) => {
                self.profile = self.profile.with_internal_addresses(&addresses);
                let negotiated = self.inbound.is_some().then(|| self.child(payloads)).transpose();
                (negotiated, addresses)
            }
            Err(error) => (Err(error), Vec::new()),
        };
        let Self { profile, begun, mut channel, inbound, transcript, .. } = *self;
        channel.open_window();
        //= RFC 7296 2.21.2 MUST NOT 4: a failed CHILD_SA is no failed authentication
        let child = match child {
            Ok(negotiated) => {
                Ok(negotiated.zip(inbound).map(|(negotiated, inbound)| negotiated.into_sa(inbound, true, &channel)))
            }
            // If the peer has installed the CHILD_SA, that CHILD_SA ends with the IKE SA.
            //= RFC 7296 1.3.1 MUST 2: tunnel mode that is not wanted is deleted
            Err(error) => {
                if let Some(inbound) = inbound {
                    inbound.release(&profile, cx);
                }
                Err(error)
            }
        };
        let mut negotiated =
            Negotiated::new(proof, certificate, &channel.path, internal_addresses, NotServed::default());
        negotiated.peer_supports_childless = transcript.childless;
        let announced = mobike::own_additional(cx.config, &profile.config, channel.path.local.ip());
        let mobike = Mobike::negotiated(&profile.config, payloads, announced, &channel.path);
        let agent = AgentPeer::negotiated(&profile.config, payloads);
        let sa = IkeSa::new(channel, profile, negotiated, Initiation::ByUs(begun), cx);
        let mut sa = sa.with_mobike(mobike).with_agent(agent);
        if let Err(error) = &child
            && refused
        {
            let name = sa.profile.config.child.name.clone();
            sa.child_failed_in_auth(&name, error.clone());
        }
        AuthStep::Up { sa, child }
    }

    /// Returns how the peer authenticated, and its certificate. The `bool` of the error states
    /// whether the peer must be notified.
    fn verify(
        &self,
        payloads: &Payloads,
        cx: &Context<'_>,
    ) -> Result<(Proof, Option<PeerCertificate>), (PeerError, bool)> {
        let config = &self.profile.config;
        let Ok(authentication) = payloads.authentication() else {
            // RFC 7296 2.21.2: without AUTH there is no IKE SA. If the peer sent an error, it need
            // not be notified.
            return Err(match payloads.error() {
                Some(notify) => (failure::notified(IKE_AUTH, notify.kind, config, None), false),
                None => (failure::invalid(IKE_AUTH, InvalidMessage::Missing(PayloadType::Authentication)), true),
            });
        };
        let id = payloads.id_responder().map_err(|error| (failure::invalid(IKE_AUTH, error), true))?;
        let certificates: Vec<Certificate> = payloads.certificates().cloned().collect();
        let octets = self.transcript.responder_octets(self.channel.keys(), id);
        let presented = Presented { id, certificates: &certificates, authentication };
        let auth = &self.profile.auth;
        let authenticated = auth.authenticate(&config.remote_id, presented, &octets, cx.env.unix_time());
        authenticated.map_err(|error| (failure::auth(&error), true))
    }

    fn child(&self, payloads: &Payloads) -> Result<NegotiatedChild, PeerError> {
        let config = &self.profile.config;
        let child = Some(&config.child);
        let malformed = |error| failure::invalid(IKE_AUTH, error);
        let answer = match payloads.proposals() {
            Ok(answer) => answer,
            Err(missing) => {
                let notified = payloads.error().map(|notify| {
                    let error = failure::notified(IKE_AUTH, notify.kind, config, child);
                    failure::of_child(error, &Purpose::whole(&config.child.name), config)
                });
                return Err(notified.unwrap_or_else(|| malformed(missing)));
            }
        };
        let chosen = negotiate::choose_esp(answer, &config.child.proposals, ChildKeyExchange::Ignored)
            .filter(|_| negotiate::is_one_choice(answer))
            .ok_or_else(|| failure::no_esp_proposal(IKE_AUTH, config, child, answer))?;
        negotiate::check_response(&config.child, payloads)
            .map_err(|obstacle| failure::mode(IKE_AUTH, &config.child.name, obstacle))?;
        let local = payloads.selectors_initiator().map_err(malformed)?;
        let remote = payloads.selectors_responder().map_err(malformed)?;
        //= RFC 7296 2.23.1 REQUIRED 7: substituted in the response too
        let substituted = negotiate::substitute(config.child.mode, self.channel.path.ends(), local, remote);
        let (local, remote) =
            substituted.as_ref().map_or((local, remote), |it| (it.local.as_slice(), it.remote.as_slice()));
        let selectors = negotiate::accept_narrowed((&config.child).into(), local, remote)
            .ok_or_else(|| failure::no_selectors(IKE_AUTH, config, child, local, remote))?;
        let (purpose, next_layer) = (config.purpose(&config.child, &selectors), config.child.next_layer);
        let keys = self.channel.keys().child(chosen.suite.cipher, self.transcript.nonces(), None);
        Ok(NegotiatedChild {
            purpose,
            next_layer,
            mode: config.child.mode,
            outbound_spi: chosen.child_spi(),
            suite: chosen.suite,
            selectors,
            keys,
        })
    }
}

//! Where a datagram belongs.

use std::net::SocketAddr;
use std::sync::Arc;

use super::gate::{Admission, HALF_OPEN};
use super::peer::Peer;
use super::{Context, Endpoint, Environment, Slot, context};
use crate::auth::same_identity;
use crate::config::Identity;
use crate::event::Event;
use crate::sa::failure::{IKE_SA_INIT, invalid};
use crate::sa::{AuthOutcome, HalfOpen, InitAnswer, InitPolicy, Profile, Verdict, reply};
use crate::time::Instant;
use crate::tunnel::{Spi, Tunnel};
use crate::wire::{ExchangeType, Header, InvalidMessage, Message, Payload, Payloads};

impl Endpoint {
    /// Takes an IKE message (without marker).
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
            Err(error) => return self.refuse_version(error, datagram, local, remote, now, env),
        };
        if header.exchange == ExchangeType::IkeSaInit && !header.response {
            if header.from_initiator && header.responder_spi == 0 && header.message_id == 0 {
                self.receive_init(&header, datagram, local, remote, now, env);
            }
            return;
        }
        // The sender's bit tells whose SPI is ours.
        let spi = if header.from_initiator { header.responder_spi } else { header.initiator_spi };
        let Some(slot) = self.slots.remove(&spi) else {
            // RFC 7296 2.21.4 allows an INVALID_IKE_SPI in clear. Nobody may act on it, so nobody
            // is sent it.
            tracing::trace!(%remote, spi = format_args!("{spi:016x}"), "message for no IKE SA of ours");
            return;
        };
        match slot {
            Slot::Dialing(name, dialing) => {
                let turn = self.turn(&name);
                let step = dialing.handle(datagram, local, remote, turn, &mut context!(self, now, env));
                self.init_step(name, spi, step, now, env);
            }
            Slot::Authenticating(name, authenticating) => {
                let step = authenticating.handle(&header, datagram, local, remote, &mut context!(self, now, env));
                self.auth_step(name, spi, step, now, env);
            }
            Slot::HalfOpen(half_open, until) => {
                self.receive_auth(half_open, until, &header, datagram, (local, remote), now, env);
            }
            Slot::Up(name, mut sa) => {
                let mut cx = context!(self, now, env);
                let verdict = match self.peers.get_mut(&name) {
                    Some(peer) if peer.sas.contains(&spi) => {
                        sa.handle(&header, datagram, local, remote, &mut peer.tunnel, &mut cx)
                    }
                    // It is only leaving: what it says concerns no tunnel.
                    _ => sa.handle(&header, datagram, local, remote, &mut Tunnel::new(name.clone()), &mut cx),
                };
                self.verdict(name, sa, verdict, now, env);
            }
            Slot::Telling(mut channel) => {
                channel.receive(&header, datagram, local, remote, &mut context!(self, now, env));
                if channel.busy() {
                    self.slots.insert(spi, Slot::Telling(channel));
                }
                self.schedule(spi);
            }
            Slot::Grave(answered, until) => {
                answered.repeat(datagram, local, remote, &mut context!(self, now, env));
                self.slots.insert(spi, Slot::Grave(answered, until));
            }
        }
    }

    /// RFC 7296 2.5: a request of a later version is told ours. One of IKEv1 is not answered, but
    /// whoever runs this node wants to know why that peer gets nowhere.
    fn refuse_version(
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
        if version > 2 || (version == 1 && begins) {
            self.refuse_stranger(&header, error, version > 2, local, remote, now, env);
        }
    }

    /// Tells of a message that nobody vouches for and that cannot be read; and tells its sender,
    /// where the RFC wants that.
    #[allow(clippy::too_many_arguments)]
    fn refuse_stranger(
        &mut self,
        header: &Header,
        error: InvalidMessage,
        answer: bool,
        local: SocketAddr,
        remote: SocketAddr,
        now: Instant,
        env: &mut dyn Environment,
    ) {
        if !self.gate.may_speak(now) {
            return;
        }
        if answer {
            let payloads = Payloads::from(vec![Payload::Notify(error.notify())]);
            let answer = reply(header, header.responder_spi, payloads).encode();
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
        let message = match Message::decode(datagram) {
            Ok(message) => message,
            Err(error) => {
                // RFC 7296 2.5: an unknown critical payload is answered. 2.21.1: what is malformed
                // is not, for anybody may have sent it.
                let answer = matches!(error, InvalidMessage::UnsupportedCriticalPayload(_));
                return self.refuse_stranger(header, error, answer, local, remote, now, env);
            }
        };
        if self.is_ours(header.initiator_spi, local, remote) {
            return;
        }
        let mut cx = context!(self, now, env);
        match self.gate.admit(&message, local, remote, &self.config, &mut cx) {
            Admission::Shut => return,
            Admission::Known(spi) => {
                if let Some(Slot::HalfOpen(half_open, _)) = self.slots.get(&spi) {
                    half_open.repeat(datagram, &mut cx);
                }
                return;
            }
            Admission::Open => {}
        }
        let proposals = self.gate.proposals();
        let request = self.gate.request();
        let force_encapsulation = || {
            let here = |peer: &&Peer| peer.config().remotes.iter().any(|known| known.ip() == remote.ip());
            let known: Vec<&Peer> = self.peers.values().filter(here).collect();
            match known.as_slice() {
                [] => self.gate.forced(),
                known => known.iter().any(|peer| peer.config().force_encapsulation),
            }
        };
        let policy =
            InitPolicy { proposals: &proposals, request: request.as_ref(), force_encapsulation: &force_encapsulation };
        match HalfOpen::answer(&message, datagram, local, remote, policy, &mut cx) {
            InitAnswer::HalfOpen(half_open) => {
                let spi = half_open.spi();
                self.gate.enter(remote, message.header.initiator_spi, spi);
                self.slots.insert(spi, Slot::HalfOpen(half_open, now + HALF_OPEN));
                self.schedule(spi);
            }
            InitAnswer::Refused(Some(error)) => {
                if self.gate.may_speak(now) {
                    self.out.event(Event::Refused { from: remote, identity: None, error });
                }
            }
            InitAnswer::Malformed(error) => self.refuse_stranger(header, error, false, local, remote, now, env),
            InitAnswer::Refused(None) | InitAnswer::Ignored => {}
        }
    }

    /// Whether a first request is one that we sent: a NAT led it back to us, since a peer behind
    /// the same NAT has the same public address. It is not answered; the address it was sent to
    /// goes unanswered, and the others go on.
    fn is_ours(&self, initiator_spi: u64, local: SocketAddr, remote: SocketAddr) -> bool {
        let Some(Slot::Dialing(peer, _)) = self.slots.get(&initiator_spi) else {
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
        let entered = (half_open.remote(), header.initiator_spi);
        let peers = &self.peers;
        let find = |identity: &Identity, ours: Option<&Identity>| find(peers.values(), identity, ours, remote);
        let outcome = half_open.handle(header, datagram, local, remote, &find, &mut context!(self, now, env));
        match outcome {
            AuthOutcome::Stay(half_open) => {
                self.slots.insert(spi, Slot::HalfOpen(half_open, until));
            }
            AuthOutcome::Up { sa, child, initial_contact } => {
                self.gate.leave(entered.0, entered.1);
                let name = sa.profile().config.name.clone();
                self.admit(&name, sa, child, initial_contact, now, env);
            }
            AuthOutcome::Refused { peer, identity, from, error, answered } => {
                self.gate.leave(entered.0, entered.1);
                self.bury(spi, answered, now);
                // Anybody can say that he is one of ours and fail to prove it.
                let speak = self.gate.may_speak(now);
                match peer.and_then(|name| self.peers.get_mut(&name)) {
                    Some(peer) if speak => peer.report(error, &mut self.out),
                    Some(peer) => peer.last_error = Some(error),
                    None if speak => self.out.event(Event::Refused { from, identity, error }),
                    None => {}
                }
            }
        }
    }

    /// Something of an IKE SA is due.
    pub(super) fn sa_due(&mut self, spi: Spi, now: Instant, env: &mut dyn Environment) {
        let Some(slot) = self.slots.remove(&spi) else {
            return;
        };
        let mut cx = context!(self, now, env);
        match slot {
            Slot::Dialing(name, mut dialing) => match dialing.handle_timeout(&mut cx) {
                Ok(()) => {
                    self.slots.insert(spi, Slot::Dialing(name, dialing));
                }
                Err(error) => self.address_failed(&name, spi, error, now, env),
            },
            Slot::Authenticating(name, mut authenticating) => match authenticating.handle_timeout(&mut cx) {
                Ok(()) => {
                    self.slots.insert(spi, Slot::Authenticating(name, authenticating));
                }
                Err(error) => {
                    authenticating.abandon(&mut cx);
                    self.address_failed(&name, spi, error, now, env);
                }
            },
            Slot::HalfOpen(half_open, until) if until <= now => {
                self.gate.leave(half_open.remote(), half_open.initiator_spi());
            }
            Slot::Grave(_, until) if until <= now => {}
            slot @ (Slot::HalfOpen(..) | Slot::Grave(..)) => {
                self.slots.insert(spi, slot);
            }
            Slot::Telling(mut channel) => {
                if channel.retransmit(&mut cx).is_some() {
                    self.slots.insert(spi, Slot::Telling(channel));
                }
            }
            Slot::Up(name, mut sa) => {
                let verdict: Verdict = match self.peers.get_mut(&name) {
                    Some(peer) if peer.sas.contains(&spi) => sa.handle_timeout(&mut peer.tunnel, &mut cx),
                    _ => sa.handle_timeout(&mut Tunnel::new(name.clone()), &mut cx),
                };
                self.verdict(name, sa, verdict, now, env);
            }
        }
        self.schedule(spi);
    }
}

/// The peer of an identity, and of ours if the initiator said which. Of several, the one that is
/// known to be where this came from.
fn find<'a>(
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

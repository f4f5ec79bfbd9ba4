//! One end: the datagrams that it received, its actions, and the order in which a step is judged.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use edge_ike::{PeerName, Purpose};

use super::child_sa::Child;
use super::ike_sa::{IkeSa, OwnRequest, Received};
use super::init::{Initiation, clear};
use super::keys::Sealed;
use super::octets::{FLAG_INITIATOR, Header, Message, Spis, exchange, notify};
use super::trace::Trace;
use super::{Cause, Judged, Limits, RekeyAge, Shared, Step, broken, require};

/// The reactions that are allowed to a datagram.
#[derive(Debug)]
pub enum Effect {
    /// No datagram arrived.
    None,
    /// No reaction is allowed: the datagram is forged, old, or outside the window, or ESP was
    /// reported.
    Nothing,
    /// A response in clear is allowed, but not required.
    Unauthenticated,
    /// The datagram is a response to an IKE_SA_INIT request of the node.
    InitResponse,
    /// The response with this message ID is sent again.
    Repeated(Spis, u32),
    /// The node responds to this request.
    Request(Spis, Header, Option<Message>),
    /// The node handles the response to its request.
    Response(Spis, Box<OwnRequest>, Option<Message>),
}

/// A sent message: the datagrams (without the non-ESP marker) of all its fragments.
#[derive(Debug)]
pub struct Sent<'a> {
    pub header: Header,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub datagrams: Vec<&'a [u8]>,
}

/// One end.
#[derive(Debug)]
pub struct Node {
    pub limits: Limits,
    pub initiations: BTreeMap<u64, Initiation>,
    /// Half-open IKE SAs, by address and SPI of the initiator: the time at which they were created,
    /// and both SPIs.
    pub half_open: BTreeMap<(SocketAddr, u64), (Duration, Spis)>,
    /// When a half-open IKE SA may have made room for another one.
    pub made_room: Vec<Duration>,
    /// The cookies that the node sent: address, SPI and nonce of the initiator, and the cookie.
    pub cookies: BTreeSet<(IpAddr, u64, Vec<u8>, Vec<u8>)>,
    pub sas: BTreeMap<Spis, IkeSa>,
    /// The CHILD_SAs, by the node's inbound SPIs.
    pub children: BTreeMap<u32, Child>,
    /// The node's inbound SPIs of CHILD_SAs that the peer has created although they were not
    /// offered.
    pub unusable: BTreeSet<u32>,
    /// The CHILD_SAs for which the node sent a response in this step.
    pub to_be_installed: Vec<u32>,
    /// The CHILD_SAs with which the node has started to send in this step, by peer and purpose.
    pub switched_to: BTreeMap<(PeerName, Purpose), u32>,
    pub rekey_ages: Vec<RekeyAge>,
    /// All keys that the node has used, for any SA.
    pub keys_used: BTreeSet<Vec<u8>>,
    /// The plaintexts that were encrypted with each key and initialization vector.
    sealed: HashMap<(Vec<u8>, Vec<u8>), Vec<u8>>,
}

impl Node {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            initiations: BTreeMap::new(),
            half_open: BTreeMap::new(),
            made_room: Vec::new(),
            cookies: BTreeSet::new(),
            sas: BTreeMap::new(),
            children: BTreeMap::new(),
            unusable: BTreeSet::new(),
            to_be_installed: Vec::new(),
            switched_to: BTreeMap::new(),
            rekey_ages: Vec::new(),
            keys_used: BTreeSet::new(),
            sealed: HashMap::new(),
        }
    }

    /// Resets the node after a restart. Keeps the used keys and nonces, since new ones must differ
    /// from those used before the restart.
    pub fn restarted(&mut self) {
        self.initiations.clear();
        self.half_open.clear();
        self.made_room.clear();
        self.cookies.clear();
        self.sas.clear();
        self.children.clear();
    }

    pub fn judge(&mut self, step: &Step<'_>, shared: &mut Shared, trace: &mut Trace) -> Judged {
        if matches!(step.cause, Cause::Owner) {
            // The owner may request rekeys of all SAs. Only one request is sent at a time, and the
            // others wait for the window.
            self.children.values_mut().for_each(|child| child.retry_after = Duration::ZERO);
            self.sas.values_mut().for_each(|sa| sa.rekey_after = Duration::ZERO);
        }
        let mut effect = match step.cause {
            Cause::Received(datagram, local, from) => self.receive(datagram, local, from, step, shared, trace),
            Cause::Timer(_) | Cause::Owner => Effect::None,
            Cause::EspSent => Effect::Nothing,
            Cause::EspReceived(spi) => {
                let owner = self.children.get(&spi).and_then(|child| self.sas.get_mut(&child.ike));
                if let Some(sa) = owner {
                    sa.esp_received = Some(step.at);
                }
                Effect::Nothing
            }
            Cause::EspFrom(spi, remote) => {
                let owner = self.children.get(&spi).and_then(|child| self.sas.get_mut(&child.ike));
                // RFC 4555 3.8: a peer may be followed to the source of its ESP. A peer that
                // supports MOBIKE may have moved behind a NAT.
                if let Some(sa) = owner.filter(|sa| sa.peer_behind_nat || sa.mobike.is_some()) {
                    sa.remotes.insert(remote);
                }
                Effect::None
            }
        };
        for event in step.events {
            trace.event(step.at, step.node, event);
            self.note_expiry(event);
        }
        let quiet = step.events.is_empty() && step.sent.is_empty();
        //= RFC 7296 2.3 MUST NOT 9: no answer outside of the window
        require!(
            !matches!(effect, Effect::Nothing) || quiet,
            "RFC 7296 2.3, 2.4",
            "ESP, or a datagram that is forged, old or outside of the window had effects: {:?}",
            step.events.iter().map(crate::network::brief).collect::<Vec<_>>()
        );
        if let Effect::Response(spis, own, response) = &effect {
            self.concluded(*spis, own, response.as_ref(), step, shared)?;
        }
        let (mut answered, mut repeated) = (false, false);
        // The addresses of the early request whose turn has come.
        let mut early_at = None;
        for sent in self.messages(step)? {
            let spis = sent.header.spis;
            if sent.header.exchange == exchange::IKE_SA_INIT && !sent.header.response() {
                let message = clear(sent.datagrams[0]);
                judge_nonce(step.node, message.as_ref(), shared)?;
                trace.message(step.at, step.node, true, sent.remote, sent.header, message);
                self.send_init_request(&sent, &effect)?;
                continue;
            }
            if let (Effect::Unauthenticated, Cause::Received(request, local, from)) = (&effect, step.cause) {
                let message = clear(sent.datagrams[0]);
                judge_nonce(step.node, message.as_ref(), shared)?;
                trace.message(step.at, step.node, true, sent.remote, sent.header, message);
                require!(
                    sent.remote == from && sent.local == local,
                    "RFC 7296 2.11",
                    "an answer goes from {} to {}, the request came from {from} to {local}",
                    sent.local,
                    sent.remote
                );
                self.send_init_response(&sent, strip(request, local, self.limits), from, step.at, shared)?;
                continue;
            }
            let message = self.read(&sent)?;
            judge_nonce(step.node, message.as_ref(), shared)?;
            trace.message(step.at, step.node, true, sent.remote, sent.header, message.clone());
            let last_esp = self.last_esp(spis);
            let Some(sa) = self.sas.get_mut(&spis) else { continue };
            sa.window.announced(message.as_ref())?;
            if !sent.header.response() {
                let message = message.as_ref();
                let (ends, datagrams) = ((sent.local, sent.remote), &sent.datagrams);
                if sa.send_request(&sent.header, message, datagrams, ends, step.at, step.cause, last_esp)? {
                    self.requested(spis, message, step)?;
                }
                continue;
            }
            let Cause::Received(_, local, from) = step.cause else {
                //= RFC 7296 3.1 MUST NOT 14: responses are not answered
                broken!("RFC 7296 2.1", "response {} without a request", sent.header.id);
            };
            // Requests that arrived early follow the one that was missing, in the order of their
            // message IDs.
            if answered
                && sent.header.id == sa.next_peer()
                && let Some((header, request, early_local, early_from)) = sa.next_early()
            {
                trace.message(step.at, step.node, false, early_from, header, request.clone());
                effect = Effect::Request(spis, header, request);
                (early_at, answered) = (Some((early_local, early_from)), false);
            }
            let (local, from) = early_at.unwrap_or((local, from));
            //= RFC 7296 2.11 MUST 2: the response goes back
            //= RFC 7296 2.11 MUST 3: the response comes from there
            //= RFC 7296 2.23 MUST 3: responses go to the request's port
            require!(
                sent.remote == from && sent.local == local,
                "RFC 7296 2.11",
                "a response goes from {} to {}, the request came from {from} to {local}",
                sent.local,
                sent.remote
            );
            match &mut effect {
                Effect::Request(of, header, request) if *of == spis => {
                    sa.send_response(&sent.header, header, &sent.datagrams, step.at)?;
                    // This does not depend on whether the oracle has the keys.
                    let begun_from = sa.begun_from.filter(|_| header.exchange == exchange::IKE_AUTH);
                    if let Some(from) = begun_from {
                        self.half_open.remove(&(from, spis.0));
                    }
                    let request = request.take();
                    answered = true;
                    if let (Some(request), Some(answer)) = (request, message) {
                        self.answered(spis, &request, &answer, step, shared)?;
                    }
                }
                Effect::Repeated(of, _) if *of == spis => {
                    sa.send_response_again(&sent.header, &sent.datagrams)?;
                    repeated = true;
                }
                //= RFC 7296 2.1 MUST NOT 1: no response unasked
                _ => broken!("RFC 7296 2.1", "response {} without its request", sent.header.id),
            }
        }
        for event in step.events {
            self.ordered(event, step)?;
        }
        self.judge_installed(step)?;
        self.judge_switches()?;
        let open = |spis: &Spis| self.sas.get(spis).is_some_and(|sa| sa.up && !sa.closed);
        match &effect {
            // Without the keys the oracle does not know whether a request is authentic.
            Effect::Request(spis, header, _)
                if open(spis) && self.sas.get(spis).is_some_and(|sa| sa.keys.is_some()) =>
            {
                let ours = matches!(header.exchange, exchange::CREATE_CHILD_SA | exchange::INFORMATIONAL);
                //= RFC 7296 1.4 MUST 4: every request is answered
                require!(answered || !ours, "RFC 7296 2.1", "request {} has no response", header.id);
            }
            Effect::Repeated(spis, id)
                if open(spis) && self.sas.get(spis).is_some_and(|sa| sa.window.must_have(*id, step.at)) =>
            {
                //= RFC 7296 2.3 MUST 7: a copy of the response
                //= RFC 7296 2.1 MUST 4: the response is kept
                require!(repeated, "RFC 7296 2.1", "a repeated request does not have its response again");
            }
            _ => {}
        }
        Ok(())
    }

    fn receive(
        &mut self,
        datagram: &[u8],
        local: SocketAddr,
        from: SocketAddr,
        step: &Step<'_>,
        shared: &mut Shared,
        trace: &mut Trace,
    ) -> Effect {
        if local.port() == self.limits.nat_port && !datagram.starts_with(&[0; 4]) {
            return Effect::Nothing;
        }
        let datagram = strip(datagram, local, self.limits);
        let Ok(header) = Header::read(datagram) else {
            return Effect::Unauthenticated;
        };
        if header.exchange == exchange::IKE_SA_INIT || header.version >> 4 != 2 {
            let message = clear(datagram);
            trace.message(step.at, step.node, false, from, header, message.clone());
            return match message {
                Some(message) if header.response() => self.receive_init_response(datagram, &message, shared),
                None if header.response() => Effect::Nothing,
                _ => Effect::Unauthenticated,
            };
        }
        let Some(sa) = self.sas.get_mut(&header.spis) else {
            return Effect::Nothing;
        };
        match sa.receive(&header, datagram, local, from) {
            Received::Nothing => Effect::Nothing,
            Received::Repeated(id) => Effect::Repeated(header.spis, id),
            Received::Request(header, message) => {
                trace.message(step.at, step.node, false, from, header, message.clone());
                Effect::Request(header.spis, header, message)
            }
            Received::Response(own, message) => {
                trace.message(step.at, step.node, false, from, header, message.clone());
                Effect::Response(header.spis, own, message)
            }
        }
    }

    /// Groups the datagrams of a step into messages: the fragments of one message together.
    fn messages<'a>(&self, step: &Step<'a>) -> Judged<Vec<Sent<'a>>> {
        let mut messages: Vec<Sent<'a>> = Vec::new();
        for transmit in step.sent {
            if transmit.payload == [0xff] {
                continue;
            }
            let marked = transmit.local.port() == self.limits.nat_port;
            require!(
                !marked || transmit.payload.starts_with(&[0; 4]),
                "RFC 3948 2.2",
                "a message on port {} without the marker",
                self.limits.nat_port
            );
            let datagram = strip(&transmit.payload, transmit.local, self.limits);
            let header = match Header::read(datagram) {
                Ok(header) => header,
                Err(what) => {
                    broken!("RFC 7296 3.1", "{what} is wrong in a message of ours");
                }
            };
            let same = |last: &&mut Sent<'_>| {
                let later = Sealed::read(datagram).and_then(|sealed| sealed.fragment).is_some_and(|part| part.0 > 1);
                later && (last.header, last.remote) == (header, transmit.remote)
            };
            match messages.last_mut().filter(same) {
                Some(last) => last.datagrams.push(datagram),
                None => messages.push(Sent {
                    header,
                    local: transmit.local,
                    remote: transmit.remote,
                    datagrams: vec![datagram],
                }),
            }
        }
        Ok(messages)
    }

    /// Decrypts a message that the node sent, and judges its unencrypted part.
    fn read(&mut self, sent: &Sent<'_>) -> Judged<Option<Message>> {
        let spis = sent.header.spis;
        if !self.sas.contains_key(&spis) {
            let initiation = self.initiations.get(&spis.0);
            let sa = initiation.and_then(|initiation| initiation.select(&sent.header, sent.datagrams[0]));
            // The rekey of an IKE SA that the oracle cannot decrypt creates another one that it
            // cannot decrypt.
            let initiator = sent.header.flags & FLAG_INITIATOR != 0;
            let sa = sa.or_else(|| self.is_blind().then(|| IkeSa::new(spis, initiator, None, (0, 0))));
            require!(sa.is_some(), "RFC 7296 2.14", "a message of an IKE SA that is none, or with other keys");
            self.sas.extend(sa.map(|sa| (spis, sa)));
        }
        let Some(sa) = self.sas.get(&spis) else { return Ok(None) };
        let marker = if sent.local.port() == self.limits.nat_port { 4 } else { 0 };
        let message = sa.read_sent(&sent.datagrams, &sent.header, self.limits.fragment_size.saturating_sub(marker))?;
        for datagram in &sent.datagrams {
            if let (Some(keys), Some(sealed)) = (&sa.keys, Sealed::read(datagram)) {
                let key = keys.encryption[usize::from(!sa.initiator)].clone();
                let iv = keys.initialization_vector(&sealed).unwrap_or_default();
                let before = self.sealed.insert((key, iv.to_vec()), datagram.to_vec());
                require!(
                    before.is_none_or(|before| before == *datagram),
                    "RFC 5282 3.1",
                    "two messages with the initialization vector {iv:x?} and one key"
                );
            }
        }
        Ok(message)
    }

    /// Records the use of a key. A key must not be used for two SAs.
    pub fn use_key(&mut self, key: &[u8]) -> Judged {
        require!(self.keys_used.insert(key.to_vec()), "RFC 7296 2.17", "one key for two SAs");
        Ok(())
    }

    /// Returns whether there is an IKE SA whose messages cannot be decrypted, since the oracle does
    /// not know the secret of its key exchange.
    pub fn is_blind(&self) -> bool {
        self.sas.values().any(|sa| sa.keys.is_none())
    }

    pub fn judge_at_rest(&self) -> Judged {
        let open = self.sas.values().filter(|sa| sa.up && !sa.closed);
        // Only liveness checks continue forever (2.4).
        let mut waiting = open.filter(|sa| {
            sa.own.as_ref().and_then(|own| own.message.as_ref()).is_some_and(|own| !is_liveness_check(own))
        });
        let waiting = waiting.next().map(|sa| sa.spis);
        //= RFC 7296 2.1 MUST 6: retransmit
        require!(waiting.is_none(), "RFC 7296 2.1", "a request of {waiting:x?} waits for its response for ever");
        self.judge_ike_sas_at_rest()?;
        self.judge_children_at_rest()
    }
}

/// Returns whether a request is only a liveness check (RFC 7296 2.4). It may contain NAT detection,
/// to detect a changed mapping (RFC 4555 3.8), and announce the window (2.3).
fn is_liveness_check(message: &Message) -> bool {
    let detection = [notify::NAT_DETECTION_SOURCE_IP, notify::NAT_DETECTION_DESTINATION_IP, notify::SET_WINDOW_SIZE];
    message.header.exchange == exchange::INFORMATIONAL
        && message.notifies().iter().filter(|notify| detection.contains(&notify.kind)).count() == message.payloads.len()
}

fn judge_nonce(node: usize, message: Option<&Message>, shared: &mut Shared) -> Judged {
    let Some(message) = message else { return Ok(()) };
    if !message.header.response() {
        shared.nonces.judge_cookie2(node, message)?;
    }
    if let Some(nonce) = message.nonce() {
        shared.nonces.judge(node, message)?;
        shared.private_keys.is_nonce(nonce);
    }
    Ok(())
}

/// Returns a datagram without the non-ESP marker.
fn strip(datagram: &[u8], local: SocketAddr, limits: Limits) -> &[u8] {
    if local.port() == limits.nat_port { datagram.get(4..).unwrap_or_default() } else { datagram }
}

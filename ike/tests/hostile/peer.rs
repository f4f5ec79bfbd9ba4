//! The endpoint under attack, and the hostile peer. The peer uses the public parts of the library
//! directly, so that it can send messages that no honest endpoint sends.

use std::cell::Cell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use edge_ike::auth::{Authenticator, SignedOctets};
use edge_ike::config::{
    AgentNotifications, Auth, ChildConfig, Cipher, EspProposal, Group, IkeProposal, Mode, NextLayer, PeerConfig, Prf,
    Timing,
};
use edge_ike::crypto::{
    IkeCipher, IkeKeys, IkeRole, IkeSuite, InitiatorKeyExchange, Nonces, Opened, ResponderKeyExchange,
};
use edge_ike::event::PeerError;
use edge_ike::wire::{
    ExchangeType, Header, Id, KeyExchange, Message, Notify, NotifyType, Payload, Payloads, Proposal, Protocol,
    TrafficSelector, Transform,
};
use edge_ike::{
    AddressAssignment, ChildName, Childless, Endpoint, EndpointConfig, Event, Identity, IkeId, Instant, PeerName,
    Secret,
};
use proptest::sample::Index;

use crate::kernel::Kernel;

const OURS: &str = "192.0.2.1:500";
const THEIRS: &str = "192.0.2.2:500";
pub(crate) const PSK: &[u8] = b"known to the wrong people";

fn ours() -> SocketAddr {
    OURS.parse().unwrap()
}

fn theirs() -> SocketAddr {
    THEIRS.parse().unwrap()
}

fn name() -> PeerName {
    PeerName::new("hostile")
}

pub(crate) fn hostile_id() -> Id {
    Id::from(&Identity::Fqdn("hostile.example".into()))
}

fn our_id() -> Identity {
    Identity::Fqdn("victim.example".into())
}

const SUITE: IkeSuite = IkeSuite { cipher: Cipher::Aes128Gcm16, prf: Prf::HmacSha256, group: Group::X25519 };

/// Makes a valid IKE proposal.
pub(crate) fn ike(spi: u64) -> Proposal {
    let transforms =
        vec![Transform::encryption(SUITE.cipher), Transform::prf(SUITE.prf), Transform::group(SUITE.group)];
    let spi = if spi == 0 { Vec::new() } else { spi.to_be_bytes().to_vec() };
    Proposal { number: 1, protocol: Protocol::Ike, spi, transforms }
}

/// Makes a valid ESP proposal.
pub(crate) fn esp(spi: u32, group: bool) -> Proposal {
    let mut transforms = vec![Transform::encryption(Cipher::Aes128Gcm16), Transform::sequence_numbers(false)];
    transforms.extend(group.then(|| Transform::group(Group::X25519)));
    Proposal { number: 1, protocol: Protocol::Esp, spi: spi.to_be_bytes().to_vec(), transforms }
}

pub(crate) fn everything() -> Vec<TrafficSelector> {
    vec![TrafficSelector::from("0.0.0.0/0".parse::<ipnetwork::IpNetwork>().unwrap())]
}

/// An endpoint with one peer, its kernel and its clock.
pub(crate) struct World {
    pub(crate) endpoint: Endpoint,
    pub(crate) kernel: Kernel,
    pub(crate) cookies: usize,
    /// The reported errors.
    pub(crate) errors: Vec<PeerError>,
    pub(crate) sent: VecDeque<Vec<u8>>,
    now: Instant,
    outbound_spis: Vec<u32>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut kernel = Kernel::new(seed);
        let mut endpoint = Endpoint::new(EndpointConfig::default());
        endpoint.set_peer(config(), Instant::default(), &mut kernel).unwrap();
        let (now, sent, outbound_spis) = (Instant::default(), VecDeque::new(), Vec::new());
        Self { endpoint, kernel, cookies: 0, errors: Vec::new(), now, sent, outbound_spis }
    }

    pub(crate) fn deliver(&mut self, datagram: &[u8]) {
        self.endpoint.handle(datagram, ours(), theirs(), self.now, &mut self.kernel);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(event) = self.endpoint.poll_event() {
            let _ = format!("{event:?}");
            match &event {
                Event::ChildUp { child, .. } => self.outbound_spis.push(child.outbound_spi),
                Event::ChildRekeyed { new, .. } => self.outbound_spis.push(new.outbound_spi),
                Event::PeerFailed { error, .. } | Event::Refused { error, .. } => self.errors.push(error.clone()),
                _ => {}
            }
            self.kernel.apply(&event);
        }
        while let Some(transmit) = self.endpoint.poll_transmit() {
            let cookie = Message::decode(&transmit.payload)
                .is_ok_and(|message| message.payloads.notify(NotifyType::Cookie).is_some());
            self.cookies += usize::from(cookie);
            self.sent.push_back(transmit.payload);
            self.sent.truncate(64);
        }
        let _ = format!("{:?}", self.endpoint.snapshot());
    }

    /// Advances the time, and handles deadlines when they are due.
    pub(crate) fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.endpoint.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.endpoint.handle_timeout(self.now, &mut self.kernel);
            self.drain();
        }
        self.now = end;
    }

    /// Carries out one of the owner's commands.
    pub(crate) fn owner(&mut self, what: u8) {
        let (now, kernel) = (self.now, &mut self.kernel);
        match what % 7 {
            6 => self.endpoint.reauthenticate(&name(), now, kernel),
            0 => self.endpoint.rekey_children(&name(), now, kernel),
            1 => self.endpoint.rekey_ike(&name(), now, kernel),
            2 => self.endpoint.check_liveness(&name(), now, kernel),
            3 => self.endpoint.connect(&name(), now, kernel),
            4 => self.endpoint.terminate(&name(), now, kernel),
            _ => {
                self.endpoint.local_address_changed(ours().ip(), |_| "192.0.2.9".parse().ok(), now, kernel);
                self.endpoint.local_address_changed("192.0.2.9".parse().unwrap(), |_| Some(ours().ip()), now, kernel);
                true
            }
        };
        self.drain();
    }

    /// Makes the endpoint initiate.
    pub(crate) fn begin(&mut self) {
        self.endpoint.connect(&name(), self.now, &mut self.kernel);
        self.drain();
    }

    /// Removes the peer, and advances the time by 600 s. No deadline may be left then.
    pub(crate) fn remove_all(&mut self) {
        self.endpoint.remove_peer(&name(), self.now, &mut self.kernel);
        self.drain();
        self.wait(Duration::from_secs(600));
        assert_eq!(self.endpoint.poll_timeout(), None, "nothing is waited for");
    }

    /// Checks that the kernel holds no state, and that no deadline is left.
    pub(crate) fn assert_untouched(&self) {
        assert!(self.kernel.is_empty(), "{:?}", self.kernel);
        assert_eq!(self.endpoint.poll_timeout(), None, "nothing is waited for");
    }

    /// Returns a present or a former outbound SPI of the endpoint, or an unknown SPI.
    pub(crate) fn outbound_spi(&self, which: u8) -> u32 {
        let newest = self.outbound_spis.iter().rev().nth(usize::from(which));
        newest.copied().unwrap_or(u32::from(which))
    }
}

fn config() -> PeerConfig {
    let networks = || vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
    PeerConfig {
        name: name(),
        local: Some(ours().ip()),
        remotes: vec![theirs()],
        local_id: our_id(),
        remote_id: Identity::Fqdn("hostile.example".into()),
        auth: Auth::Psk(Secret::new(PSK.to_vec())),
        ike_proposals: vec![IkeProposal {
            ciphers: vec![SUITE.cipher],
            prfs: vec![SUITE.prf],
            groups: vec![Group::X25519, Group::P256],
        }],
        child: ChildConfig {
            name: ChildName::new("net"),
            proposals: vec![EspProposal {
                ciphers: vec![Cipher::Aes128Gcm16],
                groups: vec![Group::X25519, Group::P256],
                esn: false,
            }],
            local: networks(),
            remote: networks(),
            next_layer: NextLayer::ANY,
            mode: Mode::Tunnel,
        },
        additional_children: vec![],
        max_children: 1,
        initiate: false,
        force_encapsulation: false,
        mobike: true,
        keep_existing: false,
        agent_notifications: AgentNotifications::Off,
        address_assignment: AddressAssignment::Off,
        childless: Childless::Allow,
        timing: Timing::default(),
    }
}

/// Returns the address of an honest end.
pub(crate) fn address(us: usize) -> SocketAddr {
    if us == 0 { ours() } else { theirs() }
}

/// Returns the configuration that an honest end has for its peer.
pub(crate) fn honest(us: usize) -> PeerConfig {
    let names = ["a.example", "b.example"];
    PeerConfig {
        name: PeerName::new(names[1 - us]),
        local: Some(address(us).ip()),
        remotes: vec![address(1 - us)],
        local_id: Identity::Fqdn(names[us].into()),
        remote_id: Identity::Fqdn(names[1 - us].into()),
        ..config()
    }
}

/// The hostile end of an IKE SA.
pub(crate) struct Hostile {
    ike: IkeId,
    role: IkeRole,
    cipher: IkeCipher,
    next_request: u32,
    last: Vec<Vec<u8>>,
    spi: Cell<u32>,
}

impl Hostile {
    /// Makes a first request, which any host can send.
    pub(crate) fn first_request(initiator_spi: u64) -> Vec<u8> {
        let mut kernel = Kernel::new(initiator_spi);
        let key = InitiatorKeyExchange::start(Group::X25519, &mut kernel).unwrap();
        init(initiator_spi, &key, None).encode()
    }

    /// Initiates honestly and authenticates. Returns `None` if the endpoint refused, which happens
    /// if the kernel reserves no SPI.
    pub(crate) fn establish(world: &mut World, initial_contact: bool) -> Option<Self> {
        Self::establish_by(PSK, world, initial_contact)
    }

    /// Does the same as [`Self::establish`], with this pre-shared key.
    pub(crate) fn establish_by(psk: &[u8], world: &mut World, initial_contact: bool) -> Option<Self> {
        Self::establish_as(psk, world, |payloads| {
            if initial_contact {
                payloads.push_notify(Notify::new(NotifyType::InitialContact));
            }
        })
    }

    /// Does the same as [`Self::establish_by`], with an IKE_AUTH that is changed by `change`.
    pub(crate) fn establish_as(psk: &[u8], world: &mut World, change: impl FnOnce(&mut Payloads)) -> Option<Self> {
        world.sent.clear();
        let spi = 0x7777_0000_0000_0000
            | u64::from(world.kernel.outbound.len() as u32)
            | (world.cookies as u64) << 16
            | (world.now.since_start().as_millis() as u64) << 20
            | (world.outbound_spis.len() as u64) << 4;
        let key = InitiatorKeyExchange::start(Group::X25519, &mut world.kernel).unwrap();
        let mut request = init(spi, &key, None).encode();
        world.deliver(&request);
        let mut response = world.reply_to(spi)?;
        if let Some(cookie) = Message::decode(&response).ok()?.payloads.notify(NotifyType::Cookie) {
            request = init(spi, &key, Some(cookie.data.clone())).encode();
            world.deliver(&request);
            response = world.reply_to(spi)?;
        }
        let message = Message::decode(&response).ok()?;
        let ike = IkeId { initiator: spi, responder: message.header.responder_spi };
        let shared = key.finish(message.payloads.key_exchange().ok()?).ok()?;
        let nonce = message.payloads.nonce().ok()?;
        let keys = IkeKeys::initial(SUITE, Nonces { initiator: &NONCE, responder: nonce }, ike, &shared);
        let octets = SignedOctets::initiator(&keys, &request, nonce, &hostile_id());
        let authenticator = Authenticator::new(&Auth::Psk(Secret::new(psk.to_vec()))).unwrap();
        let cipher = IkeCipher::new(keys.clone(), IkeRole::Initiator);
        let mut hostile = Self {
            ike,
            role: IkeRole::Initiator,
            cipher,
            next_request: 1,
            last: Vec::new(),
            spi: Cell::new(0x00c0_0000),
        };
        let mut payloads = Payloads::from(vec![
            Payload::IdInitiator(hostile_id()),
            Payload::Authentication(authenticator.prove(&octets, None).unwrap()),
            Payload::SecurityAssociation(vec![esp(0x00c0_ffee, false)]),
            Payload::TrafficSelectorsInitiator(everything()),
            Payload::TrafficSelectorsResponder(everything()),
        ]);
        change(&mut payloads);
        hostile.request(ExchangeType::IkeAuth, &payloads, None, world);
        let accepted = |sent: &Vec<u8>| match hostile.cipher.open(sent) {
            Ok(Opened::Message(payloads)) => payloads.authentication().is_ok(),
            _ => false,
        };
        world.sent.iter().any(accepted).then_some(hostile)
    }

    /// Chooses a new ESP SPI.
    pub(crate) fn fresh_spi(&self) -> u32 {
        self.spi.set(self.spi.get() + 1);
        self.spi.get()
    }

    /// Makes a public key. Always makes the same key, which suffices because a hostile peer need
    /// not decrypt our messages.
    pub(crate) fn key(&self) -> KeyExchange {
        InitiatorKeyExchange::start(Group::X25519, &mut Kernel::new(0x1234)).unwrap().payload()
    }

    pub(crate) fn request(
        &mut self,
        exchange: ExchangeType,
        payloads: &Payloads,
        limit: Option<usize>,
        world: &mut World,
    ) {
        let header = self.header(exchange, false, self.next_request);
        let sealed = self.cipher.seal(&header, payloads, limit).unwrap();
        self.next_request += 1;
        self.send(sealed, world);
    }

    /// Sends several requests, whose datagrams arrive in this order. Some may come twice or not at
    /// all.
    pub(crate) fn several(
        &mut self,
        requests: &[(ExchangeType, Payloads)],
        order: &[Index],
        limit: Option<usize>,
        world: &mut World,
    ) {
        let mut datagrams = Vec::new();
        for (exchange, payloads) in requests {
            let header = self.header(*exchange, false, self.next_request);
            datagrams.extend(self.cipher.seal(&header, payloads, limit).unwrap());
            self.next_request += 1;
        }
        for index in order {
            let datagram: &Vec<u8> = index.get(&datagrams);
            world.deliver(datagram);
        }
        // What is missing comes at last.
        self.send(datagrams, world);
    }

    /// Responds with the message ID of the endpoint's newest request (`back` is 0), the next one
    /// (1), or the previous one (2).
    pub(crate) fn answer(&mut self, exchange: ExchangeType, back: u32, payloads: &Payloads, world: &mut World) {
        let ours = world.sent.iter().rev().filter_map(|sent| Header::decode(sent).ok());
        let newest = ours.filter(|header| !header.response).map(|header| header.message_id).next().unwrap_or(0);
        let header = self.header(exchange, true, (newest + back).saturating_sub(u32::from(back == 2) * 3));
        let sealed = self.cipher.seal(&header, payloads, None).unwrap();
        self.send(sealed, world);
    }

    /// Sends the last datagrams again, changed.
    pub(crate) fn again(&mut self, world: &mut World, change: impl Fn(&mut Vec<u8>)) {
        for mut datagram in self.last.clone() {
            change(&mut datagram);
            world.deliver(&datagram);
        }
    }

    fn send(&mut self, sealed: Vec<Vec<u8>>, world: &mut World) {
        for datagram in &sealed {
            world.deliver(datagram);
        }
        self.last = sealed;
    }

    fn header(&self, exchange: ExchangeType, response: bool, message_id: u32) -> Header {
        Header {
            initiator_spi: self.ike.initiator,
            responder_spi: self.ike.responder,
            exchange,
            from_initiator: self.role == IkeRole::Initiator,
            response,
            message_id,
        }
    }
}

impl World {
    /// Returns the response to the IKE_SA_INIT request with this SPI.
    fn reply_to(&self, spi: u64) -> Option<Vec<u8>> {
        let is =
            |sent: &&Vec<u8>| Header::decode(sent).is_ok_and(|header| header.initiator_spi == spi && header.response);
        self.sent.iter().rev().find(is).cloned()
    }
}

const NONCE: [u8; 32] = [0x5a; 32];

fn init(spi: u64, key: &InitiatorKeyExchange, cookie: Option<Vec<u8>>) -> Message {
    let header = Header {
        initiator_spi: spi,
        responder_spi: 0,
        exchange: ExchangeType::IkeSaInit,
        from_initiator: true,
        response: false,
        message_id: 0,
    };
    let cookie = cookie.map(|cookie| Payload::Notify(Notify::with_data(NotifyType::Cookie, cookie)));
    let rest = [
        Payload::SecurityAssociation(vec![ike(0)]),
        Payload::KeyExchange(key.payload()),
        Payload::Nonce(NONCE.to_vec()),
        Payload::Notify(Notify::new(NotifyType::Ikev2FragmentationSupported)),
    ];
    Message { header, payloads: cookie.into_iter().chain(rest).collect() }
}

/// Answers all messages from the endpoint: IKE_SA_INIT with a valid or an invalid response, and all
/// later messages with authentic responses that have arbitrary payloads.
pub(crate) fn answer_anything(
    world: &mut World,
    shape: u8,
    payloads: impl Fn(&Hostile, &World) -> Payloads,
    change: Option<&(Index, u8)>,
) {
    for sent in std::mem::take(&mut world.sent) {
        let Ok(request) = Message::decode(&sent) else {
            continue;
        };
        let ike_id = IkeId { initiator: request.header.initiator_spi, responder: 0x0b0b_0b0b };
        let header =
            Header { responder_spi: ike_id.responder, from_initiator: false, response: true, ..request.header };
        let keyed = request.payloads.key_exchange().ok().cloned();
        let hostile = |keys: &IkeKeys| Hostile {
            ike: ike_id,
            role: IkeRole::Responder,
            cipher: IkeCipher::new(keys.clone(), IkeRole::Responder),
            next_request: 0,
            last: Vec::new(),
            spi: Cell::new(0x00c0_0000),
        };
        let (Some(keyed), Ok(nonce)) = (keyed, request.payloads.nonce()) else {
            continue;
        };
        let Ok(key) = ResponderKeyExchange::respond(Group::X25519, &keyed, &mut Kernel::new(99)) else {
            continue;
        };
        let answer = Payloads::from(vec![
            Payload::SecurityAssociation(vec![ike(0)]),
            Payload::KeyExchange(key.payload()),
            Payload::Nonce(NONCE.to_vec()),
        ]);
        let Ok(shared) = key.secret() else {
            continue;
        };
        let keys = IkeKeys::initial(SUITE, Nonces { initiator: nonce, responder: &NONCE }, ike_id, &shared);
        let mut hostile = hostile(&keys);
        let mut datagram = if shape == 0 {
            Message { header, payloads: payloads(&hostile, world) }.encode()
        } else {
            Message { header, payloads: answer }.encode()
        };
        if let (2, Some((at, value))) = (shape, change) {
            let at = at.index(datagram.len());
            datagram[at] = *value;
        }
        world.deliver(&datagram);
        let payloads = payloads(&hostile, world);
        hostile.answer(ExchangeType::IkeAuth, 0, &payloads, world);
        hostile.request(ExchangeType::Informational, &payloads, None, world);
    }
}

/// Makes a message in clear with any header.
pub(crate) fn in_clear(spis: [u8; 16], exchange: u8, [flags, _, _, id]: [u8; 4], payloads: Payloads) -> Vec<u8> {
    let (initiator, responder) = spis.split_at(8);
    let number = |octets: &[u8]| u64::from_be_bytes(octets.try_into().unwrap());
    let header = Header {
        initiator_spi: number(initiator).max(1),
        responder_spi: if flags & 2 == 0 { 0 } else { number(responder) },
        exchange: exchange.into(),
        from_initiator: flags & 1 == 0,
        response: flags & 4 != 0,
        message_id: u32::from(id) % 2,
    };
    Message { header, payloads }.encode()
}

//! Tests of one established IKE SA. We are its responder, and the test has the peer's keys.

mod charon;
mod messages;
mod mobike;
mod rekey;
mod window;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::channel::Channel;
use super::ike_sa::{IkeSa, SaStep};
use super::initiation::Initiation;
use super::negotiated::Negotiated;
use super::path::Path;
use super::profile::Profile;
use crate::auth::Proof;
use crate::child_sas::ChildSas;
use crate::config::{
    AgentNotifications, Auth, ChildConfig, Cipher, Group, IkeProposal, Mode, NextLayer, PeerConfig, PeerName, Prf,
    Timing,
};
use crate::crypto::{IkeCipher, IkeKeys, IkeRole, IkeSuite, Nonces, Opened};
use crate::event::{IkeId, NotServed};
use crate::jitter::Jitter;
use crate::output::{Context, Output};
use crate::purpose::ChildName;
use crate::wire::{ExchangeType, Header, Payloads};
use crate::{AddressAssignment, Childless, EndpointConfig, Environment, Identity, Instant, Secret};

const SUITE: IkeSuite = IkeSuite { cipher: Cipher::Aes256Gcm16, prf: Prf::HmacSha256, group: Group::X25519 };
const IKE: IkeId = IkeId { initiator: 1, responder: 2 };

pub(super) struct Host;

impl Environment for Host {
    fn fill_random(&mut self, bytes: &mut [u8]) {
        bytes.fill(7);
    }
    fn unix_time(&self) -> u64 {
        0
    }
    fn allocate_spi(&mut self, _: &PeerName, _: IpAddr, _: IpAddr) -> Option<u32> {
        Some(0x1000)
    }
    fn release_spi(&mut self, _: &PeerName, _: IpAddr, _: u32) {}
}

fn local() -> SocketAddr {
    "192.0.2.1:500".parse().unwrap()
}

fn remote() -> SocketAddr {
    "192.0.2.2:500".parse().unwrap()
}

pub(super) fn profile() -> Profile {
    let proposal = IkeProposal { ciphers: vec![SUITE.cipher], prfs: vec![SUITE.prf], groups: vec![SUITE.group] };
    let config = PeerConfig {
        name: PeerName::new("peer"),
        local: None,
        remotes: Vec::new(),
        local_id: Identity::Fqdn("us.example".into()),
        remote_id: Identity::Fqdn("peer.example".into()),
        auth: Auth::Psk(Secret::new(b"secret".to_vec())),
        ike_proposals: vec![proposal],
        child: ChildConfig {
            name: ChildName::new("net"),
            proposals: Vec::new(),
            local: Vec::new(),
            remote: Vec::new(),
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
    };
    Profile::new(config.into()).unwrap()
}

/// Our IKE SA, and the peer's state of it.
struct Established {
    sa: Box<IkeSa>,
    child_sas: ChildSas,
    out: Output,
    jitter: Jitter,
    config: EndpointConfig,
    now: Instant,
    /// The peer's cipher.
    cipher: IkeCipher,
    /// The message ID of the peer's next request.
    next_request: u32,
}

impl Established {
    fn new() -> Self {
        Self::begun(Initiation::ByPeer(Instant::new(Duration::from_secs(1000))))
    }

    /// Makes an IKE SA that counts as begun by this end. We are the responder of its exchanges.
    fn begun(initiation: Initiation) -> Self {
        let nonces = Nonces { initiator: &[1; 32], responder: &[2; 32] };
        let keys = IkeKeys::initial(SUITE, nonces, IKE, &Secret::new(vec![3; 32]));
        let cipher = IkeCipher::new(keys.clone(), IkeRole::Initiator);
        let now = Instant::new(Duration::from_secs(1000));
        let path = Path::without_nat(local(), remote());
        let channel = Channel::new(keys, IKE, IkeRole::Responder, path, true, None, now);
        let negotiated = Negotiated::new(Proof::Psk, None, &path, Vec::new(), NotServed::default());
        let (mut out, mut jitter, config) = (Output::default(), Jitter::default(), EndpointConfig::default());
        let mut cx = Context { now, env: &mut Host, out: &mut out, jitter: &mut jitter, config: &config };
        let sa = IkeSa::new(channel, Arc::new(profile()), negotiated, initiation, &mut cx);
        let child_sas = ChildSas::new(PeerName::new("peer"));
        Self { sa, child_sas, out, jitter, config, now, cipher, next_request: 0 }
    }

    /// Calls a function of our IKE SA.
    fn step<R>(&mut self, step: impl FnOnce(&mut IkeSa, &mut ChildSas, &mut Context<'_>) -> R) -> R {
        let mut cx = Context {
            now: self.now,
            env: &mut Host,
            out: &mut self.out,
            jitter: &mut self.jitter,
            config: &self.config,
        };
        step(&mut self.sa, &mut self.child_sas, &mut cx)
    }

    /// Delivers a datagram from the peer.
    fn arrive(&mut self, datagram: &[u8]) -> SaStep {
        let header = Header::decode(datagram).unwrap();
        self.step(|sa, child_sas, cx| sa.handle(&header, datagram, local(), remote(), child_sas, cx))
    }

    fn header(&self, exchange: ExchangeType, response: bool, message_id: u32) -> Header {
        let (initiator_spi, responder_spi) = (IKE.initiator, IKE.responder);
        Header { initiator_spi, responder_spi, exchange, from_initiator: true, response, message_id }
    }

    /// Makes the peer's request with this message ID, in fragments if a limit is given.
    fn seal(&mut self, exchange: ExchangeType, id: u32, payloads: &Payloads, limit: Option<usize>) -> Vec<Vec<u8>> {
        let header = self.header(exchange, false, id);
        self.cipher.seal(&header, payloads, limit).unwrap()
    }

    /// Delivers the peer's next request in one datagram.
    fn request(&mut self, exchange: ExchangeType, payloads: &Payloads) -> SaStep {
        let datagram = self.seal(exchange, self.next_request, payloads, None).remove(0);
        self.next_request += 1;
        self.arrive(&datagram)
    }

    /// Delivers the peer's response to our request with this message ID.
    fn respond(&mut self, exchange: ExchangeType, id: u32, payloads: &Payloads) -> SaStep {
        let header = self.header(exchange, true, id);
        let datagram = self.cipher.seal(&header, payloads, None).unwrap().remove(0);
        self.arrive(&datagram)
    }

    /// Returns the messages that we have sent since the last call.
    fn sent(&mut self) -> Vec<(Header, Payloads)> {
        let datagrams = std::mem::take(&mut self.out.transmits).into_iter().map(|transmit| transmit.payload);
        let open = |datagram: Vec<u8>| match self.cipher.open(&datagram) {
            Ok(Opened::Message(payloads)) => (Header::decode(&datagram).unwrap(), payloads),
            other => panic!("{other:?}"),
        };
        datagrams.map(open).collect()
    }
}

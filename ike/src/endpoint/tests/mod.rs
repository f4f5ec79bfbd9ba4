//! Tests of two endpoints in one thread, for the rules of RFC 7296 that concern a whole endpoint.
//! Datagrams arrive immediately and in order, unless a test's tap drops or changes them.

mod acquires;
mod answers;
mod attempts;
mod beginnings;
mod capture;
mod crowds;
mod lifetimes;
mod limits;
mod lookup;
mod paths;
mod spis;
mod strangers;
mod strangers_in_tcp;
mod wanted;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SanType,
    date_time_ymd,
};

use crate::config::{
    AgentNotifications, Auth, CertificateAuth, ChildConfig, Cipher, EspProposal, Group, IkeProposal, Mode, NextLayer,
    PeerConfig, Prf, Timing,
};
use crate::event::{DownReason, PeerErrorKind};
use crate::purpose::ChildName;
use crate::{
    AddressAssignment, Childless, Endpoint, EndpointConfig, Environment, Event, Identity, Instant, PeerName, Secret,
    TcpConnectionId, Transmit,
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The wall clock when a test begins: 2026-01-01 UTC.
const START: u64 = 1_767_225_600;

/// The names of the two ends of a [`Pair`].
const NAMES: [&str; 2] = ["a.example", "b.example"];
const ADDRESSES: [&str; 2] = ["192.0.2.1:500", "192.0.2.2:500"];

/// The environment of one end: random numbers from SplitMix64, a wall clock that advances with the
/// test's clock, and consecutive SPIs for each of its addresses.
#[derive(Debug)]
struct Host {
    state: u64,
    unix_time: u64,
    spis: std::collections::BTreeMap<IpAddr, u32>,
    /// The hosts at the other ends of TCP connections.
    tcp: std::collections::BTreeMap<TcpConnectionId, IpAddr>,
}

impl Host {
    fn new(seed: u64) -> Self {
        Self { state: seed, unix_time: START, spis: Default::default(), tcp: Default::default() }
    }
}

impl Environment for Host {
    fn fill_random(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(z ^ (z >> 31)).to_be_bytes()[..chunk.len()]);
        }
    }

    fn unix_time(&self) -> u64 {
        self.unix_time
    }

    fn allocate_spi(&mut self, _: &PeerName, local: IpAddr, _: IpAddr) -> Option<u32> {
        let last = self.spis.entry(local).or_insert(0x1000);
        *last += 1;
        Some(*last)
    }

    fn release_spi(&mut self, _: &PeerName, _: IpAddr, _: u32) {}

    fn tcp_remote(&mut self, connection: TcpConnectionId) -> Option<IpAddr> {
        self.tcp.get(&connection).copied()
    }
}

#[derive(Debug)]
struct End {
    endpoint: Endpoint,
    host: Host,
    events: Vec<Event>,
    /// Whether the end is down: datagrams for it are lost, and it does nothing.
    down: bool,
}

/// A function that is called with every datagram that an end sends, and the end's index. Returns
/// false if the datagram is lost.
type Tap = Box<dyn FnMut(usize, &Transmit) -> bool>;

/// Two endpoints.
struct Pair {
    now: Duration,
    ends: [End; 2],
    configs: [PeerConfig; 2],
    tap: Tap,
    /// The number that a NAT in front of `a` adds to its ports, if there is a NAT. The NAT forwards
    /// only datagrams to the ports that it has mapped.
    nat: Option<u16>,
}

impl Pair {
    /// Makes two endpoints with a pre-shared key. They are not configured yet.
    fn new() -> Self {
        let psk = Auth::Psk(Secret::new(b"correct horse battery staple".to_vec()));
        let end = |seed| End {
            endpoint: Endpoint::new(EndpointConfig::default()),
            host: Host::new(seed),
            events: Vec::new(),
            down: false,
        };
        Self {
            now: Duration::from_secs(1000),
            ends: [end(1), end(2)],
            configs: [config(0, psk.clone()), config(1, psk)],
            tap: Box::new(|_, _| true),
            nat: None,
        }
    }

    /// Lets only `a` initiate.
    fn one_sided(mut self) -> Self {
        self.configs[1].initiate = false;
        self
    }

    /// Configures both ends, `b` first, and delivers all datagrams that follow.
    fn start(&mut self) {
        self.configure(1);
        self.configure(0);
    }

    fn configure(&mut self, us: usize) {
        let config = self.configs[us].clone();
        self.call(us, |endpoint, now, env| endpoint.set_peer(config, now, env).unwrap());
    }

    /// Calls a function of one end, then delivers datagrams until none is in transit.
    fn call<R>(&mut self, us: usize, call: impl FnOnce(&mut Endpoint, Instant, &mut dyn Environment) -> R) -> R {
        let now = Instant::new(self.now);
        let End { endpoint, host, .. } = &mut self.ends[us];
        let result = call(endpoint, now, host);
        endpoint.check_queues();
        self.deliver();
        result
    }

    fn deliver(&mut self) {
        let mut under_way = VecDeque::new();
        loop {
            for us in 0..2 {
                let end = &mut self.ends[us];
                end.events.extend(std::iter::from_fn(|| end.endpoint.poll_event()));
                while let Some(transmit) = end.endpoint.poll_transmit() {
                    if (self.tap)(us, &transmit) && !end.down {
                        under_way.push_back(transmit);
                    }
                }
            }
            let Some(transmit) = under_way.pop_front() else {
                return;
            };
            let Transmit { local: mut from, remote: mut to, payload } = transmit;
            let end = ADDRESSES.iter().position(|at| at.parse::<SocketAddr>().unwrap().ip() == to.ip());
            match (end, self.nat) {
                (Some(0), Some(added)) if [500, 4500].map(|port| port + added).contains(&to.port()) => {
                    to.set_port(to.port() - added);
                }
                (Some(0), Some(_)) => continue,
                (Some(1), Some(added)) => from.set_port(from.port() + added),
                _ => {}
            }
            if let Some(end) = end.filter(|end| !self.ends[*end].down) {
                self.arrive(end, &payload, to, from);
            }
        }
    }

    /// Delivers a datagram to one end. Datagrams that this end sends in response are not delivered
    /// yet.
    fn arrive(&mut self, end: usize, payload: &[u8], to: SocketAddr, from: SocketAddr) {
        let now = Instant::new(self.now);
        let End { endpoint, host, .. } = &mut self.ends[end];
        endpoint.handle(payload, to, from, now, host);
    }

    /// Advances the time, and handles deadlines when they are due.
    fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let due = (0..2).filter(|us| !self.ends[*us].down).filter_map(|us| {
                let at = self.ends[us].endpoint.poll_timeout()?.since_start();
                (at <= end).then_some((at.max(self.now), us))
            });
            let Some((at, us)) = due.min() else {
                break;
            };
            self.set_time(at);
            self.call(us, |endpoint, now, env| endpoint.handle_timeout(now, env));
        }
        self.set_time(end);
    }

    fn set_time(&mut self, now: Duration) {
        let (before, after) = (self.now.as_secs(), now.as_secs());
        self.ends.iter_mut().for_each(|end| end.host.unix_time += after - before);
        self.now = now;
    }

    /// Returns the number of IKE SAs that an end has with the other one.
    fn ike_sas(&self, us: usize) -> usize {
        self.ends[us].endpoint.snapshot()[0].ike_sas.len()
    }

    /// Returns the number of CHILD_SAs that an end has with the other one, including those that
    /// linger.
    fn children(&self, us: usize) -> usize {
        self.ends[us].endpoint.snapshot()[0].children.len()
    }

    /// Returns whether both ends have one IKE SA and one CHILD_SA with the same SPIs.
    fn is_connected(&self) -> bool {
        let [a, b] = [0, 1].map(|us| self.ends[us].endpoint.snapshot().remove(0));
        let ([a_ike], [b_ike]) = (a.ike_sas.as_slice(), b.ike_sas.as_slice()) else {
            return false;
        };
        let ([a], [b]) = (a.children.as_slice(), b.children.as_slice()) else {
            return false;
        };
        a_ike.ike == b_ike.ike && (a.sa.inbound_spi, a.sa.outbound_spi) == (b.sa.outbound_spi, b.sa.inbound_spi)
    }

    /// Returns the kinds of the errors that an end reported, in order.
    fn errors(&self, us: usize) -> Vec<PeerErrorKind> {
        self.error_texts(us).into_iter().map(|(kind, _)| kind).collect()
    }

    fn error_texts(&self, us: usize) -> Vec<(PeerErrorKind, String)> {
        let error = |event: &Event| match event {
            Event::PeerFailed { error, .. } | Event::Refused { error, .. } => Some((error.kind, error.to_string())),
            _ => None,
        };
        self.ends[us].events.iter().filter_map(error).collect()
    }

    /// Returns the reasons why IKE SAs ended at one end, in order.
    fn downs(&self, us: usize) -> Vec<DownReason> {
        let down = |event: &Event| match event {
            Event::IkeDown { reason, .. } => Some(*reason),
            _ => None,
        };
        self.ends[us].events.iter().filter_map(down).collect()
    }
}

/// Returns the configuration of end `us`.
fn config(us: usize, auth: Auth) -> PeerConfig {
    let them = 1 - us;
    let everything = || vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
    PeerConfig {
        name: PeerName::new(NAMES[them]),
        local: Some(ADDRESSES[us].parse::<SocketAddr>().unwrap().ip()),
        remotes: vec![ADDRESSES[them].parse().unwrap()],
        local_id: Identity::Fqdn(NAMES[us].into()),
        remote_id: Identity::Fqdn(NAMES[them].into()),
        auth,
        ike_proposals: vec![IkeProposal {
            ciphers: vec![Cipher::Aes256Gcm16],
            prfs: vec![Prf::HmacSha256],
            groups: vec![Group::X25519, Group::P256],
        }],
        child: ChildConfig {
            name: ChildName::new("net"),
            proposals: vec![EspProposal { ciphers: vec![Cipher::Aes256Gcm16], groups: Vec::new(), esn: true }],
            local: everything(),
            remote: everything(),
            next_layer: NextLayer::ANY,
            mode: Mode::Tunnel,
        },
        additional_children: vec![],
        max_children: 1,
        initiate: true,
        force_encapsulation: true,
        mobike: true,
        keep_existing: false,
        agent_notifications: AgentNotifications::Off,
        address_assignment: AddressAssignment::Off,
        childless: Childless::Allow,
        timing: Timing::default(),
    }
}

/// A certification authority.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let der = params.self_signed(&key).unwrap().der().to_vec();
        Self { issuer: Issuer::new(params, key), der }
    }

    /// Issues a certificate for end `us` that is valid for `lifetime` from the start of the test.
    fn certify(&self, us: usize, lifetime: Duration) -> CertificateAuth {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::DnsName(NAMES[us].try_into().unwrap())];
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2026, 1, 1) + lifetime;
        CertificateAuth {
            chain: vec![params.signed_by(&key, &self.issuer).unwrap().der().to_vec()],
            key: Secret::new(key.serialize_der()),
            trust_anchors: vec![self.der.clone()],
            remote_uri: None,
            remote_key_usages: Vec::new(),
            remote_not_before: 0,
            revocation: None,
        }
    }
}

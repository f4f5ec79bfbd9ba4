//! The fuzzed functions. They accept any octets, and must neither panic nor violate their
//! documented guarantees. `fuzz_targets` passes them to libFuzzer, and `tests/fuzz.rs` runs each of
//! them for a short time in every test run.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use edge_ike::auth::{Authenticator, Presented, SignedOctets};
use edge_ike::config::{
    AgentNotifications, CertificateAuth, Cipher, EspProposal, Group, IkeProposal, Mode, NextLayer, Prf, Timing,
};
use edge_ike::crl::{Revocation, RevocationLists, RevocationPolicy};
use edge_ike::crypto::{IkeKeys, IkeSuite, Nonces};
use edge_ike::wire::{
    AuthMethod, Authentication, Certificate, CertificateEncoding, ExchangeType, Fragment, Header, Id, Message,
    Payloads, Reassembly, TrafficSelector,
};
use edge_ike::{
    AddressAssignment, Auth, ChildConfig, ChildName, Childless, Endpoint, EndpointConfig, Environment, Event, Identity,
    IkeId, Instant, PeerConfig, PeerName, Secret,
};

mod known_peer;

pub use known_peer::ENDS;
use known_peer::{KnownPeer, deliver};

/// A trust anchor, the certificate of us.example and them.example with its key, and the list of the
/// trust anchor, DER. They are valid from 2026 to 2040, and secret from nobody.
pub const CA: &[u8] = include_bytes!("certificates/ca.der");
/// See [`CA`].
pub const LEAF: &[u8] = include_bytes!("certificates/leaf.der");
const LEAF_KEY: &[u8] = include_bytes!("certificates/leaf.key.der");
/// See [`CA`].
pub const CRL: &[u8] = include_bytes!("certificates/crl.der");

/// A target: its name and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All fuzz targets.
pub const TARGETS: &[Target] = &[
    ("message", message),
    ("payloads", payloads),
    ("reassembly", reassembly),
    ("endpoint", endpoint),
    ("session", session),
    ("selectors", selectors),
    ("certificates", certificates),
];

/// Fuzzes a message in clear. The encoding of a decoded message must be decodable again.
pub fn message(octets: &[u8]) {
    let _ = Header::peek(octets);
    if let Ok(message) = Message::decode(octets) {
        let again = Message::decode(&message.encode());
        assert!(again.is_ok(), "{message:?} is not read again: {again:?}");
    }
}

/// Fuzzes the payloads inside an encrypted message. The first octet is the type of the first
/// payload.
pub fn payloads(octets: &[u8]) {
    let Some((first, rest)) = octets.split_first() else { return };
    if let Ok(payloads) = Payloads::decode((*first).into(), rest) {
        let again = Payloads::decode(payloads.first_kind(), &payloads.encode());
        assert!(again.is_ok(), "{payloads:?} are not read again: {again:?}");
        let _ = (payloads.proposals().is_ok(), payloads.nonce().is_ok(), payloads.key_exchange().is_ok());
        let _ = (payloads.selectors_initiator().is_ok(), payloads.selectors_responder().is_ok());
        let _ = (payloads.id_initiator().is_ok(), payloads.authentication().is_ok(), payloads.deletes().count());
    }
}

/// Fuzzes fragments. The number, total and length of each are taken from the octets.
pub fn reassembly(octets: &[u8]) {
    let (mut reassembly, mut rest) = (Reassembly::new(), octets);
    while let Some(([number, total, first, len], more)) = rest.split_first_chunk() {
        let (data, after) = more.split_at(usize::from(*len).min(more.len()));
        let fragment = Fragment {
            number: u16::from(*number),
            total: u16::from(*total),
            first: (*first).into(),
            data: data.to_vec(),
        };
        let _ = reassembly.add(fragment);
        rest = after;
    }
}

/// A simulated kernel, with pseudorandom numbers for the endpoint.
pub struct Kernel {
    drawn: u64,
    reserved: BTreeSet<u32>,
    next: u32,
}

impl Kernel {
    /// Makes a kernel. The seed determines the random numbers.
    pub fn new(seed: u64) -> Self {
        Self { drawn: seed, reserved: BTreeSet::new(), next: 0x1000 }
    }
}

impl Environment for Kernel {
    fn fill_random(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.drawn = self.drawn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = self.drawn.to_be_bytes()[0];
        }
    }
    fn unix_time(&self) -> u64 {
        1_800_000_000
    }
    fn allocate_spi(&mut self, _: &PeerName, _: IpAddr, _: IpAddr) -> Option<u32> {
        self.next += 1;
        self.reserved.insert(self.next);
        Some(self.next)
    }
    fn release_spi(&mut self, _: &PeerName, _: IpAddr, spi: u32) {
        assert!(self.reserved.remove(&spi), "only what is reserved is given back");
    }
}

fn peer() -> PeerConfig {
    let everything = vec!["0.0.0.0/0".parse().expect("a network")];
    PeerConfig {
        name: PeerName::new("peer"),
        local: None,
        remotes: vec![SocketAddr::from(([192, 0, 2, 2], 500))],
        local_id: Identity::Fqdn("us.example".into()),
        remote_id: Identity::Fqdn("them.example".into()),
        auth: Auth::Psk(Secret::new(b"known to both".to_vec())),
        ike_proposals: vec![IkeProposal {
            ciphers: vec![Cipher::Aes256Gcm16],
            prfs: vec![Prf::HmacSha256],
            groups: vec![Group::X25519],
        }],
        child: ChildConfig {
            name: ChildName::new("net"),
            proposals: vec![EspProposal { ciphers: vec![Cipher::Aes256Gcm16], groups: Vec::new(), esn: true }],
            local: everything.clone(),
            remote: everything,
            next_layer: NextLayer::ANY,
            mode: Mode::Tunnel,
        },
        additional_children: vec![],
        max_children: 1,
        initiate: true,
        force_encapsulation: false,
        mobike: true,
        keep_existing: false,
        agent_notifications: AgentNotifications::Off,
        address_assignment: AddressAssignment::Off,
        childless: Childless::Allow,
        timing: Timing::default(),
    }
}

/// Returns the configuration of one of two ends, at these places of [`ENDS`], for each other.
pub fn honest_peer(end: usize) -> PeerConfig {
    let config = peer();
    match end {
        0 => config,
        _ => PeerConfig {
            remotes: vec![SocketAddr::from(ENDS[0])],
            local_id: config.remote_id,
            remote_id: config.local_id,
            initiate: false,
            ..config
        },
    }
}

/// Fuzzes a whole endpoint with a script. The first two octets of each part are its length and its
/// action. A datagram may contain the SPI of a message that the endpoint has sent.
pub fn endpoint(octets: &[u8]) {
    let mut kernel = Kernel::new(1);
    let mut endpoint =
        Endpoint::new(EndpointConfig { cookie_threshold: 3, half_open_limit: 8, ..EndpointConfig::default() });
    let mut now = Instant::default();
    endpoint.set_peer(peer(), now, &mut kernel).expect("a good configuration");
    let (mut rest, mut sent) = (octets, Vec::new());
    while let Some(([len, what], more)) = rest.split_first_chunk() {
        let (part, after) = more.split_at((usize::from(*len) * 4).min(more.len()));
        rest = after;
        let mut datagram = part.to_vec();
        let local = SocketAddr::from(([192, 0, 2, 1], if what & 1 == 0 { 500 } else { 4500 }));
        let remote = SocketAddr::from(([192, 0, 2, 2 + (what >> 6)], 500));
        match (what >> 1) & 7 {
            0 => {
                now = now + Duration::from_millis(u64::from(*len) * 100);
                endpoint.handle_timeout(now, &mut kernel);
            }
            1 => {
                // The endpoint receives its own last message with some octets changed.
                if let Some(own) = sent.last().cloned() {
                    let mut own: Vec<u8> = own;
                    for (octet, change) in own.iter_mut().zip(part) {
                        *octet ^= change;
                    }
                    datagram = own;
                }
                endpoint.handle(&datagram, local, remote, now, &mut kernel);
            }
            2 => {
                if let (Some(own), Some(spi)) = (sent.last(), datagram.first_chunk_mut::<8>())
                    && let Some(known) = own.first_chunk::<8>()
                {
                    *spi = *known;
                }
                endpoint.handle(&datagram, local, remote, now, &mut kernel);
            }
            _ => endpoint.handle(&datagram, local, remote, now, &mut kernel),
        }
        while let Some(event) = endpoint.poll_event() {
            assert!(!format!("{event:?}").contains("known to both"));
        }
        while let Some(transmit) = endpoint.poll_transmit() {
            sent.push(transmit.payload);
        }
        sent.drain(..sent.len().saturating_sub(8));
    }
    let name = PeerName::new("peer");
    endpoint.remove_peer(&name, now, &mut kernel);
    assert!(kernel.reserved.is_empty(), "SPIs stay reserved: {:?}", kernel.reserved);
}

/// Makes an endpoint that waits for a peer whose keys are known.
fn responder(kernel: &mut Kernel, change: impl FnOnce(&mut PeerConfig)) -> Endpoint {
    let mut endpoint = Endpoint::new(EndpointConfig::default());
    let mut config = PeerConfig { initiate: false, max_children: 4, ..peer() };
    change(&mut config);
    endpoint.set_peer(config, Instant::default(), kernel).expect("a good configuration");
    endpoint
}

fn everything() -> Vec<TrafficSelector> {
    vec!["0.0.0.0/0".parse::<ipnetwork::IpNetwork>().expect("a network").into()]
}

/// Fuzzes an endpoint with a peer that has authenticated. The first five octets of each part are
/// its length (two octets), its action, the exchange and the type of the first payload. The
/// payloads are sealed with the keys of the IKE SA, as the next request or as a response.
pub fn session(octets: &[u8]) {
    let mut kernel = Kernel::new(1);
    let mut endpoint = responder(&mut kernel, |_| {});
    let mut now = Instant::default();
    let mut peer = KnownPeer::begin(&mut endpoint, now, &mut kernel);
    let auth = Auth::Psk(Secret::new(b"known to both".to_vec()));
    let events = peer.authenticate(&mut endpoint, &auth, everything(), everything(), now, &mut kernel);
    assert!(events.iter().any(|event| matches!(event, Event::ChildUp { .. })), "{events:?}");
    let (mut rest, mut asked) = (octets, 0);
    while let Some(([high, low, what, exchange, first], more)) = rest.split_first_chunk() {
        let len = u16::from_be_bytes([*high, *low]);
        let (part, after) = more.split_at(usize::from(len).min(more.len()));
        rest = after;
        let payloads = Payloads::decode((*first).into(), part).unwrap_or_default();
        let exchange = exchange_of(*exchange);
        let sealed = match what & 7 {
            0 => {
                now = now + Duration::from_secs(u64::from(len));
                endpoint.handle_timeout(now, &mut kernel);
                None
            }
            1 => peer.seal(exchange, true, asked, &payloads),
            2 => peer.seal(exchange, what & 8 != 0, u32::from(*what), &payloads),
            _ => peer.request(exchange, &payloads),
        };
        let (events, sent) = match sealed {
            Some(datagram) => deliver(&mut endpoint, &datagram, now, &mut kernel),
            None => deliver(&mut endpoint, &[], now, &mut kernel),
        };
        for event in events {
            assert!(!format!("{event:?}").contains("known to both"));
        }
        let ours = sent.iter().filter_map(|sent| Header::decode(sent).ok()).filter(|header| !header.response);
        asked = ours.map(|header| header.message_id).next_back().unwrap_or(asked);
    }
    endpoint.remove_peer(&PeerName::new("peer"), now, &mut kernel);
}

/// Returns the exchange of an octet: usually one of those that follow IKE_AUTH.
fn exchange_of(octet: u8) -> ExchangeType {
    match octet & 3 {
        0 => ExchangeType::Informational,
        3 => octet.into(),
        _ => ExchangeType::CreateChildSa,
    }
}

/// Fuzzes the negotiation of selectors in IKE_AUTH. Each ten octets are one selector: side and
/// protocol, ports, first address, size. What is agreed must lie within the offer and within the
/// configuration.
pub fn selectors(octets: &[u8]) {
    let mut kernel = Kernel::new(1);
    let ours: Vec<ipnetwork::IpNetwork> =
        ["10.1.0.0/16", "10.2.3.0/24", "192.0.2.1/32"].map(|text| text.parse().expect("a network")).into();
    let theirs: Vec<ipnetwork::IpNetwork> =
        ["10.1.128.0/17", "172.16.0.0/12"].map(|text| text.parse().expect("a network")).into();
    let mut endpoint = responder(&mut kernel, |config| {
        (config.child.local, config.child.remote) = (ours.clone(), theirs.clone());
    });
    let (mut local, mut remote, mut rest) = (Vec::new(), Vec::new(), octets);
    while let Some(([what, first, last, size, a, b, c, d, low, high], more)) = rest.split_first_chunk() {
        rest = more;
        let start = u32::from_be_bytes([*a, *b, *c, *d]);
        let end = start.saturating_add(1_u32.checked_shl(u32::from(*size & 31)).map_or(0, |size| size - 1));
        let selector = TrafficSelector {
            protocol: if what & 2 == 0 { 0 } else { *first },
            start_port: if what & 4 == 0 { 0 } else { u16::from_be_bytes([*first, *low]) },
            end_port: if what & 4 == 0 { u16::MAX } else { u16::from_be_bytes([*last, *high]) },
            start: IpAddr::V4(start.into()),
            end: IpAddr::V4(end.into()),
        };
        if what & 1 == 0 { local.push(selector) } else { remote.push(selector) }
    }
    let now = Instant::default();
    let mut peer = KnownPeer::begin(&mut endpoint, now, &mut kernel);
    let auth = Auth::Psk(Secret::new(b"known to both".to_vec()));
    let events = peer.authenticate(&mut endpoint, &auth, remote.clone(), local.clone(), now, &mut kernel);
    for event in &events {
        let Event::ChildUp { child, .. } = event else { continue };
        let sides = [(&child.local_selectors, &ours, &local), (&child.remote_selectors, &theirs, &remote)];
        for (agreed, configured, offered) in sides {
            assert!(!agreed.is_empty());
            for network in agreed.iter() {
                let within = |wide: &ipnetwork::IpNetwork| {
                    wide.contains(network.network()) && wide.contains(network.broadcast())
                };
                assert!(configured.iter().any(within), "{network} is not in {configured:?}");
                let asked =
                    |offer: &TrafficSelector| offer.start <= network.network() && network.broadcast() <= offer.end;
                assert!(offered.iter().any(asked), "{network} is not in {offered:?}");
            }
        }
    }
    endpoint.remove_peer(&PeerName::new("peer"), now, &mut kernel);
}

/// Fuzzes the check of certificates and of revocation lists. The first octet says what the rest is:
/// the peer's certificates (each after its length of two octets), a trust anchor, or a list.
pub fn certificates(octets: &[u8]) {
    let Some((what, rest)) = octets.split_first() else { return };
    let revoked = RevocationLists::new(&[("list".into(), CRL.to_vec())]);
    let credentials = |anchor: &[u8], lists| {
        Auth::Certificate(CertificateAuth {
            chain: vec![LEAF.to_vec()],
            key: Secret::new(LEAF_KEY.to_vec()),
            trust_anchors: vec![anchor.to_vec()],
            remote_uri: None,
            remote_key_usages: vec![],
            remote_not_before: 0,
            remote_grace: Duration::ZERO,
            revocation: Some(Revocation { lists: std::sync::Arc::new(lists), policy: RevocationPolicy::Relaxed }),
        })
    };
    match what & 3 {
        0 => drop(Authenticator::new(&credentials(rest, revoked.expect("a good list")))),
        1 => {
            if let Ok(lists) = RevocationLists::new(&[("list".into(), rest.to_vec())]) {
                let _ = (lists.entries(), lists.next_updates().count());
                check_certificates(&credentials(CA, lists), &[LEAF.to_vec()]);
            }
        }
        _ => {
            let (mut chain, mut rest) = (Vec::new(), rest);
            while let Some((len, more)) = rest.split_first_chunk() {
                let (data, after) = more.split_at(usize::from(u16::from_be_bytes(*len)).min(more.len()));
                chain.push(data.to_vec());
                rest = after;
            }
            check_certificates(&credentials(CA, revoked.expect("a good list")), &chain);
        }
    }
}

/// Checks a chain with an AUTH that nobody can have made, so nothing may be accepted.
fn check_certificates(credentials: &Auth, chain: &[Vec<u8>]) {
    let Ok(authenticator) = Authenticator::new(credentials) else { return };
    let certificate = |data: &Vec<u8>| Certificate { encoding: CertificateEncoding::X509Signature, data: data.clone() };
    let certificates: Vec<Certificate> = chain.iter().map(certificate).collect();
    let them = Identity::Fqdn("them.example".into());
    let id = Id::from(&them);
    let suite = IkeSuite { cipher: Cipher::Aes256Gcm16, prf: Prf::HmacSha256, group: Group::X25519 };
    let nonces = Nonces { initiator: &[1; 32], responder: &[2; 32] };
    let keys = IkeKeys::initial(suite, nonces, IkeId { initiator: 1, responder: 2 }, &Secret::new(vec![3; 32]));
    let signed = SignedOctets::initiator(&keys, b"request", &[2; 32], &id);
    let authentication = Authentication { method: AuthMethod::DigitalSignature, data: vec![7; 76] };
    let presented = Presented { id: &id, certificates: &certificates, authentication: &authentication };
    let outcome = authenticator.verify(&them, presented, &signed, 1_800_000_000);
    assert!(outcome.is_err(), "an AUTH of nobody is accepted");
    let _ = outcome.map_err(|error| error.to_string());
}

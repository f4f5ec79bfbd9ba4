//! The fuzzed functions. They accept any octets, and must neither panic nor violate their
//! documented guarantees. `fuzz_targets` passes them to libFuzzer, and `tests/fuzz.rs` runs each of
//! them for a short time in every test run.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use edge_ike::config::{AgentNotifications, Cipher, EspProposal, Group, IkeProposal, Mode, NextLayer, Prf, Timing};
use edge_ike::wire::{Fragment, Header, Message, Payloads, Reassembly};
use edge_ike::{
    AddressAssignment, Auth, ChildConfig, ChildName, Childless, Endpoint, EndpointConfig, Environment, Identity,
    Instant, PeerConfig, PeerName, Secret,
};

/// A target: its name and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All fuzz targets.
pub const TARGETS: &[Target] =
    &[("message", message), ("payloads", payloads), ("reassembly", reassembly), ("endpoint", endpoint)];

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
struct Kernel {
    drawn: u64,
    reserved: BTreeSet<u32>,
    next: u32,
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

/// Fuzzes a whole endpoint with a script. The first two octets of each part are its length and its
/// action. A datagram may contain the SPI of a message that the endpoint has sent.
pub fn endpoint(octets: &[u8]) {
    let mut kernel = Kernel { drawn: 1, reserved: BTreeSet::new(), next: 0x1000 };
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

//! A peer that is not our implementation: an initiator that uses the oracle's code for messages and
//! keys, and that a test controls message by message. It can send messages that our endpoint never
//! sends, and responds only when the test requests it.

use std::net::SocketAddr;

use edge_ike::{EndpointConfig, PeerConfig};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::network::{LinkQuality, Network};
use crate::oracle::keys::{CURVE25519, Keys, Suite, encode_header};
use crate::oracle::octets::{
    FLAG_INITIATOR, FLAG_RESPONSE, HEADER_LEN, Header, Message, Spis, chain, exchange, notify, payload,
};
use crate::peers::{PSK, SECOND, peer};

/// A payload: its type and body.
pub type Part = (u8, Vec<u8>);

pub const FOREIGN_ID: &str = "foreign.example";
pub const OUR_ID: &str = "a.example";

/// Payload types with this number or above are sent as critical.
pub const CRITICAL: u8 = 250;

/// Encodes a chain of payloads.
pub fn encode_chain(parts: &[Part]) -> Vec<u8> {
    let next = parts.iter().skip(1).map(|part| part.0).chain([0]);
    let payload = |((kind, body), next): (&Part, u8)| {
        let critical = if *kind >= CRITICAL { 0x80 } else { 0 };
        [[next, critical].as_slice(), &(body.len() as u16 + 4).to_be_bytes(), body].concat()
    };
    parts.iter().zip(next).flat_map(payload).collect()
}

/// Makes a message in clear.
pub fn clear(header: &Header, parts: &[Part]) -> Vec<u8> {
    let inner = encode_chain(parts);
    let first = parts.first().map_or(0, |part| part.0);
    [encode_header(header, first, HEADER_LEN + inner.len()), inner].concat()
}

/// Makes a Notify payload.
pub fn notification(kind: u16, protocol: u8, spi: &[u8], data: &[u8]) -> Part {
    let front = [protocol, spi.len() as u8];
    (payload::NOTIFY, [front.as_slice(), &kind.to_be_bytes(), spi, data].concat())
}

/// Makes a Delete payload for one CHILD_SA.
pub fn delete_child(spi: u32) -> Part {
    (payload::DELETE, [[3, 4, 0, 1].as_slice(), &spi.to_be_bytes()].concat())
}

/// Makes a Security Association payload with one proposal.
pub fn proposal(protocol: u8, spi: &[u8], transforms: &[(u8, u16, u16)]) -> Part {
    let mut body = vec![1, protocol, spi.len() as u8, transforms.len() as u8];
    body.extend_from_slice(spi);
    for (index, (kind, id, bits)) in transforms.iter().enumerate() {
        let more = if index + 1 < transforms.len() { 3 } else { 0 };
        let attribute = if *bits > 0 { [[0x80, 14], bits.to_be_bytes()].concat() } else { Vec::new() };
        body.extend_from_slice(&[more, 0]);
        body.extend_from_slice(&(8 + attribute.len() as u16).to_be_bytes());
        body.extend_from_slice(&[*kind, 0]);
        body.extend_from_slice(&id.to_be_bytes());
        body.extend_from_slice(&attribute);
    }
    (payload::SA, [[0, 0].as_slice(), &(4 + body.len() as u16).to_be_bytes(), &body].concat())
}

/// Makes an IKE proposal: AES-GCM-256, PRF-HMAC-SHA-256, Curve25519.
pub fn ike_proposal(spi: Option<u64>) -> Part {
    let spi = spi.map_or(Vec::new(), |spi| spi.to_be_bytes().to_vec());
    proposal(1, &spi, &[(1, 20, 256), (2, 5, 0), (4, CURVE25519, 0)])
}

/// Makes an ESP proposal: AES-GCM-256 without extended sequence numbers.
pub fn esp_proposal(spi: u32) -> Part {
    proposal(3, &spi.to_be_bytes(), &[(1, 20, 256), (5, 0, 0)])
}

/// Makes an ESP proposal like [`esp_proposal`] that requires a key exchange by the 521-bit ECP
/// group.
pub fn esp_proposal_with_ecp_521(spi: u32) -> Part {
    proposal(3, &spi.to_be_bytes(), &[(1, 20, 256), (4, 21, 0), (5, 0, 0)])
}

/// Makes a payload with traffic selectors for all of IPv4.
pub fn everything(kind: u8) -> Part {
    (kind, [[1, 0, 0, 0].as_slice(), &[7, 0, 0, 16, 0, 0, 255, 255], &[0; 4], &[255; 4]].concat())
}

pub fn key_exchange(public: &[u8]) -> Part {
    (payload::KE, [&CURVE25519.to_be_bytes(), [0, 0].as_slice(), public].concat())
}

/// The foreign peer, and the network with one of our nodes.
pub struct Foreign {
    pub network: Network,
    pub config: PeerConfig,
    pub spis: Spis,
    pub keys: Option<Keys>,
    pub next_id: u32,
    /// The peer's inbound SPI of the first CHILD_SA, and ours.
    pub child: (u32, u32),
    private: [u8; 32],
    initiator: bool,
    iv: u64,
}

impl Foreign {
    /// Returns the address of the foreign peer.
    pub fn address() -> SocketAddr {
        "198.51.100.7:500".parse().unwrap()
    }

    /// Returns the address of our node.
    pub fn ours() -> SocketAddr {
        "10.0.0.1:500".parse().unwrap()
    }

    pub fn new(seed: u64, change: impl FnOnce(&mut PeerConfig)) -> Self {
        Self::with(seed, EndpointConfig::default(), change)
    }

    pub fn with(seed: u64, endpoint: EndpointConfig, change: impl FnOnce(&mut PeerConfig)) -> Self {
        let mut network = Network::new(seed, LinkQuality::RELIABLE);
        network.add_with("10.0.0.1", None, endpoint);
        let mut config = peer(OUR_ID, FOREIGN_ID, &[]);
        config.initiate = false;
        config.force_encapsulation = false;
        change(&mut config);
        let set = config.clone();
        network.call(0, |endpoint, now, env| endpoint.set_peer(set, now, env)).unwrap();
        let private = [7; 32];
        let spis = (0x1111_2222_3333_4444, 0);
        Self { network, config, spis, keys: None, next_id: 0, child: (0xf001, 0), private, initiator: true, iv: 0 }
    }

    pub fn public(&self) -> [u8; 32] {
        PublicKey::from(&StaticSecret::from(self.private)).to_bytes()
    }

    /// Sends a datagram, and returns all datagrams that arrive until the network is idle.
    pub fn exchange(&mut self, datagram: Vec<u8>) -> Vec<Vec<u8>> {
        self.exchange_from(Self::address(), datagram)
    }

    pub fn exchange_from(&mut self, from: SocketAddr, datagram: Vec<u8>) -> Vec<Vec<u8>> {
        self.network.inject(from, Self::ours(), datagram);
        self.network.run_for(SECOND / 50);
        self.arrived()
    }

    /// Returns the datagrams that have arrived since the last call.
    pub fn arrived(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.network.outside).into_iter().map(|(.., octets)| octets).collect()
    }

    fn header(&self, exchange: u8, response: bool, id: u32) -> Header {
        let flags = if self.initiator { FLAG_INITIATOR } else { 0 } | if response { FLAG_RESPONSE } else { 0 };
        Header { spis: self.spis, next: 0, version: 0x20, exchange, flags, id }
    }

    /// Returns the payloads of the IKE_SA_INIT request.
    pub fn init_parts(&self) -> Vec<Part> {
        vec![ike_proposal(None), key_exchange(&self.public()), (payload::NONCE, vec![9; 32])]
    }

    /// Makes the datagram of an IKE_SA_INIT request with these payloads.
    pub fn init_request(&self, parts: &[Part]) -> Vec<u8> {
        clear(&self.header(exchange::IKE_SA_INIT, false, 0), parts)
    }

    /// Makes an encrypted datagram.
    pub fn seal(&mut self, exchange: u8, response: bool, id: u32, parts: &[Part]) -> Vec<u8> {
        self.iv += 1;
        let header = self.header(exchange, response, id);
        let first = parts.first().map_or(0, |part| part.0);
        self.keys.as_ref().unwrap().seal(header, first, &encode_chain(parts), self.iv).unwrap()
    }

    /// Decrypts a datagram from our node.
    pub fn open(&self, datagram: &[u8]) -> Message {
        let header = Header::read(datagram).unwrap();
        let opened = self.keys.as_ref().unwrap().open(!self.initiator, datagram).expect("our keys");
        Message { header, payloads: chain(opened.first, &opened.inner).unwrap() }
    }

    /// Sends the next request, and returns the messages that arrive after it.
    pub fn request(&mut self, exchange: u8, parts: &[Part]) -> Vec<Message> {
        let datagram = self.seal(exchange, false, self.next_id, parts);
        self.next_id += 1;
        let arrived = self.exchange(datagram);
        arrived.iter().map(|datagram| self.open(datagram)).collect()
    }

    /// Responds to a request from our node.
    pub fn answer(&mut self, request: &Message, parts: &[Part]) -> Vec<Message> {
        let datagram = self.seal(request.header.exchange, true, request.header.id, parts);
        let arrived = self.exchange(datagram);
        arrived.iter().map(|datagram| self.open(datagram)).collect()
    }

    /// Performs IKE_SA_INIT and IKE_AUTH with this pre-shared key. Returns the response to
    /// IKE_AUTH.
    pub fn authenticate(&mut self, psk: &[u8]) -> Message {
        self.authenticate_with(psk, |_| {})
    }

    /// Does the same as [`Self::authenticate`], but first changes the payloads of IKE_AUTH.
    pub fn authenticate_with(&mut self, psk: &[u8], change: impl FnOnce(&mut Vec<Part>)) -> Message {
        let request = self.init_request(&self.init_parts());
        let response = self.exchange(request.clone()).remove(0);
        let answer = crate::oracle::clear(&response).unwrap();
        self.spis = answer.header.spis;
        let (_, theirs) = answer.key_exchange().unwrap();
        let theirs: [u8; 32] = theirs.try_into().unwrap();
        let secret = StaticSecret::from(self.private).diffie_hellman(&PublicKey::from(theirs));
        let nonces = ([9; 32].as_slice(), answer.nonce().unwrap());
        let suite = Suite::of(&answer.proposals()[0]);
        let keys = Keys::initial(suite, nonces, self.spis, secret.as_bytes()).unwrap();
        let id = [[2, 0, 0, 0].as_slice(), FOREIGN_ID.as_bytes()].concat();
        let auth = keys.psk_auth(true, psk, &request, nonces.1, &id);
        self.keys = Some(keys);
        self.next_id = 1;
        let mut parts = vec![
            (payload::ID_INITIATOR, id),
            (payload::AUTH, [[2, 0, 0, 0].as_slice(), &auth].concat()),
            esp_proposal(self.child.0),
            everything(payload::TS_INITIATOR),
            everything(payload::TS_RESPONDER),
        ];
        change(&mut parts);
        self.request(exchange::IKE_AUTH, &parts).remove(0)
    }

    /// Makes a foreign peer with an IKE SA and a CHILD_SA.
    pub fn established(seed: u64, change: impl FnOnce(&mut PeerConfig)) -> Self {
        let mut foreign = Self::new(seed, change);
        let response = foreign.authenticate(PSK);
        foreign.child.1 = response.proposals()[0].spi32();
        assert_ne!(foreign.child.1, 0, "{response:?}");
        // Answer our node's liveness check of a new IKE SA, and the messages before it.
        foreign.network.run_for(SECOND / 50);
        for datagram in foreign.arrived() {
            let message = foreign.open(&datagram);
            foreign.answer(&message, &[]);
        }
        foreign
    }

    /// Returns the payloads of a request that rekeys the CHILD_SA with this inbound SPI of the
    /// peer.
    pub fn rekey_parts(old: u32, new: u32) -> Vec<Part> {
        vec![
            notification(notify::REKEY_SA, 3, &old.to_be_bytes(), &[]),
            esp_proposal(new),
            (payload::NONCE, vec![0xee; 32]),
            everything(payload::TS_INITIATOR),
            everything(payload::TS_RESPONDER),
        ]
    }

    /// Returns the payloads of a response that creates a CHILD_SA.
    pub fn child_parts(new: u32, nonce: [u8; 32]) -> Vec<Part> {
        vec![
            esp_proposal(new),
            (payload::NONCE, nonce.to_vec()),
            everything(payload::TS_INITIATOR),
            everything(payload::TS_RESPONDER),
        ]
    }

    /// Returns the payloads of a request that rekeys the IKE SA.
    pub fn rekey_ike_parts(&self, spi: u64) -> Vec<Part> {
        vec![ike_proposal(Some(spi)), (payload::NONCE, vec![0xdd; 32]), key_exchange(&self.public())]
    }

    /// Switches to the IKE SA that a rekey created.
    pub fn take_rekeyed(&mut self, response: &Message, spi: u64) {
        let (_, theirs) = response.key_exchange().unwrap();
        let theirs: [u8; 32] = theirs.try_into().unwrap();
        let secret = StaticSecret::from(self.private).diffie_hellman(&PublicKey::from(theirs));
        let proposals = response.proposals();
        self.spis = (spi, proposals[0].spi64());
        let nonces = ([0xdd; 32].as_slice(), response.nonce().unwrap());
        let keys = self.keys.as_ref().unwrap();
        self.keys = keys.rekeyed(Suite::of(&proposals[0]), nonces, self.spis, secret.as_bytes());
        self.next_id = 0;
    }

    /// Makes our node rekey its CHILD_SA. Returns its request.
    pub fn rekey_of_ours(&mut self) -> Message {
        let name = self.config.name.clone();
        assert!(self.network.call(0, |endpoint, now, env| endpoint.rekey_children(&name, now, env)));
        self.network.run_for(SECOND / 50);
        let arrived = self.arrived();
        self.open(&arrived[0])
    }
}

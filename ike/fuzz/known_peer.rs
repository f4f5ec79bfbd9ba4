//! A peer with known keys, which completes IKE_SA_INIT and IKE_AUTH with an endpoint and then sends
//! it arbitrary payloads in authentic messages.

use std::net::SocketAddr;

use edge_ike::auth::{Authenticator, SignedOctets};
use edge_ike::config::{Cipher, Group, Prf};
use edge_ike::crypto::{IkeCipher, IkeKeys, IkeRole, IkeSuite, InitiatorKeyExchange, Nonces};
use edge_ike::wire::{
    ExchangeType, Header, Id, Message, Payload, Payloads, Proposal, Protocol, TrafficSelector, Transform,
};
use edge_ike::{Auth, Endpoint, Environment, Event, Identity, IkeId, Instant};

/// The SPI of the peer's inbound SAs.
pub const PEER_SPI: u32 = 0xc000_0001;
const SUITE: IkeSuite = IkeSuite { cipher: Cipher::Aes256Gcm16, prf: Prf::HmacSha256, group: Group::X25519 };
const INITIATOR_SPI: u64 = 0x7777;
const NONCE: [u8; 32] = [0x5a; 32];

/// The addresses and ports of the endpoint and of the peer.
pub const ENDS: [([u8; 4], u16); 2] = [([192, 0, 2, 1], 500), ([192, 0, 2, 2], 500)];

/// The peer, which began the IKE SA.
pub struct KnownPeer {
    ike: IkeId,
    keys: IkeKeys,
    cipher: IkeCipher,
    request: Vec<u8>,
    nonce: Vec<u8>,
    next_request: u32,
}

fn header(ike: IkeId, exchange: ExchangeType, response: bool, message_id: u32) -> Header {
    Header {
        initiator_spi: ike.initiator,
        responder_spi: ike.responder,
        exchange,
        from_initiator: true,
        response,
        message_id,
    }
}

/// Hands a datagram of the peer to the endpoint. Returns the events and the datagrams that follow.
pub fn deliver(
    endpoint: &mut Endpoint,
    datagram: &[u8],
    now: Instant,
    env: &mut dyn Environment,
) -> (Vec<Event>, Vec<Vec<u8>>) {
    let [ours, theirs] = ENDS.map(SocketAddr::from);
    endpoint.handle(datagram, ours, theirs, now, env);
    let events = std::iter::from_fn(|| endpoint.poll_event()).collect();
    (events, std::iter::from_fn(|| endpoint.poll_transmit()).map(|transmit| transmit.payload).collect())
}

/// Makes the ESP proposal of the peer that the endpoint of the targets accepts.
pub fn esp_proposal() -> Payload {
    let transforms = vec![Transform::encryption(Cipher::Aes256Gcm16), Transform::sequence_numbers(true)];
    let spi = PEER_SPI.to_be_bytes().to_vec();
    Payload::SecurityAssociation(vec![Proposal { number: 1, protocol: Protocol::Esp, spi, transforms }])
}

impl KnownPeer {
    /// Completes IKE_SA_INIT.
    pub fn begin(endpoint: &mut Endpoint, now: Instant, env: &mut dyn Environment) -> Self {
        let key = InitiatorKeyExchange::start(SUITE.group, env).expect("a share");
        let ike = IkeId { initiator: INITIATOR_SPI, responder: 0 };
        let transforms =
            vec![Transform::encryption(SUITE.cipher), Transform::prf(SUITE.prf), Transform::group(SUITE.group)];
        let proposal = Proposal { number: 1, protocol: Protocol::Ike, spi: vec![], transforms };
        let payloads = Payloads::from(vec![
            Payload::SecurityAssociation(vec![proposal]),
            Payload::KeyExchange(key.payload()),
            Payload::Nonce(NONCE.to_vec()),
        ]);
        let request = Message { header: header(ike, ExchangeType::IkeSaInit, false, 0), payloads }.encode();
        let (_, sent) = deliver(endpoint, &request, now, env);
        let response = Message::decode(sent.last().expect("a response")).expect("a message in clear");
        let ike = IkeId { responder: response.header.responder_spi, ..ike };
        let shared = key.finish(response.payloads.key_exchange().expect("KE")).expect("a secret");
        let nonce = response.payloads.nonce().expect("a nonce").to_vec();
        let keys = IkeKeys::initial(SUITE, Nonces { initiator: &NONCE, responder: &nonce }, ike, &shared);
        let cipher = IkeCipher::new(keys.clone(), IkeRole::Initiator);
        Self { ike, keys, cipher, request, nonce, next_request: 1 }
    }

    /// Sends IKE_AUTH with these selectors of both sides.
    pub fn authenticate(
        &mut self,
        endpoint: &mut Endpoint,
        auth: &Auth,
        initiator: Vec<TrafficSelector>,
        responder: Vec<TrafficSelector>,
        now: Instant,
        env: &mut dyn Environment,
    ) -> Vec<Event> {
        let id = Id::from(&Identity::Fqdn("them.example".into()));
        let octets = SignedOctets::initiator(&self.keys, &self.request, &self.nonce, &id);
        let authenticator = Authenticator::new(auth).expect("good credentials");
        let payloads = Payloads::from(vec![
            Payload::IdInitiator(id),
            Payload::Authentication(authenticator.prove(&octets, None).expect("an AUTH")),
            esp_proposal(),
            Payload::TrafficSelectorsInitiator(initiator),
            Payload::TrafficSelectorsResponder(responder),
        ]);
        let sealed = self.request(ExchangeType::IkeAuth, &payloads);
        sealed.into_iter().flat_map(|datagram| deliver(endpoint, &datagram, now, env).0).collect()
    }

    /// Seals the peer's next request.
    pub fn request(&mut self, exchange: ExchangeType, payloads: &Payloads) -> Option<Vec<u8>> {
        let message_id = self.next_request;
        self.next_request = message_id.wrapping_add(1);
        self.seal(exchange, false, message_id, payloads)
    }

    /// Seals a message. Returns `None` if it is too large.
    pub fn seal(
        &mut self,
        exchange: ExchangeType,
        response: bool,
        message_id: u32,
        payloads: &Payloads,
    ) -> Option<Vec<u8>> {
        self.cipher.seal(&header(self.ike, exchange, response, message_id), payloads, None).ok()?.pop()
    }
}

//! IKE_SA_INIT requests that check whether a responder answers.
//!
//! The key exchange of such a request uses a group that no release supports. The responder answers
//! INVALID_KE_PAYLOAD (RFC 7296 1.2), or COOKIE (2.6) under load. It keeps no state, computes no
//! key and logs nothing. An answer counts only if it contains the request's random SPI. This module
//! does no I/O.

use edge_ike::config::{Cipher, Group, Prf};
use edge_ike::wire::{
    ExchangeType, Header, KeyExchange, Message, NotifyType, Payload, Payloads, Proposal, Protocol, Transform,
    TransformType,
};

/// Prefix of IKE messages on the NAT traversal port (RFC 3948 2.2).
pub const NON_ESP_MARKER: [u8; 4] = [0; 4];
/// The 192-bit group of RFC 5114. It is too weak to ever be supported, and its public values are
/// short.
const UNSUPPORTED_GROUP: u16 = 25;
/// Size of a public value of that group, bytes.
const SHARE: usize = 48;
/// Size of the nonce, bytes.
const NONCE: usize = 16;
/// Number of random bytes in a request: nonce and public value.
pub const RANDOM: usize = NONCE + SHARE;
/// Size of the largest request that every release answers, bytes.
pub const MAX_REQUEST: u32 = 4096;
/// Size of a payload's header, bytes (RFC 7296 3.2).
const PAYLOAD_HEADER: usize = 4;

/// An answer to a request. Every answer shows that the responder works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentAnswer {
    /// The agent serves its peers.
    Serves,
    /// The agent works but has no peers.
    HasNoPeers,
    /// The agent works, but is so busy that it asks for a cookie first.
    AsksForCookie,
}

/// Returns a request of `octets` bytes, without the non-ESP marker. A vendor ID payload fills it. A
/// request that needs more bytes is longer, and one that misses less than a payload's header is
/// shorter.
#[must_use]
pub fn request(spi: u64, random: &[u8; RANDOM], octets: usize) -> Vec<u8> {
    let (nonce, share) = random.split_at(NONCE);
    let header = Header {
        initiator_spi: spi,
        responder_spi: 0,
        exchange: ExchangeType::IkeSaInit,
        from_initiator: true,
        response: false,
        message_id: 0,
    };
    let transforms = vec![
        Transform::encryption(Cipher::Aes256Gcm16),
        Transform::prf(Prf::HmacSha256),
        Transform::group(Group::X25519),
        Transform::new(TransformType::KeyExchange, UNSUPPORTED_GROUP),
    ];
    let proposal = Proposal { number: 1, protocol: Protocol::Ike, spi: vec![], transforms };
    let payloads = vec![
        Payload::SecurityAssociation(vec![proposal]),
        Payload::KeyExchange(KeyExchange { group: UNSUPPORTED_GROUP, data: share.to_vec() }),
        Payload::Nonce(nonce.to_vec()),
    ];
    let encode = |payloads: Vec<Payload>| Message { header, payloads: Payloads::from(payloads) }.encode();
    let short = encode(payloads.clone());
    match octets.checked_sub(short.len() + PAYLOAD_HEADER) {
        Some(padding) => encode(payloads.into_iter().chain([Payload::VendorId(vec![0; padding])]).collect()),
        None => short,
    }
}

/// Returns the SPI of the request to which `message` is an answer, from the header alone. `message`
/// is without the non-ESP marker. `None` if it is no answer to an IKE_SA_INIT request.
#[must_use]
pub fn answered_request(message: &[u8]) -> Option<u64> {
    let header = Header::decode(message).ok()?;
    let is_answer = header.exchange == ExchangeType::IkeSaInit && header.response && !header.from_initiator;
    is_answer.then_some(header.initiator_spi)
}

/// Returns the SPI of the request to which `message` is an answer, and the meaning of the answer.
/// `message` is without the non-ESP marker. `None` if it is no answer to an IKE_SA_INIT request.
#[must_use]
pub fn read_answer(message: &[u8]) -> Option<(u64, AgentAnswer)> {
    let spi = answered_request(message)?;
    let message = Message::decode(message).ok()?;
    let notifies = |kind| message.payloads.notify(kind).is_some();
    let answer = match () {
        () if notifies(NotifyType::NoProposalChosen) => AgentAnswer::HasNoPeers,
        () if notifies(NotifyType::Cookie) => AgentAnswer::AsksForCookie,
        () => AgentAnswer::Serves,
    };
    Some((spi, answer))
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};
    use std::path::Path;
    use std::time::Duration;

    use edge_ike::wire::Notify;
    use edge_ike::{Endpoint, EndpointConfig, Environment, Instant, PeerName, Transmit};
    use proptest::prelude::*;

    use super::*;
    use crate::config::Config;
    use crate::crl_files::CrlFiles;

    #[test]
    fn a_request_has_the_size_that_was_asked_for() {
        let short = request(7, &[1; RANDOM], 0);
        assert!(short.len() < 300, "{}", short.len());
        for octets in (short.len() + PAYLOAD_HEADER..2000).chain([4000]) {
            let request = request(7, &[1; RANDOM], octets);
            assert_eq!(request.len(), octets);
            let message = Message::decode(&request).unwrap();
            assert!(!message.header.response && message.header.initiator_spi == 7);
        }
    }

    #[test]
    fn only_an_answer_to_an_ike_sa_init_request_counts() {
        let request = request(7, &[1; RANDOM], 0);
        assert_eq!(read_answer(&request), None, "our own request, reflected");
        assert_eq!(answered_request(&request), None);
        let header = Message::decode(&request).unwrap().header;
        let header = Header { from_initiator: false, response: true, ..header };
        let answer = Message { header, payloads: Payloads::new() }.encode();
        assert_eq!(read_answer(&answer), Some((7, AgentAnswer::Serves)));
        assert_eq!(answered_request(&answer), Some(7));
        assert_eq!(read_answer(&answer[..20]), None);
        for (kind, expected) in
            [(NotifyType::Cookie, AgentAnswer::AsksForCookie), (NotifyType::NoProposalChosen, AgentAnswer::HasNoPeers)]
        {
            let payloads = Payloads::from(vec![Payload::Notify(Notify::new(kind))]);
            assert_eq!(read_answer(&Message { header, payloads }.encode()), Some((7, expected)));
        }
        let header = Header { exchange: ExchangeType::Informational, ..header };
        let other = Message { header, payloads: Payloads::new() }.encode();
        assert_eq!(answered_request(&other), None);
    }

    struct NoKernel;

    impl Environment for NoKernel {
        fn fill_random(&mut self, bytes: &mut [u8]) {
            bytes.fill(5);
        }

        fn unix_time(&self) -> u64 {
            1_800_000_000
        }

        fn allocate_spi(&mut self, _peer: &PeerName, _local: IpAddr, _remote: IpAddr) -> Option<u32> {
            None
        }

        fn release_spi(&mut self, _peer: &PeerName, _local: IpAddr, _spi: u32) {}
    }

    /// A cookie would mean that the requests count as half-open IKE SAs.
    #[test]
    fn a_responder_answers_thousands_of_requests_of_any_size_without_a_cookie_or_an_event() {
        let text = "[[peer]]\nname = 'moon'\nremote = '192.0.2.1'\nlocal_id = 'sun'\nremote_id = 'moon'\npsk = 'secret'\n\
             local_subnets = ['10.1.0.0/24']\nremote_subnets = ['10.2.0.0/24']\nstart = 'respond'\n";
        let config = Config::parse(text, Path::new("x")).unwrap();
        let peer = config.peers[0].resolve(&config, &mut CrlFiles::default()).unwrap();
        let mut endpoint = Endpoint::new(EndpointConfig::default());
        endpoint.set_peer(peer, Instant::default(), &mut NoKernel).unwrap();
        let [local, remote] = ["192.0.2.7:500", "192.0.2.1:500"].map(|text| text.parse::<SocketAddr>().unwrap());
        let mut answer_to = |spi: u64, octets: usize| {
            let request = request(spi, &[7; RANDOM], octets);
            // One source gets 256 refusals a second.
            let now = Instant::default() + Duration::from_millis(5 * spi);
            endpoint.handle(&request, local, remote, now, &mut NoKernel);
            let sent: Vec<Transmit> = std::iter::from_fn(|| endpoint.poll_transmit()).collect();
            assert!(endpoint.poll_event().is_none());
            assert!(sent.len() <= 1 && sent.iter().all(|answer| answer.payload.len() < 100), "{sent:?}");
            let answer = sent.into_iter().next()?;
            let message = Message::decode(&answer.payload).unwrap();
            assert!(message.payloads.notify(NotifyType::Cookie).is_none(), "{spi}");
            read_answer(&answer.payload)
        };
        let largest = usize::try_from(MAX_REQUEST).unwrap();
        for spi in 1..5000 {
            let octets = usize::try_from(spi).unwrap().min(largest);
            assert_eq!(answer_to(spi, octets), Some((spi, AgentAnswer::Serves)));
        }
        assert_eq!(answer_to(9999, largest + 1), None, "a larger one could not measure anything");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read_answer(&bytes);
        }
    }
}

//! Tests IKE_SA_INIT responses whose proposal we did not offer, nonces that are too short, and a
//! responder whose authentication fails.

use super::*;
use crate::crypto::ResponderKeyExchange;
use crate::wire::{Delete, ExchangeType, Message, NotifyType, Payload, Proposal, Transform};

/// Returns the number of datagrams that `a` sends after a response to its IKE_SA_INIT with a
/// changed proposal and this nonce.
fn after_answer(prf: Prf, change: impl Fn(&mut Proposal), nonce: Vec<u8>) -> usize {
    let mut pair = Pair::new().one_sided();
    answer_init(&mut pair, prf, change, nonce);
    std::iter::from_fn(|| pair.ends[0].endpoint.poll_transmit()).count()
}

/// Responds to the IKE_SA_INIT of `a` without NAT detection, with a changed proposal and this
/// nonce.
fn answer_init(pair: &mut Pair, prf: Prf, change: impl Fn(&mut Proposal), nonce: Vec<u8>) {
    pair.configs[0].ike_proposals[0].prfs = vec![prf];
    pair.configs[0].ike_proposals[0].ciphers = vec![Cipher::Aes256Gcm16, Cipher::ChaCha20Poly1305];
    let config = pair.configs[0].clone();
    let End { endpoint, host, .. } = &mut pair.ends[0];
    let now = Instant::new(pair.now);
    endpoint.set_peer(config, now, host).unwrap();
    let sent = endpoint.poll_transmit().unwrap();
    let request = Message::decode(&sent.payload).unwrap();
    let mut proposal = request.payloads.proposals().unwrap()[0].clone();
    proposal.transforms =
        vec![Transform::encryption(Cipher::Aes256Gcm16), Transform::prf(prf), Transform::group(Group::X25519)];
    change(&mut proposal);
    let key = ResponderKeyExchange::respond(Group::X25519, request.payloads.key_exchange().unwrap(), host).unwrap();
    let payloads =
        vec![Payload::SecurityAssociation(vec![proposal]), Payload::KeyExchange(key.payload()), Payload::Nonce(nonce)];
    let answer = Message::response(&request.header, 77, payloads.into()).encode();
    endpoint.handle(&answer, sent.local, sent.remote, now, host);
}

#[test]
fn ike_auth_forbids_nats_to_a_responder_without_nat_traversal() {
    //= RFC 4555 3.9 MUST 1: NO_NATS_ALLOWED without NAT traversal
    for mobike in [true, false] {
        let mut pair = Pair::new().one_sided();
        pair.configs[0].mobike = mobike;
        pair.configs[0].force_encapsulation = false;
        let responder: SocketAddr = ADDRESSES[1].parse().unwrap();
        pair.ends[0].endpoint.begin_capture([responder.ip()].into());
        answer_init(&mut pair, Prf::HmacSha256, |_| {}, vec![1; 32]);
        let captured = pair.ends[0].endpoint.take_captured().messages;
        let sent = Message::decode(&captured.last().unwrap().message).unwrap();
        assert_eq!(sent.header.exchange, ExchangeType::IkeAuth);
        let forbidden = sent.payloads.notify(NotifyType::NoNatsAllowed).map(|notify| notify.data.clone());
        // 192.0.2.1 or unknown, 192.0.2.2, and port 500 twice.
        assert_eq!(forbidden.is_some(), mobike);
        if let Some(octets) = forbidden {
            assert_eq!(octets[4..], [192, 0, 2, 2, 1, 244, 1, 244]);
        }
    }
}

#[test]
fn an_answer_with_two_algorithms_of_a_kind_is_not_accepted() {
    //= RFC 7296 2.7 MUST 4: one transform of each type
    //= RFC 7296 3.3.6 MUST 5: the answer is one of our proposals
    //= RFC 7296 3.3.6 MUST 6: otherwise it is over
    let good = |_: &mut Proposal| {};
    assert_eq!(after_answer(Prf::HmacSha256, good, vec![1; 32]), 1, "IKE_AUTH follows a good answer");
    let two_ciphers =
        |proposal: &mut Proposal| proposal.transforms.push(Transform::encryption(Cipher::ChaCha20Poly1305));
    let two_groups = |proposal: &mut Proposal| proposal.transforms.push(Transform::group(Group::P256));
    assert_eq!(after_answer(Prf::HmacSha256, two_ciphers, vec![1; 32]), 0);
    assert_eq!(after_answer(Prf::HmacSha256, two_groups, vec![1; 32]), 0);
}

#[test]
fn a_nonce_has_at_least_half_the_key_of_the_prf() {
    //= RFC 7296 2.10 MUST 3: half the PRF's key
    for (prf, least) in [(Prf::HmacSha256, 16), (Prf::HmacSha384, 24), (Prf::HmacSha512, 32)] {
        assert_eq!(after_answer(prf, |_| {}, vec![1; least]), 1, "{prf}");
        if least > 16 {
            assert_eq!(after_answer(prf, |_| {}, vec![1; least - 1]), 0, "{prf}");
        }
    }
}

#[test]
fn a_responder_refuses_a_short_nonce_too() {
    //= RFC 7296 2.10 MUST 3: half the PRF's key
    for len in [31, 32] {
        let mut pair = Pair::new().one_sided();
        for config in &mut pair.configs {
            config.ike_proposals[0].prfs = vec![Prf::HmacSha512];
        }
        pair.configure(1);
        // The request of `a`, with another nonce.
        let config = pair.configs[0].clone();
        let now = Instant::new(pair.now);
        let End { endpoint, host, .. } = &mut pair.ends[0];
        endpoint.set_peer(config, now, host).unwrap();
        let sent = endpoint.poll_transmit().unwrap();
        let mut request = Message::decode(&sent.payload).unwrap();
        let payloads = request.payloads.iter().cloned().map(|payload| match payload {
            Payload::Nonce(_) => Payload::Nonce(vec![1; len]),
            other => other,
        });
        request.payloads = payloads.collect();
        pair.arrive(1, &request.encode(), sent.remote, sent.local);
        let answer = pair.ends[1].endpoint.poll_transmit().map(|sent| Message::decode(&sent.payload).unwrap());
        let accepted = answer.is_some_and(|answer| answer.payloads.notify(NotifyType::InvalidSyntax).is_none());
        assert_eq!(accepted, len == 32, "{len} octets");
    }
}

#[test]
fn an_initiator_that_refuses_the_responder_says_so_and_deletes_the_ike_sa() {
    //= RFC 7296 2.21.2 REQUIRED 6: three notifications end the IKE SA
    let mut pair = Pair::new().one_sided();
    let (authority, unknown) = (Authority::new("lab"), Authority::new("unknown"));
    for us in 0..2 {
        pair.configs[us].auth = Auth::Certificate(authority.certify(us, HOUR));
    }
    let Auth::Certificate(ours) = &mut pair.configs[0].auth else { panic!("it was just set") };
    ours.trust_anchors = vec![unknown.der];
    let responder: SocketAddr = ADDRESSES[1].parse().unwrap();
    pair.ends[0].endpoint.begin_capture([responder.ip()].into());
    pair.start();
    let captured = pair.ends[0].endpoint.take_captured().messages;
    let sent = captured.iter().filter(|captured| captured.outgoing);
    let sent: Vec<Message> = sent.map(|captured| Message::decode(&captured.message).unwrap()).collect();
    let last = sent.last().unwrap();
    assert_eq!(last.header.exchange, ExchangeType::Informational);
    assert!(last.payloads.notify(NotifyType::AuthenticationFailed).is_some(), "{last:?}");
    // libreswan ends the IKE SA by DELETE only.
    assert!(last.payloads.deletes().eq([&Delete::Ike]), "{last:?}");
    assert_eq!((pair.ike_sas(1), pair.children(1)), (0, 0));
    assert_eq!(pair.errors(0), [PeerErrorKind::UntrustedCertificate]);
    assert_eq!(pair.errors(1), [PeerErrorKind::RefusedByPeer], "it reports why the IKE SA ended");
}

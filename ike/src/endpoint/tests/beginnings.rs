//! Tests IKE_SA_INIT requests: their contents, and how a cookie or another group changes them.

use std::cell::Cell;
use std::rc::Rc;

use super::*;
use crate::auth::CredentialError;
use crate::wire::{ExchangeType, Header, Message, Notify, NotifyType, Payload, Transform};

/// Returns the first request of `a`. It is not delivered.
fn begin(pair: &mut Pair) -> Transmit {
    let config = pair.configs[0].clone();
    let now = Instant::new(pair.now);
    let End { endpoint, host, .. } = &mut pair.ends[0];
    endpoint.set_peer(config, now, host).unwrap();
    endpoint.poll_transmit().unwrap()
}

/// Returns the datagram that `a` sends when its request is answered with this notification.
fn answer(pair: &mut Pair, request: &Transmit, notify: Notify) -> Option<Transmit> {
    let message = Message::decode(&request.payload).unwrap();
    let answer = Message::response(&message.header, 0, vec![Payload::Notify(notify)].into()).encode();
    pair.arrive(0, &answer, request.local, request.remote);
    pair.ends[0].endpoint.poll_transmit()
}

fn cookie(octets: &[u8]) -> Notify {
    Notify::with_data(NotifyType::Cookie, octets.to_vec())
}

#[test]
fn ike_begins_from_and_to_port_500() {
    //= RFC 7296 2.23 MUST 1: from and to ports 500 and 4500
    let mut pair = Pair::new().one_sided();
    let request = begin(&mut pair);
    assert_eq!([request.local, request.remote], ADDRESSES.map(|address| address.parse().unwrap()));
}

#[test]
fn a_cookie_of_no_octets_or_too_many_is_not_brought_back() {
    //= RFC 7296 2.6 MUST 5: 1 to 64 octets
    for (len, brought) in [(0, false), (1, true), (64, true), (65, false)] {
        let mut pair = Pair::new().one_sided();
        let request = begin(&mut pair);
        assert_eq!(answer(&mut pair, &request, cookie(&vec![7; len])).is_some(), brought, "{len} octets");
    }
}

#[test]
fn a_cookie_stays_when_another_group_is_wanted_and_gives_way_to_another_cookie() {
    //= RFC 7296 2.6.1 SHOULD 1: the cookie stays for another group
    //= RFC 7296 2.6.1 MUST NOT 2: another cookie is no failure
    let mut pair = Pair::new().one_sided();
    let first = begin(&mut pair);
    let second = answer(&mut pair, &first, cookie(&[1; 8])).unwrap();
    let third = answer(&mut pair, &second, Notify::invalid_ke(Group::P256.number())).unwrap();
    let read = |transmit: &Transmit| Message::decode(&transmit.payload).unwrap();
    assert_eq!(read(&third).payloads.as_slice()[0], Payload::Notify(cookie(&[1; 8])));
    assert_eq!(read(&third).payloads.key_exchange().unwrap().group, Group::P256.number());
    let fourth = answer(&mut pair, &third, cookie(&[2; 8])).unwrap();
    assert_eq!(read(&fourth).payloads.as_slice()[0], Payload::Notify(cookie(&[2; 8])));
    assert_eq!(read(&fourth).payloads.as_slice()[1..], read(&third).payloads.as_slice()[1..]);
}

#[test]
fn a_cookie_and_another_group_take_three_requests() {
    //= RFC 7296 2.6.1 SHOULD 1: the cookie stays for another group
    let mut pair = Pair::new().one_sided();
    pair.ends[1].endpoint.config.cookie_threshold = 0;
    pair.configs[1].ike_proposals[0].groups = vec![Group::P256];
    let requests = Rc::new(Cell::new(0));
    let count = Rc::clone(&requests);
    pair.tap = Box::new(move |from, sent| {
        let is_init = Header::decode(&sent.payload).is_ok_and(|header| header.exchange == ExchangeType::IkeSaInit);
        count.set(count.get() + usize::from(from == 0 && is_init));
        true
    });
    pair.start();
    assert!(pair.is_connected());
    assert_eq!(requests.get(), 3);
}

#[test]
fn proposals_are_numbered_from_one_in_the_order_of_preference() {
    //= RFC 7296 3.3 MUST 1: the best proposal is first
    //= RFC 7296 3.3 MUST 3: numbers grow by one
    //= RFC 7296 3.3 MUST 4: the first number is one
    //= RFC 7296 3.3.1 MUST 3: the first number is one
    //= RFC 7296 3.3.1 MUST 4: numbers grow by one
    //= RFC 7296 3.3.1 MUST 5: the answer has the number
    //= RFC 7296 3.3.1 MUST 6: no SPI in IKE_SA_INIT
    //= RFC 7296 3.4 MUST 2: the group is in the offer
    //= RFC 7296 3.4 SHOULD 3: the first group of the offer
    let mut pair = Pair::new().one_sided();
    let other = IkeProposal { ciphers: vec![Cipher::ChaCha20Poly1305], ..pair.configs[0].ike_proposals[0].clone() };
    pair.configs[0].ike_proposals.push(other.clone());
    pair.configs[1].ike_proposals = vec![other];
    pair.configure(1);
    let sent = begin(&mut pair);
    let request = Message::decode(&sent.payload).unwrap();
    let proposals = request.payloads.proposals().unwrap();
    let shown: Vec<_> = proposals.iter().map(|proposal| (proposal.number, proposal.spi.len())).collect();
    assert_eq!(shown, [(1, 0), (2, 0)]);
    let ciphers: Vec<_> = proposals.iter().map(|proposal| proposal.transforms[0].clone()).collect();
    assert_eq!(ciphers, [Cipher::Aes256Gcm16, Cipher::ChaCha20Poly1305].map(Transform::encryption));
    let groups = pair.configs[0].ike_proposals[0].groups.clone();
    assert_eq!(request.payloads.key_exchange().unwrap().group, groups[0].number(), "the first group of the first one");
    pair.arrive(1, &sent.payload, sent.remote, sent.local);
    let response = Message::decode(&pair.ends[1].endpoint.poll_transmit().unwrap().payload).unwrap();
    assert_eq!(response.payloads.proposals().unwrap()[0].number, 2, "the answer names the proposal by its number");
}

#[test]
fn our_name_has_no_control_character() {
    //= RFC 7296 3.5 MUST NOT 3: no terminator in a name
    //= RFC 7296 3.5 MUST NOT 4: no terminator in a mail address
    let set = |local_id: Identity| {
        let mut pair = Pair::new();
        pair.configs[0].local_id = local_id;
        let (config, now) = (pair.configs[0].clone(), Instant::new(pair.now));
        let End { endpoint, host, .. } = &mut pair.ends[0];
        endpoint.set_peer(config, now, host)
    };
    for text in ["a.example\0", "a.example\r\n", "a\u{85}.example"] {
        for local_id in [Identity::Fqdn(text.into()), Identity::Email(format!("ops@{text}"))] {
            assert_eq!(set(local_id), Err(CredentialError::ControlCharacter));
        }
    }
    assert_eq!(set(Identity::KeyId(vec![0, 13])), Ok(()), "octets of any value");
}

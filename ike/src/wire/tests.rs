//! What is written is read back the same; what is wrong is named; nothing from outside panics.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::config::{Aead, Group, Identity, Prf};

fn header() -> Header {
    Header {
        initiator_spi: 0x0102_0304_0506_0708,
        responder_spi: 0,
        exchange: ExchangeType::IkeSaInit,
        from_initiator: true,
        response: false,
        message_id: 0,
    }
}

/// A message with one payload of type `kind` and these contents, written by hand.
fn raw(kind: u8, critical: bool, contents: &[u8]) -> Vec<u8> {
    let mut out = Message { header: header(), payloads: Payloads::new() }.encode();
    out[16] = kind;
    out.extend_from_slice(&[0, if critical { 0x80 } else { 0 }]);
    out.extend_from_slice(&(contents.len() as u16 + 4).to_be_bytes());
    out.extend_from_slice(contents);
    let len = out.len() as u32;
    out[24..28].copy_from_slice(&len.to_be_bytes());
    out
}

fn read_one(kind: u8, contents: &[u8]) -> Result<Payload, InvalidMessage> {
    Message::decode(&raw(kind, false, contents)).map(|message| message.payloads.as_slice()[0].clone())
}

fn networks(selector: &TrafficSelector) -> Vec<String> {
    selector.networks().iter().map(IpNetwork::to_string).collect()
}

fn range(start: &str, end: &str) -> TrafficSelector {
    TrafficSelector::addresses(start.parse().unwrap(), end.parse().unwrap()).unwrap()
}

// ---- header

#[test]
fn a_header_is_laid_out_as_rfc_7296_draws_it() {
    let message = Message { header: Header { message_id: 7, response: true, ..header() }, payloads: Payloads::new() };
    let expected = [1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x20, 34, 0x28, 0, 0, 0, 7, 0, 0, 0, 28];
    assert_eq!(message.encode(), expected);
    assert_eq!(Message::decode(&expected), Ok(message));
}

#[test]
fn a_length_that_is_not_the_datagrams_is_refused() {
    let mut octets = Message { header: header(), payloads: Payloads::new() }.encode();
    octets.push(0);
    assert_eq!(Message::decode(&octets), Err(InvalidMessage::LengthMismatch { stated: 28, actual: 29 }));
}

#[test]
fn a_later_major_version_is_named_and_the_header_can_still_be_answered() {
    let mut octets = Message { header: header(), payloads: Payloads::new() }.encode();
    octets[17] = 0x30;
    let error = Message::decode(&octets).unwrap_err();
    assert_eq!(error, InvalidMessage::MajorVersion(3));
    assert_eq!(error.notify(), Notify::with_data(NotifyType::InvalidMajorVersion, vec![2]));
    assert_eq!(Header::peek(&octets), Some(header()));
}

#[test]
fn a_later_minor_version_and_unknown_flags_are_ignored() {
    let mut octets = Message { header: header(), payloads: Payloads::new() }.encode();
    octets[17] = 0x2f;
    octets[19] |= 0x57;
    assert_eq!(Message::decode(&octets).unwrap().header, header());
}

#[test]
fn an_initiator_spi_of_zero_is_refused() {
    let octets = Message { header: Header { initiator_spi: 0, ..header() }, payloads: Payloads::new() }.encode();
    assert_eq!(Message::decode(&octets), Err(InvalidMessage::ZeroInitiatorSpi));
}

// ---- chain

#[test]
fn an_unknown_critical_payload_is_refused_with_its_type() {
    let error = Message::decode(&raw(200, true, &[])).unwrap_err();
    assert_eq!(error, InvalidMessage::UnsupportedCriticalPayload(200));
    assert_eq!(error.notify(), Notify::with_data(NotifyType::UnsupportedCriticalPayload, vec![200]));
}

#[test]
fn an_unknown_payload_that_is_not_critical_is_kept() {
    assert_eq!(read_one(200, &[1, 2]), Ok(Payload::Unknown { kind: PayloadType::Unknown(200), data: vec![1, 2] }));
}

#[test]
fn the_critical_bit_of_payloads_that_rfc_7296_defines_is_ignored() {
    for (kind, contents) in [(40, vec![9; 16]), (47, vec![1, 0, 0, 0]), (48, vec![1]), (43, vec![])] {
        assert!(Message::decode(&raw(kind, true, &contents)).is_ok(), "payload type {kind}");
    }
}

#[test]
fn a_payload_that_may_stand_once_is_refused_when_it_stands_twice() {
    let nonce = Payload::Nonce(vec![1; 16]);
    let twice = Message { header: header(), payloads: vec![nonce.clone(), nonce].into() };
    assert_eq!(Message::decode(&twice.encode()), Err(InvalidMessage::Duplicate(PayloadType::Nonce)));
}

#[test]
fn encrypted_payloads_have_no_place_in_a_message_in_clear() {
    for kind in [46, 53] {
        assert_eq!(Message::decode(&raw(kind, false, &[0; 40])), Err(InvalidMessage::MisplacedEncrypted));
    }
}

#[test]
fn lengths_of_payloads_are_checked() {
    let mut short = raw(43, false, &[1, 2, 3, 4]);
    short[31] = 3;
    assert_eq!(Message::decode(&short), Err(InvalidMessage::LengthTooSmall { what: "payload", stated: 3 }));
    short[31] = 9;
    assert!(matches!(Message::decode(&short), Err(InvalidMessage::Truncated { .. })));
    short[31] = 7;
    assert!(matches!(Message::decode(&short), Err(InvalidMessage::TrailingBytes { octets: 1, .. })));
}

#[test]
fn more_payloads_than_any_honest_peer_sends_are_refused() {
    let many = |count| Message { header: header(), payloads: vec![Payload::VendorId(vec![1]); count].into() }.encode();
    assert!(Message::decode(&many(MAX_PAYLOADS)).is_ok());
    assert!(matches!(Message::decode(&many(MAX_PAYLOADS + 1)), Err(InvalidMessage::TooMany { what: "payloads", .. })));
}

#[test]
fn nonces_have_16_to_256_octets() {
    for (len, good) in [(15, false), (16, true), (256, true), (257, false)] {
        assert_eq!(read_one(40, &vec![1; len]).is_ok(), good, "{len} octets");
    }
}

#[test]
fn a_missing_payload_is_named() {
    assert_eq!(Payloads::new().nonce(), Err(InvalidMessage::Missing(PayloadType::Nonce)));
    assert_eq!(InvalidMessage::Missing(PayloadType::Nonce).to_string(), "payload Nonce is missing");
}

// ---- SA

#[test]
fn a_proposal_is_laid_out_as_rfc_7296_draws_it() {
    let proposal = Proposal {
        number: 1,
        protocol: Protocol::Esp,
        spi: vec![0xca, 0xfe, 0xba, 0xbe],
        transforms: vec![Transform::aead(Aead::Aes256Gcm16), Transform::sequence_numbers(false)],
    };
    let expected = [
        0, 0, 0, 32, 1, 3, 4, 2, 0xca, 0xfe, 0xba, 0xbe, // proposal
        3, 0, 0, 12, 1, 0, 0, 20, 0x80, 14, 1, 0, // ENCR_AES_GCM_16, 256 bits
        0, 0, 0, 8, 5, 0, 0, 0, // no ESN
    ];
    assert_eq!(read_one(33, &expected), Ok(Payload::SecurityAssociation(vec![proposal.clone()])));
    assert_eq!(proposal.child_spi(), Some(0xcafe_babe));
    let message = Message { header: header(), payloads: vec![Payload::SecurityAssociation(vec![proposal])].into() };
    assert_eq!(message.encode()[32..], expected);
}

#[test]
fn every_algorithm_is_known_again_and_no_other_number_is_taken_for_one() {
    for aead in [Aead::Aes128Gcm16, Aead::Aes256Gcm16, Aead::ChaCha20Poly1305] {
        assert_eq!(Transform::aead(aead).as_aead(), Some(aead));
    }
    for prf in [Prf::HmacSha256, Prf::HmacSha384, Prf::HmacSha512] {
        assert_eq!(Transform::prf(prf).as_prf(), Some(prf));
    }
    for group in [Group::X25519, Group::P256] {
        assert_eq!(Transform::group(group).as_group(), Some(group));
    }
    for extended in [false, true] {
        assert_eq!(Transform::sequence_numbers(extended).as_sequence_numbers(), Some(extended));
    }
    let aes = |attributes| Transform { kind: TransformType::Encryption, id: 20, attributes };
    assert_eq!(aes(vec![]).as_aead(), None, "RFC 7296 3.3.5: AES needs a key length");
    assert_eq!(aes(vec![Attribute::KeyLength(192)]).as_aead(), None);
    // RFC 7296 3.3.6: a transform with an attribute that is not understood must not be chosen.
    let strange = Attribute::OtherShort { kind: 99, value: 1 };
    assert_eq!(aes(vec![Attribute::KeyLength(256), strange]).as_aead(), None);
    assert!(Transform::new(TransformType::Integrity, 0).is_none());
    assert!(!Transform::new(TransformType::SequenceNumbers, 0).is_none());
}

#[test]
fn wrong_counts_and_markers_in_an_sa_payload_are_named() {
    let good = [0, 0, 0, 16, 1, 1, 0, 1, 0, 0, 0, 8, 2, 0, 0, 5];
    assert!(read_one(33, &good).is_ok());
    let with = |at: usize, value: u8| {
        let mut changed = good;
        changed[at] = value;
        read_one(33, &changed).unwrap_err()
    };
    assert_eq!(with(0, 2), InvalidMessage::SubstructureMarker { what: "proposal", found: 2 });
    assert_eq!(with(8, 3), InvalidMessage::SubstructureMarker { what: "transform", found: 3 });
    assert_eq!(with(7, 0), InvalidMessage::TransformCount { number: 1, stated: 0, actual: 1 });
    assert_eq!(with(7, 2), InvalidMessage::TransformCount { number: 1, stated: 2, actual: 1 });
    assert_eq!(with(3, 3), InvalidMessage::LengthTooSmall { what: "proposal", stated: 3 });
    assert_eq!(with(3, 15), InvalidMessage::SubstructureMarker { what: "proposal", found: 0 });
    assert!(matches!(with(11, 9), InvalidMessage::Truncated { .. }));
}

#[test]
fn more_proposals_than_any_honest_peer_sends_are_refused() {
    let proposal = Proposal { number: 1, protocol: Protocol::Ike, spi: vec![], transforms: vec![] };
    let sa = |count| Payloads::from(vec![Payload::SecurityAssociation(vec![proposal.clone(); count])]).encode();
    assert!(Payloads::decode(PayloadType::SecurityAssociation, &sa(MAX_PROPOSALS)).is_ok());
    let error = Payloads::decode(PayloadType::SecurityAssociation, &sa(MAX_PROPOSALS + 1)).unwrap_err();
    assert!(matches!(error, InvalidMessage::TooMany { what: "proposals", .. }));
}

#[test]
fn transforms_of_all_proposals_together_are_limited() {
    let transforms = vec![Transform::prf(Prf::HmacSha256); 200];
    let proposal = Proposal { number: 1, protocol: Protocol::Ike, spi: vec![], transforms };
    let sa = |count| Payloads::from(vec![Payload::SecurityAssociation(vec![proposal.clone(); count])]).encode();
    assert!(Payloads::decode(PayloadType::SecurityAssociation, &sa(2)).is_ok());
    let error = Payloads::decode(PayloadType::SecurityAssociation, &sa(3)).unwrap_err();
    assert_eq!(error, InvalidMessage::TooMany { what: "transforms", limit: MAX_TRANSFORMS });
}

// ---- notifications, deletes

#[test]
fn a_notification_about_a_child_names_its_spi() {
    let notify = Notify::about_child(NotifyType::RekeySa, 0x0102_0304);
    let payloads = Payloads::from(vec![Payload::Notify(notify.clone())]);
    assert_eq!(payloads.encode(), [0, 0, 0, 12, 3, 4, 0x40, 0x09, 1, 2, 3, 4]);
    assert_eq!(notify.child_spi(), Some(0x0102_0304));
    assert_eq!(Notify::new(NotifyType::RekeySa).child_spi(), None);
}

#[test]
fn unknown_notifications_are_kept_and_sorted_into_errors_and_status() {
    let Ok(Payload::Notify(error)) = read_one(41, &[0, 0, 0x1f, 0xff, 1]) else { panic!("a notification") };
    assert_eq!((error.kind, error.data.as_slice()), (NotifyType::Unknown(8191), [1].as_slice()));
    assert!(error.kind.is_error());
    assert!(!NotifyType::from(16384).is_error() && !NotifyType::Unknown(40_000).is_error());
}

#[test]
fn an_spi_longer_than_its_notification_is_refused() {
    assert!(matches!(read_one(41, &[3, 4, 0x40, 9, 1, 2, 3]), Err(InvalidMessage::Truncated { .. })));
}

#[test]
fn signature_hash_algorithms_are_a_list_of_numbers() {
    let notify = Notify::signature_hashes(&[HashAlgorithm::Sha2_256, HashAlgorithm::Identity]);
    assert_eq!(notify.data, [0, 2, 0, 5]);
    assert_eq!(notify.hashes(), [HashAlgorithm::Sha2_256, HashAlgorithm::Identity]);
}

#[test]
fn deletes_state_their_spis_truthfully() {
    assert_eq!(read_one(42, &[1, 0, 0, 0]), Ok(Payload::Delete(Delete::Ike)));
    assert_eq!(read_one(42, &[3, 4, 0, 1, 1, 2, 3, 4]), Ok(Payload::Delete(Delete::child(0x0102_0304))));
    for wrong in [[1, 8, 0, 1].as_slice(), &[1, 0, 0, 1], &[3, 8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], &[3, 0, 0, 0]] {
        assert!(matches!(read_one(42, wrong), Err(InvalidMessage::DeleteSpis { .. })), "{wrong:?}");
    }
    assert!(matches!(read_one(42, &[3, 4, 0xff, 0xff, 1, 2, 3, 4]), Err(InvalidMessage::Truncated { .. })));
    assert!(matches!(read_one(42, &[3, 4, 0, 0, 1]), Err(InvalidMessage::TrailingBytes { .. })));
}

// ---- identities

#[test]
fn identities_survive_the_wire_and_odd_ones_are_nobody() {
    for identity in [
        Identity::Address("192.0.2.1".parse().unwrap()),
        Identity::Address("2001:db8::1".parse().unwrap()),
        Identity::Fqdn("moon.example".into()),
        Identity::Email("a@b.example".into()),
        Identity::DistinguishedName(vec![0x30, 0]),
        Identity::KeyId(vec![0, 1, 2]),
    ] {
        assert_eq!(Id::from(&identity).identity(), Some(identity));
    }
    for (kind, data) in [
        (IdType::Ipv4Address, vec![1, 2, 3]),
        (IdType::Ipv6Address, vec![1; 4]),
        (IdType::Fqdn, vec![0xff]),
        (IdType::Fqdn, vec![]),
        (IdType::Unknown(99), vec![1]),
        (IdType::Null, vec![]),
    ] {
        assert_eq!(Id { kind, reserved: [0; 3], data }.identity(), None);
    }
}

#[test]
fn reserved_octets_of_an_identification_stay_as_they_came() {
    let Ok(Payload::IdInitiator(id)) = read_one(35, &[2, 7, 8, 9, b'a']) else { panic!("an identification") };
    assert_eq!(id.body(), [2, 7, 8, 9, b'a'], "AUTH covers them");
}

// ---- traffic selectors

#[test]
fn selectors_are_laid_out_as_rfc_7296_draws_them() {
    let selectors = vec![range("10.0.0.0", "10.0.0.255"), TrafficSelector::from("::/0".parse::<IpNetwork>().unwrap())];
    let payloads = Payloads::from(vec![Payload::TrafficSelectorsInitiator(selectors.clone())]);
    let octets = payloads.encode();
    assert_eq!(octets[..24], [0, 0, 0, 64, 2, 0, 0, 0, 7, 0, 0, 16, 0, 0, 255, 255, 10, 0, 0, 0, 10, 0, 0, 255]);
    assert_eq!(octets[24..32], [8, 0, 0, 40, 0, 0, 255, 255]);
    assert_eq!(Payloads::decode(payloads.first_kind(), &octets).unwrap().selectors_initiator().unwrap(), selectors);
}

#[test]
fn malformed_selectors_are_named_and_unknown_types_left_out() {
    let v4 = [7, 0, 0, 16, 0, 0, 255, 255, 10, 0, 0, 0, 10, 0, 0, 255];
    let payload =
        |count: u8, selectors: &[&[u8]]| read_one(44, &[&[count, 0, 0, 0], selectors.concat().as_slice()].concat());
    assert!(payload(1, &[&v4]).is_ok());
    assert_eq!(payload(0, &[&v4]), Err(InvalidMessage::SelectorCount { stated: 0, actual: 1 }));
    assert_eq!(payload(2, &[&v4]), Err(InvalidMessage::SelectorCount { stated: 2, actual: 1 }));
    let label = [10, 0, 0, 5, 1];
    assert_eq!(payload(2, &[&label, &v4]), payload(1, &[&v4]));
    let reversed = [7, 0, 0, 16, 0, 0, 255, 255, 10, 0, 0, 9, 10, 0, 0, 8];
    assert_eq!(payload(1, &[&reversed]), Err(InvalidMessage::SelectorRange));
    let ports = [7, 6, 0, 16, 0, 9, 0, 8, 10, 0, 0, 0, 10, 0, 0, 255];
    assert_eq!(payload(1, &[&ports]), Err(InvalidMessage::SelectorRange));
    let opaque = [7, 6, 0, 16, 255, 255, 0, 0, 10, 0, 0, 0, 10, 0, 0, 255];
    assert!(payload(1, &[&opaque]).is_ok());
    let short = [7, 0, 0, 8, 0, 0, 255, 255];
    assert_eq!(payload(1, &[&short]), Err(InvalidMessage::SelectorLength { kind: 7, length: 8 }));
}

#[test]
fn what_two_selectors_share_is_their_intersection() {
    let wide = TrafficSelector::from("10.0.0.0/8".parse::<IpNetwork>().unwrap());
    let narrow = TrafficSelector::from("10.1.0.0/16".parse::<IpNetwork>().unwrap());
    assert_eq!(wide.intersection(&narrow), Some(narrow));
    assert!(wide.contains(&narrow) && !narrow.contains(&wide));
    assert_eq!(
        range("10.0.0.0", "10.0.0.9").intersection(&range("10.0.0.5", "10.0.0.20")),
        Some(range("10.0.0.5", "10.0.0.9"))
    );
    assert_eq!(narrow.intersection(&TrafficSelector::from("::/0".parse::<IpNetwork>().unwrap())), None);
    let tcp = TrafficSelector { protocol: 6, start_port: 80, end_port: 90, ..wide };
    let udp = TrafficSelector { protocol: 17, ..wide };
    assert_eq!(tcp.intersection(&udp), None);
    assert_eq!(wide.intersection(&tcp), Some(tcp));
    let overlapping = TrafficSelector { start_port: 85, end_port: 100, ..tcp };
    assert_eq!(tcp.intersection(&overlapping).map(|both| (both.start_port, both.end_port)), Some((85, 90)));
    let opaque = TrafficSelector { start_port: 65535, end_port: 0, ..tcp };
    assert_eq!(tcp.intersection(&opaque), None);
    assert_eq!(opaque.intersection(&opaque), Some(opaque));
    assert_eq!(wide.intersection(&opaque), Some(opaque));
}

#[test]
fn a_range_is_the_fewest_networks_that_cover_it() {
    assert_eq!(networks(&range("10.0.0.0", "10.0.0.255")), ["10.0.0.0/24"]);
    assert_eq!(networks(&range("10.0.0.1", "10.0.0.6")), ["10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/31", "10.0.0.6/32"]);
    assert_eq!(networks(&range("0.0.0.0", "255.255.255.255")), ["0.0.0.0/0"]);
    assert_eq!(networks(&range("255.255.255.255", "255.255.255.255")), ["255.255.255.255/32"]);
    assert_eq!(networks(&range("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")), ["::/0"]);
    assert_eq!(networks(&range("::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")).len(), 128);
    assert_eq!(networks(&range("2001:db8::", "2001:db8::ffff")), ["2001:db8::/112"]);
}

// ---- fragments

fn fragment(number: u16, total: u16, data: &[u8]) -> Fragment {
    let first = if number == 1 { PayloadType::VendorId } else { PayloadType::None };
    Fragment { number, total, first, data: data.to_vec() }
}

#[test]
fn fragments_make_their_message_in_any_order_and_duplicates_change_nothing() {
    let message = Payloads::from(vec![Payload::VendorId((0..100).collect())]);
    let octets = message.encode();
    let parts: Vec<_> = octets.chunks(40).collect();
    let mut reassembly = Reassembly::new();
    assert_eq!(reassembly.add(fragment(3, 3, parts[2])), Ok(None));
    assert_eq!(reassembly.add(fragment(3, 3, &[0xff; 40])), Ok(None));
    assert_eq!(reassembly.add(fragment(1, 3, parts[0])), Ok(None));
    assert_eq!(reassembly.add(fragment(2, 3, parts[1])), Ok(Some(message)));
    assert_eq!(reassembly.add(fragment(2, 3, parts[1])), Ok(None), "it is empty again");
}

#[test]
fn a_finer_split_replaces_a_coarser_one_and_not_the_other_way_round() {
    let message = Payloads::from(vec![Payload::VendorId((0..100).collect())]);
    let octets = message.encode();
    let mut reassembly = Reassembly::new();
    assert_eq!(reassembly.add(fragment(1, 2, &octets[..60])), Ok(None));
    assert_eq!(reassembly.add(fragment(1, 3, &octets[..40])), Ok(None));
    assert_eq!(reassembly.add(fragment(2, 2, &octets[60..])), Ok(None), "an old one");
    assert_eq!(reassembly.add(fragment(2, 3, &octets[40..80])), Ok(None));
    assert_eq!(reassembly.add(fragment(3, 3, &octets[80..])), Ok(Some(message)));
}

#[test]
fn impossible_fragment_numbers_and_endless_messages_are_refused() {
    let mut reassembly = Reassembly::new();
    for (number, total) in [(0, 1), (2, 1), (1, 0), (0, 0)] {
        assert_eq!(reassembly.add(fragment(number, total, &[])), Err(InvalidMessage::FragmentNumber { number, total }));
    }
    assert!(matches!(reassembly.add(fragment(1, MAX_FRAGMENTS + 1, &[])), Err(InvalidMessage::TooMany { .. })));
    assert_eq!(reassembly.add(fragment(1, 3, &[0; 20_000])), Ok(None));
    assert!(matches!(reassembly.add(fragment(2, 3, &[0; 20_000])), Err(InvalidMessage::TooMany { .. })));
}

// ---- anything at all

fn octets(range: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), range)
}

fn attribute() -> impl Strategy<Value = Attribute> {
    let other = (0..0x8000_u16).prop_filter("the key length is its own", |kind| *kind != 14);
    prop_oneof![
        any::<u16>().prop_map(Attribute::KeyLength),
        (other, any::<u16>()).prop_map(|(kind, value)| Attribute::OtherShort { kind, value }),
        (0..0x8000_u16, octets(0..20)).prop_map(|(kind, value)| Attribute::OtherLong { kind, value }),
    ]
}

fn proposal() -> impl Strategy<Value = Proposal> {
    let transform = (any::<u8>(), any::<u16>(), vec(attribute(), 0..3)).prop_map(|(kind, id, attributes)| Transform {
        kind: kind.into(),
        id,
        attributes,
    });
    (any::<u8>(), any::<u8>(), octets(0..9), vec(transform, 0..12))
        .prop_map(|(number, protocol, spi, transforms)| Proposal { number, protocol: protocol.into(), spi, transforms })
}

fn selector() -> impl Strategy<Value = TrafficSelector> {
    let v4 = any::<(u32, u32)>()
        .prop_map(|(a, b)| (IpAddr::V4(Ipv4Addr::from(a.min(b))), IpAddr::V4(Ipv4Addr::from(a.max(b)))));
    let v6 = any::<(u128, u128)>()
        .prop_map(|(a, b)| (IpAddr::V6(Ipv6Addr::from(a.min(b))), IpAddr::V6(Ipv6Addr::from(a.max(b)))));
    (prop_oneof![v4, v6], any::<u8>(), any::<(u16, u16)>()).prop_map(|((start, end), protocol, (a, b))| {
        TrafficSelector { protocol, start_port: a.min(b), end_port: a.max(b), start, end }
    })
}

fn id() -> impl Strategy<Value = Id> {
    (any::<u8>(), any::<[u8; 3]>(), octets(0..40)).prop_map(|(kind, reserved, data)| Id {
        kind: kind.into(),
        reserved,
        data,
    })
}

fn payload() -> impl Strategy<Value = Payload> {
    prop_oneof![
        vec(proposal(), 0..6).prop_map(Payload::SecurityAssociation),
        (any::<u16>(), octets(0..80)).prop_map(|(group, data)| Payload::KeyExchange(KeyExchange { group, data })),
        id().prop_map(Payload::IdInitiator),
        id().prop_map(Payload::IdResponder),
        (any::<u8>(), octets(0..200))
            .prop_map(|(encoding, data)| Payload::Certificate(Certificate { encoding: encoding.into(), data })),
        (any::<u8>(), octets(0..60)).prop_map(|(encoding, authorities)| {
            Payload::CertificateRequest(CertificateRequest { encoding: encoding.into(), authorities })
        }),
        (any::<u8>(), octets(0..80))
            .prop_map(|(method, data)| Payload::Authentication(Authentication { method: method.into(), data })),
        octets(16..257).prop_map(Payload::Nonce),
        (any::<u16>(), any::<u8>(), octets(0..9), octets(0..40)).prop_map(|(kind, protocol, spi, data)| {
            Payload::Notify(Notify { kind: kind.into(), protocol: protocol.into(), spi, data })
        }),
        Just(Payload::Delete(Delete::Ike)),
        (2..4_u8, vec(any::<u32>(), 0..9))
            .prop_map(|(protocol, spis)| Payload::Delete(Delete::Children { protocol: protocol.into(), spis })),
        octets(0..30).prop_map(Payload::VendorId),
        vec(selector(), 0..9).prop_map(Payload::TrafficSelectorsInitiator),
        vec(selector(), 0..9).prop_map(Payload::TrafficSelectorsResponder),
        (prop_oneof![47..=48_u8, 60..=255_u8], octets(0..30))
            .prop_map(|(kind, data)| Payload::Unknown { kind: kind.into(), data }),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    let header = (1..=u64::MAX, any::<u64>(), any::<u8>(), any::<bool>(), any::<bool>(), any::<u32>()).prop_map(
        |(initiator_spi, responder_spi, exchange, from_initiator, response, message_id)| Header {
            initiator_spi,
            responder_spi,
            exchange: exchange.into(),
            from_initiator,
            response,
            message_id,
        },
    );
    (header, vec(payload(), 0..12)).prop_map(|(header, payloads)| {
        let mut seen = std::collections::HashSet::new();
        let once = |payload: &Payload| !Payload::is_single(payload.kind()) || seen.insert(payload.kind());
        Message { header, payloads: payloads.into_iter().filter(once).collect() }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn what_is_encoded_decodes_to_the_same(message in message()) {
        prop_assert_eq!(Message::decode(&message.encode()), Ok(message));
    }

    #[test]
    fn arbitrary_octets_never_panic(octets in octets(0..600), first in any::<u8>()) {
        let _ = Message::decode(&octets);
        let _ = Header::peek(&octets);
        let _ = EncryptedMessage::read(&octets);
        let _ = Payloads::decode(first.into(), &octets);
    }

    #[test]
    fn a_mutilated_message_never_panics_and_what_is_read_can_be_written(
        message in message(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut octets = message.encode();
        for (at, value) in changes {
            let at = at.index(octets.len());
            octets[at] = value;
        }
        if let Some(cut) = cut {
            octets.truncate(cut.index(octets.len()));
            // Half of the cuts go on with a length that agrees, so that they reach the payloads.
            let len = octets.len() as u32;
            if let Some(field) = octets.get_mut(24..28) {
                field.copy_from_slice(&len.to_be_bytes());
            }
        }
        let _ = EncryptedMessage::read(&octets);
        if let Ok(read) = Message::decode(&octets) {
            prop_assert_eq!(Message::decode(&read.encode()), Ok(read));
        }
    }

    #[test]
    fn the_networks_of_a_range_cover_it_exactly(selector in selector()) {
        let networks = selector.networks();
        prop_assert_eq!(networks.first().map(IpNetwork::network), Some(selector.start));
        prop_assert_eq!(networks.last().map(|last| TrafficSelector::from(*last).end), Some(selector.end));
        for pair in networks.windows(2) {
            let (before, after) = (TrafficSelector::from(pair[0]).end, pair[1].network());
            let number = |address| match address { IpAddr::V4(v4) => u128::from(u32::from(v4)), IpAddr::V6(v6) => u128::from(v6) };
            prop_assert_eq!(number(before) + 1, number(after));
        }
    }

    #[test]
    fn an_intersection_lies_in_both(a in selector(), b in selector()) {
        if let Some(both) = a.intersection(&b) {
            prop_assert!(a.contains(&both) && b.contains(&both));
            prop_assert_eq!(b.intersection(&a), Some(both));
        }
    }
}

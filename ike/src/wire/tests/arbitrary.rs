//! Tests arbitrary messages and arbitrary octets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

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
        (any::<u8>(), vec((0..0x8000_u16, octets(0..20)), 0..9)).prop_map(|(kind, attributes)| {
            let attributes = attributes.into_iter().map(|(kind, value)| ConfigurationAttribute { kind, value });
            Payload::Configuration(Configuration { kind, attributes: attributes.collect() })
        }),
        (prop_oneof![Just(48_u8), 60..=255_u8], octets(0..30))
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
            // Correct the length field of the shortened message, so that the decoder reaches the
            // payloads.
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
        let networks: Vec<_> = selector.networks().collect();
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

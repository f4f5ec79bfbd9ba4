//! Tests Identification payloads.

use super::*;

#[test]
fn identities_survive_the_wire_and_odd_ones_are_nobody() {
    //= RFC 7296 3.5 MUST 1: RESERVED is zero
    //= RFC 7296 3.5 MUST 5: one type to send
    //= RFC 7296 3.5 MUST 6: four types to accept
    //= RFC 7296 3.5 SHOULD 7: all types
    //= RFC 7296 3.5 MUST 8: IPv6 addresses
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
    //= RFC 7296 3.5 MUST 2: RESERVED is ignored
    let Ok(Payload::IdInitiator(id)) = read_one(35, &[2, 7, 8, 9, b'a']) else { panic!("an identification") };
    assert_eq!((id.head(), id.data.as_slice()), ([2, 7, 8, 9], b"a".as_slice()), "AUTH covers them");
}

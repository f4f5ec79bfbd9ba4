//! Tests the chain of payloads.

use super::*;

#[test]
fn an_unknown_critical_payload_is_refused_with_its_type() {
    //= RFC 7296 2.5 MUST 10: unknown and critical is refused
    let error = Message::decode(&raw(200, true, &[])).unwrap_err();
    assert_eq!(error, InvalidMessage::UnsupportedCriticalPayload(200));
    assert_eq!(error.notify(), Notify::with_data(NotifyType::UnsupportedCriticalPayload, vec![200]));
}

#[test]
fn an_unknown_payload_that_is_not_critical_is_kept() {
    //= RFC 7296 2.5 MUST 9: undefined payloads are skipped
    //= RFC 7296 2.5 MUST 12: unknown and not critical is ignored
    assert_eq!(read_one(200, &[1, 2]), Ok(Payload::Unknown { kind: PayloadType::Unknown(200), data: vec![1, 2] }));
}

#[test]
fn the_critical_bit_of_payloads_that_rfc_7296_defines_is_ignored() {
    //= RFC 7296 2.5 REQUIRED 14: critical is for the type alone
    //= RFC 7296 3.2 MUST 3: critical does not matter for known types
    //= RFC 7296 3.2 MUST 5: all types are understood
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
    //= RFC 7296 2.10 MUST 2: 128 bits
    //= RFC 7296 3.9 MUST 1: 16 to 256 octets
    for (len, good) in [(15, false), (16, true), (256, true), (257, false)] {
        assert_eq!(read_one(40, &vec![1; len]).is_ok(), good, "{len} octets");
    }
}

#[test]
fn a_missing_payload_is_named() {
    assert_eq!(Payloads::new().nonce(), Err(InvalidMessage::Missing(PayloadType::Nonce)));
    assert_eq!(InvalidMessage::Missing(PayloadType::Nonce).to_string(), "payload Nonce is missing");
}

#[test]
fn reserved_bits_and_octets_are_ignored_wherever_they_stand() {
    //= RFC 7296 2.5 MUST 8: RESERVED is ignored
    //= RFC 7296 3.2 MUST 7: reserved bits are ignored
    //= RFC 7296 3.3.1 MUST 2: RESERVED is ignored
    //= RFC 7296 3.3.2 MUST 2: RESERVED is ignored
    //= RFC 7296 3.13 MUST 2: RESERVED is ignored
    let security_association = [0, 0, 0, 16, 1, 1, 0, 1, 0, 0, 0, 8, 2, 0, 0, 5];
    let selectors = [1, 0, 0, 0, 7, 0, 0, 16, 0, 0, 255, 255, 10, 0, 0, 0, 10, 255, 255, 255];
    for (kind, contents, reserved) in [
        (33, security_association.as_slice(), [1, 9, 13].as_slice()),
        (34, &[0, 31, 0, 0, 1, 2, 3], &[2, 3]),
        (39, &[2, 0, 0, 0, 9], &[1, 2, 3]),
        (44, &selectors, &[1, 2, 3]),
    ] {
        let mut octets = raw(kind, false, contents);
        let expected = Message::decode(&octets).unwrap();
        octets[29] = 0x7f;
        for at in reserved {
            octets[32 + at] = 0xff;
        }
        assert_eq!(Message::decode(&octets), Ok(expected), "payload type {kind}");
    }
}

#[test]
fn an_encrypted_payload_is_the_last_one_and_holds_no_other() {
    //= RFC 7296 3.1 MUST 1: SK is the last payload
    //= RFC 7296 3.1 MUST NOT 2: no SK in SK
    //= RFC 7296 3.14 MUST 1: SK is the last payload
    let mut octets = raw(46, false, &[0; 40]);
    assert!(EncryptedMessage::read(&octets).is_ok());
    octets.extend_from_slice(&[0, 0, 0, 4]);
    let len = octets.len() as u32;
    octets[24..28].copy_from_slice(&len.to_be_bytes());
    assert!(matches!(EncryptedMessage::read(&octets), Err(InvalidMessage::TrailingBytes { octets: 4, .. })));
    for kind in [PayloadType::Encrypted, PayloadType::EncryptedFragment] {
        let inner = [0, 0, 0, 12, 0, 1, 0, 1, 1, 2, 3, 4];
        assert_eq!(Payloads::decode(kind, &inner), Err(InvalidMessage::MisplacedEncrypted));
    }
}

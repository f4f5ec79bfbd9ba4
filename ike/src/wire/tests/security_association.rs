//! Tests Security Association payloads.

use super::*;

#[test]
fn a_proposal_is_laid_out_as_rfc_7296_draws_it() {
    //= RFC 7296 2.5 MUST 7: RESERVED is zero
    //= RFC 7296 3.3.1 MUST 1: RESERVED is zero
    //= RFC 7296 3.3.2 MUST 1: RESERVED is zero
    //= RFC 7296 3.3.5 MUST NOT 1: fixed length is short form
    //= RFC 7296 3.3.5 MUST 3: network byte order
    //= RFC 7296 3.3.5 MUST 5: the length of AES keys
    let proposal = Proposal {
        number: 1,
        protocol: Protocol::Esp,
        spi: vec![0xca, 0xfe, 0xba, 0xbe],
        transforms: vec![Transform::encryption(Cipher::Aes256Gcm16), Transform::sequence_numbers(false)],
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
    for prf in [Prf::HmacSha256, Prf::HmacSha384, Prf::HmacSha512] {
        assert_eq!(Transform::prf(prf).as_prf(), Some(prf));
    }
    for group in [Group::X25519, Group::P256] {
        assert_eq!(Transform::group(group).as_group(), Some(group));
    }
    for extended in [false, true] {
        assert_eq!(Transform::sequence_numbers(extended).as_sequence_numbers(), Some(extended));
    }
    assert!(Transform::new(TransformType::Integrity, 0).is_none());
    assert!(!Transform::new(TransformType::SequenceNumbers, 0).is_none());
}

#[test]
fn encryption_and_integrity_have_the_numbers_of_the_registry() {
    //= RFC 7296 2.13 MUST 1: the key length is negotiated
    //= RFC 7296 3 SHOULD NOT 1: nothing unspecified
    //= RFC 7296 3.3 MUST NOT 6: one attribute of a type
    //= RFC 7296 3.3.5 MUST NOT 4: no length of fixed keys
    //= RFC 7296 3.14 MUST NOT 2: only specified transforms
    let cbc = |length, integrity| Cipher::AesCbc(length, integrity);
    for (cipher, encryption, integrity) in [
        (Cipher::Aes128Gcm16, (20, Some(128)), None),
        (Cipher::Aes256Gcm16, (20, Some(256)), None),
        (Cipher::ChaCha20Poly1305, (28, None), None),
        (cbc(AesKeyLength::Bits128, Integrity::HmacSha256), (12, Some(128)), Some(12)),
        (cbc(AesKeyLength::Bits192, Integrity::HmacSha384), (12, Some(192)), Some(13)),
        (cbc(AesKeyLength::Bits256, Integrity::HmacSha512), (12, Some(256)), Some(14)),
    ] {
        let attributes = encryption.1.map(Attribute::KeyLength).into_iter().collect();
        let expected = Transform { kind: TransformType::Encryption, id: encryption.0, attributes };
        assert_eq!(Transform::encryption(cipher), expected);
        let expected = integrity.map(|id| Transform::new(TransformType::Integrity, id));
        assert_eq!(cipher.integrity().map(Transform::integrity), expected);
    }
}

#[test]
fn wrong_counts_and_markers_in_an_sa_payload_are_named() {
    //= RFC 7296 3.3 MUST 2: lengths and counts agree
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

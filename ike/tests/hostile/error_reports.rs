//! Tests the reports about malformed packets and failed authentications. The packets leave no state
//! behind, and a flood of them does not fill the log.

use std::time::Duration;

use edge_ike::event::PeerErrorKind;
use edge_ike::wire::{Message, Notify, NotifyType, Payload, Payloads};

use crate::peer::{self, Hostile, World};

/// Makes an IKE_SA_INIT request, changed by `change`.
fn first_request(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut datagram = Hostile::first_request(1);
    change(&mut datagram);
    let length = datagram.len() as u32;
    datagram[24..28].copy_from_slice(&length.to_be_bytes());
    datagram
}

#[test]
fn a_malformed_first_request_is_told_with_what_is_wrong_and_not_answered() {
    //= RFC 7296 3.10.1 REQUIRED 5: INVALID_SYNTAX is encrypted
    let mut world = World::new(7);
    world.deliver(&first_request(|datagram| datagram.truncate(60)));
    assert_eq!(world.sent.len(), 0);
    let [error] = world.errors.as_slice() else { panic!("one error: {:?}", world.errors) };
    assert_eq!((error.exchange, error.kind), ("IKE_SA_INIT", PeerErrorKind::Protocol));
    assert!(error.detail.contains("ends early"), "{error}");
    world.assert_untouched();
}

#[test]
fn a_first_request_without_a_nonce_is_told() {
    //= RFC 7296 3.10.1 REQUIRED 5: INVALID_SYNTAX is encrypted
    let mut world = World::new(7);
    let message = Message::decode(&Hostile::first_request(1)).unwrap();
    let rest = message.payloads.iter().filter(|payload| !matches!(payload, Payload::Nonce(_))).cloned().collect();
    world.deliver(&Message { payloads: rest, ..message }.encode());
    assert!(world.errors[0].detail.contains("Nonce is missing"), "{:?}", world.errors);
    assert_eq!(world.sent.len(), 0);
    world.assert_untouched();
}

#[test]
fn an_ike_auth_without_an_identity_is_told_answered_and_forgotten() {
    let mut world = World::new(7);
    let nameless = |payloads: &mut Payloads| {
        *payloads = payloads.iter().filter(|payload| !matches!(payload, Payload::IdInitiator(_))).cloned().collect();
    };
    assert!(Hostile::establish_as(peer::PSK, &mut world, nameless).is_none());
    let [error] = world.errors.as_slice() else { panic!("one error: {:?}", world.errors) };
    assert_eq!((error.exchange, error.kind), ("IKE_AUTH", PeerErrorKind::Protocol));
    assert!(error.detail.contains("malformed") && error.detail.contains("missing"), "{error}");
    assert_eq!(world.sent.len(), 2, "IKE_SA_INIT and IKE_AUTH are answered");
    world.wait(Duration::from_secs(15));
    world.assert_untouched();
}

#[test]
fn an_ike_auth_that_wants_another_way_to_authenticate_is_told_what_to_configure() {
    let mut world = World::new(7);
    let unproven = |payloads: &mut Payloads| {
        *payloads = payloads.iter().filter(|payload| !matches!(payload, Payload::Authentication(_))).cloned().collect();
    };
    assert!(Hostile::establish_as(peer::PSK, &mut world, unproven).is_none());
    let [error] = world.errors.as_slice() else { panic!("one error: {:?}", world.errors) };
    assert_eq!((error.exchange, error.kind), ("IKE_AUTH", PeerErrorKind::AuthenticationFailed));
    assert!(error.detail.contains("EAP") && error.detail.contains("configure a pre-shared key"), "{error}");
    world.wait(Duration::from_secs(15));
    world.assert_untouched();
}

#[test]
fn a_later_version_and_an_unknown_critical_payload_are_answered_as_the_rfc_wants() {
    //= RFC 7296 1.5 REQUIRED 2: the answer copies the request's header
    //= RFC 7296 2.5 SHOULD 3: INVALID_MAJOR_VERSION
    //= RFC 7296 2.5 MUST 11: UNSUPPORTED_CRITICAL_PAYLOAD
    //= RFC 7296 3.1 MUST 7: later versions are refused
    let mut world = World::new(7);
    world.deliver(&first_request(|datagram| datagram[17] = 0x30));
    world.deliver(&first_request(|datagram| {
        datagram[16] = 200;
        datagram[29] = 0x80;
    }));
    let answers: Vec<Message> = world.sent.iter().map(|sent| Message::decode(sent).unwrap()).collect();
    let [version, critical] = answers.as_slice() else { panic!("two answers: {answers:?}") };
    assert_eq!(version.payloads.error(), Some(&Notify::with_data(NotifyType::InvalidMajorVersion, vec![2])));
    assert_eq!(critical.payloads.error(), Some(&Notify::with_data(NotifyType::UnsupportedCriticalPayload, vec![200])));
    assert!(answers.iter().all(|answer| answer.header.response && !answer.header.from_initiator));
    let [version, critical] = world.errors.as_slice() else { panic!("two errors: {:?}", world.errors) };
    assert!(version.detail.contains("IKE major version 3, expected 2"), "{version}");
    assert!(critical.detail.contains("unknown payload type 200 is marked critical"), "{critical}");
    world.assert_untouched();
}

#[test]
fn a_peer_that_speaks_ikev1_is_told_of_and_not_answered() {
    //= RFC 7296 2.4 MUST 5: rate of what unprotected messages cause
    //= RFC 7296 2.21.4 REQUIRED 11: rate of answers
    let mut world = World::new(7);
    // Main Mode (RFC 2409 5): version 1.0, exchange 2, no flags.
    let main_mode = first_request(|datagram| datagram[17..20].copy_from_slice(&[0x10, 2, 0]));
    world.deliver(&main_mode);
    assert_eq!(world.sent.len(), 0);
    let [error] = world.errors.as_slice() else { panic!("one error: {:?}", world.errors) };
    assert!(error.detail.contains("IKE major version 1, expected 2; configure the peer for IKEv2"), "{error}");
    for _ in 0..100 {
        world.deliver(&main_mode);
    }
    assert!(world.errors.len() <= 16, "a flood does not fill the log");
    world.assert_untouched();
}

#[test]
fn a_wrong_secret_is_told_and_leaves_nothing_behind() {
    let mut world = World::new(7);
    assert!(Hostile::establish_by(b"known to nobody", &mut world, false).is_none());
    let [error] = world.errors.as_slice() else { panic!("one error: {:?}", world.errors) };
    assert_eq!((error.exchange, error.kind), ("IKE_AUTH", PeerErrorKind::AuthenticationFailed));
    assert!(error.detail.contains("compare the pre-shared key on both sides"), "{error}");
    // The endpoint stores the last response for some time, so that it can send it again if it was
    // lost.
    world.wait(Duration::from_secs(15));
    world.assert_untouched();
}

#[test]
fn those_who_guess_secrets_do_not_fill_the_log() {
    //= RFC 7296 2.4 MUST 5: rate of what unprotected messages cause
    let mut world = World::new(7);
    for _ in 0..40 {
        Hostile::establish_by(b"a guess", &mut world, false);
    }
    assert_eq!(world.errors.len(), 16);
    world.wait(Duration::from_secs(2));
    Hostile::establish_by(b"a guess", &mut world, false);
    assert_eq!(world.errors.len(), 17, "later ones are reported again");
    assert!(world.endpoint.snapshot()[0].last_error.is_some());
}

#[test]
fn messages_to_nobody_are_not_answered() {
    //= RFC 7296 1.4 MUST 1: no INFORMATIONAL before IKE_AUTH
    //= RFC 7296 1.5 MUST NOT 1: nothing answers outside of an IKE SA
    //= RFC 7296 2.21.4 MUST NOT 1: no answer to a response
    //= RFC 7296 2.21.4 MUST NOT 5: INVALID_IKE_SPI is not answered
    //= RFC 7296 3.1 MUST NOT 14: responses are not answered
    let mut world = World::new(7);
    for exchange in [34, 35, 36, 37, 43, 99] {
        world.deliver(&peer::in_clear([9; 16], exchange, [2, 0, 0, 1], Payloads::new()));
    }
    for datagram in [[].as_slice(), &[0xff], &[0; 4], &[0; 27], &[0; 28], &[0xff; 2000]] {
        world.deliver(datagram);
    }
    assert_eq!((world.sent.len(), world.errors.len()), (0, 0));
    world.assert_untouched();
}

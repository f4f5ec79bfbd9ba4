//! What is reported about malformed packets and failed authentications. Nothing is left of them,
//! and a flood does not fill a log.

use std::time::Duration;

use edge_ike::event::PeerErrorKind;
use edge_ike::wire::{Message, Notify, NotifyType, Payload, Payloads};

use crate::peer::{self, Hostile, World};

/// An IKE_SA_INIT request that `change` has changed.
fn first_request(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut datagram = Hostile::first_request(1);
    change(&mut datagram);
    let length = datagram.len() as u32;
    datagram[24..28].copy_from_slice(&length.to_be_bytes());
    datagram
}

#[test]
fn a_malformed_first_request_is_told_with_what_is_wrong_and_not_answered() {
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
    // The last answer is repeated for a while, should it have been lost.
    world.wait(Duration::from_secs(15));
    world.assert_untouched();
}

#[test]
fn those_who_guess_secrets_do_not_fill_the_log() {
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

//! Tests the contents and the order of payloads in our messages, and which contents of a peer's
//! messages we ignore.

use crate::foreign::{CRITICAL, Foreign, Part, delete_child, notification};
use crate::oracle::clear;
use crate::oracle::octets::{Message, exchange, notify, payload};
use crate::peers::{PSK, SECOND};
use crate::rules::ike_rekey_of_ours;

fn kinds(message: &Message) -> Vec<u8> {
    message.payloads.iter().map(|payload| payload.kind).collect()
}

/// Returns whether one of these datagrams belongs to IKE_SA_INIT.
fn begins(datagrams: &[Vec<u8>]) -> bool {
    let mut messages = datagrams.iter().filter_map(|datagram| clear(datagram));
    messages.any(|message| message.header.exchange == exchange::IKE_SA_INIT)
}

/// Returns payloads that our endpoint does not support: a request for its version (RFC 7296 2.20),
/// an unknown payload, a vendor ID, an unknown status and an unknown error, and INVALID_SPI.
fn unsupported() -> Vec<Part> {
    vec![
        (47, vec![1, 0, 0, 0, 0, 7, 0, 0]),
        (200, vec![1, 2, 3]),
        (43, b"somebody".to_vec()),
        notification(40_000, 0, &[], &[]),
        notification(8191, 0, &[], &[]),
        notification(11, 0, &[], &[0, 0, 0xba, 0xdd]),
    ]
}

#[test]
fn payloads_come_in_the_order_of_the_rfc() {
    //= RFC 7296 2.5 SHOULD 15: the usual order of payloads
    //= RFC 7296 3.4 MUST NOT 4: no KE without a group
    use payload::{AUTH, ID_RESPONDER, KE, NONCE, NOTIFY, SA, TS_INITIATOR, TS_RESPONDER};
    let mut foreign = Foreign::new(1, |_| {});
    let request = foreign.init_request(&foreign.init_parts());
    let order = kinds(&clear(&foreign.exchange(request)[0]).unwrap());
    assert_eq!(order[..3], [SA, KE, NONCE]);
    assert!(order[3..].iter().all(|kind| *kind == NOTIFY), "{order:?}");
    let mut foreign = Foreign::new(1, |_| {});
    // The last one announces the window.
    assert_eq!(kinds(&foreign.authenticate(PSK)), [ID_RESPONDER, AUTH, SA, TS_INITIATOR, TS_RESPONDER, NOTIFY]);
    let mut foreign = Foreign::established(1, |_| {});
    assert_eq!(kinds(&foreign.rekey_of_ours()), [NOTIFY, SA, NONCE, TS_INITIATOR, TS_RESPONDER]);
    let mut foreign = Foreign::established(1, |_| {});
    assert_eq!(kinds(&ike_rekey_of_ours(&mut foreign)), [SA, NONCE, KE]);
}

#[test]
fn payloads_are_taken_in_any_order() {
    //= RFC 7296 2.5 MUST NOT 16: any order of payloads
    let mut foreign = Foreign::new(1, |_| {});
    let reversed = |parts: Vec<Part>| -> Vec<Part> { parts.into_iter().rev().collect() };
    let request = foreign.init_request(&reversed(foreign.init_parts()));
    assert!(clear(&foreign.exchange(request)[0]).unwrap().key_exchange().is_some());
    let mut foreign = Foreign::new(1, |_| {});
    assert_eq!(foreign.authenticate_with(PSK, |parts| parts.reverse()).error(), None);
    let mut foreign = Foreign::established(1, |_| {});
    let parts = reversed(Foreign::rekey_parts(foreign.child.0, 0xf003));
    assert_eq!(foreign.request(exchange::CREATE_CHILD_SA, &parts)[0].error(), None);
}

#[test]
fn payloads_and_attributes_that_we_do_not_support_change_nothing() {
    //= RFC 7296 2.5 MUST 12: unknown and not critical is ignored
    //= RFC 7296 2.20 MUST 1: no version is told
    //= RFC 7296 2.21.4 MUST NOT 10: such a notification changes nothing
    //= RFC 7296 3.10.1 MUST 2: unknown notifications are ignored
    //= RFC 7296 3.10.1 MUST 3: unknown status types are ignored
    //= RFC 7296 3.12 MUST 3: unknown vendor IDs are ignored
    let mut foreign = Foreign::new(1, |_| {});
    let parts = [foreign.init_parts(), unsupported()].concat();
    let answer = foreign.exchange(foreign.init_request(&parts)).remove(0);
    assert!(clear(&answer).unwrap().key_exchange().is_some());
    let mut foreign = Foreign::new(1, |_| {});
    assert_eq!(foreign.authenticate_with(PSK, |parts| parts.extend(unsupported())).error(), None);
    let mut foreign = Foreign::established(1, |_| {});
    let sas = |foreign: &Foreign| {
        let status = foreign.network.nodes[0].endpoint.snapshot().remove(0);
        let children: Vec<_> = status.children.iter().map(|child| child.sa.id).collect();
        (status.ike_sas.len(), children)
    };
    let before = sas(&foreign);
    let answers = foreign.request(exchange::INFORMATIONAL, &unsupported());
    assert_eq!(answers.iter().map(kinds).collect::<Vec<_>>(), [[0_u8; 0]], "an empty answer, without our version");
    assert_eq!(sas(&foreign), before);
    let parts = [Foreign::rekey_parts(foreign.child.0, 0xf003), unsupported()].concat();
    assert_eq!(foreign.request(exchange::CREATE_CHILD_SA, &parts)[0].error(), None);
}

#[test]
fn an_unreadable_ike_auth_is_answered_by_what_is_wrong_alone() {
    //= RFC 7296 2.21.2 MUST 2: a malformed IKE_AUTH is rejected whole
    //= RFC 7296 2.21.2 MUST 3: by one of two notifications
    // A nonce of 3 octets causes INVALID_SYNTAX, and an unknown critical payload causes
    // UNSUPPORTED_CRITICAL_PAYLOAD. The pre-shared key is also wrong, but it is not checked.
    for (part, expected) in [((payload::NONCE, vec![1; 3]), 7), ((CRITICAL, Vec::new()), 1)] {
        let mut foreign = Foreign::new(1, |_| {});
        let refusal = foreign.authenticate_with(b"a guess", |parts| parts.push(part));
        assert_eq!((kinds(&refusal), refusal.error()), (vec![payload::NOTIFY], Some(expected)));
    }
}

#[test]
fn deletions_of_what_we_rekey_or_do_not_know_are_answered_as_usual() {
    //= RFC 7296 2.25.1 SHOULD 6: closed while we rekey it
    //= RFC 7296 2.25.1 SHOULD 7: closed and not there
    let mut foreign = Foreign::established(1, |_| {});
    let answers = foreign.request(exchange::INFORMATIONAL, &[delete_child(0xbad)]);
    assert_eq!(kinds(&answers[0]), [0_u8; 0]);
    foreign.rekey_of_ours();
    let answers = foreign.request(exchange::INFORMATIONAL, &[delete_child(foreign.child.0)]);
    assert_eq!(answers[0].deleted_children(), [foreign.child.1]);
}

#[test]
fn a_deletion_of_the_ike_sa_is_answered_by_an_empty_message_even_while_we_delete_it() {
    //= RFC 7296 1.4.1 REQUIRED 9: an empty response to the IKE SA's DELETE
    //= RFC 7296 2.25.2 SHOULD 3: rekeyed while we close it
    //= RFC 7296 2.25.2 SHOULD 5: closed while we close it
    let mut foreign = Foreign::established(1, |_| {});
    let name = foreign.config.name.clone();
    foreign.network.call(0, |endpoint, now, env| endpoint.terminate(&name, now, env));
    foreign.network.run_for(SECOND / 50);
    let arrived = foreign.arrived();
    assert!(foreign.open(&arrived[0]).deletes_ike_sa());
    let parts = foreign.rekey_ike_parts(0x77);
    let answers = foreign.request(exchange::CREATE_CHILD_SA, &parts);
    assert_eq!(answers[0].error(), Some(notify::TEMPORARY_FAILURE));
    let answers = foreign.request(exchange::INFORMATIONAL, &[(payload::DELETE, vec![1, 0, 0, 0])]);
    assert_eq!(kinds(&answers[0]), [0_u8; 0]);
    foreign.network.run_for(20 * SECOND);
    assert_eq!(foreign.arrived(), Vec::<Vec<u8>>::new(), "our own DELETE is forgotten");
}

#[test]
fn a_peer_that_always_puts_off_the_rekey_of_the_ike_sa_is_authenticated_again() {
    //= RFC 7296 2.25 SHOULD 4: not for ever
    let mut foreign = Foreign::established(1, |_| {});
    let mut request = ike_rekey_of_ours(&mut foreign);
    for refusals in 1.. {
        assert!(refusals < 20, "it goes on asking");
        let later = [notification(notify::TEMPORARY_FAILURE, 0, &[], &[])];
        let datagram = foreign.seal(exchange::CREATE_CHILD_SA, true, request.header.id, &later);
        let arrived = foreign.exchange(datagram);
        if begins(&arrived) {
            assert!(refusals > 5, "it has patience");
            return;
        }
        // The delay is up to 10 s. Answer liveness checks in the meantime.
        request = (0..12)
            .find_map(|_| {
                foreign.network.run_for(SECOND);
                let arrived = foreign.arrived();
                let message = arrived.first().map(|datagram| foreign.open(datagram))?;
                let rekeys = message.header.exchange == exchange::CREATE_CHILD_SA;
                if !rekeys {
                    foreign.answer(&message, &[]);
                }
                rekeys.then_some(message)
            })
            .expect("it asks again");
    }
}

#[test]
pub fn a_child_sa_that_the_peer_always_puts_off_is_asked_for_less_and_less_often_until_a_new_ike_sa_comes() {
    //= RFC 7296 2.25 SHOULD 4: not for ever
    let mut foreign = Foreign::established(1, |_| {});
    let mut request = foreign.rekey_of_ours();
    let mut asked = vec![foreign.network.now];
    loop {
        let later = [notification(notify::TEMPORARY_FAILURE, 0, &[], &[])];
        let datagram = foreign.seal(exchange::CREATE_CHILD_SA, true, request.header.id, &later);
        if begins(&foreign.exchange(datagram)) {
            break;
        }
        request = (0..110)
            .find_map(|_| {
                foreign.network.run_for(SECOND / 10);
                let arrived = foreign.arrived();
                let message = arrived.first().map(|datagram| foreign.open(datagram))?;
                let rekeys = message.header.exchange == exchange::CREATE_CHILD_SA;
                if !rekeys {
                    foreign.answer(&message, &[]);
                }
                rekeys.then_some(message)
            })
            .expect("it asks again");
        asked.push(foreign.network.now);
        assert!(asked.len() < 50, "it asks too often: {asked:?}");
    }
    let waits: Vec<f32> = asked.windows(2).map(|at| (at[1] - at[0]).as_secs_f32()).collect();
    assert!(waits[0] < 1.5 && waits[1] > waits[0] && waits[2] > waits[1], "{waits:?}");
    assert!(waits[5..].iter().all(|wait| (9.0..11.0).contains(wait)), "{waits:?}");
    assert!((300..320).contains(&(foreign.network.now - asked[0]).as_secs()), "it has patience for minutes: {asked:?}");
    let errors = foreign.network.nodes[0].reported_errors();
    assert!(errors.last().unwrap().detail.contains("TEMPORARY_FAILURE"), "{errors:?}");
}

#[test]
fn a_refusal_of_an_unknown_kind_is_a_refusal() {
    //= RFC 7296 3.10.1 MUST 1: an unknown error is an error
    let mut foreign = Foreign::established(1, |_| {});
    let request = foreign.rekey_of_ours();
    let refused = [notification(8191, 0, &[], &[])];
    let datagram = foreign.seal(exchange::CREATE_CHILD_SA, true, request.header.id, &refused);
    let arrived = foreign.exchange(datagram);
    assert!(begins(&arrived), "a new IKE SA brings a CHILD_SA");
}

#[test]
fn a_child_sa_that_is_unusable_keeps_its_spi_until_its_deletion_is_answered() {
    //= RFC 7296 1.4.1 MUST NOT 6: no SPI is free before the answer
    let mut foreign = Foreign::established(1, |_| {});
    let request = foreign.rekey_of_ours();
    let ours = request.proposals()[0].spi32();
    let mut parts = Foreign::child_parts(0xf002, [1; 32]);
    // The response has no nonce.
    parts.remove(1);
    let messages = foreign.answer(&request, &parts);
    assert_eq!(messages[0].deleted_children(), [ours]);
    assert!(foreign.network.nodes[0].host.kernel.reserved.contains(&ours));
    foreign.answer(&messages[0], &[delete_child(0xf002)]);
    assert!(!foreign.network.nodes[0].host.kernel.reserved.contains(&ours));
}

#[test]
fn an_unusable_child_sa_that_the_peer_has_deleted_before_its_response_is_not_deleted_again() {
    let mut foreign = Foreign::established(1, |_| {});
    let request = foreign.rekey_of_ours();
    foreign.request(exchange::INFORMATIONAL, &[delete_child(0xf002)]);
    let mut parts = Foreign::child_parts(0xf002, [1; 32]);
    // The response has no nonce.
    parts.remove(1);
    assert_eq!(foreign.answer(&request, &parts), []);
    assert!(foreign.network.nodes[0].host.kernel.reserved.is_empty());
}

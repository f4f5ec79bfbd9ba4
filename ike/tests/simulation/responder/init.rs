//! Tests what our initiator does about unusual answers to IKE_SA_INIT.

use super::choices::{Asked, Choice};
use super::observe::{HOUR, Sent};
use super::peer::Responder;
use crate::peers::SECOND;

/// INVALID_SYNTAX.
const INVALID_SYNTAX: u16 = 7;
const NO_PROPOSAL_CHOSEN: u16 = 14;
/// A type of error that has no meaning.
const UNKNOWN_ERROR: u16 = 8191;
/// Key exchange methods: the one of our first request, another one that we offer, and one that we
/// do not.
const SAME: u16 = 31;
const OFFERED: u16 = 19;
const NOT_OFFERED: u16 = 14;

/// Runs for an hour with this answer to each IKE_SA_INIT. Then the responder agrees, and the tunnel
/// comes up. Returns what was sent in the hour, and the error at its end.
fn hour(mut choice: impl FnMut() -> Choice + 'static) -> (Sent, String) {
    let mut responder = Responder::new(1, |_| {});
    let sent = responder.run_with(HOUR, move |asked| if asked == Asked::Init { choice() } else { Choice::Agree });
    let error = responder.last_error();
    assert!(!responder.are_all_up());
    // An attempt takes 7.5 s, and the next one follows after 10 s.
    let recovery = responder.recovers();
    assert!(recovery < 18 * SECOND, "{recovery:?}");
    responder.run_for(60 * SECOND);
    responder.assert_agreed();
    (sent, error)
}

#[test]
fn a_tunnel_comes_up_without_nat_detection_at_the_peer() {
    for force in [false, true] {
        let mut responder = Responder::new(1, |config| config.force_encapsulation = force);
        responder.run_for(2 * SECOND);
        assert!(responder.are_all_up(), "{}", responder.network.history());
        responder.run_for(120 * SECOND);
        responder.assert_agreed();
    }
}

#[test]
fn a_peer_that_answers_ike_sa_init_by_nothing_useful_gets_four_requests_for_each_attempt() {
    for (choice, words) in [
        (Choice::Silence, "did not answer any of 4 transmissions"),
        (Choice::Error(NO_PROPOSAL_CHOSEN), "the peer accepts none of our IKE proposals"),
        (Choice::Error(INVALID_SYNTAX), "INVALID_SYNTAX"),
        (Choice::Error(UNKNOWN_ERROR), "8191"),
        (Choice::ErrorBeside(UNKNOWN_ERROR), "8191"),
        (Choice::OtherGroup(SAME), "another key exchange method"),
        (Choice::OtherGroup(NOT_OFFERED), "another key exchange method"),
        // We do not announce that we follow it (RFC 5685 3).
        (Choice::Redirect, "payload Nonce is missing"),
        (Choice::OtherCipher, "not one of our proposals"),
        (Choice::NoNonce, "payload Nonce is missing"),
    ] {
        let (sent, error) = hour(move || choice);
        assert!(error.contains(words), "{choice:?}: {error}");
        // Four transmissions in 7.5 s, and up to 10 s until the next attempt.
        assert!((800..1000).contains(&sent.requests), "{choice:?}: {sent:?}");
    }
}

#[test]
fn a_peer_that_asks_for_another_cookie_each_time_gets_seven_of_them_back_and_the_error_says_so() {
    let (sent, error) = hour(|| Choice::Cookie);
    assert!(error.contains("cookie"), "{error}");
    assert!(sent.requests < 2600 && sent.busiest_minute < 80, "{sent:?}");
}

#[test]
fn a_peer_that_asks_for_one_method_and_then_for_the_other_one_gets_few_requests() {
    let mut methods = [OFFERED, SAME].into_iter().cycle();
    let (sent, error) = hour(move || Choice::OtherGroup(methods.next().unwrap()));
    assert!(error.contains("asks repeatedly for another key exchange method"), "{error}");
    assert!(sent.requests < 2600 && sent.busiest_minute < 80, "{sent:?}");
}

#[test]
fn what_is_unknown_and_not_critical_in_ike_sa_init_changes_nothing() {
    for choice in [Choice::Unknown, Choice::Loss] {
        let mut responder = Responder::new(1, |_| {});
        let sent =
            responder.run_with(60 * SECOND, move |asked| if asked == Asked::Init { choice } else { Choice::Agree });
        assert!(sent.inits <= 2, "{sent:?}");
        responder.assert_agreed();
    }
}

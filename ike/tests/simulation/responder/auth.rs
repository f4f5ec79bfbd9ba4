//! Tests what our initiator does about unusual answers to IKE_AUTH.

use super::choices::{Asked, Choice, Own};
use super::observe::{HOUR, Sent};
use super::peer::Responder;
use crate::oracle::octets::notify;
use crate::peers::{SECOND, with_children};

/// NO_PROPOSAL_CHOSEN, SINGLE_PAIR_REQUIRED, NO_ADDITIONAL_SAS, INTERNAL_ADDRESS_FAILURE,
/// TS_UNACCEPTABLE, two that are about other exchanges, and two types that have no meaning.
const REFUSALS: [u16; 9] = [14, 34, 35, 36, 38, notify::TEMPORARY_FAILURE, notify::CHILD_SA_NOT_FOUND, 48, 8191];
const TS_UNACCEPTABLE: u16 = 38;
const ENDING: [u16; 3] = [1, 7, notify::AUTHENTICATION_FAILED];

struct Hour {
    sent: Sent,
    error: String,
    up: usize,
}

/// Runs for an hour with this answer to each IKE_AUTH. Then the responder agrees, and all children
/// come up within 11 s, as long as the longest delay.
fn hour(children: usize, choice: Choice) -> Hour {
    let mut responder = Responder::new(1, |config| with_children(config, children));
    let sent = responder.run_with(HOUR, move |asked| if asked == Asked::Auth { choice } else { Choice::Agree });
    let (error, up) = (responder.last_error(), responder.children_up().len());
    let recovery = responder.recovers();
    assert!(recovery < 18 * SECOND, "{choice:?}: {recovery:?}");
    responder.run_for(60 * SECOND);
    responder.assert_agreed();
    Hour { sent, error, up }
}

#[test]
fn a_child_refused_in_ike_auth_comes_by_create_child_sa_where_there_are_others() {
    for kind in REFUSALS {
        let Hour { sent, error, up } = hour(3, Choice::RefusedChild(kind));
        assert_eq!((up, error.as_str(), sent.inits), (3, "", 1), "{kind}: {sent:?}");
        assert!(sent.requests < 20, "{kind}: {sent:?}");
    }
}

#[test]
fn a_single_child_refused_in_ike_auth_is_tried_again_every_ten_seconds() {
    for kind in REFUSALS {
        let Hour { sent, error, up } = hour(1, Choice::RefusedChild(kind));
        assert!(up == 0 && error.starts_with("IKE_AUTH: "), "{kind}: {error}");
        // IKE_SA_INIT, IKE_AUTH and DELETE.
        assert!(sent.inits < 400 && sent.requests < 3 * 400 && sent.busiest_minute < 36, "{kind}: {sent:?}");
    }
}

#[test]
fn an_ike_auth_without_auth_or_with_a_wrong_one_is_tried_again_every_ten_seconds() {
    let errors = [REFUSALS.as_slice(), &ENDING].concat().into_iter().map(Choice::Error);
    for choice in errors.chain([Choice::WrongAuth, Choice::Critical]) {
        for children in [1, 3] {
            let Hour { sent, error, up } = hour(children, choice);
            assert!(up == 0 && error.starts_with("IKE_AUTH: "), "{choice:?}: {error}");
            assert!(sent.inits < 400 && sent.requests < 3 * 400 && sent.busiest_minute < 36, "{choice:?}: {sent:?}");
        }
    }
}

#[test]
fn an_error_that_ends_the_ike_sa_beside_auth_is_a_refusal_of_the_ike_sa() {
    for kind in ENDING {
        for choice in [Choice::RefusedChild(kind), Choice::ErrorBeside(kind)] {
            for children in [1, 3] {
                let Hour { sent, error, up } = hour(children, choice);
                assert!(up == 0 && error.starts_with("IKE_AUTH: "), "{choice:?}: {error} {sent:?}");
                // A peer that says that it has made the CHILD_SA gets DELETE, which it does not
                // answer.
                assert!(sent.inits < 400 && sent.requests < 7 * 400, "{choice:?}: {sent:?}");
            }
        }
    }
}

#[test]
fn an_error_beside_a_child_sa_and_what_is_unknown_and_a_lost_response_change_nothing() {
    let choices = [
        Choice::ErrorBeside(TS_UNACCEPTABLE),
        Choice::ErrorBeside(8191),
        Choice::Unknown,
        Choice::Loss,
        Choice::Narrowed,
    ];
    for choice in choices {
        for children in [1, 3] {
            let Hour { sent, error, up } = hour(children, choice);
            assert_eq!((up, error.as_str(), sent.inits), (children, "", 1), "{choice:?}");
            assert!(sent.requests < 20, "{choice:?}: {sent:?}");
        }
    }
}

#[test]
fn a_first_child_that_was_not_offered_ends_the_ike_sa_and_is_tried_again_every_ten_seconds() {
    for choice in [Choice::OtherCipher, Choice::Widened] {
        let Hour { sent, error, up } = hour(3, choice);
        assert!(up == 0 && error.starts_with("IKE_AUTH: "), "{choice:?}: {error}");
        assert!(sent.inits < 400 && sent.requests < 3 * 400, "{choice:?}: {sent:?}");
    }
}

#[test]
fn an_ike_sa_that_the_peer_deletes_right_after_ike_auth_is_begun_again_every_ten_seconds() {
    for choice in [Choice::Then(Own::IkeDeletion), Choice::Before(Own::IkeDeletion)] {
        for children in [1, 3] {
            let Hour { sent, error, .. } = hour(children, choice);
            assert!(error.contains("deleted the IKE SA"), "{choice:?}: {error}");
            assert!(sent.inits < 400 && sent.requests < 9 * 400, "{choice:?}: {sent:?}");
        }
    }
}

#[test]
fn requests_of_the_peer_right_after_or_before_its_response_change_nothing() {
    for own in [Own::Liveness, Own::ChildDeletion, Own::ChildRekey, Own::IkeRekey] {
        for choice in [Choice::Then(own), Choice::Before(own)] {
            for children in [1, 3] {
                let Hour { sent, error, up } = hour(children, choice);
                assert_eq!((up, error.as_str(), sent.inits), (children, "", 1), "{choice:?}");
                assert!(sent.requests < 40, "{choice:?}: {sent:?}");
            }
        }
    }
}

#[test]
fn a_peer_that_does_not_answer_ike_auth_gets_four_requests_for_each_attempt() {
    let Hour { sent, error, up } = hour(3, Choice::Silence);
    assert!(up == 0 && error.contains("did not answer any of 4 transmissions"), "{error}");
    assert!(sent.inits < 300 && sent.requests < 5 * 300, "{sent:?}");
}

#[test]
fn packets_do_not_begin_ike_sas_again_and_again_where_the_peer_ends_each_soon() {
    let packets = |responder: &mut Responder, seconds: u32| {
        for _ in 0..2 * seconds {
            responder.run_for(SECOND / 2);
            responder.packet();
        }
    };
    let second = |asked| matches!(asked, Asked::Child { child: 1, .. });
    let auth = |asked| asked == Asked::Auth;
    for (children, choice) in [(1, Choice::Then(Own::IkeDeletion)), (2, Choice::Critical), (2, Choice::Silence)] {
        let is_meant = if children == 1 { auth } else { second };
        let mut responder = Responder::new(1, |config| {
            with_children(config, children);
            config.initiate = false;
        });
        responder.policy = Box::new(move |asked| if is_meant(asked) { choice } else { Choice::Agree });
        packets(&mut responder, 300);
        let sent = responder.sent_since(0);
        // The longest delay is 10 s.
        assert!(sent.inits < 45 && sent.busiest_minute < 60, "{choice:?}: {sent:?}");
        assert_ne!(responder.network.nodes[0].reported_errors(), [], "{choice:?}");
        responder.policy = Box::new(|_| Choice::Agree);
        packets(&mut responder, 20);
        responder.assert_agreed();
    }
}

#[test]
fn an_unreadable_answer_to_our_deletion_of_an_ike_sa_ends_it_once() {
    let policy = |asked| match asked {
        // The CHILD_SA is not what we offered, so we delete the IKE SA.
        Asked::Auth => Choice::OtherCipher,
        Asked::IkeDeletion => Choice::Critical,
        _ => Choice::Agree,
    };
    let mut responder = Responder::new(1, |_| {});
    let sent = responder.run_with(HOUR, policy);
    // IKE_SA_INIT, IKE_AUTH and DELETE.
    assert_eq!(sent.requests, 3 * sent.inits, "{sent:?}");
    assert!(sent.inits < 400, "{sent:?}");
    assert!(responder.last_error().starts_with("IKE_AUTH: "), "{}", responder.last_error());
}

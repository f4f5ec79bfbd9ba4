//! Tests what our initiator does about unusual answers to CREATE_CHILD_SA.

use super::choices::{Asked, Choice, Own};
use super::observe::{HOUR, Sent};
use super::peer::Responder;
use crate::oracle::octets::notify;
use crate::peers::{SECOND, with_children};

/// INVALID_SYNTAX, NO_PROPOSAL_CHOSEN, SINGLE_PAIR_REQUIRED, NO_ADDITIONAL_SAS,
/// INTERNAL_ADDRESS_FAILURE, TS_UNACCEPTABLE, UNACCEPTABLE_ADDRESSES, and two types that have no
/// meaning.
const REFUSALS: [u16; 9] = [7, 14, 34, 35, 36, 38, 40, 48, 8191];
/// The key exchange method that we use, another one that we may offer, and one that we do not.
const METHODS: [u16; 3] = [31, 19, 14];
const LIFETIME: u32 = 60;

struct Hour {
    sent: Sent,
    error: String,
    /// The errors that were reported in the hour.
    errors: Vec<String>,
    up: Vec<String>,
}

/// Runs for an hour with this answer to requests for one of three children. Then the responder
/// agrees, and all children come up within 11 s, which is longer than the longest delay.
fn hour(wanted: usize, choice: Choice) -> Hour {
    hour_with(wanted, choice, false)
}

/// Does the same as [`hour`]. `patient` states whether requests are repeated for minutes.
fn hour_with(wanted: usize, choice: Choice, patient: bool) -> Hour {
    let mut responder = Responder::new(1, |config| {
        with_children(config, 3);
        config.timing.patient = patient;
    });
    let policy = move |asked| match asked {
        Asked::Child { child, .. } if child == wanted => choice,
        _ => Choice::Agree,
    };
    let sent = responder.run_with(HOUR, policy);
    let (error, up) = (responder.last_error(), responder.children_up().into_iter().collect());
    let errors = responder.network.nodes[0].reported_errors().iter().map(ToString::to_string).collect();
    let recovery = responder.recovers();
    assert!(recovery < 18 * SECOND, "{choice:?}: {recovery:?}");
    responder.run_for(60 * SECOND);
    responder.assert_agreed();
    Hour { sent, error, errors, up }
}

#[test]
fn a_refused_child_is_tried_again_every_ten_seconds_and_the_other_ones_stay() {
    let errors = REFUSALS.into_iter().chain([notify::AUTHENTICATION_FAILED, notify::CHILD_SA_NOT_FOUND]);
    let refusals = errors.map(Choice::Error).chain(METHODS.map(Choice::OtherGroup));
    // They name a child that the peer has created, and that we delete.
    let unusable = [Choice::OtherCipher, Choice::Widened, Choice::NoNonce];
    for choice in refusals.chain(unusable) {
        let Hour { sent, error, up, .. } = hour(1, choice);
        assert_eq!(up, ["net0", "net2"], "{choice:?}");
        assert!(error.contains("child net1") || unusable.contains(&choice), "{choice:?}: {error}");
        assert!(error.starts_with("CREATE_CHILD_SA: "), "{choice:?}: {error}");
        let most = if unusable.contains(&choice) { 2 * 380 } else { 380 };
        assert!(sent.inits == 1 && sent.requests < most && sent.busiest_minute < 20, "{choice:?}: {sent:?}");
    }
}

#[test]
fn a_child_that_the_peer_puts_off_or_deletes_again_and_again_is_tried_every_ten_seconds_and_the_error_says_so() {
    for (choice, words) in [
        (Choice::Error(notify::TEMPORARY_FAILURE), "TEMPORARY_FAILURE"),
        (Choice::Before(Own::ChildDeletion), "deleted the CHILD_SA right after its creation"),
        (Choice::Then(Own::ChildDeletion), "deleted the CHILD_SA right after its creation"),
    ] {
        let Hour { sent, error, up, .. } = hour(1, choice);
        assert_eq!(up, ["net0", "net2"], "{choice:?}");
        assert!(error.contains("child net1") && error.contains(words), "{choice:?}: {error}");
        assert!(sent.inits == 1 && sent.requests < 2 * 380 && sent.busiest_minute < 24, "{choice:?}: {sent:?}");
    }
}

#[test]
fn a_peer_that_ends_the_ike_sa_instead_of_making_a_child_is_tried_again_every_ten_seconds() {
    for choice in [Choice::Then(Own::IkeDeletion), Choice::Before(Own::IkeDeletion), Choice::Critical] {
        let Hour { sent, error, .. } = hour(1, choice);
        assert!(!error.is_empty(), "{choice:?}");
        assert!(sent.inits < 400 && sent.requests < 6 * 400, "{choice:?}: {sent:?}");
    }
}

#[test]
fn a_peer_that_does_not_answer_a_request_for_a_child_is_tried_again_after_the_transmissions() {
    let Hour { sent, errors, .. } = hour(1, Choice::Silence);
    let silence = errors.iter().find(|error| error.starts_with("CREATE_CHILD_SA: no answer"));
    assert!(silence.is_some(), "{errors:?}");
    // 7.5 s of transmissions, and up to 10 s until the next IKE_SA_INIT.
    assert!(sent.inits < 300 && sent.requests < 7 * 300, "{sent:?}");
}

#[test]
fn a_patient_initiator_does_not_replace_each_ike_sa_at_once_if_the_peer_drops_a_request_for_a_child() {
    let Hour { sent, errors, .. } = hour_with(1, Choice::Silence, true);
    let silence = errors.iter().find(|error| error.contains("the IKE SA is given up"));
    assert!(silence.is_some(), "{errors:?}");
    // 7.9 s of transmissions, and up to 10 s until the next IKE_SA_INIT.
    assert!(sent.inits < 300 && sent.requests < 20 * 300, "{sent:?}");
}

#[test]
fn requests_of_the_peer_right_after_or_before_its_response_are_answered_and_all_children_stay() {
    for own in [Own::Liveness, Own::ChildRekey, Own::IkeRekey] {
        for choice in [Choice::Then(own), Choice::Before(own), Choice::Unknown, Choice::Loss] {
            let Hour { sent, up, .. } = hour(1, choice);
            assert_eq!((up.len(), sent.inits), (3, 1), "{choice:?}");
            assert!(sent.requests < 2 * 380, "{choice:?}: {sent:?}");
        }
    }
}

/// Runs for an hour with this answer to rekeys. Both children are up at the end, by whatever way.
fn hour_of_rekeys(rekeys_ike: bool, child: usize, choice: Choice) -> Sent {
    let mut responder = Responder::new(1, |config| {
        with_children(config, 2);
        let lifetime = if rekeys_ike { &mut config.timing.ike_lifetime } else { &mut config.timing.child_lifetime };
        *lifetime = LIFETIME * SECOND;
    });
    let is_asked = move |asked| match asked {
        Asked::IkeRekey => rekeys_ike,
        Asked::Child { child: asked, rekey: true } => !rekeys_ike && asked == child,
        _ => false,
    };
    let sent = responder.run_with(HOUR, move |asked| if is_asked(asked) { choice } else { Choice::Agree });
    responder.recovers();
    responder.run_for(HOUR / 6);
    responder.come_to_rest();
    responder.assert_agreed();
    sent
}

/// Returns all answers to rekeys that are not an agreement.
fn unusual() -> impl Iterator<Item = Choice> {
    let errors = REFUSALS.into_iter().chain([notify::TEMPORARY_FAILURE, notify::CHILD_SA_NOT_FOUND]);
    let own = [Own::Liveness, Own::ChildDeletion, Own::ChildRekey, Own::IkeDeletion, Own::IkeRekey];
    let others = [
        Choice::Silence,
        Choice::Loss,
        Choice::Critical,
        Choice::Unknown,
        Choice::OtherCipher,
        Choice::Narrowed,
        Choice::Widened,
        Choice::NoNonce,
    ];
    let errors = errors.map(Choice::Error).chain(METHODS.map(Choice::OtherGroup));
    errors.chain(own.into_iter().flat_map(|own| [Choice::Then(own), Choice::Before(own)])).chain(others)
}

#[test]
fn whatever_the_peer_answers_to_rekeys_costs_at_most_one_new_ike_sa_in_each_lifetime_and_few_requests() {
    for choice in unusual() {
        for (rekeys_ike, child) in [(false, 0), (false, 1), (true, 0)] {
            let sent = hour_of_rekeys(rekeys_ike, child, choice);
            // A rekey is due after nine tenths of a lifetime.
            assert!(sent.inits <= 3600 * 10 / 9 / LIFETIME as usize + 1, "{rekeys_ike} {child} {choice:?}: {sent:?}");
            assert!(sent.requests < 1000 && sent.busiest_minute < 30, "{rekeys_ike} {child} {choice:?}: {sent:?}");
        }
    }
}

//! Runs in which the responder chooses at random what it does with each request, and sends requests
//! of its own, for some minutes. Then it agrees to everything, and the tunnel must come up. The
//! seed determines a run.

use std::panic::catch_unwind;

use edge_ike::Childless;
use edge_ike::config::Group;

use super::choices::{Asked, Choice, Own};
use super::observe::MINUTE;
use super::peer::Responder;
use crate::faults::number;
use crate::network::{LinkQuality, Random};
use crate::oracle::octets::notify;
use crate::peers::{SECOND, with_children};

/// Maximum time for recovery. An exchange that is not answered ends after 7.5 s, the next attempt
/// follows after 10 s, and a child is requested again after 10 s.
const RECOVERY: u32 = 60;
/// The most requests in any minute, with retransmissions.
const BUSIEST_MINUTE: usize = 150;

/// Number of seeds in a test run.
const SEEDS: u64 = 2000;

const ERRORS: [u16; 12] = [
    1,
    7,
    14,
    34,
    35,
    36,
    38,
    48,
    8191,
    notify::AUTHENTICATION_FAILED,
    notify::TEMPORARY_FAILURE,
    notify::CHILD_SA_NOT_FOUND,
];
const METHODS: [u16; 3] = [31, 19, 14];
const OWN: [Own; 5] = [Own::Liveness, Own::ChildDeletion, Own::ChildRekey, Own::IkeDeletion, Own::IkeRekey];

fn one_of<T: Copy>(random: &mut Random, choices: &[T]) -> T {
    choices[random.below(choices.len() as u64) as usize]
}

/// Returns something else than an agreement.
fn unusual(asked: Asked, random: &mut Random) -> Choice {
    let (error, method, own) = (one_of(random, &ERRORS), one_of(random, &METHODS), one_of(random, &OWN));
    let common = [Choice::Silence, Choice::Loss, Choice::Unknown, Choice::Critical, Choice::Error(error)];
    let then = [Choice::Then(own), Choice::Before(own)];
    let group = [Choice::OtherGroup(method)];
    let of_exchange: &[Choice] = match asked {
        Asked::Init => &[Choice::Cookie, Choice::Redirect, Choice::OtherCipher, Choice::NoNonce],
        Asked::Auth => &[
            Choice::RefusedChild(error),
            Choice::ErrorBeside(error),
            Choice::WrongAuth,
            Choice::OtherCipher,
            Choice::Narrowed,
            Choice::Widened,
        ],
        Asked::Child { .. } => &[Choice::OtherCipher, Choice::Narrowed, Choice::Widened, Choice::NoNonce],
        Asked::IkeRekey => &[Choice::OtherCipher, Choice::NoNonce],
        // Deletions are never refused (RFC 7296 1.4.1).
        Asked::ChildDeletion | Asked::IkeDeletion => {
            return one_of(random, &[common[0], common[1], common[2], common[3], then[0]]);
        }
        Asked::Informational => &common,
    };
    match random.below(10) {
        0..3 => one_of(random, &common),
        3..5 if asked != Asked::Init => one_of(random, &then),
        5 if matches!(asked, Asked::Init | Asked::Child { .. } | Asked::IkeRekey) => group[0],
        _ => one_of(random, of_exchange),
    }
}

fn run(seed: u64) {
    let mut random = Random(seed ^ 0xf0e1);
    let children = 1 + random.below(3) as usize;
    let mut responder = Responder::new(seed, |config| {
        if random.chance(30) {
            config.child.proposals[0].groups = vec![Group::X25519];
        }
        with_children(config, children);
        if seed % 5 == 4 {
            config.initiate = false;
        }
        if seed % 7 == 6 {
            config.childless = Childless::Prefer;
        }
        let mut lifetime = || (30 + random.below(300)) as u32 * SECOND;
        (config.timing.child_lifetime, config.timing.ike_lifetime) = (lifetime(), lifetime());
    });
    responder.network.oracle.replay = format!("replay with SEEDS=1 SEED={seed}\n");
    if seed % 4 == 3 {
        responder.network.quality = LinkQuality::LOSSY;
    }
    let percent = 10 + random.below(90);
    let mut of_policy = Random(random.next());
    responder.policy =
        Box::new(move |asked| if of_policy.chance(percent) { unusual(asked, &mut of_policy) } else { Choice::Agree });
    let end = responder.network.now + (2 + random.below(6) as u32) * MINUTE;
    while responder.network.now < end {
        for _ in 0..1 + random.below(20) {
            responder.want();
            responder.run_for(SECOND);
        }
        if random.chance(50) {
            responder.begin_on_newest(one_of(&mut random, &OWN));
        }
    }
    responder.network.quality = LinkQuality::RELIABLE;
    let recovery = responder.recovers();
    let story =
        |responder: &Responder| format!("replay with SEEDS=1 SEED={seed}\n{}", responder.network.oracle.story());
    assert!(recovery < RECOVERY * SECOND, "recovered after {recovery:?}: {}", story(&responder));
    responder.run_for(MINUTE);
    responder.come_to_rest();
    let unrest = responder.network.oracle.unrest().map(|violation| violation.found);
    let fault = responder.disagreement().or(unrest);
    assert!(fault.is_none(), "{}: {}", fault.unwrap_or_default(), story(&responder));
    responder.network.assert_tidy();
    let sent = responder.sent_since(0);
    assert!(sent.busiest_minute < BUSIEST_MINUTE, "{sent:?}: {}", story(&responder));
}

#[test]
fn a_tunnel_comes_up_soon_after_any_answers_and_costs_few_requests_meanwhile() {
    let (first, seeds) = (number("SEED", 0), number("SEEDS", SEEDS));
    let failed: Vec<u64> = (first..first + seeds).filter(|seed| catch_unwind(|| run(*seed)).is_err()).collect();
    assert!(failed.is_empty(), "{} of {seeds} runs failed: {failed:?}", failed.len());
}

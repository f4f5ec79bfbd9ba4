//! Runs the fuzzing targets for a short time. The seed input is an IKE_SA_INIT request, which is
//! changed at random places. `make fuzz MINUTES=n` runs libFuzzer for longer.
#![allow(missing_docs, unreachable_pub)]

#[path = "../fuzz/targets.rs"]
mod targets;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngSeed, TestRunner};

/// Number of inputs for each target.
const CASES: u32 = 2000;

/// Makes an IKE_SA_INIT request as an honest endpoint sends it (RFC 7296 1.2): header, SA, KE and
/// Nonce.
fn seed() -> Vec<u8> {
    let mut octets = vec![0x11; 8];
    octets.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 33, 0x20, 34, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
    octets.extend_from_slice(&[34, 0, 0, 40, 0, 0, 0, 36, 1, 1, 0, 3]);
    octets.extend_from_slice(&[3, 0, 0, 12, 1, 0, 0, 20, 0x80, 14, 1, 0]);
    octets.extend_from_slice(&[3, 0, 0, 8, 2, 0, 0, 5, 0, 0, 0, 8, 4, 0, 0, 31]);
    octets.extend_from_slice(&[40, 0, 0, 40, 0, 31, 0, 0]);
    octets.extend_from_slice(&[9; 32]);
    octets.extend_from_slice(&[0, 0, 0, 36]);
    octets.extend_from_slice(&[7; 32]);
    let length = octets.len() as u32;
    octets[24..28].copy_from_slice(&length.to_be_bytes());
    octets
}

/// Generates a changed seed input, a script of several changed seed inputs, or arbitrary octets.
fn input() -> impl Strategy<Value = Vec<u8>> {
    let changed = vec(any::<(Index, u8)>(), 0..6).prop_map(|changes| {
        let mut octets = seed();
        for (at, value) in changes {
            let at = at.index(octets.len());
            octets[at] = value;
        }
        octets
    });
    let part = |(what, mut octets): (u8, Vec<u8>)| {
        octets.resize(octets.len().next_multiple_of(4), 0);
        [vec![(octets.len() / 4) as u8, what], octets].concat()
    };
    prop_oneof![
        2 => changed.clone(),
        3 => vec((any::<u8>(), changed).prop_map(part), 1..12).prop_map(|parts| parts.concat()),
        1 => vec(any::<u8>(), 0..400),
    ]
}

#[test]
fn no_target_panics_at_changed_messages() {
    for (name, target) in targets::TARGETS {
        // The inputs are the same in every run. `make fuzz` tries other inputs.
        let config =
            Config { cases: CASES, rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..Config::default() };
        let tried = TestRunner::new(config).run(&input(), |octets| {
            target(&octets);
            Ok(())
        });
        tried.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn the_seed_is_a_message_that_an_endpoint_answers() {
    let message = edge_ike::wire::Message::decode(&seed()).unwrap();
    assert!(message.payloads.proposals().is_ok() && message.payloads.key_exchange().is_ok());
    assert!(message.payloads.nonce().is_ok());
}

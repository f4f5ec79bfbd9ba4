//! Tests that the benchmark of handshakes works. It does not measure.

#[path = "../benches/handshake/cases.rs"]
mod cases;
#[path = "../benches/handshake/floor.rs"]
mod floor;
#[path = "../benches/handshake/pair.rs"]
mod pair;

#[test]
fn each_case_of_the_benchmark_of_handshakes_brings_up_a_tunnel_and_has_a_baseline() {
    for (case, authentication) in cases::CASES {
        let (ours, reference) = cases::once(authentication);
        assert!(ours > 0.0 && reference > 0.0, "{case}: {ours} us, cryptography alone {reference} us");
    }
}

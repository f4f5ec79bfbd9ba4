//! Tests that the benchmark of handshakes works. It does not measure.

#[path = "../benches/handshake/cases.rs"]
mod cases;
#[path = "../benches/handshake/flood.rs"]
mod flood;
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

#[test]
fn each_forged_request_of_the_benchmark_is_answered_by_a_cookie() {
    let mut flood = flood::Flood::new();
    for _ in 0..2 {
        let (ours, reference) = flood.round();
        assert!(ours > 0.0 && reference > 0.0, "{ours} us, the cookie's HMAC alone {reference} us");
    }
}

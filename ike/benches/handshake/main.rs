//! Measures the CPU time of a handshake, with both ends in one process and no kernel, and compares
//! it with the CPU time of the cryptography that a handshake needs. Also measures what a forged
//! IKE_SA_INIT request costs.
//!
//! `cargo bench --profile release -p edge-ike --bench handshake` prints a table and writes
//! `target/bench/ike.json`. The profile is that of the released programs: our profile `bench` does
//! not optimize across crates, which makes the ratio up to a tenth worse. Handshakes and replays of
//! their primitives alternate within one run, so that both run under the same conditions. The
//! results are medians of the thread's CPU time. Without `--bench` each case runs once, as in
//! `tests/benchmark.rs`.

mod cases;
mod flood;
mod floor;
mod pair;

use std::path::Path;
use std::time::Duration;

use cases::{CASES, cpu, once};
use flood::Flood;
use floor::Floor;
use pair::{Authentication, Pair};

/// Number of handshakes in a round, one after another on fresh endpoints.
const BATCH: usize = 16;
/// Number of rounds. The result is their median.
const ROUNDS: usize = 41;
/// Maximum acceptable ratio to the baseline.
const GOAL: f64 = 1.12;
/// Maximum acceptable time for a forged IKE_SA_INIT request, microseconds.
const FLOOD_GOAL: f64 = 3.0;

fn main() {
    let measure = std::env::args().any(|argument| argument == "--bench");
    let mut results = Vec::new();
    for (case, authentication) in CASES {
        let (ours, reference) = if measure { medians(authentication) } else { once(authentication) };
        let ratio = ours / reference;
        println!("{case:<20} {ours:>8.1} us for both ends, cryptography alone {reference:>8.1} us, ratio {ratio:.2}");
        results.push(serde_json::json!({
            "case": case,
            "unit": "us CPU",
            "ours": ours,
            "reference": reference,
            "reference_name": "sum of the handshake's cryptographic calls",
            "ratio": ratio,
            "goal": GOAL,
        }));
    }
    let (ours, reference) = flood(if measure { ROUNDS } else { 1 });
    println!("flood/init           {ours:>8.2} us for a forged request, the cookie's HMAC alone {reference:>8.2} us");
    results.push(serde_json::json!({
        "case": "flood/init",
        "unit": "us CPU",
        "ours": ours,
        "reference": reference,
        "reference_name": "HMAC of the cookie",
        "goal_us": FLOOD_GOAL,
    }));
    if measure {
        write(&serde_json::json!({ "name": "ike", "results": results }));
    }
}

/// Returns the median time of a handshake and of its baseline, microseconds.
fn medians(authentication: Authentication) -> (f64, f64) {
    let recipe = pair::Recipe::new(authentication);
    let floor = Floor::of(&Pair::new(&recipe).shake(), authentication);
    let (mut ours, mut reference) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut pairs: Vec<Pair> = (0..BATCH).map(|_| Pair::new(&recipe)).collect();
        let before = cpu();
        for pair in &mut pairs {
            pair.shake();
        }
        ours.push(cpu() - before);
        let before = cpu();
        for _ in 0..BATCH {
            floor.replay();
        }
        reference.push(cpu() - before);
    }
    (median(ours), median(reference))
}

/// Returns the median time of a forged IKE_SA_INIT request while cookies are asked for, and that of
/// the cookie's HMAC, microseconds.
fn flood(rounds: usize) -> (f64, f64) {
    let mut flood = Flood::new();
    let (mut ours, mut reference): (Vec<f64>, Vec<f64>) = (0..rounds).map(|_| flood.round()).unzip();
    ours.sort_by(f64::total_cmp);
    reference.sort_by(f64::total_cmp);
    (ours[rounds / 2], reference[rounds / 2])
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e6 / BATCH as f64
}

fn write(results: &serde_json::Value) {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bench"));
    let written = std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(folder.join("ike.json"), format!("{results:#}\n")));
    if let Err(error) = written {
        eprintln!("cannot write {}: {error}", folder.join("ike.json").display());
        std::process::exit(1);
    }
}

//! The cases of the benchmark, and a run of each. A test runs each once too, so that it does not
//! first fail when somebody measures.

use std::time::Duration;

use crate::floor::Floor;
use crate::pair::{Authentication, Pair, Recipe};

pub(crate) const CASES: [(&str, Authentication); 3] = [
    ("handshake/psk", Authentication::Psk),
    ("handshake/ed25519", Authentication::Ed25519),
    ("handshake/p256", Authentication::P256),
];

/// Returns the time of one handshake and of its baseline, microseconds.
pub(crate) fn once(authentication: Authentication) -> (f64, f64) {
    let before = cpu();
    let shaken = Pair::new(&Recipe::new(authentication)).shake();
    let between = cpu();
    Floor::of(&shaken, authentication).replay();
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    (micros(between - before), micros(cpu() - between))
}

/// Returns the CPU time of this thread.
pub(crate) fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

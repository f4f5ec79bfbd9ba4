//! Runs the tests of a test binary that need a control plane. On a build machine (`CI` is set)
//! these tests must run; elsewhere they are skipped if no control plane can be started.

use std::process::ExitCode;

pub use crate::suite::Test;
pub(crate) use crate::suite::is_ci as must_run;
use crate::suite::{Unrunnable, run as run_suite};

/// Runs the tests that the command line chooses, as [`crate::suite::run`] does.
#[must_use]
pub fn run(tests: &[Test]) -> ExitCode {
    run_suite(tests, super::programs::unavailable, Unrunnable::FailInCi)
}

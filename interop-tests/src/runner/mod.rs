//! Runs scenarios: from the command line, through a guest, to a process for each scenario.
//!
//! - `build`: builds the programs that the scenarios run.
//! - `cli`: the host's side. It boots a guest, gives it the names, and prints the outcomes.
//! - `worker`: the guest's side. It runs a job: one program, or scenarios.
//! - `serial`: runs one scenario after the other in fresh namespaces, and kills it at its deadline.
//! - `single`: the scenario's own process.

mod build;
mod cli;
mod serial;
mod single;
mod worker;

pub(crate) use build::{programs, target_directory};
pub use cli::{RunOptions, list, outcomes, run};
pub(crate) use serial::{RunContext, run_all};
pub use single::main as single;
pub use worker::main as worker;

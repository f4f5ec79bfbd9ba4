//! Runs scenarios, from the command line through a guest to a separate process for each scenario.
//!
//! - `build`: builds the programs that the scenarios run.
//! - `cli`: runs the host's side: boots a guest, sends it the scenario names and prints the
//!   outcomes.
//! - `labs`: shares the scenarios out to labs that run at the same time.
//! - `worker`: runs a job on the guest's side: one program, or scenarios.
//! - `kept_logs`: keeps the logs of failed runs when a scenario runs again.
//! - `serial`: runs one scenario after the other in fresh namespaces and kills a scenario that
//!   misses its deadline.
//! - `single`: runs one scenario in its own process.

mod build;
mod cli;
mod kept_logs;
mod labs;
mod serial;
mod single;
mod worker;

pub(crate) use build::{programs, target_directory};
pub use cli::{RunOptions, list, outcomes, run};
pub use labs::Labs;
pub(crate) use serial::{RunContext, run_all};
pub use single::main as single;
pub use worker::main as worker;

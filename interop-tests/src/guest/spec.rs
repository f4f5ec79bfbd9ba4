//! What the host tells the guest to do, and what the guest tells back.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::runner::Outcome;

/// One boot's work.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spec {
    /// Folders of the host that the guest may write to, at the same path; everything else it writes
    /// is forgotten.
    pub writable: Vec<PathBuf>,
    /// Where the job starts.
    pub cwd: PathBuf,
    /// The job's whole environment.
    pub env: Vec<(String, String)>,
    /// Rows and columns of the terminal, for a job that has one.
    pub window: Option<(u16, u16)>,
    /// What to do.
    pub job: Job,
}

/// What a boot is for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Job {
    /// One program, as root; its exit status is the result.
    Exec {
        /// Program and arguments.
        argv: Vec<String>,
        /// Whether it gets the terminal.
        terminal: bool,
    },
    /// Scenarios, one after the other.
    Run {
        /// Their names.
        scenarios: Vec<String>,
        /// Where each has a folder of its own; must be writable.
        out: PathBuf,
        /// Where the programs under test lie.
        programs: PathBuf,
        /// Whether one that failed gets a shell.
        keep: bool,
    },
}

/// What the guest reports, one line of JSON each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// The guest is up and begins with its job.
    Ready,
    /// A scenario begins.
    Begun {
        /// Its name.
        scenario: String,
    },
    /// A scenario has ended.
    Ended {
        /// How.
        outcome: Outcome,
    },
    /// The job is over; nothing follows.
    Exit {
        /// Exit status of the job, as a shell counts it (128 and the signal for a program that was
        /// killed).
        status: i32,
    },
    /// The job could not be begun.
    Broken {
        /// What failed.
        why: String,
    },
}

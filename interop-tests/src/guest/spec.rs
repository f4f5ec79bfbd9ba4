//! The work that the host gives to the guest, and the guest's reports.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::scenario::Outcome;

/// The work for one boot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spec {
    /// Directories of the host that the guest may write to, at the same path. Everything else that
    /// it writes is lost.
    pub writable: Vec<PathBuf>,
    /// Path of a disk image, which is `/dev/ubda` in the guest. A lab in the host's namespaces has
    /// no disk.
    pub disk: Option<PathBuf>,
    /// The job's working directory.
    pub cwd: PathBuf,
    /// The job's complete environment.
    pub env: Vec<(String, String)>,
    /// Rows and columns of the terminal, for a job that has one.
    pub window: Option<(u16, u16)>,
    /// The job of the boot.
    pub job: Job,
}

/// The purpose of a boot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Job {
    /// Run one program as root. Its exit status is the result.
    Exec {
        /// Program and arguments.
        argv: Vec<String>,
        /// Whether the program gets the terminal.
        terminal: bool,
    },
    /// Run scenarios, one after the other.
    Run {
        /// Whole names of the scenarios, in order.
        scenarios: Vec<String>,
        /// The directory that contains a directory for each scenario; must be writable.
        out: PathBuf,
        /// The directory of the programs under test.
        programs: PathBuf,
        /// Whether to open a shell in a failed scenario.
        keep: bool,
    },
}

/// The guest's reports, each a line of JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// The guest is up and begins its job.
    Ready,
    /// A scenario begins.
    Begun {
        /// The scenario's whole name.
        scenario: String,
    },
    /// A scenario has ended.
    Ended {
        /// Its result and duration.
        outcome: Outcome,
    },
    /// The job has ended; no event follows.
    Exit {
        /// Exit status of the job, as in a shell (128 plus the signal for a program that was
        /// killed).
        status: i32,
    },
    /// The job could not be started.
    Broken {
        /// The error, with its causes.
        why: String,
    },
}

//! Keeps the logs of failed runs when a scenario runs again.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Maximum number of earlier failed runs of a scenario whose logs are kept. Those of the oldest are
/// removed.
const MAX_FAILED: u32 = 3;

/// Name of the file with the reason of a failure.
const REASON: &str = "failed.txt";

/// Records in a scenario's directory that the run failed, so that the next run keeps the logs.
///
/// # Errors
/// Returns an error if the file cannot be written.
pub(super) fn mark_failed(directory: &Path, why: &str) -> Result<()> {
    fs::create_dir_all(directory)?;
    let file = directory.join(REASON);
    fs::write(&file, format!("{why}\n")).with_context(|| format!("writing {}", file.display()))
}

/// Makes an empty directory for a scenario's logs. If the run before failed, its logs go to the
/// directory with the suffix `.failed-1`, and those of earlier failed runs to `.failed-2` and
/// `.failed-3`.
///
/// # Errors
/// Returns an error if a directory cannot be moved, removed or made.
pub(super) fn begin(directory: &Path) -> Result<()> {
    if directory.join(REASON).exists() {
        for number in (1..=MAX_FAILED).rev() {
            let from = if number == 1 { directory.to_owned() } else { numbered(directory, number - 1) };
            let to = numbered(directory, number);
            if to.exists() {
                fs::remove_dir_all(&to).with_context(|| format!("removing {}", to.display()))?;
            }
            if from.exists() {
                fs::rename(&from, &to).with_context(|| format!("moving {}", from.display()))?;
            }
        }
    }
    empty(directory)
}

/// Makes an empty directory in place of this one.
///
/// # Errors
/// Returns an error if a directory cannot be removed or made.
pub(super) fn empty(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)?;
    }
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))
}

fn numbered(directory: &Path, number: u32) -> PathBuf {
    let mut name = directory.as_os_str().to_owned();
    name.push(format!(".failed-{number}"));
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_of_failed_runs_stay_and_their_number_is_limited() {
        let root = tempfile::tempdir().unwrap();
        let logs = root.path().join("chaos/long");
        for run in 1..=6 {
            begin(&logs).unwrap();
            assert_eq!(fs::read_dir(&logs).unwrap().count(), 0);
            fs::write(logs.join("log"), run.to_string()).unwrap();
            if run != 5 {
                mark_failed(&logs, "a check failed").unwrap();
            }
        }
        begin(&logs).unwrap();
        let kept = |number| fs::read_to_string(numbered(&logs, number).join("log")).unwrap();
        assert_eq!([kept(1), kept(2), kept(3)], ["6", "4", "3"]);
        assert!(!numbered(&logs, 4).exists());
        let reason = fs::read_to_string(numbered(&logs, 1).join(REASON)).unwrap();
        assert_eq!(reason, "a check failed\n");
    }

    #[test]
    fn logs_of_a_run_that_passed_are_replaced() {
        let root = tempfile::tempdir().unwrap();
        let logs = root.path().join("a/b");
        begin(&logs).unwrap();
        fs::write(logs.join("log"), "1").unwrap();
        begin(&logs).unwrap();
        assert!(!logs.join("log").exists() && !numbered(&logs, 1).exists());
    }
}

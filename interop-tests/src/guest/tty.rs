//! The guest's serial lines in raw mode, in which bytes pass unchanged.

use std::fs::File;

use anyhow::{Context as _, Result};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

/// The line for [`super::Event`]s.
pub(crate) const EVENTS: &str = "/dev/ttyS0";
/// Standard output of the job, or its terminal.
pub(crate) const STDOUT: &str = "/dev/ttyS1";
/// Standard error of the job.
pub(crate) const STDERR: &str = "/dev/ttyS2";

/// Opens a line in raw mode.
pub(crate) fn open_raw(path: &str) -> Result<File> {
    let file = open(path)?;
    let mut modes = tcgetattr(&file)?;
    modes.make_raw();
    tcsetattr(&file, OptionalActions::Now, &modes)?;
    Ok(file)
}

/// Opens a line without changing its mode.
pub(crate) fn open(path: &str) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    File::options()
        .read(true)
        .write(true)
        .custom_flags(rustix::fs::OFlags::NOCTTY.bits().cast_signed())
        .open(path)
        .with_context(|| format!("opening {path}"))
}

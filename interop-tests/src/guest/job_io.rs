//! Connects the standard input and output of a job's programs.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use rustix::termios::Winsize;

use super::tty;

/// The standard input and output of a job's programs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum JobIo {
    /// Serial lines of the guest, for output only.
    Lines,
    /// A serial line that is connected to a terminal of the host.
    Terminal(Option<(u16, u16)>),
    /// The worker's inherited input and output.
    Inherited,
}

impl JobIo {
    /// Makes a command with its input and output connected in this way.
    pub(crate) fn command(self, argv: &[String]) -> Result<Command> {
        let (program, args) = argv.split_first().context("no program was given")?;
        let plain = || {
            let mut command = Command::new(program);
            command.args(args);
            command
        };
        match self {
            Self::Inherited => Ok(plain()),
            Self::Lines => {
                let mut command = plain();
                command.stdin(Stdio::null()).stdout(tty::open_raw(tty::STDOUT)?).stderr(tty::open_raw(tty::STDERR)?);
                Ok(command)
            }
            Self::Terminal(window) => on_terminal(argv, window),
        }
    }
}

/// Makes a command in a session with the guest's end of the terminal as controlling terminal, so
/// that a shell has job control.
fn on_terminal(argv: &[String], window: Option<(u16, u16)>) -> Result<Command> {
    let line = tty::open(tty::STDOUT)?;
    if let Some((rows, columns)) = window {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&line, size)?;
    }
    let mut command = Command::new("setsid");
    command.args(["--ctty", "--wait", "--"]).args(argv).stdin(line.try_clone()?).stdout(line.try_clone()?).stderr(line);
    Ok(command)
}

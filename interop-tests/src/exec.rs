//! Implements `exec`, which runs one command as root in the lab, for crates with tests that need
//! privileges or a kernel with ESP.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::guest::{Event, Guest, Job, Output, Spec, choose};
use crate::kernel::Purpose;

/// Runs `argv` as root in the lab, in the current directory with the current environment, and
/// returns its exit status.
///
/// Files that the command writes are lost, except below the `writable` directories.
///
/// # Errors
/// Returns an error if the lab or the command does not start.
pub fn exec(argv: Vec<String>, writable: Vec<PathBuf>, forced: Option<&str>) -> Result<ExitCode> {
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let window = rustix::termios::tcgetwinsize(std::io::stdout()).ok().map(|size| (size.ws_row, size.ws_col));
    let writable = writable
        .into_iter()
        .map(|directory| {
            std::fs::canonicalize(&directory)
                .map_err(|error| anyhow::anyhow!("--writable {}: {error}", directory.display()))
        })
        .collect::<Result<_>>()?;
    let spec = Spec {
        writable,
        disk: None,
        cwd: std::env::current_dir()?,
        env: environment(),
        window,
        job: Job::Exec { argv, terminal },
    };
    let backend = choose(forced, Purpose::Scenarios)?;
    let output = if terminal { Output::Terminal } else { Output::Inherit };
    let mut guest = Guest::start(&backend, &spec, output)?;
    loop {
        match guest.event(None)? {
            Some(Event::Exit { status }) => {
                guest.finish()?;
                return Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)));
            }
            Some(Event::Broken { why }) => bail!("{why}"),
            Some(_) | None => {}
        }
    }
}

/// Returns this process's environment, with root's program directories added to `PATH`.
#[must_use]
pub fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(key, _)| key != "PATH" && key != "TMPDIR")
        .chain([("PATH".to_owned(), crate::executables::search_path())])
        .collect()
}

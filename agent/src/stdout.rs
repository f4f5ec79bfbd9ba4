//! Writes the commands' standard output. A closed pipe, for example to `head`, is not an error: the
//! command completes its work.

use std::io::{self, Write};

use anyhow::Context;

/// Prints a text. Returns `false` if the reader has closed standard output.
///
/// # Errors
/// If standard output cannot be written for another reason, such as a full disk.
pub fn print(text: &str) -> anyhow::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("standard output"),
    }
}

//! Gives a node a wall clock of its own, which a scenario can set. All nodes share one kernel and
//! so one clock, which may be the clock of the machine that runs the lab. Therefore a small library
//! (`LD_PRELOAD`) adds an offset to the time that the node's programs read.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::namespaces::Namespaces;

/// The library on the node.
pub(super) const LIBRARY: &str = "/run/lab-clock.so";
/// The file with the offset, a signed 64-bit number of seconds.
const OFFSET: &str = "/run/lab-clock-offset";
const SOURCE: &str = include_str!("lab_clock.c");

impl Namespaces {
    /// Gives the programs that are started on this node from now on a wall clock of their own.
    ///
    /// # Errors
    /// Returns an error if the library cannot be compiled with `cc`.
    pub fn own_clock(&self) -> Result<()> {
        let source = self.out().join("lab_clock.c");
        let library = self.out().join("lab-clock.so");
        std::fs::write(&source, SOURCE)?;
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O2", "-o"]).arg(&library).arg(&source);
        let output = compiler.output().context("cc cannot be run; install gcc")?;
        ensure!(output.status.success(), "cc: {}", String::from_utf8_lossy(&output.stderr));
        std::fs::copy(&library, self.path(LIBRARY))?;
        std::fs::write(self.path(OFFSET), 0_i64.to_ne_bytes())?;
        self.use_own_clock();
        Ok(())
    }

    /// Sets this node's clock this number of seconds ahead of the kernel's clock, or behind it.
    ///
    /// # Errors
    /// Returns an error if the node has no clock of its own.
    pub fn set_clock(&self, seconds: i64) -> Result<()> {
        // The file is not truncated, because running programs have mapped it.
        let file = File::options().write(true).open(self.path(OFFSET)).context("the node has no clock of its own")?;
        Ok(file.write_all_at(&seconds.to_ne_bytes(), 0)?)
    }
}

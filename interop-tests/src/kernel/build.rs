//! Builds User-Mode Linux from a source tree.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::progress::Progress;

/// Environment variable with the path of a ready User-Mode Linux binary, for machines that cannot
/// build one.
pub const OVERRIDE: &str = "EDGE_LAB_KERNEL";

/// Fails before the build if a tool is missing, with the command that installs it.
pub(super) fn require_tools() -> Result<()> {
    let missing: Vec<_> = ["gcc", "make", "flex", "bison", "bc", "xz", "dpkg-deb", "apt-get"]
        .into_iter()
        .filter(|tool| crate::executables::find(tool).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "building the lab kernel needs {}: run .ci/install as root, \
         or name a ready User-Mode Linux binary in {}",
        missing.join(", "),
        OVERRIDE
    )
}

/// Builds `linux` from `source` in `out`, with `options` on top of `allnoconfig`. `objects` is
/// about the number of objects, for the progress.
pub(super) fn build(source: &Path, out: &Path, options: &str, objects: usize) -> Result<PathBuf> {
    fs::create_dir_all(out)?;
    let wanted = out.join("lab.config");
    fs::write(&wanted, options)?;
    let mut progress = Progress::start("building the lab kernel");
    let log = out.join("build.log");
    make(source, out, &log, &["allnoconfig"], &mut progress, objects)?;
    require_options(&fs::read_to_string(out.join(".config"))?, options)?;
    let jobs = std::thread::available_parallelism().map_or(2, usize::from);
    make(source, out, &log, &["-j", &jobs.to_string(), "linux"], &mut progress, objects)?;
    progress.done();
    Ok(out.join("linux"))
}

fn make(source: &Path, out: &Path, log: &Path, args: &[&str], progress: &mut Progress, objects: usize) -> Result<()> {
    let mut child = Command::new("make")
        .current_dir(source)
        .arg("ARCH=um")
        .arg(format!("O={}", out.display()))
        .args(args)
        .env("KCONFIG_ALLCONFIG", out.join("lab.config"))
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(fs::File::options().create(true).append(true).open(log)?)
        .spawn()
        .context("make cannot be run")?;
    let stdout = child.stdout.take().context("make has no output")?;
    let mut built = 0;
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        if let Some(object) = line.strip_prefix("  CC ") {
            built += 1;
            progress.part(built, objects, object.trim());
        }
    }
    let status = child.wait()?;
    if !status.success() {
        let said = fs::read_to_string(log).unwrap_or_default();
        let tail: Vec<_> = said.lines().rev().take(30).collect();
        let tail: Vec<_> = tail.into_iter().rev().collect();
        bail!("make {} ended with {status}:\n{}", args.join(" "), tail.join("\n"));
    }
    Ok(())
}

/// Checks that the configuration has all options. Kconfig silently drops unknown options, and
/// options with missing dependencies. This check finds such options before a scenario fails because
/// ESP is missing.
fn require_options(config: &str, options: &str) -> Result<()> {
    let have: std::collections::HashSet<_> = config.lines().collect();
    let lost: Vec<_> = options.lines().filter(|line| line.starts_with("CONFIG_") && !have.contains(line)).collect();
    if lost.is_empty() {
        return Ok(());
    }
    bail!("this kernel source does not take these options of lab.config: {}", lost.join(" "))
}

#[cfg(test)]
mod tests {
    use super::require_options;

    #[test]
    fn an_option_that_the_source_dropped_is_named() {
        let error = require_options("CONFIG_NET=y\n", "# why\nCONFIG_NET=y\nCONFIG_INET_ESP=y\n").unwrap_err();
        assert!(error.to_string().contains("CONFIG_INET_ESP=y"), "{error}");
    }
}

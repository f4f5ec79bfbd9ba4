//! Building what the scenarios run.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::Scenario;
use crate::kube;
use crate::progress::Progress;
use crate::scenarios::crate_tests;

/// Environment variable that names a folder with ready programs; nothing is built then.
const PROGRAMS: &str = "EDGE_LAB_PROGRAMS";

/// What scenarios run: packages whose programs are built before.
const PACKAGES: [&str; 3] = ["edge-agent", "edge-cni", "edge-controller"];

/// The folder with the programs under test, built if need be.
pub(super) fn programs() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os(PROGRAMS) {
        return Ok(std::fs::canonicalize(folder)?);
    }
    let progress = Progress::start("building the programs under test");
    let mut command = cargo("build")?;
    command.args(["--profile", "lab"]);
    for package in PACKAGES {
        command.args(["-p", package]);
    }
    let status = command.status().context("cargo cannot be run")?;
    if !status.success() {
        bail!("building {} failed ({status})", PACKAGES.join(", "));
    }
    progress.done();
    Ok(target_folder()?.join("lab"))
}

/// Builds the crates' own tests that these scenarios run; returns the environment variables that
/// name them.
pub(super) fn tests(scenarios: &[&Scenario]) -> Result<Vec<(String, String)>> {
    let wanted =
        crate_tests::TESTS.iter().filter(|test| scenarios.iter().any(|scenario| scenario.name == test.scenario));
    let mut named = Vec::new();
    for test in wanted {
        let progress = Progress::start(&format!("building the tests of {}", test.package));
        // As `cargo test` builds them: nothing is built twice.
        let out = cargo("test")?
            .args(["--no-run", "--message-format", "json", "-p", test.package, "--test", test.target])
            .stderr(Stdio::inherit())
            .output()
            .context("cargo cannot be run")?;
        if !out.status.success() {
            bail!("building the test {} of {} failed ({})", test.target, test.package, out.status);
        }
        let program = executable(&String::from_utf8_lossy(&out.stdout), test.target)
            .with_context(|| format!("cargo named no program for the test {} of {}", test.target, test.package))?;
        named.push((test.variable(), program));
        progress.done();
    }
    Ok(named)
}

/// Makes the programs of a Kubernetes control plane where a scenario runs one: the lab reaches no
/// module proxy. On a machine that cannot make them the scenario says so itself.
pub(super) fn control_plane(scenarios: &[&Scenario]) -> Result<()> {
    let wanted = scenarios.iter().any(|scenario| scenario.name == crate::demo::KUBERNETES.name);
    if wanted && kube::obstacle().is_none() {
        kube::ensure()?;
    }
    Ok(())
}

fn executable(messages: &str, target: &str) -> Option<String> {
    messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        (message.pointer("/target/name")?.as_str()? == target).then_some(())?;
        Some(message.get("executable")?.as_str()?.to_owned())
    })
}

fn cargo(verb: &str) -> Result<Command> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args([verb, "--quiet"])
        .env("CARGO_TARGET_DIR", target_folder()?)
        .stdin(Stdio::null());
    // `cargo run` tells us which package we are. Build scripts that look at this would have
    // everything above them built anew, each time.
    let ours = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(ours)) {
        command.env_remove(name);
    }
    Ok(command)
}

/// Cargo's target folder: this program lies in one of its profiles.
pub(super) fn target_folder() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("CARGO_TARGET_DIR") {
        return Ok(std::path::absolute(folder)?);
    }
    let program = std::env::current_exe()?;
    program.parent().and_then(Path::parent).map(Path::to_owned).context("this program is not in a target folder")
}

#[cfg(test)]
mod tests {
    use super::executable;

    #[test]
    fn the_test_program_is_the_one_of_the_target() {
        let messages = "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"edge_xfrm\"},\"executable\":null}\n\
                        {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"kernel\"},\"executable\":\"/t/kernel-1\"}\n";
        assert_eq!(executable(messages, "kernel").as_deref(), Some("/t/kernel-1"));
        assert_eq!(executable(messages, "edge_xfrm"), None);
    }
}

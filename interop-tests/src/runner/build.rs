//! Builds the programs that the scenarios run.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::kube;
use crate::progress::Progress;
use crate::scenario::{CrateTest, Needs, Scenario};

/// Environment variable with a directory of ready programs. If it is set, nothing is built.
const PROGRAMS: &str = "EDGE_LAB_PROGRAMS";

/// Packages with the programs that scenarios run.
const PACKAGES: [&str; 3] = ["edge-agent", "edge-cni", "edge-controller"];

/// Builds the programs under test, and returns their directory.
pub(crate) fn programs() -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os(PROGRAMS) {
        return Ok(std::fs::canonicalize(directory)?);
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
    Ok(target_directory()?.join("lab"))
}

/// Builds the crate tests that these scenarios run. Returns the environment variables with their
/// paths.
pub(super) fn tests(scenarios: &[&Scenario]) -> Result<Vec<(String, String)>> {
    let mut named = Vec::new();
    for test in scenarios.iter().filter_map(|scenario| crate_test(scenario)) {
        let progress = Progress::start(&format!("building the tests of {}", test.package));
        // The build uses the options of `cargo test`, so that nothing is built twice.
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

/// Builds the programs of a Kubernetes control plane if a scenario runs one, since no module proxy
/// is reachable from the lab. If this machine cannot build them, the scenario reports that.
pub(super) fn control_plane(scenarios: &[&Scenario]) -> Result<()> {
    let wanted = scenarios.iter().any(|scenario| matches!(scenario.needs, Needs::ControlPlane));
    if wanted && kube::unavailable().is_none() {
        kube::ensure()?;
    }
    Ok(())
}

fn crate_test(scenario: &Scenario) -> Option<CrateTest> {
    match scenario.needs {
        Needs::CrateTest(test) => Some(test),
        Needs::Nothing | Needs::ControlPlane => None,
    }
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
        .env("CARGO_TARGET_DIR", target_directory()?)
        .stdin(Stdio::null());
    // `cargo run` sets variables about this package. Build scripts that read these variables would
    // cause a rebuild each time.
    let ours = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(ours)) {
        command.env_remove(name);
    }
    Ok(command)
}

/// Returns Cargo's target directory, which contains this program below a profile.
pub(crate) fn target_directory() -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os("CARGO_TARGET_DIR") {
        return Ok(std::path::absolute(directory)?);
    }
    let program = std::env::current_exe()?;
    program.parent().and_then(Path::parent).map(Path::to_owned).context("this program is not in a target directory")
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

//! Builds the programs that the scenarios run.

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

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
    programs_unless(&AtomicBool::new(false))
}

/// Builds the programs as [`programs`] does. Ends the build soon after `cancelled` becomes `true`.
pub(super) fn programs_unless(cancelled: &AtomicBool) -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os(PROGRAMS) {
        return Ok(std::fs::canonicalize(directory)?);
    }
    let mut progress = Progress::start("building the programs under test");
    let mut total = number_of_packages()?;
    let mut command = cargo("build")?;
    let profile = profile()?;
    command.args(["--profile", profile, "--message-format", "json-render-diagnostics"]);
    // The features of crates depend on the packages that are selected together. This program was
    // built with the same packages (`.ci/lab`), so the crates that it shares with the programs
    // are not built again. The program itself must not be, as it is running.
    command.args(["-p", env!("CARGO_PKG_NAME")]);
    for package in PACKAGES {
        command.args(["-p", package, "--bin", package]);
    }
    let mut child = command.stdout(Stdio::piped()).spawn().context("cargo cannot be run")?;
    let stdout = child.stdout.take().context("cargo has no output")?;
    let (mut seen, mut built) = (HashSet::new(), 0);
    for line in BufReader::new(stdout).lines() {
        if cancelled.load(Ordering::Relaxed) {
            child.kill()?;
            child.wait()?;
            bail!("the build of {} was ended early", PACKAGES.join(", "));
        }
        let Some(artifact) = Artifact::parse(&line?).filter(|artifact| seen.insert(artifact.package.clone())) else {
            continue;
        };
        if artifact.fresh {
            total = total.saturating_sub(1);
        } else {
            built += 1;
            progress.part(built, total, &artifact.name);
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("building {} failed ({status})", PACKAGES.join(", "));
    }
    progress.done();
    Ok(target_directory()?.join(profile))
}

/// Returns the number of packages that a build of the programs consists of.
fn number_of_packages() -> Result<usize> {
    let mut command = cargo("tree")?;
    command.args(["--edges", "normal,build", "--prefix", "none", "--format", "{p}"]);
    for package in PACKAGES {
        command.args(["-p", package]);
    }
    let out = command.stderr(Stdio::inherit()).output().context("cargo cannot be run")?;
    let text = String::from_utf8_lossy(&out.stdout);
    let packages: HashSet<&str> = text.lines().map(|line| line.trim_end_matches(" (*)")).collect();
    Ok(packages.iter().filter(|line| !line.is_empty()).count())
}

/// What cargo reports when it has built a library or program, or has found it up to date.
#[derive(Debug, PartialEq, Eq)]
struct Artifact {
    package: String,
    name: String,
    fresh: bool,
}

impl Artifact {
    /// Parses a line of `--message-format json`; `None` if it is about something else.
    fn parse(line: &str) -> Option<Self> {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let kinds = message.pointer("/target/kind")?.as_array()?;
        let counts = message["reason"] == "compiler-artifact" && kinds.iter().all(|kind| kind != "custom-build");
        counts.then_some(())?;
        Some(Self {
            package: message["package_id"].as_str()?.to_owned(),
            name: message.pointer("/target/name")?.as_str()?.to_owned(),
            fresh: message["fresh"].as_bool()?,
        })
    }
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

/// Returns the profile of the programs: `demo`, which builds quickest, if this program has it too,
/// and otherwise `lab`.
fn profile() -> Result<&'static str> {
    let program = std::env::current_exe()?;
    let directory = program.parent().and_then(Path::file_name);
    Ok(if directory.is_some_and(|name| name == "demo") { "demo" } else { "lab" })
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
    use super::*;

    #[test]
    fn the_script_of_the_lab_selects_the_packages_that_the_lab_builds() {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.ci/lab");
        let script = std::fs::read_to_string(script).unwrap();
        let command = script.lines().find(|line| line.starts_with("cargo build ")).unwrap();
        let words: Vec<&str> = command.split_whitespace().collect();
        let mut selected: Vec<&str> = words.windows(2).filter(|pair| pair[0] == "-p").map(|pair| pair[1]).collect();
        let mut expected = [&PACKAGES[..], &[env!("CARGO_PKG_NAME")]].concat();
        selected.sort_unstable();
        expected.sort_unstable();
        assert_eq!(selected, expected);
    }

    #[test]
    fn libraries_and_programs_are_counted_and_build_scripts_are_not() {
        let line = |kind: &str| {
            format!(
                "{{\"reason\":\"compiler-artifact\",\"package_id\":\"registry#ring@0.17.14\",\
                 \"target\":{{\"kind\":[\"{kind}\"],\"name\":\"ring\"}},\"fresh\":true}}"
            )
        };
        let ring = Artifact { package: "registry#ring@0.17.14".into(), name: "ring".into(), fresh: true };
        assert_eq!(Artifact::parse(&line("lib")), Some(ring));
        assert_eq!(Artifact::parse(&line("custom-build")), None);
        assert_eq!(Artifact::parse("{\"reason\":\"build-finished\",\"success\":true}"), None);
        assert_eq!(Artifact::parse("warning: no JSON"), None);
    }

    #[test]
    fn the_test_program_is_the_one_of_the_target() {
        let messages = "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"edge_xfrm\"},\"executable\":null}\n\
                        {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"kernel\"},\"executable\":\"/t/kernel-1\"}\n";
        assert_eq!(executable(messages, "kernel").as_deref(), Some("/t/kernel-1"));
        assert_eq!(executable(messages, "edge_xfrm"), None);
    }
}

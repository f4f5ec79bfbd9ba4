//! Builds the programs from Go modules.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::executables;
use crate::progress::Progress;

/// Environment variable with a directory of ready `kube-apiserver` and `kubectl`, for machines that
/// cannot build them.
pub const OVERRIDE: &str = "EDGE_KUBE_PROGRAMS";

/// The pinned release and its libraries.
pub(super) const GO_MOD: &str = include_str!("../../kube/go.mod");

/// The hashes of all downloads.
pub(super) const GO_SUM: &str = include_str!("../../kube/go.sum");

/// The cost of a build, for messages.
pub(super) const COST: &str = "about 10 CPU-minutes";

/// Number of packages in a build, for the progress.
const PACKAGES: usize = 2277;

/// The first Go version that can download a newer Go that a module requires: 1.21.
const FETCHING_GO: u32 = 21;

/// Returns the `go` program, if it can build the modules.
pub(super) fn go() -> Result<PathBuf> {
    let wanted = GO_MOD.lines().find_map(|line| line.strip_prefix("go ")).context("go.mod names no Go version")?;
    let get = "install it from https://go.dev/dl (Debian's may be too old) or name ready programs in";
    let Some(go) =
        executables::find("go").or_else(|| Some("/usr/local/go/bin/go".into()).filter(|go: &PathBuf| go.is_file()))
    else {
        bail!("building kube-apiserver needs Go {wanted} or newer, and there is no `go`: {get} {}", OVERRIDE);
    };
    let out = Command::new(&go).args(["env", "GOVERSION", "GOTOOLCHAIN"]).current_dir("/").output();
    let out = out.with_context(|| format!("{} cannot be run", go.display()))?;
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    let mut lines = said.lines();
    let (version, toolchain) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let (Some(have), Some(need)) = (minor(version), minor(wanted)) else {
        bail!("{} does not say which Go it is: {said:?}", go.display());
    };
    // An older Go downloads the version in go.mod through the module proxy, unless GOTOOLCHAIN
    // forbids it.
    if have < need && (have < FETCHING_GO || toolchain == "local") {
        bail!("building kube-apiserver needs Go {wanted} or newer, {} is {version}: {get} {}", go.display(), OVERRIDE);
    }
    Ok(go)
}

/// Returns the minor version: 26 for `go1.26.8` and for `1.26.0`.
fn minor(version: &str) -> Option<u32> {
    let digits = version.trim_start_matches("go").strip_prefix("1.")?;
    digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Builds both programs below `scratch`. Returns their directory.
pub(super) fn build(go: &Path, scratch: &Path, release: &str) -> Result<PathBuf> {
    let module = scratch.join("module");
    fs::create_dir(&module)?;
    fs::write(module.join("go.mod"), GO_MOD)?;
    fs::write(module.join("go.sum"), GO_SUM)?;

    let progress = Progress::start("fetching the sources of Kubernetes (150 MB)");
    run(go, scratch, &["list", "-deps", "tool"], |_| ()).context(
        "the sources come from Go's module proxy (GOPROXY, by default https://proxy.golang.org); can it be reached?",
    )?;
    progress.done();

    let mut progress = Progress::start("building kube-apiserver and kubectl");
    let out = scratch.join("out");
    let flags = link_flags(release);
    // Without DWARF the objects are a quarter smaller.
    let args = [
        "build",
        "-v",
        "-gcflags",
        "all=-dwarf=false",
        "-ldflags",
        &flags,
        "-o",
        &format!("{}/", out.display()),
        "tool",
    ];
    let mut packages = 0;
    run(go, scratch, &args, |package| {
        packages += 1;
        progress.at(&format!("{}% {package}", (packages * 100 / PACKAGES).min(99)));
    })?;
    progress.done();
    Ok(out)
}

/// Returns the linker flags: no symbols, and the version that the release's own build sets.
fn link_flags(release: &str) -> String {
    let mut numbers = release.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let mut flags = "-s -w".to_owned();
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        for (name, value) in [("Version", release), ("Major", major), ("Minor", minor), ("TreeState", "clean")] {
            flags.push_str(&format!(" -X {package}.git{name}={value}"));
        }
    }
    flags
}

/// Runs `go` in the module, and calls `on_line` with each line of its output. All files that it
/// downloads and makes are below `scratch`.
fn run(go: &Path, scratch: &Path, args: &[&str], mut on_line: impl FnMut(&str)) -> Result<()> {
    let mut child = Command::new(go)
        .args(args)
        .current_dir(scratch.join("module"))
        .env("CGO_ENABLED", "0")
        .env("GOWORK", "off")
        .env("GOMODCACHE", scratch.join("sources"))
        .env("GOCACHE", scratch.join("objects"))
        .env("GOTMPDIR", scratch)
        // The sources must be removable, and the result must not depend on the path.
        .env("GOFLAGS", "-mod=readonly -modcacherw -trimpath -buildvcs=false")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{} cannot be run", go.display()))?;
    let stderr = child.stderr.take().context("go has no output")?;
    let mut tail = std::collections::VecDeque::new();
    for line in BufReader::new(stderr).lines() {
        let line = line?;
        on_line(&line);
        tail.push_back(line);
        if tail.len() > 30 {
            tail.pop_front();
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("go {} ended with {status}:\n{}", args[0], Vec::from(tail).join("\n"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_go_version_is_read_as_go_says_it_and_as_a_module_says_it() {
        assert_eq!(minor("go1.26.8"), Some(26));
        assert_eq!(minor("1.26.0"), Some(26));
        assert_eq!(minor("go1.27rc1"), Some(27));
        assert_eq!(minor("devel"), None);
    }

    #[test]
    fn the_programs_are_told_their_release() {
        let flags = link_flags("v1.37.2");
        assert!(flags.contains("-X k8s.io/component-base/version.gitVersion=v1.37.2"), "{flags}");
        assert!(flags.contains("-X k8s.io/component-base/version.gitMinor=37"), "{flags}");
    }
}

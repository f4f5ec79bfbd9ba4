//! Builds programs from Go modules, once per machine.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::executables;
use crate::progress::Progress;

/// The first Go version that can download a newer Go that a module requires: 1.21.
const FETCHING_GO: u32 = 21;

/// A module that requires the programs as its tools.
pub(crate) struct GoModule {
    /// The content of `go.mod`: the pinned release and its libraries.
    pub(crate) go_mod: &'static str,
    /// The content of `go.sum`: the hashes of all downloads.
    pub(crate) go_sum: &'static str,
    /// The programs, for messages.
    pub(crate) programs: &'static str,
    /// Name and size of the sources, for messages.
    pub(crate) sources: &'static str,
    /// The alternatives to the build, for messages.
    pub(crate) otherwise: &'static str,
    /// Number of packages in a build, for the progress.
    pub(crate) packages: usize,
    /// Whether the programs contain C code.
    pub(crate) cgo: bool,
}

impl GoModule {
    /// Returns the `go` program, if it can build the modules.
    pub(crate) fn go(&self) -> Result<PathBuf> {
        let wanted =
            self.go_mod.lines().find_map(|line| line.strip_prefix("go ")).context("go.mod names no Go version")?;
        let get = "install it from https://go.dev/dl (Debian's may be too old) or";
        let (programs, otherwise) = (self.programs, self.otherwise);
        let Some(go) =
            executables::find("go").or_else(|| Some("/usr/local/go/bin/go".into()).filter(|go: &PathBuf| go.is_file()))
        else {
            bail!("building {programs} needs Go {wanted} or newer, and there is no `go`: {get} {otherwise}");
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
            bail!("building {programs} needs Go {wanted} or newer, {} is {version}: {get} {otherwise}", go.display());
        }
        Ok(go)
    }

    /// Builds the programs below `scratch`. Returns their directory.
    pub(crate) fn build(&self, go: &Path, scratch: &Path, link_flags: &str) -> Result<PathBuf> {
        let module = scratch.join("module");
        fs::create_dir(&module)?;
        fs::write(module.join("go.mod"), self.go_mod)?;
        fs::write(module.join("go.sum"), self.go_sum)?;

        let progress = Progress::start(&format!("fetching the sources of {}", self.sources));
        self.run(go, scratch, &["list", "-deps", "tool"], |_| ()).context(
            "the sources come from Go's module proxy (GOPROXY, by default https://proxy.golang.org); can it be reached?",
        )?;
        progress.done();

        let mut progress = Progress::start(&format!("building {}", self.programs));
        let out = scratch.join("out");
        // Without DWARF debugging data the objects are a quarter smaller.
        let args = [
            "build",
            "-v",
            "-gcflags",
            "all=-dwarf=false",
            "-ldflags",
            link_flags,
            "-o",
            &format!("{}/", out.display()),
            "tool",
        ];
        let mut packages = 0;
        self.run(go, scratch, &args, |package| {
            packages += 1;
            progress.part(packages, self.packages, package);
        })?;
        progress.done();
        Ok(out)
    }

    /// Runs `go` in the module, and calls `on_line` with each line of its output. All files that it
    /// downloads and makes are below `scratch`.
    fn run(&self, go: &Path, scratch: &Path, args: &[&str], mut on_line: impl FnMut(&str)) -> Result<()> {
        let mut child = Command::new(go)
            .args(args)
            .current_dir(scratch.join("module"))
            .env("CGO_ENABLED", if self.cgo { "1" } else { "0" })
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
}

/// Returns the minor version: 26 for `go1.26.8` and for `1.26.0`.
fn minor(version: &str) -> Option<u32> {
    let digits = version.trim_start_matches("go").strip_prefix("1.")?;
    digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
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
}

//! Fetches the kernel's source, which is the package that `linux-source` in Debian sid names. The
//! machine's own apt is not changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::progress::Progress;

const ARCHIVE: &str = "http://deb.debian.org/debian";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A source package in the archive.
pub(super) struct Package {
    name: String,
    pub(super) version: String,
}

impl Package {
    /// Looks up the newest source in the archive. The package lists are written to `scratch`.
    pub(super) fn newest(scratch: &Path) -> Result<Self> {
        let progress = Progress::start("reading sid's package list");
        let apt = scratch.join("apt");
        fs::create_dir_all(apt.join("lists/partial"))?;
        fs::create_dir_all(apt.join("cache/archives/partial"))?;
        let signed = if Path::new(KEYRING).exists() { format!("[signed-by={KEYRING}] ") } else { String::new() };
        fs::write(apt.join("sources.list"), format!("deb {signed}{ARCHIVE} sid main\n"))?;
        output(apt_command("apt-get", &apt).args(["-q", "update"]))?;
        let shown = output(apt_command("apt-cache", &apt).args(["show", "linux-source"]))?;
        let package =
            Self::parse(&shown).context("sid's linux-source package does not name a linux-source-VERSION package")?;
        progress.done();
        Ok(package)
    }

    fn parse(shown: &str) -> Option<Self> {
        let field = |name| shown.lines().find_map(|line| line.strip_prefix(name));
        let name = field("Depends: ")?.split([',', ' ']).find(|word| word.starts_with("linux-source-"))?;
        Some(Self { name: name.to_owned(), version: field("Version: ")?.trim().replace(':', "_") })
    }

    /// Fetches and unpacks the source into `scratch`; returns its top directory.
    pub(super) fn unpack(&self, scratch: &Path) -> Result<PathBuf> {
        let progress = Progress::start(&format!("fetching {} (165 MB)", self.name));
        let apt = scratch.join("apt");
        output(apt_command("apt-get", &apt).args(["-q", "download", &self.name]).current_dir(&apt))?;
        let deb = fs::read_dir(&apt)?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .find(|path| path.extension().is_some_and(|ext| ext == "deb"))
            .context("apt-get download left no package")?;
        progress.done();

        let progress = Progress::start("unpacking the kernel source");
        let tree = scratch.join("source");
        fs::create_dir(&tree)?;
        // The package contains one tar.xz, which goes through pipes to save disk space.
        let script = "set -e; set -o pipefail; dpkg-deb --fsys-tarfile \"$1\" \
                      | tar -xO --wildcards './usr/src/linux-source-*.tar.xz' | tar -xJ -C \"$2\" --strip-components=1";
        output(Command::new("bash").args(["-c", script, "unpack"]).arg(&deb).arg(&tree))?;
        fs::remove_file(&deb)?;
        progress.done();
        Ok(tree)
    }
}

/// Makes the command for an apt program that reads and writes only below `apt`.
fn apt_command(program: &str, apt: &Path) -> Command {
    let mut command = Command::new(program);
    for (key, value) in [
        ("Dir::Etc::sourcelist", apt.join("sources.list")),
        ("Dir::Etc::sourceparts", "/dev/null".into()),
        ("Dir::State::Lists", apt.join("lists")),
        ("Dir::State::status", "/dev/null".into()),
        ("Dir::Cache", apt.join("cache")),
    ] {
        command.arg("-o").arg(format!("{key}={}", value.display()));
    }
    // An expired index is good enough for a source with a checked signature. apt's sandbox user
    // cannot write to this directory.
    command.args(["-o", "Acquire::Check-Valid-Until=false"]);
    command.args(["-o", "Acquire::Languages=none"]);
    command.args(["-o", "APT::Sandbox::User="]);
    command
}

fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{program} cannot be run: the lab kernel is built on Debian and its derivatives"))?;
    if !out.status.success() {
        bail!("{command:?} failed ({}):\n{}", out.status, String::from_utf8_lossy(&out.stderr));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::Package;

    #[test]
    fn the_metapackage_names_the_source_and_its_version() {
        let shown = "Package: linux-source\nVersion: 7.2.13-1\nDepends: linux-source-7.2 (= 7.2.13-1)\n";
        let package = Package::parse(shown).unwrap();
        assert_eq!(package.name, "linux-source-7.2");
        assert_eq!(package.version, "7.2.13-1");
    }

    #[test]
    fn a_metapackage_without_a_source_is_refused() {
        assert!(Package::parse("Package: linux-source\nVersion: 1\nDepends: tar\n").is_none());
    }
}

//! Who turned forwarding on. A host that forwarded before us is a router, and stays one; where
//! agent or plugin turned it on for pods, the agent's firewall keeps the host from becoming one
//! between its own networks. Both note it in one file, for this boot alone: the settings do not
//! outlive it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The file below the state directory.
pub const FORWARDING_FILE: &str = "forwarding.json";

const SETTINGS: [&str; 2] = ["ipv4/ip_forward", "ipv6/conf/all/forwarding"];

/// What is noted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// Of the boot for which it holds.
    boot_id: String,
    /// IPv4 and IPv6.
    ours: [bool; 2],
}

/// Where the settings are and where the note is kept.
#[derive(Debug, Clone)]
pub struct Forwarding {
    sysctls: PathBuf,
    file: PathBuf,
    boot_id: String,
}

impl Forwarding {
    /// Of the network namespace that the thread is in.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self::at("/proc/sys/net".into(), state_dir, boot_id.trim())
    }

    /// For tests: of these settings and this boot.
    #[must_use]
    pub fn at(sysctls: PathBuf, state_dir: &Path, boot_id: &str) -> Self {
        Self { sysctls, file: state_dir.join(FORWARDING_FILE), boot_id: boot_id.to_owned() }
    }

    /// IPv4 and IPv6: whether it was off on this boot until one of us turned it on. A file that
    /// cannot be read is none.
    #[must_use]
    pub fn ours(&self) -> [bool; 2] {
        let record = fs::read(&self.file).ok().and_then(|text| serde_json::from_slice::<Record>(&text).ok());
        record.filter(|record| record.boot_id == self.boot_id).map_or([false; 2], |record| record.ours)
    }

    /// To be called before forwarding of these families is turned on: notes those where it is off
    /// now. Replaces the file as a whole; both programs would write the same.
    ///
    /// # Errors
    /// When it cannot be written: then a restarted agent takes this host for a router.
    pub fn note(&self, families: [bool; 2]) -> io::Result<()> {
        let before = self.ours();
        let mut ours = before;
        for ((ours, wanted), setting) in ours.iter_mut().zip(families).zip(SETTINGS) {
            let off = || fs::read_to_string(self.sysctls.join(setting)).is_ok_and(|text| text.trim() == "0");
            *ours |= wanted && off();
        }
        if ours == before {
            return Ok(());
        }
        let record = Record { boot_id: self.boot_id.clone(), ours };
        let mut beside = self.file.clone().into_os_string();
        beside.push(format!(".{}", std::process::id()));
        let written = private(Path::new(&beside)).and_then(|mut file| {
            file.write_all(&serde_json::to_vec(&record)?)?;
            file.sync_all()?;
            fs::rename(&beside, &self.file)
        });
        if written.is_err() {
            let _ = fs::remove_file(&beside);
        }
        written
    }
}

fn private(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().write(true).create(true).truncate(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(ipv4: &str, ipv6: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("ipv6/conf/all")).unwrap();
        fs::create_dir_all(folder.path().join("ipv4")).unwrap();
        fs::write(folder.path().join(SETTINGS[0]), ipv4).unwrap();
        fs::write(folder.path().join(SETTINGS[1]), ipv6).unwrap();
        folder
    }

    fn of(host: &tempfile::TempDir, boot: &str) -> Forwarding {
        Forwarding::at(host.path().to_owned(), host.path(), boot)
    }

    #[test]
    fn what_was_off_before_us_is_noted_for_this_boot() {
        let host = host("0\n", "1\n");
        of(&host, "b1").note([true, true]).unwrap();
        fs::write(host.path().join(SETTINGS[0]), "1").unwrap();
        of(&host, "b1").note([true, true]).unwrap();
        assert_eq!(of(&host, "b1").ours(), [true, false]);
        assert_eq!(of(&host, "b2").ours(), [false, false]);
    }

    #[test]
    fn a_family_that_we_do_not_turn_on_is_not_noted() {
        let host = host("0", "0");
        of(&host, "b1").note([true, false]).unwrap();
        assert_eq!(of(&host, "b1").ours(), [true, false]);
        of(&host, "b1").note([true, true]).unwrap();
        assert_eq!(of(&host, "b1").ours(), [true, true]);
    }

    #[test]
    fn a_damaged_note_is_none_and_a_folder_that_is_not_there_an_error() {
        let host = host("0", "0");
        fs::write(host.path().join(FORWARDING_FILE), "{").unwrap();
        assert_eq!(of(&host, "b1").ours(), [false, false]);
        let nowhere = Forwarding::at(host.path().to_owned(), &host.path().join("nowhere"), "b1");
        assert!(nowhere.note([true, true]).is_err());
    }
}

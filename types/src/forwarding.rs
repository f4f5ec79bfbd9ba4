//! Records whether we turned forwarding on, and on which uplinks we set `accept_ra` because of it.
//! A host that forwarded packets before is a router and remains one. If the agent or the plugin
//! turned forwarding on for pods, the agent's firewall keeps the host from routing between its own
//! networks. Both programs write the same file, which is valid for one boot, as the settings are.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Name of the file in the state directory.
pub const FORWARDING_FILE: &str = "forwarding.json";

const SETTINGS: [&str; 2] = ["ipv4/ip_forward", "ipv6/conf/all/forwarding"];

/// Maximum number of uplinks whose `accept_ra` is recorded. Further uplinks are not recorded, so
/// `restore` does not change them.
const MAX_UPLINKS: usize = 64;

/// Content of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// The boot for which the record is valid.
    boot_id: String,
    /// Whether our programs turned forwarding on, for IPv4 and for IPv6.
    ours: [bool; 2],
    /// The interfaces whose `accept_ra` our programs changed. Earlier releases did not write this
    /// field.
    #[serde(default)]
    accept_ra: BTreeSet<String>,
}

/// The changes that our programs made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Changes {
    /// Whether our programs turned forwarding on, for IPv4 and for IPv6.
    ours: [bool; 2],
    /// The interfaces whose `accept_ra` our programs changed from 1 to 2.
    accept_ra: BTreeSet<String>,
}

impl Changes {
    fn and(mut self, other: Self) -> Self {
        self.ours = [self.ours[0] || other.ours[0], self.ours[1] || other.ours[1]];
        let room = MAX_UPLINKS.saturating_sub(self.accept_ra.len());
        self.accept_ra.extend(other.accept_ra.into_iter().take(room));
        self
    }
}

/// The forwarding settings, and the file with the record.
#[derive(Debug, Clone)]
pub struct Forwarding {
    sysctls: PathBuf,
    /// The state directory, then the directory of the sockets. The directory of the sockets is in
    /// memory, so it is writable even if the disk is full or read-only. The record need not survive
    /// a reboot.
    directories: [PathBuf; 2],
    boot_id: String,
    /// The changes that this process has recorded, even if no file could be written.
    noted: Changes,
}

impl Forwarding {
    /// Uses the settings of the thread's network namespace, and the files in these directories.
    #[must_use]
    pub fn new(state_dir: &Path, run_dir: &Path) -> Self {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self::at("/proc/sys/net".into(), [state_dir, run_dir], boot_id.trim())
    }

    /// Uses settings below the directory `sysctls`, and this boot identifier. For tests.
    #[must_use]
    pub fn at(sysctls: PathBuf, directories: [&Path; 2], boot_id: &str) -> Self {
        let directories = directories.map(Path::to_owned);
        Self { sysctls, directories, boot_id: boot_id.to_owned(), noted: Changes::default() }
    }

    /// Returns, for IPv4 and IPv6, whether forwarding was off on this boot until one of our
    /// programs turned it on. A file that cannot be read counts as missing.
    #[must_use]
    pub fn ours(&self) -> [bool; 2] {
        self.on_disk().and(self.noted.clone()).ours
    }

    /// Records the families for which forwarding is off now. Call this function before you turn
    /// forwarding of these families on. It replaces the file as a whole. Both programs write the
    /// same content, so neither removes the other's record.
    ///
    /// # Errors
    /// Returns an error if the record cannot be written to either directory. [`Self::ours`]
    /// includes the change even then, but a restarted agent will treat this host as a router. The
    /// next call tries again.
    pub fn note(&mut self, families: [bool; 2]) -> io::Result<()> {
        let mut off = [false; 2];
        for ((off, wanted), setting) in off.iter_mut().zip(families).zip(SETTINGS) {
            *off = wanted && fs::read_to_string(self.sysctls.join(setting)).is_ok_and(|text| text.trim() == "0");
        }
        self.record(Changes { ours: off, ..Changes::default() })
    }

    /// Records that `accept_ra` of this interface is about to change from 1 to 2. Call this
    /// function before the change.
    ///
    /// # Errors
    /// Returns the same errors as [`Self::note`].
    pub fn note_accept_ra(&mut self, interface: &str) -> io::Result<()> {
        self.record(Changes { accept_ra: [interface.to_owned()].into(), ..Changes::default() })
    }

    fn record(&mut self, changes: Changes) -> io::Result<()> {
        self.noted = std::mem::take(&mut self.noted).and(changes);
        let on_disk = self.on_disk();
        let all = on_disk.clone().and(self.noted.clone());
        if all == on_disk {
            return Ok(());
        }
        let [state_dir, run_dir] = &self.directories;
        self.write(state_dir, &all).or_else(|error| {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(run_dir)?;
            // Return the error of the state directory: that is the one the operator must correct,
            // since the run directory is lost at a reboot.
            self.write(run_dir, &all).map_err(|_| error)
        })
    }

    /// Turns forwarding off again for the families for which one of our programs turned it on, sets
    /// `accept_ra` of the recorded uplinks back to 1, and deletes the record. Returns, for IPv4 and
    /// IPv6, whether it turned forwarding off.
    ///
    /// # Errors
    /// Returns an error if a setting cannot be written or a file cannot be deleted. If a setting
    /// cannot be written, the record stays.
    pub fn restore(&mut self) -> io::Result<[bool; 2]> {
        let mut turned_off = [false; 2];
        let changes = self.on_disk().and(self.noted.clone());
        for ((turned_off, ours), setting) in turned_off.iter_mut().zip(changes.ours).zip(SETTINGS) {
            let setting = self.sysctls.join(setting);
            if ours && fs::read_to_string(&setting).is_ok_and(|text| text.trim() != "0") {
                fs::write(&setting, "0")?;
                *turned_off = true;
            }
        }
        // Do this after forwarding is off: on a forwarding host, the value 1 would make the kernel
        // drop the default route.
        for interface in &changes.accept_ra {
            let setting = self.sysctls.join("ipv6/conf").join(interface).join("accept_ra");
            if fs::read_to_string(&setting).is_ok_and(|text| text.trim() == "2") {
                fs::write(&setting, "1")?;
            }
        }
        self.noted = Changes::default();
        for folder in &self.directories {
            match fs::remove_file(folder.join(FORWARDING_FILE)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(turned_off)
    }

    fn on_disk(&self) -> Changes {
        let read = |directory: &PathBuf| {
            let text = fs::read(directory.join(FORWARDING_FILE)).ok()?;
            serde_json::from_slice::<Record>(&text).ok().filter(|record| record.boot_id == self.boot_id)
        };
        self.directories
            .iter()
            .filter_map(read)
            .fold(Changes::default(), |all, Record { ours, accept_ra, .. }| all.and(Changes { ours, accept_ra }))
    }

    /// Replaces the record. Agent and plugin may do so at the same time, so this is not
    /// [`crate::durable::replace_file`], which has one temporary name. The record counts only in
    /// this boot, so it need not survive a power cut.
    fn write(&self, directory: &Path, changes: &Changes) -> io::Result<()> {
        let file = directory.join(FORWARDING_FILE);
        let Changes { ours, accept_ra } = changes.clone();
        let record = Record { boot_id: self.boot_id.clone(), ours, accept_ra };
        let mut beside = file.clone().into_os_string();
        beside.push(format!(".{}", std::process::id()));
        let written = private(Path::new(&beside)).and_then(|mut private| {
            private.write_all(&serde_json::to_vec(&record)?)?;
            private.sync_all()?;
            fs::rename(&beside, &file)
        });
        if written.is_err() {
            let _ = fs::remove_file(&beside);
        }
        written
    }
}

fn private(path: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(ipv4: &str, ipv6: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("ipv6/conf/all")).unwrap();
        fs::create_dir_all(directory.path().join("ipv4")).unwrap();
        fs::write(directory.path().join(SETTINGS[0]), ipv4).unwrap();
        fs::write(directory.path().join(SETTINGS[1]), ipv6).unwrap();
        directory
    }

    fn of(host: &tempfile::TempDir, boot: &str) -> Forwarding {
        Forwarding::at(host.path().to_owned(), [host.path(), &host.path().join("run")], boot)
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
    fn only_forwarding_that_was_off_before_us_is_turned_off_again() {
        let host = host("0\n", "1\n");
        let mut forwarding = of(&host, "b1");
        forwarding.note([true, true]).unwrap();
        fs::write(host.path().join(SETTINGS[0]), "1\n").unwrap();
        assert_eq!(of(&host, "b1").restore().unwrap(), [true, false]);
        let read = |setting| fs::read_to_string(host.path().join(setting)).unwrap().trim().to_owned();
        assert_eq!(SETTINGS.map(read), ["0", "1"]);
        // Forwarding that the operator turns on afterwards is not ours.
        fs::write(host.path().join(SETTINGS[0]), "1\n").unwrap();
        assert_eq!(of(&host, "b1").restore().unwrap(), [false, false]);
        assert_eq!((of(&host, "b1").ours(), read(SETTINGS[0])), ([false, false], "1".into()));
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
    fn uplinks_hear_routers_as_before_us() {
        let host = host("0", "0");
        let accept_ra = |interface: &str| host.path().join("ipv6/conf").join(interface).join("accept_ra");
        for (interface, value) in [("eth0.5", "2"), ("eth1", "0"), ("eth2", "2")] {
            fs::create_dir(accept_ra(interface).parent().unwrap()).unwrap();
            fs::write(accept_ra(interface), value).unwrap();
        }
        // `accept_ra` of the last interface was already 2 before. The operator has changed eth1
        // since, and usb0 is unplugged.
        for interface in ["eth0.5", "eth1", "usb0"] {
            of(&host, "b1").note_accept_ra(interface).unwrap();
        }
        of(&host, "b1").note([false, true]).unwrap();
        of(&host, "b1").restore().unwrap();
        let values = ["eth0.5", "eth1", "eth2"].map(|interface| fs::read_to_string(accept_ra(interface)).unwrap());
        assert_eq!(values, ["1", "0", "2"]);
    }

    #[test]
    fn a_record_of_an_earlier_release_is_read() {
        let host = host("1", "1");
        fs::write(host.path().join(FORWARDING_FILE), r#"{"boot_id":"b1","ours":[true,false]}"#).unwrap();
        assert_eq!(of(&host, "b1").ours(), [true, false]);
    }

    #[test]
    fn a_damaged_note_is_none() {
        let host = host("0", "0");
        fs::write(host.path().join(FORWARDING_FILE), "{").unwrap();
        assert_eq!(of(&host, "b1").ours(), [false, false]);
    }

    #[test]
    fn where_the_disk_cannot_be_written_the_note_is_beside_the_sockets_or_at_least_remembered() {
        let host = host("0", "0");
        let (state, run) = (host.path().join("nowhere"), host.path().join("run"));
        let at = |state: &Path, run: &Path| Forwarding::at(host.path().to_owned(), [state, run], "b1");
        at(&state, &run).note([true, false]).unwrap();
        assert_eq!(at(&state, &run).ours(), [true, false]);
        fs::remove_dir_all(&run).unwrap();
        // The run directory cannot be written either.
        fs::write(&run, "a file").unwrap();
        let mut forwarding = at(&state, &run);
        assert!(forwarding.note([true, true]).is_err());
        fs::write(host.path().join(SETTINGS[0]), "1").unwrap();
        assert!(forwarding.note([true, true]).is_err(), "it is still not written");
        assert_eq!(forwarding.ours(), [true, true]);
        fs::create_dir(&state).unwrap();
        forwarding.note([true, true]).unwrap();
        assert_eq!(at(&state, &run).ours(), [true, true]);
    }
}

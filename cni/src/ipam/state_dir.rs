//! The state directory: its lock, the segments that the agent writes there, and the leases.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

use edge_types::IpNetwork;
use edge_types::agent_protocol::Stock;
use edge_types::api::Family;
use edge_types::shared_files::{LEASES_FILE, LOCK_FILE, SegmentsFile};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::journal::{self, Journal};
use super::leases::Lease;
use super::segments_file::{self, NetworkSegments};
use crate::config::Config;
use crate::error::{Code, Context, Error, Result};
use crate::net::sysctl;
use crate::proc_file;
use crate::request::{Attachment, RuntimeRequest};
use crate::requested_addresses::RequestedAddresses;
use crate::reserved::Reserved;
use crate::segment::{self, PodAddress};

/// Maximum time that a process waits for the lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(15);

/// Stack size of the thread that waits for the disk, bytes.
const FLUSH_STACK: usize = 64 << 10;

/// The state directory.
#[derive(Debug, Clone)]
pub(crate) struct StateDir {
    directory: PathBuf,
    /// Addresses that are not given to pods.
    reserved: Reserved,
    /// The network's bridge.
    bridge: String,
    attached: CountAttached,
}

/// Counts the attached pods whose leases are in a state directory, those of the given bridge and of
/// others. While there are any, no new journal is created.
pub(crate) type CountAttached = fn(&str, &Path) -> Result<usize>;

impl StateDir {
    /// Opens the state directory, or creates it.
    pub(crate) fn create(config: &Config, attached: CountAttached) -> Result<Self> {
        let directory = config.state_dir.clone();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .context("create the state directory", &directory)?;
        refuse_writable_by_all(&directory)?;
        Ok(Self { directory, reserved: config.reserved.clone(), bridge: config.bridge.clone(), attached })
    }

    /// Returns the state directory if it exists and has a journal of leases.
    pub(crate) fn existing(config: &Config) -> Option<Self> {
        let directory = config.state_dir.clone();
        let (reserved, bridge) = (config.reserved.clone(), config.bridge.clone());
        Journal::exists(&directory).then_some(Self { directory, reserved, bridge, attached: |_, _| Ok(0) })
    }

    /// Reads the segments in the state directory, if any. It needs no lock, since the file is
    /// always replaced as a whole.
    pub(crate) fn written_segments(config: &Config) -> Result<Option<SegmentsFile>> {
        Ok(segments_file::read(&config.state_dir, config)?.map(NetworkSegments::into_file))
    }

    /// Returns whether the network has its own segments, to which the agent adds no others.
    pub(crate) fn has_own_segments(config: &Config) -> Result<bool> {
        let segments = segments_file::read(&config.state_dir, config)?;
        Ok(matches!(segments, Some(NetworkSegments::OfNetwork(_))))
    }

    /// Reads the leases in another state directory of this host, whose pods share the bridge's
    /// filter. It takes no lock, so a lease that is being entered at the same time may be missing.
    /// Returns none if the journal is from another boot, or if its first line is corrupt; otherwise
    /// returns the leases before the first corrupt line.
    pub(crate) fn leases_in(directory: &Path) -> Result<Vec<(Attachment, Lease)>> {
        journal::read(directory, &boot_id()?)
    }

    /// Waits for the lock and opens the leases.
    pub(crate) fn lock(&self) -> Result<LockedLeases> {
        let lock = self.take_lock()?;
        journal::remove_leftovers(&self.directory);
        if !Journal::exists(&self.directory) {
            self.refuse_new_journal_with_pods()?;
        }
        let boot = boot_id()?;
        let journal = Journal::open(&self.directory, &boot)?;
        Ok(LockedLeases { directory: self.directory.clone(), reserved: self.reserved.clone(), lock, journal })
    }

    /// Fails if there are attached pods but no journal. In that case the journal was removed, and
    /// with a new one, the addresses of these pods would be leased to other pods.
    fn refuse_new_journal_with_pods(&self) -> Result<()> {
        match (self.attached)(&self.bridge, &self.directory)? {
            0 => Ok(()),
            count => Err(Error::new(
                Code::DamagedState,
                format!(
                    "there are no leases in {}, but {count} pods are attached, whose addresses would be given to others. Restore {}, or stop \
                     all pods of this node and start them again",
                    self.directory.display(),
                    self.directory.join(LEASES_FILE).display()
                ),
            )),
        }
    }

    fn take_lock(&self) -> Result<File> {
        let path = self.directory.join(LOCK_FILE);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        // On a read-only disk, the file can still be opened for reading and locked.
        let file = match file {
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => File::open(&path),
            other => other,
        };
        let file = file.context("open", &path)?;
        lock_within(LOCK_TIMEOUT, file, &path)
    }
}

/// Refuses a directory in which any user may create and remove files, such as `/var/tmp/pods` of
/// mode 0777: a user could remove the leases.
fn refuse_writable_by_all(directory: &Path) -> Result<()> {
    let mode = fs::metadata(directory).context("examine", directory)?.mode() & 0o7777;
    if mode & 0o002 == 0 {
        return Ok(());
    }
    Err(Error::new(
        Code::InvalidConfig,
        format!(
            "every user may write to the state directory {} (mode {mode:04o}); expected 0700, run chmod 0700 {} or give another stateDir",
            directory.display(),
            directory.display()
        ),
    ))
}

/// Locks a file, or fails after `timeout`. A process that holds the lock longer is stuck, so
/// further waiting would not help.
fn lock_within(timeout: Duration, file: File, path: &Path) -> Result<File> {
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => return Ok(file),
        Err(Errno::WOULDBLOCK | Errno::INTR) => {}
        Err(error) => return Err(Error::io("lock", path, error)),
    }
    // flock(2) has no timeout, so another thread waits for the lock. The thread ends with the
    // process.
    let (locked, outcome) = channel();
    std::thread::spawn(move || {
        let result = rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockExclusive));
        // After the timeout the receiver no longer exists.
        let _ = locked.send(result.map(|()| file));
    });
    match outcome.recv_timeout(timeout) {
        Ok(result) => result.context("lock", path),
        Err(_) => Err(Error::new(
            Code::TryAgainLater,
            format!(
                "another process has held {} for {timeout:?}, which should take milliseconds; see `fuser -v {}`",
                path.display(),
                path.display()
            ),
        )),
    }
}

/// The leases, while the lock is held.
#[derive(Debug)]
pub(crate) struct LockedLeases {
    directory: PathBuf,
    reserved: Reserved,
    lock: File,
    journal: Journal,
}

impl LockedLeases {
    /// Returns the node's segments. The agent writes the segments. If it has not written any, they
    /// are taken from the configuration. `None` if there are none.
    pub(crate) fn segments(&self, config: &Config) -> Result<Option<SegmentsFile>> {
        let read = || segments_file::read(&self.directory, config);
        let segments = match read()? {
            None => {
                segments_file::seed(&self.directory, config)?;
                read()?
            }
            segments => segments,
        };
        let file = segments.map(NetworkSegments::into_file);
        file.map(|file| supported_by_kernel(file, sysctl::has_ipv6())).transpose()
    }

    /// Fails if no lease can be entered, because the disk is read-only or full.
    pub(crate) fn require_room(&mut self) -> Result<()> {
        self.journal.require_room()
    }

    /// Returns the lease of an attachment.
    pub(crate) fn lease(&self, attachment: &Attachment) -> Result<Option<Lease>> {
        self.journal.get(attachment)
    }

    /// Returns all leases in the order in which they began. Reads the whole journal, which takes
    /// time if there are thousands of leases.
    pub(crate) fn all(&self) -> Result<impl Iterator<Item = (Attachment, Lease)>> {
        Ok(self.journal.whole()?.iter())
    }

    /// Returns the numbers of free and leased addresses of these segments, by family.
    pub(crate) fn stock(&self, segments: &[IpNetwork]) -> Result<Vec<Stock>> {
        self.journal.stock(segments, &self.reserved)
    }

    /// Leases one address of each family, or the requested address if there is one. Returns `None`
    /// and leases nothing if a family has no address left. Fails if a requested address cannot be
    /// leased.
    pub(crate) fn lease_addresses(
        &mut self,
        request: &RuntimeRequest,
        network: &str,
        segments: &[IpNetwork],
        requested: &RequestedAddresses,
    ) -> Result<Option<Vec<PodAddress>>> {
        let now = seconds_since_boot()?;
        let mut assigned = self.requested_addresses(segments, requested)?;
        for family in segment::families(segments) {
            if assigned.iter().any(|assigned| Family::of(&assigned.segment) == family) {
                continue;
            }
            match self.journal.next_address(segments, &self.reserved, family, now)? {
                Some(address) => assigned.push(address),
                None => return Ok(None),
            }
        }
        if assigned.is_empty() {
            return Ok(None);
        }
        let (mut assigned, ipv6): (Vec<_>, Vec<_>) =
            assigned.into_iter().partition(|assigned| assigned.address.is_ipv4());
        assigned.extend(ipv6);
        let addresses: Vec<IpAddr> = assigned.iter().map(|assigned| assigned.address).collect();
        let lease = Lease { addresses, network: network.to_owned(), pod: request.pod.clone(), mac: requested.mac };
        self.journal.enter_lease(&request.attachment, &lease)?;
        Ok(Some(assigned))
    }

    /// Returns the requested addresses with their segments. Fails if one of them cannot be leased
    /// now.
    pub(crate) fn requested_addresses(
        &self,
        segments: &[IpNetwork],
        requested: &RequestedAddresses,
    ) -> Result<Vec<PodAddress>> {
        let find = |address: IpAddr| {
            let refused =
                |why: String| Error::new(Code::InvalidConfig, format!("the requested address {address} {why}"));
            let Some(segment) = segments.iter().find(|segment| segment.contains(address)) else {
                let segments: Vec<String> = segments.iter().map(ToString::to_string).collect();
                return Err(refused(format!("is in no segment of this node ({})", segments.join(", "))));
            };
            if !segment::holds_pod(segment, address) {
                let gateway = segment::gateway(segment);
                return Err(refused(format!(
                    "is not for pods: it is {segment}'s own, its broadcast address or the gateway {gateway}"
                )));
            }
            if self.reserved.range_of(address).is_some() {
                return Err(refused(
                    "is reserved by the configuration (`reserved`, or `rangeStart` and `rangeEnd`)".into(),
                ));
            }
            if let Some(owner) = self.journal.owner(address)? {
                return Err(refused(format!("is leased to {owner}")).with_code(Code::TryAgainLater));
            }
            Ok(PodAddress { address, segment: *segment })
        };
        requested.addresses.iter().copied().map(find).collect()
    }

    /// Returns the number of seconds since the boot.
    pub(crate) fn now(&self) -> Result<u64> {
        seconds_since_boot()
    }

    /// Ends the lease of an attachment and returns it. `None` if there is no lease.
    pub(crate) fn end(&mut self, attachment: &Attachment) -> Result<Option<Lease>> {
        self.journal.end_lease(attachment, seconds_since_boot()?)
    }

    /// Ends the leases of all attachments for which `gone` returns `true`. Returns these
    /// attachments.
    pub(crate) fn reclaim(&mut self, mut gone: impl FnMut(&Attachment, &Lease) -> bool) -> Result<Vec<Attachment>> {
        let held = self.journal.whole()?.iter().filter(|(attachment, lease)| gone(attachment, lease));
        let dead: Vec<Attachment> = held.map(|(attachment, _)| attachment).collect();
        for attachment in &dead {
            self.end(attachment)?;
        }
        Ok(dead)
    }

    /// Releases the lock and makes the new entries durable. The entries may be reported only after
    /// this call.
    pub(crate) fn commit(self) -> Result<()> {
        self.release_lock().finish()
    }

    /// Releases the lock and begins to make the new entries durable. The entries may be reported
    /// only after [`Commit::finish`].
    pub(crate) fn begin_commit(self) -> Commit {
        let Commit { file, .. } = self.release_lock();
        let flushed = Arc::clone(&file);
        let thread = std::thread::Builder::new().stack_size(FLUSH_STACK).spawn(move || flushed.sync_data());
        // If no thread can be started, `finish` writes to the disk itself.
        Commit { file, thread: thread.ok() }
    }

    fn release_lock(self) -> Commit {
        let Self { directory: _, reserved: _, lock, journal } = self;
        let file = Arc::new(journal.finish());
        drop(lock);
        Commit { file, thread: None }
    }
}

/// Entries of the journal that are being written to disk. This takes longer than the remaining work
/// of an ADD.
#[derive(Debug)]
#[must_use = "the entries may be reported only after `finish`"]
pub(crate) struct Commit {
    file: Arc<File>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Commit {
    /// Waits until the entries are durable.
    pub(crate) fn finish(self) -> Result<()> {
        let outcome = self.thread.and_then(|thread| thread.join().ok());
        let outcome = outcome.unwrap_or_else(|| self.file.sync_data());
        outcome.map_err(|error| Error::new(Code::Io, format!("cannot make the leases durable: {error}")))
    }
}

/// Leaves out IPv6 segments on a kernel without IPv6 (`ipv6.disable=1`), so that pods have only
/// IPv4.
fn supported_by_kernel(mut segments: SegmentsFile, has_ipv6: bool) -> Result<SegmentsFile> {
    if !has_ipv6 && !segments.segments.is_empty() {
        segments.segments.retain(IpNetwork::is_ipv4);
        if segments.segments.is_empty() {
            return Err(Error::new(
                Code::Kernel,
                "this node's segments are of IPv6, which this kernel has not; boot without ipv6.disable=1, or give the node a segment of IPv4",
            ));
        }
    }
    Ok(segments)
}

/// Returns the kernel's identifier of this boot.
fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    proc_file::read(path).context("read", Path::new(path))
}

/// Returns the number of seconds since the boot, including the time in suspend. This clock cannot
/// be set. It is read from /proc (proc_uptime(5)), since rustix's `clock_gettime` panics on a
/// kernel without a vDSO (User-Mode Linux).
fn seconds_since_boot() -> Result<u64> {
    let path = "/proc/uptime";
    let text = proc_file::read(path).context("read", Path::new(path))?;
    Ok(text.split('.').next().and_then(|whole| whole.parse().ok()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use edge_types::shared_files::SegmentsSource;

    use super::*;

    fn config(directory: &Path, segments: &[&str]) -> Config {
        let text = serde_json::json!({
            "cniVersion": "1.0.0", "name": "pods", "stateDir": directory, "segments": segments, "clusterRanges": ["10.0.0.0/8"],
        });
        Config::from_object(text.as_object().unwrap().clone()).unwrap()
    }

    fn request(number: usize) -> RuntimeRequest {
        let attachment = Attachment { container: format!("c{number}"), ifname: "eth0".into() };
        RuntimeRequest { attachment, netns: None, pod: None, requested: RequestedAddresses::default() }
    }

    #[test]
    fn a_state_directory_that_every_user_may_write_to_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path(), &[]);
        for (mode, refused) in [(0o1777, true), (0o702, true), (0o755, false), (0o700, false)] {
            fs::set_permissions(directory.path(), fs::Permissions::from_mode(mode)).unwrap();
            match StateDir::create(&config, |_, _| Ok(0)) {
                Err(error) => assert!(refused && error.message.contains(&format!("{mode:04o}")), "{mode:o}: {error}"),
                Ok(_) => assert!(!refused, "{mode:o}"),
            }
        }
    }

    #[test]
    fn the_configuration_seeds_the_segments_once_and_is_ignored_from_then_on() {
        let directory = tempfile::tempdir().unwrap();
        let state_dir = StateDir::create(&config(directory.path(), &[]), |_, _| Ok(0)).unwrap();
        let segments = |seed: &[&str]| state_dir.lock().unwrap().segments(&config(directory.path(), seed)).unwrap();
        assert_eq!(segments(&[]), None);
        let seeded = segments(&["10.77.0.0/24"]).unwrap();
        assert_eq!(seeded.source, SegmentsSource::Configuration);
        assert_eq!(seeded.cluster_ranges, ["10.0.0.0/8".parse::<IpNetwork>().unwrap()]);
        assert_eq!(segments(&["10.78.0.0/24"]), Some(seeded));
    }

    #[test]
    fn damaged_segments_are_named_and_never_replaced_by_the_seed() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path(), &["10.77.0.0/24"]);
        let state_dir = StateDir::create(&config, |_, _| Ok(0)).unwrap();
        let path = directory.path().join("segments.json");
        let other_version = r#"{"version":2,"source":"agent","segments":[]}"#;
        let overlapping = r#"{"version":1,"source":"agent","segments":["10.0.0.0/24","10.0.0.0/25"]}"#;
        for content in ["", "{", "\0\0\0\0", other_version, overlapping] {
            fs::write(&path, content).unwrap();
            let error = state_dir.lock().unwrap().segments(&config).unwrap_err();
            assert_eq!(error.code, Code::DamagedState, "{content:?}");
            assert!(error.message.contains(path.to_str().unwrap()), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
    }

    #[test]
    fn a_pod_gets_an_address_of_each_family_or_none() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path(), &["10.77.0.0/29", "fd77::/126"]);
        let state_dir = StateDir::create(&config, |_, _| Ok(0)).unwrap();
        let segments = state_dir.lock().unwrap().segments(&config).unwrap().unwrap().segments;
        for number in 0..2 {
            let mut leases = state_dir.lock().unwrap();
            let got = leases
                .lease_addresses(&request(number), "pods", &segments, &RequestedAddresses::default())
                .unwrap()
                .unwrap();
            assert_eq!(got.len(), 2);
            leases.commit().unwrap();
        }
        let mut leases = state_dir.lock().unwrap();
        assert_eq!(
            leases.lease_addresses(&request(9), "pods", &segments, &RequestedAddresses::default()).unwrap(),
            None
        );
        assert_eq!(leases.stock(&segments).unwrap()[0], Stock { family: Family::V4, free: 3, leased: 2 });
        assert_eq!(leases.reclaim(|attachment, _| attachment.container == "c0").unwrap().len(), 1);
        assert!(
            leases.lease_addresses(&request(9), "pods", &segments, &RequestedAddresses::default()).unwrap().is_some()
        );
    }

    #[test]
    fn a_journal_does_not_begin_from_nothing_while_pods_are_attached() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path(), &["10.77.0.0/24"]);
        let error = StateDir::create(&config, |_, _| Ok(3)).unwrap().lock().unwrap_err();
        assert_eq!(error.code, Code::DamagedState);
        assert!(error.message.contains("3 pods"), "{error}");
        assert!(StateDir::existing(&config).is_none());
        StateDir::create(&config, |_, _| Ok(0)).unwrap().lock().unwrap();
        assert!(StateDir::create(&config, |_, _| Ok(3)).unwrap().lock().is_ok());
    }

    #[test]
    fn a_lock_that_is_never_released_is_named_and_one_that_is_released_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let open = || File::options().create(true).append(true).open(&path).unwrap();
        let held = lock_within(LOCK_TIMEOUT, open(), &path).unwrap();
        let error = lock_within(Duration::from_millis(20), open(), &path).unwrap_err();
        assert_eq!(error.code, Code::TryAgainLater);
        assert!(error.message.contains(path.to_str().unwrap()), "{error}");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| lock_within(LOCK_TIMEOUT, open(), &path).is_ok());
            drop(held);
            assert!(waiting.join().unwrap());
        });
    }

    #[test]
    fn fifty_at_once_get_fifty_addresses() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path(), &["10.77.0.0/24"]);
        let state_dir = StateDir::create(&config, |_, _| Ok(0)).unwrap();
        let segments = state_dir.lock().unwrap().segments(&config).unwrap().unwrap().segments;
        let addresses: std::collections::BTreeSet<IpAddr> = std::thread::scope(|scope| {
            let takers: Vec<_> = (0..50)
                .map(|number| {
                    let (state_dir, segments) = (&state_dir, &segments);
                    scope.spawn(move || {
                        let mut leases = state_dir.lock().unwrap();
                        let got = leases
                            .lease_addresses(&request(number), "pods", segments, &RequestedAddresses::default())
                            .unwrap()
                            .unwrap();
                        leases.commit().unwrap();
                        got[0].address
                    })
                })
                .collect();
            takers.into_iter().map(|taker| taker.join().unwrap()).collect()
        });
        assert_eq!(addresses.len(), 50);
        assert_eq!(state_dir.lock().unwrap().stock(&segments).unwrap()[0].leased, 50);
    }
}

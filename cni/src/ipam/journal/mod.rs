//! Leases on disk: an append-only journal of lines, each with a checksum that runs on from the line
//! before.
//!
//! ```text
//! 5d0c1e7a edge-cni-leases 1 GENERATION BOOT-ID
//! 91ab03ff ~ ADDRESS=SECONDS ...                         freed addresses, the longest ago first
//! 0e77c210 + CONTAINER IFNAME NETWORK POD ADDRESS ...    a lease begins ("-" for an unknown pod)
//! 3f5521b9 - CONTAINER IFNAME SECONDS                    it ends, SECONDS after the boot
//! ```
//!
//! If the runtime requested the pod's MAC address, the link-local address that follows from it is
//! among the addresses. Releases that know no requested MAC addresses take it for a leased one.
//!
//! A line is written under the state directory's lock and made durable (`fdatasync`) after the lock
//! is released, so that concurrent ADDs share the disk's work. No lease is reported before it is
//! durable. Beside the journal is the mark: generation, length and checksum of the journal after
//! the last line. The mark is only compared within one boot, so it need not be durable. Within a
//! boot, a journal that is shorter than its mark was cut by someone, and leases are missing. That
//! is an error, never a fresh start. An unreadable line after the mark is from a process that was
//! killed while it wrote. Its lease was never reported. After a reboot no earlier pod exists, so
//! the leases are void and a damaged journal is replaced.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use edge_types::durable::{remove_temporary, replace_file};
use edge_types::shared_files::LEASES_FILE;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::leases::{Lease, LeaseRef, Leases, key_of};
use crate::error::{Code, Context, Error, Result};
use crate::mac::{self, Mac};
use crate::request::Attachment;

const MAGIC: &str = "edge-cni-leases 1";

/// Most freed addresses that a rewritten journal keeps.
const MAX_FREED: usize = 4096;

/// Length of most lines, bytes, by which room for the leases is made.
const USUAL_LINE: usize = 100;

/// How much room the next line needs at most, bytes.
const ROOM: u64 = 1024;

/// A journal is rewritten when it has more than this many lines beyond twice the lines of a
/// rewritten one.
const REWRITE_MARGIN: usize = 256;

/// The open journal and the leases in it. The process that has this value holds the state
/// directory's lock.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    mark_path: PathBuf,
    boot: String,
    file: File,
    /// False on a read-only disk.
    writable: bool,
    state: JournalState,
}

/// The state after all lines of a journal.
#[derive(Debug, Clone, Default)]
pub(super) struct JournalState {
    leases: Leases,
    generation: u64,
    boot: String,
    /// Bytes of good lines.
    length: u64,
    /// Checksum of the last good line.
    chain: u32,
    lines: usize,
}

/// The first line that cannot be read, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Damage {
    line: usize,
    why: String,
}

/// The state of the [`Journal`] after its last line.
#[derive(Debug, Clone, PartialEq, Eq)]
struct JournalEnd {
    generation: u64,
    length: u64,
    chain: u32,
    boot: String,
}

impl Journal {
    /// Whether a journal or its mark is there, damaged or not. Also if the disk cannot say: then it
    /// cannot be read, which the caller must hear of.
    pub(super) fn exists(directory: &Path) -> bool {
        let is_there = |path: &Path| path.try_exists().unwrap_or(true);
        is_there(&directory.join(LEASES_FILE)) || is_there(&mark_path(directory))
    }

    /// Opens the journal below `directory`, or makes it. `boot` is the kernel's boot ID.
    pub(super) fn open(directory: &Path, boot: &str) -> Result<Self> {
        let path = directory.join(LEASES_FILE);
        let mark_path = mark_path(directory);
        let mark = read_if_present(&mark_path)?.and_then(|text| JournalEnd::parse(&text));
        let same_boot = |recorded: &str| recorded == boot;
        let damaged = |why: String| {
            Error::new(
                Code::DamagedState,
                format!(
                    "the leases in {} are damaged: {why}. No address is given or freed until this is put right, since it might have an \
                     owner. Restore the file, or stop all pods of this node, remove {} and {}, and start them again",
                    path.display(),
                    path.display(),
                    mark_path.display()
                ),
            )
        };
        let Some(bytes) = read_if_present(&path)? else {
            if let Some(mark) = mark.as_ref().filter(|mark| same_boot(&mark.boot)) {
                return Err(damaged(format!("the file is missing, {} bytes were in it", mark.length)));
            }
            return Self::start(path, mark_path, boot, mark.map_or(0, |mark| mark.generation));
        };
        let length_at_mark = mark.as_ref().map(|mark| mark.length);
        let (state, chain_at_mark, damage) = replay(&bytes, length_at_mark);
        let rebooted = match &mark {
            Some(mark) => !same_boot(&mark.boot),
            None => damage.is_none() && !same_boot(&state.boot),
        };
        if rebooted {
            if let Some(damage) = damage {
                eprintln!(
                    "edge-cni: {} was damaged before the last reboot ({damage}); its leases ended with the reboot, so a new file is begun",
                    path.display()
                );
            }
            let generation = mark.map_or(0, |mark| mark.generation).max(state.generation);
            return Self::start(path, mark_path, boot, generation);
        }
        let describe = |damage: &Option<Damage>| {
            damage.as_ref().map_or_else(|| "it ends early".into(), |damage| damage.to_string())
        };
        match &mark {
            Some(mark) if mark.generation == state.generation => {
                if state.length < mark.length {
                    return Err(damaged(format!(
                        "{} of {} bytes can be read, {}",
                        state.length,
                        mark.length,
                        describe(&damage)
                    )));
                }
                if chain_at_mark != Some(mark.chain) {
                    return Err(damaged(format!("its first {} bytes are not those that were written", mark.length)));
                }
            }
            Some(mark) if mark.generation > state.generation => {
                return Err(damaged(format!(
                    "it is of generation {}, but {} had been written; {}",
                    state.generation,
                    mark.generation,
                    describe(&damage)
                )));
            }
            // A process that rewrote it was killed before it could set the mark, or the mark was
            // removed.
            _ => {
                if let Some(damage) = damage {
                    return Err(damaged(damage.to_string()));
                }
            }
        }
        let (file, writable) = match OpenOptions::new().read(true).write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => (File::open(&path), false),
            other => (other, true),
        };
        let file = file.context("open", &path)?;
        if writable && state.length < bytes.len() as u64 {
            // A process was killed while it wrote the last line. Its lease was never reported.
            file.set_len(state.length).context("truncate", &path)?;
        }
        Ok(Self { path, mark_path, boot: boot.into(), file, writable, state })
    }

    /// As [`Self::open`], by a process that has read the journal before and released the lock
    /// since. It reads only what others wrote meanwhile, as long as nothing is out of the ordinary.
    pub(super) fn reopen(directory: &Path, boot: &str, known: JournalState) -> Result<Self> {
        match Self::continue_from(directory, boot, known)? {
            Some(journal) => Ok(journal),
            None => Self::open(directory, boot),
        }
    }

    /// `None` if the whole journal must be read.
    fn continue_from(directory: &Path, boot: &str, known: JournalState) -> Result<Option<Self>> {
        let (path, mark_path) = (directory.join(LEASES_FILE), mark_path(directory));
        let mark = read_if_present(&mark_path)?.and_then(|text| JournalEnd::parse(&text));
        let follows =
            |mark: &JournalEnd| mark.boot == boot && mark.generation == known.generation && mark.length >= known.length;
        let Some(mark) = mark.filter(follows) else { return Ok(None) };
        let Ok(file) = OpenOptions::new().read(true).write(true).open(&path) else { return Ok(None) };
        let size = file.metadata().context("examine", &path)?.len();
        let Some(length) = size.checked_sub(known.length) else { return Ok(None) };
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut bytes, known.length).context("read", &path)?;
        let chain = if mark.length == known.length { Some(known.chain) } else { None };
        let (state, found, damage) = replay_from(known, &bytes, Some(mark.length));
        let ordinary = damage.is_none() && state.length == size && chain.or(found) == Some(mark.chain);
        Ok(ordinary.then(|| Self { path, mark_path, boot: boot.into(), file, writable: true, state }))
    }

    /// What [`Self::reopen`] goes on from.
    pub(super) fn into_state(self) -> JournalState {
        self.state
    }

    /// Makes an empty journal, the first of this boot.
    fn start(path: PathBuf, mark_path: PathBuf, boot: &str, generation: u64) -> Result<Self> {
        let state = JournalState { generation, boot: boot.into(), ..JournalState::default() };
        let (file, state) = rewrite(&path, boot, state)?;
        let writable = true;
        let journal = Self { path, mark_path, boot: boot.into(), file, writable, state };
        // The first mark of a boot is made durable: it says in which boot the leases hold.
        journal.write_mark().and_then(|mark| mark.sync_all()).context("write", &journal.mark_path)?;
        Ok(journal)
    }

    /// Fails on a read-only disk, since no lease can be written there.
    fn require_writable(&self) -> Result<()> {
        if self.writable { Ok(()) } else { Err(Error::io("write", &self.path, "the file system is read-only")) }
    }

    /// Fails if no lease can be entered: on a read-only disk, and on a full one. Reserves the room
    /// for the next line, without changing the file's content.
    pub(super) fn require_room(&self) -> Result<()> {
        self.require_writable()?;
        match rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, self.state.length, ROOM) {
            // This file system cannot say.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(error) => Err(Error::io("write", &self.path, error)),
        }
    }

    pub(super) fn leases(&self) -> &Leases {
        &self.state.leases
    }

    /// Enters a lease.
    pub(super) fn enter_lease(&mut self, attachment: &Attachment, lease: Lease) -> Result<()> {
        let key = key_of(attachment);
        let lease = lease_ref(&key, &lease);
        let entry = entry_of(lease);
        let refused = |why| Error::new(Code::AlreadyAttached, format!("{why}; run DEL first"));
        self.state.leases.check(lease).map_err(refused)?;
        self.append(&entry)?;
        self.state.leases.insert(lease).map_err(refused)
    }

    /// Ends a lease and returns it; `None` if there is none. `now` is in seconds since the boot.
    pub(super) fn end_lease(&mut self, attachment: &Attachment, now: u64) -> Result<Option<Lease>> {
        if self.state.leases.get(attachment).is_none() {
            return Ok(None);
        }
        self.append(&format!("- {} {} {now}", attachment.container, attachment.ifname))?;
        Ok(self.state.leases.remove(&key_of(attachment), now))
    }

    fn append(&mut self, entry: &str) -> Result<()> {
        self.require_writable()?;
        let (line, chain) = format_line(self.state.chain, entry);
        if let Err(error) = self.file.write_all_at(line.as_bytes(), self.state.length) {
            // The disk may be full. What got written of the line must not stay.
            let _ = self.file.set_len(self.state.length);
            return Err(Error::io("write", &self.path, error));
        }
        self.state.length += line.len() as u64;
        self.state.chain = chain;
        self.state.lines += 1;
        // A mark that lags behind is harmless: lines after it are read, too.
        let _ = self.write_mark();
        Ok(())
    }

    fn write_mark(&self) -> io::Result<File> {
        let JournalState { generation, length, chain, .. } = self.state;
        let mark = JournalEnd { generation, length, chain, boot: self.boot.clone() };
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&self.mark_path)?;
        file.write_all_at(mark.to_string().as_bytes(), 0)?;
        Ok(file)
    }

    /// Rewrites the journal if most of its lines are history. Returns the file, which the caller
    /// must make durable before it reports anything, after it has released the lock.
    pub(super) fn finish(mut self) -> File {
        let needed = self.state.leases.count() + 2;
        // A full disk may have no room for another file. What was appended is in the old one.
        if self.state.lines > 2 * needed + REWRITE_MARGIN
            && let Ok((file, state)) = rewrite(&self.path, &self.boot, self.state.clone())
        {
            self.file = file;
            self.state = state;
            let _ = self.write_mark();
        }
        self.file
    }
}

/// Replaces the journal by one that holds the leases of `state` and no history.
fn rewrite(path: &Path, boot: &str, state: JournalState) -> Result<(File, JournalState)> {
    let mut next = JournalState { generation: state.generation + 1, boot: boot.into(), ..JournalState::default() };
    let mut text = String::new();
    let mut push = |entry: &str| {
        let (line, chain) = format_line(next.chain, entry);
        text += &line;
        next.chain = chain;
        next.lines += 1;
    };
    push(&format!("{MAGIC} {} {boot}", next.generation));
    let mut freed = state.leases.freed();
    freed.drain(..freed.len().saturating_sub(MAX_FREED));
    if !freed.is_empty() {
        push(&freed.iter().fold("~".to_owned(), |entry, (address, at)| format!("{entry} {address}={at}")));
    }
    for (attachment, lease) in state.leases.iter() {
        push(&entry_of(lease_ref(&key_of(&attachment), &lease)));
    }
    next.length = text.len() as u64;
    next.leases = state.leases;
    let file = replace_file(path, text.as_bytes(), 0o600).context("replace", path)?;
    Ok((file, next))
}

fn lease_ref<'a>(attachment: &'a str, lease: &'a Lease) -> LeaseRef<'a> {
    let Lease { addresses, network, pod, mac } = lease;
    LeaseRef { attachment, network, pod: pod.as_deref(), addresses, mac: *mac }
}

/// The line, without its checksum, with which a lease begins.
fn entry_of(lease: LeaseRef<'_>) -> String {
    let LeaseRef { attachment, addresses, network, pod, mac } = lease;
    let pod = pod.unwrap_or("-");
    let link_local = mac.map(|mac| IpAddr::V6(mac::link_local(mac)));
    addresses
        .iter()
        .chain(&link_local)
        .fold(format!("+ {attachment} {network} {pod}"), |entry, address| format!("{entry} {address}"))
}

/// Reads lines until the end or the first damaged one. Also returns the checksum at byte `stop`, if
/// a line ends there.
fn replay(bytes: &[u8], stop: Option<u64>) -> (JournalState, Option<u32>, Option<Damage>) {
    let mut state = JournalState::default();
    state.leases.reserve(bytes.len() / USUAL_LINE);
    let (state, chain_at_stop, damage) = replay_from(state, bytes, stop);
    let empty = (state.lines == 0).then(|| Damage { line: 1, why: "the file is empty".into() });
    (state, chain_at_stop, damage.or(empty))
}

/// As [`replay`], for lines that follow those of `state`.
fn replay_from(
    mut state: JournalState,
    bytes: &[u8],
    stop: Option<u64>,
) -> (JournalState, Option<u32>, Option<Damage>) {
    let mut chain_at_stop = None;
    for raw in bytes.split_inclusive(|byte| *byte == b'\n') {
        let number = state.lines + 1;
        if let Err(why) = read_line(&mut state, raw, number == 1) {
            return (state, chain_at_stop, Some(Damage { line: number, why }));
        }
        state.length += raw.len() as u64;
        state.lines = number;
        if stop == Some(state.length) {
            chain_at_stop = Some(state.chain);
        }
    }
    (state, chain_at_stop, None)
}

fn read_line(state: &mut JournalState, raw: &[u8], first: bool) -> Result<(), String> {
    let text = raw.strip_suffix(b"\n").ok_or("the line is cut off")?;
    let text = std::str::from_utf8(text).map_err(|_| "the line is not text")?;
    let (sum, entry) = text.split_once(' ').ok_or("the line has no checksum")?;
    let sum = u32::from_str_radix(sum, 16).map_err(|_| "the line has no checksum")?;
    let chain = crc32(state.chain, entry.as_bytes());
    if sum != chain {
        return Err(format!("the checksum is {sum:08x}, expected {chain:08x}"));
    }
    apply_entry(state, entry, first).ok_or_else(|| format!("the entry {entry:?} makes no sense"))??;
    state.chain = chain;
    Ok(())
}

/// Applies one entry. `None` if it does not have the form of an entry.
fn apply_entry(state: &mut JournalState, entry: &str, first: bool) -> Option<Result<(), String>> {
    if first {
        let mut words = entry.strip_prefix(MAGIC)?.split_ascii_whitespace();
        state.generation = words.next()?.parse().ok()?;
        state.boot = words.next()?.into();
        return Some(Ok(()));
    }
    let mut words = entry.split(' ');
    match words.next()? {
        "+" => {
            let attachment = attachment_in(entry, words.next()?, words.next()?)?;
            let network = words.next()?;
            let pod = Some(words.next()?).filter(|pod| *pod != "-");
            let mut addresses = words.map(|word| word.parse().ok()).collect::<Option<Vec<IpAddr>>>()?;
            let mac = addresses.iter().find_map(mac_of);
            addresses.retain(|address| mac_of(address).is_none());
            Some(state.leases.insert(LeaseRef { attachment, network, pod, addresses: &addresses, mac }))
        }
        "-" => {
            let attachment = attachment_in(entry, words.next()?, words.next()?)?;
            let at = words.next()?.parse().ok()?;
            let ended = state.leases.remove(attachment, at);
            Some(ended.map(drop).ok_or_else(|| format!("{attachment} ends a lease that it does not have")))
        }
        "~" => {
            for word in words {
                let (address, at) = word.split_once('=')?;
                state.leases.record_freed(address.parse().ok()?, at.parse().ok()?);
            }
            Some(Ok(()))
        }
        _ => None,
    }
}

/// Container and interface in an entry, after its first two characters.
fn attachment_in<'a>(entry: &'a str, container: &str, ifname: &str) -> Option<&'a str> {
    entry.get(2..2 + container.len() + 1 + ifname.len())
}

/// The MAC address that a link-local address among the addresses of a lease stands for.
fn mac_of(address: &IpAddr) -> Option<Mac> {
    match address {
        IpAddr::V6(address) => mac::of_link_local(*address),
        IpAddr::V4(_) => None,
    }
}

/// The leases in the journal below `directory`, without the lock and without changing anything.
/// `None` for a damaged journal, or one of another boot.
pub(super) fn read(directory: &Path, boot: &str) -> Result<Vec<(Attachment, Lease)>> {
    let Some(bytes) = read_if_present(&directory.join(LEASES_FILE))? else { return Ok(Vec::new()) };
    let (state, ..) = replay(&bytes, None);
    if state.boot != boot {
        return Ok(Vec::new());
    }
    Ok(state.leases.iter().collect())
}

fn format_line(chain: u32, entry: &str) -> (String, u32) {
    let chain = crc32(chain, entry.as_bytes());
    (format!("{chain:08x} {entry}\n"), chain)
}

fn read_if_present(path: &Path) -> Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(mut file) => file.read_to_end(&mut bytes).map(|_| Some(bytes)).context("read", path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("open", path, error)),
    }
}

fn mark_path(directory: &Path) -> PathBuf {
    directory.join(format!("{}.mark", LEASES_FILE))
}

/// Removes what a process left that was killed while it replaced the journal.
pub(super) fn remove_leftovers(directory: &Path) {
    let _ = remove_temporary(&directory.join(LEASES_FILE));
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: {}", self.line, self.why)
    }
}

impl std::fmt::Display for JournalEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Of a fixed width, so that a new mark overwrites the old one completely.
        writeln!(f, "{:020} {:020} {:08x} {}", self.generation, self.length, self.chain, self.boot)
    }
}

impl JournalEnd {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?.split(' ');
        let mark = Self {
            generation: words.next()?.parse().ok()?,
            length: words.next()?.parse().ok()?,
            chain: u32::from_str_radix(words.next()?, 16).ok()?,
            boot: words.next()?.into(),
        };
        words.next().is_none().then_some(mark)
    }
}

/// CRC-32 (ISO 3309, as in gzip) of `bytes`, continued from `chain`.
fn crc32(chain: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(chain);
    hasher.update(bytes);
    hasher.finalize()
}

#[cfg(test)]
mod tests;

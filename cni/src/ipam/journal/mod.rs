//! Leases on disk: an append-only journal of lines. The checksum of each line also covers the lines
//! before it.
//!
//! ```text
//! 5d0c1e7a edge-cni-leases 1 GENERATION BOOT-ID
//! 91ab03ff ~ ADDRESS=SECONDS ...                         freed addresses, the longest ago first
//! 0e77c210 + CONTAINER IFNAME NETWORK POD ADDRESS ...    a lease begins ("-" for an unknown pod)
//! 3f5521b9 - CONTAINER IFNAME SECONDS                    it ends, SECONDS after the boot
//! ```
//!
//! If the runtime requested the pod's MAC address, the addresses include the link-local address
//! that is derived from it. Releases that do not support requested MAC addresses treat it as a
//! leased address.
//!
//! A line is written under the lock of the state directory. `state_dir` makes it durable
//! (`fdatasync`) after the lock is released, so that concurrent ADDs share one write to the disk.
//! No lease is reported before it is durable. A second file is the mark. It contains the
//! generation, length and checksum of the journal after the last line. The mark is only compared
//! within one boot, so it need not be durable. If the journal is shorter than its mark of the same
//! boot, another program has truncated it, and leases are missing. That is an error, and no new
//! journal is started. An unreadable line after the mark was written by a process that was killed
//! while it wrote the line. The lease in this line was never reported. After a reboot no earlier
//! pod exists, so the leases are void, and a corrupt journal is replaced.
//!
//! [`lines`] reads and writes the lines. [`index`] finds a lease without reading all lines. If the
//! index is not valid for the current state of the journal, the whole journal is read.

mod index;
mod lines;

use std::cell::OnceCell;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use edge_types::IpNetwork;
use edge_types::agent_protocol::Stock;
use edge_types::api::Family;
use edge_types::durable::{remove_temporary, replace_file};
use edge_types::shared_files::LEASES_FILE;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use self::index::Index;
use self::lines::{Damage, JournalEnd, JournalState, LeaseLine, MAGIC, entry_of, format_line, lease_ref, replay};
use super::leases::{Lease, Leases, key_of};
use super::line::Line;
use super::used_addresses::UsedAddresses;
use crate::error::{Code, Context, Error, Result};
use crate::request::Attachment;
use crate::reserved::Reserved;
use crate::segment::PodAddress;

/// Maximum number of freed addresses that a rewritten journal keeps.
const MAX_FREED: usize = 4096;

/// Maximum space that the next line needs, in bytes.
const ROOM: u64 = 1024;

/// A journal is rewritten when its number of lines is larger than the sum of this number and twice
/// the number of lines of a rewritten journal.
const REWRITE_MARGIN: usize = 256;

/// The open journal. The process that has this value holds the lock of the state directory.
#[derive(Debug)]
pub(super) struct Journal {
    directory: PathBuf,
    path: PathBuf,
    mark_path: PathBuf,
    file: File,
    /// Whether the journal can be written; `false` on a read-only disk.
    writable: bool,
    end: JournalEnd,
    lines: u64,
    /// The index, if it is valid for the current state of the journal.
    index: Option<Index>,
    /// All leases; empty until they are read.
    whole: OnceCell<Leases>,
}

impl Journal {
    /// Returns whether a journal or its mark exists, even if it is corrupt. Also returns `true` if
    /// the disk cannot be read, so that the caller reports that error when it opens the journal.
    pub(super) fn exists(directory: &Path) -> bool {
        let is_there = |path: &Path| path.try_exists().unwrap_or(true);
        is_there(&directory.join(LEASES_FILE)) || is_there(&mark_path(directory))
    }

    /// Opens the journal below `directory`, or creates it. `boot` is the kernel's boot ID. Reads
    /// all leases only if the index is not valid.
    pub(super) fn open(directory: &Path, boot: &str) -> Result<Self> {
        let (path, mark_path) = (directory.join(LEASES_FILE), mark_path(directory));
        let mark = read_if_present(&mark_path)?.and_then(|text| JournalEnd::parse(&text));
        match Self::open_by_index(directory, boot, mark.as_ref()) {
            Some(journal) => Ok(journal),
            None => Self::open_whole(directory, path, mark_path, boot, mark),
        }
    }

    /// Opens the journal with its index. `None` if the whole journal must be read.
    fn open_by_index(directory: &Path, boot: &str, mark: Option<&JournalEnd>) -> Option<Self> {
        let end = mark.filter(|mark| mark.boot == boot)?.clone();
        let (path, mark_path) = (directory.join(LEASES_FILE), mark_path(directory));
        let file = OpenOptions::new().read(true).write(true).open(&path).ok()?;
        let index = Index::open(directory, &file, &end)?;
        let (directory, lines) = (directory.to_owned(), index.lines());
        let (index, whole) = (Some(index), OnceCell::new());
        Some(Self { directory, path, mark_path, file, writable: true, end, lines, index, whole })
    }

    fn open_whole(
        directory: &Path,
        path: PathBuf,
        mark_path: PathBuf,
        boot: &str,
        mark: Option<JournalEnd>,
    ) -> Result<Self> {
        let same_boot = |recorded: &str| recorded == boot;
        let damaged = |why: String| damaged(&path, &mark_path, &why);
        let Some(bytes) = read_if_present(&path)? else {
            if let Some(mark) = mark.as_ref().filter(|mark| same_boot(&mark.boot)) {
                return Err(damaged(format!("the file is missing, {} bytes were in it", mark.length)));
            }
            return Self::start(directory, path, mark_path, boot, mark.map_or(0, |mark| mark.generation));
        };
        let length_at_mark = mark.as_ref().map(|mark| mark.length);
        let (state, chain_at_mark, damage) = replay(&bytes, length_at_mark);
        let rebooted = match &mark {
            Some(mark) => !same_boot(&mark.boot),
            // The checksum of the first line covers the boot. Lines after it may be torn: they
            // ended with that boot, too.
            None => state.lines > 0 && !same_boot(&state.end.boot),
        };
        if rebooted {
            if let Some(damage) = damage {
                eprintln!(
                    "edge-cni: {} was damaged before the last reboot ({damage}); its leases ended with the reboot, so a new file is begun",
                    path.display()
                );
            }
            let generation = mark.map_or(0, |mark| mark.generation).max(state.end.generation);
            return Self::start(directory, path, mark_path, boot, generation);
        }
        let describe = |damage: &Option<Damage>| {
            damage.as_ref().map_or_else(|| "it ends early".into(), |damage| damage.to_string())
        };
        match &mark {
            Some(mark) if mark.generation == state.end.generation => {
                if state.end.length < mark.length {
                    return Err(damaged(format!(
                        "{} of {} bytes can be read, {}",
                        state.end.length,
                        mark.length,
                        describe(&damage)
                    )));
                }
                if chain_at_mark != Some(mark.chain) {
                    return Err(damaged(format!("its first {} bytes are not those that were written", mark.length)));
                }
            }
            Some(mark) if mark.generation > state.end.generation => {
                return Err(damaged(format!(
                    "it is of generation {}, but {} had been written; {}",
                    state.end.generation,
                    mark.generation,
                    describe(&damage)
                )));
            }
            // A process that rewrote the journal was killed before it could write the mark, or the
            // mark was removed.
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
        if writable && state.end.length < bytes.len() as u64 {
            // A process was killed while it wrote the last line. The lease in that line was never
            // reported.
            file.set_len(state.end.length).context("truncate", &path)?;
        }
        let JournalState { leases, end, lines } = state;
        let (directory, whole) = (directory.to_owned(), OnceCell::new());
        let mut journal = Self { directory, path, mark_path, file, writable, end, lines, index: None, whole };
        if writable {
            journal.index = Index::make(&journal.directory, &journal.file, &journal.end, lines, &leases);
        }
        // The mark is written again, since an index is valid only together with the mark.
        if journal.index.is_some() && mark.as_ref() != Some(&journal.end) {
            let _ = journal.write_mark();
        }
        journal.whole = OnceCell::from(leases);
        Ok(journal)
    }

    /// Creates an empty journal, which is the first one of this boot.
    fn start(directory: &Path, path: PathBuf, mark_path: PathBuf, boot: &str, generation: u64) -> Result<Self> {
        let leases = Leases::default();
        let (file, end, lines) = rewrite(&path, boot, &leases, generation)?;
        let (directory, whole) = (directory.to_owned(), OnceCell::from(leases));
        let journal = Self { directory, path, mark_path, file, writable: true, end, lines, index: None, whole };
        // The first mark of a boot is made durable, since it identifies the boot in which the
        // leases are valid.
        journal.write_mark().and_then(|mark| mark.sync_all()).context("write", &journal.mark_path)?;
        Ok(journal)
    }

    /// Fails on a read-only disk, since no lease can be written there.
    fn require_writable(&self) -> Result<()> {
        if self.writable { Ok(()) } else { Err(Error::io("write", &self.path, "the file system is read-only")) }
    }

    /// Fails if no lease can be entered, because the disk is read-only or full. Reserves space for
    /// the next line, without changing the file's content. Writes nothing if the space is reserved
    /// already: a runtime may ask for STATUS every few seconds, and each write wears out flash.
    pub(super) fn require_room(&mut self) -> Result<()> {
        self.require_writable()?;
        // stat(2) counts blocks of 512 bytes.
        if self.file.metadata().is_ok_and(|file| file.blocks() * 512 >= self.end.length + ROOM) {
            return Ok(());
        }
        let reserved = rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, self.end.length, ROOM);
        // The index must be updated, because reserving space has changed the file's time of change.
        self.update_index(|index, journal, _| index.restamp(journal));
        match reserved {
            // Some file systems do not support the reservation.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(error) => Err(Error::io("write", &self.path, error)),
        }
    }

    /// Returns the lease of an attachment.
    pub(super) fn get(&self, attachment: &Attachment) -> Result<Option<Lease>> {
        Ok(self.find(attachment)?.map(|(_, lease)| lease))
    }

    /// Returns all leases. Reads the whole journal if it has not been read yet.
    pub(super) fn whole(&self) -> Result<&Leases> {
        if let Some(leases) = self.whole.get() {
            return Ok(leases);
        }
        let mut bytes = vec![0; usize::try_from(self.end.length).unwrap_or(usize::MAX)];
        self.file.read_exact_at(&mut bytes, 0).context("read", &self.path)?;
        let (state, _, damage) = replay(&bytes, None);
        if damage.is_some() || state.end != self.end {
            let why = damage.map_or_else(|| "it is not what was written".into(), |damage| damage.to_string());
            return Err(damaged(&self.path, &self.mark_path, &why));
        }
        Ok(self.whole.get_or_init(|| state.leases))
    }

    /// Returns the owner of an address.
    pub(super) fn owner(&self, address: IpAddr) -> Result<Option<Attachment>> {
        if self.used()?.is_leased(address) { Ok(self.whole()?.owner(address)) } else { Ok(None) }
    }

    /// Returns the numbers of free and leased addresses of these segments, by family.
    pub(super) fn stock(&self, segments: &[IpNetwork], reserved: &Reserved) -> Result<Vec<Stock>> {
        Ok(self.used()?.stock(segments, reserved))
    }

    /// Returns the next address of a family to lease ([`UsedAddresses::next_address`]).
    pub(super) fn next_address(
        &self,
        segments: &[IpNetwork],
        reserved: &Reserved,
        family: Family,
        now: u64,
    ) -> Result<Option<PodAddress>> {
        self.used()?.next_address(segments, reserved, family, now, |chosen| {
            if let Some(index) = self.index.as_ref().filter(|_| self.whole.get().is_none())
                && let Ok(found) = index.freed_longest_ago(chosen)
            {
                return Ok(found);
            }
            Ok(self.whole()?.freed_longest_ago(chosen))
        })
    }

    /// Enters a lease.
    pub(super) fn enter_lease(&mut self, attachment: &Attachment, lease: &Lease) -> Result<()> {
        let key = key_of(attachment);
        let lease = lease_ref(&key, lease);
        let used = self.used()?;
        if self.find(attachment)?.is_some() || lease.addresses.iter().any(|address| used.is_leased(*address)) {
            // All leases are read, so that the message can name the conflicting lease.
            let refused = |why| Error::new(Code::AlreadyAttached, format!("{why}; run DEL first"));
            self.whole()?.check(lease).map_err(refused)?;
            self.index = None;
        }
        let line = self.append(&entry_of(lease))?;
        if let Some(leases) = self.whole.get_mut() {
            leases.insert(lease, line).map_err(|why| damaged(&self.path, &self.mark_path, &why))?;
        }
        self.update_index(|index, journal, end| index.enter_lease(&key, line, lease.addresses, journal, end));
        Ok(())
    }

    /// Ends a lease and returns it; `None` if there is no lease. `now` is in seconds since the
    /// boot.
    pub(super) fn end_lease(&mut self, attachment: &Attachment, now: u64) -> Result<Option<Lease>> {
        let Some((line, lease)) = self.find(attachment)? else { return Ok(None) };
        self.append(&format!("- {} {} {now}", attachment.container, attachment.ifname))?;
        let key = key_of(attachment);
        if let Some(leases) = self.whole.get_mut() {
            leases.remove(&key, now);
        }
        self.update_index(|index, journal, end| index.end_lease(&key, line, &lease.addresses, now, journal, end));
        Ok(Some(lease))
    }

    /// Finds the lease of an attachment, and the line that begins it.
    fn find(&self, attachment: &Attachment) -> Result<Option<(Line, Lease)>> {
        if let Some(index) = self.index.as_ref().filter(|_| self.whole.get().is_none())
            && let Ok(found) = self.find_by_index(index, &key_of(attachment))
        {
            return Ok(found);
        }
        // If the lookup through the index fails, reading the whole journal returns an error that
        // describes the defect.
        let leases = self.whole()?;
        Ok(leases.line(attachment).zip(leases.get(attachment)))
    }

    fn find_by_index(&self, index: &Index, attachment: &str) -> Result<Option<(Line, Lease)>, String> {
        let text = |error: io::Error| error.to_string();
        for line in index.candidates(attachment).map_err(text)? {
            let mut bytes = vec![0; line.length as usize];
            self.file.read_exact_at(&mut bytes, line.offset).map_err(text)?;
            let found = LeaseLine::read(&bytes, line.before)?;
            if found.attachment == attachment {
                return Ok(Some((line, found.into_lease())));
            }
        }
        Ok(None)
    }

    fn used(&self) -> Result<&UsedAddresses> {
        match &self.index {
            Some(index) if self.whole.get().is_none() => Ok(index.used()),
            _ => Ok(self.whole()?.used()),
        }
    }

    /// Updates the index. If that fails, the index is no longer valid, and the next process creates
    /// it again.
    fn update_index(&mut self, update: impl FnOnce(&mut Index, &File, &JournalEnd) -> io::Result<()>) {
        let Some(mut index) = self.index.take() else { return };
        if update(&mut index, &self.file, &self.end).is_ok() {
            self.index = Some(index);
        }
    }

    /// Appends an entry, and returns the position of its line.
    fn append(&mut self, entry: &str) -> Result<Line> {
        self.require_writable()?;
        let (text, chain) = format_line(self.end.chain, entry);
        if let Err(error) = self.file.write_all_at(text.as_bytes(), self.end.length) {
            // The disk may be full. A partly written line must not stay.
            let _ = self.file.set_len(self.end.length);
            return Err(Error::io("write", &self.path, error));
        }
        let line = Line { offset: self.end.length, length: text.len() as u32, before: self.end.chain };
        self.end.length += text.len() as u64;
        self.end.chain = chain;
        self.lines += 1;
        // An error is ignored, because an outdated mark is harmless: the lines after it are read as
        // well.
        let _ = self.write_mark();
        Ok(line)
    }

    fn write_mark(&self) -> io::Result<File> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&self.mark_path)?;
        file.write_all_at(self.end.to_string().as_bytes(), 0)?;
        Ok(file)
    }

    /// Rewrites the journal if most of its lines are obsolete. Returns the file. After it has
    /// released the lock, the caller must make the file durable before it reports anything.
    pub(super) fn finish(mut self) -> File {
        let Some(count) = self.whole.get().map(Leases::count).or(self.index.as_ref().map(Index::count)) else {
            return self.file;
        };
        let needed = count + 2;
        // If this fails, for example on a full disk, the old file is used, which contains the
        // appended lines.
        if self.lines > (2 * needed + REWRITE_MARGIN) as u64
            && let Ok(leases) = self.whole()
            && let Ok((file, end, lines)) = rewrite(&self.path, &self.end.boot, leases, self.end.generation)
        {
            (self.file, self.end, self.lines) = (file, end, lines);
            let _ = self.write_mark();
        }
        self.file
    }
}

/// Replaces the journal of generation `before` with one that contains only these leases and the
/// freed addresses. Returns the file, its end, and its number of lines.
fn rewrite(path: &Path, boot: &str, leases: &Leases, before: u64) -> Result<(File, JournalEnd, u64)> {
    let mut end = JournalEnd { generation: before + 1, boot: boot.into(), ..JournalEnd::default() };
    let (mut text, mut lines) = (String::new(), 0);
    let mut push = |entry: &str| {
        let (line, chain) = format_line(end.chain, entry);
        text += &line;
        end.chain = chain;
        lines += 1;
    };
    push(&format!("{MAGIC} {} {boot}", before + 1));
    let mut freed = leases.freed();
    freed.drain(..freed.len().saturating_sub(MAX_FREED));
    if !freed.is_empty() {
        push(&freed.iter().fold("~".to_owned(), |entry, (address, at)| format!("{entry} {address}={at}")));
    }
    for (attachment, lease) in leases.iter() {
        push(&entry_of(lease_ref(&key_of(&attachment), &lease)));
    }
    end.length = text.len() as u64;
    let file = replace_file(path, text.as_bytes(), 0o600).context("replace", path)?;
    Ok((file, end, lines))
}

fn damaged(path: &Path, mark_path: &Path, why: &str) -> Error {
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
}

/// Reads the leases in the journal below `directory`, without the lock and without changes. Returns
/// none if the journal is from another boot, or if its first line is corrupt; otherwise returns the
/// leases before the first corrupt line.
pub(super) fn read(directory: &Path, boot: &str) -> Result<Vec<(Attachment, Lease)>> {
    let Some(bytes) = read_if_present(&directory.join(LEASES_FILE))? else { return Ok(Vec::new()) };
    let (state, ..) = replay(&bytes, None);
    if state.end.boot != boot {
        return Ok(Vec::new());
    }
    Ok(state.leases.iter().collect())
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

/// Removes the temporary files of a process that was killed while it replaced the journal.
pub(super) fn remove_leftovers(directory: &Path) {
    let _ = remove_temporary(&directory.join(LEASES_FILE));
}

#[cfg(test)]
mod tests;

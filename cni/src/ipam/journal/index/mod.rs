//! An index of the journal. With it, a call finds its lease and the next free address without
//! reading all leases.
//!
//! Only the journal is authoritative. The index is derived from it and can be removed at any time.
//! It is valid for one state of the journal, which the head of the index identifies: generation,
//! length, checksum, boot, and the journal's inode and time of change. The head is written last
//! after each line of the journal. The head therefore does not match if a killed process left the
//! index half changed, or if an earlier release or another program has changed the journal since.
//! In that case the whole journal is read, and the index is created again. The index need not be
//! durable, since it is valid for only one boot.
//!
//! All numbers are little-endian:
//!
//! ```text
//! head       magic, checksum of the rest of head and blocks, numbers, boot ID
//! blocks     of 256 addresses, with bits for leased and freed ones
//! buckets    positions of leases in the journal, by the hash of container and interface
//! freed      addresses with the times at which they were freed, the longest ago first
//! ```

mod layout;

use std::fs::{File, OpenOptions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use edge_types::shared_files::LEASES_FILE;

use self::layout::{
    BLOCK_SIZE, BOOT_SIZE, BUCKET_ROOM, BUCKET_SIZE, Bucket, CHECKSUM_AT, FREED_SIZE, HEAD_SIZE, Head, NUMBERS_AT,
    Position, Stamp, block_bytes, freed_bytes, leased_again_bytes, parse_block, parse_freed, read_u32,
};
use super::lines::JournalEnd;
use crate::ipam::checksum::crc32;
use crate::ipam::leases::{Leases, hash_of};
use crate::ipam::line::Line;
use crate::ipam::used_addresses::{FreedAddress, UsedAddresses};

/// Minimum size of a journal with an index, in bytes. A smaller journal is read completely, which
/// is as fast.
pub(super) const INDEX_FROM: u64 = 8 << 10;

/// Maximum number of blocks in an index. A larger index is not created. Segments are filled from
/// their beginning, so a block has many leases.
const MAX_BLOCKS: usize = 1024;
/// Minimum number of blocks for which there is room. With this number, the file has more than
/// [`FIRST_READ`] bytes.
const MIN_BLOCKS: usize = 64;

/// Number of bytes that the first read fetches. On most nodes, they include all blocks.
const FIRST_READ: usize = 4096;

/// Number of leases for each bucket when the index is created, and the maximum before it is created
/// again.
const FILL: usize = 5;
const MOST_FILL: usize = 9;

/// Number of freed addresses that are read at once.
const FREED_AT_ONCE: u64 = 128;

/// The open index of a journal in its current state.
#[derive(Debug)]
pub(super) struct Index {
    file: File,
    head: Head,
    used: UsedAddresses,
}

impl Index {
    /// Opens the index if it is valid for the current state of the journal.
    pub(super) fn open(directory: &Path, journal: &File, mark: &JournalEnd) -> Option<Self> {
        let (stamp, length) = stamp_of(journal).ok()?;
        let file = OpenOptions::new().read(true).write(true).open(index_path(directory)).ok()?;
        let mut bytes = vec![0; FIRST_READ];
        file.read_exact_at(&mut bytes, 0).ok()?;
        let (head, blocks) = Head::parse(&bytes)?;
        if head.journal != *mark || length != mark.length || head.stamp != stamp {
            return None;
        }
        if blocks > MAX_BLOCKS || blocks as u64 > head.block_room {
            return None;
        }
        let needed = HEAD_SIZE + blocks * BLOCK_SIZE;
        bytes.resize(needed, 0);
        if needed > FIRST_READ {
            file.read_exact_at(bytes.get_mut(FIRST_READ..)?, FIRST_READ as u64).ok()?;
        }
        if read_u32(&bytes, CHECKSUM_AT)? != crc32(0, bytes.get(NUMBERS_AT..)?) {
            return None;
        }
        let mut used = UsedAddresses::default();
        for record in bytes.get(HEAD_SIZE..)?.chunks_exact(BLOCK_SIZE) {
            let (first, block) = parse_block(record)?;
            used.insert_block(first, block);
        }
        Some(Self { file, head, used })
    }

    /// Creates the index of a journal from all its leases. Returns `None` if the journal is too
    /// small for an index, if it has more than [`MAX_BLOCKS`] blocks, or if the disk is full. In
    /// that case the next process also reads the whole journal.
    pub(super) fn make(
        directory: &Path,
        journal: &File,
        end: &JournalEnd,
        lines: u64,
        leases: &Leases,
    ) -> Option<Self> {
        let blocks = leases.used().blocks().len();
        if end.length < INDEX_FROM || blocks > MAX_BLOCKS || end.boot.len() > BOOT_SIZE {
            return None;
        }
        let mut buckets = vec![Bucket::default(); (leases.count() / FILL).max(8)];
        for (attachment, line) in leases.lines() {
            let position = Position { hash: hash_of(attachment), line };
            let mut at = position.hash as usize % buckets.len();
            while buckets.get(at)?.positions.len() == BUCKET_ROOM {
                buckets.get_mut(at)?.overflowed = true;
                at = (at + 1) % buckets.len();
            }
            buckets.get_mut(at)?.positions.push(position);
        }
        let freed = leases.freed();
        let head = Head {
            journal: end.clone(),
            stamp: stamp_of(journal).ok()?.0,
            lines,
            leases: leases.count() as u64,
            block_room: (blocks * 2).max(MIN_BLOCKS) as u64,
            buckets: buckets.len() as u64,
            freed_first: 0,
            freed_end: freed.len() as u64,
        };
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).to_owned();
        let file = options.open(index_path(directory)).ok()?;
        let mut bytes: Vec<u8> = buckets.iter().flat_map(Bucket::bytes).collect();
        bytes.extend(freed.into_iter().flat_map(|(address, at)| freed_bytes(address, at)));
        file.write_all_at(&bytes, head.bucket_at(0)).ok()?;
        let index = Self { file, head, used: leases.used().clone() };
        index.write_head().ok()?;
        Some(index)
    }

    /// Returns the number of lines of the journal.
    pub(super) const fn lines(&self) -> u64 {
        self.head.lines
    }

    /// Returns the number of leases.
    pub(super) const fn count(&self) -> usize {
        self.head.leases as usize
    }

    /// Returns the leased and freed addresses.
    pub(super) const fn used(&self) -> &UsedAddresses {
        &self.used
    }

    /// Returns the lines that may begin a lease of this attachment, that is, the lines with the
    /// same hash.
    pub(super) fn candidates(&self, attachment: &str) -> io::Result<Vec<Line>> {
        let hash = hash_of(attachment);
        let mut found = Vec::new();
        self.visit(hash, |_, bucket| {
            found
                .extend(bucket.positions.iter().filter(|position| position.hash == hash).map(|position| position.line));
            !bucket.overflowed
        })?;
        Ok(found)
    }

    /// Updates the index after the line of a lease was appended to the journal.
    pub(super) fn enter_lease(
        &mut self,
        attachment: &str,
        line: Line,
        addresses: &[IpAddr],
        journal: &File,
        end: &JournalEnd,
    ) -> io::Result<()> {
        let position = Position { hash: hash_of(attachment), line };
        if self.head.leases >= self.head.buckets * MOST_FILL as u64 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut changed = Vec::new();
        self.visit(position.hash, |at, bucket| {
            let fits = bucket.positions.len() < BUCKET_ROOM;
            let mut bucket = bucket.clone();
            if fits {
                bucket.positions.push(position);
            } else {
                bucket.overflowed = true;
            }
            changed.push((at, bucket));
            fits
        })?;
        changed.iter().try_for_each(|(at, bucket)| self.write_bucket(*at, bucket))?;
        for address in addresses {
            if self.used.is_freed(*address) {
                self.remove_freed(*address)?;
            }
            self.used.set_leased(*address);
        }
        self.head.leases += 1;
        self.follow(journal, end)
    }

    /// Updates the index after the end of a lease was appended to the journal. `line` is the line
    /// that began the lease.
    pub(super) fn end_lease(
        &mut self,
        attachment: &str,
        line: Line,
        addresses: &[IpAddr],
        now: u64,
        journal: &File,
        end: &JournalEnd,
    ) -> io::Result<()> {
        let position = Position { hash: hash_of(attachment), line };
        let mut changed = None;
        self.visit(position.hash, |at, bucket| {
            let Some(index) = bucket.positions.iter().position(|other| *other == position) else {
                return !bucket.overflowed;
            };
            let mut bucket = bucket.clone();
            bucket.positions.swap_remove(index);
            changed = Some((at, bucket));
            true
        })?;
        let (at, bucket) = changed.ok_or(io::ErrorKind::InvalidData)?;
        self.write_bucket(at, &bucket)?;
        let freed: Vec<u8> = addresses.iter().flat_map(|address| freed_bytes(*address, now)).collect();
        self.file.write_all_at(&freed, self.head.freed_at(self.head.freed_end))?;
        self.head.freed_end += addresses.len() as u64;
        addresses.iter().for_each(|address| self.used.set_freed(*address));
        self.head.leases = self.head.leases.saturating_sub(1);
        self.follow(journal, end)
    }

    /// Updates the journal's time of change in the index.
    pub(super) fn restamp(&mut self, journal: &File) -> io::Result<()> {
        self.head.stamp = stamp_of(journal)?.0;
        self.write_head()
    }

    /// Returns the address that was freed longest ago, among those that `chosen` accepts.
    pub(super) fn freed_longest_ago(&self, chosen: &dyn Fn(IpAddr) -> bool) -> io::Result<Option<FreedAddress>> {
        let mut found = None;
        self.visit_freed(|order, address, at| {
            if self.used.is_freed(address) && chosen(address) {
                found = Some(FreedAddress { address, at, order });
            }
            found.is_none()
        })?;
        Ok(found)
    }

    /// Removes a freed address, because it is leased again.
    fn remove_freed(&mut self, address: IpAddr) -> io::Result<()> {
        let (mut place, mut is_first) = (None, true);
        self.visit_freed(|order, other, _| {
            if other == address {
                place = Some(order);
            } else {
                is_first = false;
            }
            place.is_none()
        })?;
        let place = place.ok_or(io::ErrorKind::InvalidData)?;
        if is_first {
            self.head.freed_first = place + 1;
        }
        self.file.write_all_at(&leased_again_bytes(), self.head.freed_at(place))
    }

    /// Visits freed addresses with their order and time, until `visit` returns `false`.
    fn visit_freed(&self, mut visit: impl FnMut(u64, IpAddr, u64) -> bool) -> io::Result<()> {
        let mut order = self.head.freed_first;
        while order < self.head.freed_end {
            let count = FREED_AT_ONCE.min(self.head.freed_end - order);
            let mut bytes = vec![0; count as usize * FREED_SIZE];
            self.file.read_exact_at(&mut bytes, self.head.freed_at(order))?;
            for record in bytes.chunks_exact(FREED_SIZE) {
                if let Some((address, at)) = parse_freed(record).ok_or(io::ErrorKind::InvalidData)?
                    && !visit(order, address, at)
                {
                    return Ok(());
                }
                order += 1;
            }
        }
        Ok(())
    }

    /// Visits the buckets that may contain a hash, until `visit` returns `true`. Returns an error
    /// if `visit` has returned `false` for all buckets.
    fn visit(&self, hash: u32, mut visit: impl FnMut(u64, &Bucket) -> bool) -> io::Result<()> {
        let first = u64::from(hash) % self.head.buckets.max(1);
        for distance in 0..self.head.buckets {
            let at = (first + distance) % self.head.buckets;
            let mut bytes = [0; BUCKET_SIZE];
            self.file.read_exact_at(&mut bytes, self.head.bucket_at(at))?;
            let bucket = Bucket::parse(&bytes).ok_or(io::ErrorKind::InvalidData)?;
            if visit(at, &bucket) {
                return Ok(());
            }
        }
        Err(io::ErrorKind::InvalidData.into())
    }

    fn write_bucket(&self, at: u64, bucket: &Bucket) -> io::Result<()> {
        self.file.write_all_at(&bucket.bytes(), self.head.bucket_at(at))
    }

    fn follow(&mut self, journal: &File, end: &JournalEnd) -> io::Result<()> {
        self.head.journal = end.clone();
        self.head.lines += 1;
        self.restamp(journal)
    }

    /// Writes the head and the blocks. After that, the index is valid for the current state of the
    /// journal.
    fn write_head(&self) -> io::Result<()> {
        let blocks = self.used.blocks();
        if blocks.len() as u64 > self.head.block_room {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut bytes = self.head.bytes(blocks.len());
        blocks.for_each(|(first, block)| bytes.extend(block_bytes(first, block)));
        let checksum = crc32(0, bytes.get(NUMBERS_AT..).unwrap_or_default());
        bytes.splice(CHECKSUM_AT..NUMBERS_AT, checksum.to_le_bytes());
        self.file.write_all_at(&bytes, 0)
    }
}

fn index_path(directory: &Path) -> PathBuf {
    directory.join(format!("{LEASES_FILE}.index"))
}

/// Reads the stamp of the journal. Also returns the length of the file.
fn stamp_of(journal: &File) -> io::Result<(Stamp, u64)> {
    let found = journal.metadata()?;
    Ok((Stamp { inode: found.ino(), seconds: found.ctime(), nanoseconds: found.ctime_nsec() }, found.len()))
}

#[cfg(test)]
mod tests;

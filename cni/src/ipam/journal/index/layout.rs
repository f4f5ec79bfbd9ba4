//! The encoding of the records in the index. Numbers are little-endian.

use std::net::{IpAddr, Ipv6Addr};

use crate::ipam::checksum::crc32;
use crate::ipam::journal::lines::JournalEnd;
use crate::ipam::line::Line;
use crate::ipam::used_addresses::Block;

/// Magic number. Its last character is the version of the layout. A release with another layout
/// creates its own index.
pub(super) const MAGIC: &[u8; 8] = b"ecniidx1";

const NUMBERS: usize = 13;
pub(super) const BOOT_SIZE: usize = 48;
pub(super) const CHECKSUM_AT: usize = MAGIC.len();
pub(super) const NUMBERS_AT: usize = CHECKSUM_AT + 4;
pub(super) const HEAD_SIZE: usize = NUMBERS_AT + 8 * NUMBERS + BOOT_SIZE;
pub(super) const BLOCK_SIZE: usize = 16 + 64;
pub(super) const FREED_SIZE: usize = 16 + 16;
const FREED_CHECKSUM_AT: usize = FREED_SIZE - 4;

pub(super) const BUCKET_SIZE: usize = 256;
const BUCKET_HEAD: usize = 8;
const POSITION_SIZE: usize = 20;
/// Number of leases that fit into a bucket.
pub(super) const BUCKET_ROOM: usize = 12;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) journal: JournalEnd,
    pub(super) stamp: Stamp,
    /// Number of lines of the journal.
    pub(super) lines: u64,
    pub(super) leases: u64,
    /// Number of blocks for which there is room.
    pub(super) block_room: u64,
    pub(super) buckets: u64,
    /// The sequence number of the first freed address that has not been leased again since then,
    /// and the sequence number of the next freed address.
    pub(super) freed_first: u64,
    pub(super) freed_end: u64,
}

/// Identifies the journal's file after its last change. Programs cannot set the time of change
/// (ctime).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) inode: u64,
    pub(super) seconds: i64,
    pub(super) nanoseconds: i64,
}

/// The position in the journal at which a lease begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) hash: u32,
    pub(super) line: Line,
}

/// The leases whose hashes select this bucket.
#[derive(Debug, Clone, Default)]
pub(super) struct Bucket {
    pub(super) positions: Vec<Position>,
    /// Whether the bucket was ever full. In that case, further leases are in the next bucket.
    pub(super) overflowed: bool,
}

impl Head {
    /// Encodes the head without the blocks, and with a checksum of 0.
    pub(super) fn bytes(&self, blocks: usize) -> Vec<u8> {
        let numbers: [u64; NUMBERS] = [
            blocks as u64,
            self.journal.generation,
            self.journal.length,
            self.journal.chain.into(),
            self.stamp.inode,
            self.stamp.seconds.cast_unsigned(),
            self.stamp.nanoseconds.cast_unsigned(),
            self.lines,
            self.leases,
            self.block_room,
            self.buckets,
            self.freed_first,
            self.freed_end,
        ];
        let mut bytes = [&MAGIC[..], &[0; 4]].concat();
        bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        bytes.extend(self.journal.boot.bytes().chain(std::iter::repeat(0)).take(BOOT_SIZE));
        bytes
    }

    /// Parses the head. Also returns the number of blocks.
    pub(super) fn parse(bytes: &[u8]) -> Option<(Self, usize)> {
        if bytes.get(..MAGIC.len())? != MAGIC {
            return None;
        }
        let mut numbers = bytes.get(NUMBERS_AT..)?.chunks_exact(8).filter_map(|number| number.try_into().ok());
        let mut next = || numbers.next().map(u64::from_le_bytes);
        let blocks = next()?;
        let (generation, length, chain) = (next()?, next()?, u32::try_from(next()?).ok()?);
        let stamp = Stamp { inode: next()?, seconds: next()?.cast_signed(), nanoseconds: next()?.cast_signed() };
        let boot = bytes.get(HEAD_SIZE - BOOT_SIZE..HEAD_SIZE)?;
        let boot = std::str::from_utf8(boot).ok()?.trim_end_matches('\0').to_owned();
        let head = Self {
            journal: JournalEnd { generation, length, chain, boot },
            stamp,
            lines: next()?,
            leases: next()?,
            block_room: next()?,
            buckets: next()?,
            freed_first: next()?,
            freed_end: next()?,
        };
        Some((head, usize::try_from(blocks).ok()?))
    }

    pub(super) const fn bucket_at(&self, number: u64) -> u64 {
        HEAD_SIZE as u64 + self.block_room * BLOCK_SIZE as u64 + number * BUCKET_SIZE as u64
    }

    pub(super) const fn freed_at(&self, order: u64) -> u64 {
        self.bucket_at(self.buckets) + order * FREED_SIZE as u64
    }
}

impl Bucket {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0, 0, 0, 0, self.positions.len() as u8, u8::from(self.overflowed), 0, 0];
        for Position { hash, line } in &self.positions {
            bytes.extend(hash.to_le_bytes());
            bytes.extend(line.before.to_le_bytes());
            bytes.extend(line.length.to_le_bytes());
            bytes.extend(line.offset.to_le_bytes());
        }
        bytes.resize(BUCKET_SIZE, 0);
        let checksum = crc32(0, bytes.get(4..).unwrap_or_default());
        bytes.splice(..4, checksum.to_le_bytes());
        bytes
    }

    /// Parses a bucket. `None` if it is corrupt.
    pub(super) fn parse(bytes: &[u8; BUCKET_SIZE]) -> Option<Self> {
        if read_u32(bytes, 0)? != crc32(0, bytes.get(4..)?) {
            return None;
        }
        let (count, overflowed) = (usize::from(*bytes.get(4)?), *bytes.get(5)? != 0);
        let records = bytes.get(BUCKET_HEAD..)?.chunks_exact(POSITION_SIZE).take(count);
        let position = |record: &[u8]| {
            let line =
                Line { before: read_u32(record, 4)?, length: read_u32(record, 8)?, offset: read_u64(record, 12)? };
            Some(Position { hash: read_u32(record, 0)?, line })
        };
        Some(Self { positions: records.map(position).collect::<Option<_>>()?, overflowed })
    }
}

/// Encodes a block. The last byte of a block's first address is always 0, so it holds the number of
/// the family.
pub(super) fn block_bytes(first: IpAddr, block: &Block) -> Vec<u8> {
    let mut bytes = address_bytes(first).to_vec();
    if let Some(last) = bytes.last_mut() {
        *last = family_of(first);
    }
    bytes.extend(block.leased.iter().chain(&block.freed).flat_map(|word| word.to_le_bytes()));
    bytes
}

pub(super) fn parse_block(record: &[u8]) -> Option<(IpAddr, Block)> {
    let mut address: [u8; 16] = record.get(..16)?.try_into().ok()?;
    let family = std::mem::take(address.last_mut()?);
    let mut words = [0; 8];
    for (word, at) in words.iter_mut().zip((16..).step_by(8)) {
        *word = read_u64(record, at)?;
    }
    let [leased @ .., _, _, _, _] = words;
    let [_, _, _, _, freed @ ..] = words;
    Some((address_of(address, family)?, Block { leased, freed }))
}

pub(super) fn freed_bytes(address: IpAddr, at: u64) -> [u8; FREED_SIZE] {
    freed_record(address_bytes(address), at, family_of(address))
}

/// Returns the record that replaces the record of an address that was leased again.
pub(super) fn leased_again_bytes() -> [u8; FREED_SIZE] {
    freed_record([0; 16], 0, 0)
}

fn freed_record(address: [u8; 16], at: u64, family: u8) -> [u8; FREED_SIZE] {
    let mut bytes = [0; FREED_SIZE];
    let parts = address.into_iter().chain(at.to_le_bytes()).chain([family]);
    bytes.iter_mut().zip(parts).for_each(|(to, from)| *to = from);
    let checksum = crc32(0, &bytes).to_le_bytes();
    bytes.iter_mut().skip(FREED_CHECKSUM_AT).zip(checksum).for_each(|(to, from)| *to = from);
    bytes
}

/// Parses the record of a freed address. `None` if it is corrupt, and `Some(None)` if the address
/// was leased again.
pub(super) fn parse_freed(record: &[u8]) -> Option<Option<(IpAddr, u64)>> {
    let (address, at) = (record.get(..16)?.try_into().ok()?, read_u64(record, 16)?);
    let family = *record.get(24)?;
    if record != freed_record(address, at, family) {
        return None;
    }
    Some(if family == 0 { None } else { Some((address_of(address, family)?, at)) })
}

fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

const fn family_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { 4 } else { 6 }
}

fn address_of(bytes: [u8; 16], family: u8) -> Option<IpAddr> {
    let address = Ipv6Addr::from(bytes);
    match family {
        4 => address.to_ipv4_mapped().map(IpAddr::V4),
        6 => Some(IpAddr::V6(address)),
        _ => None,
    }
}

pub(super) fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

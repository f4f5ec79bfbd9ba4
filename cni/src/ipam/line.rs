//! The position of a line in the journal. Both the journal and the leases in memory use it.

/// The position of the line that begins a lease.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::ipam) struct Line {
    /// Number of bytes before the line.
    pub(in crate::ipam) offset: u64,
    /// Length in bytes, including the line feed.
    pub(in crate::ipam) length: u32,
    /// Checksum of the preceding line.
    pub(in crate::ipam) before: u32,
}

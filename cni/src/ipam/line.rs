//! Where a line of the journal is. The journal and the leases in memory both name lines.

/// The line with which a lease begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::ipam) struct Line {
    /// Bytes before it.
    pub(in crate::ipam) offset: u64,
    /// Bytes, with the line feed.
    pub(in crate::ipam) length: u32,
    /// Checksum of the line before it.
    pub(in crate::ipam) before: u32,
}

//! The content of an archive and the lines of the archive file.

use std::collections::HashSet;

use edge_types::NodeName;
use serde::{Deserialize, Serialize};

use crate::ca::CaDocument;
use crate::clock::Seconds;
use crate::segments::SegmentRecord;
use crate::state::{CommunityRecord, NodeRecord, Snapshot, TokenRecord};

/// The value of `format` in the header.
pub(super) const FORMAT: &str = "edge-controller-archive";

/// The format version that this release writes, and the latest that it reads.
pub(super) const VERSION: u32 = 1;

/// The content of an archive.
#[derive(Debug)]
pub struct Archive {
    /// Time at which the archive was written, in seconds since 1970-01-01 UTC.
    pub written_at: Seconds,
    /// Number of segments whose holders are not among the rows. These segments count as released.
    pub orphans: usize,
    /// All rows of the store at one revision.
    pub rows: Snapshot,
    /// The certificate authorities; `None` if the store had none yet.
    pub ca: Option<CaDocument>,
}

/// One line of an archive, as JSON with the kind as its only key.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(clippy::large_enum_variant, reason = "one line exists at a time")]
pub(super) enum Line {
    Header(Header),
    Ca(CaDocument),
    Community(CommunityRecord),
    Token(TokenRecord),
    Node(NodeRecord),
    Segment(SegmentRecord),
    End(End),
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) format: String,
    pub(super) version: u32,
    pub(super) release: String,
    pub(super) written_at: Seconds,
    /// Revision of the store when the archive was written. No view of that store has a later
    /// version.
    pub(super) revision: u64,
    /// The latest time that the store had recorded.
    pub(super) time: Seconds,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct End {
    pub(super) lines: u64,
    pub(super) sha256: String,
}

impl Archive {
    /// Makes an archive with this time of writing.
    ///
    /// A store that writes one row after the other may hold a segment of a node that is just
    /// joining or has just been deregistered. Such a segment is written as released at this time:
    /// otherwise it might stay held forever in the store into which the archive is restored.
    pub fn new(written_at: Seconds, mut rows: Snapshot, ca: Option<CaDocument>) -> Self {
        let nodes: HashSet<&NodeName> = rows.nodes.iter().map(|node| &node.name).collect();
        let mut orphans = 0;
        for row in rows.segments.iter_mut().filter(|row| row.released_at.is_none() && !nodes.contains(&row.node)) {
            row.released_at = Some(written_at.max(row.granted_at));
            orphans += 1;
        }
        Self { written_at, orphans, rows, ca }
    }

    /// Returns a summary of the content, for the operator.
    pub fn summary(&self) -> String {
        let Snapshot { nodes, tokens, segments, communities, .. } = &self.rows;
        let held = segments.iter().filter(|row| row.released_at.is_none()).count();
        let ca = if self.ca.is_some() { "the authorities" } else { "no authority" };
        let orphans = match self.orphans {
            0 => String::new(),
            orphans => format!(", {orphans} of nodes that are not registered counted as released"),
        };
        format!(
            "{} nodes, {} segments ({held} held{orphans}), {} tokens, {} listed communities, {ca}",
            nodes.len(),
            segments.len(),
            tokens.len(),
            communities.len()
        )
    }
}

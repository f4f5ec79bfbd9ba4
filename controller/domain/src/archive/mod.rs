//! Everything that a controller keeps, as one file: for backups, and for moving from one store to
//! another.
//!
//! JSON lines, UTF-8, each an object with one key that says what the line is:
//!
//! ```json
//! {"header":{"format":"edge-controller-archive","version":1,"release":"0.1.0","written_at":1794000000,"revision":17,"time":1794000000}}
//! {"ca":{...}}
//! {"community":{...}}
//! {"token":{...}}
//! {"node":{...}}
//! {"segment":{...}}
//! {"end":{"lines":6,"sha256":"..."}}
//! ```
//!
//! The header comes first, and the end last: how many lines were before it, and the hash of all
//! their bytes, line feeds included. Between them stand the authorities with their private keys and
//! one line a row, in the form in which [`crate::state`] keeps it: tokens as hashes, segments with
//! who held them and when. A file that is cut short, altered, or of a later version is refused as a
//! whole.
//!
//! - [`Archive`]: the content.
//! - [`mod@write`], [`mod@read`]: the file.
//! - [`import()`]: into any store. [`restore()`]: in place of a state directory.

mod import;
mod read;
mod restore;
mod write;

use serde::{Deserialize, Serialize};

use crate::ca::CaDocument;
use crate::clock::Seconds;
use crate::segments::Row;
use crate::state::{CommunityRecord, NodeRecord, Snapshot, TokenRecord};

pub use import::{ImportError, import};
pub use read::{ArchiveError, read};
pub use restore::{check_not_restoring, restore};
pub use write::{Chunks, write};

/// What the header says it is.
const FORMAT: &str = "edge-controller-archive";

/// The version that this release writes, and the latest that it reads.
const VERSION: u32 = 1;

/// The content of an archive.
#[derive(Debug)]
pub struct Archive {
    /// When it was written.
    pub written_at: Seconds,
    /// The rows.
    pub rows: Snapshot,
    /// The authorities; none where there were none yet.
    pub ca: Option<CaDocument>,
}

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Header(Header),
    Ca(CaDocument),
    Community(CommunityRecord),
    Token(TokenRecord),
    Node(NodeRecord),
    Segment(Row),
    End(End),
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    format: String,
    version: u32,
    release: String,
    written_at: Seconds,
    /// Revision of the store from which it comes: the versions of views are not above it.
    revision: u64,
    /// Latest time that was known.
    time: Seconds,
}

#[derive(Debug, Serialize, Deserialize)]
struct End {
    lines: u64,
    sha256: String,
}

impl Archive {
    /// What it holds, for people.
    pub fn summary(&self) -> String {
        let Snapshot { nodes, tokens, segments, communities, .. } = &self.rows;
        let held = segments.iter().filter(|row| row.released_at.is_none()).count();
        let ca = if self.ca.is_some() { "the authorities" } else { "no authority" };
        format!(
            "{} nodes, {} segments ({held} held), {} tokens, {} listed communities, {ca}",
            nodes.len(),
            segments.len(),
            tokens.len(),
            communities.len()
        )
    }
}

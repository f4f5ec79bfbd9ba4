//! Everything that a controller stores in one file, for backups and for moving from one store to
//! another.
//!
//! The file has JSON lines in UTF-8. Each is an object with one key that says what the line holds:
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
//! The header is the first line. The last line has the number of lines before it and the hash of
//! all their bytes, line feeds included. Between them are the authorities with their private keys,
//! and one line for each row in the form of [`crate::state`]: tokens as hashes, segments with their
//! holders and times. A file that is cut short, altered or of a later version is refused as a
//! whole.
//!
//! - [`Archive`]: the content.
//! - [`mod@write`], [`mod@read`]: the file.
//! - [`import()`]: puts an archive into any store. [`restore()`]: replaces the content of a state
//!   directory.

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

/// The value of `format` in the header.
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
    /// The authorities; `None` if the store had none yet.
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
    /// Revision of the store when it was written. No view of that store has a later version.
    revision: u64,
    /// The latest time that the store had seen.
    time: Seconds,
}

#[derive(Debug, Serialize, Deserialize)]
struct End {
    lines: u64,
    sha256: String,
}

impl Archive {
    /// A summary of the content, for the operator.
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

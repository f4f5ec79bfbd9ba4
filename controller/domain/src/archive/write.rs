//! Writes an archive in pieces, so that a large archive is never in memory twice.

use std::io::{self, Write};

use ring::digest::{Context, SHA256};

use super::format::{Archive, End, FORMAT, Header, Line, VERSION};
use crate::ca::hex;

/// Minimum size of a piece, in bytes. The last piece may be smaller.
const PIECE: usize = 64 * 1024;

/// The bytes of an archive, in pieces.
pub struct Chunks {
    rows: Box<dyn Iterator<Item = Line> + Send>,
    digest: Context,
    lines: u64,
    ended: bool,
}

impl From<Archive> for Chunks {
    fn from(archive: Archive) -> Self {
        let Archive { written_at, orphans: _, rows, ca } = archive;
        let header = Header {
            format: FORMAT.into(),
            version: VERSION,
            release: env!("CARGO_PKG_VERSION").into(),
            written_at,
            revision: rows.revision,
            time: rows.time,
        };
        let rows = std::iter::once(Line::Header(header))
            .chain(ca.map(Line::Ca))
            .chain(rows.communities.into_iter().map(Line::Community))
            .chain(rows.tokens.into_iter().map(Line::Token))
            .chain(rows.nodes.into_iter().map(Line::Node))
            .chain(rows.segments.into_iter().map(Line::Segment));
        Self { rows: Box::new(rows), digest: Context::new(&SHA256), lines: 0, ended: false }
    }
}

impl Iterator for Chunks {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        if self.ended {
            return None;
        }
        let mut piece = Vec::new();
        while piece.len() < PIECE {
            let Some(row) = self.rows.next() else {
                self.digest.update(&piece);
                let sha256 = hex(self.digest.clone().finish().as_ref());
                piece.extend(encoded(&Line::End(End { lines: self.lines, sha256 })));
                self.ended = true;
                return Some(piece);
            };
            piece.extend(encoded(&row));
            self.lines += 1;
        }
        self.digest.update(&piece);
        Some(piece)
    }
}

fn encoded(line: &Line) -> Vec<u8> {
    // Serialising a row never fails: the stores serialise rows in the same way.
    let mut bytes = serde_json::to_vec(line).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// Writes an archive.
pub fn write(archive: Archive, to: &mut impl Write) -> io::Result<()> {
    Chunks::from(archive).try_for_each(|piece| to.write_all(&piece))
}

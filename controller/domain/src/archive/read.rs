//! Reads an archive. The whole archive is checked before any part is used.

use std::collections::BTreeSet;
use std::io::{self, BufRead, Read};

use ring::digest::{Context, SHA256};
use serde::Deserialize;

use super::format::{Archive, FORMAT, Header, Line, VERSION};
use crate::ca::hex;
use crate::segments::overlap;
use crate::state::Snapshot;

/// Maximum length of a line, in bytes. A row has a few hundred bytes.
const LONGEST: u64 = 16 * 1024 * 1024;

/// The reason why a file cannot be used. No part of the file was used.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file is not an archive of this controller.
    #[error(
        "it is not an archive of edge-controller (expected a first line {{\"header\":{{\"format\":\"{FORMAT}\",...}}}})"
    )]
    Foreign,
    /// A newer release wrote the file.
    #[error("it is of version {0}, which a newer release wrote; this one reads up to {VERSION}: use that release")]
    Newer(u32),
    /// The file ends too early.
    #[error("it is cut short: no end after line {0}; take another copy")]
    CutShort(u64),
    /// The content does not match its hash.
    #[error("it is damaged: the hash in its last line does not match its content; use another copy")]
    Damaged,
    /// A line cannot be read.
    #[error("line {line}: {why}")]
    Line {
        /// Line number, from 1.
        line: u64,
        /// The error in the line.
        why: String,
    },
    /// The rows contradict each other.
    #[error("its rows contradict each other: {0}")]
    Rows(String),
}

/// The part of the first line that every format version has.
#[derive(Deserialize)]
struct FirstLine {
    header: Versioned,
}

#[derive(Deserialize)]
struct Versioned {
    format: String,
    version: u32,
}

/// Reads and checks an archive.
pub fn read(mut from: impl BufRead) -> Result<Archive, ArchiveError> {
    let mut digest = Context::new(&SHA256);
    let mut rows = Snapshot::default();
    let (mut header, mut ca): (Option<Header>, _) = (None, None);
    let mut number = 0;
    loop {
        let mut line = Vec::new();
        (&mut from).take(LONGEST).read_until(b'\n', &mut line)?;
        if header.is_none() {
            let first: FirstLine = serde_json::from_slice(&line).map_err(|_| ArchiveError::Foreign)?;
            if first.header.format != FORMAT {
                return Err(ArchiveError::Foreign);
            }
            if first.header.version > VERSION {
                return Err(ArchiveError::Newer(first.header.version));
            }
        }
        if line.last() != Some(&b'\n') {
            return Err(ArchiveError::CutShort(number));
        }
        number += 1;
        let wrong = |why: String| ArchiveError::Line { line: number, why };
        match serde_json::from_slice(&line).map_err(|error| wrong(error.to_string()))? {
            Line::Header(_) if header.is_some() => return Err(wrong("a second header".into())),
            Line::Header(found) => header = Some(found),
            Line::Ca(_) if ca.is_some() => return Err(wrong("the authorities a second time".into())),
            Line::Ca(found) => ca = Some(found),
            Line::Community(row) => rows.communities.push(row),
            Line::Token(row) => rows.tokens.push(row),
            Line::Node(row) => rows.nodes.push(row),
            Line::Segment(row) => rows.segments.push(row),
            Line::End(end) => {
                if end.lines != number - 1 || end.sha256 != hex(digest.finish().as_ref()) {
                    return Err(ArchiveError::Damaged);
                }
                break;
            }
        }
        digest.update(&line);
    }
    if from.read(&mut [0])? != 0 {
        return Err(ArchiveError::Line { line: number + 1, why: "something follows the end".into() });
    }
    let header = header.ok_or(ArchiveError::Foreign)?;
    (rows.revision, rows.time) = (header.revision, header.time);
    check(&rows).map_err(ArchiveError::Rows)?;
    Ok(Archive::new(header.written_at, rows, ca))
}

/// Checks the rules that the rows of every store meet.
fn check(rows: &Snapshot) -> Result<(), String> {
    let nodes: BTreeSet<_> = rows.nodes.iter().map(|node| &node.name).collect();
    let tokens: BTreeSet<_> = rows.tokens.iter().map(|token| &token.id).collect();
    let communities: BTreeSet<_> = rows.communities.iter().map(|community| &community.name).collect();
    if (nodes.len(), tokens.len(), communities.len()) != (rows.nodes.len(), rows.tokens.len(), rows.communities.len()) {
        return Err("a node, token or community is in it twice".into());
    }
    let mut segments: Vec<_> = rows.segments.iter().collect();
    segments.sort_by_key(|row| (row.network.is_ipv6(), row.network.network()));
    if let Some([a, b]) = segments.array_windows().find(|[a, b]| overlap(&a.network, &b.network)) {
        return Err(format!("segments {} and {} overlap", a.network, b.network));
    }
    for row in segments {
        if row.network.ip() != row.network.network() {
            return Err(format!("segment {} has bits set beyond its prefix", row.network));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::write;
    use crate::segments::SegmentRecord;
    use crate::state::NodeRecord;
    use edge_types::Role;
    use proptest::prelude::*;

    fn rows() -> Snapshot {
        let name = |text: &str| text.parse().unwrap();
        let row = |network: &str, node, released| {
            SegmentRecord::new(network.parse().unwrap(), name(node), "r".into(), 3, released)
        };
        Snapshot {
            nodes: vec![NodeRecord::new(name("a"), Role::Edge, 1), NodeRecord::new(name("b"), Role::Hub, 2)],
            segments: vec![
                row("10.77.0.0/26", "a", None),
                row("10.77.0.64/26", "gone", Some(5)),
                row("fd77::/120", "b", None),
            ],
            revision: 7,
            time: 9,
            ..Snapshot::default()
        }
    }

    fn bytes(rows: Snapshot) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(Archive::new(11, rows, None), &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn an_archive_is_read_as_it_was_written() {
        let archive = read(bytes(rows()).as_slice()).unwrap();
        let (wanted, found) = (rows(), archive.rows);
        assert_eq!((found.nodes, found.segments, found.tokens), (wanted.nodes, wanted.segments, wanted.tokens));
        assert_eq!((found.revision, found.time, archive.written_at), (7, 9, 11));
    }

    #[test]
    fn a_newer_version_and_another_file_get_different_errors() {
        let text = String::from_utf8(bytes(rows())).unwrap();
        let newer = text.replacen("\"version\":1", "\"version\":2,\"wonders\":[]", 1);
        assert!(matches!(read(newer.as_bytes()), Err(ArchiveError::Newer(2))));
        for foreign in ["", "\n", "{}\n", "{\"header\":{\"format\":\"zip\",\"version\":1}}\n", "\u{0}\u{1}"] {
            assert!(matches!(read(foreign.as_bytes()), Err(ArchiveError::Foreign)), "{foreign:?}");
        }
        assert!(matches!(read((text + "\n").as_bytes()), Err(ArchiveError::Line { line: 8, .. })));
    }

    #[test]
    fn rows_that_contradict_each_other_are_refused() {
        for (change, says) in [
            (
                Box::new(|rows: &mut Snapshot| rows.nodes.push(rows.nodes[0].clone())) as Box<dyn Fn(&mut Snapshot)>,
                "twice",
            ),
            (Box::new(|rows| rows.segments[1].network = "10.77.0.0/25".parse().unwrap()), "overlap"),
            (Box::new(|rows| rows.segments[0].network = "10.77.0.1/26".parse().unwrap()), "bits set"),
        ] {
            let mut rows = rows();
            change(&mut rows);
            let error = read(bytes(rows).as_slice()).unwrap_err();
            assert!(matches!(error, ArchiveError::Rows(_)) && error.to_string().contains(says), "{error}");
        }
    }

    /// Scenario: a node was deregistered, and its segments were not released yet. Earlier releases
    /// wrote such rows unchanged.
    #[test]
    fn a_segment_of_a_node_that_is_not_there_counts_as_released_when_the_archive_was_written() {
        let mut orphaned = rows();
        orphaned.nodes.remove(0);
        let mut earlier = Archive::new(11, rows(), None);
        earlier.rows.nodes.remove(0);
        let mut as_it_was = Vec::new();
        write(earlier, &mut as_it_was).unwrap();
        assert!(String::from_utf8_lossy(&as_it_was).contains("\"node\":\"a\""), "its segment");
        for (bytes, orphans) in [(bytes(orphaned), 0), (as_it_was, 1)] {
            let archive = read(bytes.as_slice()).unwrap();
            let released: Vec<_> = archive.rows.segments.iter().map(|row| row.released_at).collect();
            assert_eq!((released, archive.orphans), (vec![Some(11), Some(5), None], orphans));
            assert_eq!(archive.summary().contains("1 of nodes that are not registered"), orphans == 1);
        }
        assert_eq!(Archive::new(11, rows(), None).orphans, 0);
    }

    proptest! {
        /// An archive that is cut or altered anywhere is refused. It is never read as a different
        /// valid archive.
        #[test]
        fn damage_is_refused_wherever_it_is(place in any::<proptest::sample::Index>(), bit in 0..8u8, cut: bool) {
            let mut bytes = bytes(rows());
            let place = place.index(bytes.len());
            if cut { bytes.truncate(place) } else { bytes[place] ^= 1 << bit }
            prop_assert!(read(bytes.as_slice()).is_err());
        }
    }
}

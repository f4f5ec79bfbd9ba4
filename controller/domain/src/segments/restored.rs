//! Delays grants after a restore, because the ledger then lacks every grant that was made after the
//! backup. Until the nodes have reported their segments, no segment is known to be free.

use edge_types::NodeName;
use serde::{Deserialize, Serialize};

use super::policy::SegmentPolicy;
use crate::clock::{Seconds, rfc3339};

/// Maximum number of nodes that an error names.
const NAMED: usize = 5;

/// A restore or an import of the rows. The store keeps it as a note in addition to the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// Time of the restore, in seconds since 1970-01-01 UTC.
    pub at: Seconds,
    /// Time at which a controller first served the restored rows; `None` until one does. The
    /// waiting time starts at this time, since no node can report earlier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served_from: Option<Seconds>,
}

impl Restored {
    /// Makes the entry for a restore at this time that no controller has served yet.
    pub fn at(now: Seconds) -> Self {
        Self { at: now, served_from: None }
    }

    /// Reads a text that [`Restored::to_note`] wrote.
    ///
    /// # Errors
    /// Returns an error that quotes the text if the text has another format.
    pub fn from_note(note: &str) -> Result<Self, String> {
        serde_json::from_str(note).map_err(|error| format!("expected {{\"at\":SECONDS}}, found {note:?}: {error}"))
    }

    /// Returns the text that the store keeps.
    pub fn to_note(self) -> String {
        // Serialising a struct of two numbers never fails.
        serde_json::to_string(&self).unwrap_or_default()
    }

    /// Returns the time until which grants wait for nodes that have not reported.
    pub fn grants_wait_until(&self, policy: &SegmentPolicy) -> Seconds {
        self.served_from.unwrap_or(self.at).saturating_add(policy.restore_grace)
    }

    /// Returns the time until which a node may claim a segment for which the ledger has no grant to
    /// the node.
    pub fn claims_count_until(&self, policy: &SegmentPolicy) -> Seconds {
        self.served_from.unwrap_or(self.at).saturating_add(policy.claims_after_restore)
    }
}

/// No segment is granted yet, because a node that has not reported may use any segment. The text
/// goes to the requesting node, so it names no other node: see [`Self::for_the_operator`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no segment is granted until {}, or until every edge has reported which segments it uses: the store was restored from a backup at {}, which \
     does not know later grants. {} of the registered edges have not reported yet: connect them, or deregister those that are gone (/readyz names \
     them); this node keeps what it holds, and asks again",
    rfc3339(*until), rfc3339(*restored_at), missing
)]
pub struct GrantsPaused {
    /// Time at which the store was restored.
    pub restored_at: Seconds,
    /// The latest time at which grants start again.
    pub until: Seconds,
    /// Number of edges that have not reported.
    pub missing: usize,
    /// The names of the first [`NAMED`] of these edges, and "..." if there are more.
    pub named: Vec<String>,
}

impl GrantsPaused {
    /// Returns the text with the names of the missing edges.
    pub fn for_the_operator(&self) -> String {
        format!("{self}. Missing: {}", self.named.join(", "))
    }

    /// Returns the error for segment requests while the edges in `missing` have not reported;
    /// `None` if there are none.
    pub fn until_all_reported<'a>(
        restored: &Restored,
        policy: &SegmentPolicy,
        missing: impl Iterator<Item = &'a NodeName>,
    ) -> Option<Self> {
        let (mut named, mut count) = (Vec::new(), 0);
        for node in missing {
            count += 1;
            match count {
                ..=NAMED => named.push(node.to_string()),
                _ if named.len() == NAMED => named.push("...".into()),
                _ => {}
            }
        }
        let until = restored.grants_wait_until(policy);
        (count > 0).then_some(Self { restored_at: restored.at, until, missing: count, named })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_again_and_another_text_is_named() {
        for restored in [Restored::at(7), Restored { at: 7, served_from: Some(9) }] {
            assert_eq!(Restored::from_note(&restored.to_note()), Ok(restored));
        }
        let error = Restored::from_note("yesterday").unwrap_err();
        assert!(error.contains("\"at\"") && error.contains("yesterday"), "{error}");
    }

    #[test]
    fn a_few_of_the_missing_edges_are_named_and_all_are_counted() {
        let policy = SegmentPolicy { restore_grace: 600, ..super::super::policy::tests::policy() };
        let nodes: Vec<NodeName> = (0..8).map(|n| format!("edge-{n}").parse().unwrap()).collect();
        let restored = Restored { at: 1_793_491_200, served_from: Some(1_793_491_260) };
        let paused = |nodes: &[NodeName]| GrantsPaused::until_all_reported(&restored, &policy, nodes.iter());
        assert_eq!(paused(&[]), None);
        let text = paused(&nodes).unwrap().to_string();
        assert!(text.contains("8 of the registered edges") && !text.contains("edge-0"), "{text}");
        let said = paused(&nodes).unwrap().for_the_operator();
        assert!(said.starts_with(&text) && said.contains("edge-4, ..."), "{said}");
        assert!(said.contains("until 2026-11-01T00:11:00Z") && !said.contains("edge-5"), "{said}");
        let said = paused(&nodes[..5]).unwrap().for_the_operator();
        assert!(said.ends_with("edge-4"), "{said}");
    }
}

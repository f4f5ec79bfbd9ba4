//! Writes log lines and Kubernetes Events about segments that nodes claim to hold.

use std::time::Instant;

use edge_controller_domain::segments::{ClaimConflict, ClaimConflicts};
use edge_controller_kubernetes::events::{EventRecorder, Regarding};
use edge_types::{IpNetwork, NodeName};

use super::state::from_substates;

/// A publisher of the granted and the refused claims.
#[derive(Clone)]
pub(super) struct ClaimReporter {
    pub(super) conflicts: ClaimConflicts,
    events: EventRecorder,
}

from_substates!(ClaimReporter { conflicts, events });

impl ClaimReporter {
    /// Publishes the results. `taken` are the segments that belong to the node from now on, and
    /// `conflicts` are the claims that were refused.
    pub(super) fn publish(&self, node: &NodeName, taken: &[IpNetwork], conflicts: Vec<ClaimConflict>) {
        if !taken.is_empty() {
            tracing::warn!(%node, segments = ?taken, "it uses segments that no node was known to hold, and holds them from now on; was an old backup restored?");
            let list: Vec<String> = taken.iter().map(ToString::to_string).collect();
            let note = format!("{}: in use, and not known to be granted; granted to it", list.join(", "));
            self.events.warning(Regarding::EdgeNode, node.as_str(), "SegmentReported", note);
        }
        let news = self.conflicts.note(node, conflicts, Instant::now());
        if news.is_empty() {
            return;
        }
        let list: Vec<String> = news.iter().map(ToString::to_string).collect();
        let note = list.join("; ");
        tracing::error!(%node, "{note}");
        self.events.warning(Regarding::EdgeNode, node.as_str(), "SegmentConflict", note);
    }
}

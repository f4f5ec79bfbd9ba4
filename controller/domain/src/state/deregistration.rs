//! Plans the changes that deregister a node and release its segments.

use edge_types::NodeName;

use super::{Change, State};
use crate::clock::Seconds;
use crate::segments::SegmentRecord;

impl State {
    /// Plans the deregistration of a node and the release of its segments. Returns the released
    /// rows and all changes; `None` if the node is not registered.
    pub fn deregistration(&self, node: &NodeName, now: Seconds) -> Option<(Vec<SegmentRecord>, Vec<Change>)> {
        self.nodes.get(node)?;
        let held = self.ledger.held_by(node).into_iter();
        let rows: Vec<SegmentRecord> =
            held.map(|row| SegmentRecord { released_at: Some(now), kept_until: None, ..row.clone() }).collect();
        let releases = rows.iter().cloned().map(Change::PutSegment);
        let changes = std::iter::once(Change::DeleteNode(node.clone())).chain(releases).collect();
        Some((rows, changes))
    }

    /// Plans to write into a node's segments until when [`State::deregistration_keeping_segments`]
    /// will keep them. This comes before the deregistration: if that is interrupted when the node
    /// is gone and its segments are not released yet, the replica that releases them knows the
    /// time.
    pub fn announce_keeping_segments(&self, node: &NodeName, now: Seconds, grace: Seconds) -> Vec<Change> {
        let Some(until) = self.may_use_segments_until(node, now, grace) else { return vec![] };
        let held = self.ledger.held_by(node).into_iter().filter(|row| row.kept_until != Some(until));
        held.map(|row| Change::PutSegment(SegmentRecord { kept_until: Some(until), ..row.clone() })).collect()
    }

    /// Returns the end of the grace after the node's latest certificate; `None` if it is over.
    fn may_use_segments_until(&self, node: &NodeName, now: Seconds, grace: Seconds) -> Option<Seconds> {
        self.nodes.get(node)?.accepted_until(grace).filter(|end| *end > now)
    }

    /// Plans the deregistration of a node whose machine may still exist. Its segments are kept
    /// until `grace` seconds after the end of its latest certificate, since its pods may use them
    /// until then with peers that have not heard of the deregistration. The rest is the same as in
    /// [`State::deregistration`].
    pub fn deregistration_keeping_segments(
        &self,
        node: &NodeName,
        now: Seconds,
        grace: Seconds,
    ) -> Option<(Vec<SegmentRecord>, Vec<Change>)> {
        let until = self.may_use_segments_until(node, now, grace);
        let (mut rows, mut changes) = self.deregistration(node, now)?;
        rows.iter_mut().for_each(|row| row.kept_until = until);
        for change in &mut changes {
            if let Change::PutSegment(row) = change {
                row.kept_until = until;
            }
        }
        Some((rows, changes))
    }

    /// Returns the released segments that are still kept for a node.
    pub fn segments_kept_for<'a>(
        &'a self,
        node: &'a NodeName,
        now: Seconds,
    ) -> impl Iterator<Item = &'a SegmentRecord> {
        let kept =
            move |row: &&SegmentRecord| row.released_at.is_some() && row.kept_until.is_some_and(|until| until > now);
        self.ledger.rows().filter(move |row| row.node == *node).filter(kept)
    }

    /// Stops keeping released segments for a node whose machine is known to be gone. Returns the
    /// rows and the changes; `None` if no segment is kept for the node.
    pub fn end_keeping_segments(&self, node: &NodeName, now: Seconds) -> Option<(Vec<SegmentRecord>, Vec<Change>)> {
        let rows: Vec<SegmentRecord> =
            self.segments_kept_for(node, now).map(|row| SegmentRecord { kept_until: None, ..row.clone() }).collect();
        let changes = rows.iter().cloned().map(Change::PutSegment).collect();
        (!rows.is_empty()).then_some((rows, changes))
    }
}

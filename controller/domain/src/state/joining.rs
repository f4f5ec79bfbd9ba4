//! Plans the record and the segments of a joining node.

use edge_types::api::Family;
use edge_types::{NodeName, Role};

use super::errors::{JoinError, SegmentError};
use super::{Change, NodeRecord, State};
use crate::clock::Seconds;
use crate::segments::{SegmentPolicy, SegmentRecord};

/// Request id of segments that are granted at a join.
const JOIN_REQUEST: &str = "join";

/// Name of the node that holds segments whose objects cannot be read, so that they are granted to
/// nobody. No node may join under it: all of these segments would be its own.
pub const RESERVED_NAME: &str = "unreadable.invalid";

impl State {
    /// Returns the record of a node after its join: a new one, or the present one if the join may
    /// take it over.
    pub fn joining(
        &self,
        name: &NodeName,
        role: Role,
        takes_over: bool,
        now: Seconds,
    ) -> Result<NodeRecord, JoinError> {
        if name.as_str() == RESERVED_NAME {
            return Err(JoinError::Reserved(name.clone()));
        }
        let Some(record) = self.node(name) else {
            return Ok(NodeRecord::new(name.clone(), role, now));
        };
        if !takes_over {
            return Err(JoinError::NameTaken(name.clone()));
        }
        if record.role != role {
            return Err(JoinError::RoleChange { node: name.clone(), registered: record.role, token: role });
        }
        Ok(record.clone())
    }

    /// Plans changes to segments at a join. An edge then holds at least `min` segments of each
    /// family, unless grants wait after a restore.
    pub fn segments_at_join(
        &mut self,
        policy: &SegmentPolicy,
        node: &NodeName,
        role: Role,
        min: u32,
        now: Seconds,
    ) -> Result<Vec<Change>, SegmentError> {
        let mut changes = Vec::new();
        if role == Role::Edge {
            let back = self.given_back(policy, node, now);
            let mut missing = self.missing_at_join(policy, node, &back, min);
            // Grants wait: the node joins without a segment, and can then report the segments that
            // it uses.
            if self.may_grant(policy, now).is_err() {
                missing.clear();
            }
            changes = self.grants(policy, node, &missing, JOIN_REQUEST, now)?;
            changes.extend(back.into_iter().map(Change::GrantSegment));
        }
        if self.node(node).is_none() {
            changes.extend(self.leftovers(node, role, now).map(Change::PutSegment));
        }
        Ok(changes)
    }

    /// Returns the segments that the ledger has under this name although no such node is
    /// registered. A replica may be about to release these segments, or may have stopped before the
    /// release or before a join was complete. An edge gets the segments: their rows are written
    /// again, so that a replica that is about to release them finds another grant. If the node is
    /// not an edge, the segments are released.
    fn leftovers(&self, node: &NodeName, role: Role, now: Seconds) -> impl Iterator<Item = SegmentRecord> {
        // The time of the new grant differs from that of the former grant. It never lies in the
        // future, because a replica that starts takes the latest time in the store as known.
        let granted_at = move |before: Seconds| if before < now { now } else { before.saturating_sub(1) };
        self.ledger.held_by(node).into_iter().map(move |row| match role {
            Role::Edge => {
                SegmentRecord { request_id: JOIN_REQUEST.into(), granted_at: granted_at(row.granted_at), ..row.clone() }
            }
            Role::Hub | Role::Cloud => SegmentRecord { released_at: Some(now), ..row.clone() },
        })
    }

    /// Returns the segments that are kept for a node that lost its Node object. The node gets these
    /// segments back, since its pods may use them.
    fn given_back(&self, policy: &SegmentPolicy, node: &NodeName, now: Seconds) -> Vec<SegmentRecord> {
        let kept = self.segments_kept_for(node, now).filter(|row| policy.allows(&row.network));
        kept.map(|row| row.regranted(node.clone(), JOIN_REQUEST.into(), now)).collect()
    }

    /// Returns the families in which a node lacks segments up to `min`, apart from the segments
    /// that it gets back.
    fn missing_at_join(
        &self,
        policy: &SegmentPolicy,
        node: &NodeName,
        back: &[SegmentRecord],
        min: u32,
    ) -> Vec<Family> {
        let held = self.ledger.held_by(node);
        let of = |family| held.iter().copied().chain(back).filter(|row| Family::of(&row.network) == family).count();
        let lacking = |family| (min.min(policy.max_per_node) as usize).saturating_sub(of(family));
        policy.families().flat_map(|family| std::iter::repeat_n(family, lacking(family))).collect()
    }
}

//! Applies the effects of a restore from a backup to grants and claims.

use edge_types::Role;

use super::{NodeRecord, State};
use crate::clock::Seconds;
use crate::segments::{GrantsPaused, Restored, SegmentPolicy};

impl State {
    /// Records when the rows were restored; `None` if the rows never were restored.
    pub fn set_restored(&mut self, restored: Option<Restored>) {
        self.restored = restored;
    }

    /// Checks that segments may be granted. After a restore grants wait until every edge has
    /// reported its segments, or until the grace period has passed.
    ///
    /// # Errors
    /// Returns an error that names the time until which grants wait and the edges that have not
    /// reported yet.
    pub fn may_grant(&self, policy: &SegmentPolicy, now: Seconds) -> Result<(), GrantsPaused> {
        let waiting = self.restored.filter(|restored| now < restored.grants_wait_until(policy));
        let Some(restored) = waiting else { return Ok(()) };
        let missing =
            self.nodes_of_role(Role::Edge).filter(|record| record.reported_since_restore != Some(restored.at));
        match GrantsPaused::until_all_reported(&restored, policy, missing.map(|record| &record.name)) {
            Some(paused) => Err(paused),
            None => Ok(()),
        }
    }

    /// Returns whether a node may claim a segment for which the ledger has no grant to the node.
    /// Nodes may do so for some time after a restore.
    pub fn takes_unknown_claims(&self, policy: &SegmentPolicy, now: Seconds) -> bool {
        self.restored.is_some_and(|restored| now < restored.claims_count_until(policy))
    }

    /// Records that an edge has reported its segments since the restore, if there was one.
    pub fn note_reported(&self, record: &mut NodeRecord) {
        if let Some(restored) = self.restored.filter(|_| record.role == Role::Edge) {
            record.reported_since_restore = Some(restored.at);
        }
    }
}

//! What a restore of the rows means for grants and claims.

use edge_types::Role;

use super::{NodeRecord, State};
use crate::clock::Seconds;
use crate::segments::{Policy, Restored, Withheld};

impl State {
    /// Notes that the rows were restored.
    pub fn set_restored(&mut self, restored: Option<Restored>) {
        self.restored = restored;
    }

    /// Whether grants have to wait: the rows were restored, and an edge that may use any of the
    /// segments has not reported yet.
    ///
    /// # Errors
    /// The refusal, with the edges that are missing.
    pub fn may_grant(&self, policy: &Policy, now: Seconds) -> Result<(), Withheld> {
        let waiting = self.restored.filter(|restored| now < restored.grants_wait_until(policy));
        let Some(restored) = waiting else { return Ok(()) };
        let missing =
            self.nodes_of_role(Role::Edge).filter(|record| record.reported_since_restore != Some(restored.at));
        match Withheld::until_all_reported(&restored, policy, missing.map(|record| &record.name)) {
            Some(withheld) => Err(withheld),
            None => Ok(()),
        }
    }

    /// Whether a node may claim a segment that the ledger does not know as its own.
    pub fn takes_unknown_claims(&self, policy: &Policy, now: Seconds) -> bool {
        self.restored.is_some_and(|restored| now < restored.claims_count_until(policy))
    }

    /// Notes in its record that an edge has reported which segments it uses, if a restore makes
    /// that matter.
    pub fn note_reported(&self, record: &mut NodeRecord) {
        if let Some(restored) = self.restored.filter(|_| record.role == Role::Edge) {
            record.reported_since_restore = Some(restored.at);
        }
    }
}

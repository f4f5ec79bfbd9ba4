//! What a node that joins becomes, and which segments it then has.

use edge_types::api::Family;
use edge_types::{NodeName, Role};

use super::{Change, NodeRecord, SegmentError, State};
use crate::clock::Seconds;
use crate::segments::{Policy, Row};

/// Segments granted at join carry this in place of a request id of the node.
const JOIN_REQUEST: &str = "join";

/// Why a node may not join under its name.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The name is taken.
    #[error(
        "a node {0} is registered already, with another key; choose another name, or, if this is that machine with its disk lost, join \
         with a token bound to the name (edge-controller token create --node {0})"
    )]
    NameTaken(NodeName),
    /// The name belongs to a node of another role.
    #[error(
        "node {node} is registered as {registered}, and the token is for a {token}; deregister it first if its role shall change"
    )]
    RoleChange {
        /// The node.
        node: NodeName,
        /// Its role.
        registered: Role,
        /// The token's role.
        token: Role,
    },
}

impl State {
    /// The node's record after it has joined: new, or the present one where that may be taken over.
    pub fn joining(
        &self,
        name: &NodeName,
        role: Role,
        takes_over: bool,
        now: Seconds,
    ) -> Result<NodeRecord, JoinError> {
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

    /// What changes of the segments when a node joins. An edge then has at least `min` of each
    /// family, as long as grants do not wait.
    pub fn segments_at_join(
        &mut self,
        policy: &Policy,
        node: &NodeName,
        role: Role,
        min: u32,
        now: Seconds,
    ) -> Result<Vec<Change>, SegmentError> {
        let mut changes = Vec::new();
        if role == Role::Edge {
            let back = self.given_back(policy, node, now);
            let mut missing = self.missing_at_join(policy, node, &back, min);
            // The node joins without a segment, and can then report which segments it uses.
            if self.may_grant(policy, now).is_err() {
                missing.clear();
            }
            changes = self.grants(policy, node, &missing, JOIN_REQUEST, now)?;
            changes.extend(back.into_iter().map(Change::ClaimSegment));
        }
        if self.node(node).is_none() {
            changes.extend(self.leftovers(node, role, now).map(Change::PutSegment));
        }
        Ok(changes)
    }

    /// Segments that a name still holds though no node of it is registered: a replica may be about
    /// to release them, or may have died before it could, or before a join was complete. Written
    /// anew they are the new node's, and a replica that would release them finds another grant; a
    /// node that routes for others holds none.
    fn leftovers(&self, node: &NodeName, role: Role, now: Seconds) -> impl Iterator<Item = Row> {
        // Another time than that of the grant before, and none to come: a replica that starts takes
        // the latest time that it finds for known.
        let anew = move |before: Seconds| if before < now { now } else { before.saturating_sub(1) };
        self.ledger.held_by(node).into_iter().map(move |row| match role {
            Role::Edge => Row { request_id: JOIN_REQUEST.into(), granted_at: anew(row.granted_at), ..row.clone() },
            Role::Hub | Role::Cloud => Row { released_at: Some(now), ..row.clone() },
        })
    }

    /// Segments that are kept for a name which lost its Node object: they are its again when it
    /// comes back, since its pods may use them.
    fn given_back(&self, policy: &Policy, node: &NodeName, now: Seconds) -> Vec<Row> {
        let kept = self.kept_for(node, now).filter(|row| policy.allows(&row.network));
        kept.map(|row| row.regranted(node.clone(), JOIN_REQUEST.into(), now)).collect()
    }

    /// What a node lacks of the segments that it gets without asking, besides those that it gets
    /// back.
    fn missing_at_join(&self, policy: &Policy, node: &NodeName, back: &[Row], min: u32) -> Vec<Family> {
        let held = self.ledger.held_by(node);
        let of = |family| held.iter().copied().chain(back).filter(|row| Family::of(&row.network) == family).count();
        let lacking = |family| (min.min(policy.max_per_node) as usize).saturating_sub(of(family));
        policy.families().flat_map(|family| std::iter::repeat_n(family, lacking(family))).collect()
    }
}

//! Plans grants of the segments that nodes request.

use edge_types::api::Family;
use edge_types::{IpNetwork, NodeName};

use super::errors::SegmentError;
use super::{Change, State};
use crate::clock::Seconds;
use crate::segments::{SegmentPolicy, SegmentRecord};

impl State {
    /// Plans the response to a request for one segment of each family. `families` is sorted and has
    /// no duplicates. Returns the segments and the changes. Repeating a request's id returns the
    /// segments that were granted for it before.
    pub fn plan_segment_request(
        &mut self,
        policy: &SegmentPolicy,
        node: &NodeName,
        families: &[Family],
        request_id: &str,
        now: Seconds,
    ) -> Result<(Vec<IpNetwork>, Vec<Change>), SegmentError> {
        self.node(node).ok_or_else(|| SegmentError::NotRegistered(node.clone()))?;
        let earlier = self.ledger.held_by(node).into_iter().filter(|row| row.request_id == request_id);
        let mut granted: Vec<IpNetwork> = earlier.map(|row| row.network).collect();
        if granted.iter().any(|network| !families.contains(&Family::of(network))) {
            return Err(SegmentError::RequestIdReused(request_id.into()));
        }
        // If a replica stopped between two grants, only some of the segments were granted at that
        // time.
        let missing: Vec<Family> = families
            .iter()
            .copied()
            .filter(|family| !granted.iter().any(|network| Family::of(network) == *family))
            .collect();
        if !missing.is_empty() {
            let changes = self.grants(policy, node, &missing, request_id, now)?;
            granted.extend(changes.iter().filter_map(|change| match change {
                Change::GrantSegment(row) => Some(row.network),
                _ => None,
            }));
            granted.sort_by_key(Family::of);
            return Ok((granted, changes));
        }
        Ok((granted, Vec::new()))
    }

    /// Chooses one segment for each entry of `families`. Fails if any of them cannot be granted.
    pub(super) fn grants(
        &mut self,
        policy: &SegmentPolicy,
        node: &NodeName,
        families: &[Family],
        request_id: &str,
        now: Seconds,
    ) -> Result<Vec<Change>, SegmentError> {
        if !families.is_empty() {
            self.may_grant(policy, now)?;
        }
        let mut chosen = Vec::new();
        for family in families {
            let name = match family {
                Family::V4 => "IPv4",
                Family::V6 => "IPv6",
            };
            if policy.ranges(*family).next().is_none() {
                return Err(SegmentError::NoSuchFamily(name));
            }
            let held = self.ledger.count_held(node, *family);
            if held >= policy.max_per_node as usize {
                return Err(SegmentError::TooMany { node: node.clone(), held, family: name });
            }
            chosen.push(self.ledger_mut().grant(policy, *family, &chosen, now)?);
        }
        let row = |network| {
            let (node, request_id) = (node.clone(), request_id.to_owned());
            Change::GrantSegment(match self.ledger.row(&network) {
                Some(old) => old.regranted(node, request_id, now),
                None => SegmentRecord::new(network, node, request_id, now, None),
            })
        };
        let dropped = chosen.iter().flat_map(|grant| &grant.replaces).map(|old| Change::DeleteSegment(*old));
        Ok(dropped.chain(chosen.iter().map(|grant| row(grant.network))).collect())
    }
}

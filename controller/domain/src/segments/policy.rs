//! The operator's rules for segments.

use edge_types::IpNetwork;
use edge_types::api::Family;
use edge_types::network::special_use;
use edge_types::view::SegmentPrefix;

use super::range::{contains, overlap};

/// The rules for segments: ranges, prefix lengths and limits.
#[derive(Debug, Clone)]
pub struct SegmentPolicy {
    /// Ranges from which segments are cut, in order of preference.
    pub ranges: Vec<IpNetwork>,
    /// Parts of the ranges from which no segment is granted.
    pub reserved: Vec<IpNetwork>,
    /// Prefix lengths of segments.
    pub prefix: SegmentPrefix,
    /// Maximum number of segments of one family that a node may hold.
    pub max_per_node: u32,
    /// Seconds for which a released segment is granted to no node.
    pub quarantine: i64,
    /// Seconds after a restore during which no segment is granted while an edge has not reported
    /// its segments.
    pub restore_grace: i64,
    /// Seconds after a restore during which a node may claim a segment for which the ledger has no
    /// grant to the node.
    pub claims_after_restore: i64,
}

impl SegmentPolicy {
    /// Returns the prefix length of this family's segments.
    pub fn prefix(&self, family: Family) -> u8 {
        match family {
            Family::V4 => self.prefix.v4,
            Family::V6 => self.prefix.v6,
        }
    }

    /// Returns the ranges of a family.
    pub fn ranges(&self, family: Family) -> impl Iterator<Item = &IpNetwork> {
        self.ranges.iter().filter(move |range| Family::of(range) == family)
    }

    /// Returns the families that have a range.
    pub fn families(&self) -> impl Iterator<Item = Family> + '_ {
        [Family::V4, Family::V6].into_iter().filter(|family| self.ranges(*family).next().is_some())
    }

    /// Returns whether a network is a segment by these rules.
    pub fn allows(&self, network: &IpNetwork) -> bool {
        let family = Family::of(network);
        network.prefix() == self.prefix(family)
            && self.ranges(family).any(|range| contains(range, network))
            && !self.reserved.iter().any(|reserved| overlap(reserved, network))
    }

    /// Checks the rules. The error names the configuration key and the reason.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if self.ranges.is_empty() {
            return Err(("cluster_ranges", "at least one range is needed".into()));
        }
        for (key, family, longest) in [("v4_prefix", Family::V4, 30), ("v6_prefix", Family::V6, 126)] {
            if self.prefix(family) > longest {
                return Err((key, format!("{} leaves no room for pods; at most {longest}", self.prefix(family))));
            }
            if let Some(small) = self.ranges(family).find(|range| range.prefix() > self.prefix(family)) {
                return Err((
                    key,
                    format!("a segment of /{} does not fit into the range {small}", self.prefix(family)),
                ));
            }
        }
        for (key, networks) in [("cluster_ranges", &self.ranges), ("reserved", &self.reserved)] {
            if let Some(odd) = networks.iter().find(|network| network.ip() != network.network()) {
                return Err((
                    key,
                    format!("{odd} has bits set beyond its prefix; meant {}/{}?", odd.network(), odd.prefix()),
                ));
            }
        }
        for range in &self.ranges {
            if let Some(special) = special_use(range) {
                return Err(("cluster_ranges", format!("{range} holds {special}, which every node needs for itself")));
            }
        }
        for (index, range) in self.ranges.iter().enumerate() {
            if let Some(other) = self.ranges.iter().skip(index + 1).find(|other| overlap(range, other)) {
                return Err(("cluster_ranges", format!("{range} and {other} overlap")));
            }
        }
        if self.max_per_node == 0 {
            return Err(("max_per_node", "0 would grant no node a segment".into()));
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Returns the rules that tests start from.
    pub(in crate::segments) fn policy() -> SegmentPolicy {
        SegmentPolicy {
            ranges: Vec::new(),
            reserved: Vec::new(),
            prefix: SegmentPrefix::default(),
            max_per_node: 64,
            quarantine: 100,
            restore_grace: 0,
            claims_after_restore: 0,
        }
    }
}

//! Finds values that work, but probably not as the operator intended.

use edge_controller_domain::segments::overlap;
use edge_types::api::Family;

use super::Config;

/// Number of pods that a segment should have room for, at least.
const FEW_PODS: u128 = 4;

impl Config {
    /// Returns the warnings, each with its key. `run` and a reload log them, and `config` prints
    /// them.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.of_segments();
        warnings.extend(self.of_kubernetes());
        let is_local = |name: &String| {
            name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
        };
        if self.server_names.iter().all(is_local) {
            warnings.push(format!(
                "server_names: {} is this machine itself, so that no other machine can join; name what the agents' `url` will hold",
                self.server_names.join(", ")
            ));
        }
        warnings
    }

    fn of_segments(&self) -> Vec<String> {
        let (segments, policy) = (&self.segments, self.segment_policy());
        let mut warnings = vec![];
        for reserved in &segments.reserved {
            if !segments.cluster_ranges.iter().any(|range| overlap(range, reserved)) {
                warnings.push(format!(
                    "segments.reserved: {reserved} lies outside of cluster_ranges, so that it keeps nothing free; leave it out, or correct it"
                ));
            }
        }
        for (key, family, length) in [("v4_prefix", Family::V4, 32), ("v6_prefix", Family::V6, 128)] {
            let prefix = policy.prefix(family);
            let count = |range: &edge_types::IpNetwork| 1_u128 << prefix.saturating_sub(range.prefix()).min(127);
            let all = policy.ranges(family).map(count).fold(0, u128::saturating_add);
            // The network, the bridge and, with IPv4, the broadcast address are not pods'.
            let taken = if family == Family::V4 { 3 } else { 2 };
            let pods = (1_u128 << (length - prefix.min(length)).min(127)).saturating_sub(taken);
            if all == 1 {
                warnings.push(format!(
                    "segments.{key}: cluster_ranges hold a single segment of /{prefix}, so that a single node gets addresses; raise {key}, or \
                     widen the range"
                ));
            }
            if all > 0 && pods < FEW_PODS {
                warnings.push(format!(
                    "segments.{key}: a segment of /{prefix} has room for {pods} pods, and a node for {}, with max_per_node = {}; lower {key}",
                    pods.saturating_mul(segments.max_per_node.into()),
                    segments.max_per_node
                ));
            }
        }
        if segments.quarantine_seconds == 0 {
            warnings.push(
                "segments.quarantine_seconds: with 0 the next node gets the segments of a deregistered one at once, while others may still \
                 send to that one's pods; leave it out for the default"
                    .to_owned(),
            );
        }
        warnings
    }

    fn of_kubernetes(&self) -> Vec<String> {
        let Some(kubernetes) = &self.kubernetes else { return vec![] };
        let edges = kubernetes.edge_selector.as_str().trim();
        if edges.is_empty() {
            return vec![
                "kubernetes.edge_selector: it is empty, so that every Node is an edge, and none may join as hub by service account; name \
                 the edges' label"
                    .to_owned(),
            ];
        }
        let same = [("hub_selector", &kubernetes.hub_selector), ("cloud_selector", &kubernetes.cloud_selector)];
        let same = same.into_iter().filter(|(_, selector)| selector.as_str().trim() == edges);
        same.map(|(key, _)| {
            format!("kubernetes.{key}: it is {edges:?}, as is edge_selector, and an edge may not join in this role; name another label")
        })
        .collect()
    }
}

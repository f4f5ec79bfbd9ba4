//! Files below the state directory (`/var/lib/edge-cni`) that the plugin and the agent share.
//!
//! The agent writes [`SEGMENTS_FILE`], and the plugin writes leases, both under an exclusive
//! `flock` on [`LOCK_FILE`]. Both replace a file as a whole ([`crate::durable`]).

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// Default state directory.
pub const STATE_DIR: &str = "/var/lib/edge-cni";
/// Lock file. A program that reads files in order to change them locks it exclusively.
pub const LOCK_FILE: &str = "lock";
/// Segments of this node, JSON ([`SegmentsFile`]). The agent writes it. Without an agent, the
/// plugin writes it once from its configuration.
pub const SEGMENTS_FILE: &str = "segments.json";
/// Leases of pods, in the plugin's own format. Name of a directory or a file.
pub const LEASES_FILE: &str = "leases";
/// The agent's last view, JSON ([`crate::NodeView`]).
pub const VIEW_FILE: &str = "view.json";

/// Content of [`SEGMENTS_FILE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentsFile {
    /// Version of the layout: 1.
    pub version: u32,
    /// The program that provided the segments.
    pub source: SegmentsSource,
    /// Segments in the order in which they were granted. Pods get addresses from the first segment
    /// with a free address.
    pub segments: Vec<IpNetwork>,
    /// All ranges from which segments are cut, in the whole cluster. The guard protects them.
    #[serde(default)]
    pub cluster_ranges: Vec<IpNetwork>,
    /// MTU for pods, bytes. 0 if the agent does not know it.
    #[serde(default)]
    pub mtu: u32,
    /// On a hub: the cloud networks that the hub fronts. The guard allows them in addition to the
    /// hub's own segments.
    #[serde(default)]
    pub networks: Vec<IpNetwork>,
    /// On an edge: the cloud networks that hubs front, such as the cloud's service range. Packets
    /// that an outside host routes to these networks through this node are not for a published
    /// port.
    #[serde(default)]
    pub hub_networks: Vec<IpNetwork>,
    /// The bridge with a gateway in each segment, if the plugin wrote the file. A plugin network
    /// with another bridge may have its own segments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
}

/// The program that wrote [`SegmentsFile`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SegmentsSource {
    /// The plugin, from `segments` in its configuration. The agent may overwrite it.
    Configuration,
    /// The agent. Once the agent has written the file, the plugin's `segments` are ignored.
    Agent,
}

/// Returns the number of pods that fit into a segment, at most `u64::MAX`. These addresses are
/// reserved: the network's address (in IPv6 the subnet-router anycast address, RFC 4291 2.6.1), the
/// first host address, which the bridge has, and in IPv4 the broadcast address.
pub fn pod_capacity(segment: &IpNetwork) -> u64 {
    let (bits, reserved) = match segment {
        IpNetwork::V4(segment) => (32 - segment.prefix(), 3),
        IpNetwork::V6(segment) => (128 - segment.prefix(), 2),
    };
    1u64.checked_shl(bits.into()).unwrap_or(u64::MAX).saturating_sub(reserved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_holds_its_addresses_less_network_gateway_and_broadcast() {
        for (segment, pods) in [
            ("10.0.0.0/26", 61),
            ("10.0.0.0/30", 1),
            ("10.0.0.0/31", 0),
            ("10.0.0.0/32", 0),
            ("fd00::/120", 254),
            ("fd00::/126", 2),
            ("fd00::/128", 0),
            ("fd00::/32", u64::MAX - 2),
        ] {
            assert_eq!(pod_capacity(&segment.parse().unwrap()), pods, "{segment}");
        }
    }
}

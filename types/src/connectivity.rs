//! Checks whether nodes reach each other. The operator starts a check at the controller, which asks
//! the agents to measure the paths between them.
//!
//! The controller sends a [`MeasurementRequest`] on the view stream of a node that offered to
//! measure (`measures=true`). The node responds with a [`MeasurementReport`].

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::name::{Community, NodeName};

/// Maximum number of nodes in one [`MeasurementRequest`]. An agent ignores further ones.
pub const MOST_TARGETS: usize = 8;
/// Maximum number of addresses of one node in a [`MeasurementRequest`] and a [`MeasurementReport`],
/// one of each family. Further ones are ignored.
pub const MOST_ADDRESSES: usize = 2;
/// Maximum number of echo requests to one address. Larger counts are reduced to it.
pub const MOST_ECHO_REQUESTS: u16 = 100;
/// Maximum number of paths in one check.
pub const MOST_PATHS: u32 = 10_000;

/// Line of the view stream: the node is asked to measure the paths to other nodes. Without targets
/// it only reports its own addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MeasurementRequest {
    /// Identifier, which the report repeats.
    pub id: String,
    /// Number of echo requests to each address, 1 to [`MOST_ECHO_REQUESTS`].
    pub count: u16,
    /// The other nodes, at most [`MOST_TARGETS`].
    pub targets: Vec<MeasurementTarget>,
}

/// The other end of the paths that are measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MeasurementTarget {
    /// Name of the other node.
    pub node: NodeName,
    /// The other node's own addresses behind its tunnels, at most [`MOST_ADDRESSES`]. If there is
    /// none, the node only reports the state of its tunnel.
    pub addresses: Vec<IpAddr>,
}

/// `POST /v1/nodes/{node}/measurements`: the response to a [`MeasurementRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MeasurementReport {
    /// [`MeasurementRequest::id`].
    pub id: String,
    /// Addresses at which this node itself answers packets that come out of tunnels, at most
    /// [`MOST_ADDRESSES`].
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// A measurement for each address of each target.
    #[serde(default)]
    pub paths: Vec<PathMeasurement>,
    /// The reason why nothing was measured; absent if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// The measurement of a path from the reporting node to one address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PathMeasurement {
    /// Name of the other node.
    pub node: NodeName,
    /// Phase of the tunnel to the other node, as `edge-agent status` names it; absent if the other
    /// node is no peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<String>,
    /// The address to which packets were sent; absent if none was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Number of echo requests.
    pub sent: u16,
    /// Number of replies, at most `sent`.
    pub received: u16,
    /// Round-trip times; absent without a reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_trip: Option<RoundTrip>,
    /// Size in bytes of the largest IP packet that arrives unfragmented, up to the pods' MTU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Estimate of the throughput, from the time between the replies to a train of packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits_per_second: Option<u64>,
    /// The reason why no reply came, as far as the node knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Round-trip times in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RoundTrip {
    /// The shortest.
    pub min_us: u64,
    /// The average.
    pub average_us: u64,
    /// The longest.
    pub max_us: u64,
}

/// `POST /v1/connectivity`, for the operator: which paths are checked. Unknown keys are refused: a
/// misspelt filter would check other paths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ConnectivityRequest {
    /// Nodes between which paths are checked. Empty together with `communities`: all edges and
    /// hubs.
    #[serde(default)]
    pub nodes: Vec<NodeName>,
    /// Communities whose members are added to `nodes`.
    #[serde(default)]
    pub communities: Vec<Community>,
    /// Maximum number of paths, 1 to [`MOST_PATHS`]. If there are more, some are chosen at random.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 10_000)))]
    pub most_paths: u32,
    /// Number of echo requests to each address, 1 to [`MOST_ECHO_REQUESTS`].
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 100)))]
    pub count: u16,
}

/// A line of the response to [`ConnectivityRequest`] (NDJSON). The first one is a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum ConnectivityEvent {
    /// What is checked.
    Plan(ConnectivityPlan),
    /// The result for one path and one address family.
    Path(Box<PathResult>),
    /// All paths have results.
    End,
}

/// The extent of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ConnectivityPlan {
    /// Number of nodes between which paths are checked.
    pub nodes: u64,
    /// Number of nodes from which these were chosen.
    pub of_nodes: u64,
    /// Number of paths that are checked. A path has a direction.
    pub paths: u64,
    /// Number of paths between these nodes.
    pub of_paths: u64,
}

/// The result for one path and one address family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PathResult {
    /// The node that sent packets.
    pub from: NodeName,
    /// Whether the two nodes may reach each other.
    pub permitted: bool,
    /// The judgement.
    pub verdict: Verdict,
    /// The reason for the judgement, if it needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The measurement.
    pub measured: PathMeasurement,
}

/// The judgement of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It is permitted, and the other node answered.
    Reached,
    /// It is permitted, and the tunnel is up or waits for a packet. No address behind the other
    /// node is known to answer.
    Tunnel,
    /// It is forbidden, and the other node did not answer.
    Separate,
    /// It is permitted, and the other node did not answer: a failure.
    Unreached,
    /// It is forbidden, and the other node answered: a failure.
    Exposed,
    /// It could not be measured.
    Unknown,
}

impl Verdict {
    /// Returns whether the path is as it should be.
    #[must_use]
    pub fn is_right(self) -> bool {
        matches!(self, Verdict::Reached | Verdict::Tunnel | Verdict::Separate)
    }

    /// Returns the verdict as it appears in tables and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Reached => "reached",
            Verdict::Tunnel => "tunnel",
            Verdict::Separate => "separate",
            Verdict::Unreached => "unreached",
            Verdict::Exposed => "exposed",
            Verdict::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_has_one_name() {
        use Verdict::{Exposed, Reached, Separate, Tunnel, Unknown, Unreached};
        for verdict in [Reached, Tunnel, Separate, Unreached, Exposed, Unknown] {
            assert_eq!(serde_json::to_value(verdict).unwrap(), verdict.as_str());
        }
    }
}

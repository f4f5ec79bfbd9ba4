//! Reads, for the operator, what all replicas wrote about nodes into the statuses of EdgeNodes.

use std::collections::HashMap;
use std::time::Duration;

use edge_controller_domain::clock::Seconds;
use edge_types::NodeName;
use edge_types::api::TunnelCount;
use kube::api::{ListParams, VersionMatch};
use kube::{Api, Client};

use super::client::explain;
use super::resources::{EdgeNode, EdgeNodeStatus};

/// Time limit for the API server's answer.
const LIST: Duration = Duration::from_secs(5);
const WHAT: &str = "edgenodes.edge-cni.io";

/// A reader of the statuses of EdgeNodes.
#[derive(Clone)]
pub struct NodeStatuses {
    nodes: Api<EdgeNode>,
}

/// The content of a node's status. It may be a few seconds old.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeStatus {
    /// The replica to which the node is connected.
    pub replica: Option<String>,
    /// The time when the node was last connected; `None` while it is connected, or if the time is
    /// unknown.
    pub last_seen: Option<Seconds>,
    /// The node's tunnels.
    pub tunnels: Option<TunnelCount>,
    /// Release of the node's agent.
    pub version: Option<String>,
    /// The obstacles that keep packets of the node's pods from arriving.
    pub obstacles: Vec<String>,
}

impl NodeStatuses {
    /// Makes a reader that uses this client.
    pub fn new(client: &Client) -> Self {
        Self { nodes: Api::all(client.clone()) }
    }

    /// Returns the statuses of all nodes that have one, from the API server's watch cache.
    ///
    /// # Errors
    /// Returns an error if the API server cannot be reached, or does not answer in time.
    pub async fn read(&self) -> Result<HashMap<NodeName, NodeStatus>, String> {
        let params = ListParams {
            resource_version: Some("0".into()),
            version_match: Some(VersionMatch::NotOlderThan),
            ..ListParams::default()
        };
        let listed = match tokio::time::timeout(LIST, self.nodes.list(&params)).await {
            Ok(listed) => listed.map_err(|error| explain(WHAT, &error))?,
            Err(_) => return Err(format!("the API server did not list {WHAT} within {} s", LIST.as_secs())),
        };
        let statuses = listed.items.into_iter().filter_map(|object| {
            let name = object.metadata.name?.parse().ok()?;
            Some((name, NodeStatus::from(object.status?)))
        });
        Ok(statuses.collect())
    }
}

impl From<EdgeNodeStatus> for NodeStatus {
    fn from(status: EdgeNodeStatus) -> Self {
        let count = |number: i32| u32::try_from(number).unwrap_or(0);
        Self {
            replica: status.replica,
            last_seen: status.last_seen.map(|at| at.0),
            tunnels: status.tunnels.map(|tunnels| TunnelCount {
                up: count(tunnels.up),
                wanted: count(tunnels.wanted),
                // A replica of an earlier release changes the numbers and leaves the names.
                down: match i64::from(tunnels.wanted) - i64::from(tunnels.up) {
                    down if tunnels.down.len() as i64 <= down => {
                        tunnels.down.iter().filter_map(|name| name.parse().ok()).collect()
                    }
                    _ => vec![],
                },
            }),
            version: status.agent_version,
            obstacles: status.obstacles.map(|obstacles| obstacles.list).unwrap_or_default(),
        }
    }
}

//! Checks which roles a Node may have. The service account shows the role of a pod, but DaemonSets
//! place pods by labels. So the labels of the pod's Node are checked too, with selectors that a
//! kubelet cannot satisfy on its own.

use std::collections::BTreeMap;

use edge_types::{NodeName, Role};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};

use super::error::ReviewError;
use crate::client::{REQUEST, explain};
use crate::selector::NodeSelector;

/// Selectors for the Nodes of each role, as configured in `[kubernetes]`.
#[derive(Debug, Clone)]
pub struct RoleSelectors {
    /// Nodes that may join only as edges (`edge_selector`).
    pub edge: NodeSelector,
    /// Nodes that may join as hubs (`hub_selector`).
    pub hub: NodeSelector,
    /// Nodes that may join as other cloud nodes (`cloud_selector`).
    pub cloud: NodeSelector,
}

impl RoleSelectors {
    /// Refuses a role that a Node with these labels may not have. An edge may not join with another
    /// role's account, and a hub or other cloud node must be selected by the selector for its role.
    /// The role edge has the fewest rights, so any Node may have it.
    fn check_labels(&self, role: Role, node: &NodeName, labels: &BTreeMap<String, String>) -> Result<(), ReviewError> {
        let (key, selector) = match role {
            Role::Edge => return Ok(()),
            Role::Hub => ("hub_selector", &self.hub),
            Role::Cloud => ("cloud_selector", &self.cloud),
        };
        if self.edge.matches(labels) {
            let edge = self.edge.as_str();
            return Err(ReviewError::Refused(format!(
                "Node {node} is an edge (edge_selector {edge:?}), and its pod asks to join as {role}; an edge joins as an edge alone"
            )));
        }
        if !selector.matches(labels) {
            let text = selector.as_str();
            return Err(ReviewError::Refused(format!(
                "Node {node} is not selected as {role} ({key} {text:?}); if it is to be one: kubectl label node {node} {text}"
            )));
        }
        Ok(())
    }

    /// Reads the Node and refuses a role that the Node may not have. `uid` is the UID of the Node
    /// to which the token is bound, if the token contains it.
    pub async fn check(
        &self,
        client: &Client,
        role: Role,
        node: &NodeName,
        uid: Option<&str>,
    ) -> Result<(), ReviewError> {
        if role == Role::Edge {
            return Ok(());
        }
        let nodes: Api<Node> = Api::all(client.clone());
        let found = match tokio::time::timeout(REQUEST, nodes.get_metadata_opt(node.as_str())).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return Err(ReviewError::Failed(explain("nodes", &error))),
            Err(_) => return Err(ReviewError::Failed(format!("the API server does not answer about Node {node}"))),
        };
        let metadata = match found {
            Some(found) if uid.is_none_or(|uid| found.metadata.uid.as_deref() == Some(uid)) => found.metadata,
            Some(_) => {
                return Err(ReviewError::Refused(format!(
                    "Node {node} was created again since; a new token of the pod names the present one"
                )));
            }
            None => return Err(ReviewError::Refused(format!("there is no Node {node}"))),
        };
        self.check_labels(role, node, &metadata.labels.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EDGE: (&str, &str) = ("node-role.kubernetes.io/edge", "");
    const HUB: (&str, &str) = ("node-restriction.kubernetes.io/edge-cni-role", "hub");
    const CLOUD: (&str, &str) = ("node-restriction.kubernetes.io/edge-cni-role", "cloud");
    /// A label that a kubelet can set on its own Node.
    const OWN_WORD: (&str, &str) = ("edge-cni.io/role", "hub");

    #[test]
    fn a_node_has_a_role_in_the_cloud_only_by_a_label_that_no_kubelet_sets_and_an_edge_never() {
        let selectors =
            RoleSelectors { edge: NodeSelector::edges(), hub: NodeSelector::hubs(), cloud: NodeSelector::clouds() };
        let checked = |role, labels: &[(&str, &str)]| {
            let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            selectors.check_labels(role, &"n".parse().unwrap(), &labels).map_err(|refusal| refusal.to_string())
        };
        assert_eq!(checked(Role::Hub, &[HUB]), Ok(()));
        assert_eq!(checked(Role::Cloud, &[CLOUD, OWN_WORD]), Ok(()));
        assert_eq!(checked(Role::Edge, &[EDGE]), Ok(()));
        for (role, labels, says) in [
            (Role::Hub, &[OWN_WORD] as &[_], "hub_selector"),
            (Role::Hub, &[CLOUD], "hub_selector"),
            (Role::Cloud, &[HUB], "cloud_selector"),
            (Role::Cloud, &[], "kubectl label node n node-restriction.kubernetes.io/edge-cni-role=cloud"),
            (Role::Hub, &[EDGE, HUB], "is an edge"),
            (Role::Cloud, &[EDGE, CLOUD], "is an edge"),
        ] {
            let error = checked(role, labels).unwrap_err();
            assert!(error.contains(says), "{says}: {error}");
        }
    }
}

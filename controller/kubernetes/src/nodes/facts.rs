//! Reads the labels, annotations and addresses that the controller uses from the metadata of a
//! Node, and the networks of its pods from its spec.

use std::collections::BTreeMap;

use edge_controller_domain::node_addresses::MOST;
use edge_controller_domain::state::{NodeObject, PublicAddress};
use edge_types::name::{COMMUNITY_LABEL, COMMUNITY_LABEL_ALIAS};
use edge_types::{Communities, IpNetwork, NodeName};
use k8s_openapi::api::core::v1::NodeSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::label_trust::RESTRICTED_COMMUNITY_LABEL;
use crate::selector::NodeSelector;

/// Annotation with the addresses at which a node is reached from outside, for a node that cannot
/// determine these addresses itself.
pub const ADDRESSES: &str = "edge-cni.io/public-addresses";

/// Maximum number of networks of a node's pods: Kubernetes allows one for each family.
const MOST_POD_NETWORKS: usize = 2;
/// Maximum length of an address with its port, in bytes.
const LONGEST_ADDRESS: usize = 64;

/// The data that the controller takes from a Node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NodeFacts {
    pub(super) object: NodeObject,
    /// Whether the selector of edges selects the Node; `None` if it has no community label.
    pub(super) labelled: Option<bool>,
    /// Messages about invalid labels and addresses.
    pub(super) rejected: Vec<String>,
}

pub(super) fn name_of(metadata: &ObjectMeta) -> Option<NodeName> {
    metadata.name.as_ref()?.parse().ok()
}

/// Reads the metadata of a Node; `None` if it has no UID. Labels count only if `selector` selects
/// the Node.
pub(super) fn facts(metadata: &ObjectMeta, selector: &NodeSelector) -> Option<NodeFacts> {
    let none = BTreeMap::new();
    let labels = metadata.labels.as_ref().unwrap_or(&none);
    let mut rejected = Vec::new();
    let (mut communities, mut restricted_communities) = (Communities::new(), Communities::new());
    let community_labels = [COMMUNITY_LABEL, COMMUNITY_LABEL_ALIAS, RESTRICTED_COMMUNITY_LABEL];
    let selected = selector.matches(labels);
    let is_set = |label: &str| labels.get(label).is_some_and(|value| !value.is_empty());
    let labelled = community_labels.into_iter().any(is_set).then_some(selected);
    // Only edges are in communities.
    if selected {
        for label in community_labels {
            let named =
                if label == RESTRICTED_COMMUNITY_LABEL { &mut restricted_communities } else { &mut communities };
            let value = labels.get(label).map(String::as_str).unwrap_or_default();
            for part in value.split('_').filter(|part| !part.is_empty()) {
                match part.parse() {
                    Ok(community) => drop(named.insert(community)),
                    Err(error) => rejected.push(format!("label {label}={value}: {error}")),
                }
            }
        }
    }
    let mut public_addresses: Vec<PublicAddress> = Vec::new();
    let text = metadata.annotations.as_ref().and_then(|annotations| annotations.get(ADDRESSES));
    let mut parts =
        text.map(String::as_str).unwrap_or_default().split(',').map(str::trim).filter(|part| !part.is_empty());
    // A kubelet may write any number of addresses.
    for part in parts.by_ref().take(MOST) {
        match part.parse() {
            _ if part.len() > LONGEST_ADDRESS => {
                rejected.push(format!("annotation {ADDRESSES}: {} characters are no address", part.len()));
            }
            Ok(address) if public_addresses.contains(&address) => {}
            Ok(address) => public_addresses.push(address),
            Err(error) => rejected.push(format!("annotation {ADDRESSES}: {error}")),
        }
    }
    if parts.next().is_some() {
        rejected.push(format!("annotation {ADDRESSES}: more than {MOST} addresses"));
    }
    let uid = metadata.uid.clone()?;
    // What is not in the metadata is read when the record is written.
    let object = NodeObject { uid, communities, restricted_communities, public_addresses, ..NodeObject::default() };
    Some(NodeFacts { object, labelled, rejected })
}

/// Reads the networks of the pods on a node, at most one for each family. Host bits are removed.
pub(super) fn pod_networks(spec: &NodeSpec) -> Vec<IpNetwork> {
    // `podCIDR` is the older field for the first of `podCIDRs`.
    let all = spec.pod_cidrs.as_ref().filter(|all| !all.is_empty());
    let all = all.map(Vec::as_slice).unwrap_or(spec.pod_cidr.as_slice());
    let mut networks: Vec<IpNetwork> = Vec::with_capacity(MOST_POD_NETWORKS);
    for network in all.iter().take(MOST_POD_NETWORKS).filter_map(|text| text.parse::<IpNetwork>().ok()) {
        let network = IpNetwork::new(network.network(), network.prefix()).unwrap_or(network);
        if networks.iter().all(|known| known.is_ipv4() != network.is_ipv4()) {
            networks.push(network);
        }
    }
    networks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(labels: &[(&str, &str)], addresses: &str) -> ObjectMeta {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        ObjectMeta {
            uid: Some("u".into()),
            labels: Some(map(labels)),
            annotations: Some(map(&[(ADDRESSES, addresses)])),
            ..ObjectMeta::default()
        }
    }

    const EDGE: (&str, &str) = ("node-role.kubernetes.io/edge", "");

    #[test]
    fn both_labels_of_an_edge_name_its_communities_and_a_bad_name_spoils_no_other() {
        let labels = [
            EDGE,
            (COMMUNITY_LABEL, "alpha_-x_beta"),
            (COMMUNITY_LABEL_ALIAS, "beta_gamma"),
            (RESTRICTED_COMMUNITY_LABEL, "delta"),
        ];
        let facts = facts(&node(&labels, ""), &NodeSelector::edges()).unwrap();
        let names: Vec<&str> = facts.object.communities.iter().map(|c| c.as_str()).collect();
        assert_eq!(names, ["alpha", "beta", "gamma"]);
        assert_eq!(facts.object.restricted_communities, ["delta".parse().unwrap()].into());
        assert!(facts.rejected.len() == 1 && facts.rejected[0].contains("\"-x\""), "{:?}", facts.rejected);
    }

    #[test]
    fn a_node_that_is_no_edge_is_in_no_community_whatever_its_labels() {
        let facts = facts(&node(&[(COMMUNITY_LABEL, "alpha")], "192.0.2.1"), &NodeSelector::edges()).unwrap();
        assert!(facts.object.communities.is_empty());
        assert_eq!(facts.object.public_addresses.len(), 1);
    }

    #[test]
    fn public_addresses_are_of_either_family_with_or_without_a_port() {
        let text = "203.0.113.7, 203.0.113.7:4501,2001:db8::1 ,[2001:db8::1]:4501,203.0.113.7,x,1.2.3.4:0";
        let facts = facts(&node(&[EDGE], text), &NodeSelector::edges()).unwrap();
        let shown: Vec<String> = facts.object.public_addresses.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["203.0.113.7", "203.0.113.7:4501", "2001:db8::1", "[2001:db8::1]:4501"]);
        assert_eq!(facts.rejected.len(), 2);
    }

    #[test]
    fn an_annotation_as_long_as_they_may_be_is_a_few_addresses_and_a_few_words_about_the_rest() {
        let read = |text: &str| facts(&node(&[EDGE], text), &NodeSelector::edges()).unwrap();
        let many: Vec<String> = (0..10_000).map(|n| format!("192.0.2.{}:{}", n % 250, n + 1)).collect();
        let many = read(&many.join(","));
        assert_eq!((many.object.public_addresses.len(), many.rejected.len()), (MOST, 1));
        let nonsense = read(&format!("{},{}", "x".repeat(200_000), "y,".repeat(10_000)));
        assert!(nonsense.rejected.len() <= MOST + 1 && nonsense.rejected.iter().all(|said| said.len() < 256));
    }

    #[test]
    fn the_networks_of_a_nodes_pods_are_one_of_each_family() {
        let read = |all: &[&str], one: Option<&str>| {
            let all = all.iter().map(|text| (*text).to_owned()).collect();
            let spec = NodeSpec { pod_cidr: one.map(Into::into), pod_cidrs: Some(all), ..NodeSpec::default() };
            pod_networks(&spec).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(pod_networks(&NodeSpec::default()).is_empty());
        let both = ["10.244.3.0/24", "fd00:244:0:3::/64"];
        assert_eq!(read(&both, Some("10.244.3.0/24")), both);
        assert_eq!(read(&[], Some("10.244.3.0/24")), ["10.244.3.0/24"]);
        assert_eq!(read(&["10.244.3.7/24"], None), ["10.244.3.0/24"]);
        assert_eq!(read(&["10.244.3.0/24", "10.244.4.0/24", "fd00::/64"], None), ["10.244.3.0/24"]);
        assert_eq!(read(&["x", "10.244.3.0/33"], None), Vec::<String>::new());
    }
}

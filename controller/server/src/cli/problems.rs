//! What is wrong with a node.

use edge_types::api::NodeInfo;

/// Problems of a node that the operator should look at.
pub(super) fn problems(node: &NodeInfo) -> Vec<String> {
    let missing = "its Node object is gone, with so many others that it was not believed: \
                   edge-controller node deregister --confirm, if it is meant";
    let refused = node.refused_view.as_ref().map(|why| format!("it does not take its view: {why}"));
    let missing = node.missing.then(|| missing.to_owned());
    missing.into_iter().chain(refused).chain(node.conflicts.iter().cloned()).collect()
}

//! Handles registered nodes whose Node object is missing or was replaced by another one.
//!
//! If somebody deletes one or two Nodes, their nodes are deregistered. If many Nodes disappear at
//! once, or a list has no Node at all, no node is deregistered and the operator must confirm.
//! Answers from another cluster do not count.

use std::collections::BTreeSet;

use edge_controller_domain::mass_deletion::SETTLE_TIME;
use edge_types::NodeName;
use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use tokio::time::Instant;

use super::pending::DeletedNode;
use super::watch::{NodeWatch, WHAT};
use crate::client::{REQUEST, explain};
use crate::cluster_identity::ClusterIdentityError;
use crate::events::Regarding;

/// Maximum number of Nodes that are read at the same time.
const CONCURRENT_READS: usize = 32;

impl NodeWatch {
    /// Records that the Node of this name is gone. The record may belong to an earlier Node.
    pub(super) async fn mark_deleted(&mut self, name: NodeName) {
        self.known.remove(&name);
        self.machine_unknown.remove(&name);
        let state = self.registry.read().await;
        if let Some(object) = state.node(&name).and_then(|record| record.object.as_ref()) {
            self.deleted.insert(name, DeletedNode::new(object.uid.clone()));
        }
    }

    /// Returns whether a decision is pending for a node without its Node object.
    pub(super) fn is_undecided(&self) -> bool {
        self.deleted.iter().any(|(name, deleted)| !deleted.confirmed || !self.asked.contains(name))
    }

    /// Requests that the undecided nodes are read again.
    pub(super) fn recheck(&mut self) {
        self.deleted.values_mut().filter(|deleted| !deleted.replaced).for_each(|deleted| deleted.confirmed = false);
    }

    /// Decides about nodes without their Node object.
    ///
    /// # Errors
    /// Returns an error if it is not certain that our cluster answers.
    pub(super) async fn decide_deleted(&mut self) -> Result<(), ClusterIdentityError> {
        self.confirm_by_name().await;
        self.forget_deregistered().await;
        let confirmed: Vec<NodeName> =
            self.deleted.iter().filter(|(_, deleted)| deleted.confirmed).map(|(name, _)| name.clone()).collect();
        let (asked, new): (BTreeSet<NodeName>, BTreeSet<NodeName>) =
            confirmed.iter().cloned().partition(|name| self.asked.contains(name));
        // Nodes that are read again stay undecided.
        let asked: BTreeSet<NodeName> =
            asked.into_iter().chain(self.deleted.keys().filter(|name| self.asked.contains(name)).cloned()).collect();
        if new.is_empty() {
            self.asked.set(asked);
            return Ok(());
        }
        let newest =
            self.deleted.iter().filter(|(name, _)| new.contains(*name)).map(|(_, deleted)| deleted.since).max();
        if newest.is_some_and(|newest| newest.elapsed() < SETTLE_TIME) {
            return Ok(());
        }
        self.identity.check().await?;
        let registered = {
            let state = self.registry.read().await;
            state.nodes().filter(|record| record.object.is_some()).count()
        };
        let too_much = self.recent.are_too_many(confirmed.len(), registered, Instant::now());
        if self.confirm && (too_much || self.none_listed) {
            self.ask(asked, new);
            return Ok(());
        }
        for name in new {
            let Some(deleted) = self.deleted.remove(&name) else { continue };
            let why = match deleted.replaced {
                true => "its Node object was deleted, and another one has its name",
                false => "its Node object was deleted",
            };
            match self.deregister(&name, &deleted.uid, why).await {
                true => self.recent.note(1, Instant::now()),
                false => drop(self.deleted.insert(name, deleted)),
            }
        }
        Ok(())
    }

    fn ask(&self, asked: BTreeSet<NodeName>, new: BTreeSet<NodeName>) {
        let count = asked.len() + new.len();
        for name in self.asked.set(asked.into_iter().chain(new).collect()) {
            let note = format!(
                "its Node object is gone, as are those of {count} nodes in all, too many at once to believe it: it stays registered; to deregister \
                 it, edge-controller node deregister {name}, and all of them, edge-controller node deregister --confirm"
            );
            tracing::warn!(node = %name, "{note}");
            self.events.warning(Regarding::EdgeNode, name.as_str(), "NodeMissing", note);
        }
    }

    /// Reads each node by its name from the API server, many at the same time. Events of other
    /// Nodes wait until all of them are read.
    async fn confirm_by_name(&mut self) {
        let unconfirmed = self.deleted.iter().filter(|(_, deleted)| !deleted.confirmed);
        let unconfirmed: Vec<NodeName> = unconfirmed.map(|(name, _)| name.clone()).collect();
        let api = self.api.clone();
        let ask = |name: NodeName| {
            let api = api.clone();
            async move { (look_up(&api, &name).await, name) }
        };
        let mut looked_up = stream::iter(unconfirmed).map(ask).buffer_unordered(CONCURRENT_READS);
        while let Some((found, name)) = looked_up.next().await {
            match found {
                Ok(None) => {
                    self.known.remove(&name);
                    if let Some(deleted) = self.deleted.get_mut(&name) {
                        deleted.confirmed = true;
                    }
                }
                Ok(Some(metadata)) => {
                    self.deleted.remove(&name);
                    self.observe(metadata);
                }
                // The other reads would probably fail too; they are repeated later.
                Err(why) => {
                    self.api_failures.record("a deleted node", why);
                    return;
                }
            }
        }
        self.api_failures.clear("a deleted node");
    }

    /// Drops nodes that need no decision any more.
    async fn forget_deregistered(&mut self) {
        let state = self.registry.read().await;
        let (asked, recent, now) = (&self.asked, &mut self.recent, Instant::now());
        self.deleted.retain(|name, deleted| {
            let record = state.node(name);
            let Some(object) = record.and_then(|record| record.object.as_ref()) else {
                // Another replica deregistered the node, or the operator confirmed its
                // deregistration.
                if record.is_none() && !asked.contains(name) {
                    recent.note(1, now);
                }
                return false;
            };
            let of_another = deleted.uid != object.uid;
            if of_another && !deleted.replaced {
                // Another replica has recorded a later Node. The API server is asked whether that
                // Node exists.
                *deleted = DeletedNode::new(object.uid.clone());
            }
            !(of_another && deleted.replaced)
        });
    }
}

/// Reads one Node; `None` only if the API server responds that it does not exist.
async fn look_up(api: &Api<Node>, name: &NodeName) -> Result<Option<ObjectMeta>, String> {
    match tokio::time::timeout(REQUEST, api.get_metadata_opt(name.as_str())).await {
        Ok(Ok(node)) => Ok(node.map(|node| node.metadata)),
        Ok(Err(error)) => Err(explain(WHAT, &error)),
        Err(_) => Err(format!("the API server did not say within {} s whether Node {name} exists", REQUEST.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use edge_controller_domain::clock::Clock;
    use edge_controller_domain::registry::Registry;
    use edge_controller_domain::state::{Change, NodeObject, NodeRecord, State};
    use edge_controller_domain::store::StoreError;
    use edge_controller_domain::store::embedded::Embedded;
    use edge_types::Role;
    use kube::{Client, Config};

    use super::*;
    use crate::client::ApiFailures;
    use crate::cluster_identity::ClusterIdentity;
    use crate::events::EventRecorder;
    use crate::selector::NodeSelector;

    /// A watch of three registered nodes with Node objects. Nothing listens at the API server's
    /// address, because these tests send no request.
    async fn watch_of_three(directory: &tempfile::TempDir) -> NodeWatch {
        let store = Arc::new(Embedded::open(directory.path()).unwrap());
        let registry = Registry::start(store, Clock::system(), false).await.unwrap();
        for node in ["a", "b", "c"] {
            let object = NodeObject { uid: format!("uid of {node}"), ..NodeObject::default() };
            let record = NodeRecord::new(node.parse().unwrap(), Role::Edge, 0);
            commit(&registry, Change::PutNode(NodeRecord { object: Some(object), ..record })).await;
        }
        let client = Client::try_from(Config::new("http://127.0.0.1:9".parse().unwrap())).unwrap();
        let identity = ClusterIdentity::new(&client, registry.clone(), None);
        let (failures, selector) = (ApiFailures::default(), NodeSelector::edges());
        NodeWatch::new(&client, registry, selector, failures, EventRecorder::default(), identity)
    }

    async fn commit(registry: &Registry, change: Change) {
        let plan = move |_: &mut State| Ok::<_, StoreError>(((), vec![change.clone()]));
        registry.change(plan).await.unwrap();
    }

    // With a real API server the replicas decide at the same moment. In this test another replica
    // is always first.
    #[tokio::test]
    async fn deletions_that_another_replica_accepts_count_towards_the_limit_of_this_one() {
        let directory = tempfile::tempdir().unwrap();
        let mut watch = watch_of_three(&directory).await;
        for node in ["a", "b"] {
            let node: NodeName = node.parse().unwrap();
            watch.mark_deleted(node.clone()).await;
            assert!(watch.is_undecided() && !watch.recent.are_too_many(1, 3, Instant::now()));
            commit(&watch.registry, Change::DeleteNode(node)).await;
            watch.forget_deregistered().await;
            assert!(!watch.is_undecided());
        }
        assert!(watch.recent.are_too_many(1, 1, Instant::now()), "the third of three is asked about");
    }

    #[tokio::test]
    async fn nodes_that_the_operator_deregisters_when_asked_do_not_count_towards_the_limit() {
        let directory = tempfile::tempdir().unwrap();
        let mut watch = watch_of_three(&directory).await;
        let asked: BTreeSet<NodeName> = ["a", "b"].map(|node| node.parse().unwrap()).into();
        for node in &asked {
            watch.mark_deleted(node.clone()).await;
        }
        watch.asked.set(asked.clone());
        for node in asked {
            commit(&watch.registry, Change::DeleteNode(node)).await;
        }
        watch.forget_deregistered().await;
        assert!(!watch.recent.are_too_many(1, 1, Instant::now()));
    }
}

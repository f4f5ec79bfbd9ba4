//! Watches Nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use edge_controller_domain::mass_deletion::RecentDeletions;
use edge_controller_domain::networks::ClusterNetworks;
use edge_controller_domain::registry::Registry;
use edge_types::NodeName;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::PartialObjectMeta;
use kube::{Api, Client};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::Instant;

use super::facts::{NodeFacts, facts, name_of};
use super::labelled::LabelledNodes;
use super::pending::{DeletedNode, DeletedNodes, PendingDeregistrations};
use super::pod_networks::NetworksInForce;
use crate::certificate_grace::{CertificateGrace, no_grace};
use crate::client::ApiFailures;
use crate::cluster_identity::{ClusterIdentity, ClusterIdentityError};
use crate::events::{EventRecorder, Regarding};
use crate::label_trust::LabelTrust;
use crate::list_watch::{ListWatchEvent, Metadata, list_and_watch};
use crate::node_trust::NodeTrust;
use crate::selector::NodeSelector;

/// Plural of the kind, for messages.
pub(super) const WHAT: &str = "nodes";
/// What a replica has read once before it is ready.
pub const NEEDED_AT_START: [&str; 2] = [CLUSTER, WHAT];
/// Name of the failure to confirm that the API server still belongs to the same cluster.
pub(crate) const CLUSTER: &str = "the cluster";
/// Delay before the cluster's identity is checked again.
const IDENTITY_RETRY: Duration = Duration::from_secs(5);
/// Delay before failed work is repeated.
const RETRY: Duration = Duration::from_secs(1);
/// Interval at which all Nodes are compared with their records, even without an event.
const RESYNC: Duration = Duration::from_secs(60);

/// A watch of Nodes that records their labels and addresses.
pub struct NodeWatch {
    pub(super) api: Api<Node>,
    pub(super) registry: Registry,
    pub(super) selector: NodeSelector,
    pub(super) trust: NodeTrust,
    pub(super) api_failures: ApiFailures,
    pub(super) events: EventRecorder,
    pub(super) known: BTreeMap<NodeName, NodeFacts>,
    /// Nodes that must be compared with their records.
    pub(super) changed: BTreeSet<NodeName>,
    /// Nodes that were read as a whole since the last resync, if they had to be.
    pub(super) nodes_read: BTreeSet<NodeName>,
    /// Hubs whose Node object named no networks of pods when it was read last. It is read again
    /// when it changes, since Kubernetes assigns the networks after the Node is made.
    pub(super) without_pod_networks: BTreeSet<NodeName>,
    /// Nodes whose Node object has another UID and has not reported its machine ID yet, each with
    /// the time when this was first seen.
    pub(super) machine_unknown: BTreeMap<NodeName, Instant>,
    /// Registered nodes without their Node object.
    pub(super) deleted: DeletedNodes,
    /// Whether the last list was empty and no Node has been added since.
    pub(super) none_listed: bool,
    /// Nodes that were recently deregistered because their Node object was deleted.
    pub(super) recent: RecentDeletions,
    /// Nodes for which the operator must confirm the deregistration.
    pub(super) asked: PendingDeregistrations,
    labelled: LabelledNodes,
    /// Whether the operator must confirm before many nodes are deregistered.
    pub(super) confirm: bool,
    pub(super) identity: ClusterIdentity,
    pub(super) grace: CertificateGrace,
    pub(super) networks: NetworksInForce,
}

impl NodeWatch {
    /// Makes a watch of the Nodes that the client reaches.
    pub fn new(
        client: &Client,
        registry: Registry,
        selector: NodeSelector,
        api_failures: ApiFailures,
        events: EventRecorder,
        identity: ClusterIdentity,
    ) -> Self {
        Self {
            api: Api::all(client.clone()),
            trust: NodeTrust::without_labels(registry.address_changes.clone(), events.clone()),
            registry,
            selector,
            api_failures,
            events,
            known: BTreeMap::new(),
            changed: BTreeSet::new(),
            nodes_read: BTreeSet::new(),
            without_pod_networks: BTreeSet::new(),
            machine_unknown: BTreeMap::new(),
            deleted: DeletedNodes::new(),
            none_listed: false,
            recent: RecentDeletions::default(),
            asked: PendingDeregistrations::default(),
            labelled: LabelledNodes::default(),
            confirm: true,
            identity,
            grace: no_grace(),
            networks: Arc::new(|| ClusterNetworks { hub_pod_networks: true, ..ClusterNetworks::default() }),
        }
    }

    /// Sets whether the operator must confirm before many nodes are deregistered at once. `asked`
    /// then holds the nodes that wait for confirmation.
    pub fn asking(self, confirm: bool, asked: PendingDeregistrations) -> Self {
        Self { confirm, asked, ..self }
    }

    /// Records the Nodes with a community label here.
    pub fn noting(self, labelled: LabelledNodes) -> Self {
        Self { labelled, ..self }
    }

    /// Sets the time for which nodes' certificates are accepted after their end.
    pub fn with_grace(self, grace: CertificateGrace) -> Self {
        Self { grace, ..self }
    }

    /// Sets the networks with which those of hubs' pods are compared.
    pub fn with_networks(self, networks: NetworksInForce) -> Self {
        Self { networks, ..self }
    }

    /// Makes community labels count according to the value of this receiver. Without a receiver
    /// these labels do not count.
    pub fn with_labels(mut self, labels: watch::Receiver<LabelTrust>) -> Self {
        self.trust = self.trust.with_labels(labels);
        self
    }

    /// Watches Nodes. Never returns.
    pub async fn run(mut self) {
        let mut newcomers = self.registry.registrations().await;
        let mut resync = tokio::time::interval(RESYNC);
        resync.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            match self.identity.check().await {
                Ok(()) => {
                    self.api_failures.clear(CLUSTER);
                    let error = self.watch_nodes(&mut newcomers, &mut resync).await;
                    self.api_failures.record(CLUSTER, error.to_string());
                    self.deleted.clear();
                }
                Err(error) => self.api_failures.record(CLUSTER, error.to_string()),
            }
            tokio::time::sleep(IDENTITY_RETRY).await;
        }
    }

    /// Watches Nodes until it is uncertain which cluster answers.
    async fn watch_nodes(
        &mut self,
        newcomers: &mut broadcast::Receiver<NodeName>,
        resync: &mut tokio::time::Interval,
    ) -> ClusterIdentityError {
        let (sender, mut events) = mpsc::unbounded_channel();
        let source = Metadata(self.api.clone(), WHAT);
        let watching = list_and_watch(source, None, self.api_failures.clone(), move |event| {
            // When the server ends, the receiver is closed.
            let _ = sender.send(event);
        });
        tokio::pin!(watching);
        loop {
            let idle = self.changed.is_empty() && !self.is_undecided();
            tokio::select! {
                () = watching.as_mut() => {}
                Some(first) = events.recv() => {
                    let mut next = Some(first);
                    while let Some(one) = next {
                        if let Err(error) = self.apply(one).await {
                            return error;
                        }
                        next = events.try_recv().ok();
                    }
                }
                newcomer = newcomers.recv() => self.note_newcomer(newcomer, newcomers),
                () = self.trust.changed() => self.changed.extend(self.known.keys().cloned()),
                _ = resync.tick() => {
                    self.changed.extend(self.known.keys().cloned());
                    self.nodes_read.clear();
                    self.recheck();
                }
                () = tokio::time::sleep(RETRY), if !idle => {}
            }
            // The watch continues in the meantime: its events wait in the channel, and further ones
            // wait in the connection's buffers.
            self.record_changes().await;
            if let Err(error) = self.decide_deleted().await {
                return error;
            }
        }
    }

    fn note_newcomer(&mut self, newcomer: Result<NodeName, RecvError>, newcomers: &mut broadcast::Receiver<NodeName>) {
        match newcomer {
            Ok(name) => {
                // It may have another role now.
                self.nodes_read.remove(&name);
                self.changed.insert(name);
            }
            Err(RecvError::Lagged(_)) => self.changed.extend(self.known.keys().cloned()),
            Err(RecvError::Closed) => *newcomers = newcomers.resubscribe(),
        }
    }

    async fn apply(&mut self, events: ListWatchEvent<PartialObjectMeta<Node>>) -> Result<(), ClusterIdentityError> {
        match events {
            ListWatchEvent::ListStarted | ListWatchEvent::Bookmark(_) => {}
            ListWatchEvent::Applied(node) => {
                self.none_listed = false;
                self.observe(node.metadata);
            }
            ListWatchEvent::Deleted(node) => {
                if let Some(name) = name_of(&node.metadata) {
                    self.labelled.set(&name, None);
                    self.without_pod_networks.remove(&name);
                    self.mark_deleted(name).await;
                }
            }
            ListWatchEvent::Listed(nodes, _) => {
                // A list from another cluster does not contain our Nodes.
                self.identity.check().await?;
                self.none_listed = nodes.is_empty();
                let listed: BTreeSet<NodeName> =
                    nodes.into_iter().filter_map(|node| self.observe(node.metadata)).collect();
                self.known.retain(|name, _| listed.contains(name));
                self.labelled.retain(|name| listed.contains(name));
                self.machine_unknown.retain(|name, _| listed.contains(name));
                self.without_pod_networks.retain(|name| listed.contains(name));
                let state = self.registry.read().await;
                let known = state.nodes().filter_map(|record| Some((&record.name, record.object.as_ref()?)));
                for (name, object) in known.filter(|(name, _)| !listed.contains(*name)) {
                    let deleted =
                        self.deleted.entry(name.clone()).or_insert_with(|| DeletedNode::new(object.uid.clone()));
                    if deleted.replaced {
                        // The Node that replaced the deleted Node has also been deleted.
                        *deleted = DeletedNode::new(object.uid.clone());
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes the metadata of a Node. Returns its name if the name is valid. The node's record is
    /// compared with the metadata later.
    pub(super) fn observe(&mut self, metadata: ObjectMeta) -> Option<NodeName> {
        let name = name_of(&metadata)?;
        let facts = facts(&metadata, &self.selector)?;
        let before = self.known.get(&name);
        let another = before.is_none_or(|before| before.object.uid != facts.object.uid);
        if before.is_none_or(|before| before.rejected != facts.rejected) {
            for rejected in &facts.rejected {
                tracing::warn!(node = %name, "{rejected}; the rest of its Node object counts");
                let note = format!("{rejected}; the rest counts");
                self.events.warning(Regarding::Node, name.as_str(), "LabelRefused", note);
            }
        }
        let changed = before != Some(&facts);
        if changed || self.without_pod_networks.contains(&name) {
            self.changed.insert(name.clone());
            self.nodes_read.remove(&name);
        }
        if changed {
            self.labelled.set(&name, facts.labelled);
            self.known.insert(name.clone(), facts);
        }
        if another {
            // Information about the earlier Node does not apply to this Node.
            self.machine_unknown.remove(&name);
        }
        let uid = self.known.get(&name).map(|facts| &facts.object.uid);
        if self.deleted.get(&name).is_some_and(|deleted| another || !deleted.replaced || Some(&deleted.uid) == uid) {
            self.deleted.remove(&name);
        }
        Some(name)
    }
}

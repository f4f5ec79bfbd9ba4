//! Node objects: their labels put nodes into communities, an annotation gives the addresses at
//! which they are reached, and their deletion deregisters nodes.
//!
//! Every replica acts on the Nodes that it sees; a plan that would change nothing writes nothing.
//! All that is taken from a Node is kept in the node's record, so a lost API server changes nothing
//! either. A Node counts as deleted only when the API server says so for its name: a failed or
//! empty list or NotReady does not count.

mod deleted;
mod facts;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use edge_controller_domain::mass_deletion::RecentDeletions;
use edge_controller_domain::registry::Registry;
use edge_controller_domain::state::{Change, NodeObject, NodeRecord, State};
use edge_controller_domain::store::StoreError;
use edge_types::NodeName;
use futures_util::StreamExt;
use futures_util::stream;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::PartialObjectMeta;
use kube::{Api, Client};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::Instant;

use super::client::{ApiFailures, REQUEST, explain};
use super::cluster_identity::{ClusterIdentity, Doubt};
use super::events::{About, Events};
use super::label_trust::LabelTrust;
use super::list_watch::{ListWatchEvent, Metadata, list_and_watch};
use super::node_trust::NodeTrust;
use super::selector::NodeSelector;

const WHAT: &str = "nodes";
const CLUSTER: &str = "the cluster";
/// Wait before the cluster's identity is checked again.
const IDENTITY_RETRY: Duration = Duration::from_secs(5);
/// Time that a new Node has to report its machine ID.
const MACHINE_ID_WAIT: Duration = Duration::from_secs(60);
/// Longest machine ID that is kept, in bytes; systemd's has 32.
const LONGEST_MACHINE_ID: usize = 128;
/// Largest number of concurrent plans; the registry commits them together.
const CONCURRENT_PLANS: usize = 64;
/// Wait before failed work is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often all Nodes are compared with their records, even if no event came.
const RESYNC: Duration = Duration::from_secs(60);

pub use deleted::PendingDeregistrations;
use deleted::{DeletedNode, DeletedNodes};
pub use facts::ADDRESSES;
use facts::{Facts, facts, name_of};

/// Watches Nodes and records what they say.
pub struct NodeWatch {
    api: Api<Node>,
    registry: Registry,
    selector: NodeSelector,
    trust: NodeTrust,
    obstacles: ApiFailures,
    events: Events,
    known: BTreeMap<NodeName, Facts>,
    /// Nodes that must be compared with their records.
    changed: BTreeSet<NodeName>,
    /// Nodes with a machine ID that was read since the last resync.
    machines_read: BTreeSet<NodeName>,
    /// Nodes with a Node object of another UID that has not reported its machine ID yet, and since
    /// when.
    machine_unknown: BTreeMap<NodeName, Instant>,
    /// Registered nodes without their Node object.
    deleted: DeletedNodes,
    /// The last list was empty, and no Node has come since.
    none_listed: bool,
    /// Nodes that were deregistered lately because their Node object was deleted.
    recent: RecentDeletions,
    /// Nodes about which the operator is asked.
    asked: PendingDeregistrations,
    /// Whether the operator is asked before many nodes are deregistered.
    confirm: bool,
    identity: ClusterIdentity,
}

impl NodeWatch {
    /// Makes a watch of the Nodes that the client reaches.
    pub fn new(
        client: &Client,
        registry: Registry,
        selector: NodeSelector,
        obstacles: ApiFailures,
        events: Events,
        identity: ClusterIdentity,
    ) -> Self {
        Self {
            api: Api::all(client.clone()),
            trust: NodeTrust::without_labels(registry.address_changes.clone(), events.clone()),
            registry,
            selector,
            obstacles,
            events,
            known: BTreeMap::new(),
            changed: BTreeSet::new(),
            machines_read: BTreeSet::new(),
            machine_unknown: BTreeMap::new(),
            deleted: DeletedNodes::new(),
            none_listed: false,
            recent: RecentDeletions::default(),
            asked: PendingDeregistrations::default(),
            confirm: true,
            identity,
        }
    }

    /// Sets whether the operator is asked before many nodes are deregistered at once. `asked` then
    /// holds the nodes in question.
    pub fn asking(self, confirm: bool, asked: PendingDeregistrations) -> Self {
        Self { confirm, asked, ..self }
    }

    /// Makes community labels count as this receiver says; without it they do not count.
    pub fn counting(mut self, labels: watch::Receiver<LabelTrust>) -> Self {
        self.trust = self.trust.counting(labels);
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
                    self.obstacles.works(CLUSTER);
                    let doubt = self.watch_nodes(&mut newcomers, &mut resync).await;
                    self.obstacles.fails(CLUSTER, doubt.to_string());
                    self.deleted.clear();
                }
                Err(doubt) => self.obstacles.fails(CLUSTER, doubt.to_string()),
            }
            tokio::time::sleep(IDENTITY_RETRY).await;
        }
    }

    /// Watches Nodes until it is in doubt which cluster answers.
    async fn watch_nodes(
        &mut self,
        newcomers: &mut broadcast::Receiver<NodeName>,
        resync: &mut tokio::time::Interval,
    ) -> Doubt {
        let (sender, mut events) = mpsc::unbounded_channel();
        let source = Metadata(self.api.clone(), WHAT);
        let watching = list_and_watch(source, None, self.obstacles.clone(), move |event| {
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
                        if let Err(doubt) = self.apply(one).await {
                            return doubt;
                        }
                        next = events.try_recv().ok();
                    }
                }
                newcomer = newcomers.recv() => self.note_newcomer(newcomer, newcomers),
                () = self.trust.changed() => self.changed.extend(self.known.keys().cloned()),
                _ = resync.tick() => {
                    self.changed.extend(self.known.keys().cloned());
                    self.machines_read.clear();
                    self.recheck();
                }
                () = tokio::time::sleep(RETRY), if !idle => {}
            }
            // The watch goes on in the meantime: its events wait in the channel, and further ones
            // in the connection's buffers.
            self.record_changes().await;
            if let Err(doubt) = self.decide_deleted().await {
                return doubt;
            }
        }
    }

    fn note_newcomer(&mut self, newcomer: Result<NodeName, RecvError>, newcomers: &mut broadcast::Receiver<NodeName>) {
        match newcomer {
            Ok(name) => drop(self.changed.insert(name)),
            Err(RecvError::Lagged(_)) => self.changed.extend(self.known.keys().cloned()),
            Err(RecvError::Closed) => *newcomers = newcomers.resubscribe(),
        }
    }

    async fn apply(&mut self, events: ListWatchEvent<PartialObjectMeta<Node>>) -> Result<(), Doubt> {
        match events {
            ListWatchEvent::ListStarted | ListWatchEvent::Bookmark(_) => {}
            ListWatchEvent::Applied(node) => {
                self.none_listed = false;
                self.observe(node.metadata);
            }
            ListWatchEvent::Deleted(node) => {
                if let Some(name) = name_of(&node.metadata) {
                    self.mark_deleted(name).await;
                }
            }
            ListWatchEvent::Listed(nodes, _) => {
                // A list of another cluster says nothing about our nodes.
                self.identity.check().await?;
                self.none_listed = nodes.is_empty();
                let listed: BTreeSet<NodeName> =
                    nodes.into_iter().filter_map(|node| self.observe(node.metadata)).collect();
                self.known.retain(|name, _| listed.contains(name));
                self.machine_unknown.retain(|name, _| listed.contains(name));
                let view = self.registry.read().await;
                let known = view.state().nodes().filter_map(|record| Some((&record.name, record.object.as_ref()?)));
                for (name, object) in known.filter(|(name, _)| !listed.contains(*name)) {
                    let deleted =
                        self.deleted.entry(name.clone()).or_insert_with(|| DeletedNode::new(object.uid.clone()));
                    if deleted.replaced {
                        // The Node that replaced it is gone, too.
                        *deleted = DeletedNode::new(object.uid.clone());
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes what a Node says. Returns its name if it is valid. The record is compared later.
    fn observe(&mut self, metadata: ObjectMeta) -> Option<NodeName> {
        let name = name_of(&metadata)?;
        let facts = facts(&metadata, &self.selector)?;
        let before = self.known.get(&name);
        let another = before.is_none_or(|before| before.object.uid != facts.object.uid);
        if before.is_none_or(|before| before.rejected != facts.rejected) {
            for rejected in &facts.rejected {
                tracing::warn!(node = %name, "{rejected}; the rest of its Node object counts");
                let note = format!("{rejected}; the rest counts");
                self.events.warning(About::Node, name.as_str(), "LabelRefused", note);
            }
        }
        if before != Some(&facts) {
            self.changed.insert(name.clone());
            self.machines_read.remove(&name);
            self.known.insert(name.clone(), facts);
        }
        if another {
            // What was known of the earlier Node does not hold for this one.
            self.machine_unknown.remove(&name);
        }
        let uid = self.known.get(&name).map(|facts| &facts.object.uid);
        if self.deleted.get(&name).is_some_and(|deleted| another || !deleted.replaced || Some(&deleted.uid) == uid) {
            self.deleted.remove(&name);
        }
        Some(name)
    }

    /// Updates the records. Failed updates stay to be done.
    async fn record_changes(&mut self) {
        let differing: Vec<(NodeName, NodeObject)> = {
            let view = self.registry.read().await;
            let asked = &self.machines_read;
            let facts = std::mem::take(&mut self.changed).into_iter().filter_map(|name| {
                let said = self.known.get(&name)?.object.clone();
                let object = self.trust.accepted(&name, said, view.state().node(&name)?.object.as_ref());
                Some((name, object))
            });
            facts.filter(|(name, object)| differs(view.state(), name, object, !asked.contains(name))).collect()
        };
        let watch = &*self;
        let recorded: Vec<(NodeName, Recorded)> = stream::iter(differing)
            .map(|(name, object)| async move {
                let recorded = watch.record(&name, object).await;
                (name, recorded)
            })
            .buffer_unordered(CONCURRENT_PLANS)
            .collect()
            .await;
        for (name, recorded) in recorded {
            match recorded {
                Recorded::Done => {
                    self.machine_unknown.remove(&name);
                    self.machines_read.insert(name);
                }
                Recorded::NotYet => drop(self.changed.insert(name)),
                Recorded::MachineUnknown(uid) => {
                    let since = *self.machine_unknown.entry(name.clone()).or_insert_with(Instant::now);
                    if since.elapsed() < MACHINE_ID_WAIT {
                        self.changed.insert(name);
                    } else {
                        self.deleted.entry(name).or_insert_with(|| DeletedNode::replaced(uid));
                    }
                }
                Recorded::Replaced(uid) => {
                    self.machine_unknown.remove(&name);
                    self.deleted.entry(name).or_insert_with(|| DeletedNode::replaced(uid));
                }
            }
        }
        self.changed.extend(self.trust.take_waiting());
    }

    /// Deregisters a node that has lost its Node with this UID. Its segments are kept as long as
    /// its machine may use them. Returns whether it is done.
    async fn deregister(&self, name: &NodeName, uid: &str, why: &str) -> bool {
        let (node, uid, clock) = (name.clone(), uid.to_owned(), self.registry.clock.clone());
        let plan = move |state: &mut State| -> Result<_, StoreError> {
            let known = state.node(&node).and_then(|record| record.object.as_ref());
            let of_this = known.is_some_and(|object| object.uid == uid);
            let changes = of_this.then(|| state.deregistration_keeping_segments(&node, clock.now())).flatten();
            Ok(changes.map_or((None, Vec::new()), |(rows, changes)| (Some(rows.len()), changes)))
        };
        match self.registry.change(plan).await {
            Ok(released) => {
                if let Some(segments) = released {
                    self.report_deregistered(name, segments, why);
                }
                true
            }
            Err(error) => {
                tracing::warn!(node = %name, %error, "not deregistered yet, though {why}");
                false
            }
        }
    }

    /// Puts what a Node says into the record of the node with this name. A Node with another UID is
    /// the same node if it is the same machine.
    async fn record(&self, name: &NodeName, object: NodeObject) -> Recorded {
        let before = {
            let view = self.registry.read().await;
            view.state().node(name).and_then(|record| record.object.clone())
        };
        let another = before.as_ref().filter(|before| before.uid != object.uid);
        let known = before.as_ref().map(|before| before.machine_id.clone()).unwrap_or_default();
        let machine_id = match another {
            None if !known.is_empty() => known.clone(),
            Some(before) if known.is_empty() => return Recorded::Replaced(before.uid.clone()),
            _ => match self.machine_id(name, &object.uid).await {
                Ok(machine_id) => machine_id,
                Err(why) => {
                    tracing::warn!(node = %name, why, "what its Node object says is not recorded yet");
                    return Recorded::NotYet;
                }
            },
        };
        if let Some(before) = another
            && machine_id != known
        {
            let uid = before.uid.clone();
            return if machine_id.is_empty() { Recorded::MachineUnknown(uid) } else { Recorded::Replaced(uid) };
        }
        let anew = another.is_some();
        let object = NodeObject { machine_id, ..object };
        let (node, clock) = (name.clone(), self.registry.clock.clone());
        let plan = move |state: &mut State| -> Result<_, StoreError> {
            let Some(record) = state.node(&node).filter(|record| record.object.as_ref() != Some(&object)) else {
                return Ok((Recorded::Done, Vec::new()));
            };
            let other = record.object.as_ref().filter(|now| now.uid != object.uid);
            if let Some(other) = other {
                let certificates = &record.certificates;
                let valid = certificates.iter().any(|certificate| certificate.not_after > clock.now());
                if !anew || other.machine_id != object.machine_id || !valid {
                    return Ok((Recorded::Replaced(other.uid.clone()), Vec::new()));
                }
                tracing::info!(%node, "its Node object was deleted and made again by the same machine: it stays registered");
            }
            let record = NodeRecord { object: Some(object.clone()), ..record.clone() };
            Ok((Recorded::Done, vec![Change::PutNode(record)]))
        };
        match self.registry.change(plan).await {
            Ok(recorded) => {
                tracing::debug!(node = %name, ?recorded, "its Node object was looked at");
                recorded
            }
            Err(error) => {
                tracing::warn!(node = %name, %error, "what its Node object says is not recorded yet");
                Recorded::NotYet
            }
        }
    }

    /// The machine ID of a Node, if it still has this UID; empty if it does not report one.
    async fn machine_id(&self, name: &NodeName, uid: &str) -> Result<String, String> {
        let node = match tokio::time::timeout(REQUEST, self.api.get(name.as_str())).await {
            Ok(found) => found.map_err(|error| explain(WHAT, &error))?,
            Err(_) => return Err(format!("the API server did not give Node {name} within {} s", REQUEST.as_secs())),
        };
        if node.metadata.uid.as_deref() != Some(uid) {
            return Err("there is another Node of its name by now".into());
        }
        let machine_id = node.status.and_then(|status| status.node_info).map(|info| info.machine_id);
        // The length is limited because the kubelet writes it.
        Ok(machine_id.filter(|machine_id| machine_id.len() <= LONGEST_MACHINE_ID).unwrap_or_default())
    }

    /// Logs a deregistration and sends an Event.
    fn report_deregistered(&self, name: &NodeName, segments: usize, why: &str) {
        tracing::info!(node = %name, segments, "deregistered: {why}");
        let note = format!("{why}; its certificate is refused from now on");
        self.events.normal(About::EdgeNode, name.as_str(), "Deregistered", note);
    }
}

/// Outcome of an update of a record.
#[derive(Debug)]
enum Recorded {
    /// The record is up to date.
    Done,
    /// It must be tried again.
    NotYet,
    /// The record is of the Node with this UID, and the Node that now has its name is of another
    /// machine, or may be.
    Replaced(String),
    /// The same, but the new Node has not reported its machine ID yet.
    MachineUnknown(String),
}

/// Whether a Node differs from the record. With `ask`, also if the record has no machine ID.
fn differs(state: &State, name: &NodeName, object: &NodeObject, ask: bool) -> bool {
    let Some(record) = state.node(name) else { return false };
    let Some(known) = &record.object else { return true };
    let same = NodeObject { machine_id: known.machine_id.clone(), ..object.clone() } == *known;
    !same || (ask && known.machine_id.is_empty())
}

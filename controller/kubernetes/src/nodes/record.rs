//! Writes the information from Nodes into the records of registered nodes.

use std::time::Duration;

use edge_controller_domain::state::{Change, NodeObject, NodeRecord, State};
use edge_controller_domain::store::StoreError;
use edge_types::{IpNetwork, NodeName, Role};
use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use super::facts::pod_networks;
use super::pending::DeletedNode;
use super::watch::{NodeWatch, WHAT};
use crate::client::{REQUEST, explain};
use crate::events::Regarding;

/// Time within which a new Node must report its machine ID.
const MACHINE_ID_WAIT: Duration = Duration::from_secs(60);
/// Maximum length of a machine ID, in bytes; a systemd machine ID has 32.
const LONGEST_MACHINE_ID: usize = 128;
/// Maximum number of concurrent plans. The registry commits concurrent plans together.
const CONCURRENT_PLANS: usize = 64;

impl NodeWatch {
    /// Updates the records of nodes. Updates that fail are tried again at the next call.
    pub(super) async fn record_changes(&mut self) {
        let differing: Vec<(NodeName, NodeObject)> = {
            let state = self.registry.read().await;
            let read = &self.nodes_read;
            let facts = std::mem::take(&mut self.changed).into_iter().filter_map(|name| {
                let said = self.known.get(&name)?.object.clone();
                let object = self.trust.accepted(&name, said, state.node(&name)?.object.as_ref());
                Some((name, object))
            });
            facts.filter(|(name, object)| differs(&state, name, object, !read.contains(name))).collect()
        };
        let watch = &*self;
        let outcomes: Vec<(NodeName, RecordOutcome)> = stream::iter(differing)
            .map(|(name, object)| async move {
                let recorded = watch.record(&name, object).await;
                (name, recorded)
            })
            .buffer_unordered(CONCURRENT_PLANS)
            .collect()
            .await;
        let mut recorded = Vec::new();
        for (name, outcome) in outcomes {
            match outcome {
                RecordOutcome::Done => {
                    self.machine_unknown.remove(&name);
                    self.nodes_read.insert(name.clone());
                    recorded.push(name);
                }
                RecordOutcome::NotYet => drop(self.changed.insert(name)),
                RecordOutcome::MachineUnknown(uid) => {
                    let since = *self.machine_unknown.entry(name.clone()).or_insert_with(Instant::now);
                    if since.elapsed() < MACHINE_ID_WAIT {
                        self.changed.insert(name);
                    } else {
                        self.deleted.entry(name).or_insert_with(|| DeletedNode::replaced(uid));
                    }
                }
                RecordOutcome::Replaced(uid) => {
                    self.machine_unknown.remove(&name);
                    self.deleted.entry(name).or_insert_with(|| DeletedNode::replaced(uid));
                }
            }
        }
        self.note_pod_networks(recorded).await;
        self.changed.extend(self.trust.take_waiting());
    }

    /// Deregisters a node whose Node with this UID is gone. Its segments are kept as long as its
    /// machine may use them. Returns whether the deregistration is complete.
    pub(super) async fn deregister(&self, name: &NodeName, uid: &str, why: &str) -> bool {
        let (clock, grace) = (&self.registry.clock, (self.grace)());
        let of_this = |state: &State, node: &NodeName, uid: &str| {
            let known = state.node(node).and_then(|record| record.object.as_ref());
            known.is_some_and(|object| object.uid == uid)
        };
        let (node, gone, now) = (name.clone(), uid.to_owned(), clock.now());
        let announcement = move |state: &mut State| -> Result<_, StoreError> {
            let announced = of_this(state, &node, &gone).then(|| state.announce_keeping_segments(&node, now, grace));
            Ok(((), announced.unwrap_or_default()))
        };
        let (node, uid, clock) = (name.clone(), uid.to_owned(), clock.clone());
        let plan = move |state: &mut State| -> Result<_, StoreError> {
            let of_this = of_this(state, &node, &uid);
            let changes = of_this.then(|| state.deregistration_keeping_segments(&node, clock.now(), grace)).flatten();
            Ok(changes.map_or((None, Vec::new()), |(rows, changes)| (Some(rows.len()), changes)))
        };
        let deregistered = match self.registry.change(announcement).await {
            Ok(()) => self.registry.change(plan).await,
            Err(error) => Err(error),
        };
        match deregistered {
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

    /// Writes the information from a Node into the record of the node with this name. A Node with
    /// another UID is the same node if it is the same machine.
    async fn record(&self, name: &NodeName, object: NodeObject) -> RecordOutcome {
        let (before, is_hub) = {
            let state = self.registry.read().await;
            let record = state.node(name);
            (record.and_then(|record| record.object.clone()), record.is_some_and(|record| record.role == Role::Hub))
        };
        let another = before.as_ref().filter(|before| before.uid != object.uid);
        let known = before.as_ref().map(|before| before.machine_id.clone()).unwrap_or_default();
        let (machine_id, pod_networks) = match (another, &before) {
            (None, Some(before)) if !lacks_details(before, is_hub) => (known.clone(), before.pod_networks.clone()),
            (Some(before), _) if known.is_empty() => return RecordOutcome::Replaced(before.uid.clone()),
            _ => match self.details(name, &object.uid).await {
                Ok((machine_id, pod_networks)) => {
                    // A machine ID that is known never changes.
                    let keep = another.is_none() && !known.is_empty();
                    (if keep { known.clone() } else { machine_id }, pod_networks)
                }
                Err(why) => {
                    tracing::warn!(node = %name, why, "data from its Node object is not stored yet");
                    return RecordOutcome::NotYet;
                }
            },
        };
        if let Some(before) = another
            && machine_id != known
        {
            let uid = before.uid.clone();
            return if machine_id.is_empty() {
                RecordOutcome::MachineUnknown(uid)
            } else {
                RecordOutcome::Replaced(uid)
            };
        }
        let recreated = another.is_some();
        // Only hubs front networks, so nothing is kept of what another node's kubelet writes.
        let pod_networks = if is_hub { pod_networks } else { Vec::new() };
        let object = NodeObject { machine_id, pod_networks, ..object };
        let (node, clock, grace) = (name.clone(), self.registry.clock.clone(), (self.grace)());
        let plan = move |state: &mut State| -> Result<_, StoreError> {
            let mut object = object.clone();
            let known = state.node(&node).and_then(|record| record.object.as_ref());
            if let Some(known) = known.filter(|known| known.uid == object.uid && object.pod_networks.is_empty()) {
                // Another replica may have read the Node after its networks were assigned.
                object.pod_networks.clone_from(&known.pod_networks);
            }
            let Some(record) = state.node(&node).filter(|record| record.object.as_ref() != Some(&object)) else {
                return Ok((RecordOutcome::Done, Vec::new()));
            };
            let other = record.object.as_ref().filter(|now| now.uid != object.uid);
            if let Some(other) = other {
                // Within the grace the machine can still renew its certificate.
                let valid = record.accepted_until(grace).is_some_and(|end| end > clock.now());
                if !recreated || other.machine_id != object.machine_id || !valid {
                    return Ok((RecordOutcome::Replaced(other.uid.clone()), Vec::new()));
                }
                tracing::info!(%node, "its Node object was deleted and made again by the same machine: it stays registered");
            }
            let record = NodeRecord { object: Some(object), ..record.clone() };
            Ok((RecordOutcome::Done, vec![Change::PutNode(record)]))
        };
        match self.registry.change(plan).await {
            Ok(recorded) => {
                tracing::debug!(node = %name, ?recorded, "its Node object was looked at");
                recorded
            }
            Err(error) => {
                tracing::warn!(node = %name, %error, "data from its Node object is not stored yet");
                RecordOutcome::NotYet
            }
        }
    }

    /// Returns the machine ID of a Node and the networks of its pods, if the Node still has this
    /// UID. The machine ID is empty if the Node reports none.
    async fn details(&self, name: &NodeName, uid: &str) -> Result<(String, Vec<IpNetwork>), String> {
        let node = match tokio::time::timeout(REQUEST, self.api.get(name.as_str())).await {
            Ok(found) => found.map_err(|error| explain(WHAT, &error))?,
            Err(_) => return Err(format!("the API server did not give Node {name} within {} s", REQUEST.as_secs())),
        };
        if node.metadata.uid.as_deref() != Some(uid) {
            return Err("there is another Node of its name by now".into());
        }
        let machine_id = node.status.and_then(|status| status.node_info).map(|info| info.machine_id);
        // The length is limited because the kubelet writes it.
        let machine_id = machine_id.filter(|machine_id| machine_id.len() <= LONGEST_MACHINE_ID).unwrap_or_default();
        Ok((machine_id, node.spec.as_ref().map(pod_networks).unwrap_or_default()))
    }

    /// Logs a deregistration and writes an Event.
    fn report_deregistered(&self, name: &NodeName, segments: usize, why: &str) {
        tracing::info!(node = %name, segments, "deregistered: {why}");
        let note = format!("{why}; its certificate is refused from now on");
        self.events.normal(Regarding::EdgeNode, name.as_str(), "Deregistered", note);
    }
}

/// Outcome of an update of a record.
#[derive(Debug)]
enum RecordOutcome {
    /// The record is up to date.
    Done,
    /// The update must be repeated.
    NotYet,
    /// The record belongs to the Node with this UID. The Node that now has the name belongs, or may
    /// belong, to another machine.
    Replaced(String),
    /// The same as `Replaced`, but the new Node has not reported its machine ID yet.
    MachineUnknown(String),
}

/// Returns whether a Node differs from the record. With `read`, a record that lacks details of the
/// Node also counts as different.
fn differs(state: &State, name: &NodeName, object: &NodeObject, read: bool) -> bool {
    let Some(record) = state.node(name) else { return false };
    let Some(known) = &record.object else { return true };
    let (machine_id, pod_networks) = (known.machine_id.clone(), known.pod_networks.clone());
    let same = NodeObject { machine_id, pod_networks, ..object.clone() } == *known;
    !same || (read && lacks_details(known, record.role == Role::Hub))
}

/// Returns whether a Node must be read as a whole. The API server lets nobody change `podCIDRs`
/// once they are set, so those that are known need not be read again.
fn lacks_details(known: &NodeObject, is_hub: bool) -> bool {
    known.machine_id.is_empty() || (is_hub && known.pod_networks.is_empty())
}

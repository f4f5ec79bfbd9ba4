//! Writes the statuses of objects, for people to read. The controller never reads a status back as
//! data, so nothing depends on it.
//!
//! The replica to which a node is connected writes the node's connection and reports. The leader
//! writes everything that follows from the rows. Changes within a few seconds are written together.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use edge_controller_domain::clock::Seconds;
use edge_controller_domain::node_reports::{LastReport, NodeReports, UnseenReports};
use edge_controller_domain::registry::{Registry, StateGuard};
use edge_controller_domain::segments::ClaimConflicts;
use edge_controller_domain::state::{CommunityRecord, NodeRecord, RowKey};
use edge_types::api::TunnelCount;
use edge_types::{NodeAddress, NodeName};
use futures_util::StreamExt;
use futures_util::stream;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::client::{ApiFailures, REQUEST, explain, is_absent};
use super::replica_leases::{ReplicaLeases, Replicas};
use super::resources::{Community, EdgeNode, Timestamp, community_object_name};

/// Interval at which changes are written.
const WRITE_PERIOD: Duration = Duration::from_secs(2);
/// Interval at which the leader compares all statuses with the rows, if the rows have changed.
const COMPARE_PERIOD: Duration = Duration::from_secs(5);
/// Maximum number of concurrent requests.
const CONCURRENT_WRITES: usize = 8;
/// Maximum number of missing members that a status names.
const NAMED: usize = 20;
/// Reason in the condition of a node that has not connected yet.
const NEVER_CONNECTED: &str = "NeverConnected";
/// Type of a community's condition.
const COMPLETE: &str = "Complete";
/// Number of objects on one page of a list.
const PAGE: u32 = 500;

/// A function that computes the addresses that a node's peers receive.
pub type AddressesOf = Box<dyn Fn(&NodeRecord) -> Vec<NodeAddress> + Send + Sync>;

/// The data from which the statuses are made.
pub struct StatusSources {
    /// The rows, and which nodes are connected.
    pub registry: Registry,
    /// The last reports of the nodes about themselves.
    pub reports: NodeReports,
    /// Conflicts about segments that nodes claim but do not hold.
    pub conflicts: ClaimConflicts,
    /// The function that computes the addresses that a node's peers receive.
    pub endpoints: AddressesOf,
    /// The failures of requests.
    pub api_failures: ApiFailures,
}

/// A writer of the statuses of EdgeNodes and Communities.
pub struct StatusWriter {
    sources: StatusSources,
    nodes: Api<EdgeNode>,
    communities: Api<Community>,
    leases: Arc<ReplicaLeases>,
    replica: String,
}

/// A node's name and its new status.
type Write = (NodeName, Value);

impl StatusWriter {
    /// Makes the writer of the replica with this name.
    pub fn new(client: &Client, sources: StatusSources, leases: Arc<ReplicaLeases>, replica: &str) -> Self {
        let (nodes, communities) = (Api::all(client.clone()), Api::all(client.clone()));
        Self { sources, nodes, communities, leases, replica: replica.into() }
    }

    /// Writes which nodes are connected to this replica. Never returns.
    pub async fn write_connections(&self) {
        let mut shown: HashSet<NodeName> = HashSet::new();
        let mut pending = UnseenReports::default();
        let mut period = tokio::time::interval(WRITE_PERIOD);
        period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            period.tick().await;
            let (opened, closed) = {
                let state = self.sources.registry.read().await;
                let registered = |name: &NodeName| state.node(name).is_some();
                let connected = |name: &NodeName| state.is_connected(name);
                self.sources.reports.retain(registered);
                self.sources.conflicts.retain(registered);
                let UnseenReports { begun, changed } = self.sources.reports.take_unseen();
                pending.begun.extend(begun);
                pending.changed.extend(changed);
                // Other replicas write the status of the other nodes.
                pending.begun.retain(connected);
                pending.changed.retain(connected);
                let nodes = state.nodes().map(|record| &record.name).filter(|name| connected(name));
                let opened: Vec<NodeName> =
                    nodes.filter(|name| !shown.contains(*name) || pending.begun.contains(*name)).cloned().collect();
                shown.retain(registered);
                let closed: Vec<NodeName> = shown.iter().filter(|name| !connected(name)).cloned().collect();
                (opened, closed)
            };
            let now = self.sources.registry.clock.now();
            let mut writes: HashMap<NodeName, Value> = HashMap::new();
            for name in opened {
                writes.insert(name, self.connected_status(now));
            }
            for name in &pending.changed {
                let Some(last) = self.sources.reports.of(name) else { continue };
                write_report(writes.entry(name.clone()).or_insert_with(|| json!({})), &last);
            }
            let written = self.write(writes.into_iter().collect()).await;
            for name in &written {
                pending.begun.remove(name);
                pending.changed.remove(name);
                if self.sources.registry.read().await.is_connected(name) {
                    shown.insert(name.clone());
                }
            }
            for name in closed {
                let last_seen = self.sources.reports.last_seen(&name).unwrap_or(now);
                if self.write_disconnected(&name, now, |replica| (replica == self.replica).then_some(last_seen)).await {
                    shown.remove(&name);
                }
            }
        }
    }

    fn connected_status(&self, now: i64) -> Value {
        let message = format!("follows its view at {}", self.replica);
        json!({
            "connectedSince": Timestamp(now), "lastSeen": null, "replica": self.replica,
            "conditions": connection_condition(now, "True", "ViewStream", &message),
        })
    }

    /// Writes that a node is not connected, if `last_seen` returns a time for the replica in its
    /// status. Returns true if nothing is left to do.
    async fn write_disconnected(&self, name: &NodeName, now: i64, last_seen: impl Fn(&str) -> Option<Seconds>) -> bool {
        let shown = match tokio::time::timeout(REQUEST, self.nodes.get_opt(name.as_str())).await {
            Ok(Ok(object)) => object,
            _ => return false,
        };
        let Some(object) = shown else { return true };
        let replica = object.status.as_ref().and_then(|status| status.replica.clone()).unwrap_or_default();
        let Some(last_seen) = last_seen(&replica) else { return true };
        let message = "does not follow its view; its tunnels stay as they are";
        let status = json!({
            "connectedSince": null, "lastSeen": Timestamp(last_seen), "replica": null,
            "conditions": connection_condition(now, "False", "NoViewStream", message),
        });
        // Write only if the resourceVersion is still the one that was read: another replica may be
        // marking the node as connected right now.
        let version = json!({"resourceVersion": object.metadata.resource_version});
        self.patch(name, json!({"metadata": version, "status": status})).await
    }

    /// Writes that a node has never connected, unless its status already has a condition. Returns
    /// true if nothing is left to do.
    async fn write_never_connected(&self, name: &NodeName, now: i64) -> bool {
        let Ok(Ok(shown)) = tokio::time::timeout(REQUEST, self.nodes.get_opt(name.as_str())).await else {
            return false;
        };
        let Some(object) = shown else { return true };
        if object.status.is_some_and(|status| !status.conditions.is_empty()) {
            return true;
        }
        let message =
            "has not followed its view since it joined: is its agent running, and does it reach a controller?";
        let version = json!({"resourceVersion": object.metadata.resource_version});
        let conditions = connection_condition(now, "False", NEVER_CONNECTED, message);
        self.patch(name, json!({"metadata": version, "status": {"conditions": conditions}})).await
    }

    /// Writes what follows from the rows, while this replica leads. Returns when the sender of
    /// `leading` is dropped.
    pub async fn write_rows(&self, mut leading: watch::Receiver<bool>) {
        let mut replicas = Replicas::default();
        let mut period = tokio::time::interval(COMPARE_PERIOD);
        period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut known: Option<KnownStatuses> = None;
        loop {
            if !*leading.borrow_and_update() {
                known = None;
                if leading.wait_for(|leads| *leads).await.is_err() {
                    return;
                }
            }
            period.tick().await;
            let mut now = match known.take() {
                Some(known) => known,
                None => match tokio::time::timeout(REQUEST * 6, self.read_statuses()).await {
                    Ok(Ok(known)) => known,
                    Ok(Err(error)) => {
                        self.sources.api_failures.record_minor("statuses", error);
                        continue;
                    }
                    Err(_) => continue,
                },
            };
            self.compare(&mut now).await;
            match replicas.look(&self.leases).await {
                Ok(there) => self.disconnect_orphans(&mut now, &there, &replicas).await,
                Err(error) => tracing::debug!(error, "who is there is not known"),
            }
            known = Some(now);
        }
    }

    /// Reads the statuses of all objects.
    async fn read_statuses(&self) -> Result<KnownStatuses, String> {
        let mut known = KnownStatuses::default();
        // A row that is added while the list is read may appear in it in its earlier state.
        let at = self.sources.registry.read().await.revision();
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = self.nodes.list(&params).await.map_err(|e| explain("edgenodes.edge-cni.io", &e))?;
            for object in page.items {
                let status = object.status.unwrap_or_default();
                let Some(name) = object.metadata.name.and_then(|name| name.parse::<NodeName>().ok()) else { continue };
                let rows = json!({
                    "communities": status.communities, "addresses": status.addresses, "segments": status.segments,
                    "certificateUntil": status.certificate_until,
                });
                let has_condition = !status.conditions.is_empty();
                known.nodes.insert(name, WrittenStatus { digest: digest(&rows), at, complete: None, has_condition });
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => break,
            }
        }
        // There are never many communities, so they are read in one request.
        let communities = self.communities.list(&ListParams::default()).await;
        for object in communities.map_err(|e| explain("communities.edge-cni.io", &e))? {
            let (Some(name), Some(status)) = (object.metadata.name, object.status) else { continue };
            let shown = json!({"listed": status.listed, "registered": status.registered, "missing": status.missing});
            let complete = status.conditions.into_iter().find(|condition| condition.type_ == COMPLETE);
            known.communities.insert(name, WrittenStatus { digest: digest(&shown), at, complete, has_condition: true });
        }
        Ok(known)
    }

    async fn compare(&self, known: &mut KnownStatuses) {
        let now = self.sources.registry.clock.now();
        let (revision, nodes, communities, silent) = {
            let state = self.sources.registry.read().await;
            if known.revision == Some(state.revision()) {
                return;
            }
            known.forget_absent(&state);
            let nodes: Vec<Write> = state
                .nodes()
                .map(|record| (record.name.clone(), self.row_status(&state, record)))
                .filter(|(name, rows)| {
                    let written = known.nodes.get(name);
                    written.is_none_or(|written| written.digest != digest(rows))
                })
                .collect();
            // A node reports its port before it opens the stream of its view.
            let silent = state.nodes().filter(|record| record.port == 0);
            let silent =
                silent.filter(|record| !known.nodes.get(&record.name).is_some_and(|known| known.has_condition));
            let silent: Vec<NodeName> = silent.map(|record| record.name.clone()).collect();
            let communities: Vec<(String, Value, Condition)> = state
                .listed_communities()
                .filter_map(|community| {
                    let (name, shown) = (community_object_name(&community.name), member_counts(&state, community));
                    let came = state.created_at_revision(&RowKey::Community(community.name.clone()));
                    let written = known.communities.get(&name).filter(|written| written.is_of(came));
                    if written.is_some_and(|written| written.digest == digest(&shown)) {
                        return None;
                    }
                    let complete =
                        complete_condition(&shown, written.and_then(|written| written.complete.as_ref()), now);
                    Some((name, shown, complete))
                })
                .collect();
            (state.revision(), nodes, communities, silent)
        };
        let digests: HashMap<NodeName, u64> = nodes.iter().map(|(name, rows)| (name.clone(), digest(rows))).collect();
        let wanted = nodes.len() + communities.len();
        let written = self.write(nodes).await;
        let mut done = written.len();
        for name in written {
            if let Some(digest) = digests.get(&name) {
                let has_condition = known.nodes.get(&name).is_some_and(|known| known.has_condition);
                let written = WrittenStatus { digest: *digest, at: revision, complete: None, has_condition };
                known.nodes.insert(name, written);
            }
        }
        let shown_as_absent = self.write_never_connected_of(&silent, now).await;
        let all_shown = shown_as_absent.len() == silent.len();
        for name in shown_as_absent {
            if let Some(known) = known.nodes.get_mut(&name) {
                known.has_condition = true;
            }
        }
        for (name, shown, complete) in communities {
            let mut status = shown.clone();
            status["conditions"] = json!([complete]);
            let patch = Patch::Merge(json!({"status": status}));
            let params = PatchParams::default();
            match tokio::time::timeout(REQUEST, self.communities.patch_status(&name, &params, &patch)).await {
                Ok(Err(error)) if !is_absent(&error) => {
                    self.sources.api_failures.record_minor("statuses", explain("communities.edge-cni.io", &error));
                }
                Ok(_) => {
                    let written = WrittenStatus {
                        digest: digest(&shown),
                        at: revision,
                        complete: Some(complete),
                        has_condition: true,
                    };
                    known.communities.insert(name, written);
                    done += 1;
                }
                Err(_) => {}
            }
        }
        known.revision = (done == wanted && all_shown).then_some(revision);
    }

    /// Calls [`Self::write_never_connected`] for several nodes. Returns the nodes for which nothing
    /// is left to do.
    async fn write_never_connected_of(&self, names: &[NodeName], now: i64) -> Vec<NodeName> {
        stream::iter(names.to_vec())
            .map(|name| async move { self.write_never_connected(&name, now).await.then_some(name) })
            .buffer_unordered(CONCURRENT_WRITES)
            .filter_map(std::future::ready)
            .collect()
            .await
    }

    fn row_status(&self, state: &StateGuard<'_>, record: &NodeRecord) -> Value {
        let until = record.certificates.iter().map(|certificate| certificate.not_after).max();
        let text = |things: Vec<String>| things;
        json!({
            "communities": state.communities_of(record),
            "addresses": text((self.sources.endpoints)(record).iter().map(|endpoint| endpoint.address.to_string()).collect()),
            "segments": edge_controller_domain::views::segments(state, &record.name),
            "certificateUntil": until.map(Timestamp),
        })
    }

    /// Writes that nodes are not connected if their replica is gone.
    async fn disconnect_orphans(&self, known: &mut KnownStatuses, there: &[String], replicas: &Replicas) {
        let now = self.sources.registry.clock.now();
        let gone = |replica: &str| {
            let gone = !replica.is_empty() && !there.iter().any(|name| name == replica);
            gone.then(|| replicas.last_renewal(replica).unwrap_or(now))
        };
        let key = there.to_vec();
        if known.replicas.as_ref() == Some(&key) {
            return;
        }
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let Ok(Ok(page)) = tokio::time::timeout(REQUEST, self.nodes.list(&params)).await else { return };
            for object in page.items {
                let replica = object.status.and_then(|status| status.replica).unwrap_or_default();
                let Some(name) = object.metadata.name.and_then(|name| name.parse::<NodeName>().ok()) else { continue };
                if gone(&replica).is_some() && !self.write_disconnected(&name, now, gone).await {
                    return;
                }
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => break,
            }
        }
        known.replicas = Some(key);
    }

    /// Writes statuses of nodes. Returns the nodes whose status was written.
    async fn write(&self, writes: Vec<Write>) -> Vec<NodeName> {
        stream::iter(writes)
            .map(|(name, status)| async move {
                let done = self.patch(&name, json!({"status": status})).await;
                done.then_some(name)
            })
            .buffer_unordered(CONCURRENT_WRITES)
            .filter_map(std::future::ready)
            .collect()
            .await
    }

    async fn patch(&self, name: &NodeName, patch: Value) -> bool {
        let patch = Patch::Merge(patch);
        let params = PatchParams::default();
        match tokio::time::timeout(REQUEST, self.nodes.patch_status(name.as_str(), &params, &patch)).await {
            Ok(Ok(_)) => self.sources.api_failures.clear("statuses"),
            // The object is gone, and so is its status.
            Ok(Err(error)) if is_absent(&error) => {}
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => return false,
            Ok(Err(error)) => {
                self.sources.api_failures.record_minor("statuses", explain("edgenodes.edge-cni.io", &error));
                return false;
            }
            Err(_) => return false,
        }
        true
    }
}

/// The known statuses of objects.
#[derive(Default)]
struct KnownStatuses {
    revision: Option<u64>,
    nodes: HashMap<NodeName, WrittenStatus>,
    /// The known statuses, keyed by object name.
    communities: HashMap<String, WrittenStatus>,
    /// The replicas that existed when vanished replicas were last searched for.
    replicas: Option<Vec<String>>,
}

impl KnownStatuses {
    fn forget_absent(&mut self, state: &StateGuard<'_>) {
        self.nodes.retain(|name, written| {
            state.node(name).is_some() && written.is_of(state.created_at_revision(&RowKey::Node(name.clone())))
        });
        let present: HashSet<String> =
            state.listed_communities().map(|community| community_object_name(&community.name)).collect();
        self.communities.retain(|name, _| present.contains(name));
    }
}

/// The status of an object.
struct WrittenStatus {
    digest: u64,
    /// Revision of the rows when the status was read or written.
    at: u64,
    /// The condition of a community.
    complete: Option<Condition>,
    /// Whether the object has a condition.
    has_condition: bool,
}

impl WrittenStatus {
    /// Returns whether this is the status of the row that was added at revision `came`. A row that
    /// was added later has another object under the same name, without a status.
    fn is_of(&self, came: u64) -> bool {
        came <= self.at
    }
}

/// Writes a node's report into a status.
fn write_report(status: &mut Value, last: &LastReport) {
    if let Some(TunnelCount { up, wanted, down }) = &last.tunnels {
        status["tunnels"] = json!({"up": up, "wanted": wanted, "shown": format!("{up}/{wanted}"), "down": down});
    }
    let obstacles: Vec<&String> = last.refused_view.iter().chain(&last.obstacles).collect();
    status["agentVersion"] = json!(last.version);
    status["obstacles"] = json!({"count": obstacles.len(), "list": obstacles});
}

/// Returns the condition Connected, which changes at `now`.
fn connection_condition(now: i64, status: &str, reason: &str, message: &str) -> [Condition; 1] {
    [Condition {
        type_: "Connected".into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        last_transition_time: Time(jiff::Timestamp::from_second(now).unwrap_or_default()),
        observed_generation: None,
    }]
}

fn member_counts(state: &StateGuard<'_>, community: &CommunityRecord) -> Value {
    let is_edge = |name: &&NodeName| state.node(name).is_some_and(|node| node.role == edge_types::Role::Edge);
    let missing: Vec<&NodeName> = community.members.iter().filter(|name| !is_edge(name)).collect();
    json!({
        "listed": community.members.len(),
        "registered": community.members.len() - missing.len(),
        "missing": missing.iter().take(NAMED).collect::<Vec<_>>(),
    })
}

/// Returns the condition that follows from the counts. The condition's time stays the same until
/// its status changes.
fn complete_condition(shown: &Value, before: Option<&Condition>, now: i64) -> Condition {
    let complete = shown["listed"] == shown["registered"];
    let status = if complete { "True" } else { "False" };
    let since = before.filter(|before| before.status == status).map(|before| before.last_transition_time.clone());
    Condition {
        type_: COMPLETE.into(),
        status: status.into(),
        reason: if complete { "AllRegistered" } else { "SomeNotRegistered" }.into(),
        message: format!("{} of {} members are registered edges", shown["registered"], shown["listed"]),
        last_transition_time: since.unwrap_or_else(|| Time(jiff::Timestamp::from_second(now).unwrap_or_default())),
        observed_generation: None,
    }
}

fn digest(value: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.to_string().hash(&mut hasher);
    hasher.finish()
}

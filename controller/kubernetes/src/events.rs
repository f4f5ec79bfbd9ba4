//! Writes Kubernetes Events about objects, so that operators see what happened to the object. Each
//! Event is written only once, even if several replicas see its cause, and no code waits until it
//! is written.

use std::time::Duration;

use edge_controller_domain::ca::hex;
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use k8s_openapi::api::core::v1::{Node, ObjectReference};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::core::{ApiResource, DynamicObject};
use kube::{Api, Client, Resource};
use ring::digest::{SHA256, digest};
use tokio::sync::mpsc;

use super::client::{ApiFailures, REQUEST, explain};
use super::resources::{Community, EdgeNode, Segment};

/// Maximum number of Events that wait to be written; further Events are dropped.
const WAITING: usize = 256;
/// Minimum time between two Events, so that Events do not slow down requests for nodes.
const PACE: Duration = Duration::from_millis(50);
/// Namespace of Events about cluster-scoped objects.
const NAMESPACE: &str = "default";
const CONTROLLER: &str = "edge-cni.io/edge-controller";
const WHAT: &str = "events.events.k8s.io";
/// Time within which equal Events are written as one.
const ONCE: Duration = Duration::from_secs(3600);
/// Maximum length of an Event's note that the API accepts, in bytes.
const NOTE: usize = 1024;

/// The kind of object that an Event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Regarding {
    /// A Node.
    Node,
    /// An EdgeNode.
    EdgeNode,
    /// A Segment.
    Segment,
    /// A Community.
    Community,
    /// The admission policy of community labels.
    LabelPolicy,
}

#[derive(Debug)]
struct PendingEvent {
    regarding: Regarding,
    name: String,
    warning: bool,
    reason: &'static str,
    note: String,
}

/// A writer of Events, which does nothing without Kubernetes.
#[derive(Debug, Clone, Default)]
pub struct EventRecorder(Option<mpsc::Sender<PendingEvent>>);

impl EventRecorder {
    /// Starts to write Events in the cluster that the client reaches, until all clones are dropped.
    pub fn start(client: &Client, replica: &str, api_failures: ApiFailures) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        tokio::spawn(write(client.clone(), replica.to_owned(), api_failures, receiver));
        Self(Some(sender))
    }

    /// Writes an Event of type Normal.
    pub fn normal(&self, regarding: Regarding, name: &str, reason: &'static str, note: String) {
        self.enqueue(PendingEvent { regarding, name: name.into(), warning: false, reason, note });
    }

    /// Writes an Event of type Warning, for a state that an operator should check.
    pub fn warning(&self, regarding: Regarding, name: &str, reason: &'static str, note: String) {
        self.enqueue(PendingEvent { regarding, name: name.into(), warning: true, reason, note });
    }

    fn enqueue(&self, pending: PendingEvent) {
        if let Some(sender) = &self.0
            && let Err(error) = sender.try_send(pending)
        {
            tracing::debug!(%error, "an Event is dropped");
        }
    }
}

async fn write(client: Client, replica: String, api_failures: ApiFailures, mut receiver: mpsc::Receiver<PendingEvent>) {
    let api: Api<Event> = Api::namespaced(client.clone(), NAMESPACE);
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while let Some(pending) = receiver.recv().await {
        pace.tick().await;
        let uid = tokio::time::timeout(REQUEST, uid(&client, &pending)).await.ok().flatten();
        let event = event(&pending, uid, &replica);
        match tokio::time::timeout(REQUEST, api.create(&PostParams::default(), &event)).await {
            Ok(Ok(_)) => api_failures.clear(WHAT),
            // Another replica has written the Event.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => api_failures.clear(WHAT),
            Ok(Err(error)) => api_failures.record_minor(WHAT, explain(WHAT, &error)),
            Err(_) => api_failures.record_minor(WHAT, format!("the API server does not answer about {WHAT}")),
        }
    }
}

fn resource(regarding: Regarding) -> ApiResource {
    match regarding {
        Regarding::Node => ApiResource::erase::<Node>(&()),
        Regarding::EdgeNode => ApiResource::erase::<EdgeNode>(&()),
        Regarding::Segment => ApiResource::erase::<Segment>(&()),
        Regarding::Community => ApiResource::erase::<Community>(&()),
        Regarding::LabelPolicy => ApiResource::erase::<ValidatingAdmissionPolicy>(&()),
    }
}

/// Returns the UID of the object. Readers find Events by this UID; a deleted object has no UID.
async fn uid(client: &Client, pending: &PendingEvent) -> Option<String> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource(pending.regarding));
    api.get_metadata_opt(&pending.name).await.ok().flatten()?.meta().uid.clone()
}

fn event(pending: &PendingEvent, uid: Option<String>, replica: &str) -> Event {
    let now = Timestamp::now();
    let resource = resource(pending.regarding);
    let mut note = pending.note.clone();
    if note.len() > NOTE {
        note.truncate(note.floor_char_boundary(NOTE - 3));
        note.push_str("...");
    }
    let period = now.as_second() / i64::try_from(ONCE.as_secs()).unwrap_or(i64::MAX);
    let what = format!("{period} {} {} {uid:?} {} {note}", resource.kind, pending.name, pending.reason);
    let name = hex(&digest(&SHA256, what.as_bytes()).as_ref()[..8]);
    Event {
        metadata: ObjectMeta {
            name: Some(format!("edge-cni.{name}")),
            namespace: Some(NAMESPACE.into()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        type_: Some(if pending.warning { "Warning" } else { "Normal" }.into()),
        reason: Some(pending.reason.into()),
        action: Some(pending.reason.into()),
        note: Some(note),
        reporting_controller: Some(CONTROLLER.into()),
        reporting_instance: Some(replica.into()),
        regarding: Some(ObjectReference {
            api_version: Some(resource.api_version),
            kind: Some(resource.kind),
            name: Some(pending.name.clone()),
            uid,
            ..ObjectReference::default()
        }),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_events_of_two_replicas_are_one_and_a_long_note_is_cut() {
        let pending = |note: &str| PendingEvent {
            regarding: Regarding::EdgeNode,
            name: "a".into(),
            warning: true,
            reason: "SegmentsExhausted",
            note: note.into(),
        };
        let (one, other) = (event(&pending("x"), None, "one"), event(&pending("x"), None, "other"));
        assert_eq!(one.metadata.name, other.metadata.name);
        assert_ne!(one.metadata.name, event(&pending("y"), None, "one").metadata.name);
        assert!(event(&pending(&"ü".repeat(2000)), None, "one").note.unwrap().len() <= NOTE);
    }
}

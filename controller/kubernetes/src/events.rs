//! Events: what happened, told on the object where an operator looks for it. They are told once,
//! whichever replicas see it, and never waited for.

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

use super::client::{Obstacles, REQUEST, explain};
use super::resources::{Community, EdgeNode, Segment};

/// Events that wait to be told; more are lost.
const WAITING: usize = 256;
/// From one event to the next: what people may read later is not to slow what nodes wait for.
const PACE: Duration = Duration::from_millis(50);
/// Events about objects of the whole cluster stand here.
const NAMESPACE: &str = "default";
const CONTROLLER: &str = "edge-cni.io/edge-controller";
const WHAT: &str = "events.events.k8s.io";
/// The same within this time is one event.
const ONCE: Duration = Duration::from_secs(3600);
/// Longest note that the API takes.
const NOTE: usize = 1024;

/// Which object an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
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
struct Told {
    about: About,
    name: String,
    warning: bool,
    reason: &'static str,
    note: String,
}

/// Tells events, or nothing where there is no Kubernetes.
#[derive(Debug, Clone, Default)]
pub struct Events(Option<mpsc::Sender<Told>>);

impl Events {
    /// Begins to tell events in the cluster that the client reaches, until all clones are dropped.
    pub fn start(client: &Client, identity: &str, obstacles: Obstacles) -> Self {
        let (tell, told) = mpsc::channel(WAITING);
        tokio::spawn(write(client.clone(), identity.to_owned(), obstacles, told));
        Self(Some(tell))
    }

    /// Something went as it should.
    pub fn normal(&self, about: About, name: &str, reason: &'static str, note: String) {
        self.tell(Told { about, name: name.into(), warning: false, reason, note });
    }

    /// Something an operator should look at.
    pub fn warning(&self, about: About, name: &str, reason: &'static str, note: String) {
        self.tell(Told { about, name: name.into(), warning: true, reason, note });
    }

    fn tell(&self, told: Told) {
        if let Some(tell) = &self.0
            && let Err(error) = tell.try_send(told)
        {
            tracing::debug!(%error, "an event is not told");
        }
    }
}

async fn write(client: Client, identity: String, obstacles: Obstacles, mut told: mpsc::Receiver<Told>) {
    let api: Api<Event> = Api::namespaced(client.clone(), NAMESPACE);
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while let Some(told) = told.recv().await {
        pace.tick().await;
        let uid = tokio::time::timeout(REQUEST, uid(&client, &told)).await.ok().flatten();
        let event = event(&told, uid, &identity);
        match tokio::time::timeout(REQUEST, api.create(&PostParams::default(), &event)).await {
            Ok(Ok(_)) => obstacles.works(WHAT),
            // Another replica has told it.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => obstacles.works(WHAT),
            Ok(Err(error)) => obstacles.fails_aside(WHAT, explain(WHAT, &error)),
            Err(_) => obstacles.fails_aside(WHAT, format!("the API server does not answer about {WHAT}")),
        }
    }
}

fn resource(about: About) -> ApiResource {
    match about {
        About::Node => ApiResource::erase::<Node>(&()),
        About::EdgeNode => ApiResource::erase::<EdgeNode>(&()),
        About::Segment => ApiResource::erase::<Segment>(&()),
        About::Community => ApiResource::erase::<Community>(&()),
        About::LabelPolicy => ApiResource::erase::<ValidatingAdmissionPolicy>(&()),
    }
}

/// Readers find events by the uid of their object; one that is gone has none.
async fn uid(client: &Client, told: &Told) -> Option<String> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource(told.about));
    api.get_metadata_opt(&told.name).await.ok().flatten()?.meta().uid.clone()
}

fn event(told: &Told, uid: Option<String>, identity: &str) -> Event {
    let now = Timestamp::now();
    let resource = resource(told.about);
    let mut note = told.note.clone();
    if note.len() > NOTE {
        note.truncate(note.floor_char_boundary(NOTE - 3));
        note.push_str("...");
    }
    let period = now.as_second() / i64::try_from(ONCE.as_secs()).unwrap_or(i64::MAX);
    let what = format!("{period} {} {} {uid:?} {} {note}", resource.kind, told.name, told.reason);
    let name = hex(&digest(&SHA256, what.as_bytes()).as_ref()[..8]);
    Event {
        metadata: ObjectMeta {
            name: Some(format!("edge-cni.{name}")),
            namespace: Some(NAMESPACE.into()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        type_: Some(if told.warning { "Warning" } else { "Normal" }.into()),
        reason: Some(told.reason.into()),
        action: Some(told.reason.into()),
        note: Some(note),
        reporting_controller: Some(CONTROLLER.into()),
        reporting_instance: Some(identity.into()),
        regarding: Some(ObjectReference {
            api_version: Some(resource.api_version),
            kind: Some(resource.kind),
            name: Some(told.name.clone()),
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
    fn the_same_is_one_event_whoever_tells_it_and_a_long_note_is_cut() {
        let told = |note: &str| Told {
            about: About::EdgeNode,
            name: "a".into(),
            warning: true,
            reason: "SegmentsExhausted",
            note: note.into(),
        };
        let (one, other) = (event(&told("x"), None, "one"), event(&told("x"), None, "other"));
        assert_eq!(one.metadata.name, other.metadata.name);
        assert_ne!(one.metadata.name, event(&told("y"), None, "one").metadata.name);
        assert!(event(&told(&"ü".repeat(2000)), None, "one").note.unwrap().len() <= NOTE);
    }
}

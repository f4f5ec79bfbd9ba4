//! Node objects: their labels put nodes into communities, an annotation says where they are reached, and their deletion is deregistration.
//!
//! Every replica carries out what it sees; a plan that would change nothing changes nothing. All that was taken from a Node stands in the
//! node's record, so that a lost API server changes nothing either. A Node counts as deleted when the API server says so of it by name: never by a
//! failed or empty list, never by NotReady.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use edge_types::name::{COMMUNITY_LABEL, COMMUNITY_LABEL_ALIAS};
use edge_types::{Communities, NodeName};
use futures_util::StreamExt;
use futures_util::stream;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::PartialObjectMeta;
use kube::{Api, Client};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc, watch};

use super::client::{Obstacles, REQUEST, explain};
use super::events::{About, Events};
use super::follow::{Metadata, News, follow};
use super::label_trust::{Counting, LabelTrust, RESTRICTED_COMMUNITY_LABEL};
use super::selector::NodeSelector;
use crate::registry::Registry;
use crate::state::{Change, NodeObject, NodeRecord, PublicAddress, State};

/// Annotation with the addresses at which a node is reached from outside, where it does not know them itself.
pub const ADDRESSES: &str = "edge-cni.io/public-addresses";

const WHAT: &str = "nodes";
/// Plans that are made at once; the registry commits them together.
const AT_ONCE: usize = 64;
/// How soon what failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How often everything is compared, whatever was heard.
const COMPARE: Duration = Duration::from_secs(60);

/// What is taken from a Node.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    uid: String,
    /// Communities that labels name which a kubelet may set where nothing keeps it from that.
    labelled: Communities,
    /// Communities that a label names which no kubelet sets.
    restricted: Communities,
    public_addresses: Vec<PublicAddress>,
    /// What of it makes no sense, for people.
    refused: Vec<String>,
}

impl Facts {
    /// What of it counts, given what counted before.
    fn counted(&self, before: Option<&NodeObject>, counting: Counting) -> NodeObject {
        let communities = match counting {
            Counting::Yes => self.labelled.clone(),
            Counting::Held => {
                let before = before.filter(|before| before.uid == self.uid);
                let held = before.into_iter().flat_map(|before| &before.communities);
                held.filter(|community| self.labelled.contains(*community)).cloned().collect()
            }
            Counting::No => Communities::new(),
        };
        NodeObject {
            uid: self.uid.clone(),
            communities,
            restricted_communities: self.restricted.clone(),
            public_addresses: self.public_addresses.clone(),
        }
    }
}

/// Looks at Nodes for as long as it lives.
pub struct NodeWatch {
    api: Api<Node>,
    registry: Registry,
    selector: NodeSelector,
    labels: watch::Receiver<LabelTrust>,
    obstacles: Obstacles,
    events: Events,
    known: BTreeMap<NodeName, Facts>,
    /// Nodes of which it was told that labels of theirs do not count.
    uncounted: BTreeSet<NodeName>,
    /// Nodes whose facts are to be compared with their record.
    changed: BTreeSet<NodeName>,
    /// Nodes that may be gone, by their uid.
    missing: BTreeMap<NodeName, String>,
}

impl NodeWatch {
    /// A watch of the Nodes that the client reaches.
    pub fn new(
        client: &Client,
        registry: Registry,
        selector: NodeSelector,
        labels: watch::Receiver<LabelTrust>,
        obstacles: Obstacles,
        events: Events,
    ) -> Self {
        Self {
            api: Api::all(client.clone()),
            registry,
            selector,
            labels,
            obstacles,
            events,
            known: BTreeMap::new(),
            uncounted: BTreeSet::new(),
            changed: BTreeSet::new(),
            missing: BTreeMap::new(),
        }
    }

    /// Does it; ends never.
    pub async fn run(mut self) {
        let (tell, mut news) = mpsc::unbounded_channel();
        let source = Metadata(self.api.clone(), WHAT);
        let mut newcomers = self.registry.newcomers().await;
        let following = follow(source, None, self.obstacles.clone(), move |news| {
            // Nobody listens any more when the server ends.
            let _ = tell.send(news);
        });
        tokio::pin!(following);
        let mut compare = tokio::time::interval(COMPARE);
        compare.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let idle = self.changed.is_empty() && self.missing.is_empty();
            tokio::select! {
                () = following.as_mut() => {}
                Some(first) = news.recv() => {
                    self.hear(first).await;
                    while let Ok(next) = news.try_recv() {
                        self.hear(next).await;
                    }
                }
                newcomer = newcomers.recv() => self.welcome(newcomer, &mut newcomers),
                // It ends with the server.
                Ok(()) = self.labels.changed() => {
                    self.uncounted.clear();
                    self.changed.extend(self.known.keys().cloned());
                }
                _ = compare.tick() => self.changed.extend(self.known.keys().cloned()),
                () = tokio::time::sleep(AGAIN), if !idle => {}
            }
            // The watch goes on meanwhile: its news wait in the channel, and the watch in the connection's buffers.
            self.carry_out().await;
        }
    }

    fn welcome(&mut self, newcomer: Result<NodeName, RecvError>, newcomers: &mut broadcast::Receiver<NodeName>) {
        match newcomer {
            Ok(name) => drop(self.changed.insert(name)),
            Err(RecvError::Lagged(_)) => self.changed.extend(self.known.keys().cloned()),
            Err(RecvError::Closed) => *newcomers = newcomers.resubscribe(),
        }
    }

    async fn hear(&mut self, news: News<PartialObjectMeta<Node>>) {
        match news {
            News::Reading | News::At(_) => {}
            News::Put(node) => drop(self.learn(node.metadata)),
            News::Gone(node) => {
                if let (Some(name), Some(uid)) = (name_of(&node.metadata), node.metadata.uid) {
                    self.missing.insert(name, uid);
                }
            }
            News::All(nodes, _) => {
                let listed: BTreeSet<NodeName> =
                    nodes.into_iter().filter_map(|node| self.learn(node.metadata)).collect();
                self.known.retain(|name, _| listed.contains(name));
                let view = self.registry.read().await;
                let known = view.state().nodes().filter_map(|record| Some((&record.name, record.object.as_ref()?)));
                let gone = known.filter(|(name, _)| !listed.contains(*name));
                self.missing.extend(gone.map(|(name, object)| (name.clone(), object.uid.clone())));
            }
        }
    }

    /// Takes what a Node says; it is compared with the record later.
    fn learn(&mut self, metadata: ObjectMeta) -> Option<NodeName> {
        let name = name_of(&metadata)?;
        let facts = facts(&metadata, &self.selector)?;
        let before = self.known.get(&name);
        if before.is_none_or(|before| before.refused != facts.refused) {
            for refused in &facts.refused {
                tracing::warn!(node = %name, "{refused}; the rest of its Node object counts");
                let note = format!("{refused}; the rest counts");
                self.events.warning(About::Node, name.as_str(), "LabelRefused", note);
            }
        }
        if before != Some(&facts) {
            self.changed.insert(name.clone());
            self.known.insert(name.clone(), facts);
        }
        self.missing.remove(&name);
        Some(name)
    }

    /// Brings records up to what is known; what fails stays to be done.
    async fn carry_out(&mut self) {
        for (name, uid) in std::mem::take(&mut self.missing) {
            match self.look_up(&name).await {
                Ok(None) => {
                    self.known.remove(&name);
                    if !self.deregister(&name, &uid).await {
                        self.missing.insert(name, uid);
                    }
                }
                Ok(Some(metadata)) => drop(self.learn(metadata)),
                Err(why) => {
                    self.obstacles.fails("a deleted node", why);
                    self.missing.insert(name, uid);
                    continue;
                }
            }
            self.obstacles.works("a deleted node");
        }
        let (trust, registry) = (self.labels.borrow().clone(), self.registry.clone());
        let differing: Vec<(NodeName, Facts)> = {
            let view = registry.read().await;
            let changed: Vec<(NodeName, Facts)> = std::mem::take(&mut self.changed)
                .into_iter()
                .filter_map(|name| Some((name.clone(), self.known.get(&name)?.clone())))
                .collect();
            if trust.known && trust.counting != Counting::Yes {
                changed.iter().for_each(|(name, facts)| self.tell_uncounted(view.state(), name, facts, &trust));
            }
            changed.into_iter().filter(|(name, facts)| differs(view.state(), name, facts, trust.counting)).collect()
        };
        let (watch, counting) = (&*self, trust.counting);
        let failed: Vec<NodeName> = stream::iter(differing)
            .map(|(name, facts)| async move { (!watch.record(&name, facts, counting).await).then_some(name) })
            .buffer_unordered(AT_ONCE)
            .filter_map(std::future::ready)
            .collect()
            .await;
        self.changed.extend(failed);
    }

    /// Asks for one Node: `None` only where the API server says that there is none.
    async fn look_up(&self, name: &NodeName) -> Result<Option<ObjectMeta>, String> {
        match tokio::time::timeout(REQUEST, self.api.get_metadata_opt(name.as_str())).await {
            Ok(Ok(node)) => Ok(node.map(|node| node.metadata)),
            Ok(Err(error)) => Err(explain(WHAT, &error)),
            Err(_) => {
                Err(format!("the API server did not say within {} s whether Node {name} is there", REQUEST.as_secs()))
            }
        }
    }

    /// Deregisters a node whose Node of this uid was deleted.
    async fn deregister(&self, name: &NodeName, uid: &str) -> bool {
        let (node, uid, clock) = (name.clone(), uid.to_owned(), self.registry.clock.clone());
        let plan = move |state: &mut State| {
            let known = state.node(&node).and_then(|record| record.object.as_ref());
            let of_this = known.is_some_and(|object| object.uid == uid);
            let changes = of_this.then(|| state.deregistration(&node, clock.now())).flatten();
            Ok(changes.map_or((None, Vec::new()), |(rows, changes)| (Some(rows.len()), changes)))
        };
        match self.registry.change(plan).await {
            Ok(released) => {
                if let Some(segments) = released {
                    self.deregistered(name, segments, "its Node object was deleted");
                }
                true
            }
            Err(error) => {
                tracing::warn!(node = %name, %error, "not deregistered yet, though its Node object was deleted");
                false
            }
        }
    }

    /// Tells once of a registered node that labels of its Node do not count.
    fn tell_uncounted(&mut self, state: &State, name: &NodeName, facts: &Facts, trust: &LabelTrust) {
        let Some(record) = state.node(name) else { return };
        let counted = facts.counted(record.object.as_ref(), trust.counting).communities;
        let without: Vec<&str> = facts.labelled.difference(&counted).map(|community| community.as_str()).collect();
        if without.is_empty() || !self.uncounted.insert(name.clone()) {
            return;
        }
        let without = without.join(", ");
        tracing::warn!(node = %name, "its labels do not put it into {without}: {trust}");
        self.events.warning(About::Node, name.as_str(), "LabelsDoNotCount", format!("not put into {without}: {trust}"));
    }

    /// Puts what a Node says into the record of the node of its name.
    async fn record(&self, name: &NodeName, mut facts: Facts, counting: Counting) -> bool {
        // A kubelet may annotate its own Node: that sends peers elsewhere no more often than its reports do.
        let before = {
            let view = self.registry.read().await;
            let object = view.state().node(name).and_then(|record| record.object.as_ref());
            object.filter(|object| object.uid == facts.uid).map(|object| object.public_addresses.clone())
        };
        let moved = before.filter(|before| *before != facts.public_addresses);
        let later = moved.filter(|_| !self.registry.endpoint_changes.take(name));
        let in_time = later.is_none();
        if let Some(before) = later {
            facts.public_addresses = before;
        }
        let (node, clock) = (name.clone(), self.registry.clock.clone());
        let plan = move |state: &mut State| {
            let Some(record) = state.node(&node).filter(|_| differs(state, &node, &facts, counting)) else {
                return Ok((None, Vec::new()));
            };
            if record.object.as_ref().is_some_and(|before| before.uid != facts.uid) {
                let (rows, changes) = state.deregistration(&node, clock.now()).unwrap_or_default();
                return Ok((Some(Recorded::Deregistered(rows.len())), changes));
            }
            let object = facts.counted(record.object.as_ref(), counting);
            let record = NodeRecord { object: Some(object), ..record.clone() };
            Ok((Some(Recorded::Changed), vec![Change::PutNode(record)]))
        };
        match self.registry.change(plan).await {
            Ok(None) => in_time,
            Ok(Some(Recorded::Changed)) => {
                tracing::info!(node = %name, "its Node object changed");
                in_time
            }
            Ok(Some(Recorded::Deregistered(segments))) => {
                self.deregistered(name, segments, "its Node object was deleted, and another one has its name");
                true
            }
            Err(error) => {
                tracing::warn!(node = %name, %error, "what its Node object says is not recorded yet");
                false
            }
        }
    }

    /// Tells of it.
    fn deregistered(&self, name: &NodeName, segments: usize, why: &str) {
        tracing::info!(node = %name, segments, "deregistered: {why}");
        let note = format!("{why}; its certificate is refused from now on");
        self.events.normal(About::EdgeNode, name.as_str(), "Deregistered", note);
    }
}

/// What became of a record.
enum Recorded {
    Changed,
    /// With so many segments.
    Deregistered(usize),
}

fn differs(state: &State, name: &NodeName, facts: &Facts, counting: Counting) -> bool {
    state.node(name).is_some_and(|record| {
        let before = record.object.as_ref();
        before != Some(&facts.counted(before, counting))
    })
}

fn name_of(metadata: &ObjectMeta) -> Option<NodeName> {
    metadata.name.as_ref()?.parse().ok()
}

fn facts(metadata: &ObjectMeta, selector: &NodeSelector) -> Option<Facts> {
    let none = BTreeMap::new();
    let labels = metadata.labels.as_ref().unwrap_or(&none);
    let mut refused = Vec::new();
    let (mut labelled, mut restricted) = (Communities::new(), Communities::new());
    // Communities are the edges'.
    if selector.matches(labels) {
        for label in [COMMUNITY_LABEL, COMMUNITY_LABEL_ALIAS, RESTRICTED_COMMUNITY_LABEL] {
            let communities = if label == RESTRICTED_COMMUNITY_LABEL { &mut restricted } else { &mut labelled };
            let value = labels.get(label).map(String::as_str).unwrap_or_default();
            for part in value.split('_').filter(|part| !part.is_empty()) {
                match part.parse() {
                    Ok(community) => drop(communities.insert(community)),
                    Err(error) => refused.push(format!("label {label}={value}: {error}")),
                }
            }
        }
    }
    let mut public_addresses: Vec<PublicAddress> = Vec::new();
    let text = metadata.annotations.as_ref().and_then(|annotations| annotations.get(ADDRESSES));
    for part in text.map(String::as_str).unwrap_or_default().split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match part.parse() {
            Ok(address) if public_addresses.contains(&address) => {}
            Ok(address) => public_addresses.push(address),
            Err(error) => refused.push(format!("annotation {ADDRESSES}: {error}")),
        }
    }
    let uid = metadata.uid.clone()?;
    Some(Facts { uid, labelled, restricted, public_addresses, refused })
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

    fn names(communities: &Communities) -> Vec<&str> {
        communities.iter().map(|community| community.as_str()).collect()
    }

    const EDGE: (&str, &str) = ("node-role.kubernetes.io/edge", "");

    #[test]
    fn both_labels_of_an_edge_name_its_communities_and_a_bad_name_spoils_no_other() {
        let labels = [EDGE, (COMMUNITY_LABEL, "alpha_-x_beta"), (COMMUNITY_LABEL_ALIAS, "beta_gamma")];
        let facts = facts(&node(&labels, ""), &NodeSelector::edges()).unwrap();
        assert_eq!(names(&facts.labelled), ["alpha", "beta", "gamma"]);
        assert!(facts.refused.len() == 1 && facts.refused[0].contains("\"-x\""), "{:?}", facts.refused);
    }

    #[test]
    fn a_node_that_is_no_edge_is_in_no_community_whatever_its_labels() {
        let facts = facts(&node(&[(COMMUNITY_LABEL, "alpha")], "192.0.2.1"), &NodeSelector::edges()).unwrap();
        assert!(facts.labelled.is_empty());
        assert_eq!(facts.public_addresses.len(), 1);
    }

    #[test]
    fn labels_that_a_kubelet_may_set_add_no_member_and_what_they_gave_lasts_until_they_are_removed() {
        let read = |labels: &[(&str, &str)]| facts(&node(labels, ""), &NodeSelector::edges()).unwrap();
        let set = read(&[EDGE, (COMMUNITY_LABEL, "alpha_beta"), (RESTRICTED_COMMUNITY_LABEL, "gamma")]);
        let counted = |facts: &Facts, before: Option<&NodeObject>, counting| {
            let object = facts.counted(before, counting);
            assert_eq!(names(&object.restricted_communities).join(" "), names(&facts.restricted).join(" "));
            (names(&object.communities).join(" "), object)
        };
        // Where nothing keeps a kubelet from it, nothing is added; whatever is configured, the restricted label counts.
        assert_eq!(counted(&set, None, Counting::Held).0, "");
        assert_eq!(counted(&set, None, Counting::No).0, "");
        let (said, granted) = counted(&set, None, Counting::Yes);
        assert_eq!(said, "alpha beta");
        // The policy vanishes: a kubelet adds a label, and takes another one away.
        let more = read(&[EDGE, (COMMUNITY_LABEL, "beta_delta_gamma")]);
        let (said, held) = counted(&more, Some(&granted), Counting::Held);
        assert_eq!(said, "beta");
        // What a label that no kubelet sets gave is not kept by one that a kubelet sets.
        assert!(held.restricted_communities.is_empty());
        assert_eq!(
            counted(&set, Some(&held), Counting::Held).0,
            "beta",
            "what was given up does not come back by itself"
        );
        // Another Node of this name inherits nothing.
        let another = NodeObject { uid: "other".into(), ..granted.clone() };
        assert_eq!(counted(&set, Some(&another), Counting::Held).0, "");
        assert_eq!(counted(&set, Some(&granted), Counting::No).0, "");
    }

    #[test]
    fn public_addresses_are_of_either_family_with_or_without_a_port() {
        let text = "203.0.113.7, 203.0.113.7:4501,2001:db8::1 ,[2001:db8::1]:4501,203.0.113.7,x,1.2.3.4:0";
        let facts = facts(&node(&[EDGE], text), &NodeSelector::edges()).unwrap();
        let shown: Vec<String> = facts.public_addresses.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["203.0.113.7", "203.0.113.7:4501", "2001:db8::1", "[2001:db8::1]:4501"]);
        assert_eq!(facts.refused.len(), 2);
    }
}

//! For each node, the version of its view and what changed lately, so that whoever knows an earlier
//! version is told only that.
//!
//! What looks different is remembered by circle, where a thousand viewers read it; what comes into
//! a view and leaves it, by viewer.

use std::collections::{BTreeSet, HashMap, VecDeque};

use edge_types::NodeName;
use tokio::sync::watch;

use crate::state::{Circle, State, Touched, TouchedBy};

/// Changes remembered for each viewer and, at least, for each circle; whoever knows only something
/// older gets the whole view.
const REMEMBERED: usize = 64;

#[derive(Debug)]
pub(super) struct Viewers {
    viewers: HashMap<NodeName, Viewer>,
    circles: HashMap<Circle, Log<NodeName>>,
    /// Whatever a circle without a log may have had is of a version up to this one.
    since: u64,
}

#[derive(Debug)]
struct Viewer {
    version: watch::Sender<u64>,
    log: Log<Touched>,
}

/// What happened, by version.
#[derive(Debug)]
struct Log<T> {
    /// All that happened in versions above this one is in `entries`.
    since: u64,
    entries: VecDeque<(u64, T)>,
}

impl<T> Log<T> {
    fn new(since: u64) -> Self {
        Self { since, entries: VecDeque::new() }
    }

    fn push(&mut self, version: u64, entry: T, most: usize) {
        while self.entries.len() >= most.max(REMEMBERED)
            && let Some((forgotten, _)) = self.entries.pop_front()
        {
            self.since = forgotten;
        }
        self.entries.push_back((version, entry));
    }

    /// All of versions above `known`; `None` where that is not remembered.
    fn after(&self, known: u64) -> Option<impl Iterator<Item = &T>> {
        let entries = self.entries.iter().rev().take_while(move |(version, _)| *version > known);
        (known >= self.since).then(|| entries.map(|(_, entry)| entry))
    }
}

impl Viewer {
    fn new(revision: u64) -> Self {
        Self { version: watch::Sender::new(revision), log: Log::new(revision) }
    }
}

impl Viewers {
    pub(super) fn new(state: &State, revision: u64) -> Self {
        let viewers = state.nodes().map(|node| (node.name.clone(), Viewer::new(revision))).collect();
        Self { viewers, circles: HashMap::new(), since: revision }
    }

    /// Tells everyone who is touched.
    pub(super) fn publish(&mut self, state: &State, touched: TouchedBy, revision: u64) {
        for (name, touched) in touched.views {
            if state.node(&name).is_none() {
                continue;
            }
            if touched.new {
                // Dropping the sender of one of the same name that is gone ends its streams.
                self.viewers.insert(name, Viewer::new(revision));
                continue;
            }
            let viewer = self.viewers.entry(name).or_insert_with(|| Viewer::new(revision.saturating_sub(1)));
            viewer.log.push(revision, touched, REMEMBERED);
            viewer.version.send_replace(revision);
        }
        let mut circles = BTreeSet::new();
        for name in touched.looks {
            for circle in state.node(&name).map(|node| state.circles_of(node)).unwrap_or_default() {
                let log = self.circles.entry(circle.clone()).or_insert_with(|| Log::new(self.since));
                log.push(revision, name.clone(), state.size_of(&circle));
                circles.insert(circle);
            }
        }
        for viewer in circles.iter().flat_map(|circle| state.viewers_of(circle)) {
            if let Some(viewer) = self.viewers.get(viewer) {
                viewer.version.send_replace(revision);
            }
        }
        // Dropping a deregistered node's sender ends its streams.
        if self.viewers.len() != state.nodes().len() {
            self.viewers.retain(|name, _| state.node(name).is_some());
            let circles = self.circles.len();
            self.circles.retain(|circle, _| state.size_of(circle) > 0);
            if self.circles.len() != circles {
                self.since = revision;
            }
        }
    }

    /// Tells everyone that everything may have changed.
    pub(super) fn publish_all(&mut self, revision: u64) {
        self.circles.clear();
        self.since = revision;
        for viewer in self.viewers.values_mut() {
            viewer.log = Log::new(revision);
            viewer.version.send_replace(revision);
        }
    }

    pub(super) fn watch(&self, node: &NodeName) -> Option<watch::Receiver<u64>> {
        self.viewers.get(node).map(|viewer| viewer.version.subscribe())
    }

    pub(super) fn watchers(&self, node: &NodeName) -> usize {
        self.viewers.get(node).map_or(0, |viewer| viewer.version.receiver_count())
    }

    /// All that touched a node's view in versions above `known`; `None` where that is not
    /// remembered.
    pub(super) fn touched_since(&self, state: &State, node: &NodeName, known: u64) -> Option<Touched> {
        let (viewer, record) = (self.viewers.get(node)?, state.node(node)?);
        let mut all = Touched::default();
        viewer.log.after(known)?.for_each(|touched| all.join(touched));
        for log in state.circles_seen_by(record).iter().filter_map(|circle| self.circles.get(circle)) {
            // Who left the view meanwhile is in the viewer's own log.
            let peers = log.after(known)?.filter(|name| !all.peers.contains(*name));
            let peers = peers.filter(|name| state.node(name).is_some_and(|peer| state.is_peer(record, peer)));
            let peers: Vec<NodeName> = peers.cloned().collect();
            all.peers.extend(peers);
        }
        Some(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Change, NodeRecord};
    use edge_types::Role;

    fn touched(peer: &str) -> Touched {
        Touched { peers: [peer.parse().unwrap()].into(), ..Touched::default() }
    }

    fn view_of(viewer: &NodeName, touched: Touched) -> TouchedBy {
        TouchedBy { views: [(viewer.clone(), touched)].into(), ..TouchedBy::default() }
    }

    /// Names of the peers, in a line.
    fn since(viewers: &Viewers, state: &State, viewer: &NodeName, known: u64) -> Option<String> {
        let touched = viewers.touched_since(state, viewer, known)?;
        Some(touched.peers.into_iter().map(String::from).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn what_changed_since_a_version_is_joined_and_what_is_too_old_is_not_made_up() {
        let a: NodeName = "a".parse().unwrap();
        let mut state = State::default();
        state.apply(Change::PutNode(NodeRecord::new(a.clone(), Role::Edge, 0)));
        let mut viewers = Viewers::new(&state, 10);
        for (revision, peer) in [(11, "x"), (12, "y"), (15, "z")] {
            viewers.publish(&state, view_of(&a, touched(peer)), revision);
        }
        let since = |viewers: &Viewers, known| since(viewers, &state, &a, known);
        assert_eq!(since(&viewers, 10).as_deref(), Some("x y z"));
        assert_eq!(since(&viewers, 12).as_deref(), Some("z"));
        assert_eq!(since(&viewers, 15).as_deref(), Some(""));
        assert_eq!(since(&viewers, 9), None);
        for revision in 16..16 + REMEMBERED as u64 {
            viewers.publish(&state, view_of(&a, touched("w")), revision);
        }
        assert_eq!(since(&viewers, 15).as_deref(), Some("w"));
        assert_eq!(since(&viewers, 14), None);
        viewers.publish_all(1000);
        assert_eq!(since(&viewers, 999), None);
        assert_eq!(since(&viewers, 1000).as_deref(), Some(""));
        let watch = viewers.watch(&a).unwrap();
        viewers.publish(&state, view_of(&a, Touched { new: true, ..touched("v") }), 1001);
        assert_eq!(since(&viewers, 1000), None, "another node of the same name");
        assert!(watch.has_changed().is_err(), "the streams of the former one end");
    }

    #[test]
    fn what_looks_different_is_noted_once_and_found_by_all_who_see_it() {
        let mut state = State::default();
        let label = |community: &str| [(edge_types::name::COMMUNITY_LABEL.to_owned(), community.to_owned())].into();
        for (name, role, community) in
            [("a", Role::Edge, "alpha"), ("b", Role::Edge, "alpha"), ("c", Role::Edge, "beta"), ("hub", Role::Hub, "")]
        {
            let mut record = NodeRecord::new(name.parse().unwrap(), role, 0);
            record.set_labels(label(community)).unwrap();
            state.apply(Change::PutNode(record));
        }
        let [a, b, c, hub] = ["a", "b", "c", "hub"].map(|name| name.parse::<NodeName>().unwrap());
        let mut viewers = Viewers::new(&state, 10);
        let heard = [&a, &b, &c, &hub].map(|name| viewers.watch(name).unwrap());
        viewers.publish(&state, TouchedBy { looks: [b.clone()].into(), ..TouchedBy::default() }, 11);
        assert_eq!(heard.each_ref().map(|watch| watch.has_changed().unwrap()), [true, true, false, true]);
        let seen = [&a, &b, &c, &hub].map(|name| since(&viewers, &state, name, 10).unwrap());
        assert_eq!(seen, ["b", "", "", "b"], "b has itself not in its view");
        assert_eq!(since(&viewers, &state, &a, 11).as_deref(), Some(""));
        for revision in 12..12 + REMEMBERED as u64 {
            viewers.publish(&state, TouchedBy { looks: [c.clone()].into(), ..TouchedBy::default() }, revision);
        }
        assert_eq!(since(&viewers, &state, &hub, 10), None, "c filled what is remembered of edges");
        assert_eq!(since(&viewers, &state, &a, 10).as_deref(), Some("b"), "and not what is remembered of alpha");
    }
}

//! Keeps the version of each node's view and its latest changes. A node that has an earlier version
//! of its view gets only the difference.
//!
//! A changed node is recorded once for each of its visibility groups, however many viewers the
//! group has. Peers that enter or leave a view are recorded for that viewer.

use std::collections::{BTreeSet, HashMap, VecDeque};

use edge_types::NodeName;
use tokio::sync::watch;

use crate::state::{ChangedParts, ChangedViews, State, VisibilityGroup};

/// Number of changes that are remembered for each viewer, and the minimum number for each group. A
/// viewer with an older version gets the whole view.
const REMEMBERED: usize = 64;

/// Maximum number of peers in a change that is remembered for a viewer. After a larger one, such as
/// that of a community of thousands, the viewer gets the whole view: to remember it would take as
/// much memory as the view, for each member.
const MOST_PEERS: usize = 256;

#[derive(Debug)]
pub(super) struct ViewVersions {
    viewers: HashMap<NodeName, Viewer>,
    groups: HashMap<VisibilityGroup, Log<NodeName>>,
    /// Version up to which all changes of a group without a log were made.
    since: u64,
}

#[derive(Debug)]
struct Viewer {
    version: watch::Sender<u64>,
    log: Log<ChangedParts>,
}

/// The latest changes of a group of views, the oldest first.
#[derive(Debug)]
struct Log<T> {
    /// `entries` contains all changes of the versions above this one.
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

    /// Returns the changes in all versions above `known`; `None` if some of them are no longer
    /// kept.
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

impl ViewVersions {
    pub(super) fn new(state: &State, revision: u64) -> Self {
        let viewers = state.nodes().map(|node| (node.name.clone(), Viewer::new(revision))).collect();
        Self { viewers, groups: HashMap::new(), since: revision }
    }

    /// Records the changes and wakes the viewers whose views changed.
    pub(super) fn publish(&mut self, state: &State, changed: ChangedViews, revision: u64) {
        for (name, parts) in changed.views {
            if state.node(&name).is_none() {
                continue;
            }
            if parts.new {
                // A former node with this name was deregistered. Dropping its sender ends its
                // streams.
                self.viewers.insert(name, Viewer::new(revision));
                continue;
            }
            let viewer = self.viewers.entry(name).or_insert_with(|| Viewer::new(revision.saturating_sub(1)));
            if parts.peers.len() > MOST_PEERS {
                viewer.log = Log::new(revision);
            } else {
                viewer.log.push(revision, parts, REMEMBERED);
            }
            viewer.version.send_replace(revision);
        }
        let mut groups = BTreeSet::new();
        for name in changed.changed_nodes {
            for group in state.node(&name).map(|node| state.groups_of(node)).unwrap_or_default() {
                let log = self.groups.entry(group.clone()).or_insert_with(|| Log::new(self.since));
                log.push(revision, name.clone(), state.group_size(&group));
                groups.insert(group);
            }
        }
        for viewer in groups.iter().flat_map(|group| state.group_viewers(group)) {
            if let Some(viewer) = self.viewers.get(viewer) {
                viewer.version.send_replace(revision);
            }
        }
        // Dropping a deregistered node's sender ends its streams.
        if self.viewers.len() != state.nodes().len() {
            self.viewers.retain(|name, _| state.node(name).is_some());
            let groups = self.groups.len();
            self.groups.retain(|group, _| state.group_size(group) > 0);
            if self.groups.len() != groups {
                self.since = revision;
            }
        }
    }

    /// Gives every view a new version and drops all recorded changes, because any part of any view
    /// may have changed.
    pub(super) fn publish_all(&mut self, revision: u64) {
        self.groups.clear();
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

    /// Returns all changes of a node's view in versions above `known`; `None` if some of them are
    /// no longer kept.
    pub(super) fn changed_since(&self, state: &State, node: &NodeName, known: u64) -> Option<ChangedParts> {
        let (viewer, record) = (self.viewers.get(node)?, state.node(node)?);
        let mut all = ChangedParts::default();
        viewer.log.after(known)?.for_each(|parts| all.join(parts));
        for log in state.groups_seen_by(record).iter().filter_map(|group| self.groups.get(group)) {
            // A peer that is no longer in the view is skipped: the viewer's own log has its
            // removal.
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

    fn changed_peer(peer: &str) -> ChangedParts {
        ChangedParts { peers: [peer.parse().unwrap()].into(), ..ChangedParts::default() }
    }

    fn only_view(viewer: &NodeName, parts: ChangedParts) -> ChangedViews {
        ChangedViews { views: [(viewer.clone(), parts)].into(), ..ChangedViews::default() }
    }

    /// Returns the names of the changed peers, on one line.
    fn since(viewers: &ViewVersions, state: &State, viewer: &NodeName, known: u64) -> Option<String> {
        let parts = viewers.changed_since(state, viewer, known)?;
        Some(parts.peers.into_iter().map(String::from).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn what_changed_since_a_version_is_joined_and_what_is_too_old_is_not_made_up() {
        let a: NodeName = "a".parse().unwrap();
        let mut state = State::default();
        state.apply(Change::PutNode(NodeRecord::new(a.clone(), Role::Edge, 0)));
        let mut viewers = ViewVersions::new(&state, 10);
        for (revision, peer) in [(11, "x"), (12, "y"), (15, "z")] {
            viewers.publish(&state, only_view(&a, changed_peer(peer)), revision);
        }
        let since = |viewers: &ViewVersions, known| since(viewers, &state, &a, known);
        assert_eq!(since(&viewers, 10).as_deref(), Some("x y z"));
        assert_eq!(since(&viewers, 12).as_deref(), Some("z"));
        assert_eq!(since(&viewers, 15).as_deref(), Some(""));
        assert_eq!(since(&viewers, 9), None);
        for revision in 16..16 + REMEMBERED as u64 {
            viewers.publish(&state, only_view(&a, changed_peer("w")), revision);
        }
        assert_eq!(since(&viewers, 15).as_deref(), Some("w"));
        assert_eq!(since(&viewers, 14), None);
        viewers.publish_all(1000);
        assert_eq!(since(&viewers, 999), None);
        assert_eq!(since(&viewers, 1000).as_deref(), Some(""));
        let watch = viewers.watch(&a).unwrap();
        viewers.publish(&state, only_view(&a, ChangedParts { new: true, ..changed_peer("v") }), 1001);
        assert_eq!(since(&viewers, 1000), None, "another node of the same name");
        assert!(watch.has_changed().is_err(), "the streams of the former one end");
    }

    #[test]
    fn a_change_of_very_many_peers_is_not_remembered() {
        let a: NodeName = "a".parse().unwrap();
        let mut state = State::default();
        state.apply(Change::PutNode(NodeRecord::new(a.clone(), Role::Edge, 0)));
        let mut viewers = ViewVersions::new(&state, 10);
        let watch = viewers.watch(&a).unwrap();
        let peers = (0..=MOST_PEERS).map(|n| format!("edge-{n}").parse().unwrap()).collect();
        viewers.publish(&state, only_view(&a, ChangedParts { peers, ..ChangedParts::default() }), 11);
        assert_eq!(*watch.borrow(), 11);
        assert_eq!(since(&viewers, &state, &a, 10), None, "the viewer gets the whole view");
        assert!(viewers.viewers[&a].log.entries.is_empty());
        viewers.publish(&state, only_view(&a, changed_peer("x")), 12);
        assert_eq!(since(&viewers, &state, &a, 11).as_deref(), Some("x"));
    }

    #[test]
    fn a_node_that_changed_is_recorded_once_and_found_by_all_its_viewers() {
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
        let mut viewers = ViewVersions::new(&state, 10);
        let heard = [&a, &b, &c, &hub].map(|name| viewers.watch(name).unwrap());
        viewers.publish(&state, ChangedViews { changed_nodes: [b.clone()].into(), ..ChangedViews::default() }, 11);
        assert_eq!(heard.each_ref().map(|watch| watch.has_changed().unwrap()), [true, true, false, true]);
        let seen = [&a, &b, &c, &hub].map(|name| since(&viewers, &state, name, 10).unwrap());
        assert_eq!(seen, ["b", "", "", "b"], "b has itself not in its view");
        assert_eq!(since(&viewers, &state, &a, 11).as_deref(), Some(""));
        for revision in 12..12 + REMEMBERED as u64 {
            viewers.publish(
                &state,
                ChangedViews { changed_nodes: [c.clone()].into(), ..ChangedViews::default() },
                revision,
            );
        }
        assert_eq!(since(&viewers, &state, &hub, 10), None, "c filled what is remembered of edges");
        assert_eq!(since(&viewers, &state, &a, 10).as_deref(), Some("b"), "and not what is remembered of alpha");
    }
}

//! Keeps the version of each node's view and the latest changes. A node that has an earlier version
//! of its view gets only the difference.
//!
//! A node that changed, or that entered or left a visibility group, is recorded once for each of
//! its groups, however many viewers the group has. So what is remembered grows with the number of
//! changes and of groups, and a viewer remembers nothing but two versions.

use std::collections::{HashMap, VecDeque};

use edge_types::NodeName;
use tokio::sync::watch;

use crate::state::{ChangedParts, ChangedViews, State, ViewerChange, VisibilityGroup};

/// Minimum number of changes that are remembered for each group. A group of more nodes remembers as
/// many changes as it has nodes. A viewer with an older version gets the whole view.
const REMEMBERED: usize = 64;

#[derive(Debug)]
pub(super) struct ViewVersions {
    viewers: HashMap<NodeName, Viewer>,
    /// Only groups that some node sees, and in which something changed.
    groups: HashMap<VisibilityGroup, Log>,
    /// Version since which nothing changed in a group without a log.
    since: u64,
}

#[derive(Debug)]
struct Viewer {
    version: watch::Sender<u64>,
    /// With a version older than this, the node gets the whole view.
    whole_before: u64,
    /// Version of the last change of the view's part about the node itself.
    own_part: u64,
}

/// The latest changes of a group: nodes that changed, entered or left, the oldest change first.
#[derive(Debug)]
struct Log {
    /// `entries` contains all changes of the versions above this one.
    since: u64,
    entries: VecDeque<(u64, NodeName)>,
}

impl Log {
    fn new(since: u64) -> Self {
        Self { since, entries: VecDeque::new() }
    }

    fn push(&mut self, version: u64, node: NodeName, most: usize) {
        while self.entries.len() >= most.max(REMEMBERED)
            && let Some((forgotten, _)) = self.entries.pop_front()
        {
            self.since = forgotten;
        }
        self.entries.push_back((version, node));
    }

    /// Returns the nodes of all changes in versions above `known`; `None` if some of them are no
    /// longer kept.
    fn after(&self, known: u64) -> Option<impl Iterator<Item = &NodeName>> {
        let entries = self.entries.iter().rev().take_while(move |(version, _)| *version > known);
        (known >= self.since).then(|| entries.map(|(_, node)| node))
    }
}

impl Viewer {
    fn new(revision: u64) -> Self {
        Self { version: watch::Sender::new(revision), whole_before: revision, own_part: revision }
    }

    fn changed(&mut self, change: ViewerChange, revision: u64) {
        match change {
            ViewerChange::OwnPart => self.own_part = revision,
            ViewerChange::WholeView => self.whole_before = revision,
            // Dropping the former sender ends the streams of the former node with this name.
            ViewerChange::Registered => return *self = Self::new(revision),
        }
        self.version.send_replace(revision);
    }
}

impl ViewVersions {
    pub(super) fn new(state: &State, revision: u64) -> Self {
        let viewers = state.nodes().map(|node| (node.name.clone(), Viewer::new(revision))).collect();
        Self { viewers, groups: HashMap::new(), since: revision }
    }

    /// Records the changes and wakes the viewers whose views changed.
    pub(super) fn publish(&mut self, state: &State, changed: ChangedViews, revision: u64) {
        for (name, change) in changed.viewers {
            if state.node(&name).is_some() {
                self.viewers.entry(name).or_insert_with(|| Viewer::new(revision)).changed(change, revision);
            }
        }
        let mut moved = changed.moved;
        for name in changed.changed_nodes {
            // A node that is no longer registered left its groups.
            for group in state.node(&name).map(|node| state.groups_of(node)).unwrap_or_default() {
                moved.entry(group).or_default().insert(name.clone());
            }
        }
        for (group, names) in moved {
            let mut viewers = state.group_viewers(&group).peekable();
            if viewers.peek().is_none() {
                // A node that sees this group later gets the whole view when it begins to.
                self.groups.remove(&group);
                continue;
            }
            for viewer in viewers.filter_map(|name| self.viewers.get(name)) {
                viewer.version.send_replace(revision);
            }
            let most = state.group_size(&group);
            let log = self.groups.entry(group).or_insert_with(|| Log::new(self.since));
            names.into_iter().for_each(|name| log.push(revision, name, most));
        }
        // Dropping a deregistered node's sender ends its streams.
        if self.viewers.len() != state.nodes().len() {
            self.viewers.retain(|name, _| state.node(name).is_some());
            self.groups.retain(|group, _| state.group_viewers(group).next().is_some());
        }
    }

    /// Gives every view a new version and drops all recorded changes, because any part of any view
    /// may have changed.
    pub(super) fn publish_all(&mut self, revision: u64) {
        self.groups.clear();
        self.since = revision;
        for viewer in self.viewers.values_mut() {
            viewer.changed(ViewerChange::WholeView, revision);
        }
    }

    pub(super) fn watch(&self, node: &NodeName) -> Option<watch::Receiver<u64>> {
        self.viewers.get(node).map(|viewer| viewer.version.subscribe())
    }

    pub(super) fn watchers(&self, node: &NodeName) -> usize {
        self.viewers.get(node).map_or(0, |viewer| viewer.version.receiver_count())
    }

    /// Returns all changes of a node's view in versions above `known`; `None` if some of them are
    /// no longer kept. The peers may include nodes that entered and left the view in the meantime,
    /// and nodes that are in the view as before.
    pub(super) fn changed_since(&self, state: &State, node: &NodeName, known: u64) -> Option<ChangedParts> {
        let (viewer, record) = (self.viewers.get(node)?, state.node(node)?);
        if known < viewer.whole_before {
            return None;
        }
        let mut all = ChangedParts { own: viewer.own_part > known, ..ChangedParts::default() };
        for log in state.groups_seen_by(record).iter().filter_map(|group| self.groups.get(group)) {
            for name in log.after(known)?.filter(|name| *name != node) {
                if !all.peers.contains(name) {
                    all.peers.insert(name.clone());
                }
            }
        }
        Some(all)
    }

    /// Returns how many changes are remembered, in all groups together.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.groups.values().map(|log| log.entries.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Change, NodeRecord};
    use edge_types::Role;

    fn name(text: &str) -> NodeName {
        text.parse().unwrap()
    }

    fn edge(node: &str, community: &str) -> Change {
        let mut record = NodeRecord::new(name(node), Role::Edge, 0);
        record.set_labels([(edge_types::name::COMMUNITY_LABEL.to_owned(), community.to_owned())].into()).unwrap();
        Change::PutNode(record)
    }

    fn cluster(changes: impl IntoIterator<Item = Change>) -> State {
        let mut state = State::default();
        changes.into_iter().for_each(|change| state.apply(change));
        state.take_changed_views();
        state
    }

    fn publish(viewers: &mut ViewVersions, state: &mut State, change: Change, revision: u64) {
        state.apply(change);
        let changed = state.take_changed_views();
        viewers.publish(state, changed, revision);
    }

    /// Returns the names of the changed peers, on one line.
    fn since(viewers: &ViewVersions, state: &State, viewer: &NodeName, known: u64) -> Option<String> {
        let parts = viewers.changed_since(state, viewer, known)?;
        Some(parts.peers.into_iter().map(String::from).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn what_changed_since_a_version_is_joined_and_what_is_too_old_is_not_made_up() {
        let a = name("a");
        let mut state = cluster([edge("a", "alpha"), edge("w", "")]);
        let mut viewers = ViewVersions::new(&state, 10);
        for (revision, peer) in [(11, "x"), (12, "y"), (15, "z")] {
            publish(&mut viewers, &mut state, edge(peer, "alpha"), revision);
        }
        assert_eq!(since(&viewers, &state, &a, 10).as_deref(), Some("x y z"));
        assert_eq!(since(&viewers, &state, &a, 12).as_deref(), Some("z"));
        assert_eq!(since(&viewers, &state, &a, 15).as_deref(), Some(""));
        assert_eq!(since(&viewers, &state, &a, 9), None);
        for revision in 16..16 + REMEMBERED as u64 {
            let community = if revision % 2 == 0 { "alpha" } else { "" };
            publish(&mut viewers, &mut state, edge("w", community), revision);
        }
        assert_eq!(since(&viewers, &state, &a, 15).as_deref(), Some("w"));
        assert_eq!(since(&viewers, &state, &a, 14), None);
        viewers.publish_all(1000);
        assert_eq!(since(&viewers, &state, &a, 999), None);
        assert_eq!(since(&viewers, &state, &a, 1000).as_deref(), Some(""));
        let watch = viewers.watch(&a).unwrap();
        state.apply(Change::DeleteNode(a.clone()));
        publish(&mut viewers, &mut state, edge("a", "alpha"), 1001);
        assert_eq!(since(&viewers, &state, &a, 1000), None, "another node of the same name");
        assert!(watch.has_changed().is_err(), "the streams of the former one end");
        assert_eq!(since(&viewers, &state, &name("x"), 1000).as_deref(), Some("a"), "its peers hear of it");
    }

    #[test]
    fn a_node_that_moves_is_recorded_once_for_a_group_and_not_once_for_each_viewer() {
        let mut state = cluster((0..1000).map(|n| edge(&format!("n{n}"), "alpha")));
        let mut viewers = ViewVersions::new(&state, 10);
        let heard = viewers.watch(&name("n0")).unwrap();
        for joined in 0..100 {
            publish(&mut viewers, &mut state, edge(&format!("new{joined}"), "alpha"), 11 + joined);
        }
        assert!(viewers.remembered() <= 100, "{}", viewers.remembered());
        assert_eq!(*heard.borrow(), 110);
        assert_eq!(since(&viewers, &state, &name("n0"), 109).as_deref(), Some("new99"));
        assert_eq!(since(&viewers, &state, &name("n0"), 10).unwrap().split(' ').count(), 100);
        publish(&mut viewers, &mut state, edge("new0", ""), 200);
        assert_eq!(since(&viewers, &state, &name("n0"), 199).as_deref(), Some("new0"));
        assert_eq!(since(&viewers, &state, &name("new0"), 199), None, "it gets the whole view");
        publish(&mut viewers, &mut state, Change::DeleteNode(name("new1")), 201);
        assert_eq!(since(&viewers, &state, &name("n0"), 200).as_deref(), Some("new1"));
        publish(&mut viewers, &mut state, edge("new0", "alpha"), 202);
        assert_eq!(since(&viewers, &state, &name("new0"), 200), None, "not what left while it was away: new1");
        assert_eq!(since(&viewers, &state, &name("new0"), 202).as_deref(), Some(""));
    }

    #[test]
    fn a_role_of_which_the_last_node_left_is_still_told_to_those_that_see_the_role() {
        let mut state = cluster([edge("a", ""), Change::PutNode(NodeRecord::new(name("hub"), Role::Hub, 0))]);
        let mut viewers = ViewVersions::new(&state, 10);
        publish(&mut viewers, &mut state, Change::DeleteNode(name("a")), 11);
        assert_eq!(since(&viewers, &state, &name("hub"), 10).as_deref(), Some("a"));
    }

    #[test]
    fn a_group_that_nobody_sees_is_not_remembered() {
        let mut state = cluster([edge("a", ""), edge("b", "")]);
        let mut viewers = ViewVersions::new(&state, 10);
        for round in 0..100 {
            publish(&mut viewers, &mut state, edge("a", &format!("c{round}")), 11 + round);
        }
        assert_eq!(viewers.groups.len(), 1, "only the last community");
        publish(&mut viewers, &mut state, Change::DeleteNode(name("a")), 200);
        assert!(viewers.groups.is_empty());
    }

    #[test]
    fn a_node_that_changed_is_recorded_once_and_found_by_all_its_viewers() {
        let hub = Change::PutNode(NodeRecord::new(name("hub"), Role::Hub, 0));
        let state = cluster([edge("a", "alpha"), edge("b", "alpha"), edge("c", "beta"), hub]);
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

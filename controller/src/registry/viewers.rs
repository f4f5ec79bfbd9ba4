//! For each node, the version of its view and what changed lately, so that whoever knows an earlier version is told only that.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use edge_types::NodeName;
use tokio::sync::watch;

use crate::state::{State, Touched};

/// Changes remembered for each node; whoever knows only something older gets the whole view.
const REMEMBERED: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Viewers(HashMap<NodeName, Viewer>);

#[derive(Debug)]
struct Viewer {
    version: watch::Sender<u64>,
    /// All that touched its view in versions above this one is in `log`.
    since: u64,
    log: VecDeque<(u64, Arc<Touched>)>,
}

impl Viewer {
    fn new(revision: u64) -> Self {
        Self { version: watch::Sender::new(revision), since: revision, log: VecDeque::new() }
    }
}

impl Viewers {
    pub(super) fn new(state: &State, revision: u64) -> Self {
        Self(state.nodes().map(|node| (node.name.clone(), Viewer::new(revision))).collect())
    }

    /// Tells everyone who is touched.
    pub(super) fn publish(&mut self, state: &State, touched: BTreeMap<NodeName, Touched>, revision: u64) {
        for (name, touched) in touched {
            if state.node(&name).is_none() {
                continue;
            }
            if touched.new {
                // Dropping the sender of one of the same name that is gone ends its streams.
                self.0.insert(name, Viewer::new(revision));
                continue;
            }
            let viewer = self.0.entry(name).or_insert_with(|| Viewer::new(revision.saturating_sub(1)));
            if viewer.log.len() == REMEMBERED
                && let Some((forgotten, _)) = viewer.log.pop_front()
            {
                viewer.since = forgotten;
            }
            viewer.log.push_back((revision, Arc::new(touched)));
            viewer.version.send_replace(revision);
        }
        // Dropping a deregistered node's sender ends its streams.
        if self.0.len() != state.nodes().len() {
            self.0.retain(|name, _| state.node(name).is_some());
        }
    }

    /// Tells everyone that everything may have changed.
    pub(super) fn publish_all(&mut self, revision: u64) {
        for viewer in self.0.values_mut() {
            viewer.log.clear();
            viewer.since = revision;
            viewer.version.send_replace(revision);
        }
    }

    pub(super) fn watch(&self, node: &NodeName) -> Option<watch::Receiver<u64>> {
        self.0.get(node).map(|viewer| viewer.version.subscribe())
    }

    pub(super) fn is_watched(&self, node: &NodeName) -> bool {
        self.0.get(node).is_some_and(|viewer| viewer.version.receiver_count() > 0)
    }

    /// All that touched a node's view in versions above `known`; `None` where that is not remembered.
    pub(super) fn touched_since(&self, node: &NodeName, known: u64) -> Option<Touched> {
        let viewer = self.0.get(node).filter(|viewer| known >= viewer.since)?;
        let mut all = Touched::default();
        for (_, touched) in viewer.log.iter().rev().take_while(|(version, _)| *version > known) {
            all.join(touched);
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

    #[test]
    fn what_changed_since_a_version_is_joined_and_what_is_too_old_is_not_made_up() {
        let a: NodeName = "a".parse().unwrap();
        let mut state = State::default();
        state.apply(Change::PutNode(NodeRecord::new(a.clone(), Role::Edge, 0)));
        let mut viewers = Viewers::new(&state, 10);
        for (revision, peer) in [(11, "x"), (12, "y"), (15, "z")] {
            viewers.publish(&state, [(a.clone(), touched(peer))].into(), revision);
        }
        let since = |viewers: &Viewers, known| {
            let touched = viewers.touched_since(&a, known)?;
            Some(touched.peers.into_iter().map(String::from).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(since(&viewers, 10).as_deref(), Some("x y z"));
        assert_eq!(since(&viewers, 12).as_deref(), Some("z"));
        assert_eq!(since(&viewers, 15).as_deref(), Some(""));
        assert_eq!(since(&viewers, 9), None);
        for revision in 16..16 + REMEMBERED as u64 {
            viewers.publish(&state, [(a.clone(), touched("w"))].into(), revision);
        }
        assert_eq!(since(&viewers, 15).as_deref(), Some("w"));
        assert_eq!(since(&viewers, 14), None);
        viewers.publish_all(1000);
        assert_eq!(since(&viewers, 999), None);
        assert_eq!(since(&viewers, 1000).as_deref(), Some(""));
        let watch = viewers.watch(&a).unwrap();
        viewers.publish(&state, [(a.clone(), Touched { new: true, ..touched("v") })].into(), 1001);
        assert_eq!(since(&viewers, 1000), None, "another node of the same name");
        assert!(watch.has_changed().is_err(), "the streams of the former one end");
    }
}

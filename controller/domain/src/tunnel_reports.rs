//! What nodes report of their tunnels: kept in memory, for people.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use edge_types::NodeName;
use edge_types::api::TunnelCount;

use crate::text::is_invisible;

/// Longest text of a node that is kept, characters.
const LONGEST_TEXT: usize = 500;

/// What each node reported last to this replica.
#[derive(Debug, Clone, Default)]
pub struct TunnelReports(Arc<Mutex<Reports>>);

#[derive(Debug, Default)]
struct Reports {
    last: HashMap<NodeName, TunnelCount>,
    /// Why nodes do not take their view; only of nodes that report a reason.
    refusals: HashMap<NodeName, String>,
    unseen: UnseenReports,
}

/// What nobody has looked at yet.
#[derive(Debug, Default)]
pub struct UnseenReports {
    /// Nodes that began to follow their view: another replica may have shown something else of them
    /// meanwhile.
    pub begun: HashSet<NodeName>,
    /// Nodes of which something else is to be shown than before.
    pub changed: HashSet<NodeName>,
}

impl TunnelReports {
    fn reports(&self) -> MutexGuard<'_, Reports> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node begins to follow its view here. It may have reported just before, and nothing new to
    /// us.
    pub fn begins(&self, node: &NodeName) {
        let mut reports = self.reports();
        reports.unseen.begun.insert(node.clone());
        reports.unseen.changed.insert(node.clone());
    }

    /// A node has reported how many tunnels it has.
    pub fn reported(&self, node: &NodeName, count: TunnelCount) {
        let mut reports = self.reports();
        if reports.last.insert(node.clone(), count) != Some(count) {
            reports.unseen.changed.insert(node.clone());
        }
    }

    /// What a node reported last.
    pub fn of(&self, node: &NodeName) -> Option<TunnelCount> {
        self.reports().last.get(node).copied()
    }

    /// A node has reported why it does not take its view, or that it takes it (`None`). Its words
    /// are shown to people: what hides, reorders or breaks text is left out.
    pub fn refused(&self, node: &NodeName, why: Option<&str>) {
        let mut reports = self.reports();
        match why {
            Some(why) => {
                let text = why.chars().filter(|character| !is_invisible(*character)).take(LONGEST_TEXT).collect();
                reports.refusals.insert(node.clone(), text);
            }
            None => drop(reports.refusals.remove(node)),
        }
    }

    /// Why a node does not take its view, as it last reported.
    pub fn refusal_of(&self, node: &NodeName) -> Option<String> {
        self.reports().refusals.get(node).cloned()
    }

    /// Forgets all nodes but these.
    pub fn retain(&self, kept: impl Fn(&NodeName) -> bool) {
        let mut reports = self.reports();
        reports.last.retain(|name, _| kept(name));
        reports.refusals.retain(|name, _| kept(name));
        reports.unseen.begun.retain(&kept);
        reports.unseen.changed.retain(&kept);
    }

    /// What came since this was last asked.
    pub fn take_unseen(&self) -> UnseenReports {
        std::mem::take(&mut self.reports().unseen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_words_are_one_short_line_and_go_with_it() {
        let tunnels = TunnelReports::default();
        let node: NodeName = "edge-1".parse().unwrap();
        let long = format!("view 3 is refused\u{1b}[31m:\r\n{}", "x".repeat(10 * LONGEST_TEXT));
        tunnels.refused(&node, Some(&long));
        let shown = tunnels.refusal_of(&node).unwrap();
        assert!(shown.starts_with("view 3 is refused[31m:xxx"), "{shown}");
        assert_eq!(shown.chars().count(), LONGEST_TEXT);
        tunnels.refused(&node, None);
        assert_eq!(tunnels.refusal_of(&node), None);
        tunnels.refused(&node, Some("again"));
        tunnels.retain(|_| false);
        assert_eq!(tunnels.refusal_of(&node), None);
    }
}

//! What nodes report about their tunnels. It is kept in memory, for the operator.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use edge_types::NodeName;
use edge_types::api::TunnelCount;

use crate::text::is_invisible;

/// Longest text of a node that is kept, in characters.
const LONGEST_TEXT: usize = 500;

/// The last report of each node to this replica. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct TunnelReports(Arc<Mutex<Reports>>);

#[derive(Debug, Default)]
struct Reports {
    last: HashMap<NodeName, TunnelCount>,
    /// Why nodes refuse their views; only of nodes that do.
    refusals: HashMap<NodeName, String>,
    unseen: UnseenReports,
}

/// Changes that the status writer has not read yet.
#[derive(Debug, Default)]
pub struct UnseenReports {
    /// Nodes that opened a stream of their view here. Another replica may have written their status
    /// meanwhile.
    pub begun: HashSet<NodeName>,
    /// Nodes of which the report changed.
    pub changed: HashSet<NodeName>,
}

impl TunnelReports {
    fn reports(&self) -> MutexGuard<'_, Reports> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node opened a stream of its view here. It may have reported the same tunnels to this
    /// replica before.
    pub fn begins(&self, node: &NodeName) {
        let mut reports = self.reports();
        reports.unseen.begun.insert(node.clone());
        reports.unseen.changed.insert(node.clone());
    }

    /// A node reported how many tunnels it has.
    pub fn reported(&self, node: &NodeName, count: TunnelCount) {
        let mut reports = self.reports();
        if reports.last.insert(node.clone(), count) != Some(count) {
            reports.unseen.changed.insert(node.clone());
        }
    }

    /// The last report of a node.
    pub fn of(&self, node: &NodeName) -> Option<TunnelCount> {
        self.reports().last.get(node).copied()
    }

    /// A node reported why it refuses its view, or that it accepts it (`None`). The text is shown
    /// to people: characters that hide, reorder or break text are removed.
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

    /// Why a node refuses its view, by its last report.
    pub fn refusal_of(&self, node: &NodeName) -> Option<String> {
        self.reports().refusals.get(node).cloned()
    }

    /// Forgets all nodes for which `kept` is false.
    pub fn retain(&self, kept: impl Fn(&NodeName) -> bool) {
        let mut reports = self.reports();
        reports.last.retain(|name, _| kept(name));
        reports.refusals.retain(|name, _| kept(name));
        reports.unseen.begun.retain(&kept);
        reports.unseen.changed.retain(&kept);
    }

    /// The changes since the last call.
    pub fn take_unseen(&self) -> UnseenReports {
        std::mem::take(&mut self.reports().unseen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_node_is_one_short_line_and_is_forgotten_with_the_node() {
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

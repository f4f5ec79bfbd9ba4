//! Keeps in memory, for the operator, what nodes report about themselves and when they were last
//! seen. The server periodically writes the times when nodes were last seen to disk.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use edge_types::NodeName;
use edge_types::api::{LONGEST_OBSTACLE, LONGEST_VERSION, MOST_DOWN, MOST_OBSTACLES, NodeReport, TunnelCount};
use edge_types::traffic::TunnelTraffic;

use crate::clock::Seconds;
use crate::text::shown;

/// Maximum length of a reason that a node reports, in characters.
const LONGEST_REASON: usize = 500;

/// The last report from each node to this replica. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct NodeReports(Arc<Mutex<Reports>>);

#[derive(Debug, Default)]
struct Reports {
    last: HashMap<NodeName, LastReport>,
    /// Kept apart, because the traffic changes often and is not written to the status.
    traffic: HashMap<NodeName, TunnelTraffic>,
    last_seen: HashMap<NodeName, Seconds>,
    unseen: UnseenReports,
}

/// The parts of a node's last report that only people read. Texts are limited in length, and
/// characters that hide, reorder or break text are removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LastReport {
    /// The node's tunnels; `None` if the node has not counted them yet.
    pub tunnels: Option<TunnelCount>,
    /// Release of the node's agent; `None` if the agent does not report it.
    pub version: Option<String>,
    /// The obstacles that keep packets of the node's pods from arriving, one sentence each.
    pub obstacles: Vec<String>,
    /// The reason why the latest view is not in force on the node; `None` if it is.
    pub refused_view: Option<String>,
}

/// Changes that the status writer has not read yet.
#[derive(Debug, Default)]
pub struct UnseenReports {
    /// Nodes that opened a stream of their view at this replica. Another replica may have written
    /// their status in the meantime.
    pub begun: HashSet<NodeName>,
    /// Nodes whose report changed.
    pub changed: HashSet<NodeName>,
}

impl LastReport {
    /// Takes the content of a report. If the report has no tunnel counts, those of the previous
    /// report are kept.
    fn of(report: &NodeReport, before: Option<&Self>) -> Self {
        let obstacles = report.obstacles.iter().take(MOST_OBSTACLES);
        Self {
            tunnels: report.tunnels.as_ref().map(storable).or_else(|| before?.tunnels.clone()),
            version: report.version.as_ref().map(|text| shown(text, LONGEST_VERSION)),
            obstacles: obstacles.map(|text| shown(text, LONGEST_OBSTACLE)).collect(),
            refused_view: report.refused_view.as_ref().map(|text| shown(text, LONGEST_REASON)),
        }
    }
}

/// Returns the counts, each limited to the maximum of an int32, and the first [`MOST_DOWN`] peers.
/// The API server would refuse the whole status if a count were larger.
fn storable(count: &TunnelCount) -> TunnelCount {
    let most = i32::MAX.unsigned_abs();
    let down = count.down.iter().take(MOST_DOWN).cloned().collect();
    TunnelCount { up: count.up.min(most), wanted: count.wanted.min(most), down }
}

impl NodeReports {
    fn reports(&self) -> MutexGuard<'_, Reports> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that a node opened a stream of its view at this replica. The node may have sent the
    /// same report to this replica before.
    pub fn begins(&self, node: &NodeName, now: Seconds) {
        let mut reports = self.reports();
        reports.last_seen.insert(node.clone(), now);
        reports.unseen.begun.insert(node.clone());
        reports.unseen.changed.insert(node.clone());
    }

    /// Records that a stream of a node's view ended at this replica.
    pub fn ends(&self, node: &NodeName, now: Seconds) {
        self.reports().last_seen.insert(node.clone(), now);
    }

    /// Records a report from a node.
    pub fn reported(&self, node: &NodeName, report: &NodeReport, now: Seconds) {
        let mut reports = self.reports();
        reports.last_seen.insert(node.clone(), now);
        match report.traffic {
            Some(traffic) => reports.traffic.insert(node.clone(), traffic),
            None => reports.traffic.remove(node),
        };
        let before = reports.last.get(node);
        let last = LastReport::of(report, before);
        if before != Some(&last) {
            reports.last.insert(node.clone(), last);
            reports.unseen.changed.insert(node.clone());
        }
    }

    /// Returns a node's last report; `None` if the node has not reported to this replica.
    pub fn of(&self, node: &NodeName) -> Option<LastReport> {
        self.reports().last.get(node).cloned()
    }

    /// Returns the traffic of a node's tunnels; `None` if the node's last report to this replica
    /// does not contain it.
    pub fn traffic(&self, node: &NodeName) -> Option<TunnelTraffic> {
        self.reports().traffic.get(node).copied()
    }

    /// Returns when a node last reported to this replica, opened a stream of its view, or lost the
    /// stream.
    pub fn last_seen(&self, node: &NodeName) -> Option<Seconds> {
        self.reports().last_seen.get(node).copied()
    }

    /// Restores when nodes were last seen before this replica was started. Times that this replica
    /// has recorded itself take precedence.
    pub fn restore_last_seen(&self, before: &BTreeMap<NodeName, Seconds>) {
        let mut reports = self.reports();
        for (node, at) in before {
            reports.last_seen.entry(node.clone()).or_insert(*at);
        }
    }

    /// Removes all nodes for which `kept` is false.
    pub fn retain(&self, kept: impl Fn(&NodeName) -> bool) {
        let mut reports = self.reports();
        reports.last.retain(|name, _| kept(name));
        reports.traffic.retain(|name, _| kept(name));
        reports.last_seen.retain(|name, _| kept(name));
        reports.unseen.begun.retain(&kept);
        reports.unseen.changed.retain(&kept);
    }

    /// Returns the changes since the last call.
    pub fn take_unseen(&self) -> UnseenReports {
        std::mem::take(&mut self.reports().unseen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> NodeReport {
        NodeReport {
            addresses: Vec::new(),
            port: 4500,
            tunnels: Some(TunnelCount { up: 1, wanted: 2, ..TunnelCount::default() }),
            traffic: None,
            refused_view: None,
            segments: None,
            version: None,
            obstacles: Vec::new(),
            mapped: None,
            tcp_port: None,
            unreached_hubs: None,
        }
    }

    #[test]
    fn texts_of_a_node_are_short_lines_and_are_forgotten_with_the_node() {
        let reports = NodeReports::default();
        let node: NodeName = "edge-1".parse().unwrap();
        let long = |text: &str| format!("{text}\u{1b}[31m:\r\n{}", "x".repeat(10_000));
        let names = (0..100).map(|number| format!("edge-{number}").parse().unwrap()).collect();
        let many = NodeReport { tunnels: Some(TunnelCount { up: u32::MAX, wanted: 7, down: names }), ..report() };
        let counted = LastReport::of(&many, None).tunnels.unwrap();
        assert_eq!((counted.up, counted.wanted, counted.down.len()), (i32::MAX.unsigned_abs(), 7, MOST_DOWN));
        let full = NodeReport {
            refused_view: Some(long("view 3 is refused")),
            version: Some(long("1.2.3")),
            obstacles: vec![long("ufw drops"); 100],
            ..report()
        };
        reports.reported(&node, &full, 7);
        let last = reports.of(&node).unwrap();
        let refused = last.refused_view.unwrap();
        assert!(refused.starts_with("view 3 is refused[31m:xxx"), "{refused}");
        assert_eq!(refused.chars().count(), LONGEST_REASON);
        assert_eq!(last.version.unwrap().chars().count(), LONGEST_VERSION);
        assert_eq!(last.obstacles.len(), MOST_OBSTACLES);
        assert!(last.obstacles.iter().all(|text| text.chars().count() == LONGEST_OBSTACLE));
        assert!(last.obstacles[0].starts_with("ufw drops[31m:xxx"), "{}", last.obstacles[0]);
        reports.reported(&node, &report(), 8);
        let last = reports.of(&node).unwrap();
        assert_eq!((last.refused_view, last.version, last.obstacles), (None, None, Vec::new()));
        reports.retain(|_| false);
        assert_eq!((reports.of(&node), reports.last_seen(&node)), (None, None));
    }

    #[test]
    fn only_a_report_that_says_something_new_is_written_to_the_status() {
        let reports = NodeReports::default();
        let node: NodeName = "edge-1".parse().unwrap();
        let changes = |report: NodeReport| {
            reports.reported(&node, &report, 9);
            reports.take_unseen().changed.contains(&node)
        };
        assert!(changes(report()));
        assert!(!changes(report()));
        assert!(!changes(NodeReport { tunnels: None, ..report() }), "it counts no tunnels yet");
        assert!(changes(NodeReport { obstacles: vec!["ufw drops".into()], ..report() }));
        assert!(changes(NodeReport { version: Some("1.0".into()), ..report() }));
        assert_eq!(reports.last_seen(&node), Some(9));
    }

    #[test]
    fn traffic_is_known_from_the_last_report_alone_and_is_never_written_to_the_status() {
        let reports = NodeReports::default();
        let node: NodeName = "edge-1".parse().unwrap();
        reports.reported(&node, &report(), 9);
        reports.take_unseen();
        for rate in [u64::MAX, 0] {
            let traffic = TunnelTraffic { received: 7, sent: 8, received_per_second: rate, sent_per_second: 1 };
            reports.reported(&node, &NodeReport { traffic: Some(traffic), ..report() }, 9);
            assert_eq!(reports.traffic(&node), Some(traffic));
        }
        // The agent has started again, or another release has.
        reports.reported(&node, &report(), 9);
        assert_eq!(reports.traffic(&node), None);
        assert!(reports.take_unseen().changed.is_empty());
        let traffic = TunnelTraffic { received: 7, sent: 8, received_per_second: 0, sent_per_second: 1 };
        reports.reported(&node, &NodeReport { traffic: Some(traffic), ..report() }, 9);
        reports.retain(|_| false);
        assert_eq!(reports.traffic(&node), None);
    }
}

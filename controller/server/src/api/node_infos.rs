//! Collects information about nodes for the operator: their rows, their reports, and data from
//! other replicas.

use std::collections::HashMap;
use std::sync::Arc;

use edge_controller_domain::clock::Seconds;
use edge_controller_domain::node_reports::{LastReport, NodeReports};
use edge_controller_domain::registry::{Registry, StateGuard};
use edge_controller_domain::segments::ClaimConflicts;
use edge_controller_domain::state::{Certificate, NodeRecord};
use edge_controller_domain::views;
use edge_controller_kubernetes::node_statuses::{NodeStatus, NodeStatuses};
use edge_controller_kubernetes::nodes::PendingDeregistrations;
use edge_types::api::NodeInfo;
use edge_types::{NodeName, Role};

use super::state::from_substates;
use crate::live_config::LiveConfig;

/// The parts of the server from which information about nodes is collected for the operator.
#[derive(Clone)]
pub(super) struct NodeInfos {
    live: Arc<LiveConfig>,
    reports: NodeReports,
    conflicts: ClaimConflicts,
    asked: PendingDeregistrations,
    statuses: Option<NodeStatuses>,
    replica: ReplicaName,
}

from_substates!(NodeInfos { live, reports, conflicts, asked, statuses, replica });

/// Name of this run of this replica.
#[derive(Clone)]
pub struct ReplicaName(pub String);

impl NodeInfos {
    /// Returns all nodes, with data from other replicas, and the reason if that data is missing.
    pub(super) async fn all(&self, registry: &Registry) -> (Vec<NodeInfo>, Option<String>) {
        let (statuses, why) = match &self.statuses {
            None => (HashMap::new(), None),
            Some(statuses) => match statuses.read().await {
                Ok(statuses) => (statuses, None),
                Err(why) => (HashMap::new(), Some(why)),
            },
        };
        let (mut infos, now) = (Vec::new(), registry.clock.now());
        let look = |state: &StateGuard<'_>, record: &NodeRecord| {
            let mut info = self.info(state, record, now);
            if let Some(status) = statuses.get(&record.name) {
                add_status(&mut info, status.clone(), &self.replica.0, now);
            }
            infos.push(info);
        };
        registry.each_node(look).await;
        (infos, why)
    }

    /// Returns information about a node from this replica's own data.
    pub(super) fn info(&self, state: &StateGuard<'_>, record: &NodeRecord, now: Seconds) -> NodeInfo {
        let connected = state.is_connected(&record.name);
        let last_seen = if connected { Some(now) } else { self.reports.last_seen(&record.name) };
        let LastReport { tunnels, version, obstacles, refused_view } =
            self.reports.of(&record.name).unwrap_or_default();
        // A hub may have been deregistered since.
        let is_hub = |hub: &&NodeName| state.node(hub).is_some_and(|node| node.role == Role::Hub);
        let certificate = record.certificates.iter().max_by_key(|certificate| certificate.not_after);
        NodeInfo {
            name: record.name.clone(),
            role: record.role,
            labels: record.labels.clone(),
            communities: state.communities_of(record),
            segments: views::segments(state, &record.name),
            endpoints: self.live.now().views.endpoints(record),
            connected,
            replica: None,
            tunnels,
            traffic: self.reports.traffic(&record.name),
            conflicts: self.conflicts.of(&record.name),
            missing: self.asked.contains(&record.name),
            refused_view,
            version,
            obstacles,
            unreached_hubs: record.unreached_hubs().filter(is_hub).cloned().collect(),
            last_seen,
            certificate_not_after: certificate.map_or(0, |certificate| certificate.not_after),
            certificate_ends_soon: certificate.is_some_and(|certificate| ends_soon(certificate, now)),
        }
    }
}

/// Returns whether less than a third of the validity of a certificate is left. If `notBefore` is
/// unknown, returns whether the certificate has expired.
fn ends_soon(certificate: &Certificate, now: Seconds) -> bool {
    let Certificate { not_before, not_after, .. } = *certificate;
    let validity = if not_before == 0 { 0 } else { not_after.saturating_sub(not_before) };
    not_after.saturating_sub(now) < validity / 3 || now >= not_after
}

/// Adds the content of a node's status, unless this replica (`own`) has newer data.
fn add_status(info: &mut NodeInfo, status: NodeStatus, own: &str, now: Seconds) {
    if info.connected {
        return;
    }
    let elsewhere = status.replica.filter(|replica| replica != own);
    if elsewhere.is_some() {
        info.connected = true;
        info.last_seen = Some(now);
        info.replica = elsewhere;
        // The node now reports to the other replica, so the report to this replica is older.
        (info.tunnels, info.version) = (status.tunnels, status.version);
        (info.obstacles, info.refused_view) = (status.obstacles, None);
        info.traffic = None;
        return;
    }
    if status.last_seen > info.last_seen {
        info.last_seen = status.last_seen;
        (info.tunnels, info.version) = (status.tunnels, status.version);
        (info.obstacles, info.refused_view) = (status.obstacles, None);
        info.traffic = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge_types::api::TunnelCount;

    fn info(connected: bool, last_seen: Option<Seconds>) -> NodeInfo {
        serde_json::from_value(serde_json::json!({
            "name": "a", "role": "edge", "labels": {}, "communities": [], "segments": [], "endpoints": [],
            "connected": connected, "last_seen": last_seen, "version": "here", "certificate_not_after": 0,
            "traffic": {"received": 1, "sent": 2, "received_per_second": 3, "sent_per_second": 4},
        }))
        .unwrap()
    }

    fn status(replica: Option<&str>, last_seen: Option<Seconds>) -> NodeStatus {
        NodeStatus {
            replica: replica.map(Into::into),
            last_seen,
            tunnels: Some(TunnelCount { up: 1, wanted: 1, ..TunnelCount::default() }),
            version: Some("there".into()),
            obstacles: vec!["ufw".into()],
        }
    }

    #[test]
    fn the_latest_that_any_replica_knows_of_a_node_is_shown() {
        let merged = |mut info: NodeInfo, status| {
            add_status(&mut info, status, "own", 100);
            assert_eq!(info.traffic.is_some(), info.version.as_deref() == Some("here"), "as old as the rest");
            (info.connected, info.replica.unwrap_or_default(), info.last_seen, info.version.unwrap())
        };
        let (here, there) = ("here".to_owned(), "there".to_owned());
        let none = String::new();
        // The node is connected to this replica, whatever the status says.
        let connected = info(true, Some(100));
        assert_eq!(merged(connected.clone(), status(Some("two"), None)), (true, none.clone(), Some(100), here.clone()));
        // The node is connected to another replica.
        assert_eq!(
            merged(info(false, Some(50)), status(Some("two"), None)),
            (true, "two".into(), Some(100), there.clone())
        );
        // This replica lost the connection a moment ago, and has not written the disconnection yet.
        assert_eq!(
            merged(info(false, Some(99)), status(Some("own"), None)),
            (false, none.clone(), Some(99), here.clone())
        );
        // Another replica saw the node last, before this replica started.
        assert_eq!(merged(info(false, None), status(None, Some(70))), (false, none.clone(), Some(70), there.clone()));
        assert_eq!(merged(info(false, Some(60)), status(None, Some(70))).3, there);
        assert_eq!(merged(info(false, Some(80)), status(None, Some(70))), (false, none, Some(80), here));
    }

    #[test]
    fn a_certificate_that_should_have_been_renewed_ends_soon() {
        let at = |not_before, not_after| Certificate {
            serial: String::new(),
            key: String::new(),
            not_after,
            not_before,
            issuer: String::new(),
            used: true,
        };
        // At second 70, 30 of 90 seconds are left.
        assert!(!ends_soon(&at(10, 100), 70));
        assert!(ends_soon(&at(10, 100), 71));
        assert!(ends_soon(&at(10, 100), 200));
        assert!(!ends_soon(&at(0, 100), 99), "its beginning is not known");
        assert!(ends_soon(&at(0, 100), 100));
    }
}

//! Handles the reports in which nodes describe themselves.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use edge_controller_domain::node_addresses::{
    ChangeDecision, ReportedAddresses, is_reachable, usable_addresses, usable_mapped,
};
use edge_controller_domain::node_certificates;
use edge_controller_domain::node_reports::NodeReports;
use edge_controller_domain::registry::Registry;
use edge_controller_domain::segments::ClaimConflict;
use edge_controller_domain::state::{Change, NodeRecord, State as Rows};
use edge_types::api::NodeReport;
use edge_types::{IpNetwork, NodeName, Role};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::body::{Json, Node};
use super::caller::Caller;
use super::claim_reporter::ClaimReporter;
use super::error::ApiError;
use super::state::from_substates;
use crate::live_config::LiveConfig;

/// The state that a report needs and changes.
#[derive(Clone)]
pub(super) struct Reports {
    registry: Registry,
    live: Arc<LiveConfig>,
    reports: NodeReports,
    addresses: AddressChanges,
    claims: ClaimReporter,
}

from_substates!(Reports { registry, live, reports, addresses, claims });

/// Handles a report. Addresses that peers cannot use, and addresses beyond the limit, are left out,
/// but the node still gets its view.
pub(super) async fn report(
    State(reports): State<Reports>,
    caller: Caller,
    Node(node): Node,
    Json(report): Json<NodeReport>,
) -> Result<StatusCode, ApiError> {
    let Reports { registry, live, reports, addresses, claims } = reports;
    let shown = caller.require_node_now(&registry, &node).await?;
    if report.port == 0 {
        return Err(ApiError::BadValue("port 0 cannot be reached; report the UDP port of IKE".into()));
    }
    if report.tcp_port == Some(0) {
        return Err(ApiError::BadValue("TCP port 0 cannot be reached; leave tcp_port out without a port".into()));
    }
    reports.reported(&node, &report, registry.clock.now());
    let in_force = live.now();
    let tunnelled = in_force.networks.tunnelled(shown.role);
    // The source address of a report does not show where the node can be reached if the report came
    // through a tunnel or from this machine.
    let observed = caller.address.map(|address| address.to_canonical());
    let observed = observed.filter(|address| is_reachable(address, tunnelled.clone()));
    let place = ReportedAddresses {
        reported: usable_addresses(report.addresses, tunnelled.clone()),
        port: report.port,
        observed,
        mapped: report.mapped.map(|mapped| usable_mapped(mapped, tunnelled)),
        tcp_port: report.tcp_port,
        unreached_hubs: report.unreached_hubs,
    };
    let place = addresses.now_or_postpone(&node, place).await;
    let noted = NotedReport { node, serial: shown.serial, place, segments: report.segments };
    let (mut taken, mut conflicts) = note_report(&registry, &live, noted.clone()).await?;
    // Another replica may have granted a segment that is not in this replica's state yet.
    let unknown = conflicts.iter().any(|conflict| matches!(conflict, ClaimConflict::Unknown { .. }));
    if unknown && claims.conflicts.has_new(&noted.node, &conflicts) {
        registry.reload_segments().await?;
        let (more, remaining) = note_report(&registry, &live, noted.clone()).await?;
        taken.extend(more);
        conflicts = remaining;
    }
    // A report without the node's segments does not resolve an earlier conflict.
    if noted.segments.is_some() {
        claims.publish(&noted.node, &taken, conflicts);
    }
    Ok(StatusCode::NO_CONTENT)
}

/// The part of a report that the registry records.
#[derive(Clone)]
struct NotedReport {
    node: NodeName,
    /// Serial number of the certificate that the node showed.
    serial: String,
    /// The node's place (its addresses and IKE port); `None` if the place does not change now.
    place: Option<ReportedAddresses>,
    /// Segments that the node claims to use; `None` if the report does not list them.
    segments: Option<Vec<IpNetwork>>,
}

/// Writes a node's place into its record.
fn set_addresses(record: &mut NodeRecord, state: &Rows, place: &ReportedAddresses) {
    record.reported.clone_from(&place.reported);
    record.port = place.port;
    record.tcp_port = place.tcp_port;
    // A machine between the nodes and the controller, such as a cloud node that forwards, may
    // replace the nodes' addresses with its own.
    let of_the_cloud = |address: &IpAddr| {
        let mut others = state.nodes_of_role(Role::Hub).chain(state.nodes_of_role(Role::Cloud));
        record.role == Role::Edge && others.any(|other| other.is_at(address))
    };
    let observed = place.observed.filter(|address| !of_the_cloud(address));
    // Such a machine may also be in front of a hub.
    let mapped = place.mapped.as_ref();
    let mapped = mapped.map(|mapped| mapped.iter().filter(|mapped| !of_the_cloud(&mapped.ip())).copied().collect());
    record.observed = observed.or(record.observed);
    if let Some(mapped) = mapped {
        record.mapped = mapped;
    }
    if let Some(unreached) = &place.unreached_hubs {
        record.unreached_hubs = state.usable_unreached_hubs(record, unreached);
    }
}

/// Records a report. Returns the segments that belong to the node from now on, and the conflicts
/// about the other claimed segments.
async fn note_report(
    registry: &Registry,
    live: &Arc<LiveConfig>,
    noted: NotedReport,
) -> Result<(Vec<IpNetwork>, Vec<ClaimConflict>), ApiError> {
    let (live, now) = (live.clone(), registry.clock.now());
    let plan = move |state: &mut Rows| -> Result<_, ApiError> {
        let node = &noted.node;
        let mut record = state.node(node).ok_or_else(|| ApiError::Deregistered(node.clone()))?.clone();
        if let Some(place) = &noted.place {
            set_addresses(&mut record, state, place);
        }
        node_certificates::note_use(&mut record, &noted.serial);
        let (mut changes, conflicts) = match &noted.segments {
            Some(segments) => {
                state.note_reported(&mut record);
                state.claims(&live.now().policy, node, segments, now)
            }
            None => Default::default(),
        };
        let taken: Vec<IpNetwork> = changes.iter().filter_map(Change::granted).collect();
        if state.node(node) != Some(&record) {
            changes.push(Change::PutNode(record));
        }
        Ok(((taken, conflicts), changes))
    };
    registry.change(plan).await
}

/// The parts of the server that record changes of nodes' places. A node that moves often must wait
/// until its next change is recorded.
#[derive(Clone)]
pub(super) struct AddressChanges {
    registry: Registry,
    stopping: CancellationToken,
}

from_substates!(AddressChanges { registry, stopping });

impl AddressChanges {
    /// Returns the place if the node may change it now. Otherwise the place does not change, or is
    /// recorded later.
    async fn now_or_postpone(&self, node: &NodeName, place: ReportedAddresses) -> Option<ReportedAddresses> {
        let stays = {
            let state = self.registry.read().await;
            state.node(node).is_some_and(|record| {
                let mut there = record.clone();
                set_addresses(&mut there, &state, &place);
                there == *record
            })
        };
        if stays {
            self.registry.address_changes.cancel_waiting(node);
            return None;
        }
        match self.registry.address_changes.moved(node, &place) {
            ChangeDecision::Apply => Some(place),
            ChangeDecision::AlreadyScheduled => None,
            ChangeDecision::Schedule => {
                tracing::warn!(%node, "its addresses change often; the latest ones are passed on a little later");
                let later = self.clone().note_postponed(node.clone());
                tokio::spawn(self.stopping.clone().run_until_cancelled_owned(later).in_current_span());
                None
            }
        }
    }

    /// Records the latest place of a node when the node may change it again.
    async fn note_postponed(self, name: NodeName) {
        let changes = &self.registry.address_changes;
        while let Some(place) = changes.next(&name).await {
            let (node, at) = (name.clone(), place.clone());
            let noted = self.registry.change(move |state| -> Result<_, ApiError> {
                // The node may have been deregistered in the meantime.
                let changed = state.node(&node).map(|record| {
                    let mut record = record.clone();
                    set_addresses(&mut record, state, &at);
                    Change::PutNode(record)
                });
                Ok(((), changed.into_iter().collect()))
            });
            match noted.await {
                Ok(()) => return,
                Err(error) => tracing::warn!(node = %name, %error, "its new address is not stored yet"),
            }
            if !changes.wait_again(&name, place) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge_controller_domain::state::Snapshot;

    #[test]
    fn an_address_of_the_cloud_is_not_taken_for_an_edges_and_what_was_seen_before_stays() {
        let seen = |last| Some(IpAddr::from([203, 0, 113, last]));
        let place = |observed| ReportedAddresses {
            reported: vec![[192, 168, 1, 10].into()],
            port: 4500,
            observed,
            mapped: observed.map(|address| vec![(address, 61_000).into()]),
            tcp_port: Some(4500),
            unreached_hubs: None,
        };
        let mut hub = NodeRecord::new("hub".parse().unwrap(), Role::Hub, 0);
        hub.reported = vec![[203, 0, 113, 1].into()];
        let mut cloud = NodeRecord::new("cloud".parse().unwrap(), Role::Cloud, 0);
        cloud.observed = seen(2);
        let mut edge = NodeRecord::new("edge".parse().unwrap(), Role::Edge, 0);
        let state = Rows::load(Snapshot { nodes: vec![hub.clone(), cloud, edge.clone()], ..Snapshot::default() }, true);
        for of_the_cloud in [1, 2] {
            set_addresses(&mut edge, &state, &place(seen(of_the_cloud)));
            assert_eq!(edge.observed, None);
            assert!(edge.mapped.is_empty(), "{:?}", edge.mapped);
        }
        set_addresses(&mut edge, &state, &place(seen(7)));
        assert_eq!(edge.observed, seen(7));
        assert_eq!(edge.mapped, [([203, 0, 113, 7], 61_000).into()]);
        for nothing_new in [seen(1), None] {
            set_addresses(&mut edge, &state, &place(nothing_new));
            assert_eq!(edge.observed, seen(7));
        }
        assert!(edge.mapped.is_empty(), "the last report with mapped addresses had only one of the cloud's");
        set_addresses(&mut hub, &state, &place(seen(1)));
        assert_eq!((hub.observed, hub.tcp_port), (seen(1), Some(4500)), "a hub's own");
        let mut unreached = |hubs: Option<&[&str]>| {
            let unreached_hubs = hubs.map(|hubs| hubs.iter().map(|hub| hub.parse().unwrap()).collect());
            set_addresses(&mut edge, &state, &ReportedAddresses { unreached_hubs, ..place(None) });
            edge.unreached_hubs.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(unreached(Some(&["hub", "gone"])), ["hub"]);
        assert_eq!(unreached(None), ["hub"], "its agent has just started, or is that of an earlier release");
        assert!(unreached(Some(&[])).is_empty());
        // A hub that no longer listens, or an agent of an earlier release, reports no port.
        set_addresses(&mut hub, &state, &ReportedAddresses { tcp_port: None, ..place(seen(1)) });
        assert_eq!(hub.tcp_port, None);
    }
}

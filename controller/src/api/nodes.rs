//! What a node says of itself.

use std::net::IpAddr;

use axum::extract::State;
use axum::http::StatusCode;
use edge_types::IpNetwork;
use edge_types::api::NodeReport;

use super::App;
use super::body::{Json, Node};
use super::caller::Caller;
use crate::certificates;
use crate::refusal::Refusal;
use crate::state::Change;

/// Addresses that one node may report.
const MOST_ADDRESSES: usize = 32;

pub(super) async fn report(
    State(app): State<App>,
    caller: Caller,
    Node(node): Node,
    Json(report): Json<NodeReport>,
) -> Result<StatusCode, Refusal> {
    let shown = app.is(&caller, &node).await?;
    if report.port == 0 {
        return Err(Refusal::BadValue("port 0 cannot be reached; report the UDP port of IKE".into()));
    }
    if report.addresses.len() > MOST_ADDRESSES {
        let count = report.addresses.len();
        return Err(Refusal::BadValue(format!("{count} addresses; at most {MOST_ADDRESSES} are of use to peers")));
    }
    let settings = app.settings();
    let ranges = &settings.config.segments.cluster_ranges;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in report.addresses.iter().map(IpAddr::to_canonical) {
        if is_reachable(&address, ranges) && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if let Some(tunnels) = report.tunnels {
        app.tunnels.reported(&node, tunnels);
    }
    let observed = caller.address.filter(|address| is_reachable(address, ranges));
    app.registry
        .change(move |state| {
            let mut record = state.node(&node).ok_or_else(|| Refusal::Deregistered(node.clone()))?.clone();
            record.reported = addresses.clone();
            record.port = report.port;
            // A report that came through a tunnel says nothing about where the node is.
            record.observed = observed.or(record.observed);
            certificates::note_use(&mut record, &shown.serial);
            let changed = state.node(&node) != Some(&record);
            Ok((StatusCode::NO_CONTENT, if changed { vec![Change::PutNode(record)] } else { Vec::new() }))
        })
        .await
}

/// Whether a peer may find a node there: not what means nothing on another machine, nor what itself needs a tunnel.
fn is_reachable(address: &IpAddr, cluster_ranges: &[IpNetwork]) -> bool {
    let link_local = matches!(address, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let inside = cluster_ranges.iter().any(|range| range.contains(*address));
    !(address.is_unspecified() || address.is_multicast() || link_local || inside)
}

//! Reads gauges from the state and writes all metrics as OpenMetrics text.

use std::collections::BTreeMap;

use edge_controller_domain::registry::StateGuard;
use edge_controller_domain::segments::free_segments;
use edge_controller_domain::state::NodeRecord;
use edge_types::Role;
use edge_types::api::{Family, SegmentState};

use super::metrics::{CertificateLabels, FamilyLabel, FamilyLabels, SegmentLabels, SeverityLabels, StateLabels};
use super::server_parts::ServerParts;

pub(super) async fn scrape(server: &ServerParts) -> Result<String, std::fmt::Error> {
    read_gauges(server).await;
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, server.metrics.registry())?;
    Ok(text)
}

async fn read_gauges(server: &ServerParts) {
    let metrics = &server.metrics;
    let (in_force, now) = (server.live.now(), server.registry.clock.now());
    let policy = &in_force.policy;
    let mut nodes = BTreeMap::from([Role::Edge, Role::Hub, Role::Cloud].map(|role| (role, (0, 0))));
    let mut segments = BTreeMap::new();
    for family in [Family::V4, Family::V6] {
        for state in ["held", "quarantined", "free"] {
            segments.insert((family, state), 0);
        }
    }
    let (mut up, mut wanted, mut obstructed) = (0, 0, 0);
    let look = |state: &StateGuard<'_>, node: &NodeRecord| {
        let (all, connected) = nodes.entry(node.role).or_default();
        *all += 1;
        let is_connected = state.is_connected(&node.name);
        *connected += i64::from(is_connected);
        if let Some(report) = server.reports.of(&node.name).filter(|_| is_connected) {
            up += report.tunnels.as_ref().map_or(0, |count| i64::from(count.up));
            wanted += report.tunnels.as_ref().map_or(0, |count| i64::from(count.wanted));
            obstructed += i64::from(!report.obstacles.is_empty() || report.refused_view.is_some());
        }
    };
    server.registry.each_node(look).await;
    // The state is unlocked in between, so that no change waits for all of it.
    let state = server.registry.read().await;
    for row in state.ledger().rows() {
        let state = match row.state(policy.quarantine, now) {
            SegmentState::Held => "held",
            SegmentState::Quarantined => "quarantined",
            SegmentState::Free => "free",
        };
        *segments.entry((Family::of(&row.network), state)).or_default() += 1;
    }
    drop(state);
    let mut free = Vec::new();
    for family in [Family::V4, Family::V6] {
        let state = server.registry.read().await;
        free.push((family, free_segments(state.ledger(), policy, family, now)));
    }
    for (role, (all, connected)) in nodes {
        metrics.nodes.get_or_create(&role.into()).set(all);
        metrics.connected.get_or_create(&role.into()).set(connected);
    }
    for ((family, state), count) in segments {
        metrics.segments.get_or_create(&SegmentLabels { family: FamilyLabel(family), state }).set(count);
    }
    for (family, count) in free {
        metrics.free_segments.get_or_create(&FamilyLabels { family: FamilyLabel(family) }).set(count as f64);
    }
    for (state, count) in [("up", up), ("wanted", wanted)] {
        metrics.tunnels.get_or_create(&StateLabels { state }).set(count);
    }
    metrics.obstructed.set(obstructed);
    metrics.leads.set(server.health.leads().into());
    let (serving, minor) = server.api_failures.counts();
    for (severity, count) in [("serving", serving), ("minor", minor)] {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        metrics.api_failures.get_or_create(&SeverityLabels { severity }).set(count);
    }
    metrics.ends.get_or_create(&CertificateLabels { of: "authority" }).set(server.ca.not_after());
    if let Some(end) = server.health.server_certificate_end() {
        metrics.ends.get_or_create(&CertificateLabels { of: "server" }).set(end);
    }
}

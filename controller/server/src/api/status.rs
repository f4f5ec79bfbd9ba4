//! Makes the overview for the operator, with nodes, communities, ranges and problems.

use std::sync::Arc;

use axum::extract::State;
use edge_controller_domain::ca::Ca;
use edge_controller_domain::clock::Seconds;
use edge_controller_domain::registry::Registry;
use edge_controller_domain::segments::range_usage;
use edge_controller_kubernetes::client::ApiFailures;
use edge_controller_kubernetes::nodes::{LabelledNodes, PendingDeregistrations};
use edge_types::api::ControllerStatus;

use super::caller::Caller;
use super::error::ApiError;
use super::node_infos::NodeInfos;
use super::operator::community_infos;
use super::state::from_substates;
use crate::live_config::LiveConfig;
use crate::state_disk;

/// The data of the overview. The page also reads it.
#[derive(Clone)]
pub struct Overview {
    pub(crate) registry: Registry,
    live: Arc<LiveConfig>,
    ca: Arc<Ca>,
    infos: NodeInfos,
    asked: PendingDeregistrations,
    labelled: LabelledNodes,
    api_failures: ApiFailures,
}

from_substates!(Overview { registry, live, ca, infos, asked, labelled, api_failures });

pub(super) async fn status(
    State(overview): State<Overview>,
    caller: Caller,
) -> Result<axum::Json<ControllerStatus>, ApiError> {
    caller.require_operator()?;
    Ok(axum::Json(overview.read().await))
}

impl Overview {
    /// Returns the controller's time.
    pub(crate) fn now(&self) -> Seconds {
        self.registry.clock.now()
    }

    pub(crate) async fn read(&self) -> ControllerStatus {
        let Overview { registry, live, ca, infos, asked, labelled, api_failures } = self;
        let (nodes, unknown) = infos.all(registry).await;
        let (now, in_force) = (self.now(), live.now());
        let disk = state_disk::problem(&in_force.config).await;
        // The state is unlocked in between, so that no change waits for all of it.
        let communities = community_infos(&*registry.read().await);
        let ranges = range_usage(registry.read().await.ledger(), &in_force.policy, now);
        let state = registry.read().await;
        let unknown = unknown.map(|why| format!("what other replicas know of nodes is not shown: {why}"));
        let paused = state.may_grant(&in_force.policy, now).err().map(|paused| paused.for_the_operator());
        let problems = disk.into_iter().chain(asked.note()).chain(paused).chain(unknown);
        let selector = in_force.config.kubernetes.as_ref().map_or("", |kubernetes| kubernetes.edge_selector.as_str());
        let labelled = labelled.notes(|node| state.node(node).is_some(), selector);
        let problems = problems.chain(api_failures.all_reasons()).chain(labelled);
        ControllerStatus {
            version: env!("CARGO_PKG_VERSION").into(),
            time: now,
            nodes,
            communities,
            ranges,
            authority_not_after: ca.not_after(),
            problems: problems.collect(),
        }
    }
}

//! Lists a node's segments and handles requests for more segments.

use std::sync::Arc;

use axum::extract::State;
use edge_controller_domain::registry::Registry;
use edge_controller_domain::segments::{SegmentPolicy, SegmentRecord};
use edge_controller_domain::state::{Change, SegmentError};
use edge_controller_domain::views;
use edge_controller_kubernetes::events::{EventRecorder, Regarding};
use edge_types::NodeName;
use edge_types::api::{SegmentRequest, SegmentResponse};

use super::body::{Json, Node};
use super::caller::Caller;
use super::error::ApiError;
use super::state::SegmentLimits;
use crate::live_config::LiveConfig;

/// Maximum length of a request id, in bytes.
const LONGEST_ID: usize = 128;

pub(super) async fn list(
    State(registry): State<Registry>,
    caller: Caller,
    Node(node): Node,
) -> Result<axum::Json<SegmentResponse>, ApiError> {
    let state = registry.read().await;
    caller.require_node_or_operator(&state, &node, registry.clock.now())?;
    Ok(axum::Json(SegmentResponse { segments: views::segments(&state, &node) }))
}

pub(super) async fn request(
    State(registry): State<Registry>,
    State(live): State<Arc<LiveConfig>>,
    State(events): State<EventRecorder>,
    State(limits): State<SegmentLimits>,
    caller: Caller,
    Node(node): Node,
    Json(request): Json<SegmentRequest>,
) -> Result<axum::Json<SegmentResponse>, ApiError> {
    caller.require_node_now(&registry, &node).await?;
    let SegmentRequest { request_id, mut families, repeated } = request;
    if request_id.is_empty() || request_id.len() > LONGEST_ID {
        return Err(ApiError::BadValue(format!(
            "request_id has {} bytes; expected 1 to {LONGEST_ID}",
            request_id.len()
        )));
    }
    families.sort_unstable();
    families.dedup();
    if families.is_empty() {
        return Err(ApiError::BadValue("families is empty; ask for \"ipv4\", \"ipv6\" or both".into()));
    }
    // A plan in vain searches the whole ledger, and each refusal is an Event.
    limits.refusals.check(&node)?;
    // This check comes before any request to the store, because many nodes may repeat their segment
    // requests until all edges have reported.
    may_grant(&registry, &live.now().policy, &node, &request_id).await?;
    if repeated {
        limits.reloads.take(&node)?;
        registry.reload_segments().await?;
    }
    let now = registry.clock.now();
    let (name, id) = (node.clone(), request_id.clone());
    let granted = registry
        .change(move |state| -> Result<_, ApiError> {
            let policy = &live.now().policy;
            let (segments, changes) = state.plan_segment_request(policy, &node, &families, &request_id, now)?;
            Ok(((segments, !changes.is_empty()), changes))
        })
        .await;
    match &granted {
        Ok((segments, true)) => {
            let list: Vec<String> = segments.iter().map(ToString::to_string).collect();
            tracing::info!(node = %name, segments = list.join(", "), request_id = id, "segments granted");
            events.normal(Regarding::EdgeNode, name.as_str(), "SegmentGranted", list.join(", "));
        }
        Err(refusal @ ApiError::Segment(SegmentError::Exhausted(_) | SegmentError::TooMany { .. })) => {
            release_partial_grant(&registry, &name, id).await;
            // Requests that were already on their way are refused too, so the count may be full.
            let _ = limits.refusals.take(&name);
            events.warning(Regarding::EdgeNode, name.as_str(), "SegmentRefused", refusal.to_string());
        }
        _ => {}
    }
    let (segments, _) = granted?;
    Ok(axum::Json(SegmentResponse { segments }))
}

/// Refuses a segment request while grants wait, unless its segments were granted before.
async fn may_grant(
    registry: &Registry,
    policy: &SegmentPolicy,
    node: &NodeName,
    request_id: &str,
) -> Result<(), ApiError> {
    let (state, now) = (registry.read().await, registry.clock.now());
    let granted_before = state.ledger().held_by(node).iter().any(|row| row.request_id == request_id);
    match granted_before {
        true => Ok(()),
        false => Ok(state.may_grant(policy, now)?),
    }
}

/// Releases the segments that were already granted for a refused request. If segments are granted
/// one by one, another replica may have taken the last segment of one family after the segment of
/// the other family was granted, or the granting replica may have died between the two grants.
async fn release_partial_grant(registry: &Registry, node: &NodeName, request_id: String) {
    let (name, now) = (node.clone(), registry.clock.now());
    let released = registry.change(move |state| -> Result<_, ApiError> {
        let half = state.ledger().held_by(&name).into_iter().filter(|row| row.request_id == request_id);
        let changes: Vec<Change> =
            half.map(|row| Change::PutSegment(SegmentRecord { released_at: Some(now), ..row.clone() })).collect();
        Ok(((), changes))
    });
    if let Err(error) = released.await {
        tracing::warn!(%node, %error, "half of a refused segment request stays granted until the node repeats it or is deregistered");
    }
}

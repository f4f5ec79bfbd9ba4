//! A node's segments: applying for more, and listing them.

use std::sync::Arc;

use axum::extract::State;
use edge_controller_domain::clock::Seconds;
use edge_controller_domain::registry::Registry;
use edge_controller_domain::segments::{Policy, Row};
use edge_controller_domain::state::{Change, State as Rows};
use edge_controller_domain::views;
use edge_controller_kubernetes::events::{About, Events};
use edge_types::api::{Family, SegmentRequest, SegmentResponse};
use edge_types::{IpNetwork, NodeName};

use super::body::{Json, Node};
use super::caller::Caller;
use crate::live_config::LiveConfig;
use crate::refusal::Refusal;

/// Longest request id, bytes.
const LONGEST_ID: usize = 128;

pub(super) async fn list(
    State(registry): State<Registry>,
    caller: Caller,
    Node(node): Node,
) -> Result<axum::Json<SegmentResponse>, Refusal> {
    let view = registry.read().await;
    caller.may_see(&view, &node, registry.clock.now())?;
    Ok(axum::Json(SegmentResponse { segments: views::segments(view.state(), &node) }))
}

pub(super) async fn apply(
    State(registry): State<Registry>,
    State(live): State<Arc<LiveConfig>>,
    State(events): State<Events>,
    caller: Caller,
    Node(node): Node,
    Json(request): Json<SegmentRequest>,
) -> Result<axum::Json<SegmentResponse>, Refusal> {
    caller.is_now(&registry, &node).await?;
    let SegmentRequest { request_id, mut families, repeated } = request;
    if request_id.is_empty() || request_id.len() > LONGEST_ID {
        return Err(Refusal::BadValue(format!(
            "request_id has {} bytes; expected 1 to {LONGEST_ID}",
            request_id.len()
        )));
    }
    families.sort_unstable();
    families.dedup();
    if families.is_empty() {
        return Err(Refusal::BadValue("families is empty; ask for \"ipv4\", \"ipv6\" or both".into()));
    }
    // Before the store is asked: many nodes may repeat their applications until all have reported.
    may_grant(&registry, &live.now().policy, &node, &request_id).await?;
    if repeated {
        registry.reload_segments().await?;
    }
    let now = registry.clock.now();
    let (name, id) = (node.clone(), request_id.clone());
    let granted = registry
        .change(move |state| -> Result<_, Refusal> {
            let (segments, changes) = application(state, &live.now().policy, &node, &families, &request_id, now)?;
            if !changes.is_empty() {
                tracing::info!(%node, ?segments, request_id, "segments granted");
            }
            Ok(((segments, !changes.is_empty()), changes))
        })
        .await;
    match &granted {
        Ok((segments, true)) => {
            let list: Vec<String> = segments.iter().map(ToString::to_string).collect();
            events.normal(About::EdgeNode, name.as_str(), "SegmentGranted", list.join(", "));
        }
        Err(refusal @ (Refusal::Exhausted(_) | Refusal::TooMany { .. })) => {
            give_back(&registry, &name, id).await;
            events.warning(About::EdgeNode, name.as_str(), "SegmentRefused", refusal.to_string());
        }
        _ => {}
    }
    let (segments, _) = granted?;
    Ok(axum::Json(SegmentResponse { segments }))
}

/// Refuses an application while grants wait, unless it has been answered before.
async fn may_grant(registry: &Registry, policy: &Policy, node: &NodeName, request_id: &str) -> Result<(), Refusal> {
    let (view, now) = (registry.read().await, registry.clock.now());
    let answered = view.state().ledger().held_by(node).iter().any(|row| row.request_id == request_id);
    match answered {
        true => Ok(()),
        false => Ok(view.state().may_grant(policy, now)?),
    }
}

/// Releases what was granted of an application that is refused. Where claims are made one by one,
/// another replica may have taken the last segment of one family when that of the other was
/// granted; or the one that granted it died between the two.
async fn give_back(registry: &Registry, node: &NodeName, request_id: String) {
    let (name, now) = (node.clone(), registry.clock.now());
    let released = registry.change(move |state| -> Result<_, Refusal> {
        let half = state.ledger().held_by(&name).into_iter().filter(|row| row.request_id == request_id);
        let changes: Vec<Change> =
            half.map(|row| Change::PutSegment(Row { released_at: Some(now), ..row.clone() })).collect();
        Ok(((), changes))
    });
    if let Err(error) = released.await {
        tracing::warn!(%node, %error, "half of a refused application stays granted until the node repeats it or is deregistered");
    }
}

/// Plans the answer to an application for one segment of each family (without repetitions, in
/// order): its segments, and what to change.
pub fn application(
    state: &mut Rows,
    policy: &Policy,
    node: &NodeName,
    families: &[Family],
    request_id: &str,
    now: Seconds,
) -> Result<(Vec<IpNetwork>, Vec<Change>), Refusal> {
    state.node(node).ok_or_else(|| Refusal::Deregistered(node.clone()))?;
    let earlier = state.ledger().held_by(node).into_iter().filter(|row| row.request_id == request_id);
    let mut granted: Vec<IpNetwork> = earlier.map(|row| row.network).collect();
    if granted.iter().any(|network| !families.contains(&Family::of(network))) {
        return Err(Refusal::RequestIdReused(request_id.into()));
    }
    // Where a replica died between two claims, only some of them were granted then.
    let missing: Vec<Family> = families
        .iter()
        .copied()
        .filter(|family| !granted.iter().any(|network| Family::of(network) == *family))
        .collect();
    if !missing.is_empty() {
        let changes = grants(state, policy, node, &missing, request_id, now)?;
        granted.extend(changes.iter().filter_map(|change| match change {
            Change::ClaimSegment(row) => Some(row.network),
            _ => None,
        }));
        granted.sort_by_key(Family::of);
        return Ok((granted, changes));
    }
    Ok((granted, Vec::new()))
}

/// Chooses one segment for each entry of `families`: all of them or none.
pub(super) fn grants(
    state: &mut Rows,
    policy: &Policy,
    node: &NodeName,
    families: &[Family],
    request_id: &str,
    now: Seconds,
) -> Result<Vec<Change>, Refusal> {
    if !families.is_empty() {
        state.may_grant(policy, now)?;
    }
    let mut chosen = Vec::new();
    for family in families {
        let name = match family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        if policy.ranges(*family).next().is_none() {
            return Err(Refusal::NoSuchFamily(name));
        }
        let held = state.ledger().count_held(node, *family);
        if held >= policy.max_per_node as usize {
            return Err(Refusal::TooMany { node: node.clone(), held, family: name });
        }
        chosen.push(state.ledger_mut().grant(policy, *family, &chosen, now)?);
    }
    let row = |network| {
        let (node, request_id) = (node.clone(), request_id.to_owned());
        Change::ClaimSegment(match state.ledger().row(&network) {
            Some(old) => old.granted_anew(node, request_id, now),
            None => Row::new(network, node, request_id, now, None),
        })
    };
    let dropped = chosen.iter().flat_map(|grant| &grant.replaces).map(|old| Change::DeleteSegment(*old));
    Ok(dropped.chain(chosen.iter().map(|grant| row(grant.network))).collect())
}

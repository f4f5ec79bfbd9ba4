//! Handles the operator's requests, on the admin socket only.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use edge_controller_domain::ca::Ca;
use edge_controller_domain::clock::Seconds;
use edge_controller_domain::node_reports::NodeReports;
use edge_controller_domain::registry::Registry;
use edge_controller_domain::segments::{ClaimConflicts, Holding, SegmentRecord};
use edge_controller_domain::state::{Change, CommunityRecord};
use edge_controller_domain::tokens;
use edge_controller_kubernetes::events::{EventRecorder, Regarding};
use edge_controller_kubernetes::label_trust::{LabelEffect, LabelTrust};
use edge_types::api::{
    CommunityInfo, CommunityMembers, LabelsPatch, NodeInfo, SegmentHolding, SegmentInfo, TokenCreated, TokenInfo,
    TokenRequest,
};
use edge_types::{Community, NodeName};
use tokio::sync::watch;

use super::body::{Json, MEMBERS_LIMIT, Node};
use super::caller::Caller;
use super::error::ApiError;
use super::node_infos::NodeInfos;
use crate::live_config::LiveConfig;

pub(super) async fn nodes(
    State(registry): State<Registry>,
    State(infos): State<NodeInfos>,
    caller: Caller,
) -> Result<axum::Json<Vec<NodeInfo>>, ApiError> {
    caller.require_operator()?;
    // The data of the other replicas is left out if the API server does not answer.
    Ok(axum::Json(infos.all(&registry).await.0))
}

pub(super) async fn label(
    State(registry): State<Registry>,
    State(infos): State<NodeInfos>,
    State(trust): State<watch::Receiver<LabelTrust>>,
    caller: Caller,
    Node(node): Node,
    Json(patch): Json<LabelsPatch>,
) -> Result<axum::Json<NodeInfo>, ApiError> {
    caller.require_operator()?;
    let (name, trust) = (node.clone(), trust.borrow().clone());
    registry
        .change(move |state| -> Result<_, ApiError> {
            let mut record = state.node(&node).ok_or_else(|| ApiError::NoSuchNode(node.clone()))?.clone();
            // Labels that were set before the Node object existed still apply, and only this
            // request can remove them.
            let only_removes = patch.values().all(Option::is_none);
            if record.object.is_some() && !only_removes {
                return Err(match trust.effect {
                    LabelEffect::Count => ApiError::LabelledElsewhere(node.clone()),
                    LabelEffect::Keep | LabelEffect::Ignore => {
                        ApiError::LabelsNotTrusted { node: node.clone(), why: trust.why.clone() }
                    }
                });
            }
            record.set_labels(patched(record.labels.clone(), patch.clone())?)?;
            tracing::info!(%node, labels = ?record.labels, "labelled");
            Ok(((), vec![Change::PutNode(record)]))
        })
        .await?;
    let state = registry.read().await;
    let record = state.node(&name).ok_or_else(|| ApiError::NoSuchNode(name.clone()))?;
    Ok(axum::Json(infos.info(&state, record, registry.clock.now())))
}

pub(super) async fn deregister(
    State(registry): State<Registry>,
    State(live): State<Arc<LiveConfig>>,
    State(reports): State<NodeReports>,
    State(conflicts): State<ClaimConflicts>,
    State(events): State<EventRecorder>,
    caller: Caller,
    Node(node): Node,
) -> Result<axum::Json<Vec<SegmentInfo>>, ApiError> {
    caller.require_operator()?;
    let (now, quarantine) = (registry.clock.now(), live.now().policy.quarantine);
    let name = node.clone();
    let released = registry
        .change(move |state| -> Result<_, ApiError> {
            let (rows, changes) = match state.deregistration(&node, now) {
                Some(deregistration) => deregistration,
                // The node is no longer registered. Its segments need not be kept for it any
                // longer.
                None => state.end_keeping_segments(&node, now).ok_or_else(|| ApiError::NoSuchNode(node.clone()))?,
            };
            tracing::info!(%node, segments = rows.len(), "deregistered");
            Ok((rows, changes))
        })
        .await?;
    reports.retain(|kept| *kept != name);
    conflicts.retain(|kept| *kept != name);
    let note = "by the operator; its certificate is refused from now on".to_owned();
    events.normal(Regarding::EdgeNode, name.as_str(), "Deregistered", note);
    Ok(axum::Json(released.iter().map(|row| segment_info(row, quarantine, now)).collect()))
}

pub(super) async fn segments(
    State(registry): State<Registry>,
    State(live): State<Arc<LiveConfig>>,
    caller: Caller,
) -> Result<axum::Json<Vec<SegmentInfo>>, ApiError> {
    caller.require_operator()?;
    let (now, quarantine) = (registry.clock.now(), live.now().policy.quarantine);
    let state = registry.read().await;
    Ok(axum::Json(state.ledger().rows().map(|row| segment_info(row, quarantine, now)).collect()))
}

pub(super) async fn communities(
    State(registry): State<Registry>,
    caller: Caller,
) -> Result<axum::Json<Vec<CommunityInfo>>, ApiError> {
    caller.require_operator()?;
    Ok(axum::Json(community_infos(&*registry.read().await)))
}

/// Returns all communities with their members: those that have a registered member, and those that
/// the operator listed.
pub(super) fn community_infos(state: &edge_controller_domain::state::State) -> Vec<CommunityInfo> {
    let with_members = state.communities().map(|(name, _)| name);
    let names: BTreeSet<_> = with_members.chain(state.listed_communities().map(|listed| &listed.name)).collect();
    let members: BTreeMap<_, _> = state.communities().collect();
    let info = |name: &Community| {
        let listed = || state.listed_community(name).into_iter().flat_map(|listed| &listed.members);
        CommunityInfo {
            name: name.clone(),
            members: members.get(name).into_iter().copied().flatten().cloned().collect(),
            not_registered: listed().filter(|node| state.node(node).is_none()).cloned().collect(),
            listed: Some(listed().cloned().collect()),
            tunnels: state.listed_community(name).map(|listed| listed.tunnels).unwrap_or_default(),
        }
    };
    names.into_iter().map(info).collect()
}

type CommunityPath = Result<Path<edge_types::Community>, axum::extract::rejection::PathRejection>;

pub(super) async fn set_community(
    State(registry): State<Registry>,
    caller: Caller,
    name: CommunityPath,
    Json(community): Json<CommunityMembers, MEMBERS_LIMIT>,
) -> Result<StatusCode, ApiError> {
    caller.require_operator()?;
    let Path(name) = name.map_err(|e| ApiError::BadValue(e.body_text()))?;
    // The store may be at the API server, now or later, where an object has this name (RFC 1123).
    if name.as_str().to_ascii_lowercase().parse::<edge_types::NodeName>().is_err() {
        return Err(ApiError::BadValue(format!(
            "community {:?} cannot have a list of members, since no object of Kubernetes can have this name; each part between dots must \
             begin and end with a letter or digit",
            name.as_str()
        )));
    }
    let CommunityMembers { members, tunnels } = community;
    if members.is_none() && tunnels.is_none() {
        return Err(ApiError::BadValue("neither members nor tunnels is given".into()));
    }
    let listed = members.as_ref().map(BTreeSet::len);
    tracing::info!(community = %name, members = ?listed, tunnels = ?tunnels, "community set");
    registry
        .change(move |state| -> Result<_, ApiError> {
            let known = state.listed_community(&name).cloned();
            let known = known.unwrap_or_else(|| CommunityRecord::new(name.clone(), BTreeSet::new()));
            let record = CommunityRecord {
                members: members.clone().unwrap_or(known.members),
                tunnels: tunnels.unwrap_or(known.tunnels),
                ..known
            };
            let same = state.listed_community(&record.name) == Some(&record);
            let changes = if same { Vec::new() } else { vec![Change::PutCommunity(record.clone())] };
            Ok((StatusCode::NO_CONTENT, changes))
        })
        .await
}

pub(super) async fn delete_community(
    State(registry): State<Registry>,
    caller: Caller,
    name: CommunityPath,
) -> Result<StatusCode, ApiError> {
    caller.require_operator()?;
    let Path(name) = name.map_err(|e| ApiError::BadValue(e.body_text()))?;
    registry
        .change(move |state| -> Result<_, ApiError> {
            state.listed_community(&name).ok_or_else(|| ApiError::NoSuchCommunity(name.clone()))?;
            Ok((StatusCode::NO_CONTENT, vec![Change::DeleteCommunity(name.clone())]))
        })
        .await
}

pub(super) async fn tokens(
    State(registry): State<Registry>,
    caller: Caller,
) -> Result<axum::Json<Vec<TokenInfo>>, ApiError> {
    caller.require_operator()?;
    let state = registry.read().await;
    Ok(axum::Json(tokens::infos(&state)))
}

pub(super) async fn create_token(
    State(registry): State<Registry>,
    State(ca): State<Arc<Ca>>,
    caller: Caller,
    Json(request): Json<TokenRequest>,
) -> Result<(StatusCode, axum::Json<TokenCreated>), ApiError> {
    caller.require_operator()?;
    let now = registry.clock.now();
    let (token, record) = tokens::create(&request, ca.current().active().key_hash(), now)?;
    let info = tokens::info(&record, Vec::new());
    tracing::info!(id = record.id, role = %record.role, node = ?record.node, uses = record.uses(), "join token made");
    registry
        .change(move |state| -> Result<_, ApiError> {
            let mut changes: Vec<Change> = tokens::forgotten(state, now).into_iter().map(Change::DeleteToken).collect();
            changes.push(Change::PutToken(record.clone()));
            Ok(((), changes))
        })
        .await?;
    Ok((StatusCode::CREATED, axum::Json(TokenCreated { token: token.encode().to_string(), info })))
}

pub(super) async fn delete_token(
    State(registry): State<Registry>,
    caller: Caller,
    id: Result<Path<String>, axum::extract::rejection::PathRejection>,
) -> Result<StatusCode, ApiError> {
    caller.require_operator()?;
    let Path(id) = id.map_err(|e| ApiError::BadValue(e.body_text()))?;
    registry
        .change(move |state| -> Result<_, ApiError> {
            state.token(&id).ok_or_else(|| ApiError::NoSuchToken(id.clone()))?;
            Ok((StatusCode::NO_CONTENT, vec![Change::DeleteToken(id.clone())]))
        })
        .await
}

pub(super) async fn reload(
    State(registry): State<Registry>,
    State(live): State<Arc<LiveConfig>>,
    caller: Caller,
) -> Result<axum::Json<edge_types::api::ReloadResponse>, ApiError> {
    caller.require_operator()?;
    Ok(axum::Json(live.reload(&registry).await?))
}

/// Applies a JSON merge patch (RFC 7396) to labels. Refuses labels that break the rules of
/// Kubernetes.
fn patched(mut labels: BTreeMap<String, String>, patch: LabelsPatch) -> Result<BTreeMap<String, String>, ApiError> {
    for (key, value) in patch {
        match value {
            None => drop(labels.remove(&key)),
            Some(value) if !is_label_key(&key) => {
                return Err(ApiError::BadValue(format!(
                    "{key:?}={value:?}: a label's key is NAME or PREFIX/NAME, of letters, digits, '-', '_' and '.', NAME at most 63 long"
                )));
            }
            Some(value) if !value.is_empty() && !is_label_name(&value) => {
                return Err(ApiError::BadValue(format!(
                    "{key:?}={value:?}: a label's value is at most 63 letters, digits, '-', '_' and '.', beginning and ending with a \
                     letter or digit"
                )));
            }
            Some(value) => drop(labels.insert(key, value)),
        }
    }
    Ok(labels)
}

fn is_label_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => prefix.parse::<NodeName>().is_ok() && is_label_name(name),
        None => is_label_name(key),
    }
}

fn is_label_name(text: &str) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && ends(text.chars().next())
        && ends(text.chars().next_back())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

fn segment_info(row: &SegmentRecord, quarantine: i64, now: Seconds) -> SegmentInfo {
    let past = row.past.iter().map(|Holding { node, granted_at, released_at }| SegmentHolding {
        node: node.clone(),
        granted_at: *granted_at,
        released_at: *released_at,
    });
    SegmentInfo {
        segment: row.network,
        node: row.node.clone(),
        state: row.state(quarantine, now),
        granted_at: row.granted_at,
        released_at: row.released_at,
        quarantined_until: row.free_from(quarantine),
        past: past.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_follow_the_rules_of_kubernetes() {
        let patch = |key: &str, value: Option<&str>| {
            patched(BTreeMap::from([("kept".into(), "1".into())]), [(key.into(), value.map(Into::into))].into())
        };
        for (key, value) in [("fabedge/edge-community", "alpha_beta"), ("x", ""), ("A-b_c.d", "1")] {
            assert_eq!(patch(key, Some(value)).unwrap()[key], value);
        }
        assert!(patch("kept", None).unwrap().is_empty());
        for (key, value) in
            [("", "x"), ("a b", "x"), ("a/b/c", "x"), ("UP/x", "x"), ("x", "-"), ("x", "a,b"), ("x", "ü")]
        {
            assert!(matches!(patch(key, Some(value)), Err(ApiError::BadValue(_))), "{key}={value}");
        }
    }
}

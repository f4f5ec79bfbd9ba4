//! Serves the requests about certificate authorities, for the operator.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use edge_controller_domain::ca::{Authorities, Authority, Ca, RetiredAuthority};
use edge_controller_domain::clock::Seconds;
use edge_controller_domain::node_certificates;
use edge_controller_domain::registry::Registry;
use edge_controller_domain::state::State as Rows;
use edge_types::api::{AuthorityInfo, AuthorityState};
use serde::Deserialize;

use super::caller::Caller;
use super::error::ApiError;
use crate::live_config::LiveConfig;

#[derive(Deserialize, schemars::JsonSchema)]
pub(super) struct Parameters {
    /// Also if nodes or tokens still need it.
    #[serde(default)]
    force: bool,
}

pub(super) async fn list(
    State(registry): State<Registry>,
    State(ca): State<Arc<Ca>>,
    State(live): State<Arc<LiveConfig>>,
    caller: Caller,
) -> Result<axum::Json<Vec<AuthorityInfo>>, ApiError> {
    caller.require_operator()?;
    let (authorities, now) = (ca.current(), registry.clock.now());
    let times = (now, live.now().config.certificate_grace());
    let state = registry.read().await;
    let trusted = authorities.trusted().iter().map(|authority| info(authority, &authorities, &state, times));
    Ok(axum::Json(authorities.retired().iter().map(retired).chain(trusted).collect()))
}

pub(super) async fn rollover(
    State(registry): State<Registry>,
    State(ca): State<Arc<Ca>>,
    State(live): State<Arc<LiveConfig>>,
    caller: Caller,
) -> Result<(StatusCode, axum::Json<AuthorityInfo>), ApiError> {
    caller.require_operator()?;
    let now = registry.clock.now();
    let new = ca.rollover(now).await?;
    let state = registry.read().await;
    Ok((
        StatusCode::CREATED,
        axum::Json(info(&new, &ca.current(), &state, (now, live.now().config.certificate_grace()))),
    ))
}

pub(super) async fn retire(
    State(registry): State<Registry>,
    State(ca): State<Arc<Ca>>,
    State(live): State<Arc<LiveConfig>>,
    caller: Caller,
    id: Result<Path<String>, axum::extract::rejection::PathRejection>,
    parameters: Result<Query<Parameters>, axum::extract::rejection::QueryRejection>,
) -> Result<axum::Json<AuthorityInfo>, ApiError> {
    caller.require_operator()?;
    let Path(id) = id.map_err(|e| ApiError::BadValue(e.body_text()))?;
    let Query(Parameters { force }) = parameters.map_err(|e| ApiError::BadValue(e.body_text()))?;
    let (authorities, now) = (ca.current(), registry.clock.now());
    let times = (now, live.now().config.certificate_grace());
    let authority = authorities.find(&id)?;
    let before = info(authority, &authorities, &*registry.read().await, times);
    let is_needed = !before.needed_by.is_empty() || !before.pinned_by.is_empty();
    if is_needed && !force {
        let tokens = before.pinned_by.iter().map(|id| format!("join token {id}"));
        let by = node_certificates::shortened(before.needed_by.iter()).into_iter().chain(tokens).collect();
        return Err(ApiError::AuthorityNeeded { authority: before.id, by });
    }
    ca.retire(&before.id, now).await?;
    Ok(axum::Json(AuthorityInfo { state: AuthorityState::Retired, retired_at: Some(now), ..before }))
}

/// Returns the information about a trusted authority. `times` are the present time and the time for
/// which a node's certificate is accepted after its end.
fn info(authority: &Authority, authorities: &Authorities, rows: &Rows, times: (Seconds, Seconds)) -> AuthorityInfo {
    let active = authority.id() == authorities.active().id();
    // All nodes need the active authority, which cannot be retired.
    let needing =
        rows.nodes().filter(|record| !active && node_certificates::needs(record, authority, authorities, times));
    let pinning =
        rows.tokens().filter(|token| !active && node_certificates::pins(token, authority, authorities, times.0));
    AuthorityInfo {
        id: authority.id(),
        subject: authority.subject().into(),
        state: if active { AuthorityState::Active } else { AuthorityState::Trusted },
        created_at: authority.created_at(),
        retired_at: None,
        not_after: authority.not_after(),
        needed_by: needing.map(|record| record.name.clone()).collect(),
        pinned_by: pinning.map(|token| token.id.clone()).collect(),
        certificate: authority.pem().into(),
    }
}

fn retired(former: &RetiredAuthority) -> AuthorityInfo {
    AuthorityInfo {
        id: former.id.clone(),
        subject: former.subject.clone(),
        state: AuthorityState::Retired,
        created_at: former.created_at,
        retired_at: Some(former.retired_at),
        not_after: former.not_after,
        needed_by: Vec::new(),
        pinned_by: Vec::new(),
        certificate: former.pem.clone(),
    }
}

//! Issues a node's certificates: the first certificate for a token, and each later certificate for
//! the previous one. `unauthenticated_body` and `connection_limits` limit floods of joins.

use std::borrow::Cow;
use std::sync::Arc;

use axum::extract::State;
use edge_controller_domain::ca::request::{self, NodeKey};
use edge_controller_domain::ca::{Ca, Issued};
use edge_controller_domain::clock::{Seconds, rfc3339};
use edge_controller_domain::node_certificates::{self, CertificateReason};
use edge_controller_domain::registry::Registry;
use edge_controller_domain::state::{Change, NodeRecord, State as Rows, TokenRecord};
use edge_controller_domain::tokens::{self, TokenError};
use edge_controller_kubernetes::events::{EventRecorder, Regarding};
use edge_types::api::{CertificateResponse, JoinRequest, RenewalRequest};
use edge_types::{NodeName, Role};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::body::{Json, Node};
use super::caller::Caller;
use super::error::ApiError;
use super::request_span;
use super::service_account::AccountReviews;
use super::state::{CertificateLimit, from_substates};
use super::unauthenticated_body::UnauthenticatedBody;
use crate::live_config::LiveConfig;

/// The credentials in the body of a join request. They are checked before the rest of the body, so
/// that a caller without a valid token gets no information, costs little and causes no log line.
#[derive(Deserialize)]
struct JoinCredentials<'a> {
    #[serde(borrow, default)]
    token: Cow<'a, str>,
    #[serde(borrow, default)]
    service_account_token: Option<Cow<'a, str>>,
}

pub(super) async fn join(
    State(registry): State<Registry>,
    State(live): State<Arc<LiveConfig>>,
    State(issuer): State<Issuer>,
    State(reviews): State<AccountReviews>,
    State(events): State<EventRecorder>,
    caller: Caller,
    UnauthenticatedBody(body): UnauthenticatedBody,
) -> Result<axum::Json<CertificateResponse>, ApiError> {
    let now = registry.clock.now();
    let credentials: JoinCredentials<'_> =
        serde_json::from_slice(&body).map_err(|error| error_without_content(&error))?;
    let by_account = match &credentials.service_account_token {
        Some(account) => reviews.check(account, now).map(|()| true)?,
        None => tokens::is_known(&*registry.read().await, &credentials.token).map(|()| false)?,
    };
    let join = serde_json::from_slice(&body).map_err(|error| match by_account {
        // The token has not been reviewed yet.
        true => error_without_content(&error),
        false => ApiError::BadValue(error.to_string()),
    });
    let JoinRequest { token, service_account_token, node, csr } = join?;
    drop(body);
    let (token, service_account_token) = (Zeroizing::new(token), service_account_token.map(Zeroizing::new));
    let admission = match service_account_token {
        Some(account) => Admission::ServiceAccount(reviews.review(&account, &node, &caller).await?),
        None => admission_by_token(&registry, token, &node, now).await?,
    };
    request_span::set_node(&caller, &node);
    let key = request::read(&csr, &node)?;
    let role = admission.role();
    // Nothing is signed for a caller that may not use the node's name, and the caller's request
    // does not count against the node's limit.
    admission.record(&*registry.read().await, &node, &key.fingerprint, now)?;
    issuer.limit.0.take(&node)?;
    let issued = issuer.issue(&node, role, &key, CertificateReason::Join).await?;
    let certificate = node_certificates::record_of(&issued, &key);
    let name = node.clone();
    registry
        .change(move |state| -> Result<_, ApiError> {
            let (mut record, used) = admission.record(state, &name, &certificate.key, now)?;
            node_certificates::join(&mut record, &certificate)?;
            let in_force = live.now();
            let min = in_force.config.segments.min_per_node;
            let mut changes = state.segments_at_join(&in_force.policy, &name, record.role, min, now)?;
            changes.extend(used.map(Change::PutToken));
            changes.push(Change::PutNode(record));
            Ok(((), changes))
        })
        .await?;
    tracing::info!(%node, %role, from = %caller, serial = issued.term.serial, key = key.fingerprint, "joined");
    events.normal(Regarding::EdgeNode, node.as_str(), "Joined", format!("joined as {role}"));
    Ok(axum::Json(issuer.response(node, role, issued)))
}

/// Returns the error for an invalid body, without any of the body's content.
fn error_without_content(error: &serde_json::Error) -> ApiError {
    let place = format!("at line {}, column {}", error.line(), error.column());
    match error.classify() {
        serde_json::error::Category::Data => {
            ApiError::BadValue(format!("the body is not what docs/openapi.json says of this path, {place}"))
        }
        _ => ApiError::BadJson(place),
    }
}

pub(super) async fn renew(
    State(registry): State<Registry>,
    State(live): State<Arc<LiveConfig>>,
    State(issuer): State<Issuer>,
    caller: Caller,
    Node(node): Node,
    Json(renewal): Json<RenewalRequest>,
) -> Result<axum::Json<CertificateResponse>, ApiError> {
    let (now, grace) = (registry.clock.now(), live.now().config.certificate_grace());
    let present = caller.require_node_with_grace(&registry.read().await, &node, now, grace)?;
    issuer.limit.0.take(&node)?;
    let key = request::read(&renewal.csr, &node)?;
    let issued = issuer.issue(&node, present.role, &key, CertificateReason::Renewal).await?;
    let certificate = node_certificates::record_of(&issued, &key);
    let (name, serial) = (node.clone(), present.serial);
    registry
        .change(move |state| -> Result<_, ApiError> {
            let mut record = state.node(&name).ok_or_else(|| ApiError::Deregistered(name.clone()))?.clone();
            node_certificates::renew(&mut record, &serial, &certificate)?;
            Ok(((), vec![Change::PutNode(record)]))
        })
        .await?;
    let ended = (now >= present.not_after).then(|| rfc3339(present.not_after));
    tracing::info!(%node, serial = issued.term.serial, issuer = issued.issuer, ended, "certificate renewed");
    Ok(axum::Json(issuer.response(node, present.role, issued)))
}

/// The credential that admits a node.
enum Admission {
    /// The credential from a join token, and the role that the token gives.
    Token(Zeroizing<String>, Role),
    /// The service account of a pod on the node, and the role that belongs to the account.
    ServiceAccount(Role),
}

impl Admission {
    fn role(&self) -> Role {
        match self {
            Admission::Token(_, role) | Admission::ServiceAccount(role) => *role,
        }
    }

    /// Returns the node's record after a join with this key, and the token's record if the token is
    /// used.
    fn record(
        &self,
        state: &Rows,
        name: &NodeName,
        key: &str,
        now: Seconds,
    ) -> Result<(NodeRecord, Option<TokenRecord>), ApiError> {
        match self {
            // The token is checked again here, where it is used up.
            Admission::Token(credential, _) => {
                let used = tokens::redeem(state, credential, name, key, now)?;
                let repeated = tokens::is_repeated(state, &used);
                let mut record = state.joining(name, used.role, used.node.is_some() || repeated, now)?;
                record.join_token = Some(used.id.clone());
                // A repeated request uses up nothing, so nothing is given back if the request
                // fails.
                Ok((record, (!repeated).then_some(used)))
            }
            // The API server has confirmed that the pod runs on the node of this name.
            Admission::ServiceAccount(role) => {
                let record = state.joining(name, *role, true, now)?;
                Ok((NodeRecord { join_token: None, ..record }, None))
            }
        }
    }
}

/// The parts of the server that sign nodes' certificates.
#[derive(Clone)]
pub(super) struct Issuer {
    registry: Registry,
    ca: Arc<Ca>,
    live: Arc<LiveConfig>,
    limit: CertificateLimit,
}

from_substates!(Issuer { registry, ca, live, limit });

impl Issuer {
    async fn issue(
        &self,
        node: &NodeName,
        role: Role,
        key: &NodeKey,
        reason: CertificateReason,
    ) -> Result<Issued, ApiError> {
        let authorities = self.ca.current();
        let now = (self.registry.clock.now(), self.registry.clock.issue_time());
        let days = self.live.now().config.certificates.node_days;
        let state = self.registry.read().await;
        let term = node_certificates::term(state.node(node), key, reason, authorities.active(), days, now)?;
        drop(state);
        Ok(authorities.sign_node(node, role, key, &term)?)
    }

    fn response(&self, node: NodeName, role: Role, issued: Issued) -> CertificateResponse {
        let trust_anchors = self.ca.current().anchors();
        CertificateResponse { node, role, certificate: issued.chain, trust_anchors }
    }
}

/// Checks a join token before any expensive work.
async fn admission_by_token(
    registry: &Registry,
    credential: Zeroizing<String>,
    node: &NodeName,
    now: Seconds,
) -> Result<Admission, ApiError> {
    let state = registry.read().await;
    match tokens::redeem(&state, &credential, node, "", now) {
        Ok(_) | Err(TokenError::Used { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let id = credential.split('.').next().unwrap_or_default();
    let role = state.token(id).map(|token| token.role).ok_or(TokenError::Unknown)?;
    drop(state);
    Ok(Admission::Token(credential, role))
}

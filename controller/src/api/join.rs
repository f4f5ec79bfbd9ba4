//! How a node gets its certificate: with a token at first, with the present certificate from then on.

use axum::extract::State;
use edge_types::api::{CertificateRequest, CertificateResponse, JoinRequest};
use edge_types::{NodeName, Role};
use zeroize::Zeroizing;

use super::body::{Json, Node};
use super::caller::Caller;
use super::{App, Context};
use crate::ca::Issued;
use crate::ca::request::{self, NodeKey};
use crate::certificates::{self, Occasion};
use crate::kubernetes::events::About;
use crate::refusal::Refusal;
use crate::segments::Policy;
use crate::state::{Change, NodeRecord, State as Rows, TokenRecord};
use crate::tokens;

/// Segments granted at join carry this in place of a request id of the node.
const JOIN_REQUEST: &str = "join";

pub(super) async fn join(
    State(app): State<App>,
    Json(join): Json<JoinRequest>,
) -> Result<axum::Json<CertificateResponse>, Refusal> {
    let JoinRequest { token, node, csr } = join;
    let token = Zeroizing::new(token);
    let now = app.registry.clock.now();
    // The token first: whoever has none learns nothing and costs nothing. It is checked once more when it is used up.
    let unchecked = tokens::redeem(app.registry.read().await.state(), &token, &node, "", now);
    match unchecked {
        Ok(_) | Err(Refusal::TokenUsed { .. }) => {}
        Err(refusal) => return Err(refusal),
    }
    let key = request::read(&csr, &node)?;
    let role = app.role_of(&token).await?;
    let issued = app.issue(&node, role, &key, Occasion::Join).await?;
    let certificate = certificates::kept(&issued, &key);
    let (policy, min) = (app.policy.clone(), app.config.segments.min_per_node);
    let name = node.clone();
    app.registry
        .change(move |state| {
            let used = tokens::redeem(state, &token, &name, &certificate.key, now)?;
            let mut record = registered(state, &used, &name, now)?;
            certificates::join(&mut record, &certificate)?;
            let mut changes = Vec::new();
            if record.role == Role::Edge {
                let missing = missing_segments(state, &policy, &name, min);
                changes = super::segments::grants(state, &policy, &name, &missing, JOIN_REQUEST, now)?;
            }
            changes.extend([Change::PutToken(used), Change::PutNode(record)]);
            Ok(((), changes))
        })
        .await?;
    tracing::info!(%node, %role, serial = issued.term.serial, key = key.fingerprint, "joined");
    app.events.normal(About::EdgeNode, node.as_str(), "Joined", format!("joined as {role}"));
    Ok(axum::Json(app.answer(node, role, issued)))
}

pub(super) async fn renew(
    State(app): State<App>,
    caller: Caller,
    Node(node): Node,
    Json(renewal): Json<CertificateRequest>,
) -> Result<axum::Json<CertificateResponse>, Refusal> {
    let present = app.is(&caller, &node).await?;
    let key = request::read(&renewal.csr, &node)?;
    let issued = app.issue(&node, present.role, &key, Occasion::Renewal).await?;
    let certificate = certificates::kept(&issued, &key);
    let (name, serial) = (node.clone(), present.serial);
    app.registry
        .change(move |state| {
            let mut record = state.node(&name).ok_or_else(|| Refusal::Deregistered(name.clone()))?.clone();
            certificates::renew(&mut record, &serial, &certificate)?;
            Ok(((), vec![Change::PutNode(record)]))
        })
        .await?;
    tracing::info!(%node, serial = issued.term.serial, issuer = issued.issuer, "certificate renewed");
    Ok(axum::Json(app.answer(node, present.role, issued)))
}

/// The node's record after it has joined: new, or the present one where the token permits taking it over.
fn registered(state: &Rows, token: &TokenRecord, name: &NodeName, now: i64) -> Result<NodeRecord, Refusal> {
    let Some(record) = state.node(name) else {
        return Ok(NodeRecord::new(name.clone(), token.role, now));
    };
    if token.node.is_none() && !tokens::is_repeated(state, token) {
        return Err(Refusal::NameTaken(name.clone()));
    }
    if record.role != token.role {
        return Err(Refusal::RoleChange { node: name.clone(), registered: record.role, token: token.role });
    }
    Ok(record.clone())
}

/// What a node lacks of the segments that it gets without asking.
fn missing_segments(state: &Rows, policy: &Policy, node: &NodeName, min: u32) -> Vec<edge_types::api::Family> {
    let held = state.ledger().held_by(node);
    let of = |family| held.iter().filter(|row| edge_types::api::Family::of(&row.network) == family).count();
    let lacking = |family| (min.min(policy.max_per_node) as usize).saturating_sub(of(family));
    policy.families().flat_map(|family| std::iter::repeat_n(family, lacking(family))).collect()
}

impl Context {
    async fn issue(&self, node: &NodeName, role: Role, key: &NodeKey, occasion: Occasion) -> Result<Issued, Refusal> {
        let (authorities, now) = (self.ca.current(), self.registry.clock.now());
        let days = self.config.certificates.node_days;
        let view = self.registry.read().await;
        let term = certificates::term(view.state().node(node), key, occasion, authorities.active(), days, now)?;
        drop(view);
        Ok(authorities.sign_node(node, role, key, &term)?)
    }

    async fn role_of(&self, credential: &str) -> Result<Role, Refusal> {
        let id = credential.split('.').next().unwrap_or_default();
        self.registry.read().await.state().token(id).map(|token| token.role).ok_or(Refusal::TokenUnknown)
    }

    fn answer(&self, node: NodeName, role: Role, issued: Issued) -> CertificateResponse {
        let trust_anchors = self.ca.current().anchors();
        CertificateResponse { node, role, certificate: issued.chain, trust_anchors }
    }
}

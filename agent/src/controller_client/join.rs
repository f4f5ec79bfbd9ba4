//! Joins this node: presents the join credential and stores this node's first certificate.
//!
//! The agent writes a new key to disk, sends the certificate request, writes the certificate, then
//! deletes the pending key. If the power fails between two of these steps, the next attempt repeats
//! the request with the same key and credential, and the controller repeats its response.

use std::sync::Arc;

use edge_types::api::{CertificateResponse, JoinRequest};
use edge_types::error::with_causes;
use hyper::Method;
use zeroize::Zeroizing;

use super::error::ControllerError;
use super::guard_bypass::GuardBypass;
use super::http::HttpClient;
use super::join_credential::JoinCredential;
use super::node_identity::{self, NodeIdentity};
use super::tls;
use crate::clock::CertificateClock;
use crate::config::Config;
use crate::state_dir::{StateDir, segments_file};

/// Joins the cluster, and writes the identity to disk.
pub(super) async fn join(
    config: &Config,
    credential: &JoinCredential,
    state: &StateDir,
    clock: &Arc<CertificateClock>,
    bypass: &Arc<GuardBypass>,
) -> Result<NodeIdentity, ControllerError> {
    let (node, role) = (credential.agreed_name(config)?, credential.agreed_role(config)?);
    let key = node_identity::pending_key(state)?;
    let (token, service_account_token) = match credential {
        JoinCredential::Token(token) => (token.credential().to_string(), None),
        JoinCredential::ServiceAccount { token, .. } => (String::new(), Some(token.to_string())),
    };
    let request =
        JoinRequest { token, service_account_token, node: node.clone(), csr: node_identity::request(&key, &node)? };
    let urls = config.controller.as_ref().map_or(&[][..], |controller| &controller.urls);
    let tls = tls::join_config(credential.trust(), clock.clone())
        .map_err(|error| ControllerError::Unacceptable(format!("TLS cannot be set up: {}", with_causes(&error))))?;
    let client = HttpClient::new(urls, tls, clock.clone(), bypass.clone())?;
    let response: Result<CertificateResponse, _> = client.call(Method::POST, "/v1/join", &request).await;
    drop((Zeroizing::new(request.token), request.service_account_token.map(Zeroizing::new)));
    let response = response?;
    let anchors = node_identity::anchors(&response.trust_anchors).map_err(ControllerError::Unacceptable)?;
    if let JoinCredential::Token(token) = credential
        && !anchors.iter().any(|der| tls::spki_sha256(der) == Some(token.ca_hash))
    {
        return Err(ControllerError::Unacceptable(
            "the controller's trust anchors lack the CA that the join token names: ask the operator for a new token"
                .into(),
        ));
    }
    let identity = NodeIdentity::accept(&response, &key, &node, role.unwrap_or(response.role), credential.id(), clock)?;
    // The view and the segments on disk belong to the former identity. They are removed before the
    // new identity is written: after a power cut between the two, the join is repeated.
    forget_earlier_membership(state)?;
    identity.store(state)?;
    node_identity::forget_pending_key(state)?;
    clock.save_floor(state)?;
    Ok(identity)
}

fn forget_earlier_membership(state: &StateDir) -> Result<(), ControllerError> {
    segments_file::forget_granted(state)?;
    state.remove(edge_types::shared_files::VIEW_FILE)?;
    Ok(())
}

//! From a ticket to a member's identity.
//!
//! The key and its request come first, on disk; then the controller is asked; then the certificate
//! is kept; then the pending key is forgotten. Power may be lost between any two of them: the next
//! attempt asks for the same key with the same ticket, which the controller answers as it did the
//! first time.

use std::sync::Arc;

use edge_types::api::{CertificateResponse, JoinRequest};
use edge_types::error::with_causes;
use hyper::Method;
use zeroize::Zeroizing;

use super::error::CloudError;
use super::guard_bypass::Path;
use super::http::Client;
use super::identity::{self, Identity};
use super::join_credential::Ticket;
use super::tls;
use crate::clock::WorldClock;
use crate::config::Config;
use crate::state_dir::{StateDir, segments_file};

/// Joins, and keeps the identity on disk.
pub(super) async fn join(
    config: &Config,
    ticket: &Ticket,
    state: &StateDir,
    clock: &Arc<WorldClock>,
    path: &Arc<Path>,
) -> Result<Identity, CloudError> {
    let (node, role) = (ticket.agreed_name(config)?, ticket.agreed_role(config)?);
    let key = identity::pending_key(state)?;
    let (token, service_account_token) = match ticket {
        Ticket::Token(token) => (token.credential().to_string(), None),
        Ticket::ServiceAccount { token, .. } => (String::new(), Some(token.to_string())),
    };
    let request =
        JoinRequest { token, service_account_token, node: node.clone(), csr: identity::request(&key, &node)? };
    let urls = config.controller.as_ref().map_or(&[][..], |controller| &controller.urls);
    let tls = tls::joining(ticket.trust(), clock.clone())
        .map_err(|error| CloudError::Unacceptable(format!("TLS cannot be set up: {}", with_causes(&error))))?;
    let client = Client::new(urls, tls, clock.clone(), path.clone())?;
    let answer: Result<CertificateResponse, _> = client.call(Method::POST, "/v1/join", &request).await;
    drop((Zeroizing::new(request.token), request.service_account_token.map(Zeroizing::new)));
    let answer = answer?;
    let anchors = identity::anchors(&answer.trust_anchors).map_err(CloudError::Unacceptable)?;
    if let Ticket::Token(token) = ticket
        && !anchors.iter().any(|der| tls::spki_sha256(der) == Some(token.ca_hash))
    {
        return Err(CloudError::Unacceptable(
            "the controller's trust anchors lack the CA that the join token names: ask the operator for a new token"
                .into(),
        ));
    }
    let identity = Identity::accept(&answer, &key, &node, role.unwrap_or(answer.role), ticket.id(), clock)?;
    // A view and segments on disk belong to an identity that is no more. Gone before the new one
    // stands: a power cut between leads back here.
    forget_earlier_membership(state)?;
    identity.store(state)?;
    identity::forget_pending_key(state)?;
    clock.keep(state)?;
    Ok(identity)
}

fn forget_earlier_membership(state: &StateDir) -> Result<(), CloudError> {
    segments_file::forget_granted(state)?;
    state.remove(edge_types::store::VIEW_FILE)?;
    Ok(())
}

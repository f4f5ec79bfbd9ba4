//! From a join token to a member's identity.
//!
//! The key and its request come first, on disk; then the controller is asked; then the certificate is kept; then the pending key is
//! forgotten. Power may be lost between any two of them: the next attempt asks for the same key with the same token, which the controller answers as it
//! did the first time.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use edge_types::api::{CertificateResponse, JoinRequest};
use edge_types::{JoinToken, NodeName, Role};
use hyper::Method;
use zeroize::Zeroizing;

use super::client::Client;
use super::error::{CloudError, chain};
use super::identity::{self, Identity};
use super::tls;
use crate::clock::WorldClock;
use crate::config::Config;
use crate::store::{StateDir, segments};

/// Longest token file that is read, bytes.
const MAX_TOKEN_FILE: u64 = 8 * 1024;

/// The token in the file that the configuration names; `None` where it names none or there is none.
pub(super) fn token(config: &Config) -> Result<Option<JoinToken>, CloudError> {
    let Some(path) = config.controller.as_ref().and_then(|controller| controller.token_file.as_deref()) else {
        return Ok(None);
    };
    let path = config.path(path);
    let failed = |why: String| CloudError::Unacceptable(format!("{}: {why}", path.display()));
    let metadata = match std::fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(format!("the join token cannot be read: {error}"))),
    };
    if metadata.len() > MAX_TOKEN_FILE {
        return Err(failed("this is too large for a join token".into()));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        tracing::warn!(file = %path.display(), "others may read the join token: chmod 600");
    }
    let text = std::fs::read_to_string(&path).map(Zeroizing::new);
    let text = text.map_err(|error| failed(format!("the join token cannot be read: {error}")))?;
    text.parse().map(Some).map_err(|error: edge_types::token::TokenError| failed(error.to_string()))
}

/// The name under which to join, once token and configuration agree about who this node is.
pub(super) fn agreed_name(config: &Config, token: &JoinToken) -> Result<NodeName, CloudError> {
    if let Some(role) = config.role
        && role != token.role
    {
        return Err(CloudError::Unacceptable(format!(
            "the configuration says role {role}, the join token is for role {}: \
             ask the operator for a token with `--role {role}`, or correct `role`",
            token.role
        )));
    }
    match (&config.name, &token.node) {
        (Some(configured), Some(bound)) if configured != bound => Err(CloudError::Unacceptable(format!(
            "the configuration says name {configured}, the join token is for {bound} alone: use its own token for each node"
        ))),
        (_, Some(bound)) => Ok(bound.clone()),
        (_, None) => config.node_name().map_err(|error| {
            CloudError::Unacceptable(format!("{error}; set `name` in the configuration to the name of the Node object"))
        }),
    }
}

/// Joins, and keeps the identity on disk.
pub(super) async fn join(
    config: &Config,
    token: &JoinToken,
    state: &StateDir,
    clock: &Arc<WorldClock>,
) -> Result<Identity, CloudError> {
    let node = agreed_name(config, token)?;
    let key = identity::pending_key(state)?;
    let request =
        JoinRequest { token: token.credential().to_string(), node: node.clone(), csr: identity::request(&key, &node)? };
    let urls = config.controller.as_ref().map_or(&[][..], |controller| &controller.urls);
    let tls = tls::joining(token.ca_hash, clock.clone())
        .map_err(|error| CloudError::Unacceptable(format!("TLS cannot be set up: {}", chain(&error))))?;
    let client = Client::new(urls, tls, clock.clone())?;
    let answer: Result<CertificateResponse, _> = client.call(Method::POST, "/v1/join", &request).await;
    drop(Zeroizing::new(request.token));
    let answer = answer?;
    let pinned = identity::anchors(&answer.trust_anchors).map_err(CloudError::Unacceptable)?;
    if !pinned.iter().any(|der| tls::spki_sha256(der) == Some(token.ca_hash)) {
        return Err(CloudError::Unacceptable(
            "the controller's trust anchors lack the CA that the join token names: ask the operator for a new token"
                .into(),
        ));
    }
    let identity = Identity::accept(&answer, &key, &node, token.role, &token.id, clock)?;
    // A view and segments on disk belong to an identity that is no more. Gone before the new one stands: a power cut between leads back here.
    forget_earlier_membership(state)?;
    identity.store(state)?;
    identity::forget_pending_key(state)?;
    clock.keep(state)?;
    Ok(identity)
}

fn forget_earlier_membership(state: &StateDir) -> Result<(), CloudError> {
    segments::forget_granted(state)?;
    state.remove(edge_types::store::VIEW_FILE)?;
    Ok(())
}

/// What to say where there is neither identity nor token.
pub(super) fn no_token(config: &Config, state: &Path) -> CloudError {
    let place = config.controller.as_ref().and_then(|controller| controller.token_file.as_deref());
    let place = place.map_or("name a `token_file` under [controller]".into(), |path| {
        format!("put one into {}", config.path(path).display())
    });
    CloudError::Unacceptable(format!(
        "this node has not joined ({} holds no identity) and there is no join token: \
         get one by `edge-controller token create --role {}` and {place}",
        state.display(),
        config.role.unwrap_or(Role::Edge),
    ))
}

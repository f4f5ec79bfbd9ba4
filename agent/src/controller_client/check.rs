//! Checks `[controller]` for `edge-agent check`. It opens no connection, and works even while an
//! agent runs.

use std::path::Path;

use edge_types::NodeName;

use super::controller_choice;
use super::error::ControllerError;
use super::join_credential::{self, JoinCredential};
use super::node_identity::NodeIdentity;
use crate::config::Config;

/// Fails if a controller's URL has more than a host and a port, or if no controller can be there.
/// The agent starts with such a URL nevertheless, as long as it is an `https://` URL with a host.
pub fn check_url(url: &str) -> Result<(), ControllerError> {
    controller_choice::check_url(url)
}

/// Returns the name and the certificate (DER) of this node; `None` if it has not joined. Fails if
/// the file is damaged or its parts do not match.
pub fn certificate_on_disk(state_dir: &Path) -> Result<Option<(NodeName, Vec<u8>)>, ControllerError> {
    let identity = NodeIdentity::load_from(state_dir)?;
    Ok(identity.and_then(|identity| Some((identity.node.clone(), identity.credentials.chain.first()?.clone()))))
}

/// Returns a description of how and under which name this node would join. Fails if it cannot join
/// because there is no credential, or because the credential and the configuration contradict each
/// other.
pub fn check_join_credential(config: &Config) -> Result<String, ControllerError> {
    let Some(credential) = JoinCredential::read(config)? else {
        return Err(join_credential::missing(config, &config.state_dir));
    };
    let (name, role) = (credential.agreed_name(config)?, credential.agreed_role(config)?);
    let by = match credential {
        JoinCredential::Token(token) => format!("the join token {}", token.id),
        JoinCredential::ServiceAccount { .. } => "the service account token".to_owned(),
    };
    let role = role.map_or_else(|| "the role that the controller gives".to_owned(), |role| format!("role {role}"));
    Ok(format!("not joined yet: joins as {name}, {role}, with {by}"))
}

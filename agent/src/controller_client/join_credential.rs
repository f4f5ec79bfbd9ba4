//! The credential with which this node joins: a join token from the operator, or the Kubernetes
//! service account token of the agent's pod.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use edge_types::{JoinToken, NodeName, Role};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::error::ControllerError;
use super::node_identity;
use super::tls::ControllerTrust;
use crate::config::{Config, ControllerSection};

/// Maximum size of a token file, in bytes.
const MAX_FILE: u64 = 16 * 1024;

/// A join credential. It is a secret, so it has no `Debug`.
pub(super) enum JoinCredential {
    /// The join token that the operator made.
    Token(JoinToken),
    /// The service account token that the kubelet projects into the pod.
    ServiceAccount {
        /// The JWT.
        token: Zeroizing<String>,
        /// `pod:UID` of the pod to which the token is bound. The kubelet renews the token often, so
        /// only a token for another pod counts as a new credential.
        id: String,
        /// The pod's node, from the token's claims.
        node: Option<NodeName>,
        /// Trust anchors for the controller's certificate, DER.
        anchors: Vec<Vec<u8>>,
    },
}

impl JoinCredential {
    /// Reads the credential from the file that the configuration names. `None` if the configuration
    /// names no file, or the file does not exist.
    pub(super) fn read(config: &Config) -> Result<Option<Self>, ControllerError> {
        let Some(controller) = &config.controller else { return Ok(None) };
        if let Some(path) = &controller.service_account_token_file {
            return service_account(config, controller, &config.path(path));
        }
        let Some(path) = &controller.token_file else { return Ok(None) };
        let path = config.path(path);
        let Some(text) = text(&path, "the join token")? else { return Ok(None) };
        if std::fs::metadata(&path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0) {
            tracing::warn!(file = %path.display(), "other users can read the join token: chmod 600");
        }
        text.parse()
            .map(|token| Some(Self::Token(token)))
            .map_err(|error: edge_types::token::ParseTokenError| wrong(&path, error.to_string()))
    }

    /// Returns an identifier of the credential: the join token's ID, or `pod:UID`. It is not
    /// secret.
    pub(super) fn id(&self) -> &str {
        match self {
            Self::Token(token) => &token.id,
            Self::ServiceAccount { id, .. } => id,
        }
    }

    /// Returns how the controller's certificate is verified while this node joins.
    pub(super) fn trust(&self) -> ControllerTrust {
        match self {
            Self::Token(token) => ControllerTrust::Pinned(token.ca_hash),
            Self::ServiceAccount { anchors, .. } => ControllerTrust::Anchors(anchors.clone()),
        }
    }

    /// Returns the role from the credential or the configuration; `None` if neither names a role.
    /// Fails if the two roles differ.
    pub(super) fn agreed_role(&self, config: &Config) -> Result<Option<Role>, ControllerError> {
        match (self, config.role) {
            (Self::Token(token), Some(role)) if role != token.role => Err(ControllerError::Unacceptable(format!(
                "the configuration says role {role}, the join token is for role {}: \
                 ask the operator for a token with `--role {role}`, or correct `role`",
                token.role
            ))),
            (Self::Token(token), _) => Ok(Some(token.role)),
            (Self::ServiceAccount { .. }, role) => Ok(role),
        }
    }

    /// Returns the node name from the credential, the configuration or the host name, in this
    /// order. Fails if the names in the credential and the configuration differ.
    pub(super) fn agreed_name(&self, config: &Config) -> Result<NodeName, ControllerError> {
        let bound = match self {
            Self::Token(token) => token.node.as_ref(),
            Self::ServiceAccount { node, .. } => node.as_ref(),
        };
        match (&config.name, bound) {
            (Some(configured), Some(bound)) if configured != bound => Err(ControllerError::Unacceptable(match self {
                Self::Token(_) => format!(
                    "the configuration says name {configured}, the join token is for {bound} alone: use its own token for each node"
                ),
                Self::ServiceAccount { .. } => format!(
                    "the configuration says name {configured}, the pod runs on node {bound}: leave `name` out, or correct it"
                ),
            })),
            (_, Some(bound)) => Ok(bound.clone()),
            (_, None) => config.node_name().map_err(|error| {
                ControllerError::Unacceptable(format!(
                    "{error}; set `name` in the configuration to the name of the Node object"
                ))
            }),
        }
    }
}

/// Returns the error for a node that has neither an identity nor a credential.
pub(super) fn missing(config: &Config, state: &Path) -> ControllerError {
    let controller = config.controller.as_ref();
    if let Some(path) = controller.and_then(|controller| controller.service_account_token_file.as_deref()) {
        return ControllerError::Unacceptable(format!(
            "this node has not joined ({} holds no identity) and there is no service account token at {}: mount a projected volume for \
             the audience edge-cni there",
            state.display(),
            config.path(path).display(),
        ));
    }
    let place = controller.and_then(|controller| controller.token_file.as_deref());
    let place = place.map_or("name a `token_file` under [controller]".into(), |path| {
        format!("put one into {}", config.path(path).display())
    });
    ControllerError::Unacceptable(format!(
        "this node has not joined ({} holds no identity) and there is no join token: \
         get one by `edge-controller token create --role {}` and {place}",
        state.display(),
        config.role.unwrap_or(Role::Edge),
    ))
}

/// Claims of a service account token. The node name and the token's ID are taken from them. The API
/// server verifies the claims.
#[derive(Deserialize)]
struct JwtClaims {
    #[serde(rename = "kubernetes.io")]
    kubernetes: KubernetesClaims,
}

#[derive(Deserialize)]
struct KubernetesClaims {
    pod: PodClaim,
    node: Option<NodeClaim>,
}

#[derive(Deserialize)]
struct PodClaim {
    uid: String,
}

#[derive(Deserialize)]
struct NodeClaim {
    name: NodeName,
}

fn service_account(
    config: &Config,
    controller: &ControllerSection,
    path: &Path,
) -> Result<Option<JoinCredential>, ControllerError> {
    let Some(token) = text(path, "the service account token")? else { return Ok(None) };
    let token = Zeroizing::new(token.trim().to_owned());
    // RFC 7515 3.1: header, claims and signature, base64url, separated by dots.
    let claims = token.split('.').nth(1).and_then(|claims| URL_SAFE_NO_PAD.decode(claims).ok()).map(Zeroizing::new);
    let claims = claims.and_then(|claims| serde_json::from_slice::<JwtClaims>(&claims).ok()).ok_or_else(|| {
        wrong(path, "this is no service account token that is bound to a pod: mount a projected volume for the audience edge-cni".into())
    })?;
    let KubernetesClaims { pod, node } = claims.kubernetes;
    // `Config::check` ensures that `ca_file` is set together with the token file.
    let ca = config.path(controller.ca_file.as_deref().unwrap_or(Path::new("")));
    let anchors = std::fs::read_to_string(&ca)
        .map_err(|error| wrong(&ca, format!("the controller's CA cannot be read: {error}")))
        .and_then(|text| node_identity::anchors(&[text]).map_err(|why| wrong(&ca, why)))?;
    let (id, node) = (format!("pod:{}", pod.uid), node.map(|node| node.name));
    Ok(Some(JoinCredential::ServiceAccount { token, id, node, anchors }))
}

/// Reads a file of at most [`MAX_FILE`] bytes; `None` if it does not exist.
fn text(path: &Path, what: &str) -> Result<Option<Zeroizing<String>>, ControllerError> {
    let unreadable = |error: std::io::Error| wrong(path, format!("{what} cannot be read: {error}"));
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_FILE => Err(wrong(path, format!("this is too large for {what}"))),
        Ok(_) => std::fs::read_to_string(path).map(|text| Some(Zeroizing::new(text))).map_err(unreadable),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(error)),
    }
}

fn wrong(path: &Path, why: String) -> ControllerError {
    ControllerError::Unacceptable(format!("{}: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(directory: &Path, more: &str) -> Config {
        let path = directory.join("agent.toml");
        let text = format!(
            "{more}\n[controller]\nurls = [\"https://c:8443\"]\nservice_account_token_file = \"token\"\nca_file = \"ca.crt\"\n"
        );
        std::fs::write(&path, text).unwrap();
        Config::load(&path).unwrap()
    }

    fn put_token(directory: &Path, claims: &str) {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        std::fs::write(directory.join("token"), format!("{}.{}.{}\n", part("{}"), part(claims), part("x"))).unwrap();
    }

    fn put_anchor(directory: &Path) {
        let mut parameters = rcgen::CertificateParams::new(vec![]).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let anchor = parameters.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        std::fs::write(directory.join("ca.crt"), anchor.pem()).unwrap();
    }

    const CLAIMS: &str = r#"{"aud":["edge-cni"],"kubernetes.io":{"namespace":"edge-cni","node":{"name":"edge-1","uid":"n"},
        "pod":{"name":"edge-agent-x","uid":"u-1"},"serviceaccount":{"name":"edge-agent","uid":"s"}},"sub":"x"}"#;

    #[test]
    fn a_pods_token_gives_the_nodes_name_and_differs_from_another_pods() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path(), "");
        put_anchor(directory.path());
        assert!(JoinCredential::read(&config).unwrap().is_none(), "the kubelet has not written it yet");
        assert!(missing(&config, directory.path()).to_string().contains("projected volume"));
        put_token(directory.path(), CLAIMS);
        let credential = JoinCredential::read(&config).unwrap().unwrap();
        assert_eq!((credential.id(), credential.agreed_name(&config).unwrap().as_str()), ("pod:u-1", "edge-1"));
        assert_eq!(credential.agreed_role(&config).unwrap(), None, "the controller decides the role");
        assert!(matches!(credential.trust(), ControllerTrust::Anchors(anchors) if anchors.len() == 1));
        put_token(directory.path(), &CLAIMS.replace("u-1", "u-2"));
        assert_eq!(JoinCredential::read(&config).unwrap().unwrap().id(), "pod:u-2");
    }

    #[test]
    fn a_name_that_is_not_the_pods_nodes_an_unbound_token_and_a_missing_ca_are_reported() {
        let directory = tempfile::tempdir().unwrap();
        let named = config(directory.path(), "name = \"edge-9\"");
        put_token(directory.path(), CLAIMS);
        let error = JoinCredential::read(&named).err().unwrap().to_string();
        assert!(error.contains("ca.crt"), "{error}");
        put_anchor(directory.path());
        let error = JoinCredential::read(&named).unwrap().unwrap().agreed_name(&named).unwrap_err().to_string();
        assert!(error.contains("edge-9") && error.contains("node edge-1"), "{error}");
        for bad in ["{}", r#"{"kubernetes.io":{"serviceaccount":{"name":"a"}}}"#, "garbage"] {
            put_token(directory.path(), bad);
            let error = JoinCredential::read(&named).err().unwrap().to_string();
            assert!(error.contains("bound to a pod"), "{error}");
        }
    }
}

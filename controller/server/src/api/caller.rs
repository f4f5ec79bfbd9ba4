//! Identifies the caller. The caller's certificate names the node and is read once for each
//! connection. At each request, the registry decides whether the certificate is still accepted.

use std::convert::Infallible;
use std::fmt;
use std::net::IpAddr;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use edge_controller_domain::ca::hex;
use edge_controller_domain::clock::Seconds;
use edge_controller_domain::registry::{Registry, StateGuard};
use edge_types::pki::parse_node_uri;
use edge_types::{NodeName, Role};
use rustls_pki_types::CertificateDer;
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::error::ApiError;

/// The other end of a connection.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The caller's identity, as shown by TLS or the socket.
    pub identity: CallerIdentity,
    /// The caller's address; `None` on the admin socket.
    pub address: Option<IpAddr>,
    /// Cancelling this token closes the connection.
    pub connection: CancellationToken,
}

/// The identity of a caller, as shown by TLS or the socket.
#[derive(Clone, Debug)]
pub enum CallerIdentity {
    /// The operator, on the admin socket.
    Operator,
    /// TLS without a certificate. Such a caller may join.
    Anonymous,
    /// TLS with a certificate from our CA that names a node.
    Node(NodeCertificate),
    /// TLS with a certificate from our CA that names no node, with the reason.
    Unrecognised(String),
}

/// The content of a node's certificate.
#[derive(Clone, Debug)]
pub struct NodeCertificate {
    /// Name of the node.
    pub name: NodeName,
    /// Role of the node.
    pub role: Role,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// `notAfter` of the certificate.
    pub not_after: Seconds,
}

impl CallerIdentity {
    /// Reads a certificate that TLS has verified.
    pub fn of_certificate(der: &CertificateDer<'_>) -> Self {
        match read(der) {
            Ok(certificate) => CallerIdentity::Node(certificate),
            Err(why) => CallerIdentity::Unrecognised(why.into()),
        }
    }
}

fn read(der: &CertificateDer<'_>) -> Result<NodeCertificate, &'static str> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| "it cannot be parsed")?;
    let names = certificate.subject_alternative_name().ok().flatten().ok_or("it has no subjectAltName")?;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let (role, name) = match (uris.next(), uris.next()) {
        (Some(uri), None) => parse_node_uri(uri).ok_or("its URI is not edge-cni://ROLE/NAME")?,
        _ => return Err("it does not have exactly one URI"),
    };
    let serial = hex(certificate.raw_serial());
    Ok(NodeCertificate { name, role, serial, not_after: certificate.validity().not_after.timestamp() })
}

impl Caller {
    /// Returns whether the caller is the operator.
    pub fn is_operator(&self) -> bool {
        matches!(self.identity, CallerIdentity::Operator)
    }

    /// Refuses all but the operator.
    pub fn require_operator(&self) -> Result<(), ApiError> {
        match self.identity {
            CallerIdentity::Operator => Ok(()),
            CallerIdentity::Anonymous => Err(ApiError::NoCertificate),
            _ => Err(ApiError::OperatorOnly),
        }
    }

    /// Refuses all but the operator and the registered node `node`.
    pub fn require_node_or_operator(
        &self,
        state: &StateGuard<'_>,
        node: &NodeName,
        now: Seconds,
    ) -> Result<(), ApiError> {
        match &self.identity {
            CallerIdentity::Operator if state.node(node).is_none() => Err(ApiError::NoSuchNode(node.clone())),
            CallerIdentity::Operator => Ok(()),
            _ => self.require_node(state, node, now).map(drop),
        }
    }

    /// Refuses all but the operator and registered nodes whose certificate is accepted.
    pub fn require_registered(&self, state: &StateGuard<'_>, now: Seconds) -> Result<(), ApiError> {
        match &self.identity {
            CallerIdentity::Operator => Ok(()),
            CallerIdentity::Node(certificate) => self.require_node(state, &certificate.name, now).map(drop),
            CallerIdentity::Anonymous => Err(ApiError::NoCertificate),
            CallerIdentity::Unrecognised(why) => Err(ApiError::NotANode(why.clone())),
        }
    }

    /// Refuses all but the registered node `node`, with a certificate that is accepted.
    pub fn require_node(
        &self,
        state: &StateGuard<'_>,
        node: &NodeName,
        now: Seconds,
    ) -> Result<NodeCertificate, ApiError> {
        self.require_node_with_grace(state, node, now, 0)
    }

    /// Does the same as [`Caller::require_node`], but accepts a certificate for `grace` seconds
    /// after its end. A certificate whose successor was used, and that of a node that was
    /// deregistered, have no grace.
    pub fn require_node_with_grace(
        &self,
        state: &StateGuard<'_>,
        node: &NodeName,
        now: Seconds,
        grace: Seconds,
    ) -> Result<NodeCertificate, ApiError> {
        let certificate = match &self.identity {
            CallerIdentity::Operator => return Err(ApiError::NodeOnly),
            CallerIdentity::Anonymous => return Err(ApiError::NoCertificate),
            CallerIdentity::Unrecognised(why) => return Err(ApiError::NotANode(why.clone())),
            CallerIdentity::Node(certificate) => certificate,
        };
        let name = &certificate.name;
        let record = state.node(name).ok_or_else(|| ApiError::Deregistered(name.clone()))?;
        if record.role != certificate.role || !record.certificates.iter().any(|c| c.serial == certificate.serial) {
            return Err(ApiError::Superseded(name.clone()));
        }
        if now >= certificate.not_after.saturating_add(grace) {
            return Err(ApiError::CertificateExpired(name.clone()));
        }
        // The newest one is last. Its end may be earlier, after the operator has shortened
        // validity.
        let is_replaced = || {
            let later = record.certificates.iter().skip_while(|c| c.serial != certificate.serial).skip(1);
            later.into_iter().any(|c| c.used)
        };
        if now >= certificate.not_after && is_replaced() {
            return Err(ApiError::Superseded(name.clone()));
        }
        if name != node {
            return Err(ApiError::ForeignNode { caller: name.clone(), node: node.clone() });
        }
        Ok(certificate.clone())
    }

    /// Does the same as [`Caller::require_node`] with the present state and time.
    pub async fn require_node_now(&self, registry: &Registry, node: &NodeName) -> Result<NodeCertificate, ApiError> {
        self.require_node(&registry.read().await, node, registry.clock.now())
    }

    /// Returns whether the caller is a registered node whose certificate is accepted, or can still
    /// be renewed because it ended at most `grace` seconds ago.
    pub fn is_registered_node(&self, state: &StateGuard<'_>, now: Seconds, grace: Seconds) -> bool {
        match &self.identity {
            CallerIdentity::Node(certificate) => {
                self.require_node_with_grace(state, &certificate.name, now, grace).is_ok()
            }
            _ => false,
        }
    }
}

impl fmt::Display for Caller {
    /// Formats the caller for the log: the address and the node that the caller's certificate
    /// names.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address, &self.identity) {
            (_, CallerIdentity::Operator) => f.write_str("the operator"),
            (Some(address), CallerIdentity::Node(certificate)) => write!(f, "{address} (node {})", certificate.name),
            (Some(address), _) => write!(f, "{address}"),
            (None, _) => f.write_str("unknown"),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        // The listeners insert the caller. A request without a caller counts as unauthenticated.
        Ok(parts.extensions.get::<Caller>().cloned().unwrap_or_else(|| Caller {
            identity: CallerIdentity::Anonymous,
            address: None,
            connection: CancellationToken::new(),
        }))
    }
}

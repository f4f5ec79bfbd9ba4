//! Errors of the controller client.

use edge_types::api::Problem;
use rustls::AlertDescription;

use crate::state_dir::StateDirError;

/// The reason why a request to the controller failed. The text never contains a token or a key.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// The connection failed or broke.
    #[error("controller {url} cannot be reached: {why}")]
    Unreachable {
        /// The controller's URL.
        url: String,
        /// The error from the network, TLS or HTTP.
        why: String,
    },
    /// The server's certificate is not that of the cluster's controller.
    #[error("controller {url} is not trusted: {why}")]
    Untrusted {
        /// The controller's URL.
        url: String,
        /// What is wrong with the certificate, and how to solve it.
        why: String,
    },
    /// The controller ended the TLS connection with an alert about this node's certificate.
    #[error(
        "controller {url} refuses this node's certificate ({alert:?}): it has expired or the node was deregistered; \
         if it is to belong to the cluster, put a new join token into the token file"
    )]
    CertificateRefused {
        /// The controller's URL.
        url: String,
        /// The TLS alert (RFC 8446 6.2).
        alert: AlertDescription,
    },
    /// The response is a problem document (RFC 9457).
    #[error("the controller answered {}: {}: {}", .0.status, .0.title, .0.detail)]
    Problem(Problem),
    /// The response does not follow the API.
    #[error(
        "controller {url} answers {received}, which is not what was expected ({expected}): is it an edge-controller of this release?"
    )]
    UnexpectedResponse {
        /// The controller's URL.
        url: String,
        /// What the controller sent.
        received: String,
        /// The expected response according to the API.
        expected: &'static str,
    },
    /// This node has no certificate yet.
    #[error("this node has not joined the cluster yet: `edge-agent status` says why")]
    NotJoined,
    /// A response, the configuration or the state of this host does not allow the request. The text
    /// also says how to solve the problem.
    #[error("{0}")]
    Unacceptable(String),
    /// The state directory cannot be read or written.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
}

impl ControllerError {
    /// Returns whether the same request may succeed later without the operator's help.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::UnexpectedResponse { .. } | Self::NotJoined | Self::StateDir(_) => true,
            Self::Problem(problem) => problem.status >= 500 && problem.status != 507 || problem.status == 429,
            Self::Untrusted { .. } | Self::CertificateRefused { .. } | Self::Unacceptable(_) => false,
        }
    }

    /// Returns whether the authenticated controller refuses this node's certificate as ended.
    pub(super) fn says_that_our_certificate_ended(&self) -> bool {
        matches!(self, Self::CertificateRefused { alert: AlertDescription::CertificateExpired, .. })
    }

    /// Returns whether the controller says that this node is no member. Unlike in
    /// [`Self::is_refusal_of_this_node`], it is the controller that refuses.
    pub(super) fn is_refusal_by_the_controller(&self) -> bool {
        !matches!(self, Self::Untrusted { .. }) && self.is_refusal_of_this_node()
    }

    /// Returns whether the controller does not accept this node as a member, or this node does not
    /// trust the controller. In that case a new join token may help, because it pins the
    /// controller's CA.
    pub fn is_refusal_of_this_node(&self) -> bool {
        match self {
            Self::CertificateRefused { .. } | Self::Untrusted { .. } => true,
            Self::Problem(problem) => matches!(problem.status, 401 | 403 | 404 | 410),
            _ => false,
        }
    }
}

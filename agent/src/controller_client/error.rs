//! What can go wrong between this node and the controller.

use edge_types::api::Problem;

use crate::state_dir::StoreError;

/// Why something asked of the controller was not had. Never holds a token or a key.
#[derive(Debug, thiserror::Error)]
pub enum CloudError {
    /// No connection, or one that broke.
    #[error("controller {url} cannot be reached: {why}")]
    Unreachable {
        /// Which controller.
        url: String,
        /// What the network said.
        why: String,
    },
    /// Somebody answered who is not our controller.
    #[error("controller {url} is not trusted: {why}")]
    Untrusted {
        /// Where.
        url: String,
        /// What its certificate lacks, and what to do.
        why: String,
    },
    /// It ended the TLS connection because of this node's certificate.
    #[error(
        "controller {url} refuses this node's certificate ({why}): it has expired or the node was deregistered; \
         if it is to belong to the cluster, put a new join token into the token file"
    )]
    CertificateRefused {
        /// Which controller.
        url: String,
        /// The alert that came.
        why: String,
    },
    /// It answered with a problem document.
    #[error("the controller answers {}: {}: {}", .0.status, .0.title, .0.detail)]
    Problem(Problem),
    /// It answered something that no controller of ours says.
    #[error(
        "controller {url} answers {what}, which is not what was expected ({expected}): is it an edge-controller of this release?"
    )]
    Answer {
        /// Which controller.
        url: String,
        /// What came.
        what: String,
        /// What was expected.
        expected: &'static str,
    },
    /// This node is no member yet.
    #[error("this node has not joined the cluster yet: `edge-agent status` says why")]
    NotJoined,
    /// An answer cannot be taken as it is.
    #[error("{0}")]
    Unacceptable(String),
    /// What came could not be kept on disk.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl CloudError {
    /// Whether the same may succeed later without anybody doing anything.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Answer { .. } | Self::NotJoined | Self::Store(_) => true,
            Self::Problem(problem) => problem.status >= 500 && problem.status != 507 || problem.status == 429,
            Self::Untrusted { .. } | Self::CertificateRefused { .. } | Self::Unacceptable(_) => false,
        }
    }

    /// Whether the controller no longer (or not yet) takes this node for a member, or this node it
    /// for the controller: a new join token, which says by which authority the controller is known,
    /// is then worth a try.
    pub fn is_refusal_of_this_node(&self) -> bool {
        match self {
            Self::CertificateRefused { .. } | Self::Untrusted { .. } => true,
            Self::Problem(problem) => matches!(problem.status, 401 | 403 | 404 | 410),
            _ => false,
        }
    }
}

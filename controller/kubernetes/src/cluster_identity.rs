//! Checks that the API server still belongs to the same cluster. An object that is missing in
//! another cluster does not mean that it was deleted in ours.
//!
//! A cluster is identified by the UID of its namespace `kube-system`, as is customary. That
//! namespace is as old as the cluster, and its UID is unique. The store records the UID when the
//! controller first sees it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use edge_controller_domain::registry::Registry;
use edge_controller_domain::store::Note;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};

use super::client::{REQUEST, explain};

const NAMESPACE: &str = "kube-system";

/// A check that compares the cluster that answers with the known cluster.
#[derive(Clone)]
pub struct ClusterIdentity {
    api: Api<Namespace>,
    registry: Registry,
    /// UID of another cluster that the operator accepts in place of the known cluster.
    accepted: Option<String>,
    /// The last known UID. The store of a cluster that was built again no longer contains the UID.
    seen: Arc<Mutex<Option<String>>>,
}

/// The reason why the controller does not rely on the API server's answers.
#[derive(Debug, thiserror::Error)]
pub enum ClusterIdentityError {
    /// It is not known which cluster answers.
    #[error("cannot identify the cluster that answers: {0}")]
    Unknown(String),
    /// The API server belongs to another cluster than the registered nodes.
    #[error(
        "the API server is of another cluster: its namespace kube-system has the UID {found}, and nodes are registered here by the cluster {known}. Nothing \
         that it says of Nodes is believed. Correct `kubernetes.kubeconfig`; where that cluster was built again, or shall be used from now on, set \
         `kubernetes.accept_cluster = \"{found}\"`"
    )]
    Other {
        /// UID of the cluster that answers.
        found: String,
        /// UID of the known cluster.
        known: String,
    },
}

impl ClusterIdentity {
    /// Makes a check of the cluster that the client reaches.
    pub fn new(client: &Client, registry: Registry, accepted: Option<String>) -> Self {
        Self { api: Api::all(client.clone()), registry, accepted, seen: Arc::default() }
    }

    /// Checks that the cluster that answers now is the known cluster.
    ///
    /// # Errors
    /// Returns an error if another cluster answers, or the check is not possible.
    pub async fn check(&self) -> Result<(), ClusterIdentityError> {
        let found = uid(&self.api).await.map_err(ClusterIdentityError::Unknown)?;
        let seen = self.seen().clone();
        let noted = self
            .registry
            .note(Note::Cluster)
            .await
            .map_err(|error| ClusterIdentityError::Unknown(error.to_string()))?;
        match noted.clone().or(seen) {
            Some(known) if known == found => {
                *self.seen() = Some(found.clone());
                if noted.is_some() {
                    return Ok(());
                }
            }
            Some(known) if self.accepted.as_ref() != Some(&found) => {
                return Err(ClusterIdentityError::Other { found, known });
            }
            Some(known) => tracing::warn!(known, found, "another cluster is accepted (kubernetes.accept_cluster)"),
            None => tracing::info!(cluster = found, "noted which cluster this is"),
        }
        let noted = self.registry.set_note(Note::Cluster, found.clone()).await;
        noted.map_err(|error| ClusterIdentityError::Unknown(error.to_string()))?;
        *self.seen() = Some(found);
        Ok(())
    }

    fn seen(&self) -> MutexGuard<'_, Option<String>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the UID of the cluster that answers.
///
/// # Errors
/// Returns an error if the API server cannot be reached.
pub async fn uid(api: &Api<Namespace>) -> Result<String, String> {
    match tokio::time::timeout(REQUEST, api.get_metadata(NAMESPACE)).await {
        Ok(Ok(namespace)) => namespace.metadata.uid.ok_or_else(|| format!("the namespace {NAMESPACE} has no UID")),
        Ok(Err(error)) => Err(explain("namespaces", &error)),
        Err(_) => Err(format!("the API server did not answer about namespaces within {} s", REQUEST.as_secs())),
    }
}

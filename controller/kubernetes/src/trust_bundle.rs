//! Publishes the trusted certificates in a ConfigMap, which the agents' pods mount. Agents that
//! join with their service account token authenticate the controller with these certificates.
//!
//! Only the leader writes the ConfigMap. A replica that has not yet read a rollover would restore
//! the old certificates.

use std::sync::Arc;
use std::time::Duration;

use edge_controller_domain::ca::Ca;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::sync::watch;

use super::client::{ApiFailures, REQUEST, explain};

/// Name of the ConfigMap.
pub const NAME: &str = "edge-cni-trust";
/// Key in the ConfigMap for the certificates, in PEM. The signing authority's certificate is the
/// first.
pub const CERTIFICATES: &str = "ca.crt";
/// Interval at which the ConfigMap is compared with the authorities. It is repaired if somebody has
/// changed or deleted it.
const PERIOD: Duration = Duration::from_secs(10);
const WHAT: &str = "configmaps";

/// The publisher that keeps the ConfigMap up to date with the authorities.
pub struct TrustBundle {
    api: Api<ConfigMap>,
    ca: Arc<Ca>,
    api_failures: ApiFailures,
}

impl TrustBundle {
    /// Makes a publisher for this namespace.
    pub fn new(client: &Client, namespace: &str, ca: Arc<Ca>, api_failures: ApiFailures) -> Self {
        Self { api: Api::namespaced(client.clone(), namespace), ca, api_failures }
    }

    /// Publishes the certificates while this replica leads. Returns when a sender is gone.
    pub async fn run(self, mut leading: watch::Receiver<bool>) {
        let mut changes = self.ca.subscribe();
        loop {
            if leading.wait_for(|leads| *leads).await.is_err() {
                return;
            }
            let certificates = changes.borrow_and_update().anchors().concat();
            match tokio::time::timeout(REQUEST, self.publish(&certificates)).await {
                Ok(Ok(())) => self.api_failures.clear(NAME),
                // Nodes that have joined do not need the ConfigMap.
                Ok(Err(error)) => self.api_failures.record_minor(NAME, explain(WHAT, &error)),
                Err(_) => self.api_failures.record_minor(NAME, format!("the API server does not answer about {WHAT}")),
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
    }

    /// Writes these certificates into the ConfigMap. If two replicas write at the same time, the
    /// API server refuses one write, and that replica checks again later.
    async fn publish(&self, certificates: &str) -> kube::Result<()> {
        let found = self.api.get_opt(NAME).await?;
        let there = found.is_some();
        let mut map = found.unwrap_or_else(|| ConfigMap {
            metadata: ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() },
            ..ConfigMap::default()
        });
        if map.data.as_ref().and_then(|data| data.get(CERTIFICATES)).is_some_and(|published| published == certificates)
        {
            return Ok(());
        }
        map.data.get_or_insert_default().insert(CERTIFICATES.into(), certificates.into());
        // A key may be in only one of the two maps.
        if let Some(binary) = &mut map.binary_data {
            binary.remove(CERTIFICATES);
        }
        let post = PostParams::default();
        if there {
            self.api.replace(NAME, &post, &map).await?;
        } else {
            self.api.create(&post, &map).await?;
        }
        tracing::info!(configmap = NAME, "published the trusted certificates");
        Ok(())
    }
}

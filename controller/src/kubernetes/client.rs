//! Reaching the API server.

use std::path::Path;

use anyhow::Context as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// Makes the client that all parts share; with a kubeconfig, or as the service account of the pod that we run in.
pub async fn connect(kubeconfig: Option<&Path>) -> anyhow::Result<Client> {
    let config = match kubeconfig {
        Some(path) => {
            let read = Kubeconfig::read_from(path).with_context(|| format!("the kubeconfig {}", path.display()))?;
            Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("the kubeconfig {}", path.display()))?
        }
        None => Config::incluster().context(
            "not running in a pod with a service account; outside of one name a kubeconfig (`kubernetes.kubeconfig`)",
        )?,
    };
    Client::try_from(config).context("the Kubernetes client")
}

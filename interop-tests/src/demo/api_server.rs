//! The Kubernetes API server in the demo's Kubernetes scenario.

use std::path::PathBuf;

use anyhow::Result;

use crate::kube::{ControlPlane, Options};
use crate::topology::Namespaces;

/// An API server, and the controller's kubeconfig for it.
pub(super) struct Kubernetes {
    pub(super) plane: ControlPlane,
    kubeconfig: PathBuf,
}

impl Kubernetes {
    /// Starts the API server on a host, with the custom resources, the controller's account and
    /// rights, and a Node object for each node. The flag of each node is true if the node is an
    /// edge.
    ///
    /// # Errors
    /// Returns an error if the API server does not come up, or refuses a manifest in `deploy/`.
    pub(super) fn start(host: &Namespaces, nodes: &[(&str, bool)]) -> Result<Self> {
        let (prefix, logs) = (host.nsenter(), Some(host.out().join("kube")));
        let plane = ControlPlane::start_with("demo", Options { prefix, logs, ..Options::default() })?;
        let deploy = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        plane.apply(&deploy.join("crds"))?;
        for manifest in ["kubernetes/10-rbac.yaml", "kubernetes/15-node-labels.yaml"] {
            plane.apply(&deploy.join(manifest))?;
        }
        let nodes = nodes.iter().map(|(node, is_edge)| {
            let labels = if *is_edge { "{node-role.kubernetes.io/edge: \"\"}" } else { "{}" };
            format!("---\n{{apiVersion: v1, kind: Node, metadata: {{name: {node}, labels: {labels}}}}}\n")
        });
        plane.apply_text(&nodes.collect::<String>())?;
        let kubeconfig = plane.kubeconfig_for_service_account("edge-cni", "edge-controller")?;
        Ok(Self { plane, kubeconfig })
    }

    /// Returns the `[kubernetes]` table of the controller's configuration.
    pub(super) fn controller_config(&self) -> String {
        format!(
            "[kubernetes]\nkubeconfig = {:?}\nnamespace = \"edge-cni\"\nstore = true\nlease_seconds = 3\n",
            self.kubeconfig
        )
    }

    /// Returns the leading replica's identity.
    ///
    /// # Errors
    /// Returns an error if the API server does not answer.
    pub(super) fn leader(&self) -> Result<String> {
        let lease = ["get", "lease", "edge-cni-controller", "--namespace=edge-cni"];
        self.plane.kubectl(&[&lease[..], &["--output=jsonpath={.spec.holderIdentity}"]].concat())
    }

    /// Sets or (`key-`) removes a node's label.
    ///
    /// # Errors
    /// Returns an error if the API server refuses the change.
    pub(super) fn label(&self, node: &str, label: &str) -> Result<()> {
        self.plane.kubectl(&["label", "node", node, label, "--overwrite"]).map(drop)
    }
}

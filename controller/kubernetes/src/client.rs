//! Connects to the API server and explains its errors.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use edge_types::error::with_causes;
pub use kube::Client;
use kube::Config;
use kube::config::{KubeConfigOptions, Kubeconfig};

/// Time limit for a request. A request that is not answered in time fails, with an unknown outcome.
pub const REQUEST: Duration = Duration::from_secs(10);
/// Time limit for opening a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// Manifest with the permissions that the controller needs.
const RIGHTS: &str = "deploy/kubernetes/10-rbac.yaml";
/// Manifests of the custom resource definitions.
const DEFINITIONS: &str = "deploy/crds";

/// Makes the client that all parts of the controller share, from a kubeconfig or as the service
/// account of the controller's pod.
///
/// # Errors
/// Returns an error if the kubeconfig cannot be read, or if there is no kubeconfig and this is not
/// a pod with a service account.
pub async fn connect(kubeconfig: Option<&Path>) -> anyhow::Result<Client> {
    let mut config = match kubeconfig {
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
    config.connect_timeout = Some(CONNECT);
    // The caller decides which requests are repeated and when. A create that is repeated blindly
    // would conflict with itself.
    config.default_retry = false;
    Client::try_from(config).context("the Kubernetes client")
}

/// Explains an error of a request about `what` (plural and group), with the command that remedies
/// it.
pub fn explain(what: &str, error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if lacks_kind(status) => format!(
            "the API server does not know {what} ({}): run kubectl apply -f {DEFINITIONS}",
            status.message.trim()
        ),
        kube::Error::Api(status) if lacks_namespace(status) => format!(
            "the API server has no namespace for {what} ({}): run kubectl apply -f {RIGHTS}, which makes the namespace edge-cni, or make the one \
             that is configured (`kubernetes.namespace`)",
            status.message
        ),
        kube::Error::Api(status) if status.message.contains("custom resource definition is terminating") => format!(
            "the API server writes no {what} ({}): when their definition is gone run kubectl apply -f {DEFINITIONS}",
            status.message
        ),
        kube::Error::Api(status) if status.is_forbidden() => format!(
            "the API server refuses {what}: {}; the controller's rights are in {RIGHTS}: run kubectl apply -f {RIGHTS}, and \
             check that it runs as the service account named there",
            status.message
        ),
        kube::Error::Api(status) if status.code == 401 => format!(
            "the API server did not authenticate the request for {what} ({}): the token or certificate is not of this cluster, or has expired",
            status.message
        ),
        kube::Error::Api(status) => {
            format!("the API server answers {} to a request about {what}: {}", status.code, status.message)
        }
        other => format!("a request to the API server about {what} failed: {}", with_causes(other)),
    }
}

/// Returns whether a 404 means that the kind is missing, and not only one object.
pub fn lacks_kind(status: &kube::core::Status) -> bool {
    status.code == 404 && status.details.as_ref().is_none_or(|details| details.name.is_empty())
}

/// Returns whether a 404 means that the namespace of a new object is missing.
fn lacks_namespace(status: &kube::core::Status) -> bool {
    status.code == 404 && status.details.as_ref().is_some_and(|details| details.kind == "namespaces")
}

/// Returns whether a 404 means that one object is missing.
pub fn is_absent(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404 && !lacks_kind(status))
}

/// The failures at present, for logs and for readiness.
#[derive(Debug, Clone, Default)]
pub struct ApiFailures {
    failing: Arc<Mutex<BTreeMap<String, ApiFailure>>>,
    lacking: Arc<Mutex<BTreeSet<String>>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ApiFailure {
    why: String,
    /// Whether nodes are served despite this failure, and only people get less information.
    minor: bool,
}

impl ApiFailures {
    /// Records a failure that affects serving nodes. The failure is logged when it is new.
    pub fn record(&self, what: &str, why: String) {
        self.note(what, ApiFailure { why, minor: false });
    }

    /// Records a failure that affects only people, such as missing Events. The failure is logged
    /// when it is new.
    pub fn record_minor(&self, what: &str, why: String) {
        self.note(what, ApiFailure { why, minor: true });
    }

    /// Sets the resources, as plural and group, for which the controller's account lacks a right.
    /// All replicas lack the same rights, so sending nodes to another replica would not help. Such
    /// failures count as minor.
    pub fn set_lacking(&self, resources: BTreeSet<String>) {
        *self.lacking.lock().unwrap_or_else(PoisonError::into_inner) = resources;
    }

    fn note(&self, what: &str, failure: ApiFailure) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = failing.insert(what.to_owned(), failure.clone());
        if before.as_ref() != Some(&failure) {
            tracing::warn!(what, "{}; the last known state stays in force", failure.why);
        }
    }

    /// Removes the failure of `what`, because `what` works again.
    pub fn clear(&self, what: &str) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        if failing.remove(what).is_some() {
            tracing::info!(what, "works again");
        }
    }

    /// Returns the reasons of all failures, joined by `; `; `None` if there are no failures.
    pub fn all_reasons(&self) -> Option<String> {
        self.join_reasons(|_, _| true)
    }

    /// Returns the failures that affect only people or all replicas alike; `None` if there are
    /// none.
    pub fn minor_reasons(&self) -> Option<String> {
        self.join_reasons(|failure, shared| failure.minor || shared)
    }

    /// Returns the failures that are a reason to send nodes to another replica; `None` if there are
    /// none.
    pub fn serving_reasons(&self) -> Option<String> {
        self.join_reasons(|failure, shared| !failure.minor && !shared)
    }

    /// Counts the failures in [`Self::serving_reasons`] and those in [`Self::minor_reasons`].
    pub fn counts(&self) -> (usize, usize) {
        let lacking = self.lacking.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        let minor = failing.iter().filter(|(what, failure)| failure.minor || lacking.contains(*what)).count();
        (failing.len() - minor, minor)
    }

    /// Joins the reasons of the failures that `counts` selects. Its arguments are a failure and
    /// whether all replicas share that failure.
    fn join_reasons(&self, counts: impl Fn(&ApiFailure, bool) -> bool) -> Option<String> {
        let lacking = self.lacking.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = failing.iter().filter(|(what, failure)| counts(failure, lacking.contains(*what)));
        let all: Vec<&str> = counted.map(|(_, failure)| failure.why.as_str()).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}

/// Reads a `resourceVersion` as a number. Versions of one kind can be compared: the API guarantees
/// this since Kubernetes 1.35 (KEP-5504), and earlier releases behave in the same way. Versions of
/// different kinds can be compared if all kinds are in one etcd, because the versions are etcd's
/// revisions. So an API server with some of our kinds in a separate etcd
/// (`--etcd-servers-overrides`) is not supported.
///
/// # Errors
/// Returns an error if the `resourceVersion` is not a number.
pub fn version(text: Option<&str>) -> Result<u64, String> {
    let text = text.unwrap_or_default();
    text.parse().map_err(|_| format!("resourceVersion {text:?} is not a number: this API server cannot be followed"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    #[test]
    fn a_missing_kind_or_permission_is_explained_with_the_manifest_that_adds_it() {
        let missing = Status::failure("the server could not find the requested resource", "NotFound").with_code(404);
        let said = explain("segments.edge-cni.io", &kube::Error::Api(missing.boxed()));
        assert!(said.contains("segments.edge-cni.io") && said.contains("kubectl apply -f deploy/crds"), "{said}");
        let ending = "segments.edge-cni.io \"x\" is forbidden: create not allowed while custom resource definition is terminating";
        let ending = Status::failure(ending, "Forbidden").with_code(403);
        let said = explain("segments.edge-cni.io", &kube::Error::Api(ending.boxed()));
        assert!(said.contains("kubectl apply -f deploy/crds") && !said.contains("10-rbac.yaml"), "{said}");
        let denied = Status::failure("segments.edge-cni.io is forbidden", "Forbidden").with_code(403);
        let said = explain("segments.edge-cni.io", &kube::Error::Api(denied.boxed()));
        assert!(said.contains("10-rbac.yaml"), "{said}");
    }

    #[test]
    fn a_missing_namespace_is_explained_with_the_manifest_that_adds_it() {
        let missing = r#"{"code": 404, "reason": "NotFound", "message": "namespaces \"edge-cni\" not found",
            "details": {"name": "edge-cni", "kind": "namespaces"}}"#;
        let missing: Status = serde_json::from_str(missing).unwrap();
        let said = explain("secrets", &kube::Error::Api(missing.boxed()));
        assert!(
            said.contains("namespaces \"edge-cni\" not found") && said.contains("deploy/kubernetes/10-rbac.yaml"),
            "{said}"
        );
    }

    #[test]
    fn an_absent_object_is_not_an_absent_kind() {
        let absent = r#"{"code": 404, "message": "edgenodes \"a\" not found", "details": {"name": "a"}}"#;
        let absent: Status = serde_json::from_str(absent).unwrap();
        assert!(is_absent(&kube::Error::Api(absent.boxed())));
        let unknown = Status::failure("404 page not found", "NotFound").with_code(404);
        assert!(!is_absent(&kube::Error::Api(unknown.boxed())));
    }

    #[test]
    fn failures_are_listed_until_they_work_again() {
        let api_failures = ApiFailures::default();
        assert_eq!(api_failures.serving_reasons(), None);
        api_failures.record("b", "two".into());
        api_failures.record("a", "one".into());
        api_failures.record_minor("events", "no Events".into());
        assert_eq!(api_failures.serving_reasons().as_deref(), Some("one; two"), "nodes are served without events");
        assert_eq!(api_failures.counts(), (2, 1));
        api_failures.set_lacking(["a".to_owned()].into());
        assert_eq!(api_failures.serving_reasons().as_deref(), Some("two"), "all replicas lack the right to a");
        assert_eq!(api_failures.minor_reasons().as_deref(), Some("one; no Events"));
        assert_eq!(api_failures.counts(), (1, 2));
        api_failures.set_lacking(Default::default());
        assert_eq!(api_failures.serving_reasons().as_deref(), Some("one; two"));
        api_failures.clear("a");
        api_failures.clear("b");
        assert_eq!(api_failures.serving_reasons(), None);
    }
}

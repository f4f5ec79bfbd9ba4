//! Connects to the API server and explains its errors.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
pub struct ApiFailures(Arc<Mutex<Current>>);

#[derive(Debug, Default)]
struct Current {
    failing: BTreeMap<String, ApiFailure>,
    /// What has not worked since this replica started, of what it needs once before it is ready.
    awaited: BTreeSet<String>,
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

    /// Sets what must have worked once before this replica is ready.
    pub fn await_first(&self, needs: &[&str]) {
        self.current().awaited = needs.iter().map(|what| (*what).to_owned()).collect();
    }

    /// Takes the resources, as plural and group, for which the controller's account lacks a right.
    /// All replicas lack the same rights. So if this replica needs one of them before it is ready,
    /// it is ready without what it still needs, and stays ready when the account gets the rights.
    pub fn note_lacking(&self, resources: &BTreeSet<String>) {
        let mut current = self.current();
        if !current.awaited.is_disjoint(resources) {
            // What is not lacking may have to wait for what is.
            current.awaited.clear();
        }
    }

    fn note(&self, what: &str, failure: ApiFailure) {
        let before = self.current().failing.insert(what.to_owned(), failure.clone());
        if before.as_ref() != Some(&failure) {
            tracing::warn!(what, "{}; the last known state stays in force", failure.why);
        }
    }

    /// Removes the failure of `what`, because `what` works, or works again.
    pub fn clear(&self, what: &str) {
        let mut current = self.current();
        current.awaited.remove(what);
        if current.failing.remove(what).is_some() {
            tracing::info!(what, "works again");
        }
    }

    /// Returns the reasons of all failures, joined by `; `; `None` if there are no failures.
    pub fn all_reasons(&self) -> Option<String> {
        self.current().join_reasons(|_, _| true)
    }

    /// Returns the failures that affect serving nodes; `None` if there are none.
    pub fn serving_reasons(&self) -> Option<String> {
        self.current().join_reasons(|_, failure| !failure.minor)
    }

    /// Returns why this replica is not ready; `None` if it is. A replica that has read all that it
    /// needs stays ready without the API server: it serves what it knows, and usually all
    /// replicas have lost the API server. A replica that has not read it yet must not replace one
    /// that has.
    pub fn unready_reasons(&self) -> Option<String> {
        let current = self.current();
        let why = |what: &String| match current.failing.get(what) {
            Some(failure) => failure.why.clone(),
            None => format!("{what}: not read yet since this replica started"),
        };
        (!current.awaited.is_empty()).then(|| current.awaited.iter().map(why).collect::<Vec<_>>().join("; "))
    }

    /// Returns the failures that are not among [`Self::unready_reasons`]; `None` if there are none.
    pub fn other_reasons(&self) -> Option<String> {
        let current = self.current();
        current.join_reasons(|what, _| !current.awaited.contains(what))
    }

    /// Counts the failures in [`Self::serving_reasons`] and the minor ones.
    pub fn counts(&self) -> (usize, usize) {
        let current = self.current();
        let minor = current.failing.values().filter(|failure| failure.minor).count();
        (current.failing.len() - minor, minor)
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Current {
    /// Joins the reasons of the failures that `counts` selects. Its arguments are what fails, and
    /// the failure.
    fn join_reasons(&self, counts: impl Fn(&String, &ApiFailure) -> bool) -> Option<String> {
        let counted = self.failing.iter().filter(|(what, failure)| counts(what, failure));
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
        api_failures.clear("a");
        api_failures.clear("b");
        assert_eq!(api_failures.serving_reasons(), None);
    }

    #[test]
    fn a_replica_is_ready_once_it_has_read_what_it_needs_and_stays_ready_through_later_failures() {
        let api_failures = ApiFailures::default();
        api_failures.await_first(&["a", "b"]);
        api_failures.clear("b");
        assert_eq!(api_failures.unready_reasons().as_deref(), Some("a: not read yet since this replica started"));
        api_failures.record("a", "refused".into());
        api_failures.record("b", "gone".into());
        assert_eq!(api_failures.unready_reasons().as_deref(), Some("refused"));
        assert_eq!(api_failures.other_reasons().as_deref(), Some("gone"));
        api_failures.note_lacking(&["b".to_owned()].into());
        assert_eq!(api_failures.unready_reasons().as_deref(), Some("refused"), "the right to a is there");
        api_failures.note_lacking(&["a".to_owned()].into());
        assert_eq!(api_failures.unready_reasons(), None, "all replicas lack the right to a");
        assert_eq!(api_failures.other_reasons().as_deref(), Some("refused; gone"));
        assert_eq!(api_failures.counts(), (2, 0), "nodes are affected all the same");
        api_failures.note_lacking(&BTreeSet::new());
        assert_eq!(api_failures.unready_reasons(), None, "the right is given back, and a is not read yet");
        api_failures.clear("a");
        api_failures.record("a", "gone too".into());
        assert_eq!(api_failures.unready_reasons(), None, "it serves what it knows");
        assert_eq!(api_failures.other_reasons().as_deref(), Some("gone too; gone"));
    }
}

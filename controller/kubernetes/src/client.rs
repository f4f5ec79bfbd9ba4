//! Reaching the API server, and saying what is wrong when it refuses.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use edge_types::error::with_causes;
pub use kube::Client;
use kube::Config;
use kube::config::{KubeConfigOptions, Kubeconfig};

/// A request that is not answered within this time counts as failed; what became of it is not known
/// then.
pub const REQUEST: Duration = Duration::from_secs(10);
/// Time for a connection to come about.
const CONNECT: Duration = Duration::from_secs(5);

/// Where the rights are that the controller needs.
const RIGHTS: &str = "deploy/kubernetes/10-rbac.yaml";
/// Where the definitions of the custom resources are.
const DEFINITIONS: &str = "deploy/crds";

/// Makes the client that all parts share; with a kubeconfig, or as the service account of the pod
/// that we run in.
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
    // What to repeat, and when, is decided where it is known what was asked: a create that is
    // repeated would meet itself.
    config.default_retry = false;
    Client::try_from(config).context("the Kubernetes client")
}

/// What the API server's refusal of a request about `what` (a plural with its group) means, and
/// what to do.
pub fn explain(what: &str, error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if lacks_kind(status) => format!(
            "the API server does not know {what} ({}): run kubectl apply -f {DEFINITIONS}",
            status.message.trim()
        ),
        kube::Error::Api(status) if lacks_namespace(status) => format!(
            "the API server has no place for {what} ({}): run kubectl apply -f {RIGHTS}, which makes the namespace edge-cni, or make the one \
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
            "the API server does not know who asks for {what} ({}): the token or certificate is not of this cluster, or expired",
            status.message
        ),
        kube::Error::Api(status) => {
            format!("the API server answers {} to a request about {what}: {}", status.code, status.message)
        }
        other => format!("a request to the API server about {what} failed: {}", with_causes(other)),
    }
}

/// Whether a 404 is about the kind and not about one object of it.
pub fn lacks_kind(status: &kube::core::Status) -> bool {
    status.code == 404 && status.details.as_ref().is_none_or(|details| details.name.is_empty())
}

/// Whether a 404 is about the namespace of an object that was to be made.
fn lacks_namespace(status: &kube::core::Status) -> bool {
    status.code == 404 && status.details.as_ref().is_some_and(|details| details.kind == "namespaces")
}

/// Whether a 404 is about one object.
pub fn is_absent(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404 && !lacks_kind(status))
}

/// What does not work at present; for logs, and for whoever asks whether we are ready.
#[derive(Debug, Clone, Default)]
pub struct Obstacles(Arc<Mutex<BTreeMap<String, Obstacle>>>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Obstacle {
    why: String,
    /// Nodes are served as ever; only people see less.
    aside: bool,
}

impl Obstacles {
    /// Something does not work that serving nodes depends on. Logged when it is new.
    pub fn fails(&self, what: &str, why: String) {
        self.note(what, Obstacle { why, aside: false });
    }

    /// Something does not work that only people miss, such as events. Logged when it is new.
    pub fn fails_aside(&self, what: &str, why: String) {
        self.note(what, Obstacle { why, aside: true });
    }

    fn note(&self, what: &str, obstacle: Obstacle) {
        let mut failing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = failing.insert(what.to_owned(), obstacle.clone());
        if before.as_ref() != Some(&obstacle) {
            tracing::warn!(what, "{}; what was known goes on to hold", obstacle.why);
        }
    }

    /// It works.
    pub fn works(&self, what: &str) {
        let mut failing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if failing.remove(what).is_some() {
            tracing::info!(what, "works again");
        }
    }

    /// All that does not work, whoever misses it.
    pub fn everything(&self) -> Option<String> {
        self.said(|_| true)
    }

    /// All that does not work and that only people miss, if anything.
    pub fn aside(&self) -> Option<String> {
        self.said(|obstacle| obstacle.aside)
    }

    /// All that does not work and that serving nodes depends on, if anything.
    pub fn all(&self) -> Option<String> {
        self.said(|obstacle| !obstacle.aside)
    }

    fn said(&self, counts: impl Fn(&Obstacle) -> bool) -> Option<String> {
        let failing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: Vec<&str> =
            failing.values().filter(|obstacle| counts(obstacle)).map(|obstacle| obstacle.why.as_str()).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}

/// A `resourceVersion` as a number. Those of one kind can be compared: the API promises it since
/// Kubernetes 1.35 (KEP-5504), and it was so before. Those of different kinds can be where all of
/// them are in one etcd, whose revisions they are: an API server that keeps some of our kinds in an
/// etcd of their own (`--etcd-servers-overrides`) does not do.
pub fn version(text: Option<&str>) -> Result<u64, String> {
    let text = text.unwrap_or_default();
    text.parse().map_err(|_| format!("resourceVersion {text:?} is not a number: this API server cannot be followed"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    #[test]
    fn a_missing_kind_and_a_missing_right_are_told_with_the_manifest_that_brings_them() {
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
    fn a_missing_namespace_is_told_with_the_manifest_that_brings_it() {
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
    fn health_is_everything_that_fails_until_it_works_again() {
        let obstacles = Obstacles::default();
        assert_eq!(obstacles.all(), None);
        obstacles.fails("b", "two".into());
        obstacles.fails("a", "one".into());
        obstacles.fails_aside("events", "nobody is told".into());
        assert_eq!(obstacles.all().as_deref(), Some("one; two"), "nodes are served without events");
        obstacles.works("a");
        obstacles.works("b");
        assert_eq!(obstacles.all(), None);
    }
}

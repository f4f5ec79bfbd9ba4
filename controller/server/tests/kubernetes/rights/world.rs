//! The cluster, its audit log and the roles of the account.

use std::path::PathBuf;
use std::time::Duration;

use interop_tests::kube::{ControlPlane, Options};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule, Role};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::right::Right;
use crate::cluster::{Cluster, NAMESPACE, as_user, deploy, install};
use crate::harness::{Cloud, HttpResponse};

const ACCOUNT: &str = "system:serviceaccount:edge-cni:edge-controller";
/// The node that lives in the cluster before a right is taken away.
pub(super) const OLD: &str = "edge-0";
/// Longest wait for what must happen.
const PATIENCE: Duration = Duration::from_secs(90);

/// The cluster of this test, with an audit log of what the controller asks for.
pub(super) struct World {
    pub(super) plane: ControlPlane,
    pub(super) administrator: Cluster,
    pub(super) account: PathBuf,
    pub(super) pod_token: String,
    pub(super) audit: PathBuf,
    pub(super) roles: (ClusterRole, Role),
    pub(super) _directory: tempfile::TempDir,
}

impl World {
    pub(super) async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (policy, audit) = (directory.path().join("policy.yaml"), directory.path().join("audit.log"));
        let text = format!(
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\n\
             rules: [{{level: Metadata, users: [{ACCOUNT}]}}, {{level: None}}]\n"
        );
        std::fs::write(&policy, text).unwrap();
        let flags = [
            format!("--audit-policy-file={}", policy.display()),
            format!("--audit-log-path={}", audit.display()),
            "--audit-log-mode=blocking".to_owned(),
        ];
        let plane =
            ControlPlane::start_with("rights", Options { api_server: flags.into(), ..Options::default() }).unwrap();
        plane.apply(&deploy("kubernetes/10-rbac.yaml")).unwrap();
        plane.apply(&deploy("kubernetes/15-node-labels.yaml")).unwrap();
        install(&plane);
        let role = "node-restriction.kubernetes.io/edge-cni-role: hub";
        plane
            .apply_text(&format!(
                "apiVersion: v1\nkind: Node\nmetadata: {{name: {OLD}, labels: {{node-role.kubernetes.io/edge: ''}}}}\n---\n\
                 apiVersion: v1\nkind: Node\nmetadata: {{name: cloud-1, labels: {{{role}}}}}\n---\n\
                 apiVersion: v1\nkind: Pod\nmetadata: {{name: hub, namespace: {NAMESPACE}}}\nspec:\n  \
                 serviceAccountName: hub-agent\n  nodeName: cloud-1\n  automountServiceAccountToken: false\n  \
                 containers: [{{name: a, image: a}}]\n"
            ))
            .unwrap();
        let words = ["create", "token", "hub-agent", "--namespace", NAMESPACE, "--audience", "edge-cni"];
        let bound = ["--duration=6h", "--bound-object-kind", "Pod", "--bound-object-name", "hub"];
        let pod_token = plane.kubectl(&[&words[..], &bound].concat()).unwrap().trim().to_owned();
        let account = plane.kubeconfig_for_service_account(NAMESPACE, "edge-controller").unwrap();
        let administrator = as_user(plane.kubeconfig()).await;
        let roles: Api<Role> = Api::namespaced(administrator.client.clone(), NAMESPACE);
        let everywhere: Api<ClusterRole> = Api::all(administrator.client.clone());
        let roles = (everywhere.get("edge-cni-controller").await.unwrap(), roles.get("edge-controller").await.unwrap());
        Self { plane, administrator, account, pod_token, audit, roles, _directory: directory }
    }

    pub(super) fn client(&self) -> Client {
        self.administrator.client.clone()
    }

    /// All rights of the two roles, each for itself.
    pub(super) fn rights(&self) -> Vec<Right> {
        let mut rights = Right::all(self.roles.0.rules.as_deref().unwrap_or_default(), true);
        rights.extend(Right::all(self.roles.1.rules.as_deref().unwrap_or_default(), false));
        rights
    }

    /// Gives the account all rights except `taken`, and waits until the API server judges by that.
    pub(super) async fn take(&self, taken: &[&Right]) {
        let kept: Vec<Right> = self.rights().into_iter().filter(|right| !taken.contains(&right)).collect();
        let of = |everywhere: bool| {
            Some(kept.iter().filter(|right| right.everywhere == everywhere).map(Right::rule).collect())
        };
        let patch = PatchParams::default();
        let roles: Api<ClusterRole> = Api::all(self.client());
        let rules: Option<Vec<PolicyRule>> = of(true);
        roles.patch("edge-cni-controller", &patch, &Patch::Merge(json!({"rules": rules}))).await.unwrap();
        let roles: Api<Role> = Api::namespaced(self.client(), NAMESPACE);
        let rules: Option<Vec<PolicyRule>> = of(false);
        roles.patch("edge-controller", &patch, &Patch::Merge(json!({"rules": rules}))).await.unwrap();
        for right in self.rights() {
            let wanted = !taken.contains(&&right);
            let may = async || (self.may(&right).await == wanted).then_some(());
            wait(&format!("the account's right {right} to be {wanted}"), may).await.unwrap();
        }
    }

    pub(super) async fn may(&self, right: &Right) -> bool {
        let (resource, subresource) = match right.resource.split_once('/') {
            Some((resource, subresource)) => (resource.to_owned(), Some(subresource.to_owned())),
            None => (right.resource.clone(), None),
        };
        let attributes = ResourceAttributes {
            group: Some(right.group.clone()),
            resource: Some(resource),
            subresource,
            name: right.name.clone(),
            namespace: (!right.everywhere).then(|| NAMESPACE.to_owned()),
            verb: Some(right.verb.clone()),
            ..ResourceAttributes::default()
        };
        let spec = SubjectAccessReviewSpec {
            user: Some(ACCOUNT.into()),
            resource_attributes: Some(attributes),
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let reviews: Api<SubjectAccessReview> = Api::all(self.client());
        reviews.create(&PostParams::default(), &review).await.unwrap().status.unwrap().allowed
    }

    /// The requests that were forbidden since the log had this length.
    pub(super) fn forbidden(&self, since: usize) -> Vec<Value> {
        let log = std::fs::read_to_string(&self.audit).unwrap_or_default();
        let complete = log[since..].rsplit_once('\n').map_or("", |(lines, _)| lines);
        let requests = complete.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        requests.filter(|request| request["responseStatus"]["code"] == 403).collect()
    }

    pub(super) fn audited(&self) -> usize {
        std::fs::metadata(&self.audit).map_or(0, |metadata| usize::try_from(metadata.len()).unwrap())
    }

    pub(super) async fn cloud(&self) -> anyhow::Result<Cloud> {
        let settings = format!(
            "cluster_ranges = [\"10.77.0.0/16\", \"fd77::/104\"]\nv4_prefix = 28\nv6_prefix = 124\n[kubernetes]\n\
             kubeconfig = {:?}\nlease_seconds = 3\n[kubernetes.join]\nhub = \"{NAMESPACE}:hub-agent\"\n",
            self.account
        );
        let cloud = Cloud::try_with(&settings).await?;
        // The place where the nodes of these tests look for it.
        let secrets: Api<Secret> = Api::namespaced(self.client(), NAMESPACE);
        let certificates = secrets.get("edge-cni-ca").await?.data.unwrap().remove("ca.crt").unwrap().0;
        std::fs::write(cloud.directory.path().join("state/ca.crt"), certificates)?;
        Ok(cloud)
    }
}

/// Waits until `probe` finds something.
pub(super) async fn wait<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> Result<T, String> {
    let waited = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(found) = probe().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.map_err(|_| format!("waited {} s for {what}", PATIENCE.as_secs()))
}

pub(super) fn expect(response: HttpResponse, status: u16) -> Result<Value, String> {
    if response.0 == status { Ok(response.1) } else { Err(format!("{}: {}", response.0, response.1)) }
}

//! Tests who may label a Node and which labels count. The tests use kubelets' credentials on an API
//! server with NodeRestriction, as in real clusters.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use interop_tests::kube::suite::Test;
use interop_tests::kube::{ControlPlane, Options, Subject};
use k8s_openapi::api::core::v1::Node as KubeNode;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::behaviour::until;
use crate::cluster::{self, as_user, deploy, run};
use crate::harness::{Cloud, Node, monitoring_page};

pub(crate) const TESTS: &[Test] = &[
    ("a_label_that_a_kubelet_set_puts_its_node_into_no_community", own_label),
    ("no_kubelet_sets_changes_or_removes_a_label_that_says_who_its_node_is", kubelet),
    ("an_edge_is_not_labelled_through_what_writes_on_its_behalf", on_behalf),
    ("a_policy_that_vanishes_takes_no_member_and_lets_none_in", vanishes),
];

const POLICY: &str = "kubernetes/15-node-labels.yaml";
const COMMUNITY: &str = "fabedge/edge-community";
const RESTRICTED: &str = "node-restriction.kubernetes.io/edge-community";

/// The control plane for these tests.
static PLANE: LazyLock<ControlPlane> = LazyLock::new(|| {
    let api_server = vec!["--enable-admission-plugins=NodeRestriction".into()];
    let plane = ControlPlane::start_with("labels", Options { api_server, ..Options::default() }).unwrap();
    plane.apply(&deploy("kubernetes/10-rbac.yaml")).unwrap();
    let controller = Subject::ServiceAccount("edge-cni", "edge-controller");
    plane
        .wait_right(controller, "watch", "validatingadmissionpolicybindings.admissionregistration.k8s.io", true)
        .unwrap();
    plane
});

/// Creates edges as an administrator does, without a policy.
fn begin(nodes: &[&str]) {
    let _ = PLANE.kubectl(&["delete", "--ignore-not-found", "-f", &deploy(POLICY).display().to_string()]);
    PLANE.kubectl(&["delete", "nodes", "--all"]).unwrap();
    for node in nodes {
        let labels = "{node-role.kubernetes.io/edge: \"\"}";
        PLANE
            .apply_text(&format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {node}, labels: {labels}}}\n"))
            .unwrap();
    }
}

/// Returns the kubeconfig of a node's kubelet.
fn kubeconfig(node: &str) -> PathBuf {
    PLANE.kubeconfig_for_user(&format!("system:node:{node}"), Some("system:nodes")).unwrap()
}

/// Runs `kubectl` as this user. Returns its output, or the refusal.
fn ask(who: &Path, words: &[&str]) -> Result<String, String> {
    let out = PLANE.kubectl_command().arg("--kubeconfig").arg(who).args(words).output().unwrap();
    match out.status.success() {
        true => Ok(String::from_utf8(out.stdout).unwrap()),
        false => Err(String::from_utf8(out.stderr).unwrap()),
    }
}

/// Creates a manifest as this user.
fn create(who: &Path, manifest: &str) -> Result<String, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), manifest).unwrap();
    ask(who, &["create", "-f", &file.path().display().to_string()])
}

/// Patches a Node's status as kubelets do. Returns the refusal, if any.
async fn patch_status(who: &Path, node: &str, patch: serde_json::Value) -> Result<(), String> {
    let nodes: Api<KubeNode> = Api::all(as_user(who).await.client);
    let patched = nodes.patch_status(node, &PatchParams::default(), &Patch::Strategic(patch)).await;
    patched.map(drop).map_err(|error| error.to_string())
}

/// Applies the policy, and waits until the API server enforces it.
async fn protect(kubelet: &Path, node: &str) {
    PLANE.apply(&deploy(POLICY)).unwrap();
    until("the policy to be in force", async || {
        ask(kubelet, &["label", "node", node, "edge-cni.io/role=probe", "--dry-run=server"]).err()
    })
    .await;
}

fn label_of(node: &str, label: &str) -> String {
    let label = label.replace('.', "\\.");
    PLANE.kubectl(&["get", "node", node, "-o", &format!("jsonpath={{.metadata.labels.{label}}}")]).unwrap()
}

async fn controller() -> Cloud {
    let kubeconfig = PLANE.kubeconfig_for_service_account("edge-cni", "edge-controller").unwrap();
    Cloud::with(&format!(
        "cluster_ranges = [\"10.77.0.0/20\"]\nv4_prefix = 28\n[kubernetes]\nkubeconfig = {kubeconfig:?}\nstore = false\n"
    ))
    .await
}

/// Waits until `/readyz` contains this text about labels and is still ready.
async fn said(cloud: &Cloud, says: &str) {
    until(says, async || {
        let response = monitoring_page(cloud.server.observe[0], "/readyz").await.1;
        (response.starts_with("HTTP/1.1 200") && response.contains(says)).then_some(())
    })
    .await;
}

/// Returns the status that a kubelet reports every few minutes.
fn status() -> serde_json::Value {
    json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]}})
}

const COUNT: &str = "node-labels: community labels of Node objects count";
const ADD_NONE: &str =
    "it is not there; to let labels count run kubectl apply -f deploy/kubernetes/15-node-labels.yaml";

async fn communities(node: &Node) -> Vec<String> {
    let (code, view) = node.ask(hyper::Method::GET, "/view", None).await;
    assert_eq!(code, 200, "{view}");
    serde_json::from_value(view["communities"].clone()).unwrap()
}

async fn are(node: &Node, wanted: &[&str]) {
    until(&format!("{} to be in {wanted:?}", node.name), async || (communities(node).await == wanted).then_some(()))
        .await;
}

async fn event(reason: &str, note: &str) {
    cluster::event(as_user(PLANE.kubeconfig()).await.client, reason, None, note).await;
}

fn own_label() {
    run(async {
        begin(&["edge-1", "edge-2"]);
        let cloud = controller().await;
        let (node, other) = (cloud.node("edge", "edge-1").await, cloud.node("edge", "edge-2").await);
        // Nothing prevents kubelets from setting the label.
        ask(&kubeconfig("edge-1"), &["label", "node", "edge-1", &format!("{COMMUNITY}=alpha_beta")]).unwrap();
        said(&cloud, ADD_NONE).await;
        event("NodeLabelsDoNotCount", "it is not there").await;
        event("LabelsDoNotCount", "not put into alpha, beta").await;
        // A label that an administrator sets later does apply.
        for name in ["edge-1", "edge-2"] {
            PLANE.kubectl(&["label", "node", name, &format!("{RESTRICTED}=gamma")]).unwrap();
        }
        are(&node, &["gamma"]).await;
        are(&other, &["gamma"]).await;
        // The command is refused with the reason.
        let patch = Some(json!({"fabedge/edge-community": "alpha"}));
        let (code, response) = cloud.operator(hyper::Method::PATCH, "/v1/nodes/edge-1/labels", patch).await;
        assert_eq!(code, 409, "{response}");
        assert!(response["detail"].as_str().unwrap().contains("15-node-labels.yaml"), "{response}");
        cloud.server.stop().await;
    });
}

fn kubelet() {
    run(async {
        begin(&["edge-1"]);
        let kubelet = kubeconfig("edge-1");
        PLANE
            .kubectl(&["label", "node", "edge-1", &format!("{COMMUNITY}=alpha"), &format!("{RESTRICTED}=beta")])
            .unwrap();
        protect(&kubelet, "edge-1").await;
        let refused = |words: &[&str]| ask(&kubelet, words).expect_err(&format!("{words:?} is refused"));
        // The request is refused by the policy, or by NodeRestriction, which runs first and
        // restricts some of the labels.
        let by_whom = |why: String| {
            let named = why.contains("edge-cni-node-labels")
                || why.contains("is not allowed to modify labels")
                || why.contains("is not allowed to set the following labels");
            assert!(named, "{why}");
        };
        for label in [
            "fabedge/edge-community=beta",
            "fabedge/edge-community-",
            "bocloud.com/edge-community=beta",
            "edge-cni.io/role=hub",
            "node-role.kubernetes.io/edge-",
            "node-role.kubernetes.io/edge=other",
            "node-restriction.kubernetes.io/edge-cni-role=hub",
            "node-restriction.kubernetes.io/edge-community-",
            "x.node-restriction.kubernetes.io/edge-community=beta",
        ] {
            by_whom(refused(&["label", "--overwrite", "node", "edge-1", label]));
            // A status has its own path, and a request for it can contain labels.
            let (key, value) = label.split_once('=').map_or((label.trim_end_matches('-'), None), |(k, v)| (k, Some(v)));
            let patch = json!({"metadata": {"labels": {key: value}}});
            by_whom(patch_status(&kubelet, "edge-1", patch).await.expect_err(label));
            let file = PLANE.kubectl(&["get", "node", "edge-1", "-o", "json"]).unwrap();
            let mut whole: serde_json::Value = serde_json::from_str(&file).unwrap();
            match value {
                Some(value) => whole["metadata"]["labels"][key] = value.into(),
                None => drop(whole["metadata"]["labels"].as_object_mut().unwrap().remove(key)),
            }
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), whole.to_string()).unwrap();
            by_whom(refused(&["replace", "-f", &file.path().display().to_string()]));
        }
        let why = refused(&["label", "node", "edge-1", "bocloud.com/edge-community=beta"]);
        assert!(why.contains("edge-cni-node-labels") && why.contains("bocloud.com/edge-community"), "{why}");
        // Another kubelet cannot do it either.
        ask(&kubeconfig("edge-2"), &["label", "node", "edge-1", "bocloud.com/edge-community=beta"]).unwrap_err();
        // The same applies at registration.
        let new = kubeconfig("new");
        let node =
            |labels: &str| format!("apiVersion: v1\nkind: Node\nmetadata: {{name: new, labels: {{{labels}}}}}\n");
        for labels in [
            "fabedge/edge-community: alpha",
            "bocloud.com/edge-community: alpha",
            "edge-cni.io/role: hub",
            "node-role.kubernetes.io/edge: ''",
            "node-restriction.kubernetes.io/edge-cni-role: cloud",
        ] {
            by_whom(create(&new, &node(labels)).expect_err(labels));
        }
        // Everyday requests of kubelets still work.
        create(&new, &node("kubernetes.io/hostname: new")).unwrap();
        ask(&new, &["label", "node", "new", "site=a"]).unwrap();
        for (who, name) in [(&new, "new"), (&kubelet, "edge-1")] {
            patch_status(who, name, status()).await.unwrap();
        }
        // Requests of administrators also work.
        PLANE.kubectl(&["label", "--overwrite", "node", "edge-1", &format!("{COMMUNITY}=beta")]).unwrap();
        assert_eq!(label_of("edge-1", COMMUNITY), "beta");
        PLANE.kubectl(&["label", "node", "new", "node-restriction.kubernetes.io/edge-cni-role=hub"]).unwrap();
    });
}

fn on_behalf() {
    run(async {
        begin(&["edge-1"]);
        protect(&kubeconfig("edge-1"), "edge-1").await;
        let accounts = [("kubeedge", "cloudcore"), ("kube-flannel", "flannel")];
        for (namespace, name) in accounts {
            let _ = PLANE.kubectl(&["create", "namespace", namespace]);
            let _ = PLANE.kubectl(&["create", "serviceaccount", name, "--namespace", namespace]);
        }
        let of = |(namespace, name): (&str, &str)| PLANE.kubeconfig_for_service_account(namespace, name).unwrap();
        let subject = |(namespace, name)| Subject::ServiceAccount(namespace, name);
        // Permissions as they are installed.
        let all = ["get", "list", "create", "update", "patch"];
        PLANE.grant("cloudcore", subject(accounts[0]), &all, &["nodes", "nodes/status"]).unwrap();
        PLANE
            .apply_text(
                "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: flannel}\nrules:\n\
                 - {apiGroups: [''], resources: [nodes], verbs: [get, list, watch]}\n\
                 - {apiGroups: [''], resources: [nodes/status], verbs: [patch]}\n---\n\
                 apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {name: flannel}\n\
                 roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: flannel}\n\
                 subjects: [{kind: ServiceAccount, name: flannel, namespace: kube-flannel}]\n",
            )
            .unwrap();
        let (cloudcore, flannel) = (of(accounts[0]), of(accounts[1]));
        until("the rights to be in force", async || patch_status(&flannel, "edge-1", status()).await.ok()).await;
        for key in [COMMUNITY, "bocloud.com/edge-community", "edge-cni.io/role", RESTRICTED] {
            for who in [&cloudcore, &flannel] {
                let why = patch_status(who, "edge-1", json!({"metadata": {"labels": {key: "alpha"}}})).await;
                let why = why.expect_err(key);
                assert!(why.contains("edge-cni-node-labels"), "{key}: {why}");
            }
            let why = ask(&cloudcore, &["label", "node", "edge-1", &format!("{key}=alpha")]).expect_err(key);
            assert!(why.contains("edge-cni-node-labels"), "{key}: {why}");
            let labels = format!("{{node-role.kubernetes.io/edge: '', {key}: alpha}}");
            let node = format!("apiVersion: v1\nkind: Node\nmetadata: {{name: edge-9, labels: {labels}}}\n");
            let why = create(&cloudcore, &node).expect_err(key);
            assert!(why.contains("edge-cni-node-labels"), "{key}: {why}");
        }
        // cloudcore cannot remove the role label from an edge, but can set it when it registers a
        // Node.
        ask(&cloudcore, &["label", "node", "edge-1", "node-role.kubernetes.io/edge-"]).unwrap_err();
        let labels = "{node-role.kubernetes.io/edge: '', node-role.kubernetes.io/agent: ''}";
        create(&cloudcore, &format!("apiVersion: v1\nkind: Node\nmetadata: {{name: edge-8, labels: {labels}}}\n"))
            .unwrap();
        patch_status(&cloudcore, "edge-8", status()).await.unwrap();
    });
}

fn vanishes() {
    run(async {
        begin(&["edge-1", "edge-2"]);
        let kubelet = kubeconfig("edge-1");
        protect(&kubelet, "edge-1").await;
        let cloud = controller().await;
        said(&cloud, COUNT).await;
        let (node, other) = (cloud.node("edge", "edge-1").await, cloud.node("edge", "edge-2").await);
        for name in ["edge-1", "edge-2"] {
            PLANE.kubectl(&["label", "node", name, &format!("{COMMUNITY}=alpha")]).unwrap();
        }
        are(&node, &["alpha"]).await;
        are(&other, &["alpha"]).await;
        event("NodeLabelsCount", "keeps kubelets from them").await;

        PLANE.kubectl(&["delete", "validatingadmissionpolicybinding", "edge-cni-node-labels"]).unwrap();
        said(&cloud, "no binding puts it in force").await;
        PLANE.kubectl(&["delete", "validatingadmissionpolicy", "edge-cni-node-labels"]).unwrap();
        said(&cloud, ADD_NONE).await;
        until("the API server to let kubelets label again", async || {
            ask(&kubelet, &["label", "--overwrite", "node", "edge-1", &format!("{COMMUNITY}=alpha_beta")]).ok()
        })
        .await;
        event("LabelsDoNotCount", "not put into beta").await;
        // This event comes after the earlier one, in the same order.
        PLANE.kubectl(&["label", "node", "edge-1", &format!("{RESTRICTED}=gamma")]).unwrap();
        are(&node, &["alpha", "gamma"]).await;
        assert_eq!(communities(&other).await, ["alpha"], "whoever was a member stays one");
        // The effect is still known after a restart.
        let cloud = cloud.restart().await;
        let (mut node, mut other) = (node, other);
        node.move_to(&cloud);
        other.move_to(&cloud);
        said(&cloud, ADD_NONE).await;
        PLANE.kubectl(&["label", "node", "edge-1", &format!("{RESTRICTED}-")]).unwrap();
        are(&node, &["alpha"]).await;
        assert_eq!(communities(&other).await, ["alpha"]);
        // A member that is removed stays removed.
        PLANE.kubectl(&["label", "node", "edge-2", &format!("{COMMUNITY}-")]).unwrap();
        are(&other, &[]).await;
        // This policy only resembles ours.
        let manifest = std::fs::read_to_string(deploy(POLICY)).unwrap();
        assert!(manifest.contains("validationActions: [Deny]"));
        PLANE.apply_text(&manifest.replace("validationActions: [Deny]", "validationActions: [Audit]")).unwrap();
        said(&cloud, "no binding puts it in force").await;
        assert_eq!(communities(&node).await, ["alpha"]);
        // With the right policy, labels that an administrator has reviewed count.
        PLANE.kubectl(&["label", "--overwrite", "node", "edge-1", &format!("{COMMUNITY}=delta")]).unwrap();
        PLANE.apply(&deploy(POLICY)).unwrap();
        said(&cloud, COUNT).await;
        are(&node, &["delta"]).await;
        cloud.server.stop().await;
    });
}

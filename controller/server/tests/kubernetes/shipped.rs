//! Tests the controller as `deploy/kubernetes/20-controller.yaml` runs it: with its configuration
//! and its account's permissions, as the same user, and without a kubeconfig.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use interop_tests::kube::suite::Test;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, PodSpec};
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::config::Kubeconfig;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::behaviour::until;
use crate::cluster::{CONTROLLER, NAMESPACE, PLANE, as_user, clean, deploy, run};
use crate::harness::monitoring_page;

pub(crate) const TESTS: &[Test] = &[
    ("the_controller_runs_in_a_pod_as_it_is_shipped", in_a_pod),
    ("no_edge_and_no_node_that_labels_itself_is_given_a_pod_of_the_hubs_or_the_cloud", selected),
];

/// A program that is ended with the test, whatever the test's result.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the configuration in the manifest, with other ports, because its ports may be in use
/// here.
fn configuration() -> String {
    let manifest = std::fs::read_to_string(deploy("kubernetes/20-controller.yaml")).unwrap();
    let text = manifest.split_once("controller.toml: |\n").unwrap().1.split_once("\n---").unwrap().0;
    let lines = text.lines().map(|line| line.strip_prefix("    ").unwrap_or(line));
    let text = lines.collect::<Vec<_>>().join("\n");
    assert!(text.contains("\"[::]:8443\"") && text.contains("\"[::]:9643\""), "{text}");
    let text = text.replace("[::]:8443", "127.0.0.1:0").replace("[::]:9643", "127.0.0.1:0");
    text.replace("127.0.0.1:9645", "127.0.0.1:0")
}

/// Runs the controller's program in its own mount namespace with the kubelet's mounts: the
/// account's token, the configuration, and writable directories that belong to root and are open to
/// the pod (an emptyDir with fsGroup).
fn in_pod(directory: &Path, arguments: &[&str]) -> Command {
    assert!(rustix::process::geteuid().is_root(), "run it as root: it needs a mount namespace and another user");
    let read = Kubeconfig::read_from(&*CONTROLLER).unwrap();
    let cluster = read.clusters[0].cluster.clone().unwrap();
    let url = cluster.server.unwrap();
    let (host, port) = url.rsplit_once('/').unwrap().1.rsplit_once(':').unwrap();
    let authority = match (cluster.certificate_authority_data, cluster.certificate_authority) {
        (Some(data), _) => {
            use base64::Engine;
            base64::engine::general_purpose::STANDARD.decode(data).unwrap()
        }
        (None, Some(path)) => std::fs::read(path).unwrap(),
        (None, None) => panic!("no authority in the kubeconfig"),
    };
    let token = PLANE.kubectl(&["create", "token", "edge-controller", "--namespace", NAMESPACE]).unwrap();
    for (name, content) in [
        ("token", token.trim().as_bytes()),
        ("ca.crt", &authority),
        ("namespace", NAMESPACE.as_bytes()),
        ("controller.toml", configuration().as_bytes()),
    ] {
        std::fs::write(directory.join(name), content).unwrap();
    }
    std::fs::copy(env!("CARGO_BIN_EXE_edge-controller"), directory.join("edge-controller")).unwrap();
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).unwrap();
    let script = "set -e\n\
        mount -t tmpfs pod /mnt; cp \"$1\"/* /mnt; mount -t tmpfs run /run; mount -t tmpfs lib /var/lib\n\
        account=/run/secrets/kubernetes.io/serviceaccount; mkdir -p $account; cp /mnt/token /mnt/ca.crt /mnt/namespace $account\n\
        install -d -g 65532 -m 2777 /run/edge-controller /var/lib/edge-controller\n\
        shift; exec setpriv --reuid 65532 --regid 65532 --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all \
        /mnt/edge-controller \"$@\" --config /mnt/controller.toml";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
        .arg(directory)
        .args(arguments)
        .env_clear()
        .envs([
            ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            ("KUBERNETES_SERVICE_HOST", host),
            ("KUBERNETES_SERVICE_PORT", port),
        ])
        .stdin(Stdio::null());
    command
}

fn in_a_pod() {
    run(async {
        clean().await;
        PLANE.apply(&deploy("kubernetes/60-networkpolicy.yaml")).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let mut command = in_pod(directory.path(), &["run", "--log-json"]);
        let mut running = Running(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
        let lines = BufReader::new(running.0.stderr.take().unwrap()).lines();
        let (said, mut log) = tokio::sync::mpsc::unbounded_channel();
        let reading = std::thread::spawn(move || {
            // Every line is a document.
            lines.for_each(|line| {
                let line = line.unwrap();
                let document: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
                let _ = said.send(document);
            });
        });
        let mut heard = Vec::new();
        let observe = loop {
            let line = log.recv().await.unwrap_or_else(|| panic!("it ended: {heard:?}"));
            let fields = if line["fields"].is_object() { &line["fields"] } else { &line };
            if let Some(observe) = fields["observe"].as_str() {
                break observe.trim_matches(['[', ']']).parse().unwrap();
            }
            heard.push(line);
        };
        let ready = tokio::time::timeout(Duration::from_secs(30), async {
            loop {
                let (status, page) = monitoring_page(observe, "/readyz").await;
                // The account may read the shipped policy, which is the expected one.
                let counts = page.contains("\n[i]node-labels: community labels of Node objects count");
                if status == 200 && counts {
                    return;
                }
            }
        })
        .await;
        ready.expect("it gets ready, and knows the policy");
        // Runs a command in the running pod, as kubectl exec does.
        let pid = running.0.id().to_string();
        let user = ["setpriv", "--reuid", "65532", "--regid", "65532", "--clear-groups"];
        let out = Command::new("nsenter")
            .args(["--mount", "--target", &pid])
            .args(user)
            .args(["/mnt/edge-controller", "gather", "-", "--config", "/mnt/controller.toml"])
            .arg(format!("--observe-listen={observe}"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        let gathered: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
        let pages = &gathered["pages"];
        assert!(out.status.success() && pages["/readyz"].as_str().unwrap().contains("node-labels"), "{gathered}");
        assert!(gathered["status"]["nodes"].is_array() && !gathered.to_string().contains("\"error\""), "{gathered}");
        let secret =
            PLANE.kubectl(&["get", "secret", "edge-cni-ca", "--namespace", NAMESPACE, "--output=name"]).unwrap();
        assert_eq!(secret.trim(), "secret/edge-cni-ca");
        // Runs the CronJob of the chart, while replicas run.
        PLANE
            .apply_text("{apiVersion: edge-cni.io/v1alpha1, kind: Community, metadata: {name: alpha}, spec: {members: [edge-a1]}}")
            .unwrap();
        let out = in_pod(directory.path(), &["export", "-"]).output().unwrap();
        let (archive, said) = (String::from_utf8(out.stdout).unwrap(), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "{said}");
        for kind in ["{\"header\":", "{\"ca\":", "{\"community\":{\"name\":\"alpha\"", "{\"end\":"] {
            assert_eq!(archive.lines().filter(|line| line.starts_with(kind)).count(), 1, "{kind} in {archive}");
        }
        kill_process(Pid::from_child(&running.0), Signal::TERM).unwrap();
        assert!(running.0.wait().unwrap().success());
        reading.join().unwrap();
    });
}

/// Returns whether pods of a DaemonSet or a Deployment, as the API server returns it, may run on a
/// Node with these labels.
fn may_run(pod: &PodSpec, labels: &BTreeMap<String, String>) -> bool {
    let by_label = pod.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let affinity = pod.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|node| node.required_during_scheduling_ignored_during_execution.as_ref());
    let meets = |wanted: &NodeSelectorRequirement| {
        let value = labels.get(&wanted.key);
        let among = value.is_some_and(|value| wanted.values.iter().flatten().any(|one| one == value));
        match wanted.operator.as_str() {
            "In" => among,
            "NotIn" => !among,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            other => panic!("{other}"),
        }
    };
    let by_affinity = required.is_none_or(|required| {
        required.node_selector_terms.iter().any(|term| term.match_expressions.iter().flatten().all(meets))
    });
    by_label && by_affinity
}

fn selected() {
    run(async {
        clean().await;
        PLANE.apply(&deploy("kubernetes")).unwrap();
        let client = as_user(PLANE.kubeconfig()).await.client;
        let all: Api<DaemonSet> = Api::namespaced(client.clone(), NAMESPACE);
        let mut pods = Vec::new();
        for name in ["edge-agent", "hub-agent", "cloud-agent", "socket-holder"] {
            pods.push((name, all.get(name).await.unwrap().spec.template.spec.unwrap()));
        }
        let all: Api<Deployment> = Api::namespaced(client, NAMESPACE);
        pods.push(("edge-controller", all.get("edge-controller").await.unwrap().spec.template.spec.unwrap()));
        let followed = |labels: &[(&str, &str)]| {
            let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let following = pods.iter().filter(|(_, pod)| may_run(pod, &labels));
            following.map(|(name, _)| *name).collect::<Vec<_>>()
        };
        let (edge, role) = (("node-role.kubernetes.io/edge", ""), "node-restriction.kubernetes.io/edge-cni-role");
        assert_eq!(followed(&[edge]), ["edge-agent", "socket-holder"]);
        assert_eq!(followed(&[(role, "hub")]), ["hub-agent", "socket-holder", "edge-controller"]);
        assert_eq!(followed(&[(role, "cloud")]), ["cloud-agent", "edge-controller"]);
        let none: [&str; 0] = [];
        assert_eq!(followed(&[]), none, "a new node is nothing");
        assert_eq!(followed(&[("edge-cni.io/role", "hub")]), none, "nor what it says of itself");
        assert_eq!(followed(&[edge, (role, "hub"), ("edge-cni.io/role", "hub")]), ["edge-agent", "socket-holder"]);
        assert_eq!(followed(&[edge, (role, "cloud")]), ["edge-agent", "socket-holder"]);
        // This API server runs without NodeRestriction: only the policy prevents kubelets from
        // setting that label.
        PLANE.apply_text("apiVersion: v1\nkind: Node\nmetadata: {name: fresh}\n").unwrap();
        let kubelet = PLANE.kubeconfig_for_user("system:node:fresh", Some("system:nodes")).unwrap();
        let nodes: Api<Node> = Api::all(as_user(&kubelet).await.client);
        let label = |key: &str| json!({"metadata": {"labels": {key: "hub"}}});
        until("the policy to be in force", async || {
            let patch = Patch::Merge(label(role));
            let dry = PatchParams { dry_run: true, ..PatchParams::default() };
            nodes
                .patch("fresh", &dry, &patch)
                .await
                .err()
                .filter(|why| why.to_string().contains("edge-cni-node-labels"))
        })
        .await;
        for key in [role, "edge-cni.io/role"] {
            let why = nodes.patch("fresh", &PatchParams::default(), &Patch::Merge(label(key))).await.unwrap_err();
            assert!(why.to_string().contains("only an administrator"), "{why}");
        }
        nodes.patch("fresh", &PatchParams::default(), &Patch::Merge(label("site"))).await.unwrap();
    });
}

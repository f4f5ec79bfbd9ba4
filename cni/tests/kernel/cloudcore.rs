//! Tests the plugin with KubeEdge's edgecore that cloudcore manages, beside a real API server. The
//! pods are objects of the cluster.

use std::ffi::OsString;
use std::fs;
use std::process::{Child, Stdio};

use interop_tests::built_once::CLOUDCORE;
use interop_tests::edgecore::Cloud;
use interop_tests::kube::{self, ControlPlane, Options};
use interop_tests::netns::succeed;
use interop_tests::suite::Test;
use interop_tests::wait;
use serde_json::json;

use crate::containerd::{Containerd, Release};
use crate::edgecore::{self, DUAL, Edgecore, NODE};
use crate::runtime_host::{Disk, PATIENCE, RuntimeHost};

pub(crate) const TESTS: &[Test] =
    &[("a_clusters_pod_on_an_edge_outlives_cloudcore_and_goes_when_it_is_deleted", pod_outlives_cloudcore)];

/// Returns the reason why the tests cannot run on this machine. `None` if they can.
pub(crate) fn unavailable() -> Option<String> {
    edgecore::unavailable().or_else(|| CLOUDCORE.missing()).or_else(kube::unavailable)
}

/// Gives the host a default route. cloudcore notes its machine's address on each Node, and takes
/// the one of the default route.
fn add_default_route(host: &RuntimeHost<'_>) {
    host.world.ip("link add uplink type veth peer name outside");
    host.world.ip("addr add 192.0.2.10/24 dev uplink");
    host.world.ip("link set outside up");
    host.world.ip("link set uplink up");
    host.world.ip("route add default via 192.0.2.1");
}

/// Starts an API server on the host's loopback, with the resources of KubeEdge and with the account
/// of the pods.
fn control_plane(host: &RuntimeHost<'_>) -> ControlPlane {
    let prefix = ["nsenter", &format!("--net=/run/netns/{}", host.world.host), "--"].map(OsString::from).into();
    let plane = ControlPlane::start_with("cloudcore", Options { prefix, ..Options::default() }).unwrap();
    plane.apply(&CLOUDCORE.built().expect("cloudcore")).unwrap();
    plane.kubectl(&["create", "serviceaccount", "default"]).unwrap();
    plane
}

/// A running cloudcore process. It ends together with its host, or when this value is dropped.
struct Cloudcore<'a> {
    host: &'a RuntimeHost<'a>,
    process: Child,
    /// The token with which edges join.
    token: String,
}

impl<'a> Cloudcore<'a> {
    fn start(host: &'a RuntimeHost<'a>, plane: &ControlPlane) -> Self {
        let path = |name: &str| host.disk.path(name).to_str().unwrap().to_owned();
        // The host has its own /dev/shm, where the API server keeps the original.
        fs::copy(plane.kubeconfig(), path("cloudcore.kubeconfig")).unwrap();
        let off = json!({"enable": false});
        let config = json!({
            "apiVersion": "cloudcore.config.kubeedge.io/v1alpha1",
            "kind": "CloudCore",
            "kubeAPIConfig": {"kubeConfig": path("cloudcore.kubeconfig")},
            "modules": {
                "cloudHub": {"advertiseAddress": ["127.0.0.1"], "nodeLimit": 10},
                "deviceController": off,
                "iptablesManager": off,
            },
        });
        fs::write(path("cloudcore.yaml"), config.to_string()).unwrap();
        let script =
            r#"echo $$ >"$1/cloudcore.pid" && exec "$2" --config "$1/cloudcore.yaml" >>"$1/cloudcore.log" 2>&1"#;
        let process = host
            .command("sh")
            .args(["-c", script, "sh", &path("")])
            .arg(CLOUDCORE.built().expect("cloudcore").join("cloudcore"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut this = Self { host, process, token: String::new() };
        let secret = ["get", "secret", "tokensecret", "--namespace=kubeedge"];
        let encoded = ["--output=go-template={{.data.tokendata | base64decode}}"];
        this.token = wait::until("the join token of cloudcore", PATIENCE, || {
            let token = plane.kubectl(&[&secret[..], &encoded].concat())?;
            anyhow::ensure!(!token.is_empty(), "it is empty");
            // An edgecore that cannot get its certificate ends itself.
            let listening = host.command("bash").args(["-c", "exec 3<>/dev/tcp/127.0.0.1/10002"]).output()?;
            anyhow::ensure!(listening.status.success(), "it does not listen yet");
            Ok(token)
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", this.log()));
        this
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.host.disk.path("cloudcore.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn kill(mut self) {
        let pid = fs::read_to_string(self.host.disk.path("cloudcore.pid")).unwrap();
        succeed(self.host.command("kill").args(["-s", "KILL", pid.trim()]));
        wait::expect("the end of cloudcore", PATIENCE, || self.process.try_wait().unwrap());
    }
}

impl Drop for Cloudcore<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn pod_outlives_cloudcore() {
    let disk = Disk::new();
    let host = RuntimeHost::boot(&disk, DUAL);
    add_default_route(&host);
    let containerd = Containerd::start(&host, Release::Installed);
    let plane = control_plane(&host);
    let cloudcore = Cloudcore::start(&host, &plane);
    let cloud = Cloud::Joined { token: &cloudcore.token.clone() };
    let edgecore = Edgecore::start(&host, cloud);
    let get = |what: &[&str], path: &str| {
        plane.kubectl(&[&["get"], what, &["--ignore-not-found", &format!("--output=jsonpath={path}")]].concat())
    };
    wait::until("the Node to be ready", PATIENCE, || {
        let ready = get(&["node", NODE], "{.status.conditions[?(@.type=='Ready')].status}")?;
        anyhow::ensure!(ready == "True", "Ready is {ready:?}");
        Ok(())
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}\n{}", edgecore.log(), cloudcore.log()));

    let mut pod = interop_tests::edgecore::pod("one");
    pod["spec"]["nodeName"] = json!(NODE);
    pod["spec"]["automountServiceAccountToken"] = json!(false);
    plane.apply_text(&pod.to_string()).unwrap();
    let one = edgecore.until_running(&containerd, "one");
    one.1.iter().for_each(|address| host.reaches(address));
    assert_eq!(host.leased(), std::slice::from_ref(&one.0));
    wait::until("the pod's addresses at the API server", PATIENCE, || {
        let known = get(&["pod", "one"], "{.status.podIPs[*].ip}")?;
        anyhow::ensure!(known.split(' ').eq(&one.1), "{known:?}, not {:?}", one.1);
        Ok(())
    })
    .unwrap();

    cloudcore.kill();
    one.1.iter().for_each(|address| host.reaches(address));
    edgecore.kill();
    let edgecore = Edgecore::start(&host, cloud);
    assert_eq!(edgecore.until_running(&containerd, "one"), one, "it is the pod from before");
    one.1.iter().for_each(|address| host.reaches(address));

    let cloudcore = Cloudcore::start(&host, &plane);
    plane.kubectl(&["delete", "pod", "one", "--wait=false"]).unwrap();
    wait::until("the end of the pod", PATIENCE, || {
        let (leased, known) = (host.leased(), get(&["pod", "one"], "{.metadata.name}")?);
        anyhow::ensure!(leased.is_empty() && known.is_empty(), "leases {leased:?}, object {known:?}");
        Ok(())
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}\n{}", edgecore.log(), cloudcore.log()));
}

//! Runs pods of KubeEdge's edgecore, with containerd, on a node whose agent has a tunnel to another
//! node.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::built_once::EDGECORE;
use crate::edge_controller::{CLUSTER_RANGE, Controller};
use crate::edgecore::{self, Cloud, Settings};
use crate::scenario::{Lab, Needs, Scenario, skip};
use crate::topology::{NetworkPlan, Node, Process};
use crate::{cni_plugin, executables, oci_image, wait};

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "kubeedge/edgecore-pod",
    about: "a pod of edgecore and a pod behind the tunnel reach each other; it is made again while the cloud is away, and goes",
    deadline: Duration::from_secs(300),
    by_default: true,
    needs: Needs::Nothing,
    run: edgecore_pod,
}];

const CLOUD: &str = "203.0.113.2";

/// The directory of edgecore's files.
pub(super) const EDGECORE_DIRECTORY: &str = "/var/lib/kubeedge";

/// The directory in which the container image is created.
const IMAGE: &str = "/run/image";

/// The directory of the plugins, from the agent's configuration.
const PLUGINS: &str = "/etc/cni/bin";

/// Time limit for each wait for edgecore or containerd.
pub(super) const PATIENCE: Duration = Duration::from_secs(90);

/// Returns the reason why edgecore's pods cannot run in the lab. `None` if they can.
pub(super) fn unavailable() -> Option<String> {
    let needed = [
        ("containerd", "containerd"),
        ("ctr", "containerd"),
        ("runc", "runc"),
        ("sqlite3", "sqlite3"),
        ("busybox", "busybox-static"),
    ];
    let missing = needed.iter().find(|(program, _)| executables::find(program).is_none());
    missing
        .map(|(program, package)| format!("`{program}` ({package}) is not installed; run `.ci/install test`"))
        .or_else(|| {
            loopback().is_none().then(|| "the plugin `loopback` (containernetworking-plugins) is not installed".into())
        })
        .or_else(|| EDGECORE.missing())
}

fn loopback() -> Option<PathBuf> {
    ["/usr/lib/cni", "/opt/cni/bin"]
        .iter()
        .map(|directory| PathBuf::from(directory).join("loopback"))
        .find(|file| file.is_file())
}

fn edgecore_pod(lab: &Lab) -> Result<()> {
    if let Some(why) = unavailable() {
        return skip(&why);
    }
    let mut plan = NetworkPlan::new();
    plan.router("isp").on("west", &["192.0.2.1/24"]).on("east", &["203.0.113.1/24"]);
    plan.host("cloud").on("east", &[&format!("{CLOUD}/24")]).via("203.0.113.1").own_directory("/etc/edge-controller");
    let edge = plan.host("edge").on("west", &["192.0.2.10/24"]).via("192.0.2.1");
    for directory in [EDGECORE_DIRECTORY, "/var/lib/containerd", "/etc/kubeedge"] {
        edge.own_directory(directory);
    }
    plan.host("other").on("east", &["203.0.113.11/24"]).via("203.0.113.1");
    let net = lab.build(&plan)?;
    let (cloud, edge, other) = (net.node("cloud"), net.node("edge"), net.node("other"));
    mount_cgroups(edge)?;
    let mut controller = Controller::start(lab, cloud, CLOUD, "")?;
    let mut agents = [controller.join(edge, "edge")?, controller.join(other, "edge")?];
    for agent in &mut agents {
        agent.wait_ready()?;
    }
    for node in ["edge", "other"] {
        controller.run(&["node", "label", node, "fabedge/edge-community=alpha"])?;
    }
    agents[0].wait_up("other")?;
    agents.iter().try_for_each(|agent| agent.install_cni(lab))?;
    let (far, result) = cni_plugin::add(lab, other, "far")?;
    let far_address =
        result["ips"][0]["address"].as_str().and_then(|address| address.split('/').next()).context("no address")?;
    lab.step("two nodes with a tunnel, and a pod on one of them");

    let mut capture = net.node("isp").capture("west")?;
    let _containerd = start_containerd(edge)?;
    let _edgecore = start_edgecore(edge, &[])?;
    lab.step("containerd and edgecore run on the other one");

    let manifest = format!("{EDGECORE_DIRECTORY}/manifests/web.json");
    edge.write(&manifest, &edgecore::pod("web").to_string())?;
    let reach_each_other = |before: &str| -> Result<String> {
        wait::until("edgecore's pod and the other pod to reach each other", PATIENCE, || {
            let (container, address) = lease(lab, edge)?.context("edgecore's pod has no lease")?;
            ensure!(container != before, "it is still the former pod");
            pings(edge, far_address)?;
            ensure!(far.reaches(&address, Duration::from_secs(1))?, "the other pod does not reach {address}");
            Ok(container)
        })
    };
    let first = reach_each_other("")?;
    lab.step("edgecore's pod and the other pod reach each other");

    controller.process().kill()?;
    ctr(edge, &["tasks", "kill", "--signal", "SIGKILL", &first])?;
    reach_each_other(&first)?;
    lab.step("made again while the controller is away, it reaches the other pod");

    edge.sh(&format!("rm {manifest}"))?;
    wait::until("the end of the pod's lease", PATIENCE, || {
        ensure!(lease(lab, edge)?.is_none(), "it is still there");
        Ok(())
    })?;
    capture.stop()?;
    capture.expect_none(&format!("net {CLUSTER_RANGE}"))?;
    ensure!(!capture.esp_spis()?.is_empty(), "nothing went through a tunnel");
    lab.step("the pod is gone with its lease, and no packet of a pod was on the wire in clear");
    Ok(())
}

/// Mounts cgroups of version 2 on a node. Skips the scenario if a kubelet cannot use them.
pub(super) fn mount_cgroups(node: &Node) -> Result<()> {
    let controllers = node.sh("mount -t cgroup2 cgroup2 /sys/fs/cgroup && cat /sys/fs/cgroup/cgroup.controllers")?;
    if !controllers.contains("memory") {
        return skip(&format!(
            "this kernel's cgroups of version 2 have no memory controller, which kubelets need: {controllers:?}"
        ));
    }
    Ok(())
}

/// Starts containerd, and imports the container image.
pub(super) fn start_containerd(node: &Node) -> Result<Process> {
    let config = format!(
        r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
disable_apparmor = true
restrict_oom_score_adj = true
sandbox_image = "{}"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{PLUGINS}"
conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
"#,
        oci_image::NAME,
    );
    node.write("/run/containerd.toml", &config)?;
    let loopback = loopback().context("no loopback plugin")?;
    node.run(node.command("cp").arg(loopback).arg(PLUGINS))?;
    let process = node.start("containerd", node.command("containerd").args(["--config", "/run/containerd.toml"]))?;
    let rootfs = format!("{IMAGE}/rootfs");
    let busybox = executables::find("busybox").context("no busybox")?;
    node.sh(&format!(
        "mkdir -p {rootfs}/bin {rootfs}/proc {rootfs}/sys {rootfs}/dev {rootfs}/etc && cp {} {rootfs}/bin/busybox
         for name in {}; do ln -s busybox {rootfs}/bin/$name; done",
        busybox.display(),
        oci_image::PROGRAMS.join(" "),
    ))?;
    let archive = oci_image::write(&node.path(&rootfs), &node.path(IMAGE));
    let archive = format!("{IMAGE}/{}", archive.file_name().context("no name")?.to_string_lossy());
    wait::until("containerd", PATIENCE, || ctr(node, &["images", "import", &archive]))?;
    Ok(process)
}

/// Starts edgecore, and writes its Node object. `cluster_dns` has the name servers of pods.
pub(super) fn start_edgecore(node: &Node, cluster_dns: &[String]) -> Result<Process> {
    // User-Mode Linux reports no clock rate of its CPUs. The kubelet does not start without one.
    node.sh("if ! grep -q 'cpu MHz' /proc/cpuinfo; then
             { cat /proc/cpuinfo; echo 'cpu MHz : 1000.000'; } >/run/cpuinfo && mount --bind /run/cpuinfo /proc/cpuinfo
         fi")?;
    // edgecore resolves its host's name. No name server is reachable here.
    node.write("/run/hosts", "127.0.0.1 localhost\n192.0.2.10 edge\n")?;
    node.sh("mount --bind /run/hosts /etc/hosts")?;
    node.sh(&format!("mkdir -p {EDGECORE_DIRECTORY}/manifests {EDGECORE_DIRECTORY}/edgecore"))?;
    let settings =
        Settings { node: "edge", directory: EDGECORE_DIRECTORY, cgroup: "", cloud: Cloud::Never, cluster_dns };
    let file = format!("{EDGECORE_DIRECTORY}/edgecore.yaml");
    node.write(&file, &edgecore::configuration(&settings).to_string())?;
    let program = EDGECORE.built().context("no edgecore")?.join("edgecore");
    let mut process = node.start("edgecore", node.command(program).args(["--config", &file]))?;
    let database = format!("{EDGECORE_DIRECTORY}/edgecore/edgecore.db");
    let rows = edgecore::node_rows("edge");
    wait::until("the table `meta`", PATIENCE, || {
        if let Some(status) = process.exit_status()? {
            return Ok(Err(anyhow::anyhow!("edgecore ended ({status}): {}", process.log())));
        }
        node.run(node.command("sqlite3").args(["-cmd", ".timeout 5000", &database, &rows]))?;
        Ok(Ok(()))
    })??;
    Ok(process)
}

fn ctr(node: &Node, args: &[&str]) -> Result<String> {
    node.run(node.command("ctr").args(["--namespace", "k8s.io"]).args(args))
}

/// Returns the container ID and the address of the only lease on a node. `None` if the node has no
/// lease.
fn lease(lab: &Lab, node: &Node) -> Result<Option<(String, String)>> {
    let printed = node.run(node.command(lab.program("edge-cni")?).args(["leases", "--json"]))?;
    let rows: Vec<Value> = serde_json::from_str(&printed)?;
    ensure!(rows.len() < 2, "more than one lease: {printed}");
    let Some(row) = rows.first() else { return Ok(None) };
    let container = row["container"].as_str().context("a lease without a container")?;
    let address = row["addresses"][0].as_str().context("a lease without an address")?;
    Ok(Some((container.to_owned(), address.to_owned())))
}

/// Sends a ping from the running container of edgecore's pod.
fn pings(node: &Node, to: &str) -> Result<()> {
    run_in_pod(node, &["ping", "-q", "-c", "1", "-W", "1", to]).map(drop)
}

/// Runs a command in the running container of edgecore's pod. Returns its output.
pub(super) fn run_in_pod(node: &Node, argv: &[&str]) -> Result<String> {
    let containers = ctr(node, &["containers", "list", "--quiet", "labels.\"io.cri-containerd.kind\"==container"])?;
    let mut outcome = Err(anyhow::anyhow!("edgecore's pod has no container"));
    for container in containers.lines() {
        outcome = ctr(node, &[&["tasks", "exec", "--exec-id", "command", container], argv].concat());
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

//! Runs a pod of KubeEdge's edgecore that uses Services and their names, as
//! `docs/install/kubeedge.md` says. The resolver's unit and configuration and the name server of
//! pods come from that page.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::kubeedge::{
    EDGECORE_DIRECTORY, PATIENCE, mount_cgroups, run_in_pod, start_containerd, start_edgecore, unavailable,
};
use crate::edge_controller::Controller;
use crate::scenario::{Lab, Needs, Scenario, skip};
use crate::topology::{NetworkPlan, Node, Pod, Process};
use crate::{cni_plugin, edgecore, executables, wait};

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "kubeedge/services",
    about: "a pod of edgecore reaches a Service behind the hub by its name, with the resolver of docs/install/kubeedge.md; names while the cloud is away",
    deadline: Duration::from_secs(300),
    by_default: true,
    needs: Needs::Nothing,
    run,
}];

/// The page about KubeEdge.
const PAGE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/install/kubeedge.md"));

/// The page's ranges: of segments, of the cloud's pods, and of Services.
const SEGMENTS: &str = "10.77.0.0/16";
const CLOUD_NETWORKS: [&str; 2] = ["10.244.0.0/16", "10.96.0.0/12"];

/// ClusterIPs of the cluster's name server and of the Service `web`.
const CLUSTER_DNS: &str = "10.96.0.10";
const CLUSTER_IP: &str = "10.96.7.7";

/// Names of a Service with a ClusterIP, and of one without, which names the pod of another edge.
const SERVICE: &str = "web.default.svc.cluster.local";
const HEADLESS: &str = "peer.default.svc.cluster.local";

const GREETING: &str = "hello from the cloud";

const CLOUD: &str = "203.0.113.2";
const HUB_LINK: &str = "east";

/// Returns the fenced block of the page whose first line is `first`.
fn block(first: &str) -> Result<&'static str> {
    let blocks = PAGE.split("```").skip(1).step_by(2);
    let bodies = blocks.filter_map(|block| block.split_once('\n').map(|(_, body)| body));
    let mut found = bodies.filter(|body| body.lines().next() == Some(first));
    found.next().with_context(|| format!("docs/install/kubeedge.md has no block that begins with {first:?}"))
}

/// Returns the values of a key of the page's systemd unit.
fn unit_values(key: &str) -> Result<Vec<&'static str>> {
    let unit = block("# /etc/systemd/system/edge-resolver.service")?;
    Ok(unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect())
}

/// Returns the name servers of pods that the page gives to edgecore.
fn cluster_dns() -> Result<Vec<String>> {
    let fragment = block("modules:")?;
    let line = fragment.lines().find_map(|line| line.trim().strip_prefix("clusterDNS: "));
    Ok(serde_json::from_str(line.context("the page names no clusterDNS")?)?)
}

fn run(lab: &Lab) -> Result<()> {
    if let Some(why) = unavailable() {
        return skip(&why);
    }
    if executables::find("dnsmasq").is_none() {
        return skip("`dnsmasq` (dnsmasq-base) is not installed; run `.ci/install test`");
    }
    let mut plan = NetworkPlan::new();
    plan.router("isp").on("west", &["192.0.2.1/24"]).on(HUB_LINK, &["203.0.113.1/24"]);
    plan.host("cloud").on(HUB_LINK, &[&format!("{CLOUD}/24")]).via("203.0.113.1").own_directory("/etc/edge-controller");
    plan.host("hub").on(HUB_LINK, &["203.0.113.12/24"]).via("203.0.113.1");
    plan.host("other").on(HUB_LINK, &["203.0.113.11/24"]).via("203.0.113.1");
    let edge = plan.host("edge").on("west", &["192.0.2.10/24"]).via("192.0.2.1");
    for directory in [EDGECORE_DIRECTORY, "/var/lib/containerd", "/etc/kubeedge"] {
        edge.own_directory(directory);
    }
    let net = lab.build(&plan)?;
    let (edge, hub, other) = (net.node("edge"), net.node("hub"), net.node("other"));
    mount_cgroups(edge)?;
    let networks = format!("networks = {CLOUD_NETWORKS:?}");
    let mut controller = Controller::start_with_ranges(lab, net.node("cloud"), CLOUD, &networks, &[SEGMENTS])?;
    let mut agents = [controller.join(edge, "edge")?, controller.join(other, "edge")?, controller.join(hub, "hub")?];
    for agent in &mut agents {
        agent.wait_ready()?;
    }
    for node in ["edge", "other"] {
        controller.run(&["node", "label", node, "fabedge/edge-community=alpha"])?;
    }
    for peer in ["hub", "other"] {
        agents[0].wait_up(peer)?;
    }
    agents[..2].iter().try_for_each(|agent| agent.install_cni(lab))?;
    let (_far, result) = cni_plugin::add(lab, other, "far")?;
    let far = result["ips"][0]["address"].as_str().and_then(|address| address.split('/').next());
    let _services = Services::start(hub, far.context("no address")?)?;
    lab.step("a hub with two Services, and a pod on another edge");

    let mut capture = net.node("isp").capture("west")?;
    let _resolver = start_resolver(edge)?;
    let _containerd = start_containerd(edge)?;
    let _edgecore = start_edgecore(edge, &cluster_dns()?)?;
    edge.write(&format!("{EDGECORE_DIRECTORY}/manifests/client.json"), &edgecore::pod("client").to_string())?;
    let calls = |name: &'static str| {
        move || -> Result<()> {
            let said = run_in_pod(edge, &["nc", "-w", "3", name, "80"])?;
            ensure!(said == GREETING, "{name} says {said:?}");
            Ok(())
        }
    };
    let pings_by_name = || run_in_pod(edge, &["ping", "-4", "-q", "-c", "1", "-W", "1", HEADLESS]).map(drop);
    wait::until("edgecore's pod to call the Service by its name", PATIENCE, calls(SERVICE))?;
    wait::until("edgecore's pod to call the Service by its short name", PATIENCE, calls("web"))?;
    wait::until("edgecore's pod to reach another edge's pod by its name", PATIENCE, pings_by_name)?;
    lab.step("edgecore's pod calls the Service by its names, and reaches another edge's pod by a name");

    controller.process().kill()?;
    wait::until("the Service, without the controller", PATIENCE, calls(SERVICE))?;
    lab.step("so it does without the controller");

    // The cloud knows both names for a second only. So after it went away, the resolver answers
    // from what it has kept.
    hub.sh(&format!("ip link set {HUB_LINK} down"))?;
    wait::until("the end of answers from the cloud", PATIENCE, || {
        let answered = run_in_pod(edge, &["nslookup", "-type=a", HEADLESS, CLUSTER_DNS]);
        ensure!(answered.is_err(), "the cloud still answers");
        Ok(())
    })?;
    wait::until("another edge's pod by its name, without the cloud", PATIENCE, pings_by_name)?;
    ensure!(calls(SERVICE)().is_err(), "a Service behind the hub answers without the hub");
    lab.step("without the hub no Service answers, and the other edge's pod is reached by its name");

    hub.sh(&format!("ip link set {HUB_LINK} up && ip route replace default via 203.0.113.1"))?;
    wait::until("the Service, with the hub back", PATIENCE, calls(SERVICE))?;
    capture.stop()?;
    for network in CLOUD_NETWORKS.iter().chain([&SEGMENTS]) {
        capture.expect_none(&format!("net {network}"))?;
    }
    ensure!(!capture.esp_spis()?.is_empty(), "nothing went through a tunnel");
    lab.step("with the hub back it calls the Service again, and nothing of all this was on the wire in clear");
    Ok(())
}

/// Starts the page's resolver on an edge.
fn start_resolver(node: &Node) -> Result<Process> {
    let first = "# /etc/edge-cni/resolver.conf";
    node.write(first.trim_start_matches("# "), block(first)?)?;
    for command in unit_values("ExecStartPre")? {
        // systemd ignores the failure of a command after a hyphen.
        let script = command.strip_prefix('-').map_or(command.to_owned(), |command| format!("{command} || true"));
        node.sh(&script)?;
    }
    let commands = unit_values("ExecStart")?;
    let [command] = commands.as_slice() else { anyhow::bail!("the unit has {} commands", commands.len()) };
    node.start("resolver", node.command("sh").args(["-c", &format!("exec {command}")]))
}

/// Two pods of the cloud on a hub, and the rules with which kube-proxy redirects Services to them.
struct Services {
    _processes: [Process; 2],
    _pods: [Pod; 2],
}

impl Services {
    /// Starts the pods. `far` is the address that the name [`HEADLESS`] has.
    fn start(hub: &Node, far: &str) -> Result<Self> {
        let dns = hub.wired_pod("dns", "10.244.1.10/24", "10.244.1.1/24")?;
        let web = hub.wired_pod("web", "10.244.2.10/24", "10.244.2.1/24")?;
        let server = dns.start(
            "dnsmasq",
            dns.command("dnsmasq")
                .args(["--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--no-resolv", "--no-hosts"])
                .args(["--local=/cluster.local/", "--local-ttl=1", "--log-queries", "--log-facility=-"])
                .arg(format!("--host-record={SERVICE},{CLUSTER_IP}"))
                .arg(format!("--host-record={HEADLESS},{far}")),
        )?;
        let own = std::env::current_exe()?;
        let greeter = web.start("web", web.command(own).args(["guest", "tcp-serve", "8080", GREETING]))?;
        hub.sh(&format!(
            "nft 'add table ip services
             add chain ip services nat {{ type nat hook prerouting priority dstnat; }}
             add rule ip services nat ip daddr {CLUSTER_DNS} udp dport 53 dnat to 10.244.1.10:53
             add rule ip services nat ip daddr {CLUSTER_DNS} tcp dport 53 dnat to 10.244.1.10:53
             add rule ip services nat ip daddr {CLUSTER_IP} tcp dport 80 dnat to 10.244.2.10:8080'"
        ))?;
        Ok(Self { _processes: [server, greeter], _pods: [dns, web] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_about_kubeedge_has_what_the_scenario_runs() {
        assert!(block("# /etc/edge-cni/resolver.conf").unwrap().contains("use-stale-cache"));
        assert_eq!(unit_values("ExecStart").unwrap().len(), 1);
        assert_eq!(unit_values("ExecStartPre").unwrap().len(), 3);
        assert_eq!(cluster_dns().unwrap().len(), 1);
        for range in CLOUD_NETWORKS.iter().chain([&SEGMENTS]) {
            assert!(PAGE.contains(&format!("\"{range}\"")), "{range}");
        }
    }
}

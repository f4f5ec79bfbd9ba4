//! Checks a pod's hostPorts, with the real `portmap` that `edge-agent install-cni` chains after our
//! plugin.

use std::fs::File;
use std::net::IpAddr;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::lan_test::{LOOK, LanTest, NEIGHBOUR, PORT, both, fetched};
use crate::cni_plugin::CONFLIST;
use crate::demo::check_runner::TIMEOUT;
use crate::demo::layout::site;
use crate::demo::pod::DemoPod;
use crate::demo::tcp::SOURCE;
use crate::topology::Namespaces;

const NODE: &str = "edge-a1";
const HOST_PORT: u16 = 8090;
/// Path of Debian's portmap plugin.
const PORTMAP: &str = "/usr/lib/cni/portmap";

/// Checks that a hostPort of a pod on a1 is served to a host on the LAN, to a1, to pods on other
/// nodes and on a1, and to the pod itself.
///
/// # Errors
/// Returns the error of the first check that fails.
pub(super) fn served_to_all(test: &LanTest, others: &str) -> Result<()> {
    let (world, edge) = (test.world, test.world.node(NODE));
    let plugin = world.lab.program("edge-cni")?.display().to_string();
    edge.sh(&format!("mkdir -p /etc/cni/bin && cp {PORTMAP} /etc/cni/bin/"))?;
    world.agent(NODE, &["install-cni", "--plugin", &plugin])?;
    let (published, result) = world.add_pod_with_result(NODE, "published")?;
    portmap(test, "ADD", &published, &result)?;
    let own = std::env::current_exe()?;
    let serve = ["guest", "tcp-serve", &PORT.to_string(), SOURCE];
    let mut server = published.pod.start("source", published.pod.command(&own).args(serve))?;

    let lan: [IpAddr; 2] = both(NEIGHBOUR)?;
    // For each family: the pod of a node with an uplink of that family, and the source address of
    // its packets after they leave the node.
    let far: [(&str, IpAddr); 2] =
        [("edge-a2", outside("edge-a2", 0)?.parse()?), ("edge-b1", inside("edge-b1", 1)?.parse()?)];
    let served = |from: &Namespaces, who: &str, to: IpAddr| {
        world.checks.eventually(&format!("{others}, a hostPort is served to {who} at {to}"), LOOK, TIMEOUT, || {
            fetched(from, to, HOST_PORT).map(drop)
        })
    };
    let itself = |family: usize, calls: &str| {
        edge.sh(&format!(
            "sysctl -qw net.bridge.bridge-nf-call-iptables={calls} net.bridge.bridge-nf-call-ip6tables={calls}"
        ))?;
        let what = format!("{others}, to the pod itself at {}, bridge-nf-call: {calls}", test.edge[family]);
        test.seen_as(&published.pod, test.edge[family], HOST_PORT, test.bridge[family], &what)
    };
    for family in [0, 1] {
        let to = test.edge[family];
        let what = format!("{others}, a hostPort is served to a host on the LAN at {to}");
        test.seen_as(world.node("neighbour"), to, HOST_PORT, lan[family], &what)?;
        let (node, source) = far[family];
        let what = format!("{others}, to the pod of {node} at {to}");
        test.seen_as(&test.pods.of(node).pod, to, HOST_PORT, source, &what)?;
        served(edge, "a1 itself", to)?;
        served(&test.pods.of(NODE).pod, "another pod of a1", to)?;
        itself(family, "1")?;
        itself(family, "0")?;
    }
    served(edge, "a1 itself", "127.0.0.1".parse()?)?;

    portmap(test, "DEL", &published, &result)?;
    server.kill()?;
    world.delete_pod(published)?;
    world.checks.check(&format!("{others}, without the pod the port is closed"), LOOK, || {
        for to in test.edge {
            let answer = fetched(world.node("neighbour"), to, HOST_PORT);
            ensure!(answer.is_err(), "{to} still answers");
        }
        Ok("")
    })
}

/// Returns a node's address of a family (0: IPv4, 1: IPv6).
fn inside(node: &str, family: usize) -> Result<&'static str> {
    site(node).inside[family].with_context(|| format!("{node} has no such address"))
}

/// Returns the address of a node's router on the internet.
fn outside(node: &str, family: usize) -> Result<&'static str> {
    site(node).outside[family].with_context(|| format!("{node}'s router has no such address"))
}

/// Runs `portmap` as the runtime does after our plugin, with the entry from the installed list and
/// our plugin's result.
fn portmap(test: &LanTest, verb: &str, pod: &DemoPod, result: &Value) -> Result<()> {
    let edge = test.world.node(NODE);
    let list: Value = serde_json::from_str(&edge.read(CONFLIST)?)?;
    let mut config = list["plugins"][1].clone();
    ensure!(config["type"] == "portmap", "install-cni did not chain portmap: {list}");
    config["name"] = list["name"].clone();
    config["cniVersion"] = json!("1.0.0");
    config["prevResult"] = result.clone();
    let mappings = json!([{"hostPort": HOST_PORT, "containerPort": PORT, "protocol": "tcp"}]);
    config["runtimeConfig"] = json!({ "portMappings": mappings });
    let stdin = edge.out().join(format!("{NODE}.portmap-stdin.json"));
    std::fs::write(&stdin, config.to_string())?;
    edge.run(
        edge.command("/etc/cni/bin/portmap")
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &pod.container_id)
            .env("CNI_NETNS", pod.pod.netns())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/etc/cni/bin")
            .stdin(Stdio::from(File::open(stdin)?)),
    )
    .map(drop)
}

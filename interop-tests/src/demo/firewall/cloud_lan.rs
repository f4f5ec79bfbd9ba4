//! Checks a host on the LAN of the hub and the cloud nodes, which uses the hub or a cloud node as
//! its router. The host may send with addresses from the networks that the hub fronts
//! (`docs/threats.md`). With its own address it reaches no edge.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};

use super::lan_test::{LanTest, PORT, beside, both, pair, routed_through, socket};
use super::services::{self, none_is_served};
use crate::demo::check_runner::TIMEOUT;
use crate::demo::layout::EDGES;
use crate::demo::operator::AGENT_CONFIG;
use crate::demo::pod::answered;
use crate::topology::Namespaces;

const HOST: &str = "cloud-neighbour";
const LOOK: &str = "cloud-1.kernel.txt, cloud-2.kernel.txt (nft list ruleset); *.edge-agent.log";
/// Services' addresses within the cloud's networks. The operator configures the Services' ranges.
const SERVICES: [&str; 2] = ["10.244.99.5", "fd44::99:5"];
const SERVICE_RANGES: [&str; 2] = ["10.244.99.0/24", "fd44::99:0/112"];

/// A node of the cloud.
struct CloudNode {
    name: &'static str,
    role: &'static str,
    /// The node's addresses on the LAN.
    lan: [IpAddr; 2],
    /// The node's addresses within the cloud's networks. Edges see these as the source of its
    /// packets.
    within: [IpAddr; 2],
}

/// Checks the hub and a cloud node.
///
/// # Errors
/// Returns the error of the first check that fails.
pub(super) fn host_reaches_no_edge(test: &LanTest) -> Result<()> {
    let world = test.world;
    world.checks.part("A host on the LAN of the hub and the cloud nodes");
    let nodes = [
        CloudNode {
            name: "cloud-1",
            role: "hub",
            lan: both(["198.51.100.11", "2001:db8:c::11"])?,
            within: both(["10.244.1.1", "fd44::1:1"])?,
        },
        CloudNode {
            name: "cloud-2",
            role: "cloud node",
            lan: both(["198.51.100.12", "2001:db8:c::12"])?,
            within: both(["10.244.2.1", "fd44::2:1"])?,
        },
    ];
    // Without these settings, the nodes would redirect the host to each other and to the router.
    world.node(HOST).sh(
        "sysctl -qw net.ipv4.conf.all.accept_redirects=0 net.ipv4.conf.cloud.accept_redirects=0 net.ipv6.conf.cloud.accept_redirects=0",
    )?;
    for node in &nodes {
        reaches_no_pod_of_an_edge(test, node)?;
    }
    // The hub sends edges' packets to cloud nodes unencrypted, so cloud nodes cannot verify the
    // sender.
    let edges = [test.own.map(beside), test.far.map(beside)].concat();
    let what = "it poses as no edge's pod, towards edges' pods, the hub's pod, or the hub";
    test.cannot_pose(HOST, "cloud-1", nodes[0].lan, &edges, what)?;
    for node in nodes.iter().rev() {
        published_port(test, node)?;
        calls_no_service(test, node)?;
    }
    Ok(())
}

fn reaches_no_pod_of_an_edge(test: &LanTest, node: &CloudNode) -> Result<()> {
    let host = test.world.node(HOST);
    let mut targets = Vec::new();
    for edge in EDGES {
        targets.extend(pair(&test.pods.of(edge).addresses())?);
    }
    let what = format!("it reaches no edge's pod through the {}, {}", node.role, node.name);
    test.world.checks.check(&what, LOOK, || {
        let before = test.refused(node.name, "to-tunnels")?;
        let pairs: Vec<(&Namespaces, IpAddr)> = targets.iter().map(|to| (&**host, *to)).collect();
        let answers = routed_through(host, node.lan, &targets, || answered(&pairs))?;
        ensure!(answers.is_empty(), "answers came: {}", answers.join(", "));
        let counted = test.refused(node.name, "to-tunnels")? - before;
        ensure!(counted >= targets.len() as u64, "{} counted {counted} packets: they never got there", node.name);
        Ok(format!("{} addresses tried, {counted} packets dropped", targets.len()))
    })
}

/// Checks a NodePort, as kube-proxy redirects it.
fn published_port(test: &LanTest, node: &CloudNode) -> Result<()> {
    let machine = test.world.node(node.name);
    for (family, name) in ["ip", "ip6"].into_iter().enumerate() {
        let endpoint = socket(test.own[family], PORT);
        machine.sh(&format!(
            "nft 'add table {name} publish; add chain {name} publish pre {{ type nat hook prerouting priority dstnat; }}; \
             add rule {name} publish pre tcp dport 30081 dnat to {endpoint}'"
        ))?;
        let reached = node.lan[family];
        let what = format!("a published port of a1's pod is served to it at {reached}");
        test.seen_as(test.world.node(HOST), reached, 30081, node.within[family], &what)?;
        machine.sh(&format!("nft delete table {name} publish"))?;
    }
    Ok(())
}

/// Checks that Services in the cloud's networks are served until the operator configures the
/// Services' ranges.
fn calls_no_service(test: &LanTest, node: &CloudNode) -> Result<()> {
    let (host, machine) = (test.world.node(HOST), test.world.node(node.name));
    let services = both(SERVICES)?;
    let redirected: Vec<(IpAddr, IpAddr)> = services.into_iter().zip(test.own).collect();
    services::redirect(machine, &redirected)?;
    routed_through(host, node.lan, &services, || {
        for family in [0, 1] {
            let what = format!("a Service whose range nobody names is served to it through the {}", node.role);
            test.seen_as(host, services[family], 80, node.within[family], &what)?;
        }
        Ok(())
    })?;
    let config = machine.read(AGENT_CONFIG)?;
    machine.write(AGENT_CONFIG, &format!("{config}\n[firewall]\nservice_ranges = {SERVICE_RANGES:?}\n"))?;
    test.world.restart_agent(node.name)?;
    test.world.checks.eventually("with `service_ranges` the table has the ranges", LOOK, TIMEOUT, || {
        for (set, range) in ["services4", "services6"].into_iter().zip(SERVICE_RANGES) {
            let listed = machine.sh(&format!("nft list set inet edge-cni {set}"))?;
            let network = range.split('/').next().context("a network")?;
            ensure!(listed.contains(network), "{listed}");
        }
        Ok(())
    })?;
    let what = format!("then it calls no Service through the {}", node.role);
    test.world.checks.check(&what, LOOK, || {
        let before = test.refused(node.name, "to-tunnels")?;
        routed_through(host, node.lan, &services, || none_is_served(host, &services))?;
        let counted = test.refused(node.name, "to-tunnels")? - before;
        ensure!(counted >= 2, "{} counted {counted} packets: they never got there", node.name);
        Ok(format!("{counted} packets dropped"))
    })?;
    services::forget(machine)
}

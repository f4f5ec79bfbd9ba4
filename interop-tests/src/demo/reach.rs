//! Checks that all pairs that may communicate do so, and only through ESP.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};

use super::check_runner::TIMEOUT;
use super::layout::{EDGES, NODES, cloud_pod_networks, site};
use super::pod::{DemoPod, reaches};
use super::world::World;
use crate::cni_plugin::CONFLIST;
use crate::topology::Pod;

/// The pods that exist during the whole demo.
pub(super) struct Pods {
    /// One pod on each edge node, attached by our plugin.
    ours: BTreeMap<&'static str, DemoPod>,
    /// One pod on each cloud node, attached by the cloud's own CNI, outside our segments.
    pub(super) cloud: Vec<CloudPod>,
}

/// A pod that the cloud's own CNI attached.
pub(super) struct CloudPod {
    /// Name of the cloud node on which the pod runs.
    pub(super) node: &'static str,
    /// The pod's network namespace.
    pub(super) pod: Pod,
    /// The pod's IPv4 and IPv6 addresses.
    pub(super) addresses: [IpAddr; 2],
}

impl Pods {
    /// Returns the pod of an edge node.
    pub(super) fn of(&self, node: &str) -> &DemoPod {
        &self.ours[node]
    }

    /// Replaces the pod on an edge node with another one. Returns the former pod.
    pub(super) fn replace(&mut self, node: &'static str, pod: DemoPod) -> Option<DemoPod> {
        self.ours.insert(node, pod)
    }
}

/// Starts controller and agents, labels the nodes, and adds pods.
///
/// # Errors
/// Returns the error of the first check that fails.
pub(super) fn bring_up(world: &World) -> Result<Pods> {
    let checks = &world.checks;
    let layout = world.layout;
    checks.part("The cloud and all agents start; a1 and a2 are labelled alpha, b1 beta");
    world.start_controller()?;
    let edges = layout.edges().map(|edge| (edge, "edge", u32::from(edge == "edge-a1")));
    for (node, role, spare) in layout.cloud.iter().map(|(node, role)| (*node, *role, 0)).chain(edges) {
        world.configure_agent(node, role, spare, true)?;
        world.start_agent(node)?;
    }
    let all = layout.nodes().count();
    checks.eventually(&format!("all {all} nodes have joined"), "*.edge-agent.log", TIMEOUT, || {
        let nodes: serde_json::Value = serde_json::from_str(&world.controller(&["node", "list", "--json"])?)?;
        let count = nodes.as_array().map_or(0, Vec::len);
        ensure!(count == all, "{count} of {all}");
        Ok(())
    })?;
    checks.check(
        "`edge-agent join` shows the status of a node that has joined",
        "edge-agent join on edge-b1",
        || {
            let shown = world.join("edge-b1", "")?;
            ensure!(shown.contains("edge-b1") && shown.contains("cloud-1"), "it shows {shown}");
            Ok("")
        },
    )?;
    for edge in layout.alpha {
        let key = if *edge == "edge-a2" { "bocloud.com/edge-community" } else { "fabedge/edge-community" };
        world.label(edge, &format!("{key}=alpha"))?;
    }
    for edge in layout.beta {
        world.label(edge, "fabedge/edge-community=beta")?;
    }
    let mut tunnels = vec![("edge-a1", "edge-a2"), ("edge-a2", "edge-a1")];
    for edge in layout.edges() {
        tunnels.extend(layout.hubs().flat_map(|hub| [(edge, hub), (hub, edge)]));
    }
    for (node, peer) in tunnels {
        checks.eventually(&format!("{node} has a tunnel to {peer}"), "*.edge-agent.log", TIMEOUT, || {
            world.tunnel_is_up(node, peer)
        })?;
    }
    for node in layout.edges() {
        world.node(node).sh(&format!("rm -f {CONFLIST}"))?;
        let plugin = world.lab.program("edge-cni")?;
        world.agent(node, &["install-cni", "--plugin", &plugin.display().to_string()])?;
    }
    let mut ours = BTreeMap::new();
    for node in layout.edges() {
        ours.insert(node, world.add_pod(node, "web")?);
    }
    let numbered = || layout.cloud.iter().map(|(node, _)| *node).zip(1_u8..);
    let cloud = numbered().map(|(node, number)| cloud_pod(world, node, number)).collect::<Result<_>>()?;
    // The cloud's CNI adds routes to the other cloud nodes.
    for (node, own) in numbered() {
        for (other, number) in numbered().filter(|(_, number)| *number != own) {
            let [v4, v6] = site(other).inside.map(Option::unwrap_or_default);
            let [pods4, pods6] = cloud_pod_networks(number.into());
            world.node(node).sh(&format!("ip route add {pods4} via {v4} && ip route add {pods6} via {v6}"))?;
        }
    }
    world.route_ledger_in_clear()?;
    world.new_frames()?;
    Ok(Pods { ours, cloud })
}

/// Makes a pod as the cloud's own CNI would.
fn cloud_pod(world: &World, node: &'static str, number: u8) -> Result<CloudPod> {
    let host = world.node(node);
    let pod = host.wired_pod("db", &format!("10.244.{number}.10/24"), &format!("10.244.{number}.1/24"))?;
    host.sh(&format!(
        "ip addr add fd44::{number}:1/112 dev veth-db nodad && ip -n db addr add fd44::{number}:10/112 dev eth0 nodad && \
         ip -n db -6 route add default via fd44::{number}:1"
    ))?;
    let addresses = [format!("10.244.{number}.10").parse()?, format!("fd44::{number}:10").parse()?];
    Ok(CloudPod { node, pod, addresses })
}

/// Checks traffic between pods, from hosts to pods, and through a published port.
///
/// # Errors
/// Returns the error of the first check that fails.
pub(super) fn everyone_reaches(world: &World, pods: &Pods) -> Result<()> {
    let checks = &world.checks;
    checks.part("Reach");
    let look = "ip -s xfrm state, ip -s xfrm policy on both nodes; *.edge-agent.log";
    let both = |from: &DemoPod, to: &DemoPod| -> Result<()> {
        for address in to.addresses() {
            let what = format!("{}'s pod reaches {}'s pod at {address}", from.node, to.node);
            checks.eventually(&what, look, TIMEOUT, || reaches(&from.pod, address))?;
        }
        Ok(())
    };
    both(pods.of("edge-a1"), pods.of("edge-a2"))?;
    both(pods.of("edge-a2"), pods.of("edge-a1"))?;
    for edge in EDGES {
        let from = pods.of(edge);
        for cloud in &pods.cloud {
            for address in cloud.addresses {
                let what = format!("{edge}'s pod reaches the pod on {} at {address}", cloud.node);
                checks.eventually(&what, look, TIMEOUT, || reaches(&from.pod, address))?;
            }
            for address in from.addresses() {
                let what = format!("the pod on {} reaches {edge}'s pod at {address}", cloud.node);
                checks.eventually(&what, look, TIMEOUT, || reaches(&cloud.pod, address))?;
            }
        }
    }
    for address in pods.of("edge-a2").addresses() {
        checks.eventually(&format!("a process on a1 reaches a2's pod at {address}"), look, TIMEOUT, || {
            reaches(world.node("edge-a1"), address)
        })?;
    }
    published_port(world, pods)
}

/// Checks TCP from a1's host network to a2's pod, and from a neighbour through a port that a1
/// publishes.
fn published_port(world: &World, pods: &Pods) -> Result<()> {
    let checks = &world.checks;
    let server = &pods.of("edge-a2").pod;
    let own = std::env::current_exe()?;
    let greeting = "hello from a2";
    server.start("web", server.command(&own).args(["guest", "tcp-serve", "80", greeting]))?;
    let v4 = pods.of("edge-a2").v4.context("a2's pod has an IPv4 address")?;
    let fetch = |from: &str, address: &str| {
        let host = world.node(from);
        let text = host.run(host.command(&own).args(["guest", "tcp-fetch", address]))?;
        ensure!(text == greeting, "it answered {text:?}");
        Ok(())
    };
    let look = "nft list ruleset on edge-a1; conntrack; edge-a2.web.web.log";
    checks.eventually("a process on a1's host network speaks TCP with a2's pod", look, TIMEOUT, || {
        fetch("edge-a1", &format!("{v4}:80"))
    })?;
    world.node("edge-a1").sh(&format!(
        "nft 'add table ip nodeport; add chain ip nodeport pre {{ type nat hook prerouting priority dstnat; }}; \
         add rule ip nodeport pre tcp dport 30080 dnat to {v4}:80'"
    ))?;
    checks.eventually("a neighbour reaches a2's pod through a port published on a1", look, TIMEOUT, || {
        fetch("neighbour", "192.0.2.10:30080")
    })
}

/// Checks that the new frames on the wires are only ESP, IKE, the controller's TLS and
/// housekeeping.
///
/// # Errors
/// Returns an error if a frame of any other kind was captured.
pub(super) fn only_esp_on_the_wire(world: &World, when: &str) -> Result<()> {
    world.checks.check(&format!("{when}, the routers saw ESP, IKE and TLS, and no pod address"), "*.pcap", || {
        let seen = world.new_frames()?;
        ensure!(seen.clear() == 0 && seen.unexpected() == 0, "{seen}");
        Ok(seen)
    })
}

/// Checks as [`only_esp_on_the_wire`] does, and also that `ip xfrm state` on some host shows each
/// SPI.
///
/// # Errors
/// Returns an error if one of these checks fails.
pub(super) fn spis_are_the_kernels(world: &World) -> Result<()> {
    world.checks.check("every SPI on the wires is in ip xfrm state, and nothing is in clear", "*.pcap", || {
        let seen = world.new_frames()?;
        let mut known = BTreeSet::new();
        for node in NODES {
            known.extend(world.node(node).xfrm_states()?.into_iter().map(|state| state.spi));
        }
        let unknown: Vec<_> = seen.spis().difference(&known).map(|spi| format!("{spi:#010x}")).collect();
        ensure!(unknown.is_empty(), "no host has {}", unknown.join(", "));
        ensure!(!seen.spis().is_empty(), "no ESP at all: {seen}");
        ensure!(seen.clear() == 0 && seen.unexpected() == 0, "{seen}");
        Ok(seen)
    })
}

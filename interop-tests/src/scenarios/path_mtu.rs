//! Lowers the MTU of the underlay between two edges while connections of their pods carry data.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::connectivity::make_bridge;
use crate::edge_agent::Agent;
use crate::edge_controller::Controller;
use crate::scenario::{Lab, Needs, Scenario};
use crate::tcp_transfer::{NO_ICMP_ERRORS, TcpTransfer};
use crate::topology::{NetworkPlan, Node, Pod};
use crate::wait;

const fn scenario(name: &'static str, about: &'static str, run: fn(&Lab) -> Result<()>) -> Scenario {
    Scenario { name, about, deadline: Duration::from_secs(300), by_default: true, needs: Needs::Nothing, run }
}

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "agent/path-mtu",
        "the underlay's MTU falls to 1430 and no ICMP says so: TCP goes on in both directions and families; then the MTU comes back",
        falls_and_rises,
    ),
    scenario(
        "agent/path-mtu-1280",
        "the uplink of an edge has an MTU of 1280 and no ICMP says so: TCP of pods works in both directions and families",
        |lab| small_uplink(lab, &OVER_IPV4),
    ),
    scenario("agent/path-mtu-1280-ipv6", "the same where the underlay has only IPv6", |lab| {
        small_uplink(lab, &OVER_IPV6)
    }),
];

/// The addresses of the underlay: those of a node, and of its router.
struct Underlay {
    hub: [&'static str; 2],
    edges: [[&'static str; 2]; 2],
    prefix: &'static str,
}

const OVER_IPV4: Underlay = Underlay {
    hub: ["203.0.113.1", "203.0.113.254"],
    edges: [["198.51.100.10", "198.51.100.254"], ["192.0.2.10", "192.0.2.254"]],
    prefix: "/24",
};
const OVER_IPV6: Underlay = Underlay {
    hub: ["2001:db8::1", "2001:db8::fe"],
    edges: [["2001:db8:1::10", "2001:db8:1::fe"], ["2001:db8:2::10", "2001:db8:2::fe"]],
    prefix: "/64",
};
/// What fits into an ESP packet of 1430 bytes: less 20 for IPv4, 8 for UDP and 32 for ESP, down to
/// a multiple of 4, less 2 for the trailer.
const NARROW: u64 = 1366;
/// The interface of the router accepts packets that are longer by a VLAN tag than its MTU, so more
/// fits in the direction to the router.
const NARROW_TO_ROUTER: u64 = 1370;
/// How much smaller a size may be that the search has tried shortly before, bytes.
const SEARCH_STEP: u64 = 4;
/// Time for a search, with a lot of room for a busy machine.
const SEARCH: Duration = Duration::from_secs(60);

/// Two edges of a community behind a router, each with a pod.
struct Site<'a> {
    isp: &'a Node,
    edges: [&'a Node; 2],
    agents: [Agent<'a>; 2],
    pods: [(Pod, Vec<IpAddr>); 2],
}

/// Makes the site, in which the second edge has an uplink of this MTU, and calls `run`.
fn with_site(lab: &Lab, underlay: &Underlay, mtu: u16, run: impl FnOnce(&Site<'_>) -> Result<()>) -> Result<()> {
    let Underlay { hub: [hub_address, hub_router], edges: [left, right], prefix } = underlay;
    let with_prefix = |address: &str| format!("{address}{prefix}");
    let mut plan = NetworkPlan::new();
    plan.router("isp")
        .on("cloud", &[&with_prefix(hub_router)])
        .on("left", &[&with_prefix(left[1])])
        .on("right", &[&with_prefix(right[1])])
        .mtu("right", mtu);
    plan.host("hub").on("cloud", &[&with_prefix(hub_address)]).via(hub_router).own_directory("/etc/edge-controller");
    plan.host("edge-0").on("left", &[&with_prefix(left[0])]).via(left[1]);
    plan.host("edge-1").on("right", &[&with_prefix(right[0])]).via(right[1]).mtu("right", mtu);
    let net = lab.build(&plan)?;
    let (isp, hub, edges) = (net.node("isp"), net.node("hub"), [net.node("edge-0"), net.node("edge-1")]);
    let controller = Controller::start_dual_stack(lab, hub, hub_address)?;
    let mut hub_agent = controller.join(hub, "hub")?;
    hub_agent.wait_ready()?;
    let mut agents = [controller.join(edges[0], "edge")?, controller.join(edges[1], "edge")?];
    for agent in &mut agents {
        agent.wait_up("hub")?;
    }
    let pods = [pod_of(&controller, edges[0])?, pod_of(&controller, edges[1])?];
    for edge in edges {
        controller.run(&["node", "label", edge.name(), "fabedge/edge-community=alpha"])?;
    }
    agents[0].wait_up("edge-1")?;
    agents[1].wait_up("edge-0")?;
    run(&Site { isp, edges, agents, pods })
}

impl Site<'_> {
    /// Waits until an edge knows this about the path to the other edge.
    fn wait_path(&self, edge: usize, known: impl Fn(&Value) -> bool) -> Result<()> {
        wait::until("the path MTU", SEARCH, || {
            let path_mtu = self.path_mtu(edge)?;
            ensure!(known(&path_mtu), "{path_mtu}");
            Ok(())
        })
    }

    fn path_mtu(&self, edge: usize) -> Result<Value> {
        known_path_mtu(&self.agents[edge], self.edges[1 - edge].name())
    }

    /// Waits until each pod has learned the MTU of the path to the other one. `bytes` is that of
    /// IPv4 and of IPv6.
    fn wait_told(&self, edge: usize, bytes: [u64; 2]) -> Result<()> {
        for (address, bytes) in self.pods[1 - edge].1.iter().zip(bytes) {
            wait::until("the host to tell the pod the MTU", SEARCH, || told_mtu(&self.pods[edge].0, *address, bytes))?;
        }
        Ok(())
    }
}

fn falls_and_rises(lab: &Lab) -> Result<()> {
    with_site(lab, &OVER_IPV4, 1500, |site| {
        // One connection in each direction, in each family.
        let pods = &site.pods;
        let transfers = [
            TcpTransfer::start(&pods[0].0, &pods[1].0, address(&pods[1].1, IpAddr::is_ipv4)?)?,
            TcpTransfer::start(&pods[1].0, &pods[0].0, address(&pods[0].1, IpAddr::is_ipv6)?)?,
        ];
        for transfer in &transfers {
            transfer.wait_more(2)?;
        }
        for edge in [0, 1] {
            site.wait_path(edge, |path_mtu| path_mtu["limited"] == false && path_mtu["unanswered"] == false)?;
        }
        lab.step("connections carry data, and the path carries packets of the pods' MTU");

        site.isp.sh(&format!("{NO_ICMP_ERRORS}\nip link set right mtu 1430"))?;
        for transfer in &transfers {
            // What was under way before is far less.
            transfer.wait_more(4)?;
        }
        let silences = transfers.each_ref().map(TcpTransfer::longest_silence);
        lab.step(&format!("the connections go on, after {silences:?} without data"));
        for (edge, bytes) in [NARROW, NARROW_TO_ROUTER].into_iter().enumerate() {
            site.wait_path(edge, |path_mtu| path_mtu["limited"] == true && path_mtu["bytes"] == bytes)?;
            let agent = &site.agents[edge];
            let text = agent.command(&["status"])?;
            ensure!(text.contains(&format!("all packets of pods: up to {bytes} bytes")), "{text}");
            ensure!(known_path_mtu(agent, "hub")?["limited"] != true, "the path to the hub is another one");
            site.wait_told(edge, [bytes, bytes])?;
        }
        lab.step("pods learn the MTU from their own host, in both families");

        site.isp.sh("ip link set right mtu 1500; nft delete table inet silent")?;
        site.edges[0].sh("set -e
             ip addr del 198.51.100.10/24 dev left
             ip addr add 198.51.100.11/24 dev left
             ip route replace default via 198.51.100.254")?;
        for edge in [0, 1] {
            site.wait_path(edge, |path_mtu| path_mtu["limited"] == false)?;
        }
        // The routes of an earlier run of the agent would stay for a minute.
        for edge in site.edges {
            wait::until("the routes to be removed", Duration::from_secs(100), || {
                let routes = edge.sh("ip route show proto 236; ip -6 route show proto 236")?;
                ensure!(!routes.contains("mtu"), "{routes}");
                Ok(())
            })?;
        }
        for transfer in &transfers {
            transfer.wait_more(2)?;
        }
        lab.step("on another path larger packets are tried at once");
        Ok(())
    })
}

fn small_uplink(lab: &Lab, underlay: &Underlay) -> Result<()> {
    with_site(lab, underlay, 1280, |site| {
        site.isp.sh(NO_ICMP_ERRORS)?;
        let pods = &site.pods;
        for (edge, mtu) in [(0, 1418), (1, 1280)] {
            let host = &site.agents[edge].status()?["host"];
            ensure!(host["pod_mtu"] == mtu, "edge-{edge} has {host}");
            // The plugin gives pods this MTU.
            pods[edge].0.sh(&format!("ip link set eth0 mtu {mtu}"))?;
        }
        let host = &site.agents[1].status()?["host"];
        ensure!(host["small_uplink"] == 1280, "the status does not name the uplink: {host}");
        let mut transfers = Vec::new();
        for (from, to) in [(&pods[0], &pods[1]), (&pods[1], &pods[0])] {
            for family in [IpAddr::is_ipv4 as fn(&IpAddr) -> bool, IpAddr::is_ipv6] {
                transfers.push(TcpTransfer::start(&from.0, &to.0, address(&to.1, family)?)?);
            }
        }
        for transfer in &transfers {
            transfer.wait_more(3)?;
        }
        let silences: Vec<Duration> = transfers.iter().map(TcpTransfer::longest_silence).collect();
        lab.step(&format!("the connections carry data, at most {silences:?} without any"));
        for (edge, path) in [(0, "edge-1"), (1, "edge-0")] {
            site.wait_path(edge, |path_mtu| path_mtu["unanswered"] == false)?;
            let known = known_path_mtu(&site.agents[edge], path)?;
            lab.step(&format!("edge-{edge} knows of the path to {path}: {known}"));
        }
        Ok(())
    })
}

fn known_path_mtu(agent: &Agent<'_>, peer: &str) -> Result<Value> {
    let status = agent.status()?;
    let peers = status["peers"].as_array().cloned().unwrap_or_default();
    let found = peers.into_iter().find(|found| found["name"] == peer).context("no such peer")?;
    Ok(found["path_mtu"].clone())
}

/// Makes a pod with an address of each family. Returns the addresses, IPv4 first.
fn pod_of(controller: &Controller<'_>, edge: &Node) -> Result<(Pod, Vec<IpAddr>)> {
    let gateways = make_bridge(controller, edge)?;
    let pod = edge.pod("p")?;
    edge.sh("set -e
         ip link add veth-p type veth peer name eth0 netns p
         ip link set veth-p master ecni0 up
         ip -n p link set eth0 up")?;
    let mut addresses = Vec::new();
    for gateway in gateways {
        let (address, prefix, options) = match gateway {
            IpAddr::V4(gateway) => (IpAddr::V4((u32::from(gateway) + 1).into()), 26, ""),
            IpAddr::V6(gateway) => (IpAddr::V6((u128::from(gateway) + 1).into()), 128, "nodad"),
        };
        edge.sh(&format!(
            "set -e
             ip -n p addr add {address}/{prefix} dev eth0 {options}
             ip -n p route add default via {gateway} dev eth0 onlink"
        ))?;
        addresses.push(address);
    }
    Ok((pod, addresses))
}

/// Sends a packet that is too large. Fails unless the kernel has learned the path MTU.
fn told_mtu(pod: &Pod, to: IpAddr, bytes: u64) -> Result<()> {
    let to = to.to_string();
    let out = pod.output(pod.command("ping").args(["-n", "-c", "2", "-W", "1", "-M", "do", "-s", "1380", &to]))?;
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    // During the search a pod may learn a size that is a little smaller, which it keeps for ten
    // minutes.
    let told = (bytes - SEARCH_STEP..=bytes)
        .flat_map(|bytes| [format!("mtu={bytes}"), format!("mtu = {bytes}"), format!("mtu: {bytes}")]);
    ensure!(told.into_iter().any(|told| text.contains(&told)), "{text}");
    Ok(())
}

/// Returns a pod's address of one family.
fn address(addresses: &[IpAddr], family: fn(&IpAddr) -> bool) -> Result<IpAddr> {
    addresses.iter().copied().find(family).context("no address of this family")
}

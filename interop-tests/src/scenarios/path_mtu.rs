//! Lowers the MTU of the underlay between two edges while connections of their pods carry data.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::connectivity::make_bridge;
use crate::edge_agent::Agent;
use crate::edge_controller::Controller;
use crate::scenario::{Lab, Needs, Scenario};
use crate::topology::{NetworkPlan, Node, Pod, Process};
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "agent/path-mtu",
    about: "the underlay's MTU falls to 1430 and no ICMP says so: TCP goes on in both directions and families; then the MTU comes back",
    deadline: Duration::from_secs(300),
    by_default: true,
    needs: Needs::Nothing,
    run: falls_and_rises,
}];

const HUB: &str = "203.0.113.1";
/// What fits into an ESP packet of 1430 bytes: less 20 for IPv4, 8 for UDP and 32 for ESP, down to
/// a multiple of 4, less 2 for the trailer.
const NARROW: u64 = 1366;
/// The interface of the router accepts packets that are longer by a VLAN tag than its MTU, so more
/// fits in the direction to the router.
const NARROW_TO_ROUTER: u64 = 1370;
/// Time for a search, with a lot of room for a busy machine.
const SEARCH: Duration = Duration::from_secs(60);
/// The router sends no ICMP errors about large packets.
const SILENT: &str = "nft add table inet silent
     nft add chain inet silent output '{ type filter hook output priority 0; }'
     nft add rule inet silent output icmp type destination-unreachable counter drop
     nft add rule inet silent output icmpv6 type packet-too-big counter drop";

/// Two edges of a community behind a router, each with a pod.
struct Site<'a> {
    isp: &'a Node,
    edges: [&'a Node; 2],
    agents: [Agent<'a>; 2],
    pods: [(Pod, Vec<IpAddr>); 2],
}

/// Makes the site and calls `run`.
fn with_site(lab: &Lab, run: impl FnOnce(&Site<'_>) -> Result<()>) -> Result<()> {
    let mut plan = NetworkPlan::new();
    plan.router("isp")
        .on("cloud", &["203.0.113.254/24"])
        .on("left", &["198.51.100.254/24"])
        .on("right", &["192.0.2.254/24"]);
    plan.host("hub").on("cloud", &[&format!("{HUB}/24")]).via("203.0.113.254").own_directory("/etc/edge-controller");
    plan.host("edge-0").on("left", &["198.51.100.10/24"]).via("198.51.100.254");
    plan.host("edge-1").on("right", &["192.0.2.10/24"]).via("192.0.2.254");
    let net = lab.build(&plan)?;
    let (isp, hub, edges) = (net.node("isp"), net.node("hub"), [net.node("edge-0"), net.node("edge-1")]);
    let controller = Controller::start_dual_stack(lab, hub, HUB)?;
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
    with_site(lab, |site| {
        // One connection in each direction, in each family.
        let pods = &site.pods;
        let transfers = [
            Transfer::start(&pods[0], &pods[1], IpAddr::is_ipv4)?,
            Transfer::start(&pods[1], &pods[0], IpAddr::is_ipv6)?,
        ];
        for transfer in &transfers {
            transfer.wait_more(2)?;
        }
        for edge in [0, 1] {
            site.wait_path(edge, |path_mtu| path_mtu["limited"] == false && path_mtu["unanswered"] == false)?;
        }
        lab.step("connections carry data, and the path carries packets of the pods' MTU");

        site.isp.sh(&format!("{SILENT}\nip link set right mtu 1430"))?;
        for transfer in &transfers {
            // What was under way before is far less.
            transfer.wait_more(4)?;
        }
        let silences: Vec<String> = transfers.iter().flat_map(Transfer::silences).collect();
        lab.step(&format!("the connections go on ({})", silences.join(", ")));
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
    let told = [format!("mtu={bytes}"), format!("mtu = {bytes}"), format!("mtu: {bytes}")];
    ensure!(told.iter().any(|told| text.contains(told)), "{text}");
    Ok(())
}

/// A TCP connection from one pod to another that carries about a megabyte a second.
struct Transfer {
    receiver: Process,
    _sender: Process,
}

impl Transfer {
    fn start(from: &(Pod, Vec<IpAddr>), to: &(Pod, Vec<IpAddr>), family: fn(&IpAddr) -> bool) -> Result<Self> {
        let address = to.1.iter().find(|address| family(address)).context("no address")?.to_string();
        let python = |pod: &Pod, name: &str, program: &str| {
            let name = format!("{name}-{}", address.replace([':', '.'], "-"));
            pod.start(&name, pod.command("python3").args(["-u", "-c", program, &address]))
        };
        let mut receiver = python(&to.0, "receiver", RECEIVER)?;
        receiver.wait_log("listening")?;
        Ok(Self { _sender: python(&from.0, "sender", SENDER)?, receiver })
    }

    /// Waits until this number of further megabytes has arrived.
    fn wait_more(&self, megabytes: usize) -> Result<()> {
        let before = self.received();
        wait::until("the connection to go on", SEARCH, || {
            let now = self.received();
            ensure!(now >= before + megabytes, "{now} MB arrived, {before} before");
            Ok(())
        })
    }

    fn received(&self) -> usize {
        self.receiver.log().lines().filter(|line| *line == "a megabyte").count()
    }

    /// Returns what the receiver says about times without data.
    fn silences(&self) -> Vec<String> {
        self.receiver.log().lines().filter(|line| line.starts_with("silent")).map(str::to_owned).collect()
    }
}

const RECEIVER: &str = "\
import socket, sys, time
family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET
server = socket.create_server((sys.argv[1], 5001), family=family)
print('listening')
connection, _ = server.accept()
total, last = 0, time.monotonic()
while block := connection.recv(65536):
    silence, last = time.monotonic() - last, time.monotonic()
    if silence > 1.5:
        print(f'silent for {silence:.1f} s')
    before, total = total, total + len(block)
    if total >> 20 > before >> 20:
        print('a megabyte')
";

const SENDER: &str = "\
import socket, sys, time
connection = socket.create_connection((sys.argv[1], 5001))
while True:
    connection.sendall(bytes(16384))
    time.sleep(0.015)
";

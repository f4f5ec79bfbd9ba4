//! Another program changes the host of an edge or of a hub: its bridge, routes, rules and settings.
//! A pod on the edge and a pod in the cloud ping each other.

use anyhow::{Context as _, Result, ensure};

use super::measurement::{self, Direction, Goals, scenario};
use crate::cni_plugin;
use crate::edge_agent::Agent;
use crate::edge_controller::Controller;
use crate::scenario::{Lab, Scenario};
use crate::topology::{Net, NetworkPlan, Node, Pod};
use crate::wait;

const CONTROLLER: &str = "198.51.100.10";
const HUB: &str = "198.51.100.11";
const CLOUD_NETWORK: &str = "10.244.0.0/16";
const CLOUD_POD: &str = "10.244.1.2";

/// What is wanted at events that cut pods off until the agent has repaired the change.
const REPAIRED: Goals = Goals::silence(2.0);
/// What is wanted when forwarding is turned off.
const FORWARDS_AGAIN: Goals = Goals::silence(1.0);

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("interruption/bridge-deleted", "what is lost when someone deletes the pods' bridge", |lab| {
        Site::measure(lab, "bridge-deleted", REPAIRED, |site| site.edge().sh("ip link delete ecni0").map(drop))
    }),
    scenario(
        "interruption/routes-flushed",
        "what is lost when someone flushes all routes, until the host's network manager makes its own again",
        |lab| {
            Site::measure(lab, "routes-flushed", REPAIRED, |site| {
                site.edge().sh("ip route flush table main")?;
                wait::for_event("the status to name what is missing", || {
                    let status = site.agent.status()?;
                    let named = status["obstacles"].to_string().contains("no route to any peer, such as hub-1");
                    ensure!(named, "it has {}", status["obstacles"]);
                    Ok(())
                })?;
                site.edge().sh("ip route add 192.168.1.0/24 dev home && ip route add default via 192.168.1.1")?;
                Ok(())
            })
        },
    ),
    scenario("interruption/forward-drop", "what is lost when iptables' FORWARD drops by policy", |lab| {
        Site::measure(lab, "forward-drop", REPAIRED, |site| {
            // The script starts with a flush, so that the second run begins without the rules from
            // the first run.
            let script = "iptables -P FORWARD ACCEPT; iptables -F FORWARD; iptables -P FORWARD DROP";
            site.edge().sh(script).map(drop)
        })
    }),
    scenario("interruption/nft-flushed", "what is lost when someone flushes all nftables rules of the edge", |lab| {
        Site::measure(lab, "nft-flushed", Goals::REPAIRED_AT_ONCE, |site| site.edge().sh("nft flush ruleset").map(drop))
    }),
    scenario("interruption/forwarding-off", "what is lost when someone turns the edge's forwarding off", |lab| {
        Site::measure(lab, "forwarding-off", FORWARDS_AGAIN, |site| site.edge().sh(NO_FORWARDING).map(drop))
    }),
    scenario(
        "interruption/hub-nft-flushed",
        "what is lost when someone flushes all nftables rules of the hub",
        |lab| {
            Site::measure(lab, "hub-nft-flushed", Goals::REPAIRED_AT_ONCE, |site| {
                site.hub().sh("nft flush ruleset").map(drop)
            })
        },
    ),
    scenario("interruption/hub-xfrm-flushed", "what is lost when someone flushes the hub's SAs and policies", |lab| {
        Site::measure(lab, "hub-xfrm-flushed", Goals::REPAIRED_AT_ONCE, |site| {
            site.hub().sh("ip xfrm state flush; ip xfrm policy flush").map(drop)
        })
    }),
    scenario("interruption/hub-forwarding-off", "what is lost when someone turns the hub's forwarding off", |lab| {
        Site::measure(lab, "hub-forwarding-off", FORWARDS_AGAIN, |site| site.hub().sh(NO_FORWARDING).map(drop))
    }),
];

const NO_FORWARDING: &str = "sysctl -qw net.ipv4.ip_forward=0";

struct Site<'a> {
    lab: &'a Lab,
    net: &'a Net,
    agent: Agent<'a>,
    edge_pod: Pod,
    edge_pod_address: String,
    cloud_pod: Pod,
    /// Programs that run until the scenario ends.
    _running: (Controller<'a>, Agent<'a>),
}

impl<'a> Site<'a> {
    fn build(lab: &'a Lab) -> Result<Self> {
        let mut plan = NetworkPlan::new();
        plan.router("isp").on("cloud", &["198.51.100.1/24"]).on("home", &["192.168.1.1/24"]).masquerade("cloud");
        plan.host("controller").on("cloud", &[&format!("{CONTROLLER}/24")]).own_directory("/etc/edge-controller");
        plan.host("hub-1").on("cloud", &[&format!("{HUB}/24")]).via("198.51.100.1");
        plan.host("edge").on("home", &["192.168.1.10/24"]).via("192.168.1.1");
        let net = lab.build(&plan)?;
        let networks = format!("networks = [{CLOUD_NETWORK:?}]");
        let controller = Controller::start(lab, net.node("controller"), CONTROLLER, &networks)?;
        let mut hub = controller.join(net.node("hub-1"), "hub")?;
        hub.wait_ready()?;
        let cloud_pod = net.node("hub-1").wired_pod("db", &format!("{CLOUD_POD}/24"), "10.244.1.1/24")?;
        let mut agent = controller.join(net.node("edge"), "edge")?;
        agent.wait_up("hub-1")?;
        agent.install_cni(lab)?;
        let (edge_pod, result) = cni_plugin::add(lab, net.node("edge"), "web")?;
        let address = result["ips"][0]["address"].as_str().context("ADD gave no address")?;
        let edge_pod_address = address.split('/').next().unwrap_or(address).to_owned();
        Ok(Self { lab, net, agent, edge_pod, edge_pod_address, cloud_pod, _running: (controller, hub) })
    }

    fn edge(&self) -> &'a Node {
        self.net.node("edge")
    }

    fn hub(&self) -> &'a Node {
        self.net.node("hub-1")
    }

    fn measure(lab: &'a Lab, what: &str, goals: Goals, happens: fn(&mut Self) -> Result<()>) -> Result<()> {
        measurement::measure(&mut Self::build(lab)?, what, goals, |_| Ok(()), happens)
    }
}

impl measurement::Site for Site<'_> {
    fn lab(&self) -> &Lab {
        self.lab
    }

    fn directions(&self) -> [Direction<'_>; 2] {
        [
            Direction { name: "from-edge", pod: &self.edge_pod, to: CLOUD_POD },
            Direction { name: "from-hub", pod: &self.cloud_pod, to: &self.edge_pod_address },
        ]
    }
}

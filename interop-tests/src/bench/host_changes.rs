//! Measures the pings that are lost between a pod on an edge and a pod in the cloud when another
//! program changes the edge's host: its bridge, routes, rules and settings.

use anyhow::{Context as _, Result, ensure};

use super::interruptions::{Goals, measure};
use crate::cni_plugin;
use crate::edge_agent::Agent;
use crate::edge_controller::Controller;
use crate::scenario::{Lab, Needs, Scenario};
use crate::topology::{Net, NetworkPlan, Node, Pod};
use crate::wait;

const CONTROLLER: &str = "198.51.100.10";
const HUB: &str = "198.51.100.11";
const CLOUD_NETWORK: &str = "10.244.0.0/16";
const CLOUD_POD: &str = "10.244.1.2";

const fn scenario(name: &'static str, about: &'static str, run: fn(&Lab) -> Result<()>) -> Scenario {
    let deadline = std::time::Duration::from_secs(300);
    Scenario { name, about, deadline, by_default: false, needs: Needs::Nothing, run }
}

/// The goals for events that cut pods off until the agent has repaired the change.
const REPAIRED: Goals = Goals { lost: None, silence: Some(2.0) };

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("interruption/bridge-deleted", "what is lost when someone deletes the pods' bridge", |lab| {
        Site::build(lab)?.measure("bridge-deleted", REPAIRED, |site| site.edge().sh("ip link delete ecni0").map(drop))
    }),
    scenario(
        "interruption/routes-flushed",
        "what is lost when someone flushes all routes, until the host's network manager makes its own again",
        |lab| {
            Site::build(lab)?.measure("routes-flushed", REPAIRED, |site| {
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
        Site::build(lab)?.measure("forward-drop", REPAIRED, |site| {
            // The script starts with a flush, so that the second run begins without the rules from
            // the first run.
            let script = "iptables -P FORWARD ACCEPT; iptables -F FORWARD; iptables -P FORWARD DROP";
            site.edge().sh(script).map(drop)
        })
    }),
    scenario("interruption/nft-flushed", "what is lost when someone flushes all nftables rules", |lab| {
        let goals = Goals { lost: Some(2.0), silence: Some(1.0) };
        Site::build(lab)?.measure("nft-flushed", goals, |site| site.edge().sh("nft flush ruleset").map(drop))
    }),
    scenario("interruption/forwarding-off", "what is lost when someone turns forwarding off", |lab| {
        let goals = Goals { lost: None, silence: Some(1.0) };
        Site::build(lab)?
            .measure("forwarding-off", goals, |site| site.edge().sh("sysctl -qw net.ipv4.ip_forward=0").map(drop))
    }),
];

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

    fn measure(&self, what: &str, goals: Goals, happens: fn(&Self) -> Result<()>) -> Result<()> {
        let pings = [(&self.edge_pod, CLOUD_POD), (&self.cloud_pod, self.edge_pod_address.as_str())];
        measure(self.lab, what, goals, pings, || happens(self))
    }
}

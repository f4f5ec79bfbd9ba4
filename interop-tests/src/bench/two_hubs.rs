//! Measures the pings that are lost between a cloud pod and an edge pod when the first of two hubs
//! dies or is stopped, and when that hub comes back.
//!
//! Both hubs front the cloud's network. A cloud node, which has no tunnels, routes packets for
//! edges through one of the hubs. Each event happens once, since a hub that comes back is used
//! again only 30 s later.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::interruptions::{PACE, pass, silence};
use super::report::{Goal, Results};
use crate::edge_agent::Agent;
use crate::edge_controller::Controller;
use crate::scenario::{Lab, Needs, Scenario};
use crate::topology::{Net, NetworkPlan, Node, Ping, PingReport, Pod};
use crate::wait;

const CONTROLLER: &str = "198.51.100.10";
const HUB_1: &str = "198.51.100.11";
const HUB_2: &str = "198.51.100.12";
const WORKER: &str = "198.51.100.13";
const CLOUD_NETWORK: &str = "10.244.0.0/16";
const CLOUD_POD: &str = "10.244.1.2";

/// Number of consecutive pings that must be answered before and after an event.
const ANSWERED: u64 = 100;
/// Time for which a hub that has come back is watched. It is longer than both ends wait before they
/// use the hub again.
const WATCHED: Duration = Duration::from_secs(45);
/// Goal for the longest time without an answer, in seconds.
const SILENCE: f64 = 5.0;

const fn scenario(name: &'static str, about: &'static str, by_default: bool, run: fn(&Lab) -> Result<()>) -> Scenario {
    Scenario { name, about, deadline: Duration::from_secs(300), by_default, needs: Needs::Nothing, run }
}

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "interruption/hub-power-lost",
        "cloud pod and edge pod talk through the second hub when the first one loses power",
        true,
        |lab| {
            let mut site = Site::build(lab)?;
            site.measure("hub-power-lost", Goal::None, Goal::Ours(SILENCE), Site::cut_power)
        },
    ),
    scenario(
        "interruption/hub-stopped",
        "the first hub, in whose pod the sockets end with the agent, is stopped for an upgrade: no ping is lost, and none when it is back",
        true,
        |lab| {
            let mut site = Site::build_with(lab, Controller::join_without_holder)?;
            site.measure("hub-stopped", Goal::Ours(0.0), Goal::None, |site| {
                site.hub_1.process().stop()?;
                site.wait_path(HUB_2)
            })?;
            site.measure("hub-started", Goal::Ours(0.0), Goal::None, |site| {
                site.hub_1 = site.controller.start_again_without_holder(site.net.node("hub-1"))?;
                pass(WATCHED);
                site.wait_path(HUB_1)
            })
        },
    ),
    scenario("interruption/hub-back", "what is lost when the first hub is back after it lost power", false, |lab| {
        let mut site = Site::build(lab)?;
        site.cut_power()?;
        site.wait_path(HUB_2)?;
        site.measure("hub-back", Goal::Ours(0.0), Goal::None, |site| {
            site.restore_power()?;
            pass(WATCHED);
            site.wait_path(HUB_1)
        })
    }),
    scenario(
        "interruption/hub-agent-gone",
        "what is lost when the first hub's agent is killed for good while its kernel goes on",
        false,
        |lab| {
            let mut site = Site::build(lab)?;
            site.measure("hub-agent-gone", Goal::None, Goal::Ours(SILENCE), |site| {
                site.hub_1.process().kill()?;
                site.wait_path(HUB_2)
            })
        },
    ),
];

struct Site<'a> {
    lab: &'a Lab,
    net: &'a Net,
    controller: Controller<'a>,
    hub_1: Agent<'a>,
    /// Agents that run until the scenario ends.
    _agents: Vec<Agent<'a>>,
    cloud_pod: Pod,
    edge_pod: Pod,
    edge_pod_address: String,
    results: Results,
}

impl<'a> Site<'a> {
    fn build(lab: &'a Lab) -> Result<Self> {
        Self::build_with(lab, Controller::join)
    }

    /// Builds the site with this way to start the first hub's agent.
    fn build_with(lab: &'a Lab, join: fn(&Controller<'a>, &'a Node, &str) -> Result<Agent<'a>>) -> Result<Self> {
        let mut plan = NetworkPlan::new();
        plan.router("isp").on("cloud", &["198.51.100.1/24"]).on("home", &["192.168.1.1/24"]).masquerade("cloud");
        plan.host("controller").on("cloud", &[&format!("{CONTROLLER}/24")]).own_directory("/etc/edge-controller");
        for (name, address) in [("hub-1", HUB_1), ("hub-2", HUB_2)] {
            plan.host(name).on("cloud", &[&format!("{address}/24")]).via("198.51.100.1").route(CLOUD_NETWORK, WORKER);
        }
        plan.host("worker").on("cloud", &[&format!("{WORKER}/24")]).via("198.51.100.1");
        plan.host("edge").on("home", &["192.168.1.10/24"]).via("192.168.1.1");
        let net = lab.build(&plan)?;
        let networks = format!("networks = [{CLOUD_NETWORK:?}]");
        let controller = Controller::start(lab, net.node("controller"), CONTROLLER, &networks)?;
        // hub-1 is started first, so that no node waits for it.
        let mut hub_1 = join(&controller, net.node("hub-1"), "hub")?;
        hub_1.wait_ready()?;
        let mut edge = controller.join(net.node("edge"), "edge")?;
        edge.wait_up("hub-1")?;
        let hub_2 = controller.join(net.node("hub-2"), "hub")?;
        edge.wait_up("hub-2")?;
        let worker = controller.join(net.node("worker"), "cloud")?;
        let cloud_pod = net.node("worker").wired_pod("p", &format!("{CLOUD_POD}/24"), "10.244.1.1/24")?;
        let (edge_pod, edge_pod_address) = controller.pod_of(net.node("edge"))?;
        let _agents = vec![edge, hub_2, worker];
        let site = Self {
            lab,
            net,
            controller,
            hub_1,
            _agents,
            cloud_pod,
            edge_pod,
            edge_pod_address,
            results: Results::default(),
        };
        site.wait_path(HUB_1)?;
        Ok(site)
    }

    /// Waits until both ends send through a hub.
    fn wait_path(&self, hub: &str) -> Result<()> {
        wait::until(&format!("both ends to send through {hub}"), WATCHED, || {
            let route = self.net.node("worker").sh("ip route show 10.64.0.0/10")?;
            ensure!(route.contains(&format!("via {hub} ")), "the cloud node has {route:?}");
            let policies = self.net.node("edge").sh(&format!("ip xfrm policy list dir out dst {CLOUD_NETWORK}"))?;
            ensure!(policies.contains(&format!("dst {hub}\n")), "the edge has {policies}");
            Ok(())
        })
    }

    /// Disconnects the hub's link and kills all its processes.
    fn cut_power(&mut self) -> Result<()> {
        let hub = self.net.node("hub-1");
        hub.plug("cloud", false)?;
        self.hub_1.process().kill()?;
        // Removes the process that holds the hub's sockets, and the hub's kernel state.
        hub.sh(
            "for pid in $(ss -Hlunp | grep -o 'pid=[0-9]*' | cut -d = -f 2 | sort -u); do kill -9 $pid; done
             ip xfrm state flush; ip xfrm policy flush; nft flush ruleset; ip link del ecni-guard; rm -rf /run/edge-cni",
        )?;
        Ok(())
    }

    fn restore_power(&mut self) -> Result<()> {
        let hub = self.net.node("hub-1");
        hub.plug("cloud", true)?;
        self.hub_1 = self.controller.start_again(hub)?;
        Ok(())
    }

    fn measure(&mut self, what: &str, lost: Goal, silent: Goal, happens: fn(&mut Self) -> Result<()>) -> Result<()> {
        let mut there = Ping::start(&self.edge_pod, CLOUD_POD, PACE)?;
        let mut back = Ping::start(&self.cloud_pod, &self.edge_pod_address, PACE)?;
        for ping in [&mut there, &mut back] {
            ping.wait_more(ANSWERED)?;
        }
        happens(self)?;
        for ping in [&mut there, &mut back] {
            ping.wait_more(ANSWERED).with_context(|| format!("nothing is answered after {what}"))?;
        }
        let mut missed = Vec::new();
        for (direction, report) in [("from-edge", there.stop()?), ("from-cloud", back.stop()?)] {
            self.lab.step(&format!("{what}: {direction} {}", shown(&report)));
            if let Goal::Ours(most) = lost
                && report.lost() as f64 > most
            {
                missed.push(format!("{direction} {}", shown(&report)));
            }
            self.results.add(&format!("{what}/{direction}/lost"), "pings", report.lost() as f64, None, lost);
            self.results.add(&format!("{what}/{direction}/silence"), "s", silence(&report), None, silent);
        }
        self.results.write(self.lab.out())?;
        ensure!(missed.is_empty(), "{what}: at most {lost:?} may be lost: {}", missed.join("; "));
        Ok(())
    }
}

fn shown(report: &PingReport) -> String {
    format!("{} of {} lost, {:.2} s", report.lost(), report.sent, silence(report))
}

//! The first of two hubs dies, stops or comes back, or an edge does not reach it.
//!
//! Both hubs front the cloud's network. A cloud node, which has no tunnels, routes packets for
//! edges through one of the hubs.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::measurement::{self, Direction, Goals, measure, pass, scenario, tested};
use crate::edge_agent::Agent;
use crate::edge_controller::Controller;
use crate::scenario::{Lab, Scenario};
use crate::topology::{Net, NetworkPlan, Node, Pod};
use crate::wait;

const CONTROLLER: &str = "198.51.100.10";
const HUB_1: &str = "198.51.100.11";
const HUB_2: &str = "198.51.100.12";
const WORKER: &str = "198.51.100.13";
const CLOUD_NETWORK: &str = "10.244.0.0/16";
const CLOUD_POD: &str = "10.244.1.2";

/// Time limit for both ends to use another hub. A hub that has come back is used 30 s later.
const CHANGE: Duration = Duration::from_secs(90);
/// Time for which a hub that has come back is watched. It is longer than both ends wait before they
/// use the hub again.
const WATCHED: Duration = Duration::from_secs(45);
/// What is wanted when a hub dies.
const OTHER_HUB: Goals = Goals::silence(5.0);

pub(super) const SCENARIOS: &[Scenario] = &[
    tested(
        "interruption/hub-power-lost",
        "cloud pod and edge pod talk through the second hub when the first one loses power",
        |lab| {
            let mut site = Site::build(lab)?;
            measure(&mut site, "hub-power-lost", OTHER_HUB, Site::use_first_hub, Site::cut_power)
        },
    ),
    tested(
        "interruption/hub-handed-over",
        "the first hub, whose sockets end with its agent, is stopped for an upgrade and started again: no ping is lost",
        |lab| {
            let mut site = Site::build_with(lab, Controller::join_without_holder)?;
            measure(
                &mut site,
                "hub-handed-over",
                Goals::LOSSLESS,
                |_| Ok(()),
                |site| {
                    site.hub_1.process().stop()?;
                    site.wait_path(HUB_2)?;
                    site.hub_1 = site.controller.start_again_without_holder(site.net.node("hub-1"))?;
                    pass(WATCHED);
                    site.wait_path(HUB_1)
                },
            )
        },
    ),
    tested(
        "interruption/hub-reached-again",
        "an edge that reached only the second of two hubs, and was reached through it, reaches both: no ping is lost",
        |lab| {
            let mut site = Site::build(lab)?;
            measure(&mut site, "hub-reached-again", Goals::LOSSLESS, Site::block_first_hub, |site| {
                site.set_path_to_first_hub(true)?;
                pass(WATCHED);
                site.wait_path_of_edge(HUB_1)
            })
        },
    ),
    scenario(
        "interruption/hub-unreached",
        "what is lost when an edge no longer reaches the first of two hubs, which is well otherwise",
        |lab| {
            let mut site = Site::build(lab)?;
            let unblocked = |site: &mut Site<'_>| {
                site.set_path_to_first_hub(true)?;
                site.wait_path_of_edge(HUB_1)
            };
            measure(&mut site, "hub-unreached", OTHER_HUB, unblocked, Site::block_first_hub)
        },
    ),
    scenario("interruption/hub-back", "what is lost when the first hub is back after it lost power", |lab| {
        let mut site = Site::build(lab)?;
        let without_first_hub = |site: &mut Site<'_>| {
            site.cut_power()?;
            site.wait_path(HUB_2)
        };
        measure(&mut site, "hub-back", Goals::LOSSLESS, without_first_hub, |site| {
            site.restore_power()?;
            pass(WATCHED);
            site.wait_path(HUB_1)
        })
    }),
    scenario(
        "interruption/hub-agent-gone",
        "what is lost when the first hub's agent is killed for good while its kernel goes on",
        |lab| {
            let mut site = Site::build(lab)?;
            measure(&mut site, "hub-agent-gone", OTHER_HUB, Site::use_first_hub, |site| {
                site.hub_1.process().kill()?;
                site.wait_path(HUB_2)
            })
        },
    ),
    scenario(
        "interruption/hub-agent-stopped",
        "what is lost when the first hub's agent is stopped, as for an upgrade, and the second hub takes over",
        |lab| {
            let mut site = Site::build(lab)?;
            measure(&mut site, "hub-agent-stopped", Goals::LOSSLESS, Site::use_first_hub, |site| {
                site.hub_1.process().stop()?;
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
}

impl measurement::Site for Site<'_> {
    fn lab(&self) -> &Lab {
        self.lab
    }

    fn directions(&self) -> [Direction<'_>; 2] {
        [
            Direction { name: "from-edge", pod: &self.edge_pod, to: CLOUD_POD },
            Direction { name: "from-cloud", pod: &self.cloud_pod, to: &self.edge_pod_address },
        ]
    }
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
        let site = Self { lab, net, controller, hub_1, _agents, cloud_pod, edge_pod, edge_pod_address };
        site.wait_path(HUB_1)?;
        Ok(site)
    }

    /// Waits until both ends send through a hub.
    fn wait_path(&self, hub: &str) -> Result<()> {
        wait::until(&format!("both ends to send through {hub}"), CHANGE, || {
            let route = self.net.node("worker").sh("ip route show 10.64.0.0/10")?;
            ensure!(route.contains(&format!("via {hub} ")), "the cloud node has {route:?}");
            let policies = self.net.node("edge").sh(&format!("ip xfrm policy list dir out dst {CLOUD_NETWORK}"))?;
            ensure!(policies.contains(&format!("dst {hub}\n")), "the edge has {policies}");
            Ok(())
        })
    }

    /// Waits until the edge sends through a hub, and the cloud node routes packets for the edge
    /// through it.
    fn wait_path_of_edge(&self, hub: &str) -> Result<()> {
        let pod = &self.edge_pod_address;
        wait::until(&format!("the edge and packets to it to take {hub}"), CHANGE, || {
            let route = self.net.node("worker").sh(&format!("ip route get {pod}"))?;
            ensure!(route.contains(&format!("via {hub} ")), "the cloud node has {route:?}");
            let policies = self.net.node("edge").sh(&format!("ip xfrm policy list dir out dst {CLOUD_NETWORK}"))?;
            ensure!(policies.contains(&format!("dst {hub}\n")), "the edge has {policies}");
            Ok(())
        })
    }

    /// Lets the edge's router pass or drop packets between the edge and the first hub.
    fn set_path_to_first_hub(&self, open: bool) -> Result<()> {
        let drop = format!(
            "nft 'add table inet path; add chain inet path forward {{ type filter hook forward priority -10; }}
             add rule inet path forward ip daddr {HUB_1} drop; add rule inet path forward ip saddr {HUB_1} drop'"
        );
        let open_again = "nft 'add table inet path; delete table inet path'".to_owned();
        self.net.node("isp").sh(if open { &open_again } else { &drop })?;
        Ok(())
    }

    /// Blocks the path to the first hub, and waits until both ends send through the second one. The
    /// cloud node routes other edges through the first hub.
    fn block_first_hub(&mut self) -> Result<()> {
        self.set_path_to_first_hub(false)?;
        self.wait_path_of_edge(HUB_2)?;
        let route = self.net.node("worker").sh("ip route show 10.64.0.0/10")?;
        ensure!(route.contains(&format!("via {HUB_1} ")), "the cloud node routes the range by {route:?}");
        Ok(())
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

    /// Starts the first hub again if it is not running, and waits until both ends use it.
    fn use_first_hub(&mut self) -> Result<()> {
        if self.hub_1.process().exit_status()?.is_some() {
            self.restore_power()?;
        }
        self.wait_path(HUB_1)
    }
}

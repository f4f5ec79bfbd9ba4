//! Events at two edges of a community and a hub, with a controller. One edge is behind a NAT and
//! has a second uplink, and the other one has a public address.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::super::report::Results;
use super::measurement::{self, Direction, Goals, measure, measure_idle, median, scenario, silence_goal};
use super::nat;
use crate::edge_agent::Agent;
use crate::edge_controller::Controller;
use crate::scenario::{Lab, Scenario};
use crate::tcp_transfer::{NO_ICMP_ERRORS, TcpTransfer};
use crate::topology::{Net, NetworkPlan, Node, Pod};
use crate::wait;

const CONTROLLER: &str = "198.51.100.10";
const HUB: &str = "198.51.100.11";
const CLOUD_NETWORK: &str = "10.244.0.0/16";
const CLOUD_POD: &str = "10.244.1.2";
const CORE: &str = "203.0.113.254";
/// The edge's addresses at its first and second uplink.
const HOME: &str = "192.168.1.10";
const LTE: &str = "10.99.0.10";

/// Time limit for a tunnel to change its path. An edge returns to its first uplink after 30 s.
const CHANGE: Duration = Duration::from_secs(90);
/// Interval of NAT keepalives, seconds.
const KEEPALIVE: f64 = 20.0;
/// Maximum time without data in a connection when the path MTU falls, seconds.
const PATH_MTU_SILENCE: f64 = 3.0;

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "interruption/address-replaced-with-cloud",
        "what is lost between an edge behind a NAT and a hub when the edge gets another address",
        |lab| {
            let mut site = Site::build(lab, Pair::EdgeAndHub)?;
            measure(
                &mut site,
                "address-replaced-with-cloud",
                Goals::IN_FLIGHT,
                |_| Ok(()),
                |site| {
                    nat::replace_address(site.edge(), "home", [HOME, "192.168.1.77"])?;
                    site.edge().sh("ip route replace default via 192.168.1.1").map(drop)
                },
            )
        },
    ),
    scenario(
        "interruption/public-node-moved",
        "what is lost when a node with a public address gets another one, and its peer is behind a NAT",
        |lab| {
            let mut site = Site::build(lab, Pair::Edges)?;
            measure(&mut site, "public-node-moved", Goals::IN_FLIGHT, |_| Ok(()), Site::move_public)
        },
    ),
    scenario("interruption/public-node-moved-without-cloud", "the same while the controller is away", |lab| {
        let mut site = Site::build(lab, Pair::Edges)?;
        site.controller.process().kill()?;
        measure(&mut site, "public-node-moved-without-cloud", Goals::IN_FLIGHT, |_| Ok(()), Site::move_public)
    }),
    scenario(
        "interruption/uplink-lost",
        "what is lost when the cable of an edge is pulled, and its LTE uplink takes over",
        |lab| {
            let mut site = Site::build(lab, Pair::EdgeAndHub)?;
            site.add_lte()?;
            measure(&mut site, "uplink-lost", Goals::IN_FLIGHT, Site::back_on_cable, |site| {
                site.pull_cable()?;
                site.wait_uplink(LTE)
            })
        },
    ),
    scenario(
        "interruption/uplink-back",
        "what is lost when the cable of an edge is back, and the tunnel returns to it from LTE",
        |lab| {
            let mut site = Site::build(lab, Pair::EdgeAndHub)?;
            site.add_lte()?;
            let on_lte = |site: &mut Site<'_>| {
                site.pull_cable()?;
                site.wait_uplink(LTE)
            };
            measure(&mut site, "uplink-back", Goals::LOSSLESS, on_lte, Site::back_on_cable)
        },
    ),
    scenario(
        "interruption/nat-rebooted-idle",
        "how long the hub's pods cannot reach an idle edge whose NAT forgets its mappings",
        |lab| {
            let mut site = Site::build(lab, Pair::EdgeAndHub)?;
            measure_idle(&mut site, "nat-rebooted-idle", KEEPALIVE, |site| {
                nat::reboot(site.net.node("r-home"), "isp", Some(CORE))
            })
        },
    ),
    scenario(
        "interruption/public-address-replaced-idle",
        "how long the hub's pods cannot reach an idle edge whose public address changes",
        |lab| {
            let mut site = Site::build(lab, Pair::EdgeAndHub)?;
            measure_idle(&mut site, "public-address-replaced-idle", KEEPALIVE, |site| {
                nat::change_address(site.net.node("r-home"), "isp", ["203.0.113.11", "203.0.113.77"], Some(CORE))
            })
        },
    ),
    scenario(
        "interruption/authority-rolled-over",
        "what is lost when another authority signs all certificates, and the first one is retired",
        |lab| {
            let mut site = Site::build(lab, Pair::Edges)?;
            measure(&mut site, "authority-rolled-over", Goals::LOSSLESS, |_| Ok(()), Site::roll_over)
        },
    ),
    scenario(
        "interruption/path-mtu-fell",
        "how long TCP stands still when the path MTU falls to 1430, and no ICMP says so",
        |lab| path_mtu_fell(lab, "path-mtu-fell", true),
    ),
    scenario(
        "interruption/path-mtu-fell-with-icmp",
        "how long TCP stands still when the path MTU falls to 1430, and ICMP says so",
        |lab| path_mtu_fell(lab, "path-mtu-fell-with-icmp", false),
    ),
];

/// The nodes whose pods ping each other.
#[derive(Clone, Copy)]
enum Pair {
    EdgeAndHub,
    Edges,
}

struct Site<'a> {
    lab: &'a Lab,
    net: &'a Net,
    controller: Controller<'a>,
    edge_agent: Agent<'a>,
    pair: Pair,
    edge_pod: (Pod, String),
    public_pod: (Pod, String),
    cloud_pod: Pod,
    /// Agents that run until the scenario ends.
    _agents: [Agent<'a>; 2],
}

impl measurement::Site for Site<'_> {
    fn lab(&self) -> &Lab {
        self.lab
    }

    fn directions(&self) -> [Direction<'_>; 2] {
        let (name, pod, address) = match self.pair {
            Pair::EdgeAndHub => ("from-hub", &self.cloud_pod, CLOUD_POD),
            Pair::Edges => ("from-public", &self.public_pod.0, self.public_pod.1.as_str()),
        };
        [
            Direction { name: "from-edge", pod: &self.edge_pod.0, to: address },
            Direction { name, pod, to: &self.edge_pod.1 },
        ]
    }
}

impl<'a> Site<'a> {
    fn build(lab: &'a Lab, pair: Pair) -> Result<Self> {
        let mut plan = NetworkPlan::new();
        plan.router("core")
            .on("isp", &[&format!("{CORE}/24")])
            .on("cloud", &["198.51.100.1/24"])
            .on("town", &["192.0.2.1/24"]);
        plan.router("r-home")
            .on("isp", &["203.0.113.11/24"])
            .on("home", &["192.168.1.1/24"])
            .via(CORE)
            .masquerade("isp");
        plan.router("r-lte").on("isp", &["203.0.113.12/24"]).on("lte", &["10.99.0.1/24"]).via(CORE).masquerade("isp");
        plan.host("controller")
            .on("cloud", &[&format!("{CONTROLLER}/24")])
            .via("198.51.100.1")
            .own_directory("/etc/edge-controller");
        plan.host("hub").on("cloud", &[&format!("{HUB}/24")]).via("198.51.100.1");
        plan.host("public").on("town", &["192.0.2.10/24"]).via("192.0.2.1");
        // The second uplink gets its address later.
        plan.host("edge").on("home", &[&format!("{HOME}/24")]).on("lte", &[]).via("192.168.1.1");
        let net = lab.build(&plan)?;
        let networks = format!("networks = [{CLOUD_NETWORK:?}]");
        let controller = Controller::start(lab, net.node("controller"), CONTROLLER, &networks)?;
        let mut hub = controller.join(net.node("hub"), "hub")?;
        hub.wait_ready()?;
        let cloud_pod = net.node("hub").wired_pod("db", &format!("{CLOUD_POD}/24"), "10.244.1.1/24")?;
        let mut public = controller.join(net.node("public"), "edge")?;
        let mut edge_agent = controller.join(net.node("edge"), "edge")?;
        for agent in [&mut public, &mut edge_agent] {
            agent.wait_up("hub")?;
        }
        let public_pod = controller.pod_of(net.node("public"))?;
        let edge_pod = controller.pod_of(net.node("edge"))?;
        for name in ["public", "edge"] {
            controller.run(&["node", "label", name, "fabedge/edge-community=alpha"])?;
        }
        edge_agent.wait_up("public")?;
        public.wait_up("edge")?;
        let _agents = [hub, public];
        Ok(Self { lab, net, controller, edge_agent, pair, edge_pod, public_pod, cloud_pod, _agents })
    }

    fn edge(&self) -> &'a Node {
        self.net.node("edge")
    }

    /// Gives the public node another address.
    fn move_public(&mut self) -> Result<()> {
        let node = self.net.node("public");
        nat::replace_address(node, "town", ["192.0.2.10", "192.0.2.77"])?;
        node.sh("ip route replace default via 192.0.2.1").map(drop)
    }

    /// Gives the edge its second uplink, which it uses if the first one is away.
    fn add_lte(&self) -> Result<()> {
        self.edge()
            .sh(&format!("ip addr add {LTE}/24 dev lte && ip route add default via 10.99.0.1 metric 200"))
            .map(drop)
    }

    /// Pulls the cable of the first uplink. The host's network manager removes its address.
    fn pull_cable(&self) -> Result<()> {
        self.edge().plug("home", false)?;
        self.edge().sh(&format!("ip route del default via 192.168.1.1; ip addr del {HOME}/24 dev home")).map(drop)
    }

    /// Plugs the cable of the first uplink in if it was pulled, and waits until the tunnel uses it.
    fn back_on_cable(&mut self) -> Result<()> {
        self.edge().plug("home", true)?;
        self.edge().sh(&format!("ip addr replace {HOME}/24 dev home && ip route replace default via 192.168.1.1"))?;
        self.wait_uplink(HOME)
    }

    /// Waits until the edge sends to the hub from this address.
    fn wait_uplink(&self, address: &str) -> Result<()> {
        let (ours, hub): (IpAddr, IpAddr) = (address.parse()?, HUB.parse()?);
        wait::until(&format!("the tunnel to be at {address}"), CHANGE, || {
            let states = self.edge().xfrm_states()?;
            let out: Vec<_> = states.iter().filter(|state| state.dst == hub).map(|state| state.src).collect();
            ensure!(!out.is_empty() && out.iter().all(|source| *source == ours), "the edge sends from {out:?}");
            Ok(())
        })
    }

    /// Lets another authority sign, waits until no node needs the first one, and retires it.
    fn roll_over(&mut self) -> Result<()> {
        let authorities =
            || -> Result<Vec<Value>> { Ok(serde_json::from_str(&self.controller.run(&["ca", "list", "--json"])?)?) };
        let first = authorities()?.into_iter().find(|one| one["state"] == "active").context("none signs")?;
        let first = first["id"].as_str().context("it has no id")?.to_owned();
        self.controller.run(&["ca", "rollover"])?;
        wait::until("no node to need the first authority", CHANGE, || {
            let all = authorities()?;
            let old = all.iter().find(|one| one["id"] == first.as_str()).context("it is not listed")?;
            ensure!(old["needed_by"].as_array().is_some_and(Vec::is_empty), "{} need it", old["needed_by"]);
            Ok(())
        })?;
        self.controller.run(&["ca", "retire", &first]).map(drop)
    }
}

/// Measures the longest time without data in connections of pods, in both directions. `silent` is
/// whether the router sends no ICMP errors.
fn path_mtu_fell(lab: &Lab, what: &str, silent: bool) -> Result<()> {
    let site = Site::build(lab, Pair::Edges)?;
    let core = site.net.node("core");
    let mut silences = [Vec::new(), Vec::new()];
    let (edge, public) = (&site.edge_pod, &site.public_pod);
    for run in 1..=measurement::runs()? {
        core.sh("ip link set town mtu 1500; nft delete table inet silent 2>/dev/null || true")?;
        // On another address of the edge, larger sizes are tried at once.
        nat::replace_address(site.edge(), "home", [HOME, "192.168.1.77"])?;
        site.edge().sh("ip route replace default via 192.168.1.1")?;
        wait::until("the path to carry all packets", CHANGE, || {
            let status = site.edge_agent.status()?;
            let peers = status["peers"].as_array().cloned().unwrap_or_default();
            let known = peers.iter().find(|peer| peer["name"] == "public").map(|peer| peer["path_mtu"].clone());
            ensure!(known.as_ref().is_none_or(|known| known["limited"] != true), "it is {known:?}");
            ensure!(edge.0.reaches(&public.1, Duration::from_secs(1))?, "the other edge's pod does not answer");
            Ok(())
        })?;
        let transfers = [
            TcpTransfer::start(&edge.0, &public.0, public.1.parse()?)?,
            TcpTransfer::start(&public.0, &edge.0, edge.1.parse()?)?,
        ];
        for transfer in &transfers {
            transfer.wait_more(3)?;
        }
        if silent {
            core.sh(NO_ICMP_ERRORS)?;
        }
        core.sh("ip link set town mtu 1430")?;
        for (transfer, silences) in transfers.iter().zip(&mut silences) {
            // What was under way before is far less.
            transfer.wait_more(5)?;
            let longest = transfer.longest_silence().as_secs_f64();
            lab.step(&format!("{what}, run {run}: {longest:.2} s without data"));
            silences.push(longest);
        }
        for transfer in transfers {
            transfer.end()?;
        }
    }
    let mut results = Results::default();
    for (name, silences) in ["from-edge", "from-public"].into_iter().zip(silences) {
        let goal = silence_goal(Some(PATH_MTU_SILENCE));
        results.add(&format!("{what}/{name}/silence"), "s", median(silences.into_iter()), None, goal);
    }
    results.write(lab.out())
}

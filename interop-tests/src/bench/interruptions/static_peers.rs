//! Events at an edge behind a NAT and a hub with a public address. Both have static peers, and
//! there is no controller.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::measurement::{self, Direction, Goals, measure, pass, scenario, tested};
use super::nat;
use crate::edge_agent::{Agent, ChildSpis};
use crate::scenario::{Lab, Scenario};
use crate::strongswan::Charon;
use crate::strongswan::charon::{Auth, Connection};
use crate::topology::{Net, NetworkPlan, Node, Pod, Process};

const SECRET: &str = "a secret of edge and hub";
const EDGE_NETWORK: &str = "10.1.0.0/24";
const HUB_NETWORK: &str = "10.2.0.0/24";
const EDGE_POD: &str = "10.1.0.2";
const HUB_POD: &str = "10.2.0.2";
const HUB: &str = "203.0.113.10";

pub(super) const SCENARIOS: &[Scenario] = &[
    tested("interruption/agent-restarted", "nothing is lost when the edge's agent is restarted", |lab| {
        Site::with_agents(lab, "agent-restarted", Goals::LOSSLESS, |site| {
            site.edge.process().stop()?;
            site.edge = start_edge(site.lab, site.net, false)?;
            Ok(())
        })
    }),
    tested("interruption/agent-killed", "nothing is lost when the edge's agent is killed, and back after 1 s", |lab| {
        Site::with_agents(lab, "agent-killed", Goals::LOSSLESS, |site| site.edge_away(Duration::from_secs(1)))
    }),
    scenario("interruption/agent-away", "what is lost when the edge's agent is killed, and back after 20 s", |lab| {
        Site::with_agents(lab, "agent-away", Goals::LOSSLESS, |site| site.edge_away(Duration::from_secs(20)))
    }),
    scenario("interruption/hub-agent-restarted", "what is lost when the hub's agent is restarted", |lab| {
        Site::with_agents(lab, "hub-agent-restarted", Goals::LOSSLESS, |site| {
            site.hub.agent()?.process().stop()?;
            site.hub = Hub::Ours(start_hub(site.lab, site.net, false)?);
            Ok(())
        })
    }),
    tested(
        "interruption/hub-agent-killed",
        "nothing is lost when the hub's agent is killed, and back after 1 s",
        |lab| Site::with_agents(lab, "hub-agent-killed", Goals::LOSSLESS, |site| site.hub_away(Duration::from_secs(1))),
    ),
    tested(
        "interruption/pods-killed",
        "nothing is lost when both agents, in containers, are killed and back after 1 s, while other containers hold their sockets",
        |lab| {
            let mut site = Site::build(lab, true, |net| Ok(Hub::Ours(start_hub(lab, net, true)?)))?;
            let prepare = |site: &mut Site<'_>| {
                site.edge.wait_held()?;
                site.hub.agent()?.wait_held()
            };
            measure(&mut site, "pods-killed", Goals::LOSSLESS, prepare, |site| {
                site.edge_away(Duration::from_secs(1))?;
                site.edge.wait_up("hub")?;
                site.hub_away(Duration::from_secs(1))?;
                site.hub.agent()?.wait_up("edge")?;
                // A holder may be replaced while the agent runs.
                site.edge.wait_held()?;
                site.replace_holder("edge")?;
                site.edge.wait_held()?;
                site.edge_away(Duration::from_secs(1))
            })
        },
    ),
    scenario(
        "interruption/hub-agent-away",
        "what is lost when the hub's agent is killed, and back after 20 s",
        |lab| Site::with_agents(lab, "hub-agent-away", Goals::LOSSLESS, |site| site.hub_away(Duration::from_secs(20))),
    ),
    scenario("interruption/link-down-2s", "what is lost when the edge's link is down for 2 s", |lab| {
        Site::with_agents(lab, "link-down-2s", Goals::silence(2.1), |site| site.link_down(Duration::from_secs(2)))
    }),
    scenario("interruption/link-down-12s", "what is lost when the edge's link is down for 12 s", |lab| {
        Site::with_agents(lab, "link-down-12s", Goals::silence(12.1), |site| site.link_down(Duration::from_secs(12)))
    }),
    scenario(
        "interruption/address-replaced",
        "what is lost when the edge behind the NAT gets another address",
        |lab| {
            Site::with_agents(lab, "address-replaced", Goals::IN_FLIGHT, |site| {
                nat::replace_address(site.edge_node(), "home", ["192.168.1.10", "192.168.1.77"])?;
                site.edge_node().sh("ip route replace default via 192.168.1.1").map(drop)
            })
        },
    ),
    scenario(
        "interruption/nat-rebooted",
        "what is lost when the edge's NAT forgets its mappings while pods talk",
        |lab| {
            Site::with_agents(lab, "nat-rebooted", Goals::silence(2.0), |site| {
                nat::reboot(site.net.node("isp"), "internet", None)
            })
        },
    ),
    scenario(
        "interruption/public-address-replaced",
        "what is lost when the provider changes the public address while pods talk",
        |lab| {
            Site::with_agents(lab, "public-address-replaced", Goals::silence(2.0), |site| {
                nat::change_address(site.net.node("isp"), "internet", ["203.0.113.1", "203.0.113.2"], None)
            })
        },
    ),
    scenario("interruption/xfrm-flushed", "what is lost when someone flushes the edge's SAs and policies", |lab| {
        Site::with_agents(lab, "xfrm-flushed", Goals::REPAIRED_AT_ONCE, |site| {
            site.edge_node().sh("ip xfrm state flush; ip xfrm policy flush").map(drop)
        })
    }),
    scenario("interruption/outbound-sa-deleted", "what is lost when someone deletes the edge's outbound SA", |lab| {
        Site::with_agents(lab, "outbound-sa-deleted", Goals::REPAIRED_AT_ONCE, |site| {
            site.delete_sa(|spis| spis.spi_out)
        })
    }),
    scenario("interruption/inbound-sa-deleted", "what is lost when someone deletes the edge's inbound SA", |lab| {
        Site::with_agents(lab, "inbound-sa-deleted", Goals::REPAIRED_AT_ONCE, |site| site.delete_sa(|spis| spis.spi_in))
    }),
    tested("interruption/rekeyed", "nothing is lost when both ends rekey the CHILD_SA and the IKE SA", |lab| {
        Site::with_agents(lab, "rekeyed", Goals::LOSSLESS, |site| {
            site.edge.rekey("hub")?;
            site.edge.rekey_ike("hub")?;
            let hub = site.hub.agent()?;
            hub.rekey("edge")?;
            hub.rekey_ike("edge")
        })
    }),
    scenario(
        "interruption/rekeyed-with-charon",
        "what is lost when the edge, and charon as the hub, rekey the CHILD_SA and the IKE SA",
        |lab| {
            Site::with_charon(lab, "rekeyed-with-charon", Goals::LOSSLESS, |site| {
                site.edge.rekey("hub")?;
                site.edge.rekey_ike("hub")?;
                let charon = site.hub.charon()?;
                charon.rekey_child()?;
                charon.rekey_ike()
            })
        },
    ),
    scenario("interruption/child-deleted", "what is lost when charon, as the hub, deletes the CHILD_SA", |lab| {
        Site::with_charon(lab, "child-deleted", Goals::silence(0.5), |site| site.hub.charon()?.terminate_child())
    }),
];

/// The hub's IKE daemon.
enum Hub<'a> {
    Ours(Agent<'a>),
    Charon(Charon<'a>),
}

impl<'a> Hub<'a> {
    fn agent(&mut self) -> Result<&mut Agent<'a>> {
        match self {
            Self::Ours(agent) => Ok(agent),
            Self::Charon(_) => anyhow::bail!("the hub has charon"),
        }
    }

    fn charon(&self) -> Result<&Charon<'a>> {
        match self {
            Self::Charon(charon) => Ok(charon),
            Self::Ours(_) => anyhow::bail!("the hub has our agent"),
        }
    }
}

struct Site<'a> {
    lab: &'a Lab,
    net: &'a Net,
    edge: Agent<'a>,
    hub: Hub<'a>,
    /// The processes that hold the sockets of agents in containers, by node. Without them, the
    /// agents run as on a host.
    holders: BTreeMap<&'static str, Process>,
    edge_pod: Pod,
    hub_pod: Pod,
}

impl measurement::Site for Site<'_> {
    fn lab(&self) -> &Lab {
        self.lab
    }

    fn directions(&self) -> [Direction<'_>; 2] {
        [
            Direction { name: "from-edge", pod: &self.edge_pod, to: HUB_POD },
            Direction { name: "from-hub", pod: &self.hub_pod, to: EDGE_POD },
        ]
    }
}

impl<'a> Site<'a> {
    /// Measures an event between two agents.
    fn with_agents(lab: &'a Lab, what: &str, goals: Goals, happens: fn(&mut Self) -> Result<()>) -> Result<()> {
        let mut site = Self::build(lab, false, |net| Ok(Hub::Ours(start_hub(lab, net, false)?)))?;
        measure(&mut site, what, goals, |_| Ok(()), happens)
    }

    /// Measures an event between an agent, as the edge, and charon, as the hub.
    fn with_charon(lab: &'a Lab, what: &str, goals: Goals, happens: fn(&mut Self) -> Result<()>) -> Result<()> {
        let mut site = Self::build(lab, false, |net| {
            let connection = Connection::new("edge", Auth::Psk(SECRET.to_owned()))
                .local(HUB, "hub.example", HUB_NETWORK)
                .remote("%any", "edge.example", EDGE_NETWORK);
            Ok(Hub::Charon(Charon::start(net.node("hub"), &connection)?))
        })?;
        measure(&mut site, what, goals, |_| Ok(()), happens)
    }

    /// Builds the network. The agents run in containers if `contained`, with holders beside them.
    fn build(lab: &'a Lab, contained: bool, start_hub: impl FnOnce(&'a Net) -> Result<Hub<'a>>) -> Result<Self> {
        let mut plan = NetworkPlan::new();
        plan.router("isp").on("internet", &["203.0.113.1/24"]).on("home", &["192.168.1.1/24"]).masquerade("internet");
        plan.host("edge").on("home", &["192.168.1.10/24"]).via("192.168.1.1");
        plan.host("hub").on("internet", &[&format!("{HUB}/24")]).via("203.0.113.1");
        let net = lab.build(&plan)?;
        let edge_pod = net.node("edge").wired_pod("p", &format!("{EDGE_POD}/24"), "10.1.0.1/24")?;
        let hub_pod = net.node("hub").wired_pod("p", &format!("{HUB_POD}/24"), "10.2.0.1/24")?;
        let mut holders = BTreeMap::new();
        for node in ["edge", "hub"].into_iter().filter(|_| contained) {
            holders.insert(node, Agent::start_socket_holder(lab, net.node(node))?);
        }
        let hub = start_hub(net)?;
        let mut edge = start_edge(lab, net, contained)?;
        edge.wait_up("hub")?;
        Ok(Self { lab, net, edge, hub, holders, edge_pod, hub_pod })
    }

    fn edge_node(&self) -> &'a Node {
        self.net.node("edge")
    }

    /// Kills the edge's agent, and starts it again after this time.
    fn edge_away(&mut self, time: Duration) -> Result<()> {
        self.edge.process().kill()?;
        pass(time);
        self.edge = start_edge(self.lab, self.net, !self.holders.is_empty())?;
        Ok(())
    }

    /// Kills the hub's agent, and starts it again after this time.
    fn hub_away(&mut self, time: Duration) -> Result<()> {
        self.hub.agent()?.process().kill()?;
        pass(time);
        self.hub = Hub::Ours(start_hub(self.lab, self.net, !self.holders.is_empty())?);
        Ok(())
    }

    /// Kills the process that holds a node's sockets, waits until the agent knows, and starts
    /// another one.
    fn replace_holder(&mut self, node: &'static str) -> Result<()> {
        self.holders.get_mut(node).context("a holder")?.kill()?;
        self.edge.wait_not_held()?;
        self.holders.insert(node, Agent::start_socket_holder(self.lab, self.net.node(node))?);
        Ok(())
    }

    /// Disconnects the edge for this time.
    fn link_down(&self, time: Duration) -> Result<()> {
        self.edge_node().plug("home", false)?;
        pass(time);
        self.edge_node().plug("home", true)
    }

    /// Deletes one SA of the tunnel in the edge's kernel.
    fn delete_sa(&self, which: fn(&ChildSpis) -> u32) -> Result<()> {
        let spi = which(&self.edge.tunnel("hub")?);
        let node = self.edge_node();
        let states = node.xfrm_states()?;
        let state = states.iter().find(|state| state.spi == spi).context("the kernel has no such SA")?;
        node.sh(&format!("ip xfrm state delete src {} dst {} proto esp spi {spi:#x}", state.src, state.dst))?;
        let left = node.xfrm_states()?;
        ensure!(left.iter().all(|state| state.spi != spi), "the SA {spi:#x} is still there");
        Ok(())
    }
}

fn start_edge<'a>(lab: &Lab, net: &'a Net, contained: bool) -> Result<Agent<'a>> {
    let config = format!(
        "[[peer]]\nname = \"hub\"\nremote = [{HUB:?}]\nlocal_id = \"edge.example\"\nremote_id = \"hub.example\"\n\
         psk = {SECRET:?}\nlocal_subnets = [{EDGE_NETWORK:?}]\nremote_subnets = [{HUB_NETWORK:?}]\n"
    );
    start(lab, net.node("edge"), &config, contained)
}

fn start_hub<'a>(lab: &Lab, net: &'a Net, contained: bool) -> Result<Agent<'a>> {
    let config = format!(
        "[[peer]]\nname = \"edge\"\nlocal_id = \"hub.example\"\nremote_id = \"edge.example\"\nstart = \"respond\"\n\
         psk = {SECRET:?}\nlocal_subnets = [{HUB_NETWORK:?}]\nremote_subnets = [{EDGE_NETWORK:?}]\n"
    );
    start(lab, net.node("hub"), &config, contained)
}

fn start<'a>(lab: &Lab, node: &'a Node, config: &str, contained: bool) -> Result<Agent<'a>> {
    if contained {
        Agent::start_in_container(lab, node, config, "info")
    } else {
        Agent::start_with(lab, node, config, "info")
    }
}

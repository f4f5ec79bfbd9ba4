//! Connects two edges behind NATs of each kind that they can pass.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::edge_controller::Controller;
use crate::scenario::{Lab, Needs, Scenario};
use crate::topology::{NetworkPlan, Node, Ping};
use crate::wait;

const fn scenario(name: &'static str, about: &'static str, run: fn(&Lab) -> Result<()>) -> Scenario {
    Scenario { name, about, deadline: Duration::from_secs(180), by_default: true, needs: Needs::Nothing, run }
}

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "nat/changing-changing",
        "two NATs that change ports: the hubs tell the ports, and the edges connect",
        |lab| connects(lab, Nat::ChangesPorts, Nat::ChangesPorts),
    ),
    scenario("nat/changing-keeping", "one NAT changes ports and the other keeps them: the edges connect", |lab| {
        connects(lab, Nat::ChangesPorts, Nat::KeepsPorts)
    }),
    scenario("nat/symmetric-open", "an edge behind a symmetric NAT reaches one without a NAT", |lab| {
        connects(lab, Nat::Symmetric, Nat::None)
    }),
];

const HUB: &str = "203.0.113.1";

/// Interval of the pings.
const PACE: Duration = Duration::from_millis(20);

/// A router in front of an edge. None of the NATs lets in what comes from an address and port to
/// which nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nat {
    /// Nothing is translated.
    None,
    /// Ports stay as they are.
    KeepsPorts,
    /// Another port, the same one towards all destinations.
    ChangesPorts,
    /// Another port towards each destination.
    Symmetric,
}

impl Nat {
    fn start(self, router: &Node, public: &str) -> Result<()> {
        let translate = match self {
            Self::None => return Ok(()),
            Self::KeepsPorts => "masquerade".to_owned(),
            Self::ChangesPorts => format!("udp sport 4500 snat ip to {public}:61000"),
            Self::Symmetric => "meta l4proto udp masquerade to :20000-60000 fully-random".to_owned(),
        };
        // What comes unasked is dropped before connection tracking remembers it. Otherwise it would
        // take the port from the edge.
        router.sh(&format!(
            "set -e
             nft 'add table inet nat; add chain inet nat in {{ type filter hook input priority 0; }}'
             nft 'add chain inet nat post {{ type nat hook postrouting priority srcnat; }}'
             nft add rule inet nat in iifname isp meta l4proto udp drop
             nft add rule inet nat post oifname isp {translate}
             nft add rule inet nat post oifname isp masquerade"
        ))?;
        Ok(())
    }
}

fn connects(lab: &Lab, first: Nat, second: Nat) -> Result<()> {
    let mut plan = NetworkPlan::new();
    let open = |nat| nat == Nat::None;
    plan.host("hub").on("isp", &[&format!("{HUB}/24")]).own_directory("/etc/edge-controller");
    // Both homes have the same addresses, unless there is no NAT.
    for (index, nat) in [first, second].into_iter().enumerate() {
        let (edge, router, home) = (format!("edge-{index}"), format!("r-{index}"), format!("home-{index}"));
        let public = format!("203.0.113.{}/24", 10 + index);
        if open(nat) {
            plan.host(&edge).on("isp", &[&public]);
        } else {
            plan.router(&router).on("isp", &[&public]).on(&home, &["192.168.1.1/24"]);
            plan.host(&edge).on(&home, &["192.168.1.10/24"]).via("192.168.1.1");
        }
    }
    let net = lab.build(&plan)?;
    for (index, nat) in [first, second].into_iter().enumerate() {
        if !open(nat) {
            nat.start(net.node(&format!("r-{index}")), &format!("203.0.113.{}", 10 + index))?;
        }
    }
    let (hub, one, other) = (net.node("hub"), net.node("edge-0"), net.node("edge-1"));
    let controller = Controller::start(lab, hub, HUB, "")?;
    let mut hub_agent = controller.join(hub, "hub")?;
    hub_agent.wait_ready()?;
    let mut agents = [controller.join(one, "edge")?, controller.join(other, "edge")?];
    for agent in &mut agents {
        agent.wait_up("hub")?;
    }
    let ((pod, _), (_other_pod, address)) = (controller.pod_of(one)?, controller.pod_of(other)?);
    for name in ["edge-0", "edge-1"] {
        controller.run(&["node", "label", name, "fabedge/edge-community=alpha"])?;
    }
    agents[0].wait_up("edge-1")?;
    agents[1].wait_up("edge-0")?;
    let mut ping = Ping::start(&pod, &address, PACE)?;
    ping.wait_more(50)?;
    ping.stop()?;
    for (index, nat) in [first, second].into_iter().enumerate().filter(|(_, nat)| *nat == Nat::ChangesPorts) {
        // The other edge sends to the port that the NAT chose, which only the hub knew.
        let expected = format!("203.0.113.{}:61000", 10 + index);
        let (agent, peer) = (&agents[1 - index], format!("edge-{index}"));
        wait::for_event("the mapped address", || {
            let status = agent.status()?;
            let peers = status["peers"].as_array().cloned().unwrap_or_default();
            let remote = peers
                .iter()
                .find(|found| found["name"] == peer.as_str())
                .map(|found| found["ike_sas"][0]["remote"].clone());
            ensure!(remote == Some(expected.as_str().into()), "{nat:?}: {peer} is at {remote:?}, not at {expected}");
            Ok(())
        })?;
        lab.step(&format!("{peer} is reached at {expected}"));
    }
    Ok(())
}

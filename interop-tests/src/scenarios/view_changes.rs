//! Changes views while pods communicate.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::edge_controller::{Controller, STATE_DIR};
use crate::scenario::{Lab, Needs, Scenario};
use crate::stored_edges;
use crate::topology::{NetworkPlan, Node, Ping};
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "agent/peer-comes-and-goes",
    about: "a third member comes and goes thirty times while pods of two others talk: no ping is lost",
    deadline: Duration::from_secs(240),
    by_default: true,
    needs: Needs::Nothing,
    run: peer_comes_and_goes,
}];

const CLOUD: &str = "203.0.113.1";

/// Number of times that the third member joins and leaves.
const TIMES: usize = 30;

/// Interval of the pings. A packet is lost only if it is sent at the moment of a change.
const PACE: Duration = Duration::from_millis(2);

fn peer_comes_and_goes(lab: &Lab) -> Result<()> {
    let mut plan = NetworkPlan::new();
    plan.host("cloud").on("wire", &[&format!("{CLOUD}/24")]).own_directory("/etc/edge-controller");
    plan.host("edge-a").on("wire", &["203.0.113.10/24"]);
    plan.host("edge-b").on("wire", &["203.0.113.11/24"]);
    let net = lab.build(&plan)?;
    let (cloud, a, b) = (net.node("cloud"), net.node("edge-a"), net.node("edge-b"));
    stored_edges::fill(&cloud.path(STATE_DIR), 1)?;
    let controller = Controller::start(lab, cloud, CLOUD, "")?;
    let label = |node: &str, label: &str| controller.run(&["node", "label", node, label]).map(drop);
    let mut agents = [controller.join(a, "edge")?, controller.join(b, "edge")?];
    for agent in &mut agents {
        agent.wait_ready()?;
    }
    let ((pod_a, _), (_pod_b, address_b)) = (controller.pod_of(a)?, controller.pod_of(b)?);
    for name in ["edge-a", "edge-b"] {
        label(name, "fabedge/edge-community=alpha")?;
    }
    agents[0].wait_up("edge-b")?;
    let mut ping = Ping::start(&pod_a, &address_b, PACE)?;
    ping.wait_more(100)?;
    let chains = [chains(a)?, chains(b)?];

    let (third, segment) = (stored_edges::name(0), stored_edges::segment(0)?.to_string());
    for _ in 0..TIMES {
        for (change, is_member) in [("fabedge/edge-community=alpha", true), ("fabedge/edge-community-", false)] {
            label(&third, change)?;
            for node in [a, b] {
                wait::for_event("the firewall's set of remote networks", || {
                    let set = node.sh("nft list set inet edge-cni remote4")?;
                    ensure!(set.contains(&segment) == is_member, "{} has {set}", node.name());
                    Ok(())
                })?;
            }
        }
    }
    lab.step(&format!("{third} came and went {TIMES} times"));
    ping.wait_more(100)?;
    let report = ping.stop()?;
    lab.step(&format!("{} of {} pings lost", report.lost(), report.sent));
    report.expect_none_lost()?;
    for (node, before) in [a, b].into_iter().zip(&chains) {
        let now = self::chains(node)?;
        ensure!(now == *before, "{} made chains again: they were {before}, and are {now}", node.name());
    }
    Ok(())
}

/// Returns the chains of the agent's table with their handles, which change when a chain is deleted
/// and created again.
fn chains(node: &Node) -> Result<String> {
    node.sh("nft -a list table inet edge-cni | grep 'chain .* # handle'")
}

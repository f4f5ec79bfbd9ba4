//! Which of its own addresses an agent tells others and sends from.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::edge_agent::Agent;
use crate::edge_controller::Controller;
use crate::scenario::{Lab, Needs, Scenario};
use crate::topology::{NetworkPlan, Node, Ping};
use crate::wait;

const fn scenario(name: &'static str, about: &'static str, run: fn(&Lab) -> Result<()>) -> Scenario {
    Scenario { name, about, deadline: Duration::from_secs(400), by_default: true, needs: Needs::Nothing, run }
}

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "addresses/of-the-clouds-pods",
        "a hub's address in front of pods of another CNI is neither reported nor a source of packets when an edge is silent",
        of_the_clouds_pods,
    ),
    scenario(
        "addresses/better-uplink",
        "an edge's tunnel follows the better of two uplinks and returns, also after an address is away: no ping is lost",
        |lab| better_uplink(lab, false),
    ),
    scenario(
        "addresses/better-uplink-hub-begins",
        "the same where the hub has begun the IKE SA and may choose the addresses alone",
        |lab| better_uplink(lab, true),
    ),
    scenario(
        "addresses/temporary",
        "a tunnel over IPv6 begins at the lasting address beside a temporary one, which is not reported",
        temporary,
    ),
];

const HUB: &str = "203.0.113.1";
const HUB_V6: &str = "2001:db8:1::1";
/// The hub's addresses on the interface in front of the cloud's pod.
const IN_FRONT_OF_PODS: [&str; 2] = ["10.244.1.1", "fd44::1:1"];

/// Interval of the pings.
const PACE: Duration = Duration::from_millis(50);

fn of_the_clouds_pods(lab: &Lab) -> Result<()> {
    let mut plan = NetworkPlan::new();
    plan.host("hub")
        .on("wire", &[&format!("{HUB}/24"), &format!("{HUB_V6}/64")])
        .route("default", "203.0.113.10")
        .own_directory("/etc/edge-controller");
    plan.host("edge").on("wire", &["203.0.113.10/24", "2001:db8:1::10/64"]);
    let net = lab.build(&plan)?;
    let (hub_node, edge_node) = (net.node("hub"), net.node("edge"));
    let cloud_pod = hub_node.wired_pod("p", "10.244.1.2/24", "10.244.1.1/24")?;
    hub_node.sh("ip addr add fd44::1:1/112 dev veth-p nodad")?;
    let networks = "networks = [\"10.244.0.0/16\", \"fd44::/64\"]";
    let controller = Controller::start(lab, hub_node, HUB, networks)?;
    let mut hub = controller.join(hub_node, "hub")?;
    hub.wait_ready()?;
    // The original initiator may send from any of its addresses.
    let mut edge = let_the_hub_begin(edge_node, || controller.join(edge_node, "edge"))?;
    hub.wait_up("edge")?;
    edge.wait_up("hub")?;
    edge_node.sh(LET_BEGIN)?;
    let (_edge_pod, edge_pod_address) = controller.pod_of(edge_node)?;

    wait::for_event("the hub to name its own addresses alone", || {
        let status = hub.status()?;
        let own = &status["host"]["uplink_addresses"];
        ensure!(*own == serde_json::json!([HUB, HUB_V6]), "it names {own}");
        let nodes: Value = serde_json::from_str(&controller.run(&["node", "list", "--json"])?)?;
        let text = nodes.to_string();
        ensure!(text.contains(HUB_V6), "the controller does not know the hub's addresses: {text}");
        ensure!(!IN_FRONT_OF_PODS.iter().any(|address| text.contains(address)), "the controller says {text}");
        Ok(())
    })?;
    lab.step("the addresses in front of the cloud's pods are not reported");

    let mut ping = Ping::start(&cloud_pod, &edge_pod_address, PACE)?;
    ping.wait_more(10)?;
    let mut capture = hub_node.capture("wire")?;
    edge_node.plug("wire", false)?;
    // The hub retransmits, and tries other addresses of the edge.
    capture.wait_for("src host 2001:db8:1::1 and udp port 4500")?;
    wait::until("the hub to give the tunnel up", Duration::from_secs(120), || {
        let status = hub.status()?;
        let peers = status["peers"].as_array().cloned().unwrap_or_default();
        let phase = peers.iter().find(|peer| peer["name"] == "edge").map(|peer| peer["phase"].clone());
        ensure!(phase.as_ref().is_some_and(|phase| phase != "up"), "it is {phase:?}");
        Ok(())
    })?;
    capture.stop()?;
    capture.expect_none("(net 10.244.0.0/16 or net fd44::/64) and udp port 4500")?;
    ping.end()?;
    lab.step("a silent edge is tried from the hub's own addresses alone");

    edge_node.plug("wire", true)?;
    hub.wait_up("edge").map(drop)
}

/// Removes what [`let_the_hub_begin`] has set up.
const LET_BEGIN: &str = "nft delete table inet begin";

/// Keeps an edge from beginning an IKE SA while it may answer the hub, and starts its agent.
fn let_the_hub_begin<'a>(edge: &Node, start: impl FnOnce() -> Result<Agent<'a>>) -> Result<Agent<'a>> {
    edge.sh("set -e
         nft 'add table inet begin; add chain inet begin out { type filter hook output priority 0; }'
         nft add rule inet begin out udp dport '{ 500, 4500 }' ct state new drop")?;
    start()
}

const CABLE: &str = "192.168.1.10";
const LTE: &str = "100.64.0.2";
/// Time for a tunnel to move to another uplink: the uplink must stand for 30 s.
const MOVE: Duration = Duration::from_secs(90);

fn better_uplink(lab: &Lab, hub_begins: bool) -> Result<()> {
    let mut plan = NetworkPlan::new();
    plan.host("hub")
        .on("isp", &[&format!("{HUB}/24")])
        .route("192.168.1.0/24", "203.0.113.10")
        .route("100.64.0.0/24", "203.0.113.20")
        .own_directory("/etc/edge-controller");
    plan.router("cable-router").on("isp", &["203.0.113.10/24"]).on("cable", &["192.168.1.1/24"]);
    plan.router("lte-router").on("isp", &["203.0.113.20/24"]).on("lte", &["100.64.0.1/24"]);
    plan.host("edge").on("cable", &[&format!("{CABLE}/24")]).on("lte", &[&format!("{LTE}/24")]);
    let net = lab.build(&plan)?;
    let (hub_node, edge_node) = (net.node("hub"), net.node("edge"));
    // Each address uses the link that it belongs to, and everything else the better one.
    edge_node.sh(&format!(
        "set -e
         ip route add default via 192.168.1.1 metric 100
         ip route add default via 100.64.0.1 metric 200
         ip route add default via 192.168.1.1 table 101
         ip route add default via 100.64.0.1 table 102
         ip rule add from {CABLE} lookup 101
         ip rule add from {LTE} lookup 102"
    ))?;
    let cloud_pod = hub_node.wired_pod("p", "10.244.1.2/24", "10.244.1.1/24")?;
    let controller = Controller::start(lab, hub_node, HUB, "networks = [\"10.244.0.0/16\"]")?;
    let mut hub = controller.join(hub_node, "hub")?;
    hub.wait_ready()?;
    let join = || controller.join(edge_node, "edge");
    let mut edge = if hub_begins { let_the_hub_begin(edge_node, join)? } else { join()? };
    edge.wait_up("hub")?;
    if hub_begins {
        edge_node.sh(LET_BEGIN)?;
    }
    let (edge_pod, edge_pod_address) = controller.pod_of(edge_node)?;
    let local = |edge: &Agent<'_>| -> Result<String> {
        let status = edge.status()?;
        let peers = status["peers"].as_array().cloned().unwrap_or_default();
        let hub = peers.into_iter().find(|peer| peer["name"] == "hub").context("the hub is no peer")?;
        let local = hub["ike_sas"][0]["local"].as_str().context("no IKE SA")?;
        Ok(local.rsplit_once(':').map(|(address, _)| address.to_owned()).unwrap_or_default())
    };
    let wait_at = |edge: &Agent<'_>, address: &str| {
        wait::until(&format!("the tunnel to be at {address}"), MOVE, || {
            let found = local(edge)?;
            ensure!(found == address, "it is at {found}");
            Ok(())
        })
    };
    // The hub may have begun at the other address.
    wait_at(&edge, CABLE)?;

    let worse = "ip route add default via 100.64.0.1 metric 50";
    let back = "ip route del default via 100.64.0.1 metric 50";
    let mut pings = [Ping::start(&edge_pod, "10.244.1.2", PACE)?, Ping::start(&cloud_pod, &edge_pod_address, PACE)?];
    for (change, address) in [(worse, LTE), (back, CABLE)] {
        edge_node.sh(change)?;
        wait_at(&edge, address)?;
        for ping in &mut pings {
            ping.wait_more(60)?;
        }
    }
    for ping in pings {
        ping.stop()?.expect_none_lost()?;
    }
    lab.step("the tunnel went to LTE and back");

    edge_node.sh(&format!("ip addr del {CABLE}/24 dev cable"))?;
    wait_at(&edge, LTE)?;
    let mut pings = [Ping::start(&edge_pod, "10.244.1.2", PACE)?, Ping::start(&cloud_pod, &edge_pod_address, PACE)?];
    for ping in &mut pings {
        ping.wait_more(20)?;
    }
    edge_node.sh(&format!(
        "set -e
         ip addr add {CABLE}/24 dev cable
         ip route add default via 192.168.1.1 metric 100
         ip route replace default via 192.168.1.1 table 101"
    ))?;
    wait_at(&edge, CABLE)?;
    for ping in &mut pings {
        ping.wait_more(60)?;
    }
    for ping in pings {
        ping.stop()?.expect_none_lost()?;
    }
    lab.step("the cable's address went, and the tunnel returned to it when it was back");
    Ok(())
}

fn temporary(lab: &Lab) -> Result<()> {
    let mut plan = NetworkPlan::new();
    plan.host("hub").on("wire", &[&format!("{HUB}/24"), &format!("{HUB_V6}/64")]).own_directory("/etc/edge-controller");
    plan.host("edge").on("wire", &["203.0.113.10/24"]);
    let net = lab.build(&plan)?;
    let (hub_node, edge_node) = (net.node("hub"), net.node("edge"));
    edge_node.sh("set -e
         sysctl -qw net.ipv6.conf.wire.use_tempaddr=2
         ip addr add 2001:db8:1::10/64 dev wire mngtmpaddr nodad")?;
    let of_edge = |flag: &str| edge_node.sh(&format!("ip -6 -o addr show dev wire scope global {flag}"));
    let temporary = wait::for_event("a temporary address", || {
        let shown = of_edge("temporary -tentative")?;
        let address = shown.split_whitespace().find_map(|word| word.strip_suffix("/64"));
        address.map(ToOwned::to_owned).with_context(|| format!("none: {shown}"))
    })?;
    let chosen = edge_node.sh(&format!("ip route get {HUB_V6}"))?;
    ensure!(chosen.contains(&temporary), "the kernel does not prefer the temporary address: {chosen}");
    let controller = Controller::start_dual_stack(lab, hub_node, HUB)?;
    let mut hub = controller.join(hub_node, "hub")?;
    hub.wait_ready()?;
    // IKE works over IPv6 alone.
    edge_node.sh("set -e
         nft 'add table inet v4; add chain inet v4 out { type filter hook output priority 0; }'
         nft add rule inet v4 out meta nfproto ipv4 udp dport '{ 500, 4500 }' drop")?;
    let mut edge = controller.join(edge_node, "edge")?;
    edge.wait_up("hub")?;
    let status = edge.status()?;
    ensure!(status["host"]["uplink_addresses"] == serde_json::json!(["203.0.113.10", "2001:db8:1::10"]), "{status}");
    let locals: Vec<&str> =
        status["peers"][0]["ike_sas"].as_array().into_iter().flatten().filter_map(|sa| sa["local"].as_str()).collect();
    ensure!(!locals.is_empty() && locals.iter().all(|local| local.starts_with("[2001:db8:1::10]:")), "{locals:?}");
    let nodes = controller.run(&["node", "list", "--json"])?;
    ensure!(nodes.contains("2001:db8:1::10") && !nodes.contains(&temporary), "{nodes}");
    lab.step("the temporary address is not used");
    Ok(())
}

//! An edge behind a router with two uplinks, of which one fails.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::edge_controller::Controller;
use crate::scenario::{Lab, Needs, Scenario};
use crate::topology::{NetworkPlan, Ping};
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "two-uplinks/stale-mapping",
    about: "a router keeps the NAT mapping of the uplink that failed: the edge reaches its hub from another port within a minute",
    deadline: Duration::from_secs(300),
    by_default: true,
    needs: Needs::Nothing,
    run: stale_mapping,
}];

const HUB: &str = "192.0.2.1";
const EDGE: &str = "192.168.1.10";
const CLOUD_NETWORK: &str = "10.244.0.0/16";
const CLOUD_POD: &str = "10.244.1.2";
/// Interval of the pings.
const PACE: Duration = Duration::from_millis(50);
/// Time in which the tunnel must be back.
const BACK: Duration = Duration::from_secs(60);

fn stale_mapping(lab: &Lab) -> Result<()> {
    let mut plan = NetworkPlan::new();
    plan.host("hub")
        .on("cloud", &[&format!("{HUB}/24")])
        .route("198.51.100.0/24", "192.0.2.11")
        .route("203.0.113.0/24", "192.0.2.12")
        .own_directory("/etc/edge-controller");
    plan.router("provider-1").on("cloud", &["192.0.2.11/24"]).on("wan1", &["198.51.100.1/24"]);
    plan.router("provider-2").on("cloud", &["192.0.2.12/24"]).on("wan2", &["203.0.113.1/24"]);
    plan.router("router")
        .on("wan1", &["198.51.100.10/24"])
        .on("wan2", &["203.0.113.10/24"])
        .on("home", &["192.168.1.1/24"])
        .via("198.51.100.1");
    plan.host("edge").on("home", &[&format!("{EDGE}/24")]).via("192.168.1.1");
    let net = lab.build(&plan)?;
    let router = net.node("router");
    // Connection tracking looks at these rules only for the first packet of a flow.
    router.sh("set -e
         nft 'add table ip nat; add chain ip nat post { type nat hook postrouting priority srcnat; }'
         nft add rule ip nat post oifname wan1 snat to 198.51.100.10
         nft add rule ip nat post oifname wan2 snat to 203.0.113.10")?;
    // Providers drop packets from addresses that are not their own.
    net.node("provider-2").sh("set -e
         nft 'add table ip provider; add chain ip provider forward { type filter hook forward priority 0; }'
         nft add rule ip provider forward iifname wan2 ip saddr != 203.0.113.0/24 drop")?;
    let networks = format!("networks = [{CLOUD_NETWORK:?}]");
    let controller = Controller::start(lab, net.node("hub"), HUB, &networks)?;
    let mut hub = controller.join(net.node("hub"), "hub")?;
    hub.wait_ready()?;
    let cloud_pod = net.node("hub").wired_pod("p", &format!("{CLOUD_POD}/24"), "10.244.1.1/24")?;
    let mut edge = controller.join(net.node("edge"), "edge")?;
    edge.wait_up("hub")?;
    let (edge_pod, edge_pod_address) = controller.pod_of(net.node("edge"))?;
    let mut pings = [Ping::start(&edge_pod, CLOUD_POD, PACE)?, Ping::start(&cloud_pod, &edge_pod_address, PACE)?];
    for ping in &mut pings {
        ping.wait_more(50)?;
    }
    // The first provider fails, and the router changes to the second one.
    net.node("provider-1").sh("set -e
         nft 'add table ip provider; add chain ip provider forward { type filter hook forward priority 0; policy drop; }'")?;
    router.sh("ip route replace default via 203.0.113.1")?;
    wait::until("the edge to reach the hub from another port", BACK, || {
        let status = edge.status()?;
        let peers = status["peers"].as_array().cloned().unwrap_or_default();
        let report = peers.into_iter().find(|found| found["name"] == "hub").context("the hub is no peer")?;
        let local = report["ike_sas"][0]["local"].as_str().unwrap_or_default();
        ensure!(
            report["phase"] == "up" && local.starts_with(EDGE) && local != format!("{EDGE}:4500"),
            "it says {report}"
        );
        Ok(())
    })?;
    for (mut ping, direction) in pings.into_iter().zip(["from the edge", "from the cloud"]) {
        ping.wait_more(50).with_context(|| format!("pings {direction}"))?;
        let report = ping.stop()?;
        let silence = report.longest_silence;
        lab.step(&format!("{direction}: {} of {} lost, {silence:.1?} silent", report.lost(), report.sent));
        ensure!(silence < BACK, "{direction} nothing was answered for {silence:?}");
    }
    // The next renewals keep the port.
    edge.rekey_ike("hub")?;
    edge.rekey("hub")?;
    let mut ping = Ping::start(&edge_pod, CLOUD_POD, PACE)?;
    ping.wait_more(20)?;
    ping.stop()?.expect_none_lost()
}

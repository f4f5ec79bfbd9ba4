//! Tests the lab itself: captures and pings show what they must show.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::scenario::{Lab, Needs, Scenario};
use crate::topology::{Netem, NetworkPlan};

const DEADLINE: Duration = Duration::from_secs(60);

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "lab/clear-ping-is-captured",
        about: "a ping through a NAT router is seen on both of its wires, with the right addresses",
        deadline: DEADLINE,
        by_default: true,
        needs: Needs::Nothing,
        run: clear_ping_is_captured,
    },
    Scenario {
        name: "lab/loss-is-counted",
        about: "a wire that loses every packet for a while leaves a gap in a ping, and none before and after",
        deadline: DEADLINE,
        by_default: true,
        needs: Needs::Nothing,
        run: loss_is_counted,
    },
    Scenario {
        name: "lab/nodes-are-apart",
        about: "what one node writes below /run and /var/lib/edge-cni, another does not see",
        deadline: DEADLINE,
        by_default: true,
        needs: Needs::Nothing,
        run: nodes_are_apart,
    },
];

/// Declares host a behind a NAT router and host b on the internet, both with both families.
fn home_and_internet() -> NetworkPlan {
    let mut plan = NetworkPlan::new();
    plan.router("isp")
        .on("internet", &["203.0.113.1/24", "2001:db8::1/64"])
        .on("home", &["192.168.1.1/24", "2001:db8:1::1/64"])
        .masquerade("internet");
    plan.host("a").on("home", &["192.168.1.10/24", "2001:db8:1::10/64"]).via("192.168.1.1").via("2001:db8:1::1");
    plan.host("b").on("internet", &["203.0.113.10/24", "2001:db8::10/64"]);
    plan
}

fn clear_ping_is_captured(lab: &Lab) -> Result<()> {
    let net = lab.build(&home_and_internet())?;
    let (a, isp) = (net.node("a"), net.node("isp"));
    let mut inside = isp.capture("home")?;
    let mut outside = isp.capture("internet")?;
    for to in ["203.0.113.10", "2001:db8::10"] {
        ensure!(a.reaches(to, Duration::from_secs(5))?, "a does not reach {to}");
    }
    inside.wait_for("icmp and src 192.168.1.10 and dst 203.0.113.10")?;
    inside.wait_for("icmp6 and src 2001:db8:1::10")?;
    outside.wait_for("icmp and src 203.0.113.1 and dst 203.0.113.10")?;
    inside.stop()?;
    outside.stop()?;
    outside.expect_none("net 192.168.1.0/24")
}

fn loss_is_counted(lab: &Lab) -> Result<()> {
    let net = lab.build(&home_and_internet())?;
    let (a, b) = (net.node("a"), net.node("b"));
    let mut ping = a.ping("203.0.113.10")?;
    ping.wait_more(5)?;
    b.slow("internet", Some(Netem::delay(1).loss(100.0)))?;
    // `ping` keeps sending while the wire loses every packet.
    ensure!(!a.reaches("203.0.113.10", Duration::from_millis(500))?, "a wire that loses all lost nothing");
    b.slow("internet", None)?;
    ping.wait_more(5)?;
    let report = ping.stop()?;
    lab.step(&format!("{report:?}"));
    ensure!(report.gaps.len() == 1, "one gap was expected: {report:?}");
    ensure!(report.expect_none_lost().is_err(), "a gap must not pass for none lost");

    let mut ping = a.ping("203.0.113.10")?;
    ping.wait_more(5)?;
    ping.stop()?.expect_none_lost()
}

fn nodes_are_apart(lab: &Lab) -> Result<()> {
    let net = lab.build(&home_and_internet())?;
    let (a, b) = (net.node("a"), net.node("b"));
    for file in ["/run/x", "/var/lib/edge-cni/x", "/etc/cni/net.d/x"] {
        a.write(file, "a's")?;
        ensure!(a.sh(&format!("cat {file}"))? == "a's", "{file} is not where a's programs look");
        ensure!(!b.path(file).exists(), "b sees a's {file}");
    }
    let pod = a.wired_pod("p", "10.7.0.2/24", "10.7.0.1/24")?;
    ensure!(pod.reaches("10.7.0.1", Duration::from_secs(5))?, "a pod does not reach its host");
    ensure!(pod.reaches("192.168.1.10", Duration::from_secs(5))?, "a pod does not reach its host's other address");
    Ok(())
}

//! Runs edge-agent against edge-agent.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::edge_agent::{Agent, StaticPeer};
use crate::scenario::{Lab, Needs, Scenario};
use crate::strongswan::charon::Auth;
use crate::topology::{Netem, NetworkPlan};
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "agent/ike-rekey",
        about: "two agents rekey their IKE SA, each alone, both at once, and while the other one rekeys the CHILD_SA: no ping is lost",
        deadline: Duration::from_secs(120),
        by_default: true,
        needs: Needs::Nothing,
        run: ike_rekey,
    },
    Scenario {
        name: "agent/on-demand",
        about: "two agents on demand: the first packet of either end, or of both at once, brings one tunnel and is answered; idle ones go",
        deadline: Duration::from_secs(240),
        by_default: true,
        needs: Needs::Nothing,
        run: on_demand,
    },
    Scenario {
        name: "agent/ping",
        about: "edge-agent ping goes through the tunnel in both families, sees a delay and a loss, and says why nothing can be sent",
        deadline: Duration::from_secs(120),
        by_default: true,
        needs: Needs::Nothing,
        run: ping,
    },
];

/// Declares two hosts, `delay` milliseconds apart.
fn two_hosts(delay: u32) -> NetworkPlan {
    let mut plan = NetworkPlan::new();
    plan.router("isp").on("east", &["192.0.2.1/24"]).on("west", &["203.0.113.1/24"]).slow("west", Netem::delay(delay));
    plan.host("edge").on("west", &["203.0.113.10/24"]).via("203.0.113.1");
    plan.host("moon").on("east", &["192.0.2.10/24"]).via("192.0.2.1");
    plan
}

/// Returns the peer table for host `us`, one of the two hosts, which describes the other host.
fn peer(us: &str, start: &'static str) -> StaticPeer {
    let (them, remote) = if us == "edge" { ("moon", "192.0.2.10") } else { ("edge", "203.0.113.10") };
    StaticPeer {
        name: them.to_owned(),
        remote: vec![remote.to_owned()],
        local_id: format!("{us}.example"),
        remote_id: format!("{them}.example"),
        auth: Auth::Psk("correct horse battery".to_owned()),
        local_subnets: vec![if us == "edge" { "10.1.0.0/24" } else { "10.2.0.0/24" }.to_owned()],
        remote_subnets: vec![if us == "edge" { "10.2.0.0/24" } else { "10.1.0.0/24" }.to_owned()],
        ike: vec!["aes256gcm16-prfsha256-x25519".to_owned()],
        esp: vec!["aes256gcm16".to_owned()],
        start,
    }
}

fn ike_rekey(lab: &Lab) -> Result<()> {
    // The delay is large enough that the requests of two commands, sent one after the other, cross.
    let net = lab.build(&two_hosts(200))?;
    let (edge, moon) = (net.node("edge"), net.node("moon"));
    let edge_pod = edge.wired_pod("p", "10.1.0.2/24", "10.1.0.1/24")?;
    let moon_pod = moon.wired_pod("p", "10.2.0.2/24", "10.2.0.1/24")?;
    let mut a = Agent::start(lab, edge, "", &[peer("edge", "initiate")])?;
    let mut b = Agent::start(lab, moon, "", &[peer("moon", "respond")])?;
    a.wait_up("moon")?;
    b.wait_up("edge")?;
    let (mut ping, mut back) = (edge_pod.ping("10.2.0.2")?, moon_pod.ping("10.1.0.2")?);
    ping.wait_more(3)?;
    back.wait_more(3)?;

    let agree = |before: &[(String, String)]| {
        wait::for_event("both agents to name one new IKE SA and one CHILD_SA", || {
            let (ours, theirs) = (a.ike_sas("moon")?, b.ike_sas("edge")?);
            ensure!(
                ours.len() == 1 && ours == theirs && ours != before,
                "they name {ours:?} and {theirs:?}, had {before:?}"
            );
            let (ours, theirs) = (a.tunnel("moon")?, b.tunnel("edge")?);
            ensure!((ours.spi_in, ours.spi_out) == (theirs.spi_out, theirs.spi_in), "{ours:x?} and {theirs:x?}");
            Ok(())
        })
    };
    let before = a.ike_sas("moon")?;
    a.rekey_ike("moon")?;
    agree(&before)?;
    let before = a.ike_sas("moon")?;
    b.rekey_ike("edge")?;
    agree(&before)?;
    lab.step("each end rekeys the IKE SA");

    for _ in 0..3 {
        let before = a.ike_sas("moon")?;
        a.ask_to_rekey("moon", true)?;
        b.ask_to_rekey("edge", true)?;
        agree(&before)?;
    }
    lab.step("both ends rekey the IKE SA at once");

    let (before, child) = (a.ike_sas("moon")?, a.tunnel("moon")?);
    a.ask_to_rekey("moon", true)?;
    b.ask_to_rekey("edge", false)?;
    agree(&before)?;
    wait::for_event("another CHILD_SA", || {
        ensure!(a.tunnel("moon")? != child, "it is still {child:x?}");
        Ok(())
    })?;
    agree(&before)?;
    lab.step("a rekey of the IKE SA and one of the CHILD_SA cross");

    ping.wait_more(5)?;
    back.wait_more(5)?;
    ping.stop()?.expect_none_lost()?;
    back.stop()?.expect_none_lost()
}

fn ping(lab: &Lab) -> Result<()> {
    let net = lab.build(&two_hosts(50))?;
    let (edge, moon) = (net.node("edge"), net.node("moon"));
    let _edge_pod = edge.wired_pod("p", "10.1.0.2/24", "10.1.0.1/24")?;
    let _moon_pod = moon.wired_pod("p", "10.2.0.2/24", "10.2.0.1/24")?;
    for (node, address) in [(edge, "fd01::1/64"), (moon, "fd02::1/64")] {
        node.sh(&format!("ip link add six type dummy; ip link set six up; ip addr add {address} dev six nodad"))?;
    }
    edge.sh("ip -6 route add fd02::/64 dev six")?;
    moon.sh("ip -6 route add fd01::/64 dev six")?;
    let dual_stack = |us: &str, start| {
        let mut peer = peer(us, start);
        let (here, there) = if us == "edge" { ("fd01::/64", "fd02::/64") } else { ("fd02::/64", "fd01::/64") };
        peer.local_subnets.push(here.to_owned());
        peer.remote_subnets.push(there.to_owned());
        peer
    };
    let mut a = Agent::start(lab, edge, "", &[dual_stack("edge", "initiate")])?;
    a.wait_ready()?;
    let Err(why) = a.command(&["ping", "10.2.0.2"]) else { bail!("a ping without a tunnel is answered") };
    ensure!(format!("{why:#}").contains("there is no tunnel"), "{why:#}");

    let mut b = Agent::start(lab, moon, "", &[dual_stack("moon", "respond")])?;
    a.wait_up("moon")?;
    b.wait_up("edge")?;
    let mut wire = net.node("isp").capture("east")?;
    for (to, from) in [("10.2.0.2", "10.1.0.1"), ("fd02::1", "fd01::1")] {
        let out = a.command(&["ping", to, "--count", "4", "--interval", "50ms", "--timeout", "60s", "--json"])?;
        let found: Value = serde_json::from_str(&out)?;
        let result = found.pointer("/results/0").context("a result")?;
        let is = |key: &str, value: Value| result.get(key) == Some(&value);
        ensure!(is("sent", 4.into()) && is("received", 4.into()) && is("peer", "moon".into()), "{result}");
        ensure!(is("source", from.into()) && is("path", "direct".into()), "{result}");
        // The wire delays each packet by 50 ms.
        let shortest = result.pointer("/round_trip_ms/min").and_then(Value::as_f64).unwrap_or_default();
        ensure!(shortest >= 50.0, "{result}");
    }
    wire.stop()?;
    wire.expect_none("net 10.0.0.0/8 or net fd00::/8")?;
    lab.step("pings in both families go through the tunnel");

    let Err(why) = a.command(&["ping", "10.2.0.77", "--count", "2", "--interval", "50ms", "--timeout", "1s"]) else {
        bail!("an address without a host answers")
    };
    ensure!(format!("{why:#}").contains("moon at 10.2.0.77"), "{why:#}");
    let Err(why) = a.command(&["ping", "moon"]) else { bail!("which address of moon answers is not known") };
    ensure!(format!("{why:#}").contains("name one"), "{why:#}");
    lab.step("what does not answer is named");
    Ok(())
}

/// Maximum time for which a single packet may wait for its tunnel and its answer.
const PATIENCE: Duration = Duration::from_secs(60);

fn on_demand(lab: &Lab) -> Result<()> {
    let net = lab.build(&two_hosts(60))?;
    let (edge, moon) = (net.node("edge"), net.node("moon"));
    let edge_pod = edge.wired_pod("p", "10.1.0.2/24", "10.1.0.1/24")?;
    let moon_pod = moon.wired_pod("p", "10.2.0.2/24", "10.2.0.1/24")?;
    let mut wire = net.node("isp").capture("east")?;
    let idle = "[on_demand]\nidle_timeout = \"2s\"";
    let mut a = Agent::start(lab, edge, idle, &[peer("edge", "on-demand")])?;
    let mut b = Agent::start(lab, moon, idle, &[peer("moon", "on-demand")])?;
    a.wait_ready()?;
    b.wait_ready()?;
    let both_wait = || -> Result<()> {
        a.wait_phase("moon", "on-demand")?;
        b.wait_phase("edge", "on-demand")?;
        wait::for_event("no IKE SA to be left", || {
            let (ours, theirs) = (a.ike_sas("moon")?, b.ike_sas("edge")?);
            ensure!(ours.is_empty() && theirs.is_empty(), "{ours:?} and {theirs:?}");
            Ok(())
        })
    };
    both_wait()?;
    lab.step("neither end begins");

    for (pod, to) in [(&edge_pod, "10.2.0.2"), (&moon_pod, "10.1.0.2")] {
        // One packet, which sets up the tunnel.
        ensure!(pod.reaches(to, PATIENCE)?, "the first packet to {to} was lost");
        both_wait()?;
    }
    lab.step("the first packet of either end is answered, and idle tunnels go");

    let (mut ping, mut back) = (edge_pod.ping("10.2.0.2")?, moon_pod.ping("10.1.0.2")?);
    ping.wait_more(5)?;
    back.wait_more(5)?;
    wait::for_event("both agents to have one and the same tunnel", || {
        let (ours, theirs) = (a.ike_sas("moon")?, b.ike_sas("edge")?);
        ensure!(ours.len() == 1 && ours == theirs, "they name {ours:?} and {theirs:?}");
        let (ours, theirs) = (a.tunnel("moon")?, b.tunnel("edge")?);
        ensure!((ours.spi_in, ours.spi_out) == (theirs.spi_out, theirs.spi_in), "{ours:x?} and {theirs:x?}");
        Ok(())
    })?;
    ping.wait_more(5)?;
    back.wait_more(5)?;
    for report in [ping.stop()?, back.stop()?] {
        lab.step(&format!("both ends begin at once: {report:?}"));
        ensure!(report.gaps.iter().all(|gap| gap.first > 1), "the first packet was lost: {report:?}");
    }
    both_wait()?;
    wire.stop()?;
    wire.expect_none("net 10.0.0.0/8")
}

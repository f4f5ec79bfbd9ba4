//! edge-agent against edge-agent.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::edge_agent::{Agent, StaticPeer};
use crate::scenario::{Lab, Needs, Scenario};
use crate::strongswan::charon::Auth;
use crate::topology::{Netem, NetworkPlan};
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "agent/ike-rekey",
    about: "two agents rekey their IKE SA, each alone, both at once, and while the other one rekeys the CHILD_SA: no ping is lost",
    deadline: Duration::from_secs(120),
    by_default: true,
    needs: Needs::Nothing,
    run: ike_rekey,
}];

fn ike_rekey(lab: &Lab) -> Result<()> {
    let mut plan = NetworkPlan::new();
    // Slow enough that the requests of two commands, one after the other, cross.
    plan.router("isp").on("east", &["192.0.2.1/24"]).on("west", &["203.0.113.1/24"]).slow("west", Netem::delay(200));
    plan.host("edge").on("west", &["203.0.113.10/24"]).via("203.0.113.1");
    plan.host("moon").on("east", &["192.0.2.10/24"]).via("192.0.2.1");
    let net = lab.build(&plan)?;
    let (edge, moon) = (net.node("edge"), net.node("moon"));
    let edge_pod = edge.wired_pod("p", "10.1.0.2/24", "10.1.0.1/24")?;
    let moon_pod = moon.wired_pod("p", "10.2.0.2/24", "10.2.0.1/24")?;
    let peer = |us: &str, them: &str, remote: &str, start| StaticPeer {
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
    };
    let mut a = Agent::start(lab, edge, "", &[peer("edge", "moon", "192.0.2.10", "initiate")])?;
    let mut b = Agent::start(lab, moon, "", &[peer("moon", "edge", "203.0.113.10", "respond")])?;
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

//! Lets the NAT in front of the initiator forget its mappings. Neither end has MOBIKE: pluto has it
//! off by default.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::ends::{conn, peer};
use crate::edge_agent::Agent;
use crate::libreswan::Pluto;
use crate::scenario::Lab;
use crate::scenarios::site::{Initiator, SECRET, Site};
use crate::strongswan::charon::Auth;
use crate::topology::{Net, Ping};
use crate::wait;

const NEW_PORT: u16 = 61_000;

/// Maximum time without an answer. As initiator, the agent notices after two to three seconds that
/// no ESP comes back, and rekeys the CHILD_SA.
const LONGEST_SILENCE: Duration = Duration::from_secs(10);

/// Age from which on a CHILD_SA is rekeyed for this reason, and a bit.
const REKEYED_FROM: Duration = Duration::from_secs(32);

pub(super) fn run(lab: &Lab, initiator: Initiator) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let site = Site::new(net, initiator)?;
    let auth = || Auth::Psk(SECRET.to_owned());
    let pluto = Pluto::start(site.moon, &conn(&site, auth(), &[]))?;
    let mut agent = Agent::start(lab, site.edge, "", &[peer(&site, auth())])?;
    agent.wait_ready()?;
    if initiator == Initiator::Moon {
        wait::for_event("pluto to get through", || pluto.initiate())?;
    }
    agent.wait_up("moon")?;
    pluto.wait_up()?;
    let up = Instant::now();
    let ike = agent.ike_sas("moon")?;
    if initiator == Initiator::Edge {
        without_rekey(lab, net, &site, &agent)?;
        wait::until("the CHILD_SA to be old enough", REKEYED_FROM * 2, || {
            ensure!(up.elapsed() >= REKEYED_FROM, "it is young");
            Ok(())
        })?;
    }
    let mut pings = both_ways(&site)?;
    map_to(net, Some(NEW_PORT))?;
    for ping in &mut pings {
        ping.wait_more(10)?;
    }
    for ping in pings {
        let report = ping.stop()?;
        let (lost, silent) = (report.lost(), report.longest_silence);
        lab.step(&format!("the NAT maps to another port: {lost} of {} lost, {silent:?} silent", report.sent));
        ensure!(silent < LONGEST_SILENCE, "{report:?}");
    }
    let after = agent.ike_sas("moon")?;
    ensure!(after == ike, "the IKE SA was replaced: {ike:?} {after:?}");
    agent.rekey("moon")?;
    pluto.rekey_child()?;
    agent.rekey_ike("moon")?;
    pluto.rekey_ike()?;
    let mut ping = site.edge_pod.ping("10.2.0.2")?;
    ping.wait_more(3)?;
    ping.stop()?;
    ensure!(site.moon_pod.reaches("10.1.0.2", Duration::from_secs(5))?, "moon's pod does not reach edge's");
    lab.step("each end has rekeyed both SAs");
    Ok(())
}

/// The control: in the first half minute of its life a CHILD_SA is not rekeyed for this reason.
/// Without the rekey, no answer comes until the NAT maps as before.
fn without_rekey(lab: &Lab, net: &Net, site: &Site<'_>, agent: &Agent<'_>) -> Result<()> {
    let child = agent.tunnel("moon")?;
    let pings = both_ways(site)?;
    map_to(net, Some(NEW_PORT))?;
    let changed = Instant::now();
    wait::for_event("the longest silence to pass", || {
        ensure!(changed.elapsed() > LONGEST_SILENCE, "it has not passed");
        Ok(())
    })?;
    ensure!(agent.tunnel("moon")? == child, "the CHILD_SA was rekeyed, so this is no control");
    map_to(net, None)?;
    for mut ping in pings {
        ping.wait_more(10)?;
        let report = ping.stop()?;
        let (lost, silent) = (report.lost(), report.longest_silence);
        lab.step(&format!("without a rekey of the CHILD_SA: {lost} of {} lost, {silent:?} silent", report.sent));
        ensure!(silent > LONGEST_SILENCE, "packets pass without a rekey, too: {report:?}");
    }
    ensure!(agent.tunnel("moon")? == child, "the CHILD_SA was rekeyed, so this was no control");
    Ok(())
}

/// Starts a ping from each pod to the other one, and waits for answers.
fn both_ways(site: &Site<'_>) -> Result<Vec<Ping>> {
    let mut pings = vec![site.edge_pod.ping("10.2.0.2")?, site.moon_pod.ping("10.1.0.2")?];
    pings.iter_mut().try_for_each(|ping| ping.wait_more(10))?;
    Ok(pings)
}

/// Lets the NAT forget its mappings. It maps the initiator's port 4500 to this port, or keeps it.
fn map_to(net: &Net, port: Option<u16>) -> Result<()> {
    let rule = port.map_or(String::new(), |port| {
        format!("nft add rule inet lab postrouting oifname internet udp sport 4500 masquerade to :{port}")
    });
    // The router drops packets to a port that it does not map. Otherwise it would take them for its
    // own, and map no host to that port.
    // The device is down during the change. Otherwise packets in between would make a mapping that
    // is neither the old nor the new one.
    net.node("isp")
        .sh(&format!(
            "set -e
             ip link set internet down
             nft add chain inet lab own '{{ type filter hook input priority filter; }}'
             nft add rule inet lab own iifname internet udp dport 4500 drop
             nft flush chain inet lab postrouting
             {rule}
             nft add rule inet lab postrouting oifname internet masquerade
             ip link set internet up"
        ))
        .map(drop)
}

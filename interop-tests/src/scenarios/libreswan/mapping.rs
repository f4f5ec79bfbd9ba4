//! Lets the NAT in front of the initiator forget its mappings. Neither end has MOBIKE: pluto has it
//! off by default.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::ends::{conn, peer};
use crate::edge_agent::Agent;
use crate::libreswan::Pluto;
use crate::scenario::Lab;
use crate::scenarios::site::{Initiator, SECRET, Site};
use crate::strongswan::charon::Auth;
use crate::topology::Ping;
use crate::wait;

const NEW_PORT: u16 = 61_000;

/// Maximum time without an answer. As initiator, the agent notices after two to three seconds that
/// no ESP comes back, and rekeys the CHILD_SA.
const LONGEST_SILENCE: Duration = Duration::from_secs(10);

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
    let ike = agent.ike_sas("moon")?;
    let mut pings: Vec<Ping> = vec![site.edge_pod.ping("10.2.0.2")?, site.moon_pod.ping("10.1.0.2")?];
    // A CHILD_SA is not rekeyed for this reason in the first half minute of its life. There are ten
    // pings a second.
    let ready = if initiator == Initiator::Edge { 32 } else { 1 };
    for _ in 0..ready {
        pings.iter_mut().try_for_each(|ping| ping.wait_more(10))?;
    }
    // The device is down during the change. Otherwise packets in between would make a mapping that
    // is neither the old nor the new one.
    net.node("isp").sh(&format!(
        "set -e
         ip link set internet down
         nft flush chain inet lab postrouting
         nft add rule inet lab postrouting oifname internet udp sport 4500 masquerade to :{NEW_PORT}
         nft add rule inet lab postrouting oifname internet masquerade
         ip link set internet up"
    ))?;
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

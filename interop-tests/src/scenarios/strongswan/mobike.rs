//! Runs MOBIKE (RFC 4555) with charon: either end gets another address, and the IKE SA stays.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::site::{Initiator, SECRET, Site};
use crate::edge_agent::{Agent, StaticPeer};
use crate::scenario::Lab;
use crate::strongswan::Charon;
use crate::strongswan::charon::{Auth, Connection};
use crate::topology::{NetworkPlan, Node, Ping, Pod};
use crate::wait;

/// Addresses in a network that both hosts share: edge-agent's address, the address to which it
/// changes, and charon's address.
pub(super) struct Addresses {
    edge: [&'static str; 2],
    moon: [&'static str; 2],
    prefix: u8,
}

pub(super) const IPV4: Addresses =
    Addresses { edge: ["192.0.2.1", "192.0.2.11"], moon: ["192.0.2.2", "192.0.2.12"], prefix: 24 };
pub(super) const IPV6: Addresses =
    Addresses { edge: ["2001:db8::1", "2001:db8::11"], moon: ["2001:db8::2", "2001:db8::12"], prefix: 64 };

/// Maximum time without an answer. Without MOBIKE nothing happens before the liveness check, 4 s
/// after the last answer.
const LONGEST_SILENCE: Duration = Duration::from_secs(3);

/// Checks both hosts on one wire: first edge-agent's host moves, then charon's.
pub(super) fn both_move(lab: &Lab, initiator: Initiator, addresses: Addresses) -> Result<()> {
    let Addresses { edge: ours, moon: theirs, prefix } = addresses;
    let mut plan = NetworkPlan::new();
    plan.host("edge").on("wire", &[&format!("{}/{prefix}", ours[0])]);
    plan.host("moon").on("wire", &[&format!("{}/{prefix}", theirs[0])]);
    let net = lab.build(&plan)?;
    let (edge, moon) = (net.node("edge"), net.node("moon"));
    let edge_pod = edge.wired_pod("p", "10.1.0.2/24", "10.1.0.1/24")?;
    let moon_pod = moon.wired_pod("p", "10.2.0.2/24", "10.2.0.1/24")?;
    let auth = Auth::Psk(SECRET.to_owned());
    let (at, start) = match initiator {
        Initiator::Edge => ("%any", "initiate"),
        Initiator::Moon => (ours[0], "respond"),
    };
    let connection = Connection::new("edge", auth.clone()).local("%any", "moon.example", "10.2.0.0/24").remote(
        at,
        "edge.example",
        "10.1.0.0/24",
    );
    let peer = StaticPeer {
        name: "moon".to_owned(),
        remote: vec![theirs[0].to_owned()],
        local_id: "edge.example".to_owned(),
        remote_id: "moon.example".to_owned(),
        auth,
        local_subnets: vec!["10.1.0.0/24".to_owned()],
        remote_subnets: vec!["10.2.0.0/24".to_owned()],
        ike: vec!["aes256gcm16-prfsha256-x25519".to_owned()],
        esp: vec!["aes256gcm16".to_owned()],
        start,
    };
    let charon = Charon::start(moon, &connection)?;
    let mut agent = Agent::start(lab, edge, "", &[peer])?;
    begin(&mut agent, &charon, initiator)?;

    let pods = (&edge_pod, &moon_pod);
    check_move(lab, &agent, pods, "edge-agent's host moves", || {
        replace(edge, "wire", ours, prefix)?;
        on_path(edge, ours[1], theirs[0])?;
        on_path(moon, theirs[0], ours[1])
    })?;
    check_move(lab, &agent, pods, "charon's host moves", || {
        replace(moon, "wire", theirs, prefix)?;
        on_path(edge, ours[1], theirs[1])?;
        on_path(moon, theirs[1], ours[1])
    })?;
    // Further exchanges succeed only if both ends agree on the state of the IKE SA.
    agent.rekey("moon")?;
    charon.rekey_child()?;
    charon.rekey_ike()?;
    ensure!(edge_pod.reaches("10.2.0.2", Duration::from_secs(5))?, "no ping after rekeys by each side");
    Ok(())
}

/// Checks an initiator behind a NAT that gets another address on the same side of the NAT.
pub(super) fn behind_nat(lab: &Lab, initiator: Initiator) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let mut site = Site::new(net, initiator)?;
    let auth = || Auth::Psk(SECRET.to_owned());
    let charon = Charon::start(site.moon, &site.connection(auth()))?;
    let mut agent = Agent::start(lab, site.edge, "", &[site.peer(auth())])?;
    begin(&mut agent, &charon, initiator)?;
    let [old, new] = ["192.168.1.10", "192.168.1.11"];
    let (home, public) = match initiator {
        Initiator::Edge => (site.edge, site.moon),
        Initiator::Moon => (site.moon, site.edge),
    };
    check_move(lab, &agent, (&site.edge_pod, &site.moon_pod), "the initiator moves behind its NAT", || {
        replace(home, "home", [old, new], 24)?;
        home.sh("ip route replace default via 192.168.1.1")?;
        on_path(home, new, "203.0.113.10")?;
        on_path(public, "203.0.113.10", "203.0.113.1")
    })?;
    site.wire.stop()?;
    site.wire.expect_none("net 10.0.0.0/8")
}

fn begin(agent: &mut Agent<'_>, charon: &Charon<'_>, initiator: Initiator) -> Result<()> {
    agent.wait_ready()?;
    if initiator == Initiator::Moon {
        wait::for_event("charon to get through", || charon.initiate())?;
    }
    agent.wait_up("moon")?;
    charon.wait_up()?;
    let status = agent.status_text()?;
    ensure!(agent.mobike("moon")?, "not both ends speak MOBIKE: {status}");
    Ok(())
}

/// Changes an address while both pods ping each other. Checks that the IKE SA stays, and that only
/// pings during the change are lost.
fn check_move(
    lab: &Lab,
    agent: &Agent<'_>,
    (edge_pod, moon_pod): (&Pod, &Pod),
    what: &str,
    change: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let before = agent.ike_sas("moon")?;
    let mut pings: Vec<Ping> = vec![edge_pod.ping("10.2.0.2")?, moon_pod.ping("10.1.0.2")?];
    for ping in &mut pings {
        ping.wait_more(5)?;
    }
    change()?;
    for mut ping in pings {
        ping.wait_more(10)?;
        let report = ping.stop()?;
        lab.step(&format!("{what}: {} of {} lost, {:?} silent", report.lost(), report.sent, report.longest_silence));
        ensure!(report.longest_silence < LONGEST_SILENCE, "it was no update of addresses: {report:?}");
    }
    let after = agent.ike_sas("moon")?;
    ensure!(after == before, "the IKE SA was replaced: {before:?} {after:?}");
    Ok(())
}

/// Replaces the host's address on this wire.
fn replace(node: &Node, wire: &str, [old, new]: [&str; 2], prefix: u8) -> Result<()> {
    // The address is added without duplicate address detection, which would delay its use.
    let nodad = if new.contains(':') { "nodad" } else { "" };
    node.sh(&format!("ip addr del {old}/{prefix} dev {wire} && ip addr add {new}/{prefix} dev {wire} {nodad}"))
        .map(drop)
}

/// Waits until the kernel's newest SAs, one each way, are between these addresses.
fn on_path(node: &Node, ours: &str, theirs: &str) -> Result<()> {
    let (ours, theirs): (IpAddr, IpAddr) = (ours.parse()?, theirs.parse()?);
    wait::for_event(&format!("SAs of {} between {ours} and {theirs}", node.name()), || {
        let states = node.xfrm_states()?;
        for (src, dst) in [(ours, theirs), (theirs, ours)] {
            states.iter().find(|state| (state.src, state.dst) == (src, dst)).with_context(|| format!("{states:?}"))?;
        }
        Ok(())
    })
}

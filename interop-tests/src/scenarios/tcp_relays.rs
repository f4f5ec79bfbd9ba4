//! Edges whose networks block UDP reach other edges by relays of the hub, in TCP.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::nats::{Edges, Nat};
use crate::scenario::{Lab, Needs, Scenario};
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "tcp/relayed",
        about: "the networks of one edge, and then of both, block UDP: the hub relays between them in TCP, until UDP passes again",
        deadline: Duration::from_secs(420),
        by_default: true,
        needs: Needs::Nothing,
        run: relayed,
    },
    Scenario {
        name: "tcp/relay-hubs",
        about: "both edges have only TCP: the hub that relays is killed and comes back, and is killed for good beside another hub",
        deadline: Duration::from_secs(420),
        by_default: true,
        needs: Needs::Nothing,
        run: hubs,
    },
];

/// The part of the hub's configuration that makes it accept TCP.
const LISTENS: &str = "[tcp]\nlisten_port = 4500\n";
/// Time for both edges to change their transport: a hub must be given up, or UDP is tried once a
/// minute, and the direct path to the other edge every three minutes.
const CHANGE: Duration = Duration::from_secs(240);

fn relayed(lab: &Lab) -> Result<()> {
    let mut edges = Edges::start_with(lab, [Nat::KeepsPorts, Nat::KeepsPorts], LISTENS)?;
    edges.wait_up()?;
    edges.wait_relayed_by(None)?;
    // A tunnel without traffic is noticed only by a liveness check.
    let ping = edges.ping()?;
    set_udp(&edges, 0, false)?;
    wait_tcp(&edges, "hub", [Some(true), Some(false)])?;
    wait_answers(ping)?;
    edges.settle()?;
    loses_nothing_at_rekeys(&edges)?;
    lab.step("one edge goes to the relay by TCP, the other one by UDP");
    // The hub passes on what it has no keys for, and each kernel has the SAs in the connection.
    let spis = edges.agents[0].tunnel("edge-1")?;
    let ours = |spi: u32| [spis.spi_in, spis.spi_out].contains(&spi);
    let known = edges.net.node("hub").xfrm_states()?.into_iter().find(|state| ours(state.spi));
    ensure!(known.is_none(), "the hub has an SA of the relayed pair: {known:?}");
    let states = edges.net.node("edge-0").sh("ip xfrm state")?;
    ensure!(states.matches("type espintcp").count() >= 4, "the SAs with hub and peer are not in TCP: {states}");
    let text = edges.agents[0].command(&["status", "edge-1"])?;
    ensure!(text.contains("relayed by hub, to which it goes by TCP"), "it says {text}");
    let text = edges.hub.command(&["status"])?;
    ensure!(text.contains("relay between 1 pairs of nodes"), "the hub does not say that it relays: {text}");

    // The router answers the next segment of each connection with a reset.
    let before = connections(&edges)?;
    let reset = "nft add rule inet block forward meta l4proto tcp reject with tcp reset";
    edges.net.node("r-0").sh(reset)?;
    let ping = edges.ping()?;
    wait::for_event("both connections to end", || {
        let now = connections(&edges)?;
        ensure!(before.iter().all(|one| !now.contains(one)), "{now:?} is open");
        Ok(())
    })?;
    set_udp(&edges, 0, false)?;
    wait_answers(ping)?;
    wait_tcp(&edges, "hub", [Some(true), Some(false)])?;
    lab.step("the connections were reset, and others carry the tunnels");

    let ping = edges.ping()?;
    set_udp(&edges, 1, false)?;
    wait_tcp(&edges, "hub", [Some(true), Some(true)])?;
    wait_answers(ping)?;
    edges.settle()?;
    loses_nothing_at_rekeys(&edges)?;
    let mut capture = edges.net.node("hub").capture("isp")?;
    let mut ping = edges.ping()?;
    ping.wait_more(50)?;
    ping.stop()?.expect_none_lost()?;
    capture.wait_for("tcp port 4500 and host 203.0.113.10")?;
    capture.wait_for("tcp port 4500 and host 203.0.113.11")?;
    capture.stop()?;
    for (_, address) in &edges.pods {
        capture.expect_none(&format!("host {address}"))?;
    }
    lab.step("both edges go to the relay by TCP");

    set_udp(&edges, 0, true)?;
    set_udp(&edges, 1, true)?;
    wait_tcp(&edges, "hub", [None, None])?;
    wait::until("all TCP connections to end", CHANGE, || {
        let open = edges.net.node("hub").sh("ss -Htn state established sport = :4500")?;
        ensure!(open.trim().is_empty(), "these are open: {open}");
        Ok(())
    })?;
    let mut ping = edges.ping()?;
    ping.wait_more(50)?;
    ping.stop()?.expect_none_lost()?;
    lab.step("UDP passes again, the edges reach each other directly, and no connection is left");
    Ok(())
}

fn hubs(lab: &Lab) -> Result<()> {
    let mut edges = Edges::start_with(lab, [Nat::KeepsPorts, Nat::KeepsPorts], LISTENS)?;
    edges.wait_up()?;
    set_udp(&edges, 0, false)?;
    set_udp(&edges, 1, false)?;
    let ping = edges.ping()?;
    wait_tcp(&edges, "hub", [Some(true), Some(true)])?;
    wait_answers(ping)?;
    lab.step("both edges go to the relay by TCP");

    let before = connections(&edges)?;
    edges.hub.process().kill()?;
    edges.hub = edges.controller.start_with(edges.net.node("hub"), LISTENS)?;
    let ping = edges.ping()?;
    wait::until("other connections to the hub", CHANGE, || {
        let now = connections(&edges)?;
        ensure!(!now.is_empty() && before.iter().all(|one| !now.contains(one)), "{now:?} are open, {before:?} were");
        Ok(())
    })?;
    wait_tcp(&edges, "hub", [Some(true), Some(true)])?;
    wait_answers(ping)?;
    edges.settle()?;
    loses_nothing_at_rekeys(&edges)?;
    lab.step("the hub was killed and came back, and relays again");

    let mut second = edges.controller.join_with(edges.net.node("hub-2"), "hub", LISTENS)?;
    second.wait_ready()?;
    for agent in &mut edges.agents {
        agent.wait_up("hub-2")?;
    }
    wait_tcp(&edges, "hub", [Some(true), Some(true)])?;
    let ping = edges.ping()?;
    edges.hub.process().kill()?;
    wait_tcp(&edges, "hub-2", [Some(true), Some(true)])?;
    wait_answers(ping)?;
    edges.settle()?;
    loses_nothing_at_rekeys(&edges)?;
    lab.step("the hub was killed, and the other one relays");
    Ok(())
}

/// Lets the router of an edge pass UDP, or drop it. Replaces its earlier rules.
fn set_udp(edges: &Edges, index: usize, passes: bool) -> Result<()> {
    let rule = if passes { "" } else { "nft add rule inet block forward meta l4proto udp drop" };
    edges.net.node(&format!("r-{index}")).sh(&format!(
        "set -e
         nft 'add table inet block; add chain inet block forward {{ type filter hook forward priority 0; }}'
         nft flush chain inet block forward
         {rule}"
    ))?;
    Ok(())
}

/// Waits until this hub relays the tunnel between the edges, and each edge goes to the relay by TCP
/// or not; with `None`, until the tunnel is direct and in UDP.
fn wait_tcp(edges: &Edges, hub: &str, tcp: [Option<bool>; 2]) -> Result<()> {
    for (index, tcp) in tcp.into_iter().enumerate() {
        wait::until(&format!("the tunnel of edge-{index} to have tcp = {tcp:?}"), CHANGE, || {
            let report = edges.report(index)?;
            let relayed = report["relayed_by"] == hub;
            let expected = report["tcp"] == tcp.unwrap_or(false) && relayed == tcp.is_some();
            ensure!(report["phase"] == "up" && expected, "it says {report}");
            Ok(())
        })?;
    }
    Ok(())
}

fn loses_nothing_at_rekeys(edges: &Edges) -> Result<()> {
    let mut ping = edges.ping()?;
    ping.wait_more(50)?;
    for (agent, peer) in edges.agents.iter().zip(["edge-1", "edge-0"]) {
        agent.rekey(peer)?;
        agent.rekey_ike(peer)?;
    }
    ping.wait_more(50)?;
    ping.stop()?.expect_none_lost()
}

/// Returns the local ports of the first edge's connections to the hub.
fn connections(edges: &Edges) -> Result<Vec<String>> {
    let open = edges.net.node("edge-0").sh("ss -Htn state established dport = :4500")?;
    let ports: Vec<String> = open.lines().filter_map(|line| line.split_whitespace().nth(2)).map(Into::into).collect();
    Ok(ports)
}

/// Waits until a ping that was without answers is answered again.
fn wait_answers(mut ping: crate::topology::Ping) -> Result<()> {
    ping.wait_more(100)?;
    ping.stop().map(drop)
}

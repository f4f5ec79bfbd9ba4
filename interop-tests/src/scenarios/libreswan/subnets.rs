//! Runs a CHILD_SA for each pair of subnets. One of pluto's subnets contains edge-agent's subnets,
//! which reach each other without the tunnel.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::ends::conn;
use crate::edge_agent::Agent;
use crate::libreswan::{Conn, Pluto};
use crate::scenario::Lab;
use crate::scenarios::site::{Initiator, SECRET, Site, expect_none_lost};
use crate::strongswan::charon::Auth;
use crate::wait;

const OURS: [&str; 2] = ["10.66.0.0/16", "192.168.2.0/24"];
const THEIRS: [&str; 2] = ["10.0.0.0/8", "192.168.3.0/24"];

pub(super) fn run(lab: &Lab, initiator: Initiator) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let mut site = Site::new(net, initiator)?;
    let lan = site.edge.wired_pod("lan", "10.66.0.2/24", "10.66.0.1/24")?;
    let neighbour = site.edge.wired_pod("neighbour", "10.66.1.2/24", "10.66.1.1/24")?;
    let office = site.edge.wired_pod("office", "192.168.2.2/24", "192.168.2.1/24")?;
    site.moon.wired_pod("office", "192.168.3.2/24", "192.168.3.1/24")?;

    let auth = || Auth::Psk(SECRET.to_owned());
    let set = |side: &str, of: [&str; 2]| format!("{side}subnets={{{},{}}}", of[0], of[1]);
    let more = vec![set("left", THEIRS), set("right", OURS)];
    let pluto = Pluto::start(site.moon, &Conn { more, ..conn(&site, auth(), &[]) })?;
    let mut agent = Agent::start_with(lab, site.edge, &agent_toml(initiator), "debug")?;
    agent.wait_ready()?;
    ensure!(lan.reaches("10.66.1.2", Duration::from_secs(5))?, "the LAN does not reach itself before the tunnel is up");
    if initiator == Initiator::Moon {
        pluto.initiate()?;
    }
    let first = wait_pairs(&agent, &pluto)?;
    lab.step("a CHILD_SA for each pair of subnets");

    let ways = [(&lan, "10.2.0.2"), (&lan, "192.168.3.2"), (&office, "10.2.0.2"), (&office, "192.168.3.2")];
    let mut pings = Vec::new();
    for (from, to) in ways {
        pings.push(from.ping(to)?);
    }
    pings.push(lan.ping("10.66.1.2")?);
    pings.push(neighbour.ping("10.66.0.2")?);
    for ping in &mut pings {
        ping.wait_more(5)?;
    }
    agent.ask_to_rekey("moon", false)?;
    wait::for_event("four other CHILD_SAs", || {
        let now = wait_pairs(&agent, &pluto)?;
        ensure!(now.is_disjoint(&first), "it has {now:x?}, had {first:x?}");
        Ok(())
    })?;
    for ping in &mut pings {
        ping.wait_more(5)?;
    }
    lab.step("rekeyed by edge-agent");
    agent.rekey_ike("moon")?;
    pluto.rekey_ike()?;
    wait_pairs(&agent, &pluto)?;
    for ping in &mut pings {
        ping.wait_more(5)?;
    }
    expect_none_lost(site.edge, &pluto, pings)?;
    lab.step("the IKE SA is rekeyed by each side");
    site.wire.expect_none_so_far("net 10.0.0.0/8")?;
    site.wire.stop()
}

/// Waits until both ends have the same four CHILD_SAs. Returns the SPIs of packets to pluto.
fn wait_pairs(agent: &Agent<'_>, pluto: &Pluto<'_>) -> Result<BTreeSet<u32>> {
    wait::for_event("four CHILD_SAs", || {
        let (ours, theirs) = (agent.spis("moon")?, pluto.children()?);
        let ours: BTreeSet<(u32, u32)> = ours.iter().map(|spis| (spis.spi_out, spis.spi_in)).collect();
        let pairs: BTreeSet<(u32, u32)> = theirs.iter().map(|child| (child.spi_in, child.spi_out)).collect();
        let names: BTreeSet<&str> = theirs.iter().map(|child| child.connection.as_str()).collect();
        ensure!(ours == pairs && names.len() == 4 && pairs.len() == 4, "it has {ours:x?}, pluto {theirs:x?}");
        Ok(pairs.into_iter().map(|(to_pluto, _)| to_pluto).collect())
    })
}

/// As initiator the agent has a child for each pair, as docs/configuration.md says. As responder it
/// takes each pair that pluto asks for.
fn agent_toml(initiator: Initiator) -> String {
    let networks = |ours: &[&str], theirs: &[&str]| format!("local_subnets = {ours:?}\nremote_subnets = {theirs:?}\n");
    let (way, children) = match initiator {
        Initiator::Edge => {
            let mut children = String::new();
            for (number, (ours, theirs)) in OURS.iter().flat_map(|o| THEIRS.map(|t| (*o, t))).enumerate() {
                children += &format!("[[peer.child]]\nname = \"pair{number}\"\n{}", networks(&[ours], &[theirs]));
            }
            ("remote = \"203.0.113.10\"\nstart = \"initiate\"", children)
        }
        Initiator::Moon => ("start = \"respond\"", networks(&OURS, &THEIRS)),
    };
    format!(
        "[[peer]]\nname = \"moon\"\n{way}\nlocal_id = \"edge.example\"\nremote_id = \"moon.example\"\npsk = \"{SECRET}\"\n{children}"
    )
}

//! Runs a site whose own LAN lies within charon's networks, which are all there are: 0.0.0.0/0 and
//! ::/0. A host on the LAN's wire is reached by ARP and neighbour discovery, and not through the
//! tunnel.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::edge_agent::Agent;
use crate::scenario::Lab;
use crate::scenarios::site::{Initiator, SECRET};
use crate::strongswan::Charon;
use crate::topology::{NetworkPlan, Node};
use crate::wait;

/// The host on the LAN, and the LAN's addresses of edge-agent's host.
const NEIGHBOUR: [&str; 2] = ["10.1.0.9", "fd01::9"];
const EDGE: [&str; 2] = ["10.1.0.1", "fd01::1"];
/// charon's pods.
const FAR: [&str; 2] = ["10.2.0.2", "fd02::2"];

pub(super) fn run(lab: &Lab, initiator: Initiator) -> Result<()> {
    let mut plan = NetworkPlan::new();
    // Without the tunnel, the routes would lead the LAN's packets to charon's host in clear.
    plan.router("edge")
        .on("wire", &["192.0.2.1/24", "2001:db8::1/64"])
        .on("lan", &["10.1.0.1/24", "fd01::1/64"])
        .via("192.0.2.2")
        .via("2001:db8::2");
    plan.host("moon").on("wire", &["192.0.2.2/24", "2001:db8::2/64"]).via("192.0.2.1").via("2001:db8::1");
    plan.host("neighbour").on("lan", &["10.1.0.9/24", "fd01::9/64"]).via("10.1.0.1").via("fd01::1");
    let net = lab.build(&plan)?;
    let (edge, moon, neighbour) = (net.node("edge"), net.node("moon"), net.node("neighbour"));
    let _pods =
        [moon.wired_pod("p4", "10.2.0.2/24", "10.2.0.1/24")?, moon.wired_pod("p6", "fd02::2/64", "fd02::1/64")?];
    let mut lan = edge.capture("lan")?;
    let mut wire = edge.capture("wire")?;

    let mut agent = Agent::start_with(lab, edge, &agent_toml(initiator), "debug")?;
    agent.wait_ready()?;
    lan_talks(edge, neighbour)?;
    ensure!(agent.tunnel("moon").is_err(), "there is a tunnel without charon");
    lab.step("the LAN's hosts reach each other before the tunnel was ever up");

    let mut charon = Charon::start_with_file(moon, "edge", &swanctl_conf())?;
    if initiator == Initiator::Moon {
        wait::for_event("charon to get through", || charon.initiate())?;
    }
    agent.wait_up("moon")?;
    charon.wait_up()?;
    for to in FAR {
        answers(neighbour, to)?;
    }
    let tunnelled = packets(edge)?;
    ensure!(tunnelled >= 4, "{tunnelled} packets went through the tunnel");
    lan_talks(edge, neighbour)?;
    let after = packets(edge)?;
    ensure!(after == tunnelled, "{} of the LAN's packets went through the tunnel", after - tunnelled);
    // Neighbour discovery (RFC 4861 4.3): a solicitation has ICMPv6 type 135.
    for filter in ["arp", "icmp6 and ip6[40] = 135"] {
        lan.wait_for(filter)?;
    }
    lab.step("up with 0.0.0.0/0 and ::/0: the LAN's packets stay on the LAN, and others go through the tunnel");

    let mut pings = Vec::new();
    for (from, to) in [(neighbour, FAR[0]), (neighbour, FAR[1]), (neighbour, EDGE[1]), (edge, NEIGHBOUR[0])] {
        pings.push(from.ping(to)?);
    }
    for ping in &mut pings {
        ping.wait_more(3)?;
    }
    agent.rekey("moon")?;
    charon.rekey_child()?;
    for ping in &mut pings {
        ping.wait_more(5)?;
    }
    for ping in pings {
        ping.stop()?.expect_none_lost()?;
    }
    lab.step("rekeyed by each side, nothing is lost");

    // charon deletes its SAs when it ends.
    charon.process().stop()?;
    wait::for_event("the agent to have lost the tunnel", || {
        ensure!(agent.tunnel("moon").is_err(), "it still has it");
        Ok(())
    })?;
    lan_talks(edge, neighbour)?;
    for to in FAR {
        ensure!(!neighbour.reaches(to, Duration::from_millis(200))?, "{to} answers without a tunnel");
    }
    // The capture also has what arrives, a second time after decryption.
    let clear = "(ip and src net 10.1.0.0/24) or (ip6 and src net fd01::/64)";
    wire.expect_none_so_far(clear)?;
    // An unencrypted packet of the LAN shows that the capture works. A running agent would install
    // its policies again.
    agent.process().stop()?;
    edge.sh("ip xfrm policy flush")?;
    neighbour.reaches(FAR[0], Duration::from_millis(200))?;
    wire.wait_for(clear)?;
    wire.stop()?;
    lan.stop()?;
    lab.step("the LAN's hosts reach each other after the tunnel was up, and no packet leaves in clear");
    Ok(())
}

/// Checks that the hosts on the LAN find and reach each other with both families, both ways.
fn lan_talks(edge: &Node, neighbour: &Node) -> Result<()> {
    for (from, to) in [(edge, NEIGHBOUR), (neighbour, EDGE)] {
        for host in [edge, neighbour] {
            host.sh("ip neigh flush dev lan")?;
        }
        for to in to {
            answers(from, to)?;
        }
    }
    Ok(())
}

fn answers(from: &Node, to: &str) -> Result<()> {
    wait::for_event(&format!("{to} to answer {}", from.name()), || {
        ensure!(from.reaches(to, Duration::from_secs(1))?, "it does not");
        Ok(())
    })
}

/// Returns the number of packets that all SAs of this host have processed.
fn packets(node: &Node) -> Result<u64> {
    Ok(node.xfrm_states()?.iter().map(|state| state.packets).sum())
}

fn agent_toml(initiator: Initiator) -> String {
    let way = match initiator {
        Initiator::Edge => "remote = \"192.0.2.2\"\nstart = \"initiate\"",
        Initiator::Moon => "start = \"respond\"",
    };
    format!(
        "[[peer]]\nname = \"moon\"\n{way}\nlocal_id = \"edge.example\"\nremote_id = \"moon.example\"\npsk = \"{SECRET}\"\n\
         local_subnets = [\"10.1.0.0/24\", \"fd01::/64\"]\nremote_subnets = [\"0.0.0.0/0\", \"::/0\"]\n"
    )
}

fn swanctl_conf() -> String {
    format!(
        "connections {{\n  edge {{\n    version = 2\n    local_addrs = 192.0.2.2\n    remote_addrs = 192.0.2.1\n    \
         local {{\n      auth = psk\n      id = moon.example\n    }}\n    \
         remote {{\n      auth = psk\n      id = edge.example\n    }}\n    children {{\n      net {{\n        \
         local_ts = 0.0.0.0/0, ::/0\n        remote_ts = 10.1.0.0/24, fd01::/64\n        rekey_time = 0\n      }}\n    }}\n  }}\n}}\n\
         secrets {{\n  ike-edge {{\n    id-local = moon.example\n    id-remote = edge.example\n    secret = \"{SECRET}\"\n  }}\n}}\n"
    )
}

//! Runs transport mode between a host with edge-agent and a host with charon: pings between the
//! hosts' own addresses, of both families, are ESP on the wire, also through a NAT.

use anyhow::{Result, ensure};

use crate::edge_agent::Agent;
use crate::scenario::Lab;
use crate::scenarios::site::{Initiator, SECRET};
use crate::strongswan::Charon;
use crate::topology::{NetworkPlan, Node};
use crate::wait;

/// Addresses of edge-agent's host and charon's host.
pub(super) const IPV4: (&str, &str) = ("192.0.2.1", "192.0.2.2");
pub(super) const IPV6: (&str, &str) = ("2001:db8::1", "2001:db8::2");

pub(super) fn run(lab: &Lab, initiator: Initiator, (ours, theirs): (&str, &str)) -> Result<()> {
    let mut plan = NetworkPlan::new();
    plan.host("edge").on("wire", &["192.0.2.1/24", "2001:db8::1/64"]);
    plan.host("moon").on("wire", &["192.0.2.2/24", "2001:db8::2/64"]);
    let net = lab.build(&plan)?;
    let (edge, moon) = (net.node("edge"), net.node("moon"));
    let charon = Charon::start_with_file(moon, "edge", &swanctl_conf(theirs, ours, "transport"))?;
    let mut agent = Agent::start_with(lab, edge, &agent_toml(initiator, ours, theirs), "debug")?;
    agent.wait_ready()?;
    if initiator == Initiator::Moon {
        wait::for_event("charon to get through", || charon.initiate_child("net"))?;
    }
    pings_and_rekeys(lab, (edge, &mut agent, theirs), (moon, &charon, ours), false)?;
    agent.process().stop()?;
    agent.command(&["down"])?;
    charon.forget()?;

    let forced = agent_toml(initiator, ours, theirs).replace("[[peer.child]]", "encap = \"force\"\n[[peer.child]]");
    let mut agent = Agent::start_with(lab, edge, &forced, "debug")?;
    agent.wait_ready()?;
    if initiator == Initiator::Moon {
        wait::for_event("charon to get through", || charon.initiate_child("net"))?;
    }
    lab.step("encap = \"force\"");
    pings_and_rekeys(lab, (edge, &mut agent, theirs), (moon, &charon, ours), true)
}

/// Runs transport mode with the initiator behind a NAT: each host names its own address and the one
/// at which it sees the other host (RFC 7296 2.23.1).
pub(super) fn through_nat(lab: &Lab, initiator: Initiator) -> Result<()> {
    let (inside, outside, nat) = ("192.168.1.10", "203.0.113.10", "203.0.113.1");
    let ((home, public), (ours, theirs), (of_moon, of_edge)) = match initiator {
        Initiator::Edge => (("edge", "moon"), (inside, outside), (outside, nat)),
        Initiator::Moon => (("moon", "edge"), (outside, nat), (inside, outside)),
    };
    let mut plan = NetworkPlan::new();
    plan.router("isp").on("internet", &["203.0.113.1/24"]).on("home", &["192.168.1.1/24"]).masquerade("internet");
    plan.host(home).on("home", &["192.168.1.10/24"]).via("192.168.1.1");
    plan.host(public).on("internet", &["203.0.113.10/24"]).via("203.0.113.1");
    let net = lab.build(&plan)?;
    let (edge, moon) = (net.node("edge"), net.node("moon"));
    let charon = Charon::start_with_file(moon, "edge", &swanctl_conf(of_moon, of_edge, "transport"))?;
    let mut agent = Agent::start_with(lab, edge, &agent_toml(initiator, ours, theirs), "debug")?;
    agent.wait_ready()?;
    if initiator == Initiator::Moon {
        wait::for_event("charon to get through", || charon.initiate_child("net"))?;
    }
    pings_and_rekeys(lab, (edge, &mut agent, theirs), (moon, &charon, of_edge), true)
}

/// Pings from each host to the address at which it sees the other one, while either side rekeys.
fn pings_and_rekeys(
    lab: &Lab,
    (edge, agent, moon_address): (&Node, &mut Agent, &str),
    (moon, charon, edge_address): (&Node, &Charon, &str),
    in_udp: bool,
) -> Result<()> {
    agent.wait_up("moon")?;
    charon.wait_up()?;
    let mut pings = [edge.ping(moon_address)?, moon.ping(edge_address)?];
    for ping in &mut pings {
        ping.wait_more(5)?;
    }
    for node in [edge, moon] {
        expect_transport(node, in_udp)?;
    }
    lab.step("up, and pings are answered");
    agent.rekey("moon")?;
    pings[0].wait_more(5)?;
    charon.rekey_child()?;
    for mut ping in pings {
        ping.wait_more(5)?;
        ping.stop()?.expect_none_lost()?;
    }
    expect_transport(edge, in_udp)?;
    lab.step("rekeyed by each side, nothing is lost");
    Ok(())
}

/// Checks a charon that has tunnel mode configured: as initiator edge-agent refuses the mode that
/// charon grants, and as responder the mode that charon requests.
pub(super) fn refused(lab: &Lab, initiator: Initiator) -> Result<()> {
    let (ours, theirs) = IPV4;
    let mut plan = NetworkPlan::new();
    plan.host("edge").on("wire", &["192.0.2.1/24"]);
    plan.host("moon").on("wire", &["192.0.2.2/24"]);
    let net = lab.build(&plan)?;
    let (edge, moon) = (net.node("edge"), net.node("moon"));
    let charon = Charon::start_with_file(moon, "edge", &swanctl_conf(theirs, ours, "tunnel"))?;
    let mut agent = Agent::start_with(lab, edge, &agent_toml(initiator, ours, theirs), "debug")?;
    agent.wait_ready()?;
    let expected = match initiator {
        Initiator::Edge => "child net: it is in transport mode",
        Initiator::Moon => {
            ensure!(charon.initiate_child("net").is_err(), "charon has a CHILD_SA");
            "the peer asks for tunnel mode"
        }
    };
    wait::for_event("the reason in the status", || {
        let error = agent.last_error("moon")?;
        ensure!(error.contains(expected), "it says {error:?}");
        Ok(())
    })?;
    let states = edge.xfrm_states()?;
    ensure!(states.iter().all(|state| state.algorithm.is_empty()), "the kernel has {states:?}");
    Ok(())
}

fn expect_transport(node: &Node, in_udp: bool) -> Result<()> {
    let states = node.xfrm_states()?;
    let complete: Vec<_> = states.iter().filter(|state| !state.algorithm.is_empty()).collect();
    let used = complete.iter().filter(|state| state.packets > 0).count();
    ensure!(
        complete.iter().all(|state| state.mode == "transport" && state.encap.is_some() == in_udp) && used >= 2,
        "the kernel has {states:?}"
    );
    Ok(())
}

fn agent_toml(initiator: Initiator, ours: &str, theirs: &str) -> String {
    let start = match initiator {
        Initiator::Edge => "initiate",
        Initiator::Moon => "respond",
    };
    format!(
        "[[peer]]\nname = \"moon\"\nremote = \"{theirs}\"\nstart = \"{start}\"\nlocal_id = \"edge.example\"\n\
         remote_id = \"moon.example\"\npsk = \"{SECRET}\"\n[[peer.child]]\nname = \"net\"\nmode = \"transport\"\n\
         local_subnets = [\"{ours}\"]\nremote_subnets = [\"{theirs}\"]\n"
    )
}

fn swanctl_conf(ours: &str, theirs: &str, mode: &str) -> String {
    format!(
        "connections {{\n  edge {{\n    version = 2\n    local_addrs = {ours}\n    remote_addrs = {theirs}\n    \
         proposals = aes256gcm16-prfsha256-x25519\n    local {{\n      auth = psk\n      id = moon.example\n    }}\n    \
         remote {{\n      auth = psk\n      id = edge.example\n    }}\n    children {{\n      net {{\n        \
         mode = {mode}\n        esp_proposals = aes256gcm16\n        rekey_time = 0\n      }}\n    }}\n  }}\n}}\n\
         secrets {{\n  ike-edge {{\n    id-local = moon.example\n    id-remote = edge.example\n    secret = \"{SECRET}\"\n  }}\n}}\n"
    )
}

//! Runs transport mode between a host with edge-agent and a host with pluto.

use anyhow::{Result, ensure};

use crate::edge_agent::Agent;
use crate::libreswan::{Conn, Pluto};
use crate::scenario::Lab;
use crate::scenarios::site::{Initiator, SECRET, expect_none_lost};
use crate::strongswan::charon::Auth;
use crate::topology::NetworkPlan;

const OURS: &str = "192.0.2.1";
const THEIRS: &str = "192.0.2.2";

pub(super) fn run(lab: &Lab, initiator: Initiator) -> Result<()> {
    let mut plan = NetworkPlan::new();
    plan.host("edge").on("wire", &[&format!("{OURS}/24")]);
    plan.host("moon").on("wire", &[&format!("{THEIRS}/24")]);
    let net = lab.build(&plan)?;
    let (edge, moon) = (net.node("edge"), net.node("moon"));
    let conn = Conn {
        left: THEIRS.to_owned(),
        right: OURS.to_owned(),
        left_id: "@moon.example".to_owned(),
        right_id: "@edge.example".to_owned(),
        auth: Auth::Psk(SECRET.to_owned()),
        more: vec!["type=transport".to_owned()],
    };
    let pluto = Pluto::start(moon, &conn)?;
    let start = match initiator {
        Initiator::Edge => "initiate",
        Initiator::Moon => "respond",
    };
    let config = format!(
        "[[peer]]\nname = \"moon\"\nremote = \"{THEIRS}\"\nstart = \"{start}\"\nlocal_id = \"edge.example\"\n\
         remote_id = \"moon.example\"\npsk = \"{SECRET}\"\n[[peer.child]]\nname = \"net\"\nmode = \"transport\"\n\
         local_subnets = [\"{OURS}\"]\nremote_subnets = [\"{THEIRS}\"]\n"
    );
    let mut agent = Agent::start_with(lab, edge, &config, "debug")?;
    agent.wait_ready()?;
    if initiator == Initiator::Moon {
        pluto.initiate()?;
    }
    agent.wait_up("moon")?;
    pluto.wait_up()?;
    let mut pings = [edge.ping(THEIRS)?, moon.ping(OURS)?];
    for ping in &mut pings {
        ping.wait_more(5)?;
    }
    agent.rekey("moon")?;
    pluto.rekey_child()?;
    agent.rekey_ike("moon")?;
    pluto.rekey_ike()?;
    for ping in &mut pings {
        ping.wait_more(5)?;
    }
    expect_none_lost(edge, &pluto, pings)?;
    for node in [edge, moon] {
        let states = node.xfrm_states()?;
        let complete: Vec<_> = states.iter().filter(|state| !state.algorithm.is_empty()).collect();
        let used = complete.iter().filter(|state| state.packets > 0).count();
        ensure!(complete.iter().all(|state| state.mode == "transport") && used >= 2, "the kernel has {states:?}");
    }
    lab.step("rekeyed by each side, nothing is lost");
    Ok(())
}

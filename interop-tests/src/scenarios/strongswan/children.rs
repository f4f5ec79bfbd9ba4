//! Runs several CHILD_SAs under one IKE SA with charon. In some scenarios both ends configure the
//! CHILD_SAs. In the others charon, as some appliances do, makes one for each pair of networks,
//! while the agent has one for all pairs.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use crate::edge_agent::{Agent, ChildSpis};
use crate::scenario::Lab;
use crate::scenarios::site::{Initiator, SECRET, Site};
use crate::strongswan::Charon;
use crate::wait;

const NET: &str = "10.2.0.0/24";
const VOICE: &str = "10.3.0.0/24";

pub(super) fn run(lab: &Lab, initiator: Initiator) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let site = Site::new(net, initiator)?;
    let voice_pod = site.moon.wired_pod("v", "10.3.0.2/24", "10.3.0.1/24")?;
    let charon = Charon::start_with_file(site.moon, "edge", &swanctl_conf(initiator))?;

    let both = "[[peer.child]]\nname = \"net\"\nlocal_subnets = [\"10.1.0.0/24\"]\nremote_subnets = [\"10.2.0.0/24\"]\n\
                [[peer.child]]\nname = \"voice\"\nlocal_subnets = [\"10.1.0.0/24\"]\nremote_subnets = [\"10.3.0.0/24\"]\n";
    let mut agent = Agent::start_with(lab, site.edge, &agent_toml(initiator, "", both), "debug")?;
    agent.wait_ready()?;
    if initiator == Initiator::Moon {
        wait::for_event("charon to get through", || charon.initiate_child("net"))?;
        charon.initiate_child("voice")?;
    }
    let first = wait_children(&agent, &[NET, VOICE])?;
    lab.step("two CHILD_SAs are up");
    let mut pings = [site.edge_pod.ping("10.2.0.2")?, site.edge_pod.ping("10.3.0.2")?, voice_pod.ping("10.1.0.2")?];
    for ping in &mut pings {
        ping.wait_more(5)?;
    }
    charon.rekey_one_child("voice")?;
    let second = wait_children(&agent, &[NET, VOICE])?;
    ensure!(second.get(NET) == first.get(NET), "the other CHILD_SA changed: {first:x?} {second:x?}");
    ensure!(second.get(VOICE) != first.get(VOICE), "no rekey: {second:x?}");
    for ping in &mut pings {
        ping.wait_more(5)?;
    }
    lab.step("one is rekeyed by charon, the other stays");
    agent.ask_to_rekey_child("moon", "net")?;
    let third = wait::for_event("a new CHILD_SA of the agent's rekey", || {
        let now = wait_children(&agent, &[NET, VOICE])?;
        ensure!(now.get(NET) != second.get(NET), "it still has {second:x?}");
        Ok(now)
    })?;
    ensure!(third.get(VOICE) == second.get(VOICE), "the other CHILD_SA changed: {second:x?} {third:x?}");
    ensure!(agent.ask_to_rekey_child("moon", "no such child").is_err(), "it rekeys a child that there is not");
    lab.step("the other one is rekeyed by edge-agent, the first stays");
    charon.rekey_ike()?;
    agent.ask_to_rekey("moon", false)?;
    wait::for_event("new CHILD_SAs of the agent's rekey", || {
        let now = agent.children("moon")?;
        let changed = |(networks, spis): (&String, &ChildSpis)| third.get(networks).is_some_and(|old| old != spis);
        ensure!(now.len() == 2 && now.iter().all(changed), "it has {now:x?}, had {third:x?}");
        Ok(())
    })?;
    for ping in &mut pings {
        ping.wait_more(5)?;
    }
    for ping in pings {
        ping.stop()?.expect_none_lost()?;
    }
    lab.step("both are rekeyed by edge-agent after a rekey of the IKE SA");
    charon.terminate()?;
    agent.process().stop()?;

    // The agent has one child for both networks, and charon has one for each network.
    let networks = "local_subnets = [\"10.1.0.0/24\"]\nremote_subnets = [\"10.2.0.0/24\", \"10.3.0.0/24\"]\n";
    let mut agent = Agent::start_with(lab, site.edge, &agent_toml(initiator, networks, ""), "debug")?;
    agent.wait_ready()?;
    if initiator == Initiator::Moon {
        wait::for_event("charon to get through", || charon.initiate_child("net"))?;
    }
    let part = wait::for_event("one of the two networks", || {
        let now = agent.children("moon")?;
        ensure!(now.len() == 1 && agent.not_carried("moon")?.len() == 1, "it has {now:x?}");
        Ok(now)
    })?;
    let (other, name) = if part.contains_key(NET) { (VOICE, "voice") } else { (NET, "net") };
    ensure!(agent.not_carried("moon")? == [other], "status does not say what is missing");
    lab.step("charon has narrowed, and the status says so");
    charon.initiate_child(name)?;
    wait_children(&agent, &[NET, VOICE])?;
    ensure!(agent.not_carried("moon")?.is_empty(), "something is missing");
    let mut pings = [site.edge_pod.ping("10.2.0.2")?, voice_pod.ping("10.1.0.2")?];
    for ping in &mut pings {
        ping.wait_more(5)?;
    }
    charon.rekey_one_child(name)?;
    for mut ping in pings {
        ping.wait_more(5)?;
        ping.stop()?.expect_none_lost()?;
    }
    lab.step("one CHILD_SA for each pair of networks");
    Ok(())
}

fn wait_children(agent: &Agent<'_>, networks: &[&str]) -> Result<BTreeMap<String, ChildSpis>> {
    wait::for_event("the agent's CHILD_SAs", || {
        let now = agent.children("moon")?;
        ensure!(now.len() == networks.len() && networks.iter().all(|of| now.contains_key(*of)), "it has {now:x?}");
        Ok(now)
    })
}

fn agent_toml(initiator: Initiator, networks: &str, children: &str) -> String {
    let way = match initiator {
        Initiator::Edge => "remote = \"203.0.113.10\"\nstart = \"initiate\"",
        Initiator::Moon => "start = \"respond\"",
    };
    format!(
        "[[peer]]\nname = \"moon\"\n{way}\nlocal_id = \"edge.example\"\nremote_id = \"moon.example\"\npsk = \"{SECRET}\"\n\
         {networks}{children}"
    )
}

fn swanctl_conf(initiator: Initiator) -> String {
    let remote = match initiator {
        Initiator::Edge => "%any",
        Initiator::Moon => "203.0.113.10",
    };
    let child = |name: &str, networks: &str| {
        format!(
            "      {name} {{\n        local_ts = {networks}\n        remote_ts = 10.1.0.0/24\n        \
             esp_proposals = aes256gcm16\n        rekey_time = 0\n      }}\n"
        )
    };
    format!(
        "connections {{\n  edge {{\n    version = 2\n    local_addrs = %any\n    remote_addrs = {remote}\n    \
         proposals = aes256gcm16-prfsha256-x25519\n    local {{\n      auth = psk\n      id = moon.example\n    }}\n    \
         remote {{\n      auth = psk\n      id = edge.example\n    }}\n    children {{\n{}{}    }}\n  }}\n}}\n\
         secrets {{\n  ike-edge {{\n    id-local = moon.example\n    id-remote = edge.example\n    secret = \"{SECRET}\"\n  }}\n}}\n",
        child("net", NET),
        child("voice", VOICE),
    )
}

//! Rekeys CHILD_SAs where edge-agent and charon want forward secrecy by different groups: the only
//! CHILD_SA, or one of two. Sets them up where the ciphers of the first one differ.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::edge_agent::{Agent, ChildSpis, StaticPeer};
use crate::scenario::Lab;
use crate::scenarios::site::{Initiator, SECRET, Site, came_early, expect_none_lost_to_new_ike_sas};
use crate::strongswan::Charon;
use crate::strongswan::charon::Auth;
use crate::wait;

/// The networks of the two children at charon's side.
const NET: &str = "10.2.0.0/24";
const VOICE: &str = "10.3.0.0/24";

pub(super) fn run(lab: &Lab, initiator: Initiator) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let site = Site::new(net, initiator)?;
    let auth = Auth::Psk(SECRET.to_owned());
    let ike = "aes256gcm16-prfsha256-x25519";
    let charon = Charon::start(site.moon, &site.connection(auth.clone()).proposals(ike, "aes256gcm16-ecp256"))?;
    let peer = StaticPeer { esp: vec!["aes256gcm16-x25519".to_owned()], ..site.peer(auth) };
    let mut agent = Agent::start(lab, site.edge, "", &[peer])?;
    agent.wait_ready()?;
    if initiator == Initiator::Moon {
        wait::for_event("charon to get through", || charon.initiate())?;
    }
    agent.wait_up("moon")?;
    charon.wait_up()?;
    let early = came_early(site.edge)?;
    let mut ping = site.edge_pod.ping("10.2.0.2")?;
    ping.wait_more(3)?;
    // As responder, edge-agent begins the new IKE SA at the address from which charon came.
    for _ in 0..2 {
        let before = agent.ike_sas("moon")?;
        agent.rekey("moon")?;
        ensure!(agent.ike_sas("moon")? != before, "the CHILD_SA was rekeyed, although the groups differ");
        charon.wait_up()?;
        ping.wait_more(3)?;
    }
    agent.process().wait_log("the peer accepts none of our proposals")?;
    lab.step("edge-agent's rekeys are refused, and a new IKE SA brings the CHILD_SA");
    let last = agent.tunnel("moon")?;
    charon.ask_to_rekey_child()?;
    agent.process().wait_log("none of the peer's ESP proposals is acceptable")?;
    ping.wait_more(5)?;
    ensure!(agent.tunnel("moon")? == last, "the CHILD_SA was rekeyed, although the groups differ");
    expect_none_lost_to_new_ike_sas(site.edge, early, [ping])?;
    lab.step("charon's rekey is refused, and the CHILD_SA stays");
    Ok(())
}

/// Returns charon's file with two children, which have these proposals.
fn swanctl_conf(remote: &str, [net, voice]: [&str; 2]) -> String {
    let child = |name: &str, networks: &str, proposal: &str| {
        format!(
            "{name} {{\n local_ts = {networks}\n remote_ts = 10.1.0.0/24\n esp_proposals = {proposal}\n rekey_time = 0\n }}\n"
        )
    };
    format!(
        "connections {{\n edge {{\n version = 2\n local_addrs = %any\n remote_addrs = {remote}\n \
         proposals = aes256gcm16-prfsha256-x25519\n local {{\n auth = psk\n id = moon.example\n }}\n remote {{\n auth = psk\n \
         id = edge.example\n }}\n children {{\n{}{} }}\n }}\n}}\n\
         secrets {{\n ike-edge {{\n id-local = moon.example\n id-remote = edge.example\n secret = \"{SECRET}\"\n }}\n}}\n",
        child("net", NET, net),
        child("voice", VOICE, voice),
    )
}

/// Returns the agent's file with the same children. Both have one group.
fn agent_toml(start: &str) -> String {
    let child = |name: &str, networks: &str| {
        format!(
            "[[peer.child]]\nname = \"{name}\"\nlocal_subnets = [\"10.1.0.0/24\"]\nremote_subnets = [\"{networks}\"]\n\
             esp_proposals = [\"aes256gcm16-x25519\"]\n"
        )
    };
    format!(
        "[[peer]]\nname = \"moon\"\n{start}\nlocal_id = \"edge.example\"\nremote_id = \"moon.example\"\n\
         psk = \"{SECRET}\"\n{}{}",
        child("net", NET),
        child("voice", VOICE),
    )
}

/// Waits until both CHILD_SAs are up, and returns them.
fn wait_both(agent: &Agent<'_>) -> Result<BTreeMap<String, ChildSpis>> {
    wait::for_event("two CHILD_SAs", || {
        let now = agent.children("moon")?;
        ensure!(now.contains_key(NET) && now.contains_key(VOICE), "it has {now:x?}");
        Ok(now)
    })
}

/// Runs two CHILD_SAs. The groups of the first child differ, and charon deletes its CHILD_SA, so
/// that it is missing beside the second one.
pub(super) fn first_child(lab: &Lab) -> Result<()> {
    let net = lab.build(&Site::plan(Initiator::Edge))?;
    let site = Site::new(net, Initiator::Edge)?;
    site.moon.wired_pod("v", "10.3.0.2/24", "10.3.0.1/24")?;
    let charon = Charon::start_with_file(
        site.moon,
        "edge",
        &swanctl_conf("%any", ["aes256gcm16-ecp256", "aes256gcm16-x25519"]),
    )?;
    let toml = agent_toml("remote = \"203.0.113.10\"\nstart = \"initiate\"");
    let mut agent = Agent::start_with(lab, site.edge, &toml, "debug")?;
    agent.wait_ready()?;
    let first = wait_both(&agent)?;
    let early = came_early(site.edge)?;
    let mut ping = site.edge_pod.ping("10.3.0.2")?;
    ping.wait_more(3)?;
    charon.terminate_child()?;
    agent.process().wait_log("child net: the peer accepts none of our proposals")?;
    lab.step("charon deletes the first CHILD_SA and refuses another one, since its group differs");
    let second = wait::for_event("new CHILD_SAs of both children", || {
        let now = wait_both(&agent)?;
        let changed = |networks| now.get(networks) != first.get(networks);
        ensure!(changed(NET) && changed(VOICE), "it has {now:x?}, had {first:x?}");
        Ok(now)
    })?;
    wait::for_event("the end of the old IKE SA", || {
        let (ours, theirs) = (agent.ike_sas("moon")?, charon.sas()?);
        ensure!(ours.len() == 1 && theirs.len() == 1, "there are {ours:?} and {theirs:?}");
        Ok(())
    })?;
    ping.wait_more(3)?;
    ensure!(site.edge_pod.reaches("10.2.0.2", Duration::from_secs(5))?, "the first child carries nothing");
    expect_none_lost_to_new_ike_sas(site.edge, early, [ping])?;
    ensure!(agent.children("moon")? == second, "the CHILD_SAs changed once more");
    lab.step("a new IKE SA has brought it, and the second child has lost nothing");
    Ok(())
}

/// Runs two CHILD_SAs. The groups of the second child differ, and charon begins with it, so it
/// comes with IKE_AUTH. The agent's new IKE SA would bring the first child.
pub(super) fn additional_child(lab: &Lab) -> Result<()> {
    let net = lab.build(&Site::plan(Initiator::Moon))?;
    let site = Site::new(net, Initiator::Moon)?;
    site.moon.wired_pod("v", "10.3.0.2/24", "10.3.0.1/24")?;
    let charon = Charon::start_with_file(
        site.moon,
        "edge",
        &swanctl_conf("203.0.113.10", ["aes256gcm16-x25519", "aes256gcm16-ecp256"]),
    )?;
    let toml = agent_toml("start = \"respond\"");
    let mut agent = Agent::start_with(lab, site.edge, &toml, "debug")?;
    agent.wait_ready()?;
    wait::for_event("charon to get through", || charon.initiate_child("voice"))?;
    charon.initiate_child("net")?;
    let first = wait_both(&agent)?;
    let ike = agent.ike_sas("moon")?;
    let mut pings = [site.edge_pod.ping("10.2.0.2")?, site.edge_pod.ping("10.3.0.2")?];
    pings.iter_mut().try_for_each(|ping| ping.wait_more(3))?;

    let expect_error = || {
        let error = agent.last_error("moon")?;
        let told = error.contains("child voice") && error.contains("until its lifetime ends");
        ensure!(told, "the status has {error:?}");
        Ok(())
    };
    agent.ask_to_rekey_child("moon", "voice")?;
    wait::for_event("the refusal in the status", expect_error)?;
    agent.ask_to_rekey_child("moon", "net")?;
    wait::for_event("a new CHILD_SA of the first child", || {
        let now = agent.children("moon")?;
        ensure!(now.get(NET).is_some_and(|spis| first.get(NET) != Some(spis)), "it has {now:x?}");
        Ok(())
    })?;
    expect_error()?;
    pings.iter_mut().try_for_each(|ping| ping.wait_more(3))?;
    lab.step("edge-agent's rekey of the second child is refused, that of the first is not, and the status says so");
    charon.rekey_one_child("net")?;
    charon.ask_to_rekey("voice")?;
    agent.process().wait_log("child voice: none of the peer's ESP proposals is acceptable")?;
    pings.iter_mut().try_for_each(|ping| ping.wait_more(5))?;
    for ping in pings {
        ping.stop()?.expect_none_lost()?;
    }
    ensure!(agent.children("moon")?.get(VOICE) == first.get(VOICE), "the second child has another CHILD_SA");
    ensure!(agent.ike_sas("moon")? == ike, "the IKE SA was replaced, which does not help the second child");
    lab.step("charon's rekey of the second child is refused, and its CHILD_SA stays");
    Ok(())
}

/// Sets up two CHILD_SAs. The ciphers of the first child differ, so IKE_AUTH of the end that begins
/// with it creates none. The other child comes up all the same, and the first one when the ciphers
/// agree.
pub(super) fn first_child_in_auth(lab: &Lab, initiator: Initiator) -> Result<()> {
    let net = lab.build(&Site::plan(initiator))?;
    let site = Site::new(net, initiator)?;
    site.moon.wired_pod("v", "10.3.0.2/24", "10.3.0.1/24")?;
    let (remote, start) = match initiator {
        Initiator::Edge => ("%any", "remote = \"203.0.113.10\"\nstart = \"initiate\""),
        Initiator::Moon => ("203.0.113.10", "start = \"respond\""),
    };
    let mut charon =
        Charon::start_with_file(site.moon, "edge", &swanctl_conf(remote, ["chacha20poly1305", "aes256gcm16-x25519"]))?;
    let mut agent = Agent::start_with(lab, site.edge, &agent_toml(start), "debug")?;
    agent.wait_ready()?;
    if initiator == Initiator::Moon {
        ensure!(charon.initiate_child("net").is_err(), "the ciphers differ");
        charon.initiate_child("voice")?;
    }
    wait::for_event("the second child alone", || {
        let now = agent.children("moon")?;
        ensure!(now.contains_key(VOICE) && !now.contains_key(NET), "it has {now:x?}");
        Ok(())
    })?;
    let ike = agent.ike_sas("moon")?;
    let mut ping = site.edge_pod.ping("10.3.0.2")?;
    ping.wait_more(3)?;
    let error = agent.last_error("moon")?;
    ensure!(error.contains("child net"), "the status has {error:?}");
    lab.step("IKE_AUTH has refused the first child, the second one is up, and the status names the first");
    charon.load_file("edge", &swanctl_conf(remote, ["aes256gcm16-x25519", "aes256gcm16-x25519"]))?;
    if initiator == Initiator::Moon {
        charon.initiate_child("net")?;
    }
    wait_both(&agent)?;
    ensure!(site.edge_pod.reaches("10.2.0.2", Duration::from_secs(5))?, "the first child carries nothing");
    ensure!(agent.ike_sas("moon")? == ike, "the IKE SA was replaced");
    let error = agent.last_error("moon");
    ensure!(error.is_err(), "the status has {error:?}");
    ping.wait_more(3)?;
    ping.stop()?.expect_none_lost()?;
    lab.step("it is up as soon as the ciphers agree, on the same IKE SA");
    Ok(())
}

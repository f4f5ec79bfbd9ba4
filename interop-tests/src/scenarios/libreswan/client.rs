//! Runs a road warrior and its gateway: the client asks for an address in the tunnel
//! (configuration payload, RFC 7296 3.15), and gets another address on the outside (MOBIKE). pluto
//! has MOBIKE only between a gateway and a client.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::edge_agent::Agent;
use crate::libreswan::{Conn, Pluto};
use crate::scenario::Lab;
use crate::scenarios::site::SECRET;
use crate::scenarios::site::movement::{check_move, on_path, replace};
use crate::strongswan::charon::Auth;
use crate::topology::{Net, NetworkPlan};
use crate::wait;

/// The first address of the pool that both configurations have.
const GIVEN: &str = "10.9.0.1";

fn net(lab: &Lab) -> Result<&Net> {
    let mut plan = NetworkPlan::new();
    plan.router("gateway").on("wire", &["192.0.2.254/24"]);
    plan.host("edge").on("wire", &["192.0.2.1/24"]).via("192.0.2.254");
    plan.host("moon").on("wire", &["192.0.2.2/24"]).via("192.0.2.254");
    lab.build(&plan)
}

fn conn(left: &str, right: &str, more: &[&str]) -> Conn {
    Conn {
        left: left.to_owned(),
        right: right.to_owned(),
        left_id: "@moon.example".to_owned(),
        right_id: "@edge.example".to_owned(),
        auth: Auth::Psk(SECRET.to_owned()),
        more: ["mobike=yes", "narrowing=yes", "modecfgpull=yes"].iter().chain(more).map(|&line| line.into()).collect(),
    }
}

fn agent<'a>(lab: &Lab, net: &'a Net, more: &str) -> Result<Agent<'a>> {
    let config = format!(
        "[[peer]]\nname = \"moon\"\nlocal_id = \"edge.example\"\nremote_id = \"moon.example\"\npsk = \"{SECRET}\"\n{more}\n"
    );
    let mut agent = Agent::start_with(lab, net.node("edge"), &config, "debug")?;
    agent.wait_ready()?;
    Ok(agent)
}

/// Checks an agent that asks pluto for an address, and moves.
pub(super) fn initiator(lab: &Lab) -> Result<()> {
    let net = net(lab)?;
    let (edge, moon) = (net.node("edge"), net.node("moon"));
    let pod = moon.wired_pod("p", "10.2.0.2/24", "10.2.0.1/24")?;
    let pool = [
        "leftsubnet=10.2.0.0/24",
        "leftmodecfgserver=yes",
        "rightmodecfgclient=yes",
        "rightaddresspool=10.9.0.1-10.9.0.9",
    ];
    let pluto = Pluto::start(moon, &conn("192.0.2.2", "%any", &pool))?;
    let remote =
        "remote = \"192.0.2.2\"\nrequest_address = true\nremote_subnets = [\"10.2.0.0/24\"]\nstart = \"initiate\"";
    let mut agent = agent(lab, net, remote)?;
    agent.wait_up("moon")?;
    pluto.wait_up()?;
    expect_given(&agent)?;
    ensure!(agent.mobike("moon")?, "not both ends speak MOBIKE");
    lab.step("edge-agent has an address of pluto's pool");
    check_move(lab, &agent, [(&**edge, "10.2.0.2"), (&*pod, GIVEN)], "edge-agent's host moves", || {
        replace(edge, "wire", ["192.0.2.1", "192.0.2.11"], 24)?;
        edge.sh("ip route replace default via 192.0.2.254")?;
        on_path(edge, "192.0.2.11", "192.0.2.2")?;
        on_path(moon, "192.0.2.2", "192.0.2.11")
    })?;
    agent.rekey("moon")?;
    agent.rekey_ike("moon")?;
    ensure!(edge.reaches("10.2.0.2", Duration::from_secs(5))?, "no ping after rekeys at the new address");
    expect_given(&agent)
}

/// Checks an agent from which pluto asks an address; then pluto moves, and gets the address again.
pub(super) fn responder(lab: &Lab) -> Result<()> {
    let net = net(lab)?;
    let (edge, moon) = (net.node("edge"), net.node("moon"));
    let edge_pod = edge.wired_pod("p", "10.1.0.2/24", "10.1.0.1/24")?;
    // Without an updown script pluto gives its address to no interface.
    let client = moon.wired_pod("client", &format!("{GIVEN}/24"), "10.9.0.254/24")?;
    let asks = ["leftsubnet=0.0.0.0/0", "rightsubnet=10.1.0.0/24", "leftmodecfgclient=yes", "rightmodecfgserver=yes"];
    let pluto = Pluto::start(moon, &conn("%defaultroute", "192.0.2.1", &asks))?;
    let pool = "address_pool = [\"10.9.0.0/24\"]\nlocal_subnets = [\"10.1.0.0/24\"]\nstart = \"respond\"";
    let mut agent = agent(lab, net, pool)?;
    pluto.initiate()?;
    agent.wait_up("moon")?;
    pluto.wait_up()?;
    expect_given(&agent)?;
    ensure!(agent.mobike("moon")?, "not both ends speak MOBIKE");
    lab.step("pluto has an address of edge-agent's pool");
    // edge-agent asks at the new address for its COOKIE2 back, and pluto's answer has none. So the
    // IKE SA ends, and pluto begins another one.
    replace(moon, "wire", ["192.0.2.2", "192.0.2.12"], 24)?;
    moon.sh("ip route replace default via 192.0.2.254")?;
    agent.process().wait_log("did not return our COOKIE2")?;
    on_path(edge, "192.0.2.1", "192.0.2.12")?;
    wait::for_event("pings both ways at pluto's new address", || {
        ensure!(client.reaches("10.1.0.2", Duration::from_secs(2))?, "the client's is not answered");
        ensure!(edge_pod.reaches(GIVEN, Duration::from_secs(2))?, "the one to the client is not answered");
        Ok(())
    })?;
    expect_given(&agent)?;
    lab.step("pluto moves, and comes again");
    agent.rekey("moon")?;
    ensure!(client.reaches("10.1.0.2", Duration::from_secs(5))?, "no ping after a rekey at the new address");
    Ok(())
}

/// Checks that the agent's status shows the pool's first address.
fn expect_given(agent: &Agent<'_>) -> Result<()> {
    let status = agent.status()?;
    let sas = status.pointer("/peers/0/ike_sas").and_then(Value::as_array).context("there are no IKE SAs")?;
    let addresses = sas.last().and_then(|sa| sa.get("internal_addresses")).and_then(Value::as_array);
    let addresses: Vec<&str> = addresses.into_iter().flatten().filter_map(Value::as_str).collect();
    ensure!(addresses == [GIVEN], "the agent's status has {addresses:?}");
    Ok(())
}

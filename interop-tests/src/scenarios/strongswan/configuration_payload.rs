//! Runs the configuration payload (RFC 7296 3.15) with charon: each end gives the other one its
//! address in the tunnel.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::edge_agent::Agent;
use crate::scenario::Lab;
use crate::scenarios::site::SECRET;
use crate::strongswan::Charon;
use crate::topology::{Namespaces, Net, NetworkPlan, Node};
use crate::wait;

/// The first address of the pool that both configurations have.
const GIVEN: &str = "10.9.0.1";

fn net(lab: &Lab) -> Result<&Net> {
    let mut plan = NetworkPlan::new();
    plan.host("edge").on("wire", &["192.0.2.1/24"]);
    plan.host("moon").on("wire", &["192.0.2.2/24"]);
    lab.build(&plan)
}

fn agent<'a>(lab: &Lab, node: &'a Node, more: &str) -> Result<Agent<'a>> {
    let config = format!(
        "[[peer]]\nname = \"moon\"\nremote = \"192.0.2.2\"\nlocal_id = \"edge.example\"\nremote_id = \"moon.example\"\n\
         psk = \"{SECRET}\"\n{more}\n"
    );
    let mut agent = Agent::start_with(lab, node, &config, "info,edge_ike=debug,edge_agent=debug")?;
    agent.wait_ready()?;
    Ok(agent)
}

/// Returns a `swanctl.conf` with these lines for the connection and its child.
fn swanctl_conf(connection: &str, child: &str, pools: &str) -> String {
    format!(
        "connections {{
  edge {{
    version = 2
    local_addrs = %any
    remote_addrs = 192.0.2.1
    proposals = aes256gcm16-prfsha256-x25519
    {connection}
    local {{
      auth = psk
      id = moon.example
    }}
    remote {{
      auth = psk
      id = edge.example
    }}
    children {{
      net {{
        {child}
        esp_proposals = aes256gcm16
        rekey_time = 0
      }}
    }}
  }}
}}
{pools}
secrets {{
  ike-edge {{
    id-1 = moon.example
    id-2 = edge.example
    secret = \"{SECRET}\"
  }}
}}
"
    )
}

/// Returns the addresses in the tunnel that the agent's status shows.
fn internal_addresses(agent: &Agent<'_>) -> Result<Vec<String>> {
    let status = agent.status()?;
    let sas = status.pointer("/peers/0/ike_sas").and_then(Value::as_array).context("there are no IKE SAs")?;
    let addresses = sas.last().and_then(|sa| sa.get("internal_addresses")).and_then(Value::as_array);
    Ok(addresses.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect())
}

/// Pings from both hosts while each end rekeys CHILD_SA and IKE SA.
fn rekeys_lose_nothing(
    lab: &Lab,
    agent: &Agent<'_>,
    charon: &Charon<'_>,
    pings: [(&Namespaces, &str); 2],
) -> Result<()> {
    for (node, to) in pings {
        wait::for_event(&format!("a ping from {} to {to}", node.name()), || {
            ensure!(node.reaches(to, Duration::from_secs(2))?, "it is not answered");
            Ok(())
        })?;
    }
    let mut running = Vec::new();
    for (node, to) in pings {
        running.push(node.ping(to)?);
    }
    let mut go_on = |what: &str| -> Result<()> {
        for ping in &mut running {
            ping.wait_more(5)?;
        }
        lab.step(what);
        Ok(())
    };
    go_on("pings arrive both ways")?;
    agent.rekey("moon")?;
    go_on("CHILD_SA rekeyed by edge-agent")?;
    charon.rekey_child()?;
    go_on("CHILD_SA rekeyed by charon")?;
    agent.rekey_ike("moon")?;
    go_on("IKE SA rekeyed by edge-agent")?;
    charon.rekey_ike()?;
    go_on("IKE SA rekeyed by charon")?;
    agent.rekey("moon")?;
    go_on("CHILD_SA rekeyed once more")?;
    ensure!(internal_addresses(agent)? == [GIVEN], "the agent's status has {:?}", internal_addresses(agent)?);
    for ping in running {
        ping.stop()?.expect_none_lost()?;
    }
    Ok(())
}

/// Checks an agent that asks charon for an address.
pub(super) fn initiator(lab: &Lab) -> Result<()> {
    let net = net(lab)?;
    let (edge, moon) = (net.node("edge"), net.node("moon"));
    let _pod = moon.wired_pod("p", "10.2.0.2/24", "10.2.0.1/24")?;
    let pools = "pools {\n  p {\n    addrs = 10.9.0.0/24\n  }\n}";
    let conf = swanctl_conf("pools = p", "local_ts = 10.2.0.0/24\nremote_ts = dynamic", pools);
    let mut charon = Charon::start_with_file(moon, "edge", &conf)?;
    let mut agent = agent(lab, edge, "request_address = true\nremote_subnets = [\"10.2.0.0/24\"]")?;
    agent.wait_up("moon")?;
    charon.wait_up()?;
    ensure!(internal_addresses(&agent)? == [GIVEN], "the agent's status has {:?}", internal_addresses(&agent)?);
    wait::for_event("the address on its device", || {
        let addresses = edge.sh("ip -o address show dev ecni-address")?;
        ensure!(addresses.contains(&format!("{GIVEN}/32")), "it has {addresses}");
        Ok(())
    })?;
    lab.step("the agent has the address that charon gave it");
    rekeys_lose_nothing(lab, &agent, &charon, [(&**edge, "10.2.0.2"), (&**moon, GIVEN)])?;
    charon.terminate()?;
    // The agent begins again at once, and asks for the address that it had.
    agent.wait_up("moon")?;
    wait::for_event("the same address again", || {
        ensure!(internal_addresses(&agent)? == [GIVEN], "the agent's status has {:?}", internal_addresses(&agent)?);
        ensure!(edge.reaches("10.2.0.2", Duration::from_secs(2))?, "a ping is not answered");
        Ok(())
    })?;
    charon.process().stop()?;
    wait::for_event("the address to go with the IKE SA", || {
        let addresses = edge.sh("ip -o address show dev ecni-address")?;
        ensure!(!addresses.contains(GIVEN), "it has {addresses}");
        // A socket that is bound to the address must not send in clear meanwhile.
        let policies = edge.sh("ip xfrm policy")?;
        ensure!(policies.contains(GIVEN), "no policy holds packets from the address: {policies}");
        Ok(())
    })
}

/// Checks an agent that gives charon an address.
pub(super) fn responder(lab: &Lab) -> Result<()> {
    let net = net(lab)?;
    let (edge, moon) = (net.node("edge"), net.node("moon"));
    let edge_pod = edge.wired_pod("p", "10.1.0.2/24", "10.1.0.1/24")?;
    let conf = swanctl_conf("vips = 0.0.0.0", "local_ts = dynamic\nremote_ts = 10.1.0.0/24", "");
    let charon = Charon::start_with_file(moon, "edge", &conf)?;
    let pool = "start = \"respond\"\naddress_pool = [\"10.9.0.0/24\"]\nlocal_subnets = [\"10.1.0.0/24\"]";
    let mut agent = agent(lab, edge, pool)?;
    wait::for_event("charon to get through", || charon.initiate())?;
    agent.wait_up("moon")?;
    charon.wait_up()?;
    ensure!(internal_addresses(&agent)? == [GIVEN], "the agent's status has {:?}", internal_addresses(&agent)?);
    let addresses = moon.sh("ip -o address")?;
    ensure!(addresses.contains(GIVEN), "charon did not take the address: {addresses}");
    lab.step("charon has the address that the agent gave it");
    rekeys_lose_nothing(lab, &agent, &charon, [(&**moon, "10.1.0.2"), (&*edge_pod, GIVEN)])?;
    charon.terminate()?;
    wait::for_event("policies to go with the IKE SA", || {
        let policies = edge.sh("ip xfrm policy")?;
        ensure!(!policies.contains(GIVEN), "policies are left: {policies}");
        Ok(())
    })?;
    wait::for_event("charon to get through again", || charon.initiate())?;
    agent.wait_up("moon")?;
    ensure!(internal_addresses(&agent)? == [GIVEN], "another address: {:?}", internal_addresses(&agent)?);
    Ok(())
}

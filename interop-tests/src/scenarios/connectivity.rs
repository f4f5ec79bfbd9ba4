//! Runs `edge-controller check-connectivity` between real agents.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ipnetwork::IpNetwork;
use serde_json::Value;

use crate::edge_controller::Controller;
use crate::scenario::{Lab, Needs, Scenario};
use crate::topology::{NetworkPlan, Node};
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "agent/check-connectivity",
    about: "the controller has agents measure all paths in both families; a path that is broken and one that is exposed are named",
    deadline: Duration::from_secs(240),
    by_default: true,
    needs: Needs::Nothing,
    run: check_connectivity,
}];

const CLOUD: &str = "203.0.113.1";

fn check_connectivity(lab: &Lab) -> Result<()> {
    let mut plan = NetworkPlan::new();
    plan.host("cloud").on("wire", &[&format!("{CLOUD}/24")]).own_directory("/etc/edge-controller");
    plan.host("edge-a").on("wire", &["203.0.113.10/24"]);
    plan.host("edge-b").on("wire", &["203.0.113.11/24"]);
    plan.host("edge-c").on("wire", &["203.0.113.12/24"]);
    let net = lab.build(&plan)?;
    let [a, b, c] = ["edge-a", "edge-b", "edge-c"].map(|name| net.node(name));
    let controller = Controller::start_dual_stack(lab, net.node("cloud"), CLOUD)?;
    let mut agents = Vec::new();
    for edge in [a, b, c] {
        agents.push(controller.join(edge, "edge")?);
    }
    for agent in &mut agents {
        agent.wait_ready()?;
    }
    let mut addresses = Vec::new();
    for edge in [a, b, c] {
        addresses.push(make_bridge(&controller, edge)?);
    }
    for name in ["edge-a", "edge-b"] {
        controller.run(&["node", "label", name, "fabedge/edge-community=alpha"])?;
    }
    for (agent, peer) in agents.iter_mut().zip(["edge-b", "edge-a"]) {
        agent.wait_up(peer)?;
    }

    let all = wait::for_event("every path to be right", || {
        let all = check(&controller)?;
        ensure!(all["right"] == true, "{all}");
        Ok(all)
    })?;
    let found = described(&all)?;
    ensure!(found.len() == 12, "{found:?}");
    for (from, to) in [("edge-a", "edge-b"), ("edge-b", "edge-a")] {
        let count = found.iter().filter(|text| text.starts_with(&format!("{from} {to} reached"))).count();
        ensure!(count == 2, "both families of {from} to {to}: {found:?}");
    }
    for result in all["results"].as_array().context("no results")?.iter().filter(|row| row["permitted"] == true) {
        let measured = &result["measured"];
        let number = |key: &str| measured.pointer(key).and_then(Value::as_u64).unwrap_or_default();
        ensure!(number("/received") == 5 && number("/round_trip/min_us") > 0, "{result}");
        ensure!((1280..1500).contains(&number("/mtu")) && number("/bits_per_second") > 0, "{result}");
    }
    lab.step("members reach each other in both families, and no other path exists");

    let v6_of_a = addresses[0].iter().find(|address| address.is_ipv6()).context("edge-a has no IPv6 address")?;
    b.sh(&format!(
        "nft add table inet broken
         nft add chain inet broken input '{{ type filter hook input priority 0; }}'
         nft add rule inet broken input ip6 saddr {v6_of_a} drop"
    ))?;
    let wrong = wrong(&check(&controller)?)?;
    let is_v6 = |text: &String| text.contains("fd77:");
    ensure!(wrong.len() == 2 && wrong.iter().all(is_v6), "{wrong:?}");
    ensure!(wrong[0].starts_with("edge-a edge-b unreached"), "{wrong:?}");
    ensure!(wrong[1].starts_with("edge-b edge-a unreached"), "{wrong:?}");
    let status = controller.run(&["check-connectivity"]).err().context("a broken path, and the exit code is 0")?;
    ensure!(format!("{status:#}").contains("2 permitted but not reached"), "{status:#}");
    b.sh("nft delete table inet broken")?;
    lab.step("a path that a firewall breaks in one family is named in that family");

    // edge-a itself answers at an address of edge-c.
    let of_c = addresses[2].first().context("edge-c has no address")?;
    a.sh(&format!("ip addr add {of_c}/32 dev lo"))?;
    let wrong = wait::for_event("the exposed path", || {
        let found = self::wrong(&check(&controller)?)?;
        ensure!(!found.is_empty(), "nothing is wrong");
        Ok(found)
    })?;
    ensure!(wrong == [format!("edge-a edge-c exposed {of_c}")], "{wrong:?}");
    a.sh(&format!("ip addr del {of_c}/32 dev lo"))?;
    lab.step("a forbidden path that is answered is named");

    agents.last_mut().context("no agent")?.process().stop()?;
    let wrong = wait::for_event("edge-c to be away", || {
        let found = self::wrong(&check(&controller)?)?;
        ensure!(found.len() == 2, "{found:?}");
        Ok(found)
    })?;
    ensure!(wrong == ["edge-c edge-a unknown -", "edge-c edge-b unknown -"], "{wrong:?}");
    lab.step("paths from a node that is away are unknown, and those to it are measured");
    Ok(())
}

/// Creates the bridge of an edge as the plugin would. Returns the bridge's addresses, IPv4 first.
pub(super) fn make_bridge(controller: &Controller<'_>, edge: &Node) -> Result<Vec<IpAddr>> {
    let segments = wait::for_event("the edge's segments", || {
        let rows: Value = serde_json::from_str(&controller.run(&["segment", "list", "--json"])?)?;
        let held = rows.as_array().context("no list")?.iter().filter(|row| row["node"] == edge.name());
        let held: Vec<IpNetwork> =
            held.map(|row| Ok(row["segment"].as_str().context("no text")?.parse()?)).collect::<Result<_>>()?;
        let of_each = [held.iter().find(|network| network.is_ipv4()), held.iter().find(|network| network.is_ipv6())];
        let [Some(v4), Some(v6)] = of_each else { anyhow::bail!("{held:?}") };
        Ok([*v4, *v6])
    })?;
    edge.sh("ip link add ecni0 type bridge; ip link set ecni0 up")?;
    let mut addresses = Vec::new();
    for segment in segments {
        let first = match segment.network() {
            IpAddr::V4(network) => IpAddr::V4((u32::from(network) + 1).into()),
            IpAddr::V6(network) => IpAddr::V6((u128::from(network) + 1).into()),
        };
        let nodad = if first.is_ipv6() { "nodad" } else { "" };
        edge.sh(&format!("ip addr add {first}/{} dev ecni0 {nodad}", segment.prefix()))?;
        addresses.push(first);
    }
    Ok(addresses)
}

/// Runs the check, and returns its JSON document. It is no error here if the check finds problems.
fn check(controller: &Controller<'_>) -> Result<Value> {
    let out = controller.run_any(&["check-connectivity", "--json"])?;
    serde_json::from_str(&out).with_context(|| format!("no JSON: {out}"))
}

fn described(document: &Value) -> Result<Vec<String>> {
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let results = document["results"].as_array().context("no results")?;
    let result = |result: &Value| {
        let measured = &result["measured"];
        [&result["from"], &measured["node"], &result["verdict"], &measured["address"]].map(word).join(" ")
    };
    Ok(results.iter().map(result).collect())
}

/// Returns the results that are not right.
fn wrong(document: &Value) -> Result<Vec<String>> {
    let right = ["reached", "tunnel", "separate"];
    let all = described(document)?;
    Ok(all.into_iter().filter(|text| !right.iter().any(|verdict| text.contains(&format!(" {verdict} ")))).collect())
}

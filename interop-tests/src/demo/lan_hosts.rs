//! Checks that hosts on a node's LAN reach nothing through the node, and that pods reach the
//! outside.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};

use super::pod::{answered, reaches};
use super::reach::Pods;
use super::world::{CLOUD_NETWORKS, CLUSTER_RANGES, World};
use crate::topology::Namespaces;

/// a1's addresses on the LAN that it shares with the neighbour, one of each family.
const A1: [&str; 2] = ["192.0.2.10", "2001:db8:a1::10"];

/// Edge nodes, each with internet addresses of the families that the node has on the internet.
const OUTSIDE: [(&str, &str); 4] =
    [("edge-a1", "203.0.113.1"), ("edge-a1", "2001:db8::1"), ("edge-a2", "203.0.113.1"), ("edge-b1", "2001:db8::1")];

/// Checks that a LAN host reaches nothing and that pods reach the outside.
///
/// # Errors
/// Returns the error of the first check that fails.
pub(super) fn no_way_in_but_a_way_out(world: &World, pods: &Pods) -> Result<()> {
    world.checks.part("The LAN and the internet");
    lan_host_reaches_nothing(world, pods)?;
    lan_host_poses_as_a_local_pod(world, pods)?;
    pods_reach_the_internet(world, pods)
}

/// Checks a neighbour that routes all our networks through a1. a1 forwards packets, and another
/// program's rule on a1 masquerades forwarded packets.
fn lan_host_reaches_nothing(world: &World, pods: &Pods) -> Result<()> {
    let neighbour = world.node("neighbour");
    route_through_a1(neighbour, "add")?;
    world.checks.check(
        "a host on a1's LAN that routes through a1 reaches no pod, neither a1's nor others' nor the cloud's",
        "nft list table inet edge-cni, ip xfrm policy on edge-a1",
        || {
            for gateway in A1 {
                ensure!(neighbour.reaches(gateway, super::pod::ANSWER)?, "{gateway} itself does not answer");
            }
            let ours = ["edge-a1", "edge-a2"].into_iter().flat_map(|node| pods.of(node).addresses());
            let cloud = pods.cloud.iter().flat_map(|cloud| cloud.addresses);
            let pairs: Vec<(&Namespaces, IpAddr)> = ours.chain(cloud).map(|to| (&**neighbour, to)).collect();
            let answered = answered(&pairs)?;
            ensure!(answered.is_empty(), "answers came: {}", answered.join(", "));
            Ok(format!("{} addresses tried", pairs.len()))
        },
    )?;
    route_through_a1(neighbour, "del")?;
    // The neighbour itself sent unencrypted packets. They are read at this point, so that later
    // checks do not count them.
    world.new_frames().map(drop)
}

/// Checks that packets from the neighbour with the address of a1's own pod are not encrypted as the
/// pod's.
fn lan_host_poses_as_a_local_pod(world: &World, pods: &Pods) -> Result<()> {
    let neighbour = world.node("neighbour");
    route_through_a1(neighbour, "add")?;
    for source in pods.of("edge-a1").addresses() {
        let cloud = &pods.cloud[0];
        let [v4, v6] = cloud.addresses;
        let (target, family, host_prefix) = if source.is_ipv4() { (v4, "ip", 32) } else { (v6, "ip6", 128) };
        let nodad = if source.is_ipv4() { "" } else { " nodad" };
        neighbour.sh(&format!("ip addr add {source}/{host_prefix} dev lo{nodad}"))?;
        cloud.pod.sh(&format!(
            "nft 'add table inet watch; add chain inet watch in {{ type filter hook input priority -300; }}; \
             add rule inet watch in {family} saddr {source} counter'"
        ))?;
        world.checks.check(
            &format!("a host on a1's LAN with the address of a1's pod, {source}, gets no packet to the cloud"),
            "nft list table inet edge-cni on edge-a1",
            || {
                let (source, target) = (source.to_string(), target.to_string());
                let sent = neighbour.output(
                    neighbour
                        .command("ping")
                        .args(["-n", "-q", "-c", "3", "-i", "0.1", "-W", "0.3", "-I", &source, &target]),
                )?;
                let sent = String::from_utf8_lossy(&sent.stdout);
                ensure!(sent.contains("3 packets transmitted"), "the neighbour sent nothing: {sent}");
                let counted = cloud.pod.sh("nft list table inet watch")?;
                ensure!(counted.contains("packets 0 "), "the pod on {} got them: {counted}", cloud.node);
                Ok("3 sent")
            },
        )?;
        cloud.pod.sh("nft delete table inet watch")?;
        neighbour.sh(&format!("ip addr del {source}/{host_prefix} dev lo"))?;
    }
    route_through_a1(neighbour, "del")?;
    world.new_frames().map(drop)
}

fn route_through_a1(neighbour: &Namespaces, verb: &str) -> Result<()> {
    for networks in [CLUSTER_RANGES, CLOUD_NETWORKS] {
        for (network, gateway) in networks.into_iter().zip(A1) {
            neighbour.sh(&format!("ip route {verb} {network} via {gateway}"))?;
        }
    }
    Ok(())
}

/// Checks that the routers see the node's address and no pod's.
fn pods_reach_the_internet(world: &World, pods: &Pods) -> Result<()> {
    world.checks.check(
        "pods reach the internet under their node's address",
        "nft list table inet edge-cni on the edge nodes; *.pcap",
        || {
            for (node, address) in OUTSIDE {
                reaches(&pods.of(node).pod, address.parse()?).with_context(|| format!("from {node}'s pod"))?;
            }
            let seen = world.new_frames()?;
            ensure!(seen.clear() == 0 && seen.unexpected() == 0, "{seen}");
            Ok(format!("{} ways out; no pod address on a wire", OUTSIDE.len()))
        },
    )
}

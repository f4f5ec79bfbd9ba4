//! A pod that poses as its neighbour on the same bridge.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::pod::{DemoPod, reaches};
use super::reach::Pods;
use super::world::World;
use crate::topology::{Namespaces, Ping};

/// The node with both pods.
const NODE: &str = "edge-c1";

/// A second pod on c1 takes the first one's IP addresses and then its MAC address, and sends with
/// them. It gets none of the first pod's packets, and the first pod's traffic with the cloud goes
/// on.
///
/// # Errors
/// The first check that does not hold.
pub(super) fn a_pod_is_itself(world: &World, pods: &Pods) -> Result<()> {
    let victim = pods.of(NODE);
    let thief = world.add_pod(NODE, "thief")?;
    let cloud = &pods.cloud[0];
    let victims_mac = mac(&victim.pod)?;
    world.checks.check(
        "a pod on c1 that takes its neighbour's IPv4, IPv6 and MAC addresses gets nothing of the neighbour's traffic",
        "nft list table bridge edge-cni, ip neigh and bridge fdb on edge-c1",
        || {
            let mut flow = Ping::start(&cloud.pod, &victim.v4.context("an IPv4 address")?.to_string(), Duration::from_millis(50))?;
            flow.wait_more(2)?;
            thief.pod.sh(
                "nft 'add table inet watch; add chain inet watch in { type filter hook prerouting priority -300; }; add counter inet watch stolen'",
            )?;
            for address in victim.addresses() {
                take_address(&thief, address)?;
            }
            thief.pod.sh(&format!("ip link set eth0 address {victims_mac}"))?;
            for address in victim.addresses() {
                ping_gateway(&thief.pod, address)?;
            }
            flow.wait_more(5)?;
            flow.stop()?.expect_none_lost()?;
            let counted = thief.pod.sh("nft list counter inet watch stolen")?;
            ensure!(counted.contains("packets 0 "), "the thief got packets: {counted}");
            Ok("none of the pings from the cloud were lost meanwhile")
        },
    )?;
    for address in victim.addresses() {
        reaches(&cloud.pod, address)?;
    }
    world.delete_pod(thief)
}

/// The thief takes an address and sends with it.
fn take_address(thief: &DemoPod, address: IpAddr) -> Result<()> {
    let (family, prefix, nodad) = if address.is_ipv4() { ("ip", 32, "") } else { ("ip6", 128, " nodad") };
    thief.pod.sh(&format!(
        "nft add rule inet watch in iifname eth0 {family} daddr {address} counter name stolen && ip addr add {address}/{prefix} dev eth0{nodad}"
    ))?;
    ping_gateway(&thief.pod, address)
}

/// Pings the gateway from that address. The request for the gateway's MAC address contains the
/// sender's, which neighbours learn.
fn ping_gateway(pod: &Namespaces, source: IpAddr) -> Result<()> {
    let gateway = match source {
        IpAddr::V4(address) => IpAddr::from((u32::from(address) & !7 | 1).to_be_bytes()),
        IpAddr::V6(address) => IpAddr::from((u128::from(address) & !0xff | 1).to_be_bytes()),
    };
    let (source, gateway) = (source.to_string(), gateway.to_string());
    pod.sh("ip neigh flush dev eth0")?;
    pod.output(pod.command("ping").args(["-n", "-q", "-c", "3", "-i", "0.1", "-W", "0.3", "-I", &source, &gateway]))?;
    Ok(())
}

fn mac(pod: &Namespaces) -> Result<String> {
    let shown = pod.sh("ip -o link show dev eth0")?;
    let words: Vec<&str> = shown.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "link/ether").context("no link/ether")?;
    Ok((*words.get(at + 1).context("no address behind link/ether")?).to_owned())
}

//! Checks pods before the first run of an agent. At this time only the plugin has installed the
//! guard, which drops packets that no tunnel carries.

use anyhow::{Result, ensure};

use super::layout::EDGES;
use super::pod::{DemoPod, answered};
use super::world::World;

/// Segments in the plugin's configuration for each edge node, from the reserved half of the ranges.
const EARLY: [[&str; 2]; 4] = [
    ["10.77.0.128/29", "fd77::8000/120"],
    ["10.77.0.136/29", "fd77::8100/120"],
    ["10.77.0.144/29", "fd77::8200/120"],
    ["10.77.0.152/29", "fd77::8300/120"],
];

/// Checks that pods get addresses, reach no pod of another site, and that no pod's packet is seen
/// on a wire.
///
/// # Errors
/// Returns the error of the first check that fails.
pub(super) fn nothing_leaves_in_clear(world: &World) -> Result<()> {
    let checks = &world.checks;
    checks
        .part("Before any agent has ever run: pods with addresses, a guard, and routers that would forward everything");
    let mut pods: Vec<DemoPod> = Vec::new();
    for (node, segments) in EDGES.into_iter().zip(EARLY) {
        world.write_early_conflist(node, &segments)?;
        for segment in segments {
            world.route_in_clear(segment.parse()?, node)?;
        }
        pods.push(world.add_pod(node, "early")?);
    }
    checks.check("a pod gets its addresses without any daemon", "*.cni-stdin.json, commands.log", || {
        ensure!(pods.iter().all(|pod| pod.v4.is_some() && pod.v6.is_some()), "an address is missing");
        Ok(format!("{} pods, both families", pods.len()))
    })?;
    world.new_frames()?;
    let mut pairs = Vec::new();
    for from in &pods {
        for to in pods.iter().filter(|to| to.node != from.node) {
            pairs.extend(to.addresses().into_iter().map(|address| (&*from.pod, address)));
        }
    }
    checks.check("no pod reaches another site's pod", "ip xfrm policy, ip route on the edge nodes", || {
        let answered = answered(&pairs)?;
        ensure!(answered.is_empty(), "answers came: {}", answered.join(", "));
        Ok(format!("{} pairs tried", pairs.len()))
    })?;
    checks.check("no pod address is on a wire", "*.pcap", || {
        let seen = world.new_frames()?;
        ensure!(seen.clear() == 0, "{seen}");
        Ok(seen)
    })?;
    checks.check("the captures would have shown it: a deliberate clear ping is caught", "r-a1-lan-a1.pcap", || {
        let neighbour = world.node("neighbour");
        neighbour
            .sh("ip addr add 10.77.0.250/32 dev lo && ping -n -q -c 1 -W 0.2 -I 10.77.0.250 203.0.113.1 || true")?;
        let seen = world.new_frames()?;
        neighbour.sh("ip addr del 10.77.0.250/32 dev lo")?;
        ensure!(seen.clear() > 0, "{seen}");
        Ok(format!("{} frames", seen.clear()))
    })?;
    pods.into_iter().try_for_each(|pod| world.delete_pod(pod))
}

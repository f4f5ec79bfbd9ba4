//! Checks router advertisements that begin after the agent has started: by `radvd` on the router of
//! a1's LAN, in a container on another program's bridge, and in a pod.

use anyhow::{Result, ensure};

use super::check_runner::TIMEOUT;
use super::reach::Pods;
use super::world::World;
use crate::topology::{Namespaces, Process};

const LOOK: &str = "edge-a1.kernel.txt (ip -6 route, nft list ruleset); *.radvd.log";
const NODE: &str = "edge-a1";
const UPLINK: &str = "lan-a1";

/// Checks that a1 gets its default route from its router, and no default route from containers or
/// pods.
///
/// # Errors
/// Returns the error of the first check that fails.
pub(super) fn uplinks_alone_listen(world: &World, pods: &Pods) -> Result<()> {
    let edge = world.node(NODE);
    world.checks.part("Router advertisements that begin after the agent");
    edge.sh("ip -6 route del default")?;
    // docker0 has the kernel's default settings, which Docker does not change.
    let container = edge.pod("container")?;
    edge.sh(
        "ip link add docker0 type bridge forward_delay 0 && ip link set docker0 up && \
         ip link add container0 type veth peer name eth0 netns container && ip link set container0 master docker0 up && \
         ip -n container link set eth0 up",
    )?;
    edge.sh(&format!(
        "nft 'add table inet watch; add chain inet watch in {{ type filter hook input priority -300; }}; \
         add rule inet watch in iifname docker0 icmpv6 type nd-router-advert counter; \
         add rule inet watch in iifname {UPLINK} icmpv6 type nd-router-advert counter'"
    ))?;
    let _router = advertise(world.node("r-a1"), UPLINK, "2001:db8:a1::/64")?;
    world.checks.eventually("a1 gets its default route from the router that begins late", LOOK, TIMEOUT, || {
        let routes = edge.sh("ip -6 route show default")?;
        let from_router = |line: &str| line.contains("proto ra") && line.contains(&format!("dev {UPLINK}"));
        ensure!(routes.lines().any(from_router), "its default routes are {routes:?}");
        Ok(())
    })?;
    let _container = advertise(&container, "eth0", "2001:db8:dead::/64")?;
    world.checks.eventually("a container advertises itself on docker0", LOOK, TIMEOUT, || {
        let counted = edge.sh("nft list chain inet watch in")?;
        let heard = |line: &str| line.contains("docker0") && !line.contains("packets 0 ");
        ensure!(counted.lines().any(heard), "a1 heard nothing: {counted}");
        Ok(())
    })?;
    let pod = &pods.of(NODE).pod;
    let _pod = advertise(pod, "eth0", "2001:db8:beef::/64")?;
    world.checks.eventually(
        "a1's pod does so on the pods' bridge, where the plugin's table drops it",
        LOOK,
        TIMEOUT,
        || {
            let counted = edge.sh("nft list chain bridge edge-cni pod-ipv6")?;
            let dropped = |line: &str| line.contains("\"router advertisement\"") && !line.contains("packets 0 ");
            ensure!(counted.lines().any(dropped), "nothing was dropped: {counted}");
            Ok(())
        },
    )?;
    world.checks.check("a1 has no route or address by either", LOOK, || {
        let (routes, addresses) = (edge.sh("ip -6 route show table all")?, edge.sh("ip -6 -o addr show")?);
        for prefix in ["2001:db8:dead:", "2001:db8:beef:"] {
            ensure!(!routes.contains(prefix) && !addresses.contains(prefix), "{routes}\n{addresses}");
        }
        for line in routes.lines().filter(|line| line.contains("proto ra")) {
            ensure!(line.contains(&format!("dev {UPLINK}")), "{line}");
        }
        Ok("")
    })?;
    edge.sh("nft delete table inet watch").map(drop)
}

/// Starts `radvd`, which advertises a default router and the prefix.
fn advertise(place: &Namespaces, interface: &str, prefix: &str) -> Result<Process> {
    let settings = format!(
        "interface {interface} {{\n  AdvSendAdvert on;\n  MinRtrAdvInterval 3;\n  MaxRtrAdvInterval 4;\n  AdvDefaultLifetime 1800;\n  \
         prefix {prefix} {{ AdvOnLink on; AdvAutonomous on; }};\n}};\n"
    );
    // radvd sends advertisements only if forwarding is on.
    place.sh("sysctl -qw net.ipv6.conf.all.forwarding=1")?;
    let (settings_file, pid_file) =
        (format!("/run/{}.radvd.conf", place.name()), format!("/run/{}.radvd.pid", place.name()));
    place.write(&settings_file, &settings)?;
    let radvd = ["--nodaemon", "--logmethod", "stderr", "--config", &settings_file, "--pidfile", &pid_file];
    place.start("radvd", place.command("radvd").args(radvd))
}

//! Checks that a host on an edge's LAN reaches nothing by routing through the edge, that pods reach
//! the outside, and that the agent handles other programs' rules or reports them in its status.
//! Everything is checked in the demo's network with real tunnels and both families, with and
//! without another program that masquerades all packets that it forwards.
//!
//! - `lan_test`: the network for the checks and the steps that they share.
//! - `cloud_lan`: checks a host on the LAN of the hub and the cloud nodes.
//! - `services`: checks ClusterIPs, which a host on a LAN may route through a node.
//! - `host_ports`: checks hostPorts with the real `portmap`.
//! - `docker_and_firewalld`: a separate scenario that checks the rules of Docker and firewalld.

mod cloud_lan;
mod docker_and_firewalld;
mod host_ports;
mod lan_test;
mod services;

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::demo::check_runner::TIMEOUT;
use lan_test::{INTERNET, LOOK, LanTest, PORT, both};

use super::pod::answered;
use super::reach;
use super::world::World;
use super::{pod_spoofing, router_advertisements};
use crate::scenario::{Lab, Needs, Scenario};
use crate::topology::Namespaces;

pub use docker_and_firewalld::SCENARIO as DOCKER_AND_FIREWALLD;

/// The scenario with hosts on an edge's LAN and other programs' rules.
pub const SCENARIO: Scenario = Scenario {
    name: "firewall/lan-hosts",
    about: "a LAN host reaches nothing by routing through an edge, a hub or a cloud node, hostPorts by portmap, a pod poses as nobody, pods reach the outside, others' rules are coped with or named, router advertisements are heard by uplinks alone",
    deadline: Duration::from_secs(300),
    by_default: true,
    needs: Needs::Nothing,
    run,
};

fn run(lab: &Lab) -> Result<()> {
    let world = World::build(lab)?;
    let pods = reach::bring_up(&world)?;
    let test = LanTest::new(&world, &pods)?;
    for others in ["with another program's masquerade", "without"] {
        test.lan_host_reaches_nothing(others)?;
        test.lan_host_cannot_pose(others)?;
        test.published_ports(others)?;
        host_ports::served_to_all(&test, others)?;
        test.pods_and_node_reach_all(others)?;
        if others != "without" {
            world.node("edge-a1").sh("nft delete table inet lab")?;
        }
    }
    services::lan_host_calls_none(&test)?;
    test.no_router()?;
    test.cloud_nodes()?;
    services::endpoint_at_another_edge(&test)?;
    world.checks.part("A pod on a1");
    pod_spoofing::a_pod_is_itself(&world, &pods, "edge-a1", "edge-a2")?;
    cloud_lan::host_reaches_no_edge(&test)?;
    test.table_is_kept()?;
    test.bridge_table_is_kept()?;
    test.forward_drop()?;
    test.reverse_path_filter()?;
    test.policies_stay_asked()?;
    router_advertisements::uplinks_alone_listen(&world, &pods)?;
    world.end_captures()?;
    eprintln!("\nfirewall: {} checks passed in {:.0} s", world.checks.passed(), world.checks.elapsed().as_secs_f64());
    Ok(())
}

impl LanTest<'_> {
    fn pods_and_node_reach_all(&self, others: &str) -> Result<()> {
        let pod = &self.pods.of("edge-a1").pod;
        let edge = self.world.node("edge-a1");
        let internet = both(INTERNET)?;
        for family in [0, 1] {
            let kept = self.own[family];
            let (far, cloud) = (self.far[family], self.cloud[family]);
            self.seen_as(
                pod,
                far,
                PORT,
                kept,
                &format!("{others}, a1's pod reaches a2's at {far} under its own address"),
            )?;
            self.seen_as(
                pod,
                cloud,
                PORT,
                kept,
                &format!("{others}, a1's pod reaches the cloud at {cloud} under its own address"),
            )?;
            let what = format!("{others}, a1's pod reaches the internet at {} under a1's address", internet[family]);
            self.seen_as(pod, internet[family], PORT, self.edge[family], &what)?;
            let what = format!("{others}, a process on a1 reaches a2's pod at {far} under the bridge's address");
            self.seen_as(edge, far, PORT, self.bridge[family], &what)?;
        }
        Ok(())
    }

    fn no_router(&self) -> Result<()> {
        let world = self.world;
        world.checks.part("Forwarding that our agent turned on");
        let internet = both(INTERNET)?;
        world.checks.check("a1 is no router for its LAN", LOOK, || {
            let before = self.refused("edge-a1", "between-uplinks")?;
            let neighbour = world.node("neighbour");
            // Without this, a1 would redirect the neighbour to the router.
            neighbour.sh("sysctl -qw net.ipv4.conf.all.accept_redirects=0 net.ipv4.conf.lan-a1.accept_redirects=0 net.ipv6.conf.lan-a1.accept_redirects=0")?;
            let pairs: Vec<(&Namespaces, IpAddr)> = internet.iter().map(|to| (&**neighbour, *to)).collect();
            let answers = self.through_the_edge(&internet, || answered(&pairs))?;
            ensure!(answers.is_empty(), "answers came: {}", answers.join(", "));
            let counted = self.refused("edge-a1", "between-uplinks")? - before;
            ensure!(counted >= 6, "a1's firewall counted {counted}: they never got there");
            Ok(format!("{counted} packets dropped"))
        })
    }

    /// Checks that edges accept only those addresses of a cloud node that belong to the cloud's
    /// CNI.
    fn cloud_nodes(&self) -> Result<()> {
        self.world.checks.part("The cloud");
        let node = self.world.node("cloud-2");
        let within: [IpAddr; 2] = both(["10.244.2.1", "fd44::2:1"])?;
        for family in [0, 1] {
            let what = format!("a process on cloud-2 reaches a1's pod at {}", self.own[family]);
            self.seen_as(node, self.own[family], PORT, within[family], &what)?;
        }
        Ok(())
    }

    fn table_is_kept(&self) -> Result<()> {
        let world = self.world;
        world.checks.part("Other programs' rules");
        let edge = world.node("edge-a1");
        // -s: without the values of counters.
        let shown = || edge.sh("nft -s list table inet edge-cni");
        let before = shown()?;
        for harm in
            ["delete table inet edge-cni", "flush chain inet edge-cni prerouting", "flush set inet edge-cni own4"]
        {
            edge.sh(&format!("nft {harm}"))?;
            world.checks.eventually(&format!("after `nft {harm}` the table is as it was"), LOOK, TIMEOUT, || {
                let now = shown()?;
                let lost: Vec<&str> = before.lines().filter(|line| !now.contains(line)).collect();
                ensure!(lost.is_empty(), "it lacks {}", lost.join(", "));
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Checks that the agent makes the plugin restore its table, with the elements of each pod.
    fn bridge_table_is_kept(&self) -> Result<()> {
        let edge = self.world.node("edge-a1");
        let stands = || {
            let listed = edge.sh("nft list table bridge edge-cni")?;
            for address in self.own {
                ensure!(listed.contains(&format!(" {address}")), "it does not know {address}: {listed}");
            }
            ensure!(listed.contains("hook prerouting"), "it has no chain at the hook: {listed}");
            Ok(())
        };
        self.world.checks.check("the plugin's table knows a1's pod", LOOK, || stands().map(|()| ""))?;
        for harm in ["delete table bridge edge-cni", "flush set bridge edge-cni ipv4", "flush ruleset"] {
            edge.sh(&format!("nft {harm}"))?;
            self.world.checks.eventually(&format!("after `nft {harm}` it is back"), LOOK, TIMEOUT, stands)?;
        }
        Ok(())
    }

    /// Checks a forward policy as Docker and ufw set it.
    fn forward_drop(&self) -> Result<()> {
        let edge = self.world.node("edge-a1");
        let pod = &self.pods.of("edge-a1").pod;
        edge.sh("iptables-nft -P FORWARD DROP && ip6tables-nft -P FORWARD DROP")?;
        for family in [0, 1] {
            let far = self.far[family];
            let what = format!("where FORWARD drops by policy, a1's pod still reaches a2's at {far}");
            self.seen_as(pod, far, PORT, self.own[family], &what)?;
        }
        self.world.checks.check("that is no obstacle any more", LOOK, || {
            let left = self.obstacles("edge-a1")?;
            ensure!(left.is_empty(), "{left:?}");
            Ok("two rules a range")
        })?;
        edge.sh("nft 'delete table ip filter; delete table ip6 filter'").map(drop)
    }

    /// Checks firewalld's default for IPv6.
    fn reverse_path_filter(&self) -> Result<()> {
        let edge = self.world.node("edge-a1");
        let pod = &self.pods.of("edge-a1").pod;
        edge.sh("nft 'add table inet fw; add chain inet fw pre { type filter hook prerouting priority raw + 10; }; \
             add rule inet fw pre meta nfproto ipv6 fib saddr . mark . iif oif missing drop'")?;
        let command = self.world.checks.eventually(
            "a reverse path check is named in status, with a command",
            LOOK,
            TIMEOUT,
            || {
                let found = self.obstacles("edge-a1")?;
                let [one] = found.as_slice() else { bail!("status names {found:?}") };
                ensure!(one["what"].as_str().unwrap_or_default().contains("inet fw pre"), "{one}");
                one["command"].as_str().map(str::to_owned).context("no command")
            },
        )?;
        ensure!(self.seen(pod, self.far[1], PORT).is_err(), "the check drops nothing, so that this proves nothing");
        edge.sh(&command)?;
        self.seen_as(pod, self.far[1], PORT, self.own[1], "the command helps")?;
        self.world.checks.eventually("and status names it no more", LOOK, TIMEOUT, || {
            let left = self.obstacles("edge-a1")?;
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })?;
        edge.sh("nft delete table inet fw").map(drop)
    }

    /// Checks that the agent resets settings that guides for VTI interfaces recommend.
    fn policies_stay_asked(&self) -> Result<()> {
        let edge = self.world.node("edge-a1");
        let keys = "net.ipv4.conf.all.disable_policy net.ipv4.conf.lan-a1.disable_policy net.ipv6.conf.all.disable_policy \
                    net.ipv4.conf.all.disable_xfrm net.ipv4.conf.ecni-guard.disable_xfrm";
        edge.sh(&format!("for key in {keys}; do sysctl -qw $key=1; done"))?;
        self.world.checks.eventually("policies that others turned off are asked again", LOOK, TIMEOUT, || {
            let values = edge.sh(&format!("sysctl -n {keys}"))?;
            ensure!(values.split_whitespace().all(|value| value == "0"), "{values:?}");
            Ok(())
        })?;
        self.lan_host_cannot_pose("with policies asked again")
    }
}

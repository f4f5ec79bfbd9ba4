//! A host on an edge's LAN reaches nothing by routing through the edge, pods reach the outside, and
//! rules of other programs are coped with or named in the status. All that is checked in the demo's
//! network with real tunnels and both families, with and without another program that masquerades
//! all that it forwards.
//!
//! - `cloud_lan`: a host on the LAN of the hub and the cloud nodes.
//! - `services`: ClusterIPs, which hosts on either LAN route through a node.
//! - `host_ports`: hostPorts by the real `portmap`.
//! - `docker_and_firewalld`: a scenario of its own, with the rules of these two.

mod cloud_lan;
mod docker_and_firewalld;
mod host_ports;
mod services;

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::pod::answered;
use super::reach::{self, Pods};
use super::tcp::SOURCE;
use super::world::{World, site};
use super::{pod_spoofing, router_advertisements};
use crate::scenario::{Lab, Needs, Scenario};
use crate::topology::{Namespaces, Process};

pub use docker_and_firewalld::SCENARIO as DOCKER_AND_FIREWALLD;

/// Hosts on an edge's LAN and rules of other programs, as a scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "firewall/lan-hosts",
    about: "a LAN host reaches nothing by routing through an edge, a hub or a cloud node, hostPorts by portmap, a pod poses as nobody, pods reach the outside, others' rules are coped with or named, router advertisements are heard by uplinks alone",
    deadline: Duration::from_secs(300),
    by_default: true,
    needs: Needs::Nothing,
    run,
};

const TIMEOUT: Duration = Duration::from_secs(20);
const LOOK: &str = "edge-a1.kernel.txt (nft list ruleset, ip xfrm policy); edge-a1.edge-agent.log";
/// The port of servers that answer with the client's address.
const PORT: u16 = 81;
/// Addresses of the edge's neighbour on the LAN.
const NEIGHBOUR: [&str; 2] = ["192.0.2.66", "2001:db8:a1::66"];
/// Addresses of a machine on the internet.
const INTERNET: [&str; 2] = ["203.0.113.1", "2001:db8::1"];

/// The network with its addresses, one of each family.
struct LanTest<'a> {
    world: &'a World<'a>,
    pods: &'a Pods,
    /// a1's on its LAN.
    edge: [IpAddr; 2],
    /// a1's bridge's.
    bridge: [IpAddr; 2],
    /// a1's pod's.
    own: [IpAddr; 2],
    far: [IpAddr; 2],
    cloud: [IpAddr; 2],
    _servers: Vec<Process>,
}

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

fn both(addresses: [&str; 2]) -> Result<[IpAddr; 2]> {
    Ok([addresses[0].parse()?, addresses[1].parse()?])
}

fn pair(addresses: &[IpAddr]) -> Result<[IpAddr; 2]> {
    let of = |ipv4: bool| addresses.iter().find(|address| address.is_ipv4() == ipv4).copied();
    Ok([of(true).context("an IPv4 address")?, of(false).context("an IPv6 address")?])
}

/// `ADDRESS:PORT`, with brackets where they are needed.
fn socket(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

/// What a server answers to `from`.
fn fetched(from: &Namespaces, to: IpAddr, port: u16) -> Result<String> {
    let own = std::env::current_exe()?;
    from.run(from.command(&own).args(["guest", "tcp-fetch", &socket(to, port)]))
}

/// An address of the same /120 or /29 that no pod has; pods have the first ones.
fn beside(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::V4((u32::from(v4) + 2).into()),
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) + 0x20).into()),
    }
}

/// Sends some packets from a host with each of these sources to each of these targets. Returns the
/// number of pairs.
fn forge(host: &Namespaces, sources: &[IpAddr], targets: &[[IpAddr; 2]]) -> Result<u64> {
    for source in sources {
        let (length, nodad) = if source.is_ipv4() { (32, "") } else { (128, "nodad") };
        host.sh(&format!("ip addr add {source}/{length} dev lo {nodad}"))?;
    }
    let pairs = std::thread::scope(|scope| {
        let mut pings = Vec::new();
        for source in sources {
            for target in targets.iter().flatten().filter(|target| target.is_ipv4() == source.is_ipv4()) {
                let (source, target) = (source.to_string(), target.to_string());
                pings.push(scope.spawn(move || {
                    let command = ["-n", "-q", "-c", "2", "-i", "0.1", "-W", "0.3", "-I", &source, &target];
                    host.output(host.command("ping").args(command))
                }));
            }
        }
        let pairs = pings.len() as u64;
        for ping in pings {
            let said = ping.join().map_err(|_| anyhow::anyhow!("a ping's thread panicked"))??;
            ensure!(said.status.code() != Some(0), "an answer came");
        }
        Ok(pairs)
    })?;
    for source in sources {
        host.sh(&format!("ip addr del {source} dev lo"))?;
    }
    Ok(pairs)
}

/// Makes a host route packets for these addresses through a gateway while `act` runs. The gateway
/// has an address of each family.
fn routed_through<T>(
    host: &Namespaces,
    gateway: [IpAddr; 2],
    to: &[IpAddr],
    act: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let via = |to: &IpAddr| gateway[usize::from(to.is_ipv6())];
    for to in to {
        host.sh(&format!("ip route replace {to} via {}", via(to)))?;
    }
    let done = act();
    for to in to {
        host.sh(&format!("ip route del {to} via {}", via(to)))?;
    }
    done
}

impl<'a> LanTest<'a> {
    fn new(world: &'a World<'a>, pods: &'a Pods) -> Result<Self> {
        let inside = site("edge-a1").inside;
        let status = world.status("edge-a1")?;
        let bridge: Vec<IpAddr> = serde_json::from_value(status["host"]["bridge_addresses"].clone())?;
        let own = std::env::current_exe()?;
        let mut servers = Vec::new();
        let cloud = &pods.cloud[0];
        for namespaces in [&*pods.of("edge-a1").pod, &*pods.of("edge-a2").pod, &*cloud.pod, world.node("r-cloud")] {
            let port = PORT.to_string();
            servers.push(
                namespaces.start("source", namespaces.command(&own).args(["guest", "tcp-serve", &port, SOURCE]))?,
            );
        }
        Ok(Self {
            world,
            pods,
            edge: both([inside[0].context("IPv4")?, inside[1].context("IPv6")?])?,
            bridge: pair(&bridge)?,
            own: pair(&pods.of("edge-a1").addresses())?,
            far: pair(&pods.of("edge-a2").addresses())?,
            cloud: cloud.addresses,
            _servers: servers,
        })
    }

    /// The source address that a server sees when `from` connects to it.
    fn seen(&self, from: &Namespaces, to: IpAddr, port: u16) -> Result<IpAddr> {
        let text = fetched(from, to, port)?;
        text.parse().with_context(|| format!("{to} said {text:?}"))
    }

    fn seen_as(&self, from: &Namespaces, to: IpAddr, port: u16, source: IpAddr, what: &str) -> Result<()> {
        self.world.checks.eventually(what, LOOK, TIMEOUT, || {
            let seen = self.seen(from, to, port)?;
            ensure!(seen == source, "it is seen as {seen}, not as {source}");
            Ok(())
        })
    }

    /// The value of a counter of a node's firewall.
    fn refused(&self, node: &str, counter: &str) -> Result<u64> {
        let status = self.world.status(node)?;
        let entries = status["refused"].as_array().context("status has no list of what was refused")?;
        Ok(entries
            .iter()
            .find(|entry| entry["counter"] == counter)
            .and_then(|entry| entry["packets"].as_u64())
            .unwrap_or(0))
    }

    fn obstacles(&self, node: &str) -> Result<Vec<Value>> {
        let status = self.world.status(node)?;
        let all = status["obstacles"].as_array().cloned().context("status has no list of obstacles")?;
        // The lab's kernel has it off, which the status names. No check here needs it.
        Ok(all.into_iter().filter(|one| !one["what"].as_str().unwrap_or_default().contains("bridge-nf-call")).collect())
    }

    /// Makes the neighbour route packets for these addresses through a1 while `act` runs.
    fn through_the_edge<T>(&self, to: &[IpAddr], act: impl FnOnce() -> Result<T>) -> Result<T> {
        routed_through(self.world.node("neighbour"), self.edge, to, act)
    }

    fn lan_host_reaches_nothing(&self, others: &str) -> Result<()> {
        let checks = &self.world.checks;
        checks.part(&format!("A host on a1's LAN, {others}"));
        let neighbour = self.world.node("neighbour");
        let targets = [self.own, self.far, self.cloud].concat();
        let what = format!("{others}, it reaches neither a1's pod nor a2's nor the cloud's through a1");
        checks.check(&what, LOOK, || {
            let pairs: Vec<(&Namespaces, IpAddr)> = targets.iter().map(|to| (&**neighbour, *to)).collect();
            let answers = self.through_the_edge(&targets, || answered(&pairs))?;
            ensure!(answers.is_empty(), "answers came: {}", answers.join(", "));
            let counted = (self.refused("edge-a1", "to-pods")?, self.refused("edge-a1", "to-tunnels")?);
            ensure!(counted.0 >= 6 && counted.1 >= 12, "a1's firewall counted {counted:?}: they never got there");
            Ok(format!("{} packets dropped on the way to pods, {} to tunnels", counted.0, counted.1))
        })
    }

    /// The neighbour sends with sources of a local pod, of a remote pod and of the cloud, towards
    /// a1's pod, a2's pod, the cloud's pod and a1 itself.
    fn lan_host_cannot_pose(&self, others: &str) -> Result<()> {
        let sources = [self.own.map(beside), self.far.map(beside), self.cloud.map(beside)].concat();
        let what = format!("{others}, it poses as no pod, towards pods, through tunnels, or towards a1");
        self.cannot_pose("neighbour", "edge-a1", self.edge, &sources, &what)
    }

    /// A host on a node's LAN sends with these sources, towards a1's pod, a2's pod, the cloud's pod
    /// and the node itself. No packet arrives.
    fn cannot_pose(
        &self,
        host: &str,
        node: &str,
        addresses: [IpAddr; 2],
        sources: &[IpAddr],
        what: &str,
    ) -> Result<()> {
        let world = self.world;
        let victims: [(&Namespaces, [IpAddr; 2]); 4] = [
            (&self.pods.of("edge-a1").pod, self.own),
            (&self.pods.of("edge-a2").pod, self.far),
            (&self.pods.cloud[0].pod, self.cloud),
            (world.node(node), addresses),
        ];
        world.checks.check(what, LOOK, || {
            for (victim, _) in &victims {
                let rules: String = sources
                    .iter()
                    .map(|source| {
                        let family = if source.is_ipv4() { "ip" } else { "ip6" };
                        format!("add rule inet watch in {family} saddr {source} counter; ")
                    })
                    .collect();
                victim.sh(&format!(
                    "nft 'add table inet watch; add chain inet watch in {{ type filter hook input priority -300; }}; {rules}'"
                ))?;
            }
            let targets: Vec<IpAddr> = victims[..3].iter().flat_map(|(_, addresses)| *addresses).collect();
            let before = self.refused(node, "posing")?;
            let host = world.node(host);
            let sent = routed_through(host, addresses, &targets, || {
                forge(host, sources, &victims.map(|(_, addresses)| addresses))
            })?;
            for (victim, _) in &victims {
                let listed = victim.sh("nft list table inet watch")?;
                victim.sh("nft delete table inet watch")?;
                let arrived: Vec<&str> =
                    listed.lines().filter(|line| line.contains("counter") && !line.contains("packets 0 ")).collect();
                ensure!(arrived.is_empty(), "{} got {}", victim.name(), arrived.join(", "));
            }
            let counted = self.refused(node, "posing")? - before;
            ensure!(counted >= sent, "{node}'s firewall counted {counted} packets of {sent} pairs: they never got there");
            Ok(format!("{counted} packets dropped"))
        })
    }

    /// Publishes ports as kube-proxy (NodePort) and portmap (hostPort) do.
    fn published_ports(&self, others: &str) -> Result<()> {
        let (edge, neighbour) = (self.world.node("edge-a1"), self.world.node("neighbour"));
        for (family, name) in ["ip", "ip6"].into_iter().enumerate() {
            edge.sh(&format!(
                "nft 'add table {name} publish; add chain {name} publish pre {{ type nat hook prerouting priority dstnat; }}; \
                 add rule {name} publish pre tcp dport 8080 dnat to {}; add rule {name} publish pre tcp dport 30080 dnat to {}'",
                socket(self.own[family], PORT),
                socket(self.far[family], PORT)
            ))?;
            let client: IpAddr = NEIGHBOUR[family].parse()?;
            let reached = self.edge[family];
            let what = format!("{others}, a published port of a1's pod is served at {reached}");
            // A program that masquerades towards the LAN alone does not change this source.
            self.seen_as(neighbour, reached, 8080, client, &what)?;
            let what = format!("{others}, a published port of a2's pod is served at {reached}");
            self.seen_as(neighbour, reached, 30080, self.bridge[family], &what)?;
            edge.sh(&format!("nft delete table {name} publish"))?;
        }
        Ok(())
    }

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
            // a1 would redirect the neighbour to the router.
            neighbour.sh("sysctl -qw net.ipv4.conf.all.accept_redirects=0 net.ipv4.conf.lan-a1.accept_redirects=0 net.ipv6.conf.lan-a1.accept_redirects=0")?;
            let pairs: Vec<(&Namespaces, IpAddr)> = internet.iter().map(|to| (&**neighbour, *to)).collect();
            let answers = self.through_the_edge(&internet, || answered(&pairs))?;
            ensure!(answers.is_empty(), "answers came: {}", answers.join(", "));
            let counted = self.refused("edge-a1", "between-uplinks")? - before;
            ensure!(counted >= 6, "a1's firewall counted {counted}: they never got there");
            Ok(format!("{counted} packets dropped"))
        })
    }

    /// Edges accept only those addresses of a cloud node that belong to the cloud's CNI.
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

    /// The agent has the plugin make its table again, with the elements of each pod.
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

    /// A policy as Docker and ufw set it.
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

    /// firewalld's default for IPv6.
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

    /// Settings as in recipes for VTI interfaces.
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

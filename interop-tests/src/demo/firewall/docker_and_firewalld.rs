//! Checks the agent with rules from Docker and firewalld, added before the agent starts and while
//! it runs. The rules are those that dockerd 20.10.24 (with `--ipv6 --experimental --ip6tables`)
//! and firewalld 1.3.3 write by default. The programs themselves do not run in the test: they are
//! large, and their installation would change the firewall of the machine that runs the tests.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::lan_test::{INTERNET, LOOK, LanTest, NEIGHBOUR, PORT, both, fetched, pair};
use crate::demo::check_runner::TIMEOUT;
use crate::demo::layout::site;
use crate::demo::reach::{self, Pods};
use crate::demo::tcp::SOURCE;
use crate::demo::world::World;
use crate::scenario::{Lab, Needs, Scenario};
use crate::topology::{Namespaces, Process};

/// The rules of Docker and firewalld, as a scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "firewall/docker-and-firewalld",
    about: "pods, published ports and the guard with Docker's and firewalld's rules, which are there before the agent or come while it runs",
    deadline: Duration::from_secs(200),
    by_default: true,
    needs: Needs::Nothing,
    run,
};

/// A port that Docker publishes for a container.
const PUBLISHED: u16 = 8088;
/// A port of the container that is not published.
const UNPUBLISHED: u16 = 82;
/// The container's address on docker0.
const CONTAINER: &str = "172.17.0.2";

fn run(lab: &Lab) -> Result<()> {
    let world = World::build(lab)?;
    docker(world.node("edge-a1"))?;
    firewalld(world.node("edge-c1"))?;
    let pods = reach::bring_up(&world)?;
    let test = LanTest::new(&world, &pods)?;
    let _server = serve(&pods.of("edge-c1").pod)?;

    world.checks.part("Docker's rules, older than the agent");
    works(&test, "edge-a1", "with Docker before the agent")?;
    test.lan_host_reaches_nothing("with Docker's rules")?;
    test.lan_host_cannot_pose("with Docker's rules")?;
    test.published_ports("with Docker's rules")?;
    container(&test)?;

    world.checks.part("Docker's rules, put on while the agent runs");
    docker(world.node("edge-a2"))?;
    works(&test, "edge-a2", "with Docker after the agent")?;
    no_obstacle(&test, "edge-a2")?;

    world.checks.part("firewalld's rules, older than the agent");
    do_as_told(&test, "edge-c1")?;
    works(&test, "edge-c1", "with firewalld before the agent")?;

    world.checks.part("firewalld's rules, put on while the agent runs");
    let edge = world.node("edge-a1");
    edge.sh("nft 'delete table ip filter; delete table ip6 filter; delete table ip nat; delete table ip6 nat'")?;
    firewalld(edge)?;
    do_as_told(&test, "edge-a1")?;
    works(&test, "edge-a1", "with firewalld after the agent")?;
    test.lan_host_reaches_nothing("with firewalld's rules")?;
    test.lan_host_cannot_pose("with firewalld's rules")?;
    test.published_ports("with firewalld's rules")?;
    world.end_captures()?;
    eprintln!("\nfirewall: {} checks passed in {:.0} s", world.checks.passed(), world.checks.elapsed().as_secs_f64());
    Ok(())
}

fn serve(pod: &Namespaces) -> Result<Process> {
    let own = std::env::current_exe()?;
    pod.start("source", pod.command(&own).args(["guest", "tcp-serve", &PORT.to_string(), SOURCE]))
}

/// Checks that a pod on an edge and the cloud's pod reach each other, and that the edge's pod
/// reaches the internet.
fn works(test: &LanTest, node: &str, when: &str) -> Result<()> {
    let pods: &Pods = test.pods;
    let (pod, own) = (&pods.of(node).pod, pair(&pods.of(node).addresses())?);
    let cloud = &pods.cloud[0];
    for family in [0, 1] {
        let (own, far) = (own[family], cloud.addresses[family]);
        test.seen_as(pod, far, PORT, own, &format!("{when}, {node}'s pod reaches the cloud's at {far}"))?;
        test.seen_as(&cloud.pod, own, PORT, far, &format!("{when}, the cloud's pod reaches {node}'s at {own}"))?;
        let Some(inside) = site(node).inside[family] else { continue };
        // Behind NAT, the server sees the router's address.
        let seen = if inside.starts_with("192.168.") { site(node).outside[family] } else { Some(inside) };
        let seen: IpAddr = seen.context("an address on the internet")?.parse()?;
        let outside: IpAddr = INTERNET[family].parse()?;
        test.seen_as(pod, outside, PORT, seen, &format!("{when}, {node}'s pod reaches the internet at {outside}"))?;
    }
    if node != "edge-c1" {
        let (other, members) = if node == "edge-a1" { ("edge-a2", test.far) } else { ("edge-a1", test.own) };
        for family in [0, 1] {
            let what = format!("{when}, {node}'s pod reaches {other}'s at {}", members[family]);
            test.seen_as(pod, members[family], PORT, own[family], &what)?;
        }
    }
    Ok(())
}

fn no_obstacle(test: &LanTest, node: &str) -> Result<()> {
    test.world.checks.eventually(&format!("the status of {node} names no obstacle"), LOOK, TIMEOUT, || {
        let left = test.obstacles(node)?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}

/// Checks that Docker's own containers on a1 still work: a LAN host reaches only the published
/// port.
fn container(test: &LanTest) -> Result<()> {
    let (world, edge, neighbour) = (test.world, test.world.node("edge-a1"), test.world.node("neighbour"));
    let pod = edge.pod("container")?;
    edge.sh(&format!(
        "set -e
         ip link add container0 type veth peer name eth0 netns container
         ip link set container0 master docker0 up
         ip -n container addr add {CONTAINER}/16 dev eth0
         ip -n container link set eth0 up
         ip -n container route add default via 172.17.0.1
         iptables-nft -t nat -A DOCKER ! -i docker0 -p tcp -m tcp --dport {PUBLISHED} -j DNAT --to-destination {CONTAINER}:{PORT}
         iptables-nft -t filter -A DOCKER -d {CONTAINER}/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport {PORT} -j ACCEPT"
    ))?;
    let _server = serve(&pod)?;
    let what = "a container's published port is served to a host on the LAN";
    test.seen_as(neighbour, test.edge[0], PUBLISHED, NEIGHBOUR[0].parse()?, what)?;
    let outside = both(INTERNET)?[0];
    test.seen_as(&pod, outside, PORT, test.edge[0], "the container reaches the internet")?;
    // Docker turned forwarding on before the agent, so only Docker's rules apply. They accept a
    // published port of the container from everywhere.
    let container: IpAddr = CONTAINER.parse()?;
    let own = std::env::current_exe()?;
    let private = UNPUBLISHED.to_string();
    let _private = pod.start("private", pod.command(&own).args(["guest", "tcp-serve", &private, SOURCE]))?;
    test.seen_as(edge, container, UNPUBLISHED, "172.17.0.1".parse()?, "a1 itself reaches an unpublished port")?;
    world.checks.check("a host on the LAN does not by routing through a1", LOOK, || {
        test.through_the_edge(&[container], || {
            ensure!(fetched(neighbour, container, UNPUBLISHED).is_err(), "it answers");
            Ok("")
        })
    })
}

/// Waits until the status reports the packets that firewalld drops and suggests commands. Then
/// makes the changes that firewalld would make for these commands.
fn do_as_told(test: &LanTest, node: &str) -> Result<()> {
    let host = test.world.node(node);
    let what = format!("the status of {node} names what firewalld rejects and its reverse path check, with commands");
    let commands = test.world.checks.eventually(&what, LOOK, TIMEOUT, || {
        let found = test.obstacles(node)?;
        let commands: Vec<String> = found.iter().filter_map(|one| one["command"].as_str().map(str::to_owned)).collect();
        let names = |text: &str| commands.iter().any(|command| command.contains(text));
        ensure!(commands.len() == 2 && names("--zone=trusted") && names("IPv6_rpfilter=no"), "{found:?}");
        Ok(commands)
    })?;
    let pods = test.pods;
    let (pod, address) = (&pods.cloud[0].pod, pair(&pods.of(node).addresses())?[0]);
    ensure!(fetched(pod, address, PORT).is_err(), "firewalld's rules reject nothing, so that this proves nothing");
    for source in commands.iter().flat_map(|command| command.split(' ')) {
        let Some(source) = source.strip_prefix("--add-source=") else { continue };
        let family = if source.contains(':') { "ip6" } else { "ip" };
        for zones in ["INPUT_ZONES", "FORWARD_ZONES"] {
            let zone = if zones == "INPUT_ZONES" { "filter_IN_trusted" } else { "filter_FWD_trusted" };
            host.sh(&format!("nft insert rule inet firewalld filter_{zones} {family} saddr {source} goto {zone}"))?;
        }
    }
    host.sh("nft flush chain inet firewalld filter_PREROUTING")?;
    no_obstacle(test, node)
}

/// Writes the rules that dockerd adds at start, on a host that did not forward before.
fn docker(host: &Namespaces) -> Result<()> {
    host.sh("ip link add docker0 type bridge forward_delay 0 && ip link set docker0 up && \
         ip addr add 172.17.0.1/16 dev docker0 && ip addr add fd99::1/64 dev docker0 nodad && \
         sysctl -qw net.ipv4.ip_forward=1")?;
    for (program, network, loopback) in
        [("iptables-nft", "172.17.0.0/16", "127.0.0.0/8"), ("ip6tables-nft", "fd99::/64", "::1/128")]
    {
        host.sh(&format!(
            "set -e
             {program} -P FORWARD DROP
             for chain in DOCKER DOCKER-ISOLATION-STAGE-1 DOCKER-ISOLATION-STAGE-2 DOCKER-USER; do {program} -N $chain; done
             {program} -A DOCKER-USER -j RETURN
             {program} -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
             {program} -A DOCKER-ISOLATION-STAGE-1 -j RETURN
             {program} -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
             {program} -A DOCKER-ISOLATION-STAGE-2 -j RETURN
             {program} -I FORWARD -i docker0 -o docker0 -j ACCEPT
             {program} -I FORWARD -i docker0 ! -o docker0 -j ACCEPT
             {program} -I FORWARD -o docker0 -j DOCKER
             {program} -I FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
             {program} -I FORWARD -j DOCKER-ISOLATION-STAGE-1
             {program} -I FORWARD -j DOCKER-USER
             {program} -t nat -N DOCKER
             {program} -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
             {program} -t nat -A OUTPUT ! -d {loopback} -m addrtype --dst-type LOCAL -j DOCKER
             {program} -t nat -A POSTROUTING -s {network} ! -o docker0 -j MASQUERADE
             {program} -t nat -A DOCKER -i docker0 -j RETURN"
        ))?;
    }
    Ok(())
}

/// Writes firewalld's rules for its default zone `public`, to which the operator added the services
/// `ipsec` and `ssh`.
fn firewalld(host: &Namespaces) -> Result<()> {
    let rules = "table inet firewalld {
    chain filter_PREROUTING {
        type filter hook prerouting priority filter + 10; policy accept;
        icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
        meta nfproto ipv6 fib saddr . mark . iif oif missing drop
    }
    chain filter_INPUT {
        type filter hook input priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname lo accept
        ct state invalid drop
        jump filter_INPUT_ZONES
        reject with icmpx admin-prohibited
    }
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname lo accept
        ct state invalid drop
        jump filter_FORWARD_ZONES
        reject with icmpx admin-prohibited
    }
    chain filter_OUTPUT {
        type filter hook output priority filter + 10; policy accept;
        ct state { established, related } accept
        oifname lo accept
    }
    chain filter_IN_public {
        tcp dport 22 accept
        udp dport { 500, 4500 } accept
        meta l4proto { ah, esp } accept
        ip6 daddr fe80::/64 udp dport 546 accept
        meta l4proto { icmp, ipv6-icmp } accept
        reject with icmpx admin-prohibited
    }
    chain filter_FWD_public {
        reject with icmpx admin-prohibited
    }
    chain filter_IN_trusted {
        accept
    }
    chain filter_FWD_trusted {
        accept
    }
    chain filter_INPUT_ZONES {
        goto filter_IN_public
    }
    chain filter_FORWARD_ZONES {
        goto filter_FWD_public
    }
}
";
    host.write("/run/firewalld.nft", rules)?;
    host.sh("nft -f /run/firewalld.nft").map(drop)
}

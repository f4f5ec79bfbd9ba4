//! The network for the firewall checks and the steps that they share.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::demo::check_runner::TIMEOUT;
use crate::demo::layout::site;
use crate::demo::pod::answered;
use crate::demo::reach::Pods;
use crate::demo::tcp::SOURCE;
use crate::demo::world::World;
use crate::topology::{Namespaces, Process};

pub(super) const LOOK: &str = "edge-a1.kernel.txt (nft list ruleset, ip xfrm policy); edge-a1.edge-agent.log";
/// The port of servers that answer with the client's address.
pub(super) const PORT: u16 = 81;
/// Addresses of the edge's neighbour on the LAN.
pub(super) const NEIGHBOUR: [&str; 2] = ["192.0.2.66", "2001:db8:a1::66"];
/// Addresses of a machine on the internet.
pub(super) const INTERNET: [&str; 2] = ["203.0.113.1", "2001:db8::1"];

/// The network with its addresses, one for each family.
pub(super) struct LanTest<'a> {
    pub(super) world: &'a World<'a>,
    pub(super) pods: &'a Pods,
    /// a1's addresses on its LAN.
    pub(super) edge: [IpAddr; 2],
    /// The addresses of a1's bridge.
    pub(super) bridge: [IpAddr; 2],
    /// Addresses of a1's pod.
    pub(super) own: [IpAddr; 2],
    pub(super) far: [IpAddr; 2],
    pub(super) cloud: [IpAddr; 2],
    _servers: Vec<Process>,
}

pub(super) fn both(addresses: [&str; 2]) -> Result<[IpAddr; 2]> {
    Ok([addresses[0].parse()?, addresses[1].parse()?])
}

pub(super) fn pair(addresses: &[IpAddr]) -> Result<[IpAddr; 2]> {
    let of = |ipv4: bool| addresses.iter().find(|address| address.is_ipv4() == ipv4).copied();
    Ok([of(true).context("an IPv4 address")?, of(false).context("an IPv6 address")?])
}

/// Returns `ADDRESS:PORT`, with brackets where they are needed.
pub(super) fn socket(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

/// Returns a server's answer to `from`.
pub(super) fn fetched(from: &Namespaces, to: IpAddr, port: u16) -> Result<String> {
    let own = std::env::current_exe()?;
    from.run(from.command(&own).args(["guest", "tcp-fetch", &socket(to, port)]))
}

/// Returns an address in the same /120 or /29 that no pod has; pods have the first addresses.
pub(super) fn beside(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::V4((u32::from(v4) + 2).into()),
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) + 0x20).into()),
    }
}

/// Sends some packets from a host with each of these sources to each of these targets. Returns the
/// number of pairs.
pub(super) fn forge(host: &Namespaces, sources: &[IpAddr], targets: &[[IpAddr; 2]]) -> Result<u64> {
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
pub(super) fn routed_through<T>(
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
    pub(super) fn new(world: &'a World<'a>, pods: &'a Pods) -> Result<Self> {
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

    /// Returns the source address that a server sees when `from` connects to it.
    pub(super) fn seen(&self, from: &Namespaces, to: IpAddr, port: u16) -> Result<IpAddr> {
        let text = fetched(from, to, port)?;
        text.parse().with_context(|| format!("{to} said {text:?}"))
    }

    pub(super) fn seen_as(&self, from: &Namespaces, to: IpAddr, port: u16, source: IpAddr, what: &str) -> Result<()> {
        self.world.checks.eventually(what, LOOK, TIMEOUT, || {
            let seen = self.seen(from, to, port)?;
            ensure!(seen == source, "it is seen as {seen}, not as {source}");
            Ok(())
        })
    }

    /// Returns the value of a counter of a node's firewall.
    pub(super) fn refused(&self, node: &str, counter: &str) -> Result<u64> {
        let status = self.world.status(node)?;
        let entries = status["refused"].as_array().context("status has no list of what was refused")?;
        Ok(entries
            .iter()
            .find(|entry| entry["counter"] == counter)
            .and_then(|entry| entry["packets"].as_u64())
            .unwrap_or(0))
    }

    pub(super) fn obstacles(&self, node: &str) -> Result<Vec<Value>> {
        let status = self.world.status(node)?;
        let all = status["obstacles"].as_array().cloned().context("status has no list of obstacles")?;
        // The setting is off in the lab's kernel, and the status reports that. No check here needs
        // it.
        Ok(all.into_iter().filter(|one| !one["what"].as_str().unwrap_or_default().contains("bridge-nf-call")).collect())
    }

    /// Makes the neighbour route packets for these addresses through a1 while `act` runs.
    pub(super) fn through_the_edge<T>(&self, to: &[IpAddr], act: impl FnOnce() -> Result<T>) -> Result<T> {
        routed_through(self.world.node("neighbour"), self.edge, to, act)
    }

    pub(super) fn lan_host_reaches_nothing(&self, others: &str) -> Result<()> {
        let checks = &self.world.checks;
        checks.part(&format!("A host on a1's LAN, {others}"));
        let neighbour = self.world.node("neighbour");
        let targets = [self.own, self.far, self.cloud].concat();
        let what = format!("{others}, it reaches neither a1's pod nor a2's nor the cloud's through a1");
        checks.check(&what, LOOK, || {
            let pairs: Vec<(&Namespaces, IpAddr)> = targets.iter().map(|to| (&**neighbour, *to)).collect();
            let refused = || anyhow::Ok((self.refused("edge-a1", "to-pods")?, self.refused("edge-a1", "to-tunnels")?));
            let before = refused()?;
            let answers = self.through_the_edge(&targets, || answered(&pairs))?;
            ensure!(answers.is_empty(), "answers came: {}", answers.join(", "));
            let after = refused()?;
            let counted = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
            ensure!(counted.0 >= 6 && counted.1 >= 12, "a1's firewall counted {counted:?}: they never got there");
            Ok(format!("{} packets dropped on the way to pods, {} to tunnels", counted.0, counted.1))
        })
    }

    /// Checks that the neighbour cannot send with sources of a local pod, of a remote pod and of
    /// the cloud, towards a1's pod, a2's pod, the cloud's pod and a1 itself.
    pub(super) fn lan_host_cannot_pose(&self, others: &str) -> Result<()> {
        let sources = [self.own.map(beside), self.far.map(beside), self.cloud.map(beside)].concat();
        let what = format!("{others}, it poses as no pod, towards pods, through tunnels, or towards a1");
        self.cannot_pose("neighbour", "edge-a1", self.edge, &sources, &what)
    }

    /// Sends from a host on a node's LAN with these sources, towards a1's pod, a2's pod, the
    /// cloud's pod and the node itself. Checks that no packet arrives.
    pub(super) fn cannot_pose(
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
    pub(super) fn published_ports(&self, others: &str) -> Result<()> {
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
            // A program that masquerades only towards the LAN does not change this source.
            self.seen_as(neighbour, reached, 8080, client, &what)?;
            let what = format!("{others}, a published port of a2's pod is served at {reached}");
            self.seen_as(neighbour, reached, 30080, self.bridge[family], &what)?;
            edge.sh(&format!("nft delete table {name} publish"))?;
        }
        Ok(())
    }
}

//! Checks a pod that uses the addresses of its neighbour, of the gateway and of a pod on another
//! node.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::pod::{DemoPod, reaches};
use super::reach::Pods;
use super::world::World;
use crate::topology::{Namespaces, Ping};

/// A node, a pod on that node, and another pod on the same node that attacks the first.
struct Attack<'a> {
    world: &'a World<'a>,
    node: &'a Namespaces,
    victim: &'a DemoPod,
    thief: &'a DemoPod,
}

/// Lets a second pod on the node take the first one's addresses by ARP, by ND and by its MAC
/// address, the gateway's addresses, and the addresses of a pod on another node. Checks that the
/// second pod receives none of the first pod's packets, that no packet with these addresses arrives
/// anywhere, and that the first pod's traffic with the cloud continues.
///
/// # Errors
/// Returns the error of the first check that fails.
pub(super) fn a_pod_is_itself(world: &World, pods: &Pods, node: &str, other_node: &str) -> Result<()> {
    let (victim, cloud) = (pods.of(node), &pods.cloud[0]);
    let thief = world.add_pod(node, "thief")?;
    let attack = Attack { world, node: world.node(node), victim, thief: &thief };
    let mut flows = victim
        .addresses()
        .iter()
        .map(|address| Ping::start(&cloud.pod, &address.to_string(), Duration::from_millis(50)))
        .collect::<Result<Vec<_>>>()?;
    thief.pod.sh(
        "nft 'add table inet watch; add chain inet watch in { type filter hook prerouting priority -300; }; add counter inet watch stolen'",
    )?;
    let mut goes_on = || flows.iter_mut().try_for_each(|flow| flow.wait_more(5));
    goes_on()?;

    let (own_mac, victims_mac) = (mac(&thief.pod)?, mac(&victim.pod)?);
    for (address, way, comment) in [
        (victim.v4.map(IpAddr::from), "its neighbour's IPv4 address by ARP", "ARP sender"),
        (victim.v6.map(IpAddr::from), "its neighbour's IPv6 address by ND", "advertised address"),
    ] {
        let address = address.context("an address of each family")?;
        attack.gets_nothing(way, &[comment], || {
            take_address(&thief.pod, address)?;
            // The node asks for the holder of the address, and the thief answers.
            attack.node.sh(&format!("ip neigh del {address} dev ecni0 || true"))?;
            goes_on()
        })?;
    }
    attack.gets_nothing("its neighbour's MAC address", &["source MAC address"], || {
        thief.pod.sh(&format!("ip link set eth0 address {victims_mac}"))?;
        for address in victim.addresses() {
            ping_gateway(&thief.pod, address)?;
        }
        goes_on()?;
        thief.pod.sh(&format!("ip link set eth0 address {own_mac}")).map(drop)
    })?;
    for address in victim.addresses() {
        drop_address(&thief.pod, address)?;
    }
    let gateways: Vec<IpAddr> = victim.addresses().into_iter().map(gateway).collect();
    attack.gets_nothing("the gateway's addresses", &["ARP sender", "IPv6 source"], || {
        for (gateway, address) in gateways.iter().zip(victim.addresses()) {
            watch(&thief.pod, *gateway)?;
            // The thief resolves the victim's address itself, since it now has the gateway's
            // address.
            thief.pod.sh(&format!("ip neigh flush dev eth0; ip route replace {address} dev eth0"))?;
            ping_from(&thief.pod, *gateway, address)?;
        }
        victim.pod.sh("ip neigh flush dev eth0")?;
        for address in victim.addresses() {
            reaches(&victim.pod, gateway(address))?;
        }
        goes_on()?;
        let bridge = link_address(attack.node, "ecni0")?;
        for gateway in &gateways {
            let known = victim.pod.sh(&format!("ip neigh show {gateway} dev eth0"))?;
            ensure!(known.contains(&bridge), "the victim takes {known:?} for the gateway, not {bridge}");
            drop_address(&thief.pod, *gateway)?;
        }
        Ok(())
    })?;
    let remote = pods.of(other_node).addresses();
    attack.sends_nothing_as(&remote, &[(&cloud.pod, cloud.addresses.to_vec()), (&victim.pod, victim.addresses())])?;

    world.checks.check(
        &format!("none of the pings from the cloud to the neighbour on {node} were lost meanwhile"),
        "ip neigh and bridge fdb on the node",
        || {
            for flow in flows {
                flow.stop()?.expect_none_lost()?;
            }
            Ok("")
        },
    )?;
    world.delete_pod(thief)
}

impl Attack<'_> {
    fn look(&self) -> String {
        format!("nft list table bridge edge-cni, ip neigh and bridge fdb on {}", self.node.name())
    }

    /// Checks that the pod receives none of the neighbour's traffic while `act` runs, and that the
    /// plugin's table drops the pod's frames by rules with each of these comments.
    fn gets_nothing(&self, way: &str, comments: &[&str], act: impl FnOnce() -> Result<()>) -> Result<()> {
        let node = self.node.name();
        let what = format!("a pod on {node} that takes {way} gets nothing of the neighbour's traffic");
        self.world.checks.check(&what, &self.look(), || {
            let counts = || comments.iter().map(|comment| dropped(self.node, comment)).collect::<Result<Vec<_>>>();
            let before = counts()?;
            act()?;
            let counted = self.thief.pod.sh("nft list counter inet watch stolen")?;
            ensure!(counted.contains("packets 0 "), "the thief got packets: {counted}");
            let mut shown = Vec::new();
            for ((comment, before), after) in comments.iter().zip(before).zip(counts()?) {
                ensure!(after > before, "the table dropped nothing as {comment:?}: nothing was sent");
                shown.push(format!("{comment} +{}", after - before));
            }
            Ok(shown.join(", "))
        })
    }

    /// Checks that packets from the pod with these source addresses arrive nowhere.
    fn sends_nothing_as(&self, sources: &[IpAddr], targets: &[(&Namespaces, Vec<IpAddr>)]) -> Result<()> {
        let (thief, node) = (&self.thief.pod, self.node.name());
        let what = format!(
            "a pod on {node} that sends with addresses of another node's pod reaches neither the cloud nor its neighbour"
        );
        self.world.checks.check(&what, &self.look(), || {
            // The pod has fixed neighbour entries and sends no ARP or ND, so that its packets
            // themselves are checked.
            let (bridge, neighbour) = (link_address(self.node, "ecni0")?, mac(&self.victim.pod)?);
            for address in self.victim.addresses() {
                thief.sh(&format!("ip neigh replace {} lladdr {bridge} dev eth0 nud permanent", gateway(address)))?;
                thief.sh(&format!("ip neigh replace {address} lladdr {neighbour} dev eth0 nud permanent"))?;
            }
            let before = dropped(self.node, "IPv4 source")? + dropped(self.node, "IPv6 source")?;
            for source in sources {
                let (family, prefix, nodad) = words(*source);
                thief.sh(&format!("ip addr add {source}/{prefix} dev eth0{nodad}"))?;
                for (target, addresses) in targets {
                    target.sh(&format!(
                        "nft 'add table inet watch; add chain inet watch in {{ type filter hook input priority -300; }}; \
                         add rule inet watch in {family} saddr {source} counter'"
                    ))?;
                    for address in addresses.iter().filter(|address| address.is_ipv4() == source.is_ipv4()) {
                        ping_from(thief, *source, *address)?;
                    }
                    let arrived = target.sh("nft list table inet watch; nft delete table inet watch")?;
                    ensure!(arrived.contains("packets 0 "), "{} got packets: {arrived}", target.name());
                }
                thief.sh(&format!("ip addr del {source}/{prefix} dev eth0"))?;
            }
            let counted = dropped(self.node, "IPv4 source")? + dropped(self.node, "IPv6 source")? - before;
            ensure!(counted >= 4, "the table dropped {counted} packets: they were not sent");
            Ok(format!("{counted} packets dropped"))
        })
    }
}

/// Returns the number of frames that the plugin's table dropped by the rules with this comment.
fn dropped(node: &Namespaces, comment: &str) -> Result<u64> {
    let listed = node.sh("nft list table bridge edge-cni")?;
    let rules = listed.lines().filter(|line| line.contains(&format!("comment \"{comment}\"")));
    let count = |rule: &str| rule.split_whitespace().skip_while(|word| *word != "packets").nth(1)?.parse::<u64>().ok();
    Ok(rules.filter_map(count).sum())
}

/// Returns nft's family, the prefix length of a single address, and the option that turns duplicate
/// address detection off.
fn words(address: IpAddr) -> (&'static str, u8, &'static str) {
    if address.is_ipv4() { ("ip", 32, "") } else { ("ip6", 128, " nodad") }
}

/// Makes the pod take an address, and counts packets that arrive for that address.
fn watch(thief: &Namespaces, address: IpAddr) -> Result<()> {
    let (family, prefix, nodad) = words(address);
    thief
        .sh(&format!(
            "nft add rule inet watch in iifname eth0 {family} daddr {address} counter name stolen && ip addr add {address}/{prefix} dev eth0{nodad}"
        ))
        .map(drop)
}

/// Makes the pod take an address and send packets with it.
fn take_address(thief: &Namespaces, address: IpAddr) -> Result<()> {
    watch(thief, address)?;
    ping_gateway(thief, address)
}

fn drop_address(thief: &Namespaces, address: IpAddr) -> Result<()> {
    let (_, prefix, _) = words(address);
    thief.sh(&format!("ip addr del {address}/{prefix} dev eth0")).map(drop)
}

/// Returns the gateway of a pod with this address.
fn gateway(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => IpAddr::from((u32::from(address) & !7 | 1).to_be_bytes()),
        IpAddr::V6(address) => IpAddr::from((u128::from(address) & !0xff | 1).to_be_bytes()),
    }
}

/// Pings the gateway from that address. The request for the gateway's MAC address contains the
/// sender's MAC address, which neighbours store.
fn ping_gateway(pod: &Namespaces, source: IpAddr) -> Result<()> {
    pod.sh("ip neigh flush dev eth0")?;
    ping_from(pod, source, gateway(source))
}

fn ping_from(pod: &Namespaces, source: IpAddr, to: IpAddr) -> Result<()> {
    let (source, to) = (source.to_string(), to.to_string());
    pod.output(pod.command("ping").args(["-n", "-q", "-c", "3", "-i", "0.1", "-W", "0.3", "-I", &source, &to]))?;
    Ok(())
}

fn mac(pod: &Namespaces) -> Result<String> {
    link_address(pod, "eth0")
}

/// Returns the MAC address of a link.
fn link_address(place: &Namespaces, link: &str) -> Result<String> {
    let shown = place.sh(&format!("ip -o link show dev {link}"))?;
    let words: Vec<&str> = shown.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "link/ether").context("no link/ether")?;
    Ok((*words.get(at + 1).context("no address behind link/ether")?).to_owned())
}

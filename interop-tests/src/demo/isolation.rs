//! Checks that outsiders, forgers, hostile members and neighbours reach no pod.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use super::check_runner::TIMEOUT;
use super::pod::{answered, reaches};
use super::reach::{Pods, only_esp_on_the_wire};
use super::world::World;
use crate::topology::{Namespaces, Ping};

/// The kernel's counters of packets that policies drop.
const REFUSALS: [&str; 5] =
    ["XfrmInPolBlock", "XfrmOutPolBlock", "XfrmInNoPols", "XfrmInTmplMismatch", "XfrmFwdHdrError"];

/// Checks that b1 and c1 reach neither a1 nor a2, and that a1 and a2 do not reach b1 or c1.
///
/// # Errors
/// Returns an error if a ping between any pair is answered.
pub(super) fn outsiders_stay_out(world: &World, pods: &Pods, when: &str) -> Result<()> {
    let mut pairs: Vec<(&Namespaces, IpAddr)> = Vec::new();
    for outsider in ["edge-b1", "edge-c1"] {
        for member in ["edge-a1", "edge-a2"] {
            let (outsider, member) = (pods.of(outsider), pods.of(member));
            pairs.extend(member.addresses().into_iter().map(|to| (&*outsider.pod, to)));
            pairs.extend(outsider.addresses().into_iter().map(|to| (&*member.pod, to)));
        }
    }
    world.checks.check(
        &format!("{when}, b1 and c1 do not reach a1 and a2, nor the other way"),
        "ip xfrm policy",
        || {
            let answered = answered(&pairs)?;
            ensure!(answered.is_empty(), "answers came: {}", answered.join(", "));
            Ok(format!("{} pairs tried", pairs.len()))
        },
    )
}

/// Checks every sender that must not get through.
///
/// # Errors
/// Returns the error of the first check that fails.
pub(super) fn check_isolation(world: &World, pods: &Pods) -> Result<()> {
    world.checks.part("No reach");
    outsiders_stay_out(world, pods, "with all agents running")?;
    super::pod_spoofing::a_pod_is_itself(world, pods, "edge-c1", "edge-b1")?;
    forger(world, pods)?;
    hostile_member(world, pods)?;
    neighbour(world, pods)?;
    killed_agents(world, pods)?;
    joining_and_leaving(world, pods)?;
    only_esp_on_the_wire(world, "after all that")
}

/// Returns the number of packets that policies or our nftables tables dropped.
fn refused(namespaces: &Namespaces) -> Result<u64> {
    let stat = namespaces.xfrm_stat()?;
    let policies: u64 = REFUSALS.iter().filter_map(|name| stat.get(*name)).sum();
    Ok(policies + dropped(namespaces)?)
}

/// Returns the number of packets that our nftables tables dropped. Only rules that drop packets
/// have a counter.
fn dropped(namespaces: &Namespaces) -> Result<u64> {
    let listed =
        namespaces.sh("for family in inet bridge; do nft list table $family edge-cni 2>/dev/null || true; done")?;
    let mut words = listed.split_whitespace();
    let mut sum = 0;
    while let Some(word) = words.next() {
        if word == "packets" {
            sum += words.next().and_then(|count| count.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Ok(sum)
}

fn describe_drops(namespaces: &Namespaces, before: &std::collections::BTreeMap<String, u64>) -> Result<String> {
    let risen: Vec<_> = namespaces
        .xfrm_stat()?
        .into_iter()
        .filter_map(|(name, now)| {
            let rise = now.saturating_sub(before.get(&name).copied().unwrap_or(0));
            (rise > 0).then(|| format!("{name} +{rise}"))
        })
        .collect();
    let policies = if risen.is_empty() { "no policy was asked".to_owned() } else { risen.join(", ") };
    Ok(format!("{policies}; its firewall has dropped {} in all", dropped(namespaces)?))
}

/// Returns an address in b1's segment that no pod has.
fn forged(pods: &Pods) -> Result<IpAddr> {
    let real = pods.of("edge-b1").v4.context("b1's pod has an IPv4 address")?;
    let [a, b, c, d] = real.octets();
    Ok(IpAddr::from([a, b, c, d + 1]))
}

fn ping_from(from: &Namespaces, source: IpAddr, to: IpAddr) -> Result<()> {
    let source = source.to_string();
    let to = to.to_string();
    from.output(from.command("ping").args(["-n", "-q", "-c", "3", "-i", "0.1", "-W", "0.3", "-I", &source, &to]))?;
    Ok(())
}

/// Runs `act`. Fails if a packet from `source` arrives at a1's pod in the meantime.
fn nothing_arrives(pods: &Pods, name: &str, source: IpAddr, act: impl FnOnce() -> Result<()>) -> Result<()> {
    let pod = &pods.of("edge-a1").pod;
    let family = if source.is_ipv4() { "ip" } else { "ip6" };
    let count = format!(
        "add table inet watch; add chain inet watch in {{ type filter hook input priority -300; }}; \
         add rule inet watch in {family} saddr {source} counter"
    );
    pod.sh(&format!("nft '{count}'"))?;
    let acted = act();
    let listed = pod.sh("nft list table inet watch")?;
    pod.sh("nft delete table inet watch")?;
    acted?;
    ensure!(listed.contains("packets 0 "), "{name} got packets into a1's pod: {listed}");
    Ok(())
}

/// Checks a pod on a2 that uses an address of b1's segment.
fn forger(world: &World, pods: &Pods) -> Result<()> {
    let (pod, host) = (&pods.of("edge-a2").pod, world.node("edge-a2"));
    let source = forged(pods)?;
    let target = pods.of("edge-a1").v4.context("a1's pod has an IPv4 address")?;
    pod.sh(&format!("ip addr add {source}/32 dev eth0"))?;
    world.checks.check(
        "a pod on a2 that forges an address of b1's gets nothing through",
        "nft list table bridge edge-cni on edge-a2",
        || {
            let before = dropped(host)?;
            nothing_arrives(pods, "the forger", source, || ping_from(pod, source, target.into()))?;
            let count = dropped(host)? - before;
            ensure!(count > 0, "a2's bridge did not count a refusal");
            Ok(format!("a2's filters dropped {count} packets"))
        },
    )
}

/// Checks the same pod after a2's own filters and policies were opened manually.
fn hostile_member(world: &World, pods: &Pods) -> Result<()> {
    let (pod, host, victim) = (&pods.of("edge-a2").pod, world.node("edge-a2"), world.node("edge-a1"));
    let source = forged(pods)?;
    let target = pods.of("edge-a1").v4.context("a1's pod has an IPv4 address")?;
    // The template of the tunnel to a1, as the kernel shows it.
    let policies = host.xfrm_policies()?;
    let tunnel = policies
        .iter()
        .find(|policy| {
            policy.dir == "out"
                && policy.action == "allow"
                && policy.dst.contains(target.into())
                && !policy.reqids.is_empty()
        })
        .context("a2 has no policy towards a1")?;
    let reqid = tunnel.reqids[0];
    let outer = host
        .xfrm_states()?
        .into_iter()
        .find(|state| state.reqid == reqid && state.src.to_string().starts_with("192.168.1."))
        .context("a2 has no SA towards a1")?;
    let selectors = format!("src {source}/32 dst {target}/32");
    // The agent would remove a policy with our mark that is not among its desired policies. A
    // hostile member runs no agent.
    world.end("edge-a2", Signal::KILL)?;
    host.sh("nft 'delete table bridge edge-cni; delete table inet edge-cni'")?;
    host.sh(&format!(
        "ip xfrm policy add {selectors} dir out priority 1 tmpl src {} dst {} proto esp reqid {reqid} mode tunnel && \
         ip xfrm policy add {selectors} dir fwd priority 1 && \
         nft 'add table ip hostile; add chain ip hostile post {{ type nat hook postrouting priority -190; }}; \
              add rule ip hostile post ip saddr {source} snat to {source}'",
        outer.src, outer.dst
    ))?;
    world.checks.check(
        "a member that opens its own policies to forged packets gets nothing through a1",
        "ip -s xfrm policy and /proc/net/xfrm_stat on edge-a1",
        || {
            let (before, stat) = (refused(victim)?, victim.xfrm_stat()?);
            nothing_arrives(pods, "the hostile member", source, || ping_from(pod, source, target.into()))?;
            ensure!(refused(victim)? > before, "a1's kernel did not count a refusal: no forged packet reached it");
            Ok(format!("a1's kernel says {}", describe_drops(victim, &stat)?))
        },
    )?;
    host.sh(&format!(
        "ip xfrm policy delete {selectors} dir out && ip xfrm policy delete {selectors} dir fwd && nft delete table ip hostile"
    ))?;
    pod.sh(&format!("ip addr del {source}/32 dev eth0"))?;
    world.start_agent("edge-a2")?;
    world.checks.eventually("honest again, a2 has its tunnel", "edge-a2.edge-agent.log", TIMEOUT, || {
        world.tunnel_is_up("edge-a2", "edge-a1")?;
        world.tunnel_is_up("edge-a1", "edge-a2")
    })?;
    Ok(())
}

/// Checks a machine on a1's wire with the address of a2's pod.
fn neighbour(world: &World, pods: &Pods) -> Result<()> {
    let neighbour = world.node("neighbour");
    let source: IpAddr = pods.of("edge-a2").v4.context("a2's pod has an IPv4 address")?.into();
    let target = pods.of("edge-a1").v4.context("a1's pod has an IPv4 address")?;
    neighbour.sh(&format!("ip addr add {source}/32 dev lo && ip route add {target}/32 via 192.0.2.10"))?;
    world.checks.check(
        "a neighbour of a1 with a2's pod's address reaches no pod",
        "ip xfrm policy on edge-a1",
        || {
            let host = world.node("edge-a1");
            let (before, stat) = (refused(host)?, host.xfrm_stat()?);
            nothing_arrives(pods, "the neighbour", source, || ping_from(neighbour, source, target.into()))?;
            ensure!(refused(host)? > before, "a1's kernel did not count a refusal");
            Ok(format!("a1's kernel says {}", describe_drops(host, &stat)?))
        },
    )?;
    neighbour.sh(&format!("ip addr del {source}/32 dev lo && ip route del {target}/32"))?;
    // The neighbour itself sent unencrypted packets on a1's wire. They are read at this point, so
    // that later checks do not count them.
    world.new_frames().map(drop)
}

/// Checks that outsiders stay out and packets are still encrypted after the agents of a1 and b1
/// were killed.
fn killed_agents(world: &World, pods: &Pods) -> Result<()> {
    world.end("edge-a1", Signal::KILL)?;
    world.end("edge-b1", Signal::KILL)?;
    outsiders_stay_out(world, pods, "with the agents of a1 and b1 killed")?;
    only_esp_on_the_wire(world, "with agents killed")?;
    world.start_agent("edge-a1")?;
    world.start_agent("edge-b1")?;
    for (node, peer) in [("edge-a1", "edge-a2"), ("edge-b1", "cloud-1"), ("edge-a1", "cloud-1")] {
        world.checks.eventually(
            &format!("restarted, {node} has its tunnel to {peer} again"),
            "*.edge-agent.log",
            TIMEOUT,
            || world.tunnel_is_up(node, peer),
        )?;
    }
    Ok(())
}

/// Makes b1 join the community and then leave it.
///
/// # Errors
/// Returns the error of the first check that fails.
pub(super) fn joining_and_leaving(world: &World, pods: &Pods) -> Result<()> {
    let (b1, a1) = (pods.of("edge-b1"), pods.of("edge-a1"));
    let address: IpAddr = a1.v4.context("a1's pod has an IPv4 address")?.into();
    // The ping runs before the label is set, so that the first answer is seen at once. A single
    // request that is too early would wait for its timeout.
    let ping = Ping::start(&b1.pod, &address.to_string(), Duration::from_millis(50))?;
    let began = Instant::now();
    world.label("edge-b1", "fabedge/edge-community=alpha")?;
    world.checks.eventually("labelled alpha, b1 reaches a1", "*.edge-agent.log", TIMEOUT, || {
        ensure!(ping.received() > 0, "{address} does not answer {}", b1.pod.name());
        Ok(())
    })?;
    world.checks.note(format!("{:.2} s from the operator's command on", began.elapsed().as_secs_f64()));
    ping.stop()?;
    world.label("edge-b1", "fabedge/edge-community-")?;
    world.checks.eventually("unlabelled, it does not any more", "*.edge-agent.log", TIMEOUT, || {
        ensure!(answered(&[(&b1.pod, address)])?.is_empty(), "b1 still reaches a1");
        Ok(())
    })?;
    world.label("edge-b1", "fabedge/edge-community=beta")?;
    let cloud = pods.cloud[0].addresses[0];
    world.checks.eventually("and c1, in no community, still reaches the cloud", "*.edge-agent.log", TIMEOUT, || {
        reaches(&pods.of("edge-c1").pod, cloud)
    })?;
    Ok(())
}

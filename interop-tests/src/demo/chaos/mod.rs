//! Causes random events at the demo's nodes, or in a larger network of twelve nodes with two hubs,
//! and checks the demo's claims after each round. No pod's
//! packet appears unencrypted on the wires. Pods that may reach each other do so again, and pods
//! that must not reach each other never do. At rest there is one IKE SA for each pair, and the
//! kernel's state matches the status.
//!
//! - `event`: draws the events of a round from a seed. `happen`: carries out these events.

mod event;
mod happen;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::layout::{DEMO, Layout, TWELVE_NODES, has_both_families};
use super::pod::reaches;
use super::reach::{self, Pods};
use super::status_and_kernel::agree;
use super::world::World;
use crate::runner::{RunOptions, outcomes};
use crate::scenario::{Lab, Needs, Scenario, TestResult};
use crate::topology::{Namespaces, Ping};
use event::{Event, Round, Rounds};

/// The environment variables with the seed and the duration, seconds.
const SEED: &str = "EDGE_CHAOS_SEED";
const SECONDS: &str = "EDGE_CHAOS_SECONDS";

/// Number of rounds in the default run, and the seed of that run.
const ROUNDS: usize = 5;
const DEFAULT_SEED: u64 = 1;
/// Maximum duration of a run, in seconds.
const MOST_SECONDS: u64 = 24 * 3600;
/// Time limit for the recovery of the network, on a busy machine.
const RECOVERY: Duration = Duration::from_secs(120);
/// Number of pairs of pods that ping each other at the same time.
const AT_ONCE: usize = 12;
/// Number of pings a second that must not be answered. All pairs share them, and each has at most
/// ten.
const FORBIDDEN_PER_SECOND: u32 = 200;
const FORBIDDEN_PACE: Duration = Duration::from_millis(100);

/// A scenario with a few rounds.
pub const SHORT: Scenario = Scenario {
    name: "chaos/short",
    about: "five rounds of random events (seed 1): nothing in clear, permitted pods reach each other again, others never",
    deadline: Duration::from_secs(900),
    by_default: true,
    needs: Needs::Nothing,
    run: |lab| run(lab, &DEMO),
};

/// A scenario with as many rounds as `make chaos` has time for.
pub const LONG: Scenario = Scenario {
    name: "chaos/long",
    about: "random events at twelve nodes, two of them hubs, for as long as make chaos says",
    deadline: Duration::from_secs(MOST_SECONDS + 1800),
    by_default: false,
    needs: Needs::Nothing,
    run: |lab| run(lab, &TWELVE_NODES),
};

/// Runs random events of this seed for some minutes.
///
/// # Errors
/// Returns an error if there is no lab or the programs do not build.
pub fn main(minutes: u64, seed: u64, backend: Option<String>) -> Result<ExitCode> {
    let seconds = minutes.saturating_mul(60);
    ensure!((1..=MOST_SECONDS).contains(&seconds), "--minutes must be from 1 to {}", MOST_SECONDS / 60);
    let env = [(SEED, seed), (SECONDS, seconds)].map(|(key, value)| (key.to_owned(), value.to_string()));
    let options = RunOptions { names: vec![LONG.name.to_owned()], backend, env: env.to_vec(), ..RunOptions::default() };
    let outcomes = outcomes(&[&LONG], &options, |outcome, kept| {
        if outcome.result != TestResult::Pass {
            eprintln!("\nchaos: seed {seed}: {}\n  logs and captures: {}", outcome.why, kept.display());
        }
        Ok(())
    })?;
    Ok(ExitCode::from(u8::from(!outcomes.iter().all(|outcome| outcome.result == TestResult::Pass))))
}

fn run(lab: &Lab, layout: &'static Layout) -> Result<()> {
    let number = |name: &str| -> Result<Option<u64>> {
        let Ok(text) = std::env::var(name) else { return Ok(None) };
        text.parse().map(Some).with_context(|| format!("{name} is {text:?}, and should be a number"))
    };
    let (seed, seconds) = (number(SEED)?.unwrap_or(DEFAULT_SEED), number(SECONDS)?);
    let world = World::build_with(lab, layout)?;
    let mut pods = reach::bring_up(&world)?;
    world.checks.part(&format!("Chaos, seed {seed}"));
    let mut members: BTreeSet<&'static str> = BTreeSet::new();
    recovered(&world, &pods, &members)?;
    let began = Instant::now();
    let mut slowest = Duration::ZERO;
    for (number, round) in (1..).zip(Rounds::new(seed, layout)) {
        let enough = match seconds {
            Some(seconds) => began.elapsed().as_secs() >= seconds,
            None => number > ROUNDS,
        };
        if enough {
            break;
        }
        let took = play(&world, &mut pods, &mut members, &round, number)
            .with_context(|| format!("seed {seed}, round {number}: {}", shown(&round)))?;
        slowest = slowest.max(took);
    }
    world.end_captures()?;
    eprintln!(
        "\nchaos: seed {seed}: {} checks passed in {:.0} s; the slowest recovery took {:.1} s",
        world.checks.passed(),
        world.checks.elapsed().as_secs_f64(),
        slowest.as_secs_f64()
    );
    Ok(())
}

fn shown(round: &Round) -> String {
    let events: Vec<String> = round.events.iter().map(|(place, event)| format!("{place} {event:?}")).collect();
    format!("{}; for {:.1} s", events.join(", "), round.lasts.as_secs_f64())
}

/// Plays a round. Returns how long the recovery took.
fn play(
    world: &World,
    pods: &mut Pods,
    members: &mut BTreeSet<&'static str>,
    round: &Round,
    number: usize,
) -> Result<Duration> {
    world.checks.note(format!("round {number}: {}", shown(round)));
    let before = members.clone();
    for (place, event) in &round.events {
        match event {
            Event::Member { alpha: true } => drop(members.insert(place)),
            Event::Member { alpha: false } => drop(members.remove(place)),
            _ => {}
        }
    }
    // Pairs that may reach each other neither before nor after the round. A pod that is replaced
    // cannot ping until the end of the round.
    let layout = world.layout;
    let replaced = |edge: &'static str| round.events.contains(&(edge, Event::PodReplaced));
    let mut unrelated = Vec::new();
    for (from, to) in pairs(layout).filter(|(from, to)| !replaced(from) && !replaced(to)) {
        if !may_reach(layout, &before, from, to) && !may_reach(layout, members, from, to) {
            unrelated.extend(pods.of(to).addresses().into_iter().map(|address| (from, to, address)));
        }
    }
    let count = u32::try_from(unrelated.len()).unwrap_or(u32::MAX);
    let pace = FORBIDDEN_PACE.max(Duration::from_secs(1) * count / FORBIDDEN_PER_SECOND);
    let mut forbidden = Vec::new();
    for (from, to, address) in unrelated {
        let ping = Ping::start(&pods.of(from).pod, &address.to_string(), pace)?;
        forbidden.push((format!("{from}'s pod reached {to}'s at {address}"), ping));
    }
    happen::begin(world, pods, round, number)?;
    #[expect(clippy::disallowed_methods, reason = "the time is a part of the round")]
    std::thread::sleep(round.lasts);
    happen::end(world, round)?;
    let ended = Instant::now();
    recovered(world, pods, members)?;
    let took = ended.elapsed();
    world.checks.check("nobody reached a pod that it must not reach", "ping logs", || {
        let count = forbidden.len();
        for (what, ping) in forbidden {
            let answers = ping.end()?;
            ensure!(answers == 0, "{what}: {answers} answers");
        }
        Ok(format!("{count} pings"))
    })?;
    reach::only_esp_on_the_wire(world, &format!("in round {number}"))?;
    Ok(took)
}

/// Returns all ordered pairs of edges.
fn pairs(layout: &'static Layout) -> impl Iterator<Item = (&'static str, &'static str)> {
    let others = move |from| layout.edges().filter(move |to| *to != from);
    layout.edges().flat_map(move |from| others(from).map(move |to| (from, to)))
}

/// Returns the community of an edge. `guests` are those guests that are members of alpha now.
fn community(layout: &Layout, guests: &BTreeSet<&'static str>, edge: &str) -> Option<&'static str> {
    match edge {
        edge if layout.alpha.contains(&edge) || guests.contains(edge) => Some("alpha"),
        edge if layout.beta.contains(&edge) => Some("beta"),
        _ => None,
    }
}

/// Returns whether two edges have a community in common.
fn may_reach(layout: &Layout, guests: &BTreeSet<&'static str>, from: &str, to: &str) -> bool {
    let community = |edge| community(layout, guests, edge);
    community(from).is_some() && community(from) == community(to)
}

/// Returns whether a tunnel between two edges must come up: one has a public address of each
/// family. Between other edges, NATs or different address families may prevent a tunnel.
fn has_path(from: &str, to: &str) -> bool {
    has_both_families(from) || has_both_families(to)
}

/// Waits until all pods that may reach each other do so, and until the network is at rest.
fn recovered(world: &World, pods: &Pods, guests: &BTreeSet<&'static str>) -> Result<()> {
    let (checks, layout) = (&world.checks, world.layout);
    let wanted: Vec<_> =
        pairs(layout).filter(|(from, to)| may_reach(layout, guests, from, to) && has_path(from, to)).collect();
    let mut reached: Vec<(&Namespaces, IpAddr)> = Vec::new();
    for (from, to) in &wanted {
        reached.extend(pods.of(to).addresses().into_iter().map(|address| (&*pods.of(from).pod, address)));
    }
    for edge in layout.edges() {
        for cloud in &pods.cloud {
            reached.extend(cloud.addresses.map(|address| (&*pods.of(edge).pod, address)));
            reached.extend(pods.of(edge).addresses().into_iter().map(|address| (&*cloud.pod, address)));
        }
    }
    let count = reached.len();
    checks.eventually(&format!("{count} pairs of pods reach each other"), "*.edge-agent.log", RECOVERY, || {
        let (first, rest) = reached.split_at(reached.len().min(AT_ONCE));
        let (mut left, why) = unreached(first);
        left.extend(rest);
        reached = left;
        ensure!(reached.is_empty(), "{} of {count} are left{why}", reached.len());
        Ok(())
    })?;
    let mut tunnels: Vec<(&str, &str)> = wanted;
    tunnels.extend(layout.edges().flat_map(|edge| layout.hubs().flat_map(move |hub| [(edge, hub), (hub, edge)])));
    checks.eventually("each pair has one IKE SA", "edge-agent status --json", RECOVERY, || {
        layout.nodes().try_for_each(|node| at_rest(world, node, &tunnels, guests))
    })?;
    checks.eventually("the kernels have what the agents say", "ip xfrm; edge-agent status --json", RECOVERY, || {
        layout.nodes().try_for_each(|node| agree(world, node).with_context(|| node.to_owned()))
    })
}

/// Sends a ping for each pair at the same time. Returns the pairs whose pings were not answered,
/// and the reason for the last one.
fn unreached<'a>(pairs: &[(&'a Namespaces, IpAddr)]) -> (Vec<(&'a Namespaces, IpAddr)>, String) {
    std::thread::scope(|scope| {
        let pings: Vec<_> =
            pairs.iter().map(|&(from, to)| ((from, to), scope.spawn(move || reaches(from, to)))).collect();
        let (mut left, mut why) = (Vec::new(), String::new());
        for (pair, ping) in pings {
            match ping.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    why = format!(": {error:#}");
                    left.push(pair);
                }
                Err(_) => left.push(pair),
            }
        }
        (left, why)
    })
}

/// Fails unless a node has one IKE SA with each peer of `tunnels`, no more than one with other
/// peers, and no peer with which it has no community in common.
fn at_rest(world: &World, node: &str, tunnels: &[(&str, &str)], guests: &BTreeSet<&'static str>) -> Result<()> {
    let status = world.status(node)?;
    for peer in status["peers"].as_array().context("the status has no peers")? {
        let name = peer["name"].as_str().context("a peer without a name")?;
        let count = |what: &str| peer[what].as_array().map_or(0, Vec::len);
        let (ike_sas, child_sas) = (count("ike_sas"), count("child_sas"));
        let edges = [node, name].into_iter().all(|one| world.layout.edges().any(|edge| edge == one));
        ensure!(!edges || may_reach(world.layout, guests, node, name), "{node} still has the peer {name}");
        let needed = tunnels.contains(&(node, name));
        let settled = if needed { (ike_sas, child_sas) == (1, 1) } else { ike_sas <= 1 };
        ensure!(settled, "{node} has {ike_sas} IKE SAs and {child_sas} CHILD_SAs with {name}: {peer}");
    }
    let known = |name: &str| super::status::peer(&status, name).is_some();
    let missing = tunnels.iter().find(|(from, to)| *from == node && !known(to));
    ensure!(missing.is_none(), "{node} does not know its peer: {missing:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_reach_the_members_of_alpha_while_they_are_members() {
        let none = BTreeSet::new();
        let both = BTreeSet::from(["edge-b1", "edge-c1"]);
        for layout in [&DEMO, &TWELVE_NODES] {
            let may_reach = |guests, from, to| may_reach(layout, guests, from, to);
            assert!(may_reach(&none, "edge-a1", "edge-a2") && !may_reach(&none, "edge-a1", "edge-b1"));
            assert!(may_reach(&both, "edge-b1", "edge-c1") && may_reach(&both, "edge-a2", "edge-b1"));
            assert!(!may_reach(&BTreeSet::from(["edge-b1"]), "edge-b1", "edge-c1"));
        }
        assert!(may_reach(&TWELVE_NODES, &none, "edge-b1", "edge-e2"));
        assert!(!may_reach(&TWELVE_NODES, &both, "edge-b1", "edge-e2"));
    }
}

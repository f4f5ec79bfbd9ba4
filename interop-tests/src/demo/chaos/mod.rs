//! Causes random events at the demo's nodes and checks the demo's claims after each round. No pod's
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

use super::pod::reaches;
use super::reach::{self, Pods};
use super::status_and_kernel::agree;
use super::world::{EDGES, NODES, World};
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
/// Interval of the pings that must not be answered.
const FORBIDDEN_PACE: Duration = Duration::from_millis(100);

/// A scenario with a few rounds.
pub const SHORT: Scenario = Scenario {
    name: "chaos/short",
    about: "five rounds of random events (seed 1): nothing in clear, permitted pods reach each other again, others never",
    deadline: Duration::from_secs(900),
    by_default: true,
    needs: Needs::Nothing,
    run,
};

/// A scenario with as many rounds as `make chaos` has time for.
pub const LONG: Scenario = Scenario {
    name: "chaos/long",
    about: "random events for as long as make chaos says",
    deadline: Duration::from_secs(MOST_SECONDS + 1800),
    by_default: false,
    needs: Needs::Nothing,
    run,
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

fn run(lab: &Lab) -> Result<()> {
    let number = |name: &str| -> Result<Option<u64>> {
        let Ok(text) = std::env::var(name) else { return Ok(None) };
        text.parse().map(Some).with_context(|| format!("{name} is {text:?}, and should be a number"))
    };
    let (seed, seconds) = (number(SEED)?.unwrap_or(DEFAULT_SEED), number(SECONDS)?);
    let world = World::build(lab)?;
    let mut pods = reach::bring_up(&world)?;
    world.checks.part(&format!("Chaos, seed {seed}"));
    let mut members: BTreeSet<&'static str> = BTreeSet::new();
    recovered(&world, &pods, &members)?;
    let began = Instant::now();
    let mut slowest = Duration::ZERO;
    for (number, round) in (1..).zip(Rounds::new(seed)) {
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
    let replaced = |edge: &str| round.events.contains(&(edge_name(edge), Event::PodReplaced));
    let mut forbidden = Vec::new();
    for (from, to) in pairs().filter(|(from, to)| !replaced(from) && !replaced(to)) {
        if !may_reach(&before, from, to) && !may_reach(members, from, to) {
            for address in pods.of(to).addresses() {
                let ping = Ping::start(&pods.of(from).pod, &address.to_string(), FORBIDDEN_PACE)?;
                forbidden.push((format!("{from}'s pod reached {to}'s at {address}"), ping));
            }
        }
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
fn pairs() -> impl Iterator<Item = (&'static str, &'static str)> {
    EDGES.into_iter().flat_map(|from| EDGES.into_iter().filter(move |to| *to != from).map(move |to| (from, to)))
}

fn edge_name(name: &str) -> &'static str {
    EDGES.into_iter().find(|edge| *edge == name).unwrap_or("no edge")
}

/// Returns whether two edges have a community in common. `guests` are the edges from [`event`] that
/// are members of alpha now.
fn may_reach(guests: &BTreeSet<&'static str>, from: &str, to: &str) -> bool {
    [from, to].into_iter().all(|edge| matches!(edge, "edge-a1" | "edge-a2") || guests.contains(edge))
}

/// Returns whether a tunnel between two edges must come up: a1 has a public address of each family.
/// Between other edges, NATs or different address families may prevent a tunnel.
fn has_path(from: &str, to: &str) -> bool {
    from == "edge-a1" || to == "edge-a1"
}

/// Waits until all pods that may reach each other do so, and until the network is at rest.
fn recovered(world: &World, pods: &Pods, guests: &BTreeSet<&'static str>) -> Result<()> {
    let checks = &world.checks;
    let wanted: Vec<_> = pairs().filter(|(from, to)| may_reach(guests, from, to) && has_path(from, to)).collect();
    let mut reached: Vec<(&Namespaces, IpAddr)> = Vec::new();
    for (from, to) in &wanted {
        reached.extend(pods.of(to).addresses().into_iter().map(|address| (&*pods.of(from).pod, address)));
    }
    for edge in EDGES {
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
    tunnels.extend(EDGES.into_iter().flat_map(|edge| [(edge, "cloud-1"), ("cloud-1", edge)]));
    checks.eventually("each pair has one IKE SA", "edge-agent status --json", RECOVERY, || {
        NODES.into_iter().try_for_each(|node| at_rest(world, node, &tunnels, guests))
    })?;
    checks.eventually("the kernels have what the agents say", "ip xfrm; edge-agent status --json", RECOVERY, || {
        NODES.into_iter().try_for_each(|node| agree(world, node).with_context(|| node.to_owned()))
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
        let edges = EDGES.contains(&node) && EDGES.contains(&name);
        ensure!(!edges || may_reach(guests, node, name), "{node} still has the peer {name}");
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
        assert!(may_reach(&none, "edge-a1", "edge-a2") && !may_reach(&none, "edge-a1", "edge-b1"));
        assert!(may_reach(&both, "edge-b1", "edge-c1") && may_reach(&both, "edge-a2", "edge-b1"));
        assert!(!may_reach(&BTreeSet::from(["edge-b1"]), "edge-b1", "edge-c1"));
    }
}

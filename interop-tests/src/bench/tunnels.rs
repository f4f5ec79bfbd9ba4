//! Measures one agent with N peers, and then charon with the same peers.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::report::{Goal, Results};
use super::usage::{Usage, count_traffic, per_day, traffic};
use crate::edge_agent::{Agent, count_up};
use crate::ike_peers::{Authentication, IkePeers, PeerSet};
use crate::scenario::{Lab, Needs, Scenario};
use crate::strongswan::Charon;
use crate::strongswan::charon::{Auth, Connection};
use crate::topology::{NetworkPlan, Node};

/// Prefix of the cases with the CPU time of one tunnel.
pub(super) const UP: &str = "up/cpu-per-tunnel/";

const SECRET: &str = "a secret that all peers of the benchmark were given";
const RESPONDER_ID: &str = "hub.example";
const RESPONDER: &str = "192.0.2.1";
const PEERS: &str = "192.0.2.2";
const NETWORK: &str = "10.1.0.0/24";

/// Maximum number of simultaneous attempts. With more than 64 half-open IKE SAs the agent requests
/// cookies, which would also be measured.
const WINDOW: u32 = 48;

/// Time for which a responder is watched at rest. In this time each peer's liveness is checked once
/// (every 2 minutes), and the comparison with the kernel (every 10 s at most) happens several
/// times.
pub(super) const REST: Duration = Duration::from_secs(120);

/// Liveness interval of peers that make no check, so that a slow responder loses no tunnel. The
/// responder checks as it is configured.
const NO_CHECKS: Duration = Duration::from_secs(24 * 3600);

/// Liveness interval of an idle edge towards its hubs (docs/agent.md).
const EDGES_CHECK: Duration = Duration::from_secs(20);

/// Maximum number of peers for which charon is measured. Above it the cost of charon for each peer
/// stays the same, and the measurement takes long.
const REFERENCE_UP_TO: u32 = 1000;

const TUNNELS: &str = "CPU time, memory and traffic of edge-agent with so many static peers, beside charon";
const CHECKED: &str = "CPU time and traffic of edge-agent while so many peers check it as an idle edge checks its hub";

const fn scenario(name: &'static str, about: &'static str, run: fn(&Lab) -> Result<()>) -> Scenario {
    Scenario { name, about, deadline: Duration::from_secs(3600), by_default: false, needs: Needs::Nothing, run }
}

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("bench/tunnels-100", TUNNELS, |lab| measure(lab, 100)),
    scenario("bench/tunnels-400", TUNNELS, |lab| measure(lab, 400)),
    scenario("bench/tunnels-1000", TUNNELS, |lab| measure(lab, 1000)),
    scenario("bench/tunnels-2000", TUNNELS, |lab| measure(lab, 2000)),
    scenario("bench/tunnels-3000", TUNNELS, |lab| measure(lab, 3000)),
    scenario("bench/tunnels-10000", TUNNELS, |lab| measure(lab, 10_000)),
    scenario("bench/checked-1000", CHECKED, |lab| checked(lab, 1000)),
    scenario("bench/checked-10000", CHECKED, |lab| checked(lab, 10_000)),
    Scenario {
        name: "agent/fifty-peers",
        about: "fifty peers that one process plays: all tunnels come up and are rekeyed, the kernel has their SAs",
        deadline: Duration::from_secs(90),
        by_default: true,
        needs: Needs::Nothing,
        run: fifty,
    },
];

/// The resources that a responder used for its tunnels.
struct ResponderUsage {
    /// CPU time to set up one tunnel, ms.
    up_ms: f64,
    /// Seconds until all tunnels were up.
    all_seconds: f64,
    /// Memory of one tunnel, KiB.
    memory_kib: f64,
    /// Share of one core at rest, percent.
    rest_percent: f64,
    /// Traffic of one tunnel at rest, MB a day.
    rest_mb: f64,
    /// CPU time of the rekey of one CHILD_SA, ms.
    rekey_ms: f64,
    /// Seconds until the list of all tunnels was printed.
    status_seconds: f64,
    /// Number of IKE SAs that ended, which should be zero.
    downs: u32,
}

fn measure(lab: &Lab, count: u32) -> Result<()> {
    let net = lab.build(&plan())?;
    let mut results = Results::default();
    let reference = (count <= REFERENCE_UP_TO).then(|| charon(lab, net.node("charon"), net.node("peers"), count));
    let reference = reference.transpose()?;
    let ours = agent(lab, net.node("agent"), net.node("peers"), count)?;
    let mut add = |case: &str, unit: &str, value: fn(&ResponderUsage) -> f64, goal| {
        let reference = reference.as_ref().map(|reference| (value(reference), "charon"));
        results.add(&format!("{case}{count}"), unit, value(&ours), reference, goal);
    };
    add(UP, "ms CPU", |cost| cost.up_ms, Goal::Ratio(0.05));
    add("up/time-to-all/", "s", |cost| cost.all_seconds, Goal::Ours(60.0));
    add("memory-per-tunnel/", "KiB", |cost| cost.memory_kib, Goal::Ours(8.0));
    add("rest/cpu/", "% of a core", |cost| cost.rest_percent, Goal::Ours(1.0));
    add("rest/traffic-per-tunnel/", "MB a day", |cost| cost.rest_mb, Goal::None);
    add("rekey/all/", "ms CPU a tunnel", |cost| cost.rekey_ms, Goal::None);
    add("status/time/", "s", |cost| cost.status_seconds, Goal::Ours(1.0));
    add("downs/", "IKE SAs", |cost| f64::from(cost.downs), Goal::Ours(0.0));
    results.write(lab.out())
}

fn plan() -> NetworkPlan {
    let mut plan = NetworkPlan::new();
    for responder in ["agent", "charon"] {
        let wire = format!("to-{responder}");
        plan.host(responder).on(&wire, &[&format!("{RESPONDER}/24")]).route(&PeerSet::addresses(), PEERS);
    }
    plan.host("peers").on("to-agent", &[]).on("to-charon", &[]);
    plan
}

/// Connects the peers' node to one of the two responders, which have the same address.
fn connect(peers: &Node, responder: &Node) -> Result<()> {
    peers
        .sh(&format!("ip -4 address flush scope global; ip address add {PEERS}/24 dev to-{}", responder.name()))
        .map(drop)
}

fn peer_set(count: u32, liveness: Duration) -> Result<PeerSet> {
    Ok(PeerSet {
        count,
        window: WINDOW,
        responder: format!("{RESPONDER}:4500").parse()?,
        responder_id: RESPONDER_ID.to_owned(),
        responder_network: NETWORK.parse()?,
        authentication: Authentication::Psk(SECRET.to_owned()),
        liveness,
    })
}

/// Makes `agent.toml` with the peers as static peers that initiate.
fn agent_config(count: u32) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for index in 0..count {
        let (name, id, network) = (PeerSet::name(index), PeerSet::id(index), PeerSet::network(index));
        let _ = write!(
            text,
            "[[peer]]\nname = {name:?}\nlocal_id = {RESPONDER_ID:?}\nremote_id = {id:?}\npsk = {SECRET:?}\n\
             local_subnets = [{NETWORK:?}]\nremote_subnets = [\"{network}\"]\nstart = \"respond\"\n"
        );
    }
    text
}

fn agent(lab: &Lab, node: &Node, peers: &Node, count: u32) -> Result<ResponderUsage> {
    connect(peers, node)?;
    let mut agent = Agent::start_with(lab, node, &agent_config(count), "info")?;
    agent.wait_ready()?;
    let pid = agent.process().pid();
    let mut status_seconds = 0.0;
    let usage = exercise(lab, node, peers, count, pid, || {
        let begun = Instant::now();
        let status = agent.status_text()?;
        status_seconds = begun.elapsed().as_secs_f64();
        let up = count_up(&serde_json::from_str(&status)?);
        ensure!(up == count as usize, "the agent shows {up} of {count} peers with a CHILD_SA");
        Ok(())
    })?;
    agent.process().stop()?;
    Ok(ResponderUsage { status_seconds, ..usage })
}

fn charon(lab: &Lab, node: &Node, peers: &Node, count: u32) -> Result<ResponderUsage> {
    connect(peers, node)?;
    let connection = Connection {
        // The interval is the same as the agent's.
        more: "dpd_delay = 120s".to_owned(),
        ..Connection::new("peers", Auth::Psk(SECRET.to_owned())).local(RESPONDER, RESPONDER_ID, NETWORK).remote(
            "%any",
            "%any",
            &PeerSet::networks(),
        )
    };
    let mut charon = Charon::start_for_many(node, &connection)?;
    let pid = charon.process().pid();
    let mut status_seconds = 0.0;
    let usage = exercise(lab, node, peers, count, pid, || {
        let begun = Instant::now();
        let up = charon.installed()?.len();
        status_seconds = begun.elapsed().as_secs_f64();
        ensure!(up == count as usize, "charon shows {up} of {count} CHILD_SAs");
        Ok(())
    })?;
    charon.process().kill()?;
    Ok(ResponderUsage { status_seconds, ..usage })
}

/// Sets tunnels up, watches them at rest, lists them, and rekeys them.
fn exercise(
    lab: &Lab,
    node: &Node,
    peers: &Node,
    count: u32,
    pid: u32,
    list: impl FnOnce() -> Result<()>,
) -> Result<ResponderUsage> {
    let per_tunnel = |time: Duration| time.as_secs_f64() * 1000.0 / f64::from(count);
    let name = node.name();
    count_traffic(node)?;
    let mut set = IkePeers::start(peers, &peer_set(count, NO_CHECKS)?)?;

    let idle = Usage::of(pid)?;
    let up = set.up()?;
    let all = Usage::of(pid)?;
    lab.step(&format!("{name}: {count} tunnels up in {:.1} s, {:?} CPU, {up:?}", up.seconds, all.cpu - idle.cpu));

    let rest = at_rest(lab, node, pid)?;

    list()?;
    lab.step(&format!("{name}: listed"));

    let before_rekey = Usage::of(pid)?;
    let rekeyed = set.rekey()?;
    let rekey_cpu = Usage::of(pid)?.cpu - before_rekey.cpu;
    lab.step(&format!("{name}: rekeyed in {:.1} s: {rekey_cpu:?} CPU", rekeyed.seconds));

    Ok(ResponderUsage {
        up_ms: per_tunnel(all.cpu - idle.cpu),
        all_seconds: up.seconds,
        memory_kib: (all.memory_kib - idle.memory_kib) / f64::from(count),
        rest_percent: rest.percent,
        rest_mb: rest.mb / f64::from(count),
        rekey_ms: per_tunnel(rekey_cpu),
        status_seconds: 0.0,
        downs: rekeyed.downs,
    })
}

/// What a responder uses at rest.
struct Rest {
    /// Share of one core, percent.
    percent: f64,
    /// Traffic of all tunnels, MB a day.
    mb: f64,
}

/// Watches the responder on `node` for [`REST`].
fn at_rest(lab: &Lab, node: &Node, pid: u32) -> Result<Rest> {
    let (traffic_before, begun) = (traffic(node)?, Instant::now());
    let before = Usage::of(pid)?;
    #[expect(clippy::disallowed_methods, reason = "the length of the measurement")]
    std::thread::sleep(REST);
    let cpu = Usage::of(pid)?.cpu - before.cpu;
    let (octets, rested) = ((traffic(node)? - traffic_before).total(), begun.elapsed());
    lab.step(&format!("{}: at rest for {rested:.1?}: {cpu:?} CPU", node.name()));
    Ok(Rest { percent: 100.0 * cpu.as_secs_f64() / rested.as_secs_f64(), mb: per_day(octets, rested) })
}

/// Measures the agent at rest while each peer checks it as often as an idle edge checks its hub.
fn checked(lab: &Lab, count: u32) -> Result<()> {
    let net = lab.build(&plan())?;
    let (node, peers) = (net.node("agent"), net.node("peers"));
    connect(peers, node)?;
    let mut agent = Agent::start_with(lab, node, &agent_config(count), "info")?;
    agent.wait_ready()?;
    count_traffic(node)?;
    let mut set = IkePeers::start(peers, &peer_set(count, EDGES_CHECK)?)?;
    let before = set.up()?;
    let rest = at_rest(lab, node, agent.process().pid())?;
    let after = set.report()?;
    let checks = after.liveness_checks - before.liveness_checks;
    lab.step(&format!("{checks} checks, {after:?}"));
    let expected = REST.as_secs() / EDGES_CHECK.as_secs() * u64::from(count);
    ensure!(checks > expected * 3 / 4, "the peers made {checks} liveness checks, {expected} were expected");
    let mut results = Results::default();
    let mut add = |case: &str, unit: &str, value: f64, goal| {
        results.add(&format!("{case}{count}"), unit, value, None, goal);
    };
    add("rest/cpu-checked/", "% of a core", rest.percent, Goal::None);
    let per_check = rest.percent / 100.0 * REST.as_secs_f64() * 1000.0 / checks as f64;
    add("rest/cpu-per-check/", "ms CPU", per_check, Goal::None);
    add("rest/traffic-checked-per-tunnel/", "MB a day", rest.mb / f64::from(count), Goal::None);
    add("downs-checked/", "IKE SAs", f64::from(after.downs), Goal::Ours(0.0));
    results.write(lab.out())
}

/// Sets up and rekeys fifty peers, and compares agent and kernel with the peers.
fn fifty(lab: &Lab) -> Result<()> {
    const COUNT: u32 = 50;
    let net = lab.build(&plan())?;
    let (node, peers) = (net.node("agent"), net.node("peers"));
    connect(peers, node)?;
    let mut agent = Agent::start_with(lab, node, &agent_config(COUNT), "info")?;
    agent.wait_ready()?;
    ensure!(node.xfrm_states()?.is_empty(), "there are SAs before there are peers");
    let mut set = IkePeers::start(peers, &peer_set(COUNT, NO_CHECKS)?)?;
    let up = set.up()?;
    lab.step(&format!("{up:?}"));
    let first = in_use(&agent, COUNT)?;
    let rekeyed = set.rekey()?;
    lab.step(&format!("{rekeyed:?}"));
    ensure!(rekeyed.rekeyed == COUNT, "{} of {COUNT} CHILD_SAs were rekeyed", rekeyed.rekeyed);
    ensure!(rekeyed.downs == 0, "IKE SAs ended: {rekeyed:?}");
    let second = in_use(&agent, COUNT)?;
    ensure!(first.iter().all(|spi| !second.contains(spi)), "a CHILD_SA that was rekeyed is still in use");
    let kernel = node.xfrm_states()?;
    let missing = second.iter().filter(|spi| !kernel.iter().any(|state| state.spi == **spi)).count();
    ensure!(missing == 0, "the kernel lacks {missing} of {} SAs", second.len());
    Ok(())
}

/// Returns the SPIs of the CHILD_SAs in use, once each peer has a CHILD_SA.
fn in_use(agent: &Agent<'_>, count: u32) -> Result<Vec<u32>> {
    crate::wait::for_event("one CHILD_SA in use with each peer", || {
        let tunnels = agent.tunnels((0..count).map(PeerSet::name))?;
        Ok(tunnels.iter().flat_map(|tunnel| [tunnel.spi_in, tunnel.spi_out]).collect())
    })
}

//! The view of a hub with N edges changes by one edge.
//!
//! The edges are in the controller's store alone. They have no addresses, so the hub waits for them
//! and negotiates with none.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use edge_controller_domain::ca::{Ca, Files};
use edge_controller_domain::clock::Clock;
use edge_controller_domain::segments::SegmentRecord;
use edge_controller_domain::state::{Change, NodeRecord};
use edge_controller_domain::store::Store as _;
use edge_controller_domain::store::embedded::Embedded;
use edge_types::shared_files::VIEW_FILE;
use edge_types::{NodeName, Role};
use ipnetwork::{IpNetwork, Ipv4Network};

use super::report::{Goal, Results};
use super::usage::Usage;
use crate::edge_controller::{CLUSTER_RANGE, Controller, STATE_DIR};
use crate::scenario::{Lab, Needs, Scenario};
use crate::topology::{NetworkPlan, Node};
use crate::wait;

const CLOUD: &str = "203.0.113.1";

/// Edges that leave, one after the other.
const CHANGES: u32 = 20;

/// How long the hub is watched before that, to know what it costs at rest.
const REST: Duration = Duration::from_secs(20);

const fn scenario(name: &'static str, run: fn(&Lab) -> Result<()>) -> Scenario {
    Scenario {
        name,
        about: "CPU time of a hub's agent to carry out a view that lacks one of so many edges",
        deadline: Duration::from_secs(900),
        by_default: false,
        needs: Needs::Nothing,
        run,
    }
}

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("bench/view-100", |lab| measure(lab, 100)),
    scenario("bench/view-1000", |lab| measure(lab, 1000)),
    scenario("bench/view-10000", |lab| measure(lab, 10_000)),
];

fn measure(lab: &Lab, count: u32) -> Result<()> {
    let mut plan = NetworkPlan::new();
    plan.host("cloud").on("wire", &[&format!("{CLOUD}/24")]).own_directory("/etc/edge-controller");
    plan.host("hub").on("wire", &["203.0.113.10/24"]);
    let net = lab.build(&plan)?;
    let (cloud, hub) = (net.node("cloud"), net.node("hub"));
    fill(&cloud.path(STATE_DIR), count)?;
    let controller = Controller::start(lab, cloud, CLOUD, "networks = [\"10.244.0.0/16\"]")?;
    let mut agent = controller.join(hub, "hub")?;
    agent.wait_ready()?;
    wait::for_event("the hub's first view", || {
        let status = agent.status()?;
        let peers = status["peers"].as_array().map_or(0, Vec::len);
        ensure!(peers == count as usize, "the hub has {peers} of {count} peers");
        Ok(())
    })?;
    lab.step(&format!("the hub has {count} peers"));
    let pid = agent.process().pid();

    let (before, begun) = (Usage::of(pid)?.cpu, Instant::now());
    #[expect(clippy::disallowed_methods, reason = "the length of the measurement")]
    std::thread::sleep(REST);
    let at_rest = (Usage::of(pid)?.cpu - before).as_secs_f64() / begun.elapsed().as_secs_f64();
    lab.step(&format!("at rest: {:.2} % of a core", 100.0 * at_rest));

    let (before, begun) = (Usage::of(pid)?.cpu, Instant::now());
    for index in 0..CHANGES {
        let name = name(index);
        controller.run(&["node", "deregister", &name])?;
        wait::for_event(&format!("a view without {name}"), || lacks(hub, &name))?;
    }
    let (used, took) = (Usage::of(pid)?.cpu - before, begun.elapsed());
    lab.step(&format!("{CHANGES} changes in {took:.1?}: {used:?} CPU"));
    let status = agent.status()?;
    let peers = status["peers"].as_array().map_or(0, Vec::len);
    ensure!(peers == (count - CHANGES) as usize, "the hub still has {peers} peers");

    let changes = (used.as_secs_f64() - at_rest * took.as_secs_f64()).max(0.0);
    let mut results = Results::default();
    let each = 1000.0 * changes / f64::from(CHANGES);
    results.add(&format!("view/one-of-n/{count}"), "ms CPU", each, None, Goal::Ours(5.0));
    results.write(lab.out())
}

/// Fails unless the view on the hub's disk lacks this node.
fn lacks(hub: &Node, name: &str) -> Result<()> {
    let view = hub.read(&format!("/var/lib/edge-cni/{VIEW_FILE}"))?;
    ensure!(!view.contains(name), "it is still there");
    Ok(())
}

fn name(index: u32) -> String {
    format!("node-{index:05}")
}

/// Fills the store of a new controller with edges, each with a segment.
fn fill(state: &Path, count: u32) -> Result<()> {
    let range: Ipv4Network = CLUSTER_RANGE.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let now = Clock::system().now();
        Ca::open(Box::new(Files::new(state, now)), None, now).await?;
        let store = Embedded::open(state)?;
        let mut batch = Vec::new();
        for index in 0..count {
            let name: NodeName = name(index).parse()?;
            // The upper half of the range, since the controller grants from the lower one.
            let address = Ipv4Addr::from(u32::from(range.network()) + (range.size() / 2) + (index << 6));
            let segment = IpNetwork::from(Ipv4Network::new(address, 26)?);
            let row = SegmentRecord::new(segment, name.clone(), "request-0".to_owned(), now, None);
            let record = NodeRecord::new(name, Role::Edge, now);
            batch.push(vec![Change::GrantSegment(row), Change::PutNode(record)]);
        }
        let (to, mut events) = tokio::sync::mpsc::channel(1);
        store.load(to).await?;
        let committed = tokio::select! {
            committed = store.commit(batch, now) => committed,
            () = async { while events.recv().await.is_some() {} } => anyhow::bail!("the store is closed"),
        };
        committed.results.into_iter().collect::<Result<(), _>>().context("filling the store")?;
        Ok(())
    })
}

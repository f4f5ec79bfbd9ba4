//! Without the cloud, and the end of a node.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use super::cloud::QUARANTINE;
use super::pod::{answered, reaches};
use super::reach::{Pods, only_esp_on_the_wire};
use super::world::{NODES, World};

/// CNI error: try again later.
const TRY_AGAIN_LATER: u64 = 11;

const PATIENCE: Duration = Duration::from_secs(20);

/// The controller is stopped; pods go on; agents come back from disk.
///
/// # Errors
/// The first check that does not hold.
pub(super) fn without_the_cloud(world: &World, pods: &Pods) -> Result<()> {
    let checks = &world.checks;
    checks.part("Alone: the controller is stopped");
    world.end("controller", Signal::TERM)?;
    let (a1, a2) = (pods.of("edge-a1"), pods.of("edge-a2"));
    let (v4_a1, v4_a2) = (a1.v4.context("no IPv4")?, a2.v4.context("no IPv4")?);
    checks
        .comes_true("pods still talk", "*.edge-agent.log", Duration::from_secs(3), || reaches(&a1.pod, v4_a2.into()))?;
    let first = world.add_pod("edge-a1", "alone-0")?;
    checks.comes_true("a new pod gets an address and reaches a2", "commands.log", Duration::from_secs(3), || {
        reaches(&first.pod, v4_a2.into())
    })?;
    checks.holds("with all addresses used, ADD answers code 11", "commands.log", || {
        for number in 1..20 {
            let name = format!("alone-{number}");
            let pod = world.node("edge-a1").pod(&name)?;
            let answer = world.cni("edge-a1", "ADD", &name, pod.netns())?;
            if !answer.ok {
                ensure!(answer.body["code"] == TRY_AGAIN_LATER, "it answered {}", answer.body);
                let left = pod.sh("ip -o link show | grep -c -v ': lo' || true")?;
                ensure!(left.trim() == "0", "the failed ADD left a device in the pod");
                return Ok(format!("after {number} pods: {}", answer.body["msg"].as_str().unwrap_or_default()));
            }
        }
        anyhow::bail!("20 pods got addresses and no end")
    })?;

    checks.note("both agents of alpha are killed with -9, their /run/edge-cni is wiped, a2 gets a new address");
    for node in ["edge-a1", "edge-a2"] {
        world.end(node, Signal::KILL)?;
        world.node(node).sh("rm -rf /run/edge-cni")?;
    }
    world.node("edge-a2").sh("ip addr del 192.168.1.77/24 dev lan-a2 && ip addr add 192.168.1.99/24 dev lan-a2 && \
         ip route replace default via 192.168.1.1")?;
    // Their pods go on trying: by SAs whose address is gone, and to a socket that nobody reads.
    answered(&[(&*a1.pod, v4_a2.into()), (&*a2.pod, v4_a1.into())])?;
    only_esp_on_the_wire(world, "with the agents dead and the address gone")?;
    let began = Instant::now();
    world.start_agent("edge-a1")?;
    world.start_agent("edge-a2")?;
    checks.comes_true("from disk alone they find each other again", "*.edge-agent.log", PATIENCE, || {
        reaches(&a1.pod, v4_a2.into())?;
        reaches(&a2.pod, v4_a1.into())
    })?;
    checks.note(format!("{:.2} s after they were started", began.elapsed().as_secs_f64()));
    world.start_controller()
}

/// a2 leaves its community, then the cluster.
///
/// # Errors
/// The first check that does not hold.
pub(super) fn the_end_of_a2(world: &World, pods: &Pods) -> Result<()> {
    let checks = &world.checks;
    checks.part("End: a2 leaves its community, then the cluster");
    // All of them: one that still waits before its next attempt hears of what follows only then,
    // with the quarantine over.
    checks.comes_true("the agents find the controller again", "*.edge-agent.log", PATIENCE, || {
        for node in NODES {
            let status = world.status(node)?;
            ensure!(status["cloud"]["connected"] == true, "{node}: {}", status["cloud"]);
        }
        Ok(())
    })?;
    let pairs = [("edge-a1", "edge-a2"), ("edge-a2", "edge-a1")];
    let mut reqids = Vec::new();
    for (node, peer) in pairs {
        let status = world.status(node)?;
        let entry = super::status::peer(&status, peer).with_context(|| format!("{node} does not know {peer}"))?;
        reqids.push(entry["reqid"].as_u64().context("a peer without a reqid")?);
    }
    world.label("edge-a2", "bocloud.com/edge-community-")?;
    for ((node, peer), reqid) in pairs.into_iter().zip(reqids) {
        checks.comes_true(
            &format!("without its label, {node} has no tunnel to {peer}"),
            "*.edge-agent.log",
            PATIENCE,
            || {
                ensure!(super::status::peer(&world.status(node)?, peer).is_none(), "status still names it");
                let segments = world.segments_of(peer, false)?;
                let policies = world.node(node).xfrm_policies()?;
                let left =
                    policies.iter().filter(|policy| segments.contains(&policy.dst) && policy.action == "allow").count();
                ensure!(left == 0, "{left} policies are left");
                let states = world.node(node).xfrm_states()?;
                ensure!(states.iter().all(|state| u64::from(state.reqid) != reqid), "SAs are left: {states:?}");
                Ok(())
            },
        )?;
    }
    let address = pods.of("edge-a2").v4.context("no IPv4")?;
    checks.holds("and their pods do not reach each other", "ip xfrm policy", || {
        ensure!(reaches(&pods.of("edge-a1").pod, address.into()).is_err(), "a2's pod answers a1's");
        Ok("")
    })?;
    deregistered(world)
}

fn deregistered(world: &World) -> Result<()> {
    let checks = &world.checks;
    let held = world.segments_of("edge-a2", false)?;
    let released = Instant::now();
    world.controller(&["node", "deregister", "edge-a2"])?;
    checks.comes_true("deregistered, a2's certificate is refused", "edge-a2.edge-agent.log", PATIENCE, || {
        let cloud = &world.status("edge-a2")?["cloud"];
        ensure!(cloud["connected"] == false, "a2 is still connected: {cloud}");
        let error = cloud["last_error"].as_str().unwrap_or_default().to_owned();
        ensure!(error.contains("deregistered"), "a2 does not say why: {cloud}");
        Ok(())
    })?;
    checks.comes_true("and its tunnel to the hub is gone at the hub", "cloud-1.edge-agent.log", PATIENCE, || {
        ensure!(super::status::peer(&world.status("cloud-1")?, "edge-a2").is_none(), "the hub still names it");
        Ok(())
    })?;
    // a1 asks for all there is: the quarantined segments are the last.
    world.restart_agent_with_spare("edge-a1", 60)?;
    checks.comes_true(
        "a1 gets every free segment but a2's, which are in quarantine",
        "edge-controller segment list",
        PATIENCE,
        || {
            let status = world.status("edge-a1")?;
            let error = status["cloud"]["last_error"].as_str().unwrap_or_default().to_owned();
            let mine = world.segments_of("edge-a1", false)?;
            ensure!(
                !held.iter().any(|segment| mine.contains(segment)) || released.elapsed() >= QUARANTINE,
                "a2's was granted too early"
            );
            ensure!(error.contains("quarantine"), "no refusal yet: {}", status["cloud"]);
            Ok(())
        },
    )?;
    checks.comes_true(
        "after the quarantine it gets that very segment",
        "edge-controller segment list",
        QUARANTINE + PATIENCE,
        || {
            let mine = world.segments_of("edge-a1", false)?;
            ensure!(held.iter().all(|segment| mine.contains(segment)), "it has {mine:?}");
            ensure!(released.elapsed() >= QUARANTINE, "that was too early: {:?}", released.elapsed());
            Ok(())
        },
    )?;
    // It still has its certificate and its last view, and begins again and again.
    checks.comes_true("the hub refuses a2's certificate, good as it is", "edge-a2.edge-agent.log", PATIENCE, || {
        let status = world.status("edge-a2")?;
        let hub = super::status::peer(&status, "cloud-1").context("a2 has forgotten the hub")?;
        let error = hub["last_error"].as_str().unwrap_or_default();
        ensure!(error.contains(r#"does not accept that we are "edge-a2""#), "a2 says {hub}");
        Ok(())
    })
}

/// `edge-agent down` on c1 removes everything of ours from its kernel.
///
/// # Errors
/// The first check that does not hold.
pub(super) fn down(world: &World) -> Result<()> {
    let host = world.node("edge-c1");
    world.end("edge-c1", Signal::TERM)?;
    world.checks.holds("a stopped agent leaves its policies in the kernel", "ip xfrm policy on edge-c1", || {
        let policies = host.xfrm_policies()?.len();
        ensure!(policies > 0, "there are none");
        Ok(format!("{policies} of them"))
    })?;
    world.agent("edge-c1", &["down"])?;
    world.checks.holds("`edge-agent down` removes all that is ours", "ip xfrm, nft, ip link on edge-c1", || {
        let (states, policies) = (host.xfrm_states()?, host.xfrm_policies()?);
        ensure!(states.is_empty() && policies.is_empty(), "left are {states:?} and {policies:?}");
        let rest = host
            .sh("nft list tables; ip -o link show type dummy; ip route show proto 236; ip -6 route show proto 236")?;
        let ours = |line: &&str| line.contains("edge-cni") || line.contains("ecni-guard");
        let left: Vec<&str> = rest.lines().filter(ours).collect();
        ensure!(left == ["table inet edge-cni-pods"], "left is {rest}");
        Ok("but for the table that keeps hosts outside from pods")
    })
}

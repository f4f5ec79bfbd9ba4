//! Measures the pings through a tunnel that are lost at an event.
//!
//! An edge behind a NAT has a tunnel to a hub, and a pod on each side pings the pod on the other
//! side a hundred times a second. Each event happens three times, and the median is reported.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::report::{Goal, Results};
use crate::edge_agent::Agent;
use crate::scenario::{Lab, Needs, Scenario};
use crate::strongswan::Charon;
use crate::strongswan::charon::{Auth, Connection};
use crate::topology::{Net, NetworkPlan, Node, Ping, PingReport, Pod};
use crate::wait;

/// Prefix that distinguishes the names of these measurements from other scenarios.
pub(super) const AREA: &str = "interruption/";

const SECRET: &str = "a secret of edge and hub";
const EDGE_NETWORK: &str = "10.1.0.0/24";
const HUB_NETWORK: &str = "10.2.0.0/24";
const HUB: &str = "203.0.113.10";

/// Interval of the pings in each direction.
pub(super) const PACE: Duration = Duration::from_millis(10);
/// Number of times that each event happens.
const RUNS: usize = 3;
/// Number of pings that must be answered before the next event happens.
const ANSWERED: u64 = 100;

const fn scenario(name: &'static str, about: &'static str, run: fn(&Lab) -> Result<()>) -> Scenario {
    let deadline = Duration::from_secs(300);
    Scenario { name, about, deadline, by_default: false, needs: Needs::Nothing, run }
}

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("interruption/agent-restarted", "what is lost when the edge's agent is restarted", |lab| {
        let lossless = Goals { lost: Some(0.0), silence: None };
        Site::build(lab)?.with_agents("agent-restarted", lossless, |site, edge, _| {
            edge.process().stop()?;
            *edge = site.start_edge()?;
            Ok(())
        })
    }),
    scenario("interruption/agent-killed", "what is lost when the edge's agent is killed, and back after 1 s", |lab| {
        let lossless = Goals { lost: Some(0.0), silence: None };
        Site::build(lab)?.with_agents("agent-killed", lossless, |site, edge, _| {
            edge.process().kill()?;
            pass(Duration::from_secs(1));
            *edge = site.start_edge()?;
            Ok(())
        })
    }),
    scenario("interruption/agent-away", "what is lost when the edge's agent is killed, and back after 20 s", |lab| {
        let lossless = Goals { lost: Some(0.0), silence: None };
        Site::build(lab)?.with_agents("agent-away", lossless, |site, edge, _| {
            edge.process().kill()?;
            pass(Duration::from_secs(20));
            *edge = site.start_edge()?;
            Ok(())
        })
    }),
    scenario(
        "interruption/hub-agent-killed",
        "what is lost when the hub's agent is killed, and back after 1 s",
        |lab| {
            let lossless = Goals { lost: Some(0.0), silence: None };
            Site::build(lab)?.with_agents("hub-agent-killed", lossless, |site, _, hub| {
                hub.process().kill()?;
                pass(Duration::from_secs(1));
                *hub = site.start_hub()?;
                Ok(())
            })
        },
    ),
    scenario("interruption/link-down-2s", "what is lost when the edge's link is down for 2 s", |lab| {
        let goals = Goals { lost: None, silence: Some(2.1) };
        Site::build(lab)?.with_agents("link-down-2s", goals, |site, _, _| {
            site.edge().plug("home", false)?;
            pass(Duration::from_secs(2));
            site.edge().plug("home", true)
        })
    }),
    scenario(
        "interruption/address-replaced",
        "what is lost when the edge behind the NAT gets another address",
        |lab| {
            let goals = Goals { lost: None, silence: Some(0.1) };
            Site::build(lab)?.with_agents("address-replaced", goals, |site, _, _| {
                site.edge().sh("old=$(ip -4 -o addr show dev home | awk '{print $4}')
                 case $old in *.10/24) new=192.168.1.77/24;; *) new=192.168.1.10/24;; esac
                 ip addr del $old dev home && ip addr add $new dev home && ip route replace default via 192.168.1.1")?;
                Ok(())
            })
        },
    ),
    scenario("interruption/nat-rebooted", "what is lost when the edge's NAT forgets its mappings", |lab| {
        let goals = Goals { lost: None, silence: Some(2.0) };
        Site::build(lab)?.with_agents("nat-rebooted", goals, |site, _, _| {
            // The kernel drops the mappings of an interface that goes down.
            site.net.node("isp").sh("nft flush ruleset
                 ip link set internet down
                 from=$((20000 + $(od -An -N2 -tu2 /dev/urandom) % 20000))
                 nft 'add table ip nat; add chain ip nat post { type nat hook postrouting priority srcnat; }'
                 nft add rule ip nat post oifname internet ip protocol udp masquerade to :$from-$((from + 99))
                 nft add rule ip nat post oifname internet masquerade
                 ip link set internet up")?;
            Ok(())
        })
    }),
    scenario(
        "interruption/public-address-replaced",
        "what is lost when the provider changes the public address",
        |lab| {
            let goals = Goals { lost: None, silence: Some(2.0) };
            Site::build(lab)?.with_agents("public-address-replaced", goals, |site, _, _| {
                site.net.node("isp").sh("old=$(ip -4 -o addr show dev internet | awk '{print $4}')
                 case $old in *.1/24) new=203.0.113.2/24;; *) new=203.0.113.1/24;; esac
                 ip addr del $old dev internet && ip addr add $new dev internet")?;
                Ok(())
            })
        },
    ),
    scenario("interruption/xfrm-flushed", "what is lost when someone flushes the edge's SAs and policies", |lab| {
        let goals = Goals { lost: Some(2.0), silence: Some(1.0) };
        Site::build(lab)?.with_agents("xfrm-flushed", goals, |site, _, _| {
            site.edge().sh("ip xfrm state flush; ip xfrm policy flush").map(drop)
        })
    }),
    scenario("interruption/child-deleted", "what is lost when charon, as the hub, deletes the CHILD_SA", child_deleted),
];

/// Goals: the maximum values for each direction.
#[derive(Clone, Copy)]
pub(super) struct Goals {
    /// Maximum number of lost pings.
    pub(super) lost: Option<f64>,
    /// Maximum number of seconds without an answer.
    pub(super) silence: Option<f64>,
}

struct Site<'a> {
    lab: &'a Lab,
    net: &'a Net,
    edge_pod: Pod,
    hub_pod: Pod,
}

type Interruption<'a> = fn(&Site<'a>, &mut Agent<'a>, &mut Agent<'a>) -> Result<()>;

impl<'a> Site<'a> {
    fn build(lab: &'a Lab) -> Result<Self> {
        let mut plan = NetworkPlan::new();
        plan.router("isp").on("internet", &["203.0.113.1/24"]).on("home", &["192.168.1.1/24"]).masquerade("internet");
        plan.host("edge").on("home", &["192.168.1.10/24"]).via("192.168.1.1");
        plan.host("hub").on("internet", &[&format!("{HUB}/24")]).via("203.0.113.1");
        let net = lab.build(&plan)?;
        let edge_pod = net.node("edge").wired_pod("p", "10.1.0.2/24", "10.1.0.1/24")?;
        let hub_pod = net.node("hub").wired_pod("p", "10.2.0.2/24", "10.2.0.1/24")?;
        Ok(Self { lab, net, edge_pod, hub_pod })
    }

    fn edge(&self) -> &'a Node {
        self.net.node("edge")
    }

    fn start_edge(&self) -> Result<Agent<'a>> {
        let config = format!(
            "[[peer]]\nname = \"hub\"\nremote = [{HUB:?}]\nlocal_id = \"edge.example\"\nremote_id = \"hub.example\"\n\
             psk = {SECRET:?}\nlocal_subnets = [{EDGE_NETWORK:?}]\nremote_subnets = [{HUB_NETWORK:?}]\n"
        );
        Agent::start_with(self.lab, self.edge(), &config, "info")
    }

    fn start_hub(&self) -> Result<Agent<'a>> {
        let config = format!(
            "[[peer]]\nname = \"edge\"\nlocal_id = \"hub.example\"\nremote_id = \"edge.example\"\nstart = \"respond\"\n\
             psk = {SECRET:?}\nlocal_subnets = [{HUB_NETWORK:?}]\nremote_subnets = [{EDGE_NETWORK:?}]\n"
        );
        Agent::start_with(self.lab, self.net.node("hub"), &config, "info")
    }

    /// Measures an event between two agents.
    fn with_agents(&self, what: &str, goals: Goals, interruption: Interruption<'a>) -> Result<()> {
        let (mut hub, mut edge) = (self.start_hub()?, self.start_edge()?);
        edge.wait_up("hub")?;
        self.measure(what, goals, || interruption(self, &mut edge, &mut hub))
    }

    fn measure(&self, what: &str, goals: Goals, interruption: impl FnMut() -> Result<()>) -> Result<()> {
        measure(self.lab, what, goals, [(&self.edge_pod, "10.2.0.2"), (&self.hub_pod, "10.1.0.2")], interruption)
    }
}

/// Measures an event between two pods. Each tuple has a pod and the address that it pings: first
/// the edge's pod, then the hub's.
pub(super) fn measure(
    lab: &Lab,
    what: &str,
    goals: Goals,
    [from_edge, from_hub]: [(&Pod, &str); 2],
    mut interruption: impl FnMut() -> Result<()>,
) -> Result<()> {
    let mut reports = Vec::new();
    for run in 1..=RUNS {
        wait::for_event("pings through the tunnel", || {
            let reached = from_edge.0.reaches(from_edge.1, Duration::from_secs(1))?;
            ensure!(reached, "the hub's pod does not answer");
            Ok(())
        })?;
        let mut there = Ping::start(from_edge.0, from_edge.1, PACE)?;
        let mut back = Ping::start(from_hub.0, from_hub.1, PACE)?;
        there.wait_more(ANSWERED)?;
        back.wait_more(ANSWERED)?;
        interruption()?;
        there.wait_more(ANSWERED)?;
        back.wait_more(ANSWERED)?;
        let both = [there.stop()?, back.stop()?];
        let shown = both.each_ref().map(|report| format!("{} lost, {:.2} s", report.lost(), silence(report)));
        lab.step(&format!("{what}, run {run}: from the edge {}; from the hub {}", shown[0], shown[1]));
        reports.push(both);
    }
    let mut results = Results::default();
    let goal = |limit: Option<f64>| limit.map_or(Goal::None, Goal::Ours);
    for (index, direction) in ["from-edge", "from-hub"].iter().enumerate() {
        let lost = median(reports.iter().map(|both| both[index].lost() as f64));
        let silent = median(reports.iter().map(|both| silence(&both[index])));
        results.add(&format!("{what}/{direction}/lost"), "pings", lost, None, goal(goals.lost));
        results.add(&format!("{what}/{direction}/silence"), "s", silent, None, goal(goals.silence));
    }
    results.write(lab.out())
}

fn child_deleted(lab: &Lab) -> Result<()> {
    let site = Site::build(lab)?;
    let charon = Charon::start(
        site.net.node("hub"),
        &Connection::new("edge", Auth::Psk(SECRET.to_owned())).local(HUB, "hub.example", HUB_NETWORK).remote(
            "%any",
            "edge.example",
            EDGE_NETWORK,
        ),
    )?;
    let mut edge = site.start_edge()?;
    edge.wait_up("hub")?;
    let goals = Goals { lost: None, silence: Some(0.5) };
    site.measure("child-deleted", goals, || charon.terminate_child())
}

/// Waits for a time that belongs to an event.
pub(super) fn pass(time: Duration) {
    #[expect(clippy::disallowed_methods, reason = "the time is a part of the event")]
    std::thread::sleep(time);
}

/// Returns the longest time between two consecutive answers, in seconds.
pub(super) fn silence(report: &PingReport) -> f64 {
    report.longest_silence.as_secs_f64()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

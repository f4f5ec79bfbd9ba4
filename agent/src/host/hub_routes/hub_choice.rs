//! Chooses the hub through which a cloud node routes. This module does no I/O: the caller passes in
//! the results of the probes and the time.
//!
//! A gateway is an address of a hub. Each gateway has two signals: its neighbour entry shows that
//! the machine is up, and answers to IKE probes show that its agent works. Both signals are probed
//! once a second, and twice a second after the first missing answer. The code counts rounds of
//! probes, not seconds, so that no hub appears dead because this process did not run for a while.

use std::time::{Duration, Instant};

use edge_types::NodeName;

use crate::desired::HubGateway;
use crate::init_probe::AgentAnswer;

/// Time between two rounds of probes.
pub(super) const ROUND: Duration = Duration::from_millis(500);
/// Number of rounds without an answer after which a signal counts as lost. That is 3.0 to 3.5 s
/// after the last answer, with five unanswered probes. An agent that does not run for 2 s still
/// answers one of these probes.
const LOST_AFTER: u32 = 6;
/// A signal that is lost or never appeared is probed only in every tenth round (every 5 s), since
/// each probe of a machine that is down causes a broadcast or multicast.
const LOST_PACE: u32 = 10;
/// A hub that was dead is chosen only after this time, unless there is no other hub, because edges
/// must first set up their tunnels to that hub again.
const HOLD: Duration = Duration::from_secs(30);
/// Number of rounds (60 s) in which a hub is not probed again after it answered that it has no
/// peers: it logs each such probe, and has no packets to forward.
const PEERLESS_PAUSE: u32 = 120;

/// The results of the probes to a gateway since the last round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProbeResults {
    /// Whether the neighbour entry was confirmed, or cannot be probed.
    pub(super) neighbour: bool,
    /// The answer from the hub's agent, if there was one.
    pub(super) agent: Option<AgentAnswer>,
}

/// The probes to send to a gateway in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Probes {
    /// Ask the kernel to confirm the neighbour entry.
    pub(super) neighbour: bool,
    /// Send an IKE probe.
    pub(super) agent: bool,
}

/// The health of a gateway. Later variants are better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Health {
    /// The machine does not answer.
    MachineGone,
    /// The machine answers, but its agent no longer does.
    AgentGone,
    /// The machine was dead less than [`HOLD`] ago, and the agent has never answered.
    ReturnedMute,
    /// Machine and agent answer, but the gateway was dead less than [`HOLD`] ago.
    Returned,
    /// The machine answers. The agent has never answered, so its state is unknown: a firewall may
    /// drop the probes.
    Mute,
    /// Machine and agent answer.
    Good,
}

/// The gateways and the state of their signals.
#[derive(Debug, Default)]
pub(super) struct HubChoice {
    gateways: Vec<(HubGateway, GatewayHealth)>,
}

#[derive(Debug, Clone)]
struct GatewayHealth {
    neighbour: Signal,
    agent: Signal,
    dead: bool,
    /// The time at which the gateway came back, or was added while another gateway was in use.
    returned_at: Option<Instant>,
    pause: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct Signal {
    /// Number of rounds since the last answer.
    silent: u32,
    ever: bool,
}

impl Signal {
    fn round(&mut self, sign: bool) {
        self.silent = if sign { 0 } else { self.silent.saturating_add(1) };
        self.ever |= sign;
    }

    fn is_lost(self) -> bool {
        self.silent >= LOST_AFTER
    }

    /// Returns whether a probe is due. An answer belongs to the probe of the previous round, so the
    /// next probe is sent one round later.
    fn is_due(self) -> bool {
        match self.silent.checked_sub(LOST_AFTER) {
            Some(lost) => lost.is_multiple_of(LOST_PACE),
            None => self.silent > 0,
        }
    }
}

impl GatewayHealth {
    fn new(returned_at: Option<Instant>) -> Self {
        // The signal starts with one silent round, so that it is probed immediately.
        let signal = Signal { silent: 1, ever: false };
        Self { neighbour: signal, agent: signal, dead: false, returned_at, pause: 0 }
    }

    fn round(&mut self, results: ProbeResults, now: Instant) {
        self.pause = self.pause.saturating_sub(1);
        if results.agent == Some(AgentAnswer::HasNoPeers) {
            self.pause = PEERLESS_PAUSE;
        }
        self.neighbour.round(results.neighbour);
        self.agent.round(results.agent.is_some() || self.pause > 0);
        let dead = self.machine_gone() || self.agent_gone();
        if self.dead && !dead {
            self.returned_at = Some(now);
        }
        self.dead = dead;
    }

    fn machine_gone(&self) -> bool {
        // An answer from the agent also proves that the machine is up.
        self.neighbour.is_lost() && (self.agent.is_lost() || !self.agent.ever)
    }

    fn agent_gone(&self) -> bool {
        self.agent.ever && self.agent.is_lost()
    }

    fn health(&self, now: Instant) -> Health {
        let mute = !self.agent.ever && self.agent.is_lost();
        let settled = self.returned_at.is_none_or(|at| now.saturating_duration_since(at) >= HOLD);
        match (settled, mute) {
            _ if self.machine_gone() => Health::MachineGone,
            _ if self.agent_gone() => Health::AgentGone,
            (false, true) => Health::ReturnedMute,
            (false, false) => Health::Returned,
            (true, true) => Health::Mute,
            (true, false) => Health::Good,
        }
    }
}

impl HubChoice {
    /// Sets the gateways, best first. The state of a gateway that stays is kept. If packets of its
    /// family already go through another gateway, a new gateway is treated like one that has just
    /// come back.
    pub(super) fn set(&mut self, gateways: Vec<HubGateway>, in_use: &[HubGateway], now: Instant) {
        let before = std::mem::take(&mut self.gateways);
        let known = |gateway: &HubGateway| before.iter().find(|(other, _)| other == gateway).map(|(_, known)| known);
        let others = |gateway: &HubGateway| {
            in_use
                .iter()
                .any(|other| other != gateway && is_ipv4(other) == is_ipv4(gateway) && gateways.contains(other))
        };
        let watched = gateways.iter().map(|gateway| {
            let new = || GatewayHealth::new(others(gateway).then_some(now));
            (gateway.clone(), known(gateway).cloned().unwrap_or_else(new))
        });
        self.gateways = watched.collect();
    }

    /// Returns the gateways to probe. A family with only one gateway needs no choice.
    pub(super) fn probed(&self) -> Vec<HubGateway> {
        let several = |ipv4| self.of_family(ipv4).nth(1).is_some();
        let probed = self.gateways.iter().map(|(gateway, _)| gateway).filter(|gateway| several(is_ipv4(gateway)));
        probed.cloned().collect()
    }

    /// Ends a gateway's round and returns the probes to send in the next round.
    pub(super) fn round(&mut self, gateway: &HubGateway, results: ProbeResults, now: Instant) -> Probes {
        let Some((_, watched)) = self.gateways.iter_mut().find(|(known, _)| known == gateway) else {
            return Probes { neighbour: false, agent: false };
        };
        watched.round(results, now);
        Probes { neighbour: watched.neighbour.is_due(), agent: watched.pause == 0 && watched.agent.is_due() }
    }

    /// Returns the gateway that a family should use now: the best one, or the first of several
    /// equally good ones. The gateway in use is kept if the best gateways are dead or have come
    /// back only recently. The hubs `not_through` are used only if no other hub is alive.
    pub(super) fn choose(
        &self,
        ipv4: bool,
        not_through: &[NodeName],
        in_use: Option<&HubGateway>,
        now: Instant,
    ) -> Option<&HubGateway> {
        let of_family = || self.of_family(ipv4).map(|(gateway, watched)| (gateway, watched.health(now)));
        let any = !self.is_any_alive_beside(ipv4, not_through, now);
        let candidates =
            || of_family().filter(|(gateway, health)| any || is_alive_beside(gateway, *health, not_through));
        let best = candidates().map(|(_, health)| health).max()?;
        let mut equals = candidates().filter(|(_, health)| *health == best).map(|(gateway, _)| gateway);
        let first = equals.next()?;
        let stays = equals.find(|gateway| Some(*gateway) == in_use).filter(|_| best < Health::Mute);
        Some(stays.unwrap_or(first))
    }

    /// Returns whether a hub is alive that is not one of these.
    pub(super) fn is_any_alive_beside(&self, ipv4: bool, not_through: &[NodeName], now: Instant) -> bool {
        self.of_family(ipv4).any(|(gateway, watched)| is_alive_beside(gateway, watched.health(now), not_through))
    }

    /// Returns the health of a gateway, for log messages.
    pub(super) fn health(&self, gateway: &HubGateway, now: Instant) -> Option<Health> {
        self.gateways.iter().find(|(known, _)| known == gateway).map(|(_, watched)| watched.health(now))
    }

    fn of_family(&self, ipv4: bool) -> impl Iterator<Item = &(HubGateway, GatewayHealth)> {
        self.gateways.iter().filter(move |(gateway, _)| is_ipv4(gateway) == ipv4)
    }
}

fn is_alive_beside(gateway: &HubGateway, health: Health, not_through: &[NodeName]) -> bool {
    health > Health::AgentGone && !not_through.contains(&gateway.hub)
}

fn is_ipv4(gateway: &HubGateway) -> bool {
    gateway.address.is_ipv4()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVES: Option<AgentAnswer> = Some(AgentAnswer::Serves);

    fn gateway(hub: &str, address: &str) -> HubGateway {
        HubGateway { hub: hub.parse().unwrap(), address: format!("{address}:4500").parse().unwrap() }
    }

    /// Two hubs, their answers, and a clock.
    struct Pair {
        hub_choice: HubChoice,
        gateways: [HubGateway; 2],
        /// Whether each machine and its agent answer probes.
        answers: [(bool, bool); 2],
        asked: [Probes; 2],
        sent: [u32; 2],
        in_use: Option<HubGateway>,
        now: Instant,
        changes: Vec<(u128, String)>,
        begun: Instant,
    }

    impl Pair {
        fn new(in_use: Option<usize>) -> Self {
            let gateways = [gateway("hub-1", "192.0.2.1"), gateway("hub-2", "192.0.2.2")];
            let now = Instant::now();
            let in_use = in_use.map(|index| gateways[index].clone());
            let mut hub_choice = HubChoice::default();
            hub_choice.set(gateways.to_vec(), in_use.as_slice(), now);
            let asked = [Probes { neighbour: false, agent: false }; 2];
            let answers = [(true, true); 2];
            Self { hub_choice, gateways, answers, asked, sent: [0; 2], in_use, now, changes: vec![], begun: now }
        }

        fn choose(&mut self) {
            let chosen = self.hub_choice.choose(true, &[], self.in_use.as_ref(), self.now).cloned();
            if chosen != self.in_use {
                let hub = chosen.as_ref().unwrap().hub.to_string();
                self.changes.push((self.now.duration_since(self.begun).as_millis(), hub));
                self.in_use = chosen;
            }
        }

        fn rounds(&mut self, count: u32) -> &mut Self {
            self.choose();
            for _ in 0..count {
                self.now += ROUND;
                for (index, gateway) in self.gateways.iter().enumerate() {
                    let ((machine, agent), asked) = (self.answers[index], self.asked[index]);
                    let results = ProbeResults {
                        neighbour: asked.neighbour && machine,
                        agent: SERVES.filter(|_| asked.agent && machine && agent),
                    };
                    self.asked[index] = self.hub_choice.round(gateway, results, self.now);
                    self.sent[index] += u32::from(self.asked[index].agent);
                }
                self.choose();
            }
            self
        }

        fn seconds(&mut self, seconds: u32) -> &mut Self {
            self.rounds(seconds * 2)
        }

        /// Returns the changes since the last call, each with the milliseconds since that call.
        fn changes(&mut self) -> Vec<(u128, String)> {
            self.begun = self.now;
            std::mem::take(&mut self.changes)
        }

        fn in_use(&self) -> &str {
            self.in_use.as_ref().unwrap().hub.as_str()
        }
    }

    #[test]
    fn at_start_the_first_hub_counts_at_once() {
        let mut pair = Pair::new(None);
        pair.rounds(0);
        assert_eq!(pair.changes(), [(0, "hub-1".to_owned())]);
        assert_eq!(pair.seconds(60).changes(), []);
    }

    #[test]
    fn a_hub_without_power_is_left_within_three_and_a_half_seconds_and_counts_thirty_seconds_after_it_is_back() {
        for phase in 0..2 {
            let mut pair = Pair::new(None);
            pair.rounds(20 + phase).changes();
            pair.answers[0] = (false, false);
            let [(after, to)] = &pair.seconds(100).changes()[..] else { panic!("one change") };
            assert!((2500..=3500).contains(after), "{after} ms");
            assert_eq!(to, "hub-2");
            pair.answers[0] = (true, true);
            let [(after, to)] = &pair.seconds(60).changes()[..] else { panic!("one change") };
            assert!((30_000..=35_500).contains(after), "{after} ms");
            assert_eq!(to, "hub-1");
        }
    }

    #[test]
    fn an_agent_that_is_away_for_two_seconds_changes_nothing_and_one_that_stays_away_does() {
        for phase in 0..2 {
            let mut pair = Pair::new(None);
            pair.rounds(20 + phase).changes();
            pair.answers[0] = (true, false);
            pair.rounds(4);
            pair.answers[0] = (true, true);
            assert_eq!(pair.seconds(60).changes(), []);
            pair.answers[0] = (true, false);
            assert_eq!(pair.seconds(4).changes().len(), 1);
            assert_eq!(pair.in_use(), "hub-2");
        }
    }

    #[test]
    fn a_hub_whose_agent_never_answered_counts_unless_another_ones_agent_answers() {
        let mut pair = Pair::new(None);
        pair.answers = [(true, false), (true, false)];
        pair.seconds(60);
        assert_eq!(pair.changes(), [(0, "hub-1".to_owned())], "both are mute");
        assert_eq!(pair.hub_choice.health(&pair.gateways[0], pair.now), Some(Health::Mute));
        pair.answers[1] = (true, true);
        assert_eq!(pair.seconds(10).in_use(), "hub-2");
        let mut pair = Pair::new(None);
        pair.answers[0] = (true, false);
        assert_eq!(pair.seconds(10).in_use(), "hub-2", "after a restart of this node, hub-1's agent may be dead");
    }

    #[test]
    fn the_only_hub_that_is_back_counts_at_once_and_a_machine_without_agent_is_better_than_none() {
        let mut pair = Pair::new(None);
        pair.answers[1] = (false, false);
        pair.seconds(20).changes();
        pair.answers[0] = (true, false);
        assert_eq!(pair.seconds(60).changes(), [], "no other is alive");
        pair.answers[0] = (false, false);
        assert_eq!(pair.seconds(60).changes(), []);
        pair.answers[1] = (true, true);
        assert_eq!(pair.seconds(6).in_use(), "hub-2");
        pair.changes();
        // Both hubs were dead. The first one that comes back stays in use.
        pair.answers[0] = (true, true);
        assert_eq!(pair.seconds(20).changes(), []);
        assert_eq!(pair.seconds(20).in_use(), "hub-1");
    }

    #[test]
    fn a_route_of_an_earlier_run_stays_for_thirty_seconds() {
        let mut pair = Pair::new(Some(1));
        assert_eq!(pair.seconds(29).changes(), []);
        assert_eq!(pair.seconds(2).in_use(), "hub-1");
        let mut pair = Pair::new(Some(1));
        pair.answers[1] = (false, false);
        assert_eq!(pair.seconds(4).in_use(), "hub-1", "unless its hub is dead");
    }

    #[test]
    fn while_all_is_well_a_hub_is_asked_once_a_second_and_if_it_is_dead_every_five() {
        let mut pair = Pair::new(None);
        pair.seconds(100);
        assert!((99..=101).contains(&pair.sent[0]), "{}", pair.sent[0]);
        pair.answers[0] = (false, false);
        pair.seconds(10).sent = [0; 2];
        pair.seconds(100);
        assert_eq!(pair.sent[0], 20);
    }

    #[test]
    fn a_hub_without_peers_is_asked_once_a_minute_and_counts() {
        let mut hub_choice = HubChoice::default();
        let (first, second, now) = (gateway("hub-1", "192.0.2.1"), gateway("hub-2", "192.0.2.2"), Instant::now());
        hub_choice.set(vec![first.clone(), second], &[], now);
        let mut asked = Vec::new();
        let mut probes = hub_choice.round(&first, ProbeResults { neighbour: true, agent: None }, now);
        for round in 0..300 {
            if probes.agent {
                asked.push(round);
            }
            let agent = probes.agent.then_some(AgentAnswer::HasNoPeers);
            probes = hub_choice.round(&first, ProbeResults { neighbour: true, agent }, now);
            assert_eq!(hub_choice.health(&first, now), Some(Health::Good));
        }
        assert!(asked.len() == 3 && asked[1] - asked[0] >= 120, "{asked:?}");
    }

    #[test]
    fn a_hub_through_which_a_network_is_not_reached_is_used_only_if_no_other_hub_is_alive() {
        let mut pair = Pair::new(None);
        let [first, second] = ["hub-1", "hub-2"].map(|hub| hub.parse::<NodeName>().unwrap());
        let chosen = |pair: &Pair, not_through: &[NodeName]| {
            let chosen = pair.hub_choice.choose(true, not_through, pair.in_use.as_ref(), pair.now);
            chosen.unwrap().hub.to_string()
        };
        pair.seconds(10);
        assert_eq!(chosen(&pair, std::slice::from_ref(&first)), "hub-2");
        assert_eq!(chosen(&pair, std::slice::from_ref(&second)), "hub-1");
        assert_eq!(chosen(&pair, &[first.clone(), second.clone()]), "hub-1");
        assert!(pair.hub_choice.is_any_alive_beside(true, std::slice::from_ref(&first), pair.now));
        assert!(!pair.hub_choice.is_any_alive_beside(true, &[first.clone(), second], pair.now));
        pair.answers[1] = (false, false);
        pair.seconds(10);
        assert_eq!(chosen(&pair, std::slice::from_ref(&first)), "hub-1");
        // It is back, and the edges that do not reach hub-1 need not wait.
        pair.answers[1] = (true, true);
        pair.seconds(10);
        assert_eq!((chosen(&pair, &[first]).as_str(), pair.in_use()), ("hub-2", "hub-1"));
    }

    #[test]
    fn families_are_chosen_apart_and_a_single_gateway_is_not_probed() {
        let mut hub_choice = HubChoice::default();
        let gateways =
            vec![gateway("hub-1", "192.0.2.1"), gateway("hub-1", "[2001:db8::1]"), gateway("hub-2", "192.0.2.2")];
        let now = Instant::now();
        hub_choice.set(gateways.clone(), &[], now);
        assert_eq!(hub_choice.probed(), [gateways[0].clone(), gateways[2].clone()]);
        assert_eq!(hub_choice.choose(false, &[], None, now), Some(&gateways[1]));
        for _ in 0..10 {
            hub_choice.round(&gateways[0], ProbeResults { neighbour: false, agent: None }, now);
            hub_choice.round(&gateways[2], ProbeResults { neighbour: true, agent: None }, now);
        }
        assert_eq!(hub_choice.choose(true, &[], Some(&gateways[0]), now), Some(&gateways[2]));
        assert_eq!(hub_choice.choose(false, &[], Some(&gateways[1]), now), Some(&gateways[1]));
        // A hub that the view adds is not chosen immediately, and the state of the other hubs is
        // kept.
        let mut more = gateways.clone();
        more.insert(0, gateway("hub-0", "192.0.2.9"));
        hub_choice.set(more.clone(), &[gateways[2].clone()], now);
        assert_eq!(hub_choice.choose(true, &[], Some(&gateways[2]), now), Some(&gateways[2]));
        assert_eq!(hub_choice.health(&gateways[0], now), Some(Health::MachineGone));
        assert_eq!(hub_choice.health(&more[0], now), Some(Health::Returned));
        assert_eq!(hub_choice.choose(true, &[], Some(&gateways[2]), now + HOLD), Some(&more[0]));
    }
}

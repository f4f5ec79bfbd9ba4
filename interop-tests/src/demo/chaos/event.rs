//! Draws the events of a round from a seed.

use std::time::Duration;

use fastrand::Rng;

use super::super::world::{EDGES, NODES};

/// Edges behind a NAT.
const BEHIND_NAT: [&str; 2] = ["edge-a2", "edge-c1"];
/// Edges that join and leave community alpha, to which a1 and a2 always belong.
const GUESTS: [&str; 2] = ["edge-b1", "edge-c1"];
/// Maximum number of events in a round.
const MOST_AT_ONCE: usize = 3;
/// Duration of an interruption in a round, in milliseconds.
const LASTS_MS: std::ops::RangeInclusive<u64> = 0..=4000;

/// An event at one node or at the controller. An event begins with its round and, if it has a
/// duration, ends with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// The agent is restarted.
    AgentRestarted,
    /// The agent is killed, and started at the end of the round.
    AgentKilled,
    /// An edge's cable is unplugged until the end of the round.
    LinkDown,
    /// An edge gets another address on its LAN.
    AddressReplaced,
    /// The edge's NAT forgets its mappings; new mappings use ports from this one on.
    NatRebooted { from_port: u16 },
    /// SAs and policies are flushed.
    XfrmFlushed,
    /// All nftables rules are flushed.
    NftFlushed,
    /// All routes are flushed; the uplink's routes are restored at the end of the round.
    RoutesFlushed,
    /// The pods' bridge is deleted.
    BridgeDeleted,
    /// The host's forwarding is turned off.
    ForwardingOff,
    /// iptables' `FORWARD` drops by policy.
    ForwardDrops,
    /// The CHILD_SAs with all peers, or the IKE SAs, are rekeyed.
    Rekeyed { ike: bool },
    /// The edge's pod is replaced by another one.
    PodReplaced,
    /// The edge joins or leaves community alpha.
    Member { alpha: bool },
    /// The controller is killed, and started at the end of the round.
    ControllerKilled,
}

/// Events that happen at the same time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Round {
    /// The events, each with its node or `controller`. Each node, and `controller`, occurs at most
    /// once.
    pub(super) events: Vec<(&'static str, Event)>,
    /// Time from the beginning to the end of the events.
    pub(super) lasts: Duration,
}

/// The endless sequence of rounds that follows from a seed.
pub(super) struct Rounds {
    random: Rng,
    /// The guests that are members of alpha.
    members: Vec<&'static str>,
}

impl Rounds {
    pub(super) fn new(seed: u64) -> Self {
        Self { random: Rng::with_seed(seed), members: vec![] }
    }

    fn event(&mut self, place: &'static str) -> Event {
        let edge = EDGES.contains(&place);
        loop {
            let event = match self.random.u8(0..14) {
                _ if place == "controller" => Event::ControllerKilled,
                0 => Event::AgentRestarted,
                1 => Event::AgentKilled,
                2 => Event::XfrmFlushed,
                3 => Event::NftFlushed,
                4 => Event::Rekeyed { ike: self.random.bool() },
                5 if edge => Event::LinkDown,
                6 if BEHIND_NAT.contains(&place) => Event::AddressReplaced,
                7 if BEHIND_NAT.contains(&place) => Event::NatRebooted { from_port: self.random.u16(10_000..60_000) },
                8 if edge => Event::RoutesFlushed,
                9 if edge => Event::BridgeDeleted,
                10 if edge => Event::ForwardingOff,
                11 if edge => Event::ForwardDrops,
                12 if edge => Event::PodReplaced,
                13 if GUESTS.contains(&place) => Event::Member { alpha: !self.members.contains(&place) },
                _ => continue,
            };
            if let Event::Member { alpha } = event {
                self.members.retain(|member| *member != place);
                self.members.extend(Some(place).filter(|_| alpha));
            }
            return event;
        }
    }
}

impl Iterator for Rounds {
    type Item = Round;

    fn next(&mut self) -> Option<Round> {
        let places: Vec<&'static str> = NODES.into_iter().chain(["controller"]).collect();
        let count = self.random.usize(1..=MOST_AT_ONCE);
        let chosen = self.random.choose_multiple(places, count);
        let events: Vec<_> = chosen.into_iter().map(|place| (place, self.event(place))).collect();
        Some(Round { events, lasts: Duration::from_millis(self.random.u64(LASTS_MS)) })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_events_and_another_one_others() {
        let rounds = |seed| Rounds::new(seed).take(50).collect::<Vec<_>>();
        assert_eq!(rounds(7), rounds(7));
        assert_ne!(rounds(7), rounds(8));
    }

    #[test]
    fn every_kind_of_event_happens_and_nothing_happens_twice_at_once() {
        let mut kinds = BTreeSet::new();
        for round in Rounds::new(1).take(2000) {
            let places: BTreeSet<_> = round.events.iter().map(|(place, _)| place).collect();
            assert_eq!(places.len(), round.events.len(), "{round:?}");
            assert!((1..=MOST_AT_ONCE).contains(&round.events.len()));
            kinds.extend(
                round
                    .events
                    .iter()
                    .map(|(_, event)| format!("{event:?}").split([' ', '{']).next().unwrap_or_default().to_owned()),
            );
        }
        assert_eq!(kinds.len(), 15, "{kinds:?}");
    }

    #[test]
    fn a_guest_joins_and_leaves_by_turns() {
        let mut member = false;
        for (place, event) in Rounds::new(3).take(500).flat_map(|round| round.events) {
            if let ("edge-c1", Event::Member { alpha }) = (place, event) {
                assert_ne!(alpha, member);
                member = alpha;
            }
        }
    }
}

//! Draws the events of a round from a seed.

use std::time::Duration;

use fastrand::Rng;

use super::super::layout::{Layout, is_behind_nat};

/// Maximum number of events in a round: a share of the nodes and the controller.
fn most_at_once(layout: &Layout) -> usize {
    layout.nodes().count() / 2
}

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
    /// The cable of an edge, or of one of several hubs, is unplugged until the end of the round.
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
    layout: &'static Layout,
    random: Rng,
    /// The guests that are members of alpha.
    members: Vec<&'static str>,
}

impl Rounds {
    pub(super) fn new(seed: u64, layout: &'static Layout) -> Self {
        Self { layout, random: Rng::with_seed(seed), members: vec![] }
    }

    fn event(&mut self, place: &'static str) -> Event {
        let edge = self.layout.edges().any(|edge| edge == place);
        let one_of_hubs = self.layout.hubs().count() > 1 && self.layout.hubs().any(|hub| hub == place);
        let behind_nat = edge && is_behind_nat(place);
        loop {
            let event = match self.random.u8(0..14) {
                _ if place == "controller" => Event::ControllerKilled,
                0 => Event::AgentRestarted,
                1 => Event::AgentKilled,
                2 => Event::XfrmFlushed,
                3 => Event::NftFlushed,
                4 => Event::Rekeyed { ike: self.random.bool() },
                5 if edge || one_of_hubs => Event::LinkDown,
                6 if behind_nat => Event::AddressReplaced,
                7 if behind_nat => Event::NatRebooted { from_port: self.random.u16(10_000..60_000) },
                8 if edge => Event::RoutesFlushed,
                9 if edge => Event::BridgeDeleted,
                10 if edge => Event::ForwardingOff,
                11 if edge => Event::ForwardDrops,
                12 if edge => Event::PodReplaced,
                13 if self.layout.guests.contains(&place) => Event::Member { alpha: !self.members.contains(&place) },
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
        let places: Vec<&'static str> = self.layout.nodes().chain(["controller"]).collect();
        let count = self.random.usize(1..=most_at_once(self.layout));
        let chosen = self.random.choose_multiple(places, count);
        let events: Vec<_> = chosen.into_iter().map(|place| (place, self.event(place))).collect();
        Some(Round { events, lasts: Duration::from_millis(self.random.u64(LASTS_MS)) })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::super::layout::{DEMO, TWELVE_NODES};
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_events_and_another_one_others() {
        let rounds = |seed| Rounds::new(seed, &TWELVE_NODES).take(50).collect::<Vec<_>>();
        assert_eq!(rounds(7), rounds(7));
        assert_ne!(rounds(7), rounds(8));
    }

    #[test]
    fn every_kind_of_event_happens_and_nothing_happens_twice_at_once() {
        for layout in [&DEMO, &TWELVE_NODES] {
            let mut kinds = BTreeSet::new();
            for round in Rounds::new(1, layout).take(2000) {
                let places: BTreeSet<_> = round.events.iter().map(|(place, _)| place).collect();
                assert_eq!(places.len(), round.events.len(), "{round:?}");
                assert!((1..=most_at_once(layout)).contains(&round.events.len()));
                let kind = |event| format!("{event:?}").split([' ', '{']).next().unwrap_or_default().to_owned();
                kinds.extend(round.events.iter().map(|(_, event)| kind(event)));
            }
            assert_eq!(kinds.len(), 15, "{kinds:?}");
        }
    }

    #[test]
    fn the_cable_of_a_hub_is_pulled_only_where_another_hub_is_left() {
        let pulled = |layout, hub| {
            let mut events = Rounds::new(2, layout).take(2000).flat_map(|round| round.events);
            events.any(|event| event == (hub, Event::LinkDown))
        };
        assert!(!pulled(&DEMO, "cloud-1"));
        assert!(pulled(&TWELVE_NODES, "cloud-1") && pulled(&TWELVE_NODES, "cloud-3"));
        assert!(!pulled(&TWELVE_NODES, "cloud-2"));
    }

    #[test]
    fn a_guest_joins_and_leaves_by_turns() {
        let mut member = false;
        for (place, event) in Rounds::new(3, &DEMO).take(500).flat_map(|round| round.events) {
            if let ("edge-c1", Event::Member { alpha }) = (place, event) {
                assert_ne!(alpha, member);
                member = alpha;
            }
        }
    }
}

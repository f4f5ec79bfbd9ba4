//! Traffic selectors: making an offer, narrowing an offer, and checking the peer's response (RFC
//! 7296 2.9).

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::config::{ChildConfig, NextLayer};
use crate::event::ChildSa;
use crate::wire::TrafficSelector;

/// Maximum number of networks of one side of a CHILD_SA. The address ranges of an honest peer are
/// networks. Any other range must be split into many networks.
const MAX_NETWORKS: usize = 256;

/// The traffic of a configured child, of a part of a child, or of a CHILD_SA.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Traffic<'a> {
    /// Networks of our side.
    pub(crate) local: &'a [IpNetwork],
    /// Networks of the peer's side.
    pub(crate) remote: &'a [IpNetwork],
    /// Protocol and ports of the packets.
    pub(crate) next_layer: NextLayer,
}

impl<'a> From<&'a ChildConfig> for Traffic<'a> {
    fn from(child: &'a ChildConfig) -> Self {
        Self { local: &child.local, remote: &child.remote, next_layer: child.next_layer }
    }
}

impl<'a> From<&'a ChildSa> for Traffic<'a> {
    fn from(sa: &'a ChildSa) -> Self {
        Self { local: &sa.local_selectors, remote: &sa.remote_selectors, next_layer: sa.next_layer }
    }
}

impl Traffic<'_> {
    /// Returns the selectors of our side that we offer.
    pub(crate) fn local_selectors(&self) -> Vec<TrafficSelector> {
        selectors(self.local, self.next_layer.protocol, self.next_layer.local_port)
    }

    /// Returns the selectors of the peer's side that we offer.
    pub(crate) fn remote_selectors(&self) -> Vec<TrafficSelector> {
        selectors(self.remote, self.next_layer.protocol, self.next_layer.remote_port)
    }
}

fn selectors(networks: &[IpNetwork], protocol: u8, port: Option<u16>) -> Vec<TrafficSelector> {
    let (start_port, end_port) = port.map_or((0, u16::MAX), |port| (port, port));
    let of = |network: &IpNetwork| TrafficSelector { protocol, start_port, end_port, ..(*network).into() };
    networks.iter().map(of).collect()
}

/// The selectors on which both ends agreed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Narrowed {
    /// The source networks of packets that we may send.
    pub(crate) local: Vec<TrafficSelector>,
    /// The destination networks of packets that we may send.
    pub(crate) remote: Vec<TrafficSelector>,
}

impl Narrowed {
    /// Returns our side as networks.
    pub(crate) fn local_networks(&self) -> Vec<IpNetwork> {
        networks(&self.local)
    }

    /// Returns the peer's side as networks.
    pub(crate) fn remote_networks(&self) -> Vec<IpNetwork> {
        networks(&self.remote)
    }

    /// Returns whether these selectors contain all of this traffic.
    pub(crate) fn covers(&self, traffic: Traffic<'_>) -> bool {
        let within = |asked: Vec<TrafficSelector>, selectors: &[TrafficSelector]| {
            let joined = join_adjacent(selectors.to_vec());
            asked.iter().all(|asked| joined.iter().any(|wide| wide.contains(asked)))
        };
        within(traffic.local_selectors(), &self.local) && within(traffic.remote_selectors(), &self.remote)
    }

    /// Returns whether these selectors contain all traffic of a child that one CHILD_SA can carry.
    pub(crate) fn is_whole(&self, child: Traffic<'_>) -> bool {
        let (local, remote) = (child.local_selectors(), child.remote_selectors());
        if (&self.local, &self.remote) == (&local, &remote) {
            return true;
        }
        Self::checked(local, remote).is_some_and(|whole| {
            let (local, remote) = (whole.local_networks(), whole.remote_networks());
            self.covers(Traffic { local: &local, remote: &remote, ..child })
        })
    }

    fn checked(mut local: Vec<TrafficSelector>, mut remote: Vec<TrafficSelector>) -> Option<Self> {
        // Both ends of a packet have addresses of the same family, so selectors of a family that
        // only one side has are dropped.
        let both =
            |v4: bool| local.iter().any(|s| s.start.is_ipv4() == v4) && remote.iter().any(|s| s.start.is_ipv4() == v4);
        let (v4, v6) = (both(true), both(false));
        let keep = |selector: &TrafficSelector| if selector.start.is_ipv4() { v4 } else { v6 };
        local.retain(keep);
        remote.retain(keep);
        let fits = |selectors: &[TrafficSelector]| {
            let networks = selectors.iter().flat_map(TrafficSelector::networks).take(MAX_NETWORKS.saturating_add(1));
            (1..=MAX_NETWORKS).contains(&networks.count())
        };
        (fits(&local) && fits(&remote)).then_some(Self { local, remote })
    }
}

/// Returns, as the responder, the largest part of the peer's offer that our policy allows. Returns
/// `None` if the response must be TS_UNACCEPTABLE.
//= RFC 7296 2.9 SHOULD 3: narrow, not SINGLE_PAIR_REQUIRED
pub(crate) fn narrow(
    ours: Traffic<'_>,
    offered_local: &[TrafficSelector],
    offered_remote: &[TrafficSelector],
) -> Option<Narrowed> {
    Narrowed::checked(
        intersect(&ours.local_selectors(), offered_local),
        intersect(&ours.remote_selectors(), offered_remote),
    )
}

/// Returns, as the initiator, the peer's selectors if they lie within our offer, or `None`
/// otherwise.
//= RFC 7296 2.9 REQUIRED 6: no more than was asked for
pub(crate) fn accept_narrowed(
    asked: Traffic<'_>,
    local: &[TrafficSelector],
    remote: &[TrafficSelector],
) -> Option<Narrowed> {
    let within = |asked: Vec<TrafficSelector>, answer: &[TrafficSelector]| {
        let asked = join_adjacent(asked);
        answer
            .iter()
            .all(|selector| asked.iter().any(|asked| asked.contains(selector) && has_next_layer_of(selector, asked)))
    };
    (within(asked.local_selectors(), local) && within(asked.remote_selectors(), remote))
        .then(|| Narrowed::checked(without_contained(local.iter().copied()), without_contained(remote.iter().copied())))
        .flatten()
}

/// Returns whether a selector has the same protocol and ports as one of ours. Our policies match
/// exactly the configured protocol and ports, so they cannot enforce a narrower selector.
fn has_next_layer_of(selector: &TrafficSelector, ours: &TrafficSelector) -> bool {
    (selector.protocol, selector.start_port, selector.end_port) == (ours.protocol, ours.start_port, ours.end_port)
}

fn intersect(ours: &[TrafficSelector], offered: &[TrafficSelector]) -> Vec<TrafficSelector> {
    let part = |offered: &TrafficSelector, ours: &TrafficSelector| {
        ours.intersection(offered).filter(|part| has_next_layer_of(part, ours))
    };
    let parts = offered.iter().flat_map(|offered| ours.iter().filter_map(move |ours| part(offered, ours)));
    //= RFC 7296 2.9 MUST 2: the first selectors are kept
    without_contained(parts)
}

/// Joins selectors whose addresses overlap or are adjacent: a peer may send 10.0.0.0 to 10.0.1.255
/// as one range where we have two networks.
fn join_adjacent(mut selectors: Vec<TrafficSelector>) -> Vec<TrafficSelector> {
    selectors.sort_by_key(|selector| (selector.start, selector.end));
    selectors.dedup_by(|next, last| {
        let joins = follows(last.end, next.start);
        if joins {
            last.end = last.end.max(next.end);
        }
        joins
    });
    selectors
}

/// Returns whether an address lies within or directly after a range that ends at `end` and begins
/// before the address.
fn follows(end: IpAddr, start: IpAddr) -> bool {
    match (end, start) {
        (IpAddr::V4(end), IpAddr::V4(start)) => start.to_bits() <= end.to_bits().saturating_add(1),
        (IpAddr::V6(end), IpAddr::V6(start)) => start.to_bits() <= end.to_bits().saturating_add(1),
        _ => false,
    }
}

/// Drops selectors that are contained in another one. The remaining selectors keep their order.
fn without_contained(selectors: impl Iterator<Item = TrafficSelector>) -> Vec<TrafficSelector> {
    let mut kept: Vec<TrafficSelector> = Vec::new();
    for selector in selectors {
        if !kept.iter().any(|other| other.contains(&selector)) {
            kept.retain(|other| !selector.contains(other));
            kept.push(selector);
        }
    }
    kept
}

fn networks(selectors: &[TrafficSelector]) -> Vec<IpNetwork> {
    let each = || selectors.iter().flat_map(TrafficSelector::networks);
    let mut networks = Vec::with_capacity(each().count());
    networks.extend(each());
    networks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mode;
    use crate::purpose::ChildName;

    fn child(local: &[&str], remote: &[&str]) -> ChildConfig {
        let parse = |networks: &[&str]| networks.iter().map(|text| text.parse().unwrap()).collect();
        ChildConfig {
            name: ChildName::new("net"),
            proposals: Vec::new(),
            local: parse(local),
            remote: parse(remote),
            next_layer: NextLayer::ANY,
            mode: Mode::Tunnel,
        }
    }

    fn narrow(ours: &ChildConfig, local: &[TrafficSelector], remote: &[TrafficSelector]) -> Option<Narrowed> {
        super::narrow(ours.into(), local, remote)
    }

    fn selectors(networks: &[&str]) -> Vec<TrafficSelector> {
        networks.iter().map(|text| text.parse::<IpNetwork>().unwrap().into()).collect()
    }

    fn texts(networks: Vec<IpNetwork>) -> Vec<String> {
        networks.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_wide_offer_is_narrowed_to_our_policy() {
        //= RFC 7296 2.9 SHOULD 3: narrow, not SINGLE_PAIR_REQUIRED
        let ours = child(&["10.1.0.0/16"], &["10.2.0.0/16"]);
        let narrowed = narrow(&ours, &selectors(&["0.0.0.0/0"]), &selectors(&["0.0.0.0/0"])).unwrap();
        assert_eq!(texts(narrowed.local_networks()), ["10.1.0.0/16"]);
        assert_eq!(texts(narrowed.remote_networks()), ["10.2.0.0/16"]);
    }

    #[test]
    fn a_narrow_offer_stays_as_it_is() {
        //= RFC 7296 2.9 MUST 2: the first selectors are kept
        let ours = child(&["0.0.0.0/0", "::/0"], &["0.0.0.0/0", "::/0"]);
        let narrowed = narrow(&ours, &selectors(&["10.1.2.0/24"]), &selectors(&["10.9.0.0/16"])).unwrap();
        assert_eq!(texts(narrowed.local_networks()), ["10.1.2.0/24"]);
        assert_eq!(texts(narrowed.remote_networks()), ["10.9.0.0/16"]);
    }

    #[test]
    fn both_families_survive_where_both_sides_have_them() {
        let ours = child(&["0.0.0.0/0", "::/0"], &["0.0.0.0/0", "::/0"]);
        let all = selectors(&["0.0.0.0/0", "::/0"]);
        let narrowed = narrow(&ours, &all, &all).unwrap();
        assert_eq!((narrowed.local.len(), narrowed.remote.len()), (2, 2));
    }

    #[test]
    fn a_family_that_only_one_side_has_is_dropped() {
        let ours = child(&["10.1.0.0/16", "fd00::/64"], &["10.2.0.0/16"]);
        let all = selectors(&["0.0.0.0/0", "::/0"]);
        let narrowed = narrow(&ours, &all, &all).unwrap();
        assert_eq!(texts(narrowed.local_networks()), ["10.1.0.0/16"]);
        assert!(narrow(&child(&["fd00::/64"], &["10.2.0.0/16"]), &all, &all).is_none());
    }

    #[test]
    fn selectors_apart_are_unacceptable() {
        //= RFC 7296 2.9 REQUIRED 4: TS_UNACCEPTABLE
        let ours = child(&["10.1.0.0/16"], &["10.2.0.0/16"]);
        assert!(narrow(&ours, &selectors(&["10.3.0.0/16"]), &selectors(&["10.2.0.0/16"])).is_none());
        assert!(narrow(&ours, &selectors(&["10.1.0.0/16"]), &[]).is_none());
    }

    #[test]
    fn the_specific_first_selector_of_a_triggering_packet_does_not_narrow_the_rest() {
        //= RFC 7296 2.9 MUST 2: the first selectors are kept
        // RFC 7296 2.9: the first selector describes the packet, with its protocol and ports.
        let ours = child(&["10.1.0.0/16"], &["10.2.0.0/16"]);
        let mut packet = selectors(&["10.1.0.5/32"])[0];
        (packet.protocol, packet.start_port, packet.end_port) = (6, 80, 80);
        let mut local = vec![packet];
        local.extend(selectors(&["10.1.0.0/16"]));
        let narrowed = narrow(&ours, &local, &selectors(&["10.2.0.0/16"])).unwrap();
        assert_eq!(texts(narrowed.local_networks()), ["10.1.0.0/16"]);
        assert!(narrow(&ours, &[packet], &selectors(&["10.2.0.0/16"])).is_none(), "one port only cannot be kept");
    }

    #[test]
    fn an_answer_wider_than_the_question_is_refused() {
        //= RFC 7296 2.9 REQUIRED 6: no more than was asked for
        let ours = child(&["10.1.0.0/16"], &["10.2.0.0/16"]);
        assert!(accept_narrowed((&ours).into(), &selectors(&["10.1.4.0/24"]), &selectors(&["10.2.0.0/16"])).is_some());
        assert!(accept_narrowed((&ours).into(), &selectors(&["10.0.0.0/8"]), &selectors(&["10.2.0.0/16"])).is_none());
        assert!(accept_narrowed((&ours).into(), &selectors(&["10.1.0.0/16"]), &[]).is_none());
    }

    #[test]
    fn a_rekey_keeps_what_is_in_use_however_the_peer_cuts_it() {
        //= RFC 7296 2.9.2 MUST NOT 1: a rekey narrows nothing
        let in_use = child(&["10.1.0.0/24", "10.1.1.0/24"], &["10.2.0.0/16"]);
        let narrowed =
            |local: &[&str], remote: &[&str]| Narrowed { local: selectors(local), remote: selectors(remote) };
        let keeps = |narrowed: Narrowed| narrowed.covers((&in_use).into());
        assert!(keeps(narrowed(&["10.1.0.0/24", "10.1.1.0/24"], &["10.2.0.0/16"])));
        assert!(keeps(narrowed(&["10.1.0.0/23"], &["10.2.0.0/17", "10.2.128.0/17"])));
        assert!(!keeps(narrowed(&["10.1.0.0/24"], &["10.2.0.0/16"])));
        assert!(!keeps(narrowed(&["10.1.0.0/23"], &["10.2.0.0/17"])));
        let answer = accept_narrowed((&in_use).into(), &selectors(&["10.1.0.0/23"]), &selectors(&["10.2.0.0/16"]));
        assert!(answer.is_some(), "one range instead of two networks is no wider");
    }

    #[test]
    fn ranges_that_come_to_too_many_networks_are_refused() {
        let ours = child(&["0.0.0.0/0"], &["0.0.0.0/0"]);
        let odd = |i: u32| {
            let (start, end) = ((i << 24) + 1, (i << 24) + 0x00ff_fffe);
            TrafficSelector::addresses(std::net::Ipv4Addr::from(start).into(), std::net::Ipv4Addr::from(end).into())
                .unwrap()
        };
        let many: Vec<_> = (1..200).map(odd).collect();
        assert!(narrow(&ours, &many, &many).is_none());
    }

    #[test]
    fn a_child_of_one_port_takes_that_port_of_a_wider_offer_and_nothing_narrower() {
        let mut ours = child(&["10.1.0.0/16"], &["10.2.0.0/16"]);
        ours.next_layer = NextLayer { protocol: 6, local_port: Some(22), remote_port: None };
        let narrowed = narrow(&ours, &selectors(&["0.0.0.0/0"]), &selectors(&["0.0.0.0/0"])).unwrap();
        let ports = |s: &TrafficSelector| (s.protocol, s.start_port, s.end_port);
        assert_eq!((ports(&narrowed.local[0]), ports(&narrowed.remote[0])), ((6, 22, 22), (6, 0, u16::MAX)));
        assert!(narrowed.is_whole((&ours).into()));
        let mut one_port = selectors(&["10.2.0.0/16"]);
        (one_port[0].protocol, one_port[0].start_port, one_port[0].end_port) = (6, 4000, 4000);
        assert!(narrow(&ours, &selectors(&["0.0.0.0/0"]), &one_port).is_none());
        let mut udp = selectors(&["10.2.0.0/16"]);
        udp[0].protocol = 17;
        assert!(narrow(&ours, &selectors(&["0.0.0.0/0"]), &udp).is_none());
        assert!(accept_narrowed((&ours).into(), &narrowed.local, &narrowed.remote).is_some());
        let addresses = selectors(&["10.1.0.0/16"]);
        assert!(accept_narrowed((&ours).into(), &addresses, &narrowed.remote).is_none(), "wider than asked for");
    }

    #[test]
    fn one_pair_of_several_networks_is_a_part_and_a_family_of_one_side_is_none() {
        let ours = child(&["10.1.0.0/24", "10.3.0.0/24"], &["10.2.0.0/24"]);
        let all = selectors(&["0.0.0.0/0"]);
        let whole =
            |ours: &ChildConfig, local: &[TrafficSelector]| narrow(ours, local, &all).unwrap().is_whole(ours.into());
        assert!(whole(&ours, &all) && !whole(&ours, &selectors(&["10.1.0.0/24"])));
        assert!(whole(&child(&["10.1.0.0/24", "fd00::/64"], &["10.2.0.0/24"]), &all), "no packet could use the rest");
    }
}

//! Builds a partial view: a view without some of the networks that it adds. A partial view is
//! applied if this host refuses a view because of those networks, and when a view is taken back.
//! Otherwise a host on this node's network could announce the network that the next view adds, and
//! thereby delay the rest of that view, most importantly its revocations.

use edge_types::network::{contains, overlap};
use edge_types::{IpNetwork, NodeView, Peer, SharedPeer};

use super::client::ControllerClient;
use super::view_validation::{ViewRefusal, validate};
use crate::underlay::{added, guarded};

impl ControllerClient {
    /// Returns the part of a refused view that this host allows as the replacement of `current`.
    /// `None` if there is no such part, or if it equals `current`.
    pub(super) fn allowed_part(&self, current: &NodeView, view: &NodeView, refusal: &ViewRefusal) -> Option<NodeView> {
        let mut withheld = Vec::new();
        let mut refusal = refusal.clone();
        // Each iteration withholds at least one more network of these views, so there are no more
        // iterations than networks.
        loop {
            if !withhold(&mut withheld, &refusal, current, view) {
                return None;
            }
            let part = partial_view(view, current, &withheld).ok()?;
            match self.check_against_host(Some(current), &part) {
                Ok(()) => return (part != *current).then_some(part),
                Err(again) => refusal = again,
            }
        }
    }
}

/// Adds to `withheld` the networks of `view` that caused its refusal. Returns `false` if they are
/// all withheld already, or if the view was refused for another reason.
fn withhold(withheld: &mut Vec<IpNetwork>, refusal: &ViewRefusal, current: &NodeView, view: &NodeView) -> bool {
    let mut networks = match refusal {
        ViewRefusal::CutsOff(conflict) => vec![conflict.network()],
        // All added networks are withheld, since a part that adds networks would itself be
        // unconfirmed. If that part were confirmed, the view that was taken back would wrongly
        // count as harmless.
        ViewRefusal::Undecided { .. } | ViewRefusal::TakenBack { .. } => added(current, view),
        _ => return false,
    };
    networks.retain(|network| !withheld.contains(network));
    withheld.extend_from_slice(&networks);
    !networks.is_empty()
}

/// Returns `now` without the networks in `withheld`, as a replacement of `before`. The result keeps
/// the version of `before` and the networks that this node fronts, so that the whole view can
/// replace it later. A range or network that `now` removes is kept only if a withheld network
/// overlaps it, since the withheld network may be its replacement. The revocations of `now` apply:
/// a member that it does not name stays removed, and certificates and authorities that it rejects
/// stay rejected. A segment or network belongs to the node to which `now` gives it, so that a moved
/// segment or network never belongs to two nodes.
///
/// # Errors
/// If the result is not a valid view of this node.
pub(super) fn partial_view(now: &NodeView, before: &NodeView, withheld: &[IpNetwork]) -> Result<NodeView, ViewRefusal> {
    let replaced = |network: &IpNetwork| withheld.iter().any(|withheld| overlap(withheld, network));
    let mut ranges = before.cluster_ranges.clone();
    ranges.retain(|range| now.cluster_ranges.contains(range) || replaced(range));
    ranges.extend(
        now.cluster_ranges.iter().filter(|range| !withheld.contains(range) && !before.cluster_ranges.contains(range)),
    );
    let mut known = guarded(before);
    known.extend(guarded(now).into_iter().filter(|network| !withheld.contains(network)));
    let within = |networks: &[IpNetwork], outer: &[IpNetwork]| -> Vec<IpNetwork> {
        let inside =
            |network: &&IpNetwork| !withheld.contains(network) && outer.iter().any(|outer| contains(outer, network));
        networks.iter().filter(inside).copied().collect()
    };
    let fronts = |peer: &Peer, network: &IpNetwork| peer.networks.iter().any(|fronted| contains(fronted, network));
    let restored = |newer: &SharedPeer| {
        let mut peer = Peer::clone(newer);
        peer.segments = within(&newer.segments, &ranges);
        peer.networks = within(&newer.networks, &known);
        let Some(older) = before.peers.iter().find(|older| older.name == newer.name) else {
            return (!peer.segments.is_empty() || !peer.networks.is_empty()).then(|| peer.into());
        };
        peer.certificates_from = newer.certificates_from.max(older.certificates_from);
        let returns = |network: &&IpNetwork| {
            !peer.networks.contains(network)
                && replaced(network)
                && (fronts(newer, network) || !now.peers.iter().any(|other| fronts(other, network)))
        };
        let returning: Vec<IpNetwork> = older.networks.iter().filter(returns).copied().collect();
        peer.networks.extend(returning);
        Some(SharedPeer::from(peer))
    };
    let merged = NodeView {
        trust_anchors: now.trust_anchors.clone(),
        communities: now.communities.clone(),
        segments: within(&now.segments, &ranges),
        peers: now.peers.iter().filter_map(restored).collect(),
        cluster_ranges: ranges,
        // These say only through which hub a segment is reached.
        unreached_from: now.unreached_from.clone(),
        ..before.clone()
    };
    validate(&now.node, now.role, None, &merged).map(|_| merged)
}

#[cfg(test)]
mod tests {
    use edge_types::Role;

    use super::*;
    use crate::test_view::{edge_peer as peer, empty_view};

    fn view(version: u64, ranges: &[&str]) -> NodeView {
        NodeView { version, cluster_ranges: ranges.iter().map(|text| text.parse().unwrap()).collect(), ..empty_view() }
    }

    fn anchor() -> String {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let mut parameters = rcgen::CertificateParams::new(vec![]).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        parameters.self_signed(&key).unwrap().pem()
    }

    #[test]
    fn a_view_that_is_put_back_brings_back_nothing_that_was_revoked_since() {
        let (old, new) = (anchor(), anchor());
        let mut before = view(4, &["10.77.0.0/16"]);
        before.trust_anchors = vec![old, new.clone()];
        before.peers = vec![
            peer("edge-2", "10.77.0.64/26", 5),
            peer("edge-3", "10.77.0.128/26", 0),
            peer("edge-4", "10.77.0.192/26", 30),
        ]
        .into();
        let mut now = view(7, &["10.77.0.0/16", "10.99.0.0/16"]);
        now.trust_anchors = vec![new];
        // The segment of a removed peer is granted to this node.
        now.segments = vec!["10.77.0.128/26".parse().unwrap()];
        now.peers = vec![
            peer("edge-2", "10.77.0.64/26", 20),
            peer("edge-4", "10.77.0.192/26", 10),
            peer("edge-5", "10.99.0.0/26", 0),
        ]
        .into();
        let back = partial_view(&now, &before, &added(&before, &now)).unwrap();
        let peers: Vec<_> = back.peers.iter().map(|peer| (peer.name.to_string(), peer.certificates_from)).collect();
        assert_eq!(peers, [("edge-2".into(), 20), ("edge-4".into(), 30)]);
        assert_eq!((&back.trust_anchors, &back.segments), (&now.trust_anchors, &now.segments));
        assert_eq!((back.version, &back.cluster_ranges), (4, &before.cluster_ranges));
        // The revocations also apply if the new segments lie outside of the former ranges.
        now.segments = vec!["10.99.1.0/26".parse().unwrap()];
        let back = partial_view(&now, &before, &added(&before, &now)).unwrap();
        assert_eq!((back.peers.len(), &back.segments), (2, &before.segments));
    }

    #[test]
    fn a_segment_that_moved_since_belongs_to_its_new_holder_alone() {
        let anchors = vec![anchor()];
        let moved = ["10.77.0.64/26", "10.77.0.128/26", "10.77.0.192/26"];
        let hub = |name: &str, networks: &[&str]| {
            let networks = networks.iter().map(|text| text.parse().unwrap()).collect();
            SharedPeer::from(Peer {
                role: Role::Hub,
                networks,
                segments: vec![],
                ..Peer::clone(&peer(name, moved[0], 0))
            })
        };
        let before = NodeView {
            trust_anchors: anchors.clone(),
            segments: vec![moved[2].parse().unwrap()],
            peers: vec![
                peer("edge-2", moved[0], 0),
                peer("edge-3", moved[1], 0),
                hub("cloud-1", &["10.244.0.0/16", "10.96.0.0/16", "10.50.0.0/16"]),
                hub("cloud-2", &[]),
            ]
            .into(),
            ..view(4, &["10.77.0.0/16"])
        };
        // Each segment has moved to another node. The hub's network has grown and now contains this
        // node's network.
        let now = NodeView {
            trust_anchors: anchors,
            segments: vec![moved[0].parse().unwrap(), "10.99.0.0/26".parse().unwrap()],
            peers: vec![
                peer("edge-2", moved[1], 0),
                peer("edge-3", moved[2], 0),
                hub("cloud-1", &["10.192.0.0/10"]),
                hub("cloud-2", &["10.96.0.0/16"]),
            ]
            .into(),
            ..view(7, &["10.77.0.0/16", "10.99.0.0/16"])
        };
        let back = partial_view(&now, &before, &added(&before, &now)).unwrap();
        let texts = |networks: &[IpNetwork]| networks.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(texts(&back.segments), [moved[0]]);
        let held: Vec<_> = back.peers.iter().map(|peer| texts(&peer.segments)).collect();
        assert_eq!(held, [vec![moved[1].to_owned()], vec![moved[2].to_owned()], vec![], vec![]]);
        let fronted: Vec<_> = back.peers.iter().map(|peer| texts(&peer.networks)).collect();
        assert_eq!(
            fronted[2..],
            [vec!["10.244.0.0/16".to_owned()], vec!["10.96.0.0/16".to_owned()]],
            "10.50 was removed, and nothing that is withheld replaces it"
        );
        assert_eq!(back.cluster_ranges, before.cluster_ranges);
    }

    #[test]
    fn each_refusal_withholds_more_or_ends_the_search_for_a_part() {
        let (before, now) = (view(4, &["10.77.0.0/16"]), view(7, &["10.77.0.0/16", "10.98.0.0/16", "10.99.0.0/16"]));
        let underlay = crate::underlay::Underlay { addresses: vec![[10, 99, 0, 1].into()], ..Default::default() };
        let conflict = ViewRefusal::CutsOff(underlay.conflict(Some(&before), &now, &[]).unwrap());
        let undecided = ViewRefusal::Undecided { version: 6, added: vec![] };
        let mut withheld = Vec::new();
        let mut rounds = vec![];
        for refusal in [&conflict, &conflict, &undecided, &conflict, &undecided] {
            rounds.push((withhold(&mut withheld, refusal, &before, &now), withheld.len()));
        }
        assert_eq!(rounds, [(true, 1), (false, 1), (true, 2), (false, 2), (false, 2)]);
    }

    #[test]
    fn what_the_newer_view_removes_returns_only_where_a_withheld_network_overlaps_it() {
        let anchors = vec![anchor()];
        let with = |version, ranges: &[&str], networks: &[&str]| {
            let networks = networks.iter().map(|text| text.parse().unwrap()).collect();
            let edge = Peer::clone(&peer("cloud-1", "10.77.0.64/26", 0));
            let hub = Peer { role: Role::Hub, networks, segments: vec![], ..edge };
            NodeView { trust_anchors: anchors.clone(), peers: vec![hub.into()].into(), ..view(version, ranges) }
        };
        let before = with(4, &["10.77.0.0/16", "10.78.0.0/16"], &["10.244.0.0/16", "10.50.0.0/16"]);
        let networks = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNetwork>>();
        for (range, network, ranges, fronted) in [
            ("10.99.0.0/16", "10.96.0.0/12", &["10.77.0.0/16"][..], &["10.244.0.0/16"][..]),
            // The new ranges and networks are wider than those that they replace.
            ("10.78.0.0/15", "10.48.0.0/12", &["10.77.0.0/16", "10.78.0.0/16"], &["10.244.0.0/16", "10.50.0.0/16"]),
        ] {
            let now = with(7, &["10.77.0.0/16", range], &["10.244.0.0/16", network]);
            let part = partial_view(&now, &before, &networks(&[range, network])).unwrap();
            assert_eq!(part.cluster_ranges, networks(ranges), "{range}");
            assert_eq!(part.peers[0].networks, networks(fronted), "{network}");
        }
    }
}

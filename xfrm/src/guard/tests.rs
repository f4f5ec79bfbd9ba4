use std::net::IpAddr;

use super::*;
use crate::policy::Action;

fn config(ranges: &[&str], segments: &[&str], networks: &[&str]) -> GuardConfig {
    let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    GuardConfig {
        cluster_ranges: parse(ranges),
        segments: parse(segments),
        networks: parse(networks),
        bridge_addresses: Vec::new(),
        sources: Vec::new(),
    }
}

/// Returns the action of these policies for a packet, without regard to tunnels.
fn action_for(policies: &[Policy], direction: Direction, source: &str, destination: &str) -> Option<Action> {
    let (source, destination): (IpAddr, IpAddr) = (source.parse().unwrap(), destination.parse().unwrap());
    let mut matching: Vec<_> = policies
        .iter()
        .filter(|policy| policy.direction == direction)
        .filter(|policy| {
            policy.selector.source().contains(source) && policy.selector.destination().contains(destination)
        })
        .collect();
    matching.sort_by_key(|policy| policy.priority);
    matching.first().map(|policy| policy.action)
}

#[test]
fn an_edge_allows_its_own_and_blocks_the_rest_of_the_range() {
    use Direction::{Fwd, In, Out};
    let policies = policies(&config(&["10.77.0.0/16", "fd77::/32"], &["10.77.0.0/26", "fd77::/64"], &[])).unwrap();
    for (direction, source, destination, expected) in [
        (Out, "192.0.2.1", "10.77.0.2", Some(Action::Allow)),
        (Out, "10.77.0.2", "10.77.0.3", Some(Action::Allow)),
        (Out, "10.77.0.2", "10.77.1.2", Some(Action::Block)),
        (Out, "192.0.2.1", "10.77.1.2", Some(Action::Block)),
        (Out, "10.77.0.2", "198.51.100.1", None),
        (In, "10.77.0.2", "192.0.2.1", Some(Action::Allow)),
        (In, "10.77.1.2", "10.77.0.1", Some(Action::Block)),
        (In, "192.0.2.9", "192.0.2.1", None),
        (Fwd, "10.77.0.2", "198.51.100.1", Some(Action::Allow)),
        (Fwd, "10.77.1.2", "198.51.100.1", Some(Action::Block)),
        (Fwd, "10.77.1.2", "10.77.0.2", Some(Action::Block)),
        (Fwd, "198.51.100.1", "10.77.0.2", None),
        (Fwd, "fd77:0:0:1::2", "fd77::2", Some(Action::Block)),
        (In, "fe80::1", "ff02::1", None),
        (Out, "fe80::1", "fe80::2", None),
    ] {
        assert_eq!(
            action_for(&policies, direction, source, destination),
            expected,
            "{direction} {source} {destination}"
        );
    }
}

#[test]
fn without_segments_everything_of_the_range_is_blocked() {
    let policies = policies(&config(&["10.77.0.0/16"], &[], &[])).unwrap();
    assert_eq!(policies.len(), 3);
    assert!(policies.iter().all(|policy| policy.action == Action::Block));
}

#[test]
fn a_hubs_networks_need_allows_only_within_the_range() {
    let inside = policies(&config(&["10.0.0.0/8"], &["10.77.0.0/26"], &["10.42.0.0/16"])).unwrap();
    assert_eq!(action_for(&inside, Direction::Out, "10.77.0.2", "10.42.1.1"), Some(Action::Allow));
    let outside = policies(&config(&["10.77.0.0/16"], &["10.77.0.0/26"], &["10.42.0.0/16"])).unwrap();
    assert_eq!(action_for(&outside, Direction::Out, "10.77.0.2", "10.42.1.1"), None);
    assert_eq!(outside.len(), 6);
}

#[test]
fn a_network_that_would_open_the_whole_range_is_refused() {
    for network in ["10.0.0.0/8", "10.77.0.0/16", "0.0.0.0/0"] {
        let error = policies(&config(&["10.77.0.0/16"], &[], &[network])).unwrap_err();
        assert!(matches!(error, Error::GuardTooWide { .. }), "{error}");
    }
}

#[test]
fn a_node_that_owns_the_whole_range_blocks_nothing() {
    let policies = policies(&config(&["10.77.0.0/16"], &["10.77.0.0/16"], &[])).unwrap();
    assert_eq!(policies.len(), 3);
    assert!(policies.iter().all(|policy| policy.action == Action::Allow));
}

#[test]
fn host_bits_do_not_make_another_selector() {
    assert_eq!(
        policies(&config(&["10.77.3.4/16"], &["10.77.0.9/26"], &[])).unwrap(),
        policies(&config(&["10.77.0.0/16"], &["10.77.0.0/26"], &[])).unwrap()
    );
}

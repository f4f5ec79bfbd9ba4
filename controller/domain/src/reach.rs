//! Whether nodes can go on to reach the controller, and each other, under a configuration.
//!
//! What lies in a cluster range is a pod's: a node's guard lets nobody else be reached there. What
//! lies in a hub's networks goes into the hub's tunnel. So an address that must be reached without
//! a tunnel lies in none of them: a node that was cut off could not be told to correct it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use edge_types::{IpNetwork, Role};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use crate::networks::ClusterNetworks;
use crate::registry::Registry;
use crate::state::State;
use crate::store::Note;

/// Time for one name to be looked up.
const LOOK_UP: Duration = Duration::from_secs(2);
/// Addresses of nodes that are told of, where they are no reason to refuse.
const TOLD: usize = 10;
/// Addresses of one name that are looked at.
const MOST: usize = 64;

/// One of `server_names`, and where it leads.
#[derive(Debug, Clone)]
pub struct Way {
    name: String,
    /// An address, and no name of one.
    literal: bool,
    /// Empty where the name leads nowhere from here.
    addresses: Vec<IpAddr>,
}

/// Looks up under which addresses nodes reach this controller.
pub async fn ways(server_names: &[String]) -> Vec<Way> {
    join_all(server_names.iter().map(|name| way(name))).await
}

async fn way(name: &str) -> Way {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Way { name: name.into(), literal: true, addresses: vec![address.to_canonical()] };
    }
    let found = tokio::time::timeout(LOOK_UP, tokio::net::lookup_host((name, 0))).await;
    let addresses: Vec<IpAddr> = match found {
        Ok(Ok(found)) => found.take(MOST).map(|address| address.ip().to_canonical()).collect(),
        Ok(Err(_)) | Err(_) => Vec::new(),
    };
    if addresses.is_empty() {
        tracing::info!(
            name,
            "one of server_names leads nowhere from here: whether nodes go on to reach it is not checked"
        );
    }
    Way { name: name.into(), literal: false, addresses }
}

/// Ranges and networks that were in force before. What they held already is not refused for the
/// sake of nodes: it may have been so for long.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    ranges: Vec<IpNetwork>,
    networks: Vec<IpNetwork>,
}

impl From<&ClusterNetworks> for Before {
    fn from(networks: &ClusterNetworks) -> Self {
        Self { ranges: networks.ranges.clone(), networks: fronted(networks) }
    }
}

/// What was in force when the controller ran last; `None` where that was never noted.
pub async fn noted(registry: &Registry) -> Option<Before> {
    match registry.note(Note::Reach).await {
        Ok(noted) => serde_json::from_str(&noted?).ok(),
        Err(error) => {
            tracing::warn!(%error, "it is not known which ranges were in force last");
            None
        }
    }
}

/// Notes what is in force now. Where that fails, the next start refuses less.
pub async fn note(registry: &Registry, networks: &ClusterNetworks) {
    let now = Before::from(networks);
    if noted(registry).await.as_ref() == Some(&now) {
        return;
    }
    let text = serde_json::to_string(&now).unwrap_or_default();
    if let Err(error) = registry.set_note(Note::Reach, text).await {
        tracing::warn!(%error, "it is not noted which ranges are in force");
    }
}

/// What is wrong with a configuration in this respect. `listen`: where this controller listens.
/// `before`: what was in force, if that is known.
pub fn check(
    networks: &ClusterNetworks,
    listen: &[SocketAddr],
    before: Option<&Before>,
    ways: &[Way],
    state: &State,
) -> Result<(), String> {
    check_ways(networks, listen, ways)?;
    check_hubs(networks)?;
    check_nodes(networks, before, state)
}

fn range_of<'a>(networks: &'a [IpNetwork], address: &IpAddr) -> Option<&'a IpNetwork> {
    networks.iter().find(|network| network.contains(*address))
}

/// All networks that hubs front.
fn fronted(networks: &ClusterNetworks) -> Vec<IpNetwork> {
    networks.all_fronted().copied().collect()
}

fn check_ways(networks: &ClusterNetworks, listen: &[SocketAddr], ways: &[Way]) -> Result<(), String> {
    let ranges = &networks.ranges;
    for way in ways {
        if let Some((address, range)) = way.addresses.iter().find_map(|at| Some((at, range_of(ranges, at)?))) {
            return Err(format!(
                "segments.cluster_ranges: {range} holds {address}, where nodes reach this controller ({:?} of server_names): they would be cut off; \
                 choose a range that nobody uses",
                way.name
            ));
        }
    }
    let explicit = |at: &&SocketAddr| !at.ip().is_unspecified() && !at.ip().is_loopback();
    for listen in listen.iter().filter(explicit) {
        if let Some(range) = range_of(ranges, &listen.ip().to_canonical()) {
            return Err(format!(
                "segments.cluster_ranges: {range} holds {listen}, where this controller listens: nodes would be cut off; choose a range that nobody uses"
            ));
        }
    }
    let fronted = fronted(networks);
    let inside = |address: &IpAddr| range_of(&fronted, address);
    // A name that leads nowhere from here, as in an outage of DNS, may lead nodes to an address
    // outside.
    let all_known = !ways.is_empty() && ways.iter().all(|way| !way.addresses.is_empty());
    if all_known && ways.iter().flat_map(|way| &way.addresses).all(|address| inside(address).is_some()) {
        let names: Vec<&str> = ways.iter().map(|way| way.name.as_str()).collect();
        return Err(format!(
            "networks: all that server_names lead to ({}) lies in networks that hubs front: who needs a tunnel to reach the controller never gets one; \
             name an address outside of them",
            names.join(", ")
        ));
    }
    for way in ways.iter().filter(|way| way.literal) {
        if let Some((address, network)) = way.addresses.iter().find_map(|at| Some((at, inside(at)?))) {
            tracing::warn!(
                "networks: {network} holds {address} of server_names: only nodes inside reach the controller there"
            );
        }
    }
    Ok(())
}

fn check_hubs(networks: &ClusterNetworks) -> Result<(), String> {
    let fronted = fronted(networks);
    let network_of = |endpoint: &SocketAddr| {
        let address = endpoint.ip().to_canonical();
        range_of(&networks.ranges, &address).or_else(|| range_of(&fronted, &address))
    };
    for (name, hub) in &networks.hubs {
        let inside: Vec<String> = hub
            .endpoints
            .iter()
            .filter_map(|endpoint| network_of(endpoint).map(|network| format!("{endpoint} lies in {network}")))
            .collect();
        if inside.is_empty() {
            continue;
        }
        let why = format!("hub.{name}.endpoints: {}, which is reached through the tunnel alone", inside.join(", "));
        // Others may use an endpoint that lies outside, and nodes of the same site this one.
        if inside.len() == hub.endpoints.len() {
            return Err(format!("{why}: the tunnel would never come about; name an endpoint outside"));
        }
        tracing::warn!("{why}: only nodes inside reach the hub there");
    }
    Ok(())
}

fn check_nodes(networks: &ClusterNetworks, before: Option<&Before>, state: &State) -> Result<(), String> {
    let (ranges, fronted) = (&networks.ranges, fronted(networks));
    let mut told = 0;
    for record in state.nodes() {
        for address in record.reported.iter().chain(&record.observed) {
            let (held, was_held, so) = match range_of(ranges, address) {
                Some(range) => {
                    let held =
                        format!("segments.cluster_ranges: {range} holds {address}, an address of node {}", record.name);
                    let was_held = before.is_some_and(|before| range_of(&before.ranges, address).is_some());
                    (held, was_held, "choose a range that no site uses")
                }
                // Hubs and cloud nodes live where those networks are.
                None => match range_of(&fronted, address).filter(|_| record.role == Role::Edge) {
                    Some(network) => {
                        let held = format!("networks: {network} holds {address}, an address of edge {}", record.name);
                        let was_held = before.is_some_and(|before| range_of(&before.networks, address).is_some());
                        (held, was_held, "front smaller networks")
                    }
                    None => continue,
                },
            };
            let why = format!("{held}: it would be cut off from its own network; {so}, or deregister the node first");
            match before {
                Some(_) if !was_held => return Err(why),
                _ if told < TOLD => {
                    told += 1;
                    tracing::warn!("{why}");
                }
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::networks::HubNetworks;
    use crate::state::{Change, NodeRecord};

    fn all<T: std::str::FromStr<Err: std::fmt::Debug>>(texts: &[&str]) -> Vec<T> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn networks(ranges: &[&str], fronted: &[&str]) -> ClusterNetworks {
        ClusterNetworks { ranges: all(ranges), fronted: all(fronted), ..ClusterNetworks::default() }
    }

    fn with_hub(networks: ClusterNetworks, hub: HubNetworks) -> ClusterNetworks {
        ClusterNetworks { hubs: [("h".parse().unwrap(), hub)].into(), ..networks }
    }

    fn named(addresses: &[&str]) -> Vec<Way> {
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        vec![Way { name: "cloud.example".into(), literal: false, addresses }]
    }

    async fn literal(address: &str) -> Vec<Way> {
        vec![way(address).await]
    }

    fn node(role: Role, addresses: &[&str]) -> State {
        let mut state = State::default();
        let mut record = NodeRecord::new("edge-1".parse().unwrap(), role, 0);
        record.reported = addresses.iter().map(|text| text.parse().unwrap()).collect();
        state.apply(Change::PutNode(record));
        state
    }

    #[tokio::test]
    async fn a_range_that_holds_the_way_to_the_controller_is_refused_in_both_families() {
        let none = State::default();
        let families: [(&[&str], _); 2] =
            [(&["192.168.0.0/16"], "192.168.1.1"), (&["10.77.0.0/16", "fd00::/16"], "fd00::1")];
        for (ranges, at) in families {
            for ways in [literal(at).await, named(&[at]), named(&["203.0.113.1", at])] {
                let why = check(&networks(ranges, &[]), &[], None, &ways, &none).unwrap_err();
                assert!(why.contains("segments.cluster_ranges") && why.contains(at), "{why}");
            }
            check(&networks(ranges, &[]), &[], None, &named(&["203.0.113.1"]), &none).unwrap();
        }
        let why = check(&networks(&["10.77.0.0/16"], &[]), &all(&["10.77.0.5:8443"]), None, &[], &none).unwrap_err();
        assert!(why.contains("10.77.0.5:8443"), "{why}");
        let listen = all(&["0.0.0.0:8443", "127.0.0.1:1"]);
        check(&networks(&["0.0.0.0/1"], &[]), &listen, None, &[], &none).unwrap();
    }

    #[tokio::test]
    async fn networks_leave_at_least_one_way_to_the_controller() {
        let none = State::default();
        let range = ["172.30.0.0/16"];
        let hub = HubNetworks { fronted: Some(all(&["10.0.0.0/8"])), ..HubNetworks::default() };
        for fronting in [networks(&range, &["10.0.0.0/8"]), with_hub(networks(&range, &[]), hub)] {
            let (inside, outside) = (literal("10.1.2.3").await, literal("203.0.113.1").await);
            for ways in [inside.clone(), named(&["10.1.2.3"]), [inside.clone(), named(&["10.1.2.4"])].concat()] {
                let why = check(&fronting, &[], None, &ways, &none).unwrap_err();
                assert!(why.contains("server_names") && why.contains(&ways[0].name), "{why}");
            }
            // As in the manifests: one name for those inside, another one for all the others.
            check(&fronting, &[], None, &named(&["10.1.2.3", "203.0.113.1"]), &none).unwrap();
            for ways in [[inside.clone(), outside], [inside.clone(), named(&["203.0.113.1"])]] {
                check(&fronting, &[], None, &ways.concat(), &none).unwrap();
            }
            // What leads nowhere from here may lead nodes to an address outside, as in an outage of
            // DNS.
            for ways in [[inside, named(&[])], [named(&[]), named(&["10.1.2.3"])]] {
                check(&fronting, &[], None, &ways.concat(), &none).unwrap();
            }
            check(&fronting, &[], None, &[], &none).unwrap();
            check(&fronting, &[], None, &named(&[]), &none).unwrap();
        }
    }

    #[test]
    fn a_hub_has_an_endpoint_outside_of_what_needs_its_tunnel() {
        let checked = |endpoints: &[&str]| {
            let hub = HubNetworks { endpoints: all(endpoints), fronted: None };
            let networks = networks(&["10.77.0.0/16", "fd77::/64"], &["10.244.0.0/16", "fd44::/64"]);
            check(&with_hub(networks, hub), &[], None, &[], &State::default())
        };
        let (v4, v6) = (["10.77.0.1:4500", "10.244.0.1:4500"], ["[fd77::1]:4500", "[fd44::1]:4500"]);
        for inside in [&v4[..1], &v4[1..], &v4, &v6[..1], &v6[1..], &v6] {
            let why = checked(inside).unwrap_err();
            assert!(why.contains("hub.h.endpoints") && inside.iter().all(|endpoint| why.contains(endpoint)), "{why}");
            for outside in ["203.0.113.1:4500", "[2001:db8::1]:4500"] {
                checked(&[inside, &[outside]].concat()).unwrap();
            }
        }
        checked(&[]).unwrap();
    }

    #[test]
    fn what_would_cut_off_a_node_that_is_there_is_refused_by_its_name() {
        let small = networks(&["10.77.0.0/16"], &[]);
        let wide = networks(&["10.77.0.0/16", "192.168.0.0/16"], &[]);
        let fronting = networks(&["10.77.0.0/16"], &["192.168.0.0/16"]);
        let home = node(Role::Edge, &["192.168.1.10", "2001:db8::1"]);
        let before = Before::from(&small);
        for (networks, key) in [(&wide, "segments.cluster_ranges"), (&fronting, "networks")] {
            let why = check(networks, &[], Some(&before), &[], &home).unwrap_err();
            assert!(why.contains(key) && why.contains("192.168.1.10") && why.contains("edge-1"), "{why}");
            // What was so before is no reason, nor where that is not known.
            check(networks, &[], Some(&networks.into()), &[], &home).unwrap();
            check(networks, &[], None, &[], &home).unwrap();
        }
        // Nodes of the cloud live in its networks.
        check(&fronting, &[], Some(&before), &[], &node(Role::Hub, &["192.168.1.10"])).unwrap();
        check(&wide, &[], Some(&before), &[], &node(Role::Hub, &["192.168.1.10"])).unwrap_err();
    }
}

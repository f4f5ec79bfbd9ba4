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

use crate::config::Config;
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
pub async fn ways(config: &Config) -> Vec<Way> {
    join_all(config.server_names.iter().map(|name| way(name))).await
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

impl From<&Config> for Before {
    fn from(config: &Config) -> Self {
        Self { ranges: config.segments.cluster_ranges.clone(), networks: fronted(config) }
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
pub async fn note(registry: &Registry, config: &Config) {
    let now = Before::from(config);
    if noted(registry).await.as_ref() == Some(&now) {
        return;
    }
    let text = serde_json::to_string(&now).unwrap_or_default();
    if let Err(error) = registry.set_note(Note::Reach, text).await {
        tracing::warn!(%error, "it is not noted which ranges are in force");
    }
}

/// What is wrong with a configuration in this respect. `before`: what was in force, if that is
/// known.
pub fn check(config: &Config, before: Option<&Before>, ways: &[Way], state: &State) -> Result<(), String> {
    check_ways(config, ways)?;
    check_hubs(config)?;
    check_nodes(config, before, state)
}

fn range_of<'a>(networks: &'a [IpNetwork], address: &IpAddr) -> Option<&'a IpNetwork> {
    networks.iter().find(|network| network.contains(*address))
}

/// All networks that hubs front.
fn fronted(config: &Config) -> Vec<IpNetwork> {
    config.hub.values().filter_map(|hub| hub.networks.as_ref()).flatten().chain(&config.networks).copied().collect()
}

fn check_ways(config: &Config, ways: &[Way]) -> Result<(), String> {
    let ranges = &config.segments.cluster_ranges;
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
    for listen in config.listen.iter().filter(explicit) {
        if let Some(range) = range_of(ranges, &listen.ip().to_canonical()) {
            return Err(format!(
                "segments.cluster_ranges: {range} holds {listen}, where this controller listens: nodes would be cut off; choose a range that nobody uses"
            ));
        }
    }
    let fronted = fronted(config);
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

fn check_hubs(config: &Config) -> Result<(), String> {
    let fronted = fronted(config);
    let networks = |endpoint: &SocketAddr| {
        let address = endpoint.ip().to_canonical();
        range_of(&config.segments.cluster_ranges, &address).or_else(|| range_of(&fronted, &address))
    };
    for (name, hub) in &config.hub {
        let inside: Vec<String> = hub
            .endpoints
            .iter()
            .filter_map(|endpoint| networks(endpoint).map(|network| format!("{endpoint} lies in {network}")))
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

fn check_nodes(config: &Config, before: Option<&Before>, state: &State) -> Result<(), String> {
    let ranges = &config.segments.cluster_ranges;
    let networks = fronted(config);
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
                None => match range_of(&networks, address).filter(|_| record.role == Role::Edge) {
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
    use crate::state::{Change, NodeRecord};

    fn config(ranges: &str, more: &str) -> Config {
        config_with(ranges, more, "")
    }

    fn config_with(ranges: &str, more: &str, tables: &str) -> Config {
        let text = format!("server_names = [\"x\"]\n{more}\n[segments]\ncluster_ranges = [{ranges}]\n{tables}\n");
        toml::from_str(&text).unwrap()
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
        for (ranges, at) in [("\"192.168.0.0/16\"", "192.168.1.1"), ("\"10.77.0.0/16\", \"fd00::/16\"", "fd00::1")] {
            for ways in [literal(at).await, named(&[at]), named(&["203.0.113.1", at])] {
                let why = check(&config(ranges, ""), None, &ways, &none).unwrap_err();
                assert!(why.contains("segments.cluster_ranges") && why.contains(at), "{why}");
            }
            check(&config(ranges, ""), None, &named(&["203.0.113.1"]), &none).unwrap();
        }
        let listening = config("\"10.77.0.0/16\"", "listen = [\"10.77.0.5:8443\"]");
        let why = check(&listening, None, &[], &none).unwrap_err();
        assert!(why.contains("10.77.0.5:8443"), "{why}");
        check(&config("\"0.0.0.0/1\"", "listen = [\"0.0.0.0:8443\", \"127.0.0.1:1\"]"), None, &[], &none).unwrap();
    }

    #[tokio::test]
    async fn networks_leave_at_least_one_way_to_the_controller() {
        let none = State::default();
        for (more, hub) in [("networks = [\"10.0.0.0/8\"]", ""), ("", "[hub.h]\nnetworks = [\"10.0.0.0/8\"]")] {
            let fronting = config_with("\"172.30.0.0/16\"", more, hub);
            let (inside, outside) = (literal("10.1.2.3").await, literal("203.0.113.1").await);
            for ways in [inside.clone(), named(&["10.1.2.3"]), [inside.clone(), named(&["10.1.2.4"])].concat()] {
                let why = check(&fronting, None, &ways, &none).unwrap_err();
                assert!(why.contains("server_names") && why.contains(&ways[0].name), "{why}");
            }
            // As in the manifests: one name for those inside, another one for all the others.
            check(&fronting, None, &named(&["10.1.2.3", "203.0.113.1"]), &none).unwrap();
            for ways in [[inside.clone(), outside], [inside.clone(), named(&["203.0.113.1"])]] {
                check(&fronting, None, &ways.concat(), &none).unwrap();
            }
            // What leads nowhere from here may lead nodes to an address outside, as in an outage of
            // DNS.
            for ways in [[inside, named(&[])], [named(&[]), named(&["10.1.2.3"])]] {
                check(&fronting, None, &ways.concat(), &none).unwrap();
            }
            check(&fronting, None, &[], &none).unwrap();
            check(&fronting, None, &named(&[]), &none).unwrap();
        }
    }

    #[test]
    fn a_hub_has_an_endpoint_outside_of_what_needs_its_tunnel() {
        let checked = |endpoints: &[&str]| {
            let hub = format!("[hub.h]\nendpoints = {endpoints:?}");
            let config =
                config_with("\"10.77.0.0/16\", \"fd77::/64\"", "networks = [\"10.244.0.0/16\", \"fd44::/64\"]", &hub);
            check(&config, None, &[], &State::default())
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
        let (small, wide) = (config("\"10.77.0.0/16\"", ""), config("\"10.77.0.0/16\", \"192.168.0.0/16\"", ""));
        let fronting = config("\"10.77.0.0/16\"", "networks = [\"192.168.0.0/16\"]");
        let home = node(Role::Edge, &["192.168.1.10", "2001:db8::1"]);
        let before = Before::from(&small);
        for (config, key) in [(&wide, "segments.cluster_ranges"), (&fronting, "networks")] {
            let why = check(config, Some(&before), &[], &home).unwrap_err();
            assert!(why.contains(key) && why.contains("192.168.1.10") && why.contains("edge-1"), "{why}");
            // What was so before is no reason, nor where that is not known.
            check(config, Some(&config.into()), &[], &home).unwrap();
            check(config, None, &[], &home).unwrap();
        }
        // Nodes of the cloud live in its networks.
        check(&fronting, Some(&before), &[], &node(Role::Hub, &["192.168.1.10"])).unwrap();
        check(&wide, Some(&before), &[], &node(Role::Hub, &["192.168.1.10"])).unwrap_err();
    }
}

//! Checks that nodes can still reach the controller, and each other, under a configuration.
//!
//! An address in a cluster range belongs to a pod: the guard of a node drops packets to that
//! address unless a tunnel carries them. Packets to a hub's networks go through the tunnel to the
//! hub. So an address that nodes must reach without a tunnel must lie neither in a cluster range
//! nor in a hub's network. A node that is cut off could not get the corrected configuration.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use edge_types::{IpNetwork, Role};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use crate::networks::ClusterNetworks;
use crate::registry::Registry;
use crate::state::State;
use crate::store::Note;

/// Time limit for resolving one name.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum number of node addresses that are logged if they are no reason to refuse the
/// configuration.
const MOST_LOGGED: usize = 10;
/// Maximum number of addresses that are checked for one name.
const MOST_ADDRESSES: usize = 64;

/// One of `server_names` with its addresses.
#[derive(Debug, Clone)]
pub struct ServerName {
    name: String,
    /// Whether the name is itself an address.
    literal: bool,
    /// The name's addresses; empty if the name cannot be resolved on this machine.
    addresses: Vec<IpAddr>,
}

/// Resolves the names by which nodes reach this controller.
pub async fn resolve(server_names: &[String]) -> Vec<ServerName> {
    join_all(server_names.iter().map(|name| resolve_name(name))).await
}

async fn resolve_name(name: &str) -> ServerName {
    if let Ok(address) = name.parse::<IpAddr>() {
        return ServerName { name: name.into(), literal: true, addresses: vec![address.to_canonical()] };
    }
    let found = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((name, 0))).await;
    let addresses: Vec<IpAddr> = match found {
        Ok(Ok(found)) => found.take(MOST_ADDRESSES).map(|address| address.ip().to_canonical()).collect(),
        Ok(Err(_)) | Err(_) => Vec::new(),
    };
    if addresses.is_empty() {
        tracing::info!(
            name,
            "one of server_names cannot be resolved here: it is not checked whether nodes can still reach it"
        );
    }
    ServerName { name: name.into(), literal: false, addresses }
}

/// Cluster ranges and networks of the previous configuration. A node address that already lay in
/// one of them is no reason to refuse the configuration, because the node may have had the address
/// for a long time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviousNetworks {
    ranges: Vec<IpNetwork>,
    networks: Vec<IpNetwork>,
}

impl From<&ClusterNetworks> for PreviousNetworks {
    fn from(networks: &ClusterNetworks) -> Self {
        Self { ranges: networks.ranges.clone(), networks: fronted(networks) }
    }
}

/// Reads the ranges and networks from the last run; `None` if they were never stored or cannot be
/// read.
pub async fn load_previous(registry: &Registry) -> Option<PreviousNetworks> {
    match registry.note(Note::Reach).await {
        Ok(noted) => serde_json::from_str(&noted?).ok(),
        Err(error) => {
            tracing::warn!(%error, "the ranges that were in force before cannot be read");
            None
        }
    }
}

/// Stores the ranges and networks in use. If that fails, the next start refuses fewer
/// configurations.
pub async fn store_current(registry: &Registry, networks: &ClusterNetworks) {
    let now = PreviousNetworks::from(networks);
    if load_previous(registry).await.as_ref() == Some(&now) {
        return;
    }
    let text = serde_json::to_string(&now).unwrap_or_default();
    if let Err(error) = registry.set_note(Note::Reach, text).await {
        tracing::warn!(%error, "the ranges in force cannot be stored");
    }
}

/// Checks a configuration. `listen`: the addresses on which this controller listens. `before`: the
/// previous configuration, if it is known. The error names the configuration's key, the addresses
/// and the remedy.
pub fn check(
    networks: &ClusterNetworks,
    listen: &[SocketAddr],
    before: Option<&PreviousNetworks>,
    names: &[ServerName],
    state: &State,
) -> Result<(), String> {
    check_names(networks, listen, names)?;
    check_hubs(networks)?;
    check_nodes(networks, before, state)
}

fn range_of<'a>(networks: &'a [IpNetwork], address: &IpAddr) -> Option<&'a IpNetwork> {
    networks.iter().find(|network| network.contains(*address))
}

/// Returns all networks that hubs front.
fn fronted(networks: &ClusterNetworks) -> Vec<IpNetwork> {
    networks.all_fronted().copied().collect()
}

fn check_names(networks: &ClusterNetworks, listen: &[SocketAddr], names: &[ServerName]) -> Result<(), String> {
    let ranges = &networks.ranges;
    for name in names {
        if let Some((address, range)) = name.addresses.iter().find_map(|at| Some((at, range_of(ranges, at)?))) {
            return Err(format!(
                "segments.cluster_ranges: {range} holds {address}, where nodes reach this controller ({:?} of server_names): they would be cut off; \
                 choose a range that is not in use",
                name.name
            ));
        }
    }
    let explicit = |at: &&SocketAddr| !at.ip().is_unspecified() && !at.ip().is_loopback();
    for listen in listen.iter().filter(explicit) {
        if let Some(range) = range_of(ranges, &listen.ip().to_canonical()) {
            return Err(format!(
                "segments.cluster_ranges: {range} holds {listen}, where this controller listens: nodes would be cut off; choose a range that is not in use"
            ));
        }
    }
    let fronted = fronted(networks);
    let inside = |address: &IpAddr| range_of(&fronted, address);
    // A name that cannot be resolved on this machine, for example in an outage of DNS, may resolve
    // to an address outside the network for nodes.
    let all_known = !names.is_empty() && names.iter().all(|name| !name.addresses.is_empty());
    if all_known && names.iter().flat_map(|name| &name.addresses).all(|address| inside(address).is_some()) {
        let names: Vec<&str> = names.iter().map(|name| name.name.as_str()).collect();
        return Err(format!(
            "networks: all addresses of server_names ({}) lie in networks that hubs front: a node that needs a tunnel to reach the controller never gets one; \
             name an address outside of them",
            names.join(", ")
        ));
    }
    for name in names.iter().filter(|name| name.literal) {
        if let Some((address, network)) = name.addresses.iter().find_map(|at| Some((at, inside(at)?))) {
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
        let why = format!("hub.{name}.endpoints: {}, which is reached only through the tunnel", inside.join(", "));
        // Other nodes may use an address outside the network, and nodes at the same site may use
        // this one.
        if inside.len() == hub.endpoints.len() {
            return Err(format!("{why}: the tunnel could never be set up; name an endpoint outside"));
        }
        tracing::warn!("{why}: only nodes inside reach the hub there");
    }
    Ok(())
}

fn check_nodes(networks: &ClusterNetworks, before: Option<&PreviousNetworks>, state: &State) -> Result<(), String> {
    let (ranges, fronted) = (&networks.ranges, fronted(networks));
    let mut logged = 0;
    for record in state.nodes() {
        for address in record.reported.iter().chain(&record.observed) {
            let (held, was_held, remedy) = match range_of(ranges, address) {
                Some(range) => {
                    let held =
                        format!("segments.cluster_ranges: {range} holds {address}, an address of node {}", record.name);
                    let was_held = before.is_some_and(|before| range_of(&before.ranges, address).is_some());
                    (held, was_held, "choose a range that no site uses")
                }
                // Hubs and cloud nodes may have addresses in the networks that hubs front.
                None => match range_of(&fronted, address).filter(|_| record.role == Role::Edge) {
                    Some(network) => {
                        let held = format!("networks: {network} holds {address}, an address of edge {}", record.name);
                        let was_held = before.is_some_and(|before| range_of(&before.networks, address).is_some());
                        (held, was_held, "front smaller networks")
                    }
                    None => continue,
                },
            };
            let why =
                format!("{held}: it would be cut off from its own network; {remedy}, or deregister the node first");
            match before {
                Some(_) if !was_held => return Err(why),
                _ if logged < MOST_LOGGED => {
                    logged += 1;
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

    fn named(addresses: &[&str]) -> Vec<ServerName> {
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        vec![ServerName { name: "cloud.example".into(), literal: false, addresses }]
    }

    async fn literal(address: &str) -> Vec<ServerName> {
        vec![resolve_name(address).await]
    }

    fn node(role: Role, addresses: &[&str]) -> State {
        let mut state = State::default();
        let mut record = NodeRecord::new("edge-1".parse().unwrap(), role, 0);
        record.reported = addresses.iter().map(|text| text.parse().unwrap()).collect();
        state.apply(Change::PutNode(record));
        state
    }

    #[tokio::test]
    async fn a_range_that_holds_an_address_of_the_controller_is_refused_in_both_families() {
        let none = State::default();
        let families: [(&[&str], _); 2] =
            [(&["192.168.0.0/16"], "192.168.1.1"), (&["10.77.0.0/16", "fd00::/16"], "fd00::1")];
        for (ranges, at) in families {
            for names in [literal(at).await, named(&[at]), named(&["203.0.113.1", at])] {
                let why = check(&networks(ranges, &[]), &[], None, &names, &none).unwrap_err();
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
    async fn networks_leave_at_least_one_address_of_the_controller_outside() {
        let none = State::default();
        let range = ["172.30.0.0/16"];
        let hub = HubNetworks { fronted: Some(all(&["10.0.0.0/8"])), ..HubNetworks::default() };
        for fronting in [networks(&range, &["10.0.0.0/8"]), with_hub(networks(&range, &[]), hub)] {
            let (inside, outside) = (literal("10.1.2.3").await, literal("203.0.113.1").await);
            for names in [inside.clone(), named(&["10.1.2.3"]), [inside.clone(), named(&["10.1.2.4"])].concat()] {
                let why = check(&fronting, &[], None, &names, &none).unwrap_err();
                assert!(why.contains("server_names") && why.contains(&names[0].name), "{why}");
            }
            // The manifests also use one name for nodes inside the cluster and another name for all
            // other nodes.
            check(&fronting, &[], None, &named(&["10.1.2.3", "203.0.113.1"]), &none).unwrap();
            for names in [[inside.clone(), outside], [inside.clone(), named(&["203.0.113.1"])]] {
                check(&fronting, &[], None, &names.concat(), &none).unwrap();
            }
            // A name that cannot be resolved on this machine may resolve to an address outside the
            // network for nodes.
            for names in [[inside, named(&[])], [named(&[]), named(&["10.1.2.3"])]] {
                check(&fronting, &[], None, &names.concat(), &none).unwrap();
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
    fn a_network_that_would_cut_off_a_registered_node_is_refused_with_its_name() {
        let small = networks(&["10.77.0.0/16"], &[]);
        let wide = networks(&["10.77.0.0/16", "192.168.0.0/16"], &[]);
        let fronting = networks(&["10.77.0.0/16"], &["192.168.0.0/16"]);
        let home = node(Role::Edge, &["192.168.1.10", "2001:db8::1"]);
        let before = PreviousNetworks::from(&small);
        for (networks, key) in [(&wide, "segments.cluster_ranges"), (&fronting, "networks")] {
            let why = check(networks, &[], Some(&before), &[], &home).unwrap_err();
            assert!(why.contains(key) && why.contains("192.168.1.10") && why.contains("edge-1"), "{why}");
            // An address that already lay in a network is no reason to refuse. If the previous
            // configuration is unknown, no address is a reason either.
            check(networks, &[], Some(&networks.into()), &[], &home).unwrap();
            check(networks, &[], None, &[], &home).unwrap();
        }
        // Hubs and cloud nodes may have addresses in the cloud's networks.
        check(&fronting, &[], Some(&before), &[], &node(Role::Hub, &["192.168.1.10"])).unwrap();
        check(&wide, &[], Some(&before), &[], &node(Role::Hub, &["192.168.1.10"])).unwrap_err();
    }
}

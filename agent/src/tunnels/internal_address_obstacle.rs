//! Which internal addresses this node takes from none of its peers (RFC 7296 3.15). With an address
//! that belongs to somebody else, the peer would get the traffic of that host.

use std::net::IpAddr;

use edge_ike::PeerName;
use ipnetwork::IpNetwork;

use crate::desired::{Desired, DesiredTunnel};

/// Returns why this node must not have an address that a peer gives it. `on_link` are the networks
/// to which this machine's interfaces are connected.
pub(super) fn obstacle(peer: &PeerName, address: IpAddr, desired: &Desired, on_link: &[IpNetwork]) -> Option<String> {
    let within = |networks: &[IpNetwork]| networks.iter().find(|network| network.contains(address)).copied();
    let guard = &desired.guard;
    let of_cluster = [
        &guard.cluster_ranges,
        &guard.segments,
        &guard.networks,
        // Those of peers that are inside of the ranges need not be searched.
        desired.remote_networks.outside_of_ranges(),
        &desired.former_networks,
        &desired.hub_routes,
        &desired.cloud_networks,
    ];
    if let Some(network) = of_cluster.into_iter().find_map(within) {
        return Some(format!("it is within {network}, a network of the cluster"));
    }
    if let Some(network) = within(on_link) {
        return Some(format!("it is within {network}, to which an interface of this machine is connected"));
    }
    // Two gateways may lead to the same network, and its addresses are then those of both.
    let own: Vec<IpNetwork> =
        desired.tunnels.get(peer).into_iter().flat_map(|tunnel| remote_networks(tunnel)).collect();
    let others = desired.tunnels.iter().filter(|(name, _)| *name != peer);
    for (name, tunnel) in others {
        if tunnel.peer.remotes.iter().any(|remote| remote.ip() == address) {
            return Some(format!("peer {name} has this address"));
        }
        let theirs = remote_networks(tunnel).find(|network| network.contains(address) && !own.contains(network));
        if let Some(network) = theirs {
            return Some(format!("it is within {network}, a network behind peer {name}"));
        }
    }
    None
}

/// Returns the networks behind a peer, without those that contain every address.
fn remote_networks(tunnel: &DesiredTunnel) -> impl Iterator<Item = IpNetwork> {
    let all = tunnel.peer.children().flat_map(|child| &child.remote).copied();
    all.filter(|network| network.prefix() > 0)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;
    use crate::crl_files::CrlFiles;

    /// Returns the obstacle to each of these addresses from the peer `office`.
    fn obstacle_to(address: &str) -> Option<String> {
        let peer = |name: &str, remote: &str, networks: &str, more: &str| {
            format!(
                "[[peer]]\nname = \"{name}\"\nremote = \"{remote}\"\nlocal_id = \"a\"\nremote_id = \"{name}\"\n\
                 psk = \"a secret of this test\"\nremote_subnets = [{networks}]\n{more}\n"
            )
        };
        let (asks, local) = ("request_address = true", "local_subnets = [\"10.1.0.0/24\"]");
        let text = [
            peer("office", "192.0.2.1", "\"10.20.0.0/16\"", asks),
            peer("office-2", "192.0.2.2", "\"10.20.0.0/16\"", asks),
            peer("branch", "203.0.113.9", "\"10.30.0.0/16\"", local),
            peer("all", "203.0.113.10", "\"0.0.0.0/0\"", local),
        ];
        let config = Config::parse(&text.concat(), Path::new("agent.toml")).unwrap();
        let peers: Vec<_> =
            config.peers.iter().map(|peer| peer.resolve(&config, &mut CrlFiles::default()).unwrap()).collect();
        let mut desired = Desired::compute(&config, &peers, None);
        desired.guard.cluster_ranges = vec!["10.77.0.0/16".parse().unwrap()];
        desired.guard.segments = vec!["fd77::/64".parse().unwrap()];
        let on_link = ["192.168.1.0/24".parse().unwrap()];
        obstacle(&PeerName::new("office"), address.parse().unwrap(), &desired, &on_link)
    }

    #[test]
    fn an_address_that_is_somebodys_is_taken_from_no_peer() {
        for (address, words) in [
            ("10.77.3.4", "10.77.0.0/16, a network of the cluster"),
            ("fd77::9", "fd77::/64, a network of the cluster"),
            ("192.168.1.77", "192.168.1.0/24, to which an interface"),
            ("203.0.113.9", "peer branch has this address"),
            ("10.30.5.6", "10.30.0.0/16, a network behind peer branch"),
        ] {
            let found = obstacle_to(address);
            assert!(found.as_ref().is_some_and(|found| found.contains(words)), "{address}: {found:?}");
        }
        for address in ["10.9.0.1", "10.20.9.1", "fd09::1"] {
            assert_eq!(obstacle_to(address), None, "{address}");
        }
    }
}

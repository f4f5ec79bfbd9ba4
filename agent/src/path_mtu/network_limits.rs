//! The limits of paths, by the networks to which the paths lead.

use std::collections::BTreeMap;

use edge_ike::PeerName;
use ipnetwork::IpNetwork;

use super::encapsulation::{IPV4_MIN_MTU, IPV6_MIN_MTU};

/// The limits of all paths that have one. Several peers may lead to one network.
#[derive(Debug, Default)]
pub struct NetworkLimits {
    networks: BTreeMap<IpNetwork, BTreeMap<PeerName, u32>>,
    peers: BTreeMap<PeerName, Vec<IpNetwork>>,
}

impl NetworkLimits {
    /// Sets the limit of the path to a peer, in bytes, and the peer's networks. Returns the
    /// networks that this concerns, and those that the peer had before.
    pub fn set(&mut self, peer: &PeerName, limit: u32, networks: &[IpNetwork]) -> Vec<IpNetwork> {
        let mut concerned = self.remove(peer);
        for network in networks {
            let mtu = limit.max(smallest_mtu(network));
            self.networks.entry(*network).or_default().insert(peer.clone(), mtu);
        }
        if !networks.is_empty() {
            self.peers.insert(peer.clone(), networks.to_vec());
        }
        concerned.extend_from_slice(networks);
        concerned
    }

    /// Removes the limit of the path to a peer. Returns the networks that this concerns.
    pub fn remove(&mut self, peer: &PeerName) -> Vec<IpNetwork> {
        let networks = self.peers.remove(peer).unwrap_or_default();
        for network in &networks {
            if let Some(limits) = self.networks.get_mut(network) {
                limits.remove(peer);
                if limits.is_empty() {
                    self.networks.remove(network);
                }
            }
        }
        networks
    }

    /// Returns whether the path to a peer has a limit.
    #[must_use]
    pub fn contains(&self, peer: &PeerName) -> bool {
        self.peers.contains_key(peer)
    }

    /// Returns the MTU of a route to this network, in bytes; `None` without a limit.
    #[must_use]
    pub fn mtu(&self, network: &IpNetwork) -> Option<u32> {
        self.networks.get(network)?.values().min().copied()
    }
}

/// The smallest MTU that a route may get, bytes.
fn smallest_mtu(network: &IpNetwork) -> u32 {
    if network.is_ipv4() { IPV4_MIN_MTU } else { IPV6_MIN_MTU }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(texts: &[&str]) -> Vec<IpNetwork> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_network_behind_several_peers_has_the_smallest_of_their_limits() {
        let mut limits = NetworkLimits::default();
        let [a, b] = ["a", "b"].map(PeerName::new);
        let [shared, own] = [networks(&["10.244.0.0/16"]), networks(&["10.244.0.0/16", "10.77.1.0/26"])];
        assert_eq!(limits.set(&a, 1366, &shared), shared);
        assert_eq!(limits.set(&b, 1300, &own), own);
        assert_eq!((limits.mtu(&own[0]), limits.mtu(&own[1])), (Some(1300), Some(1300)));
        assert_eq!(limits.remove(&b), own);
        assert_eq!((limits.mtu(&own[0]), limits.mtu(&own[1])), (Some(1366), None));
        assert_eq!(limits.remove(&b), []);
        assert!(limits.contains(&a) && !limits.contains(&b));
        limits.remove(&a);
        assert!(limits.networks.is_empty() && limits.peers.is_empty());
    }

    #[test]
    fn networks_that_a_peer_no_longer_has_lose_its_limit() {
        let mut limits = NetworkLimits::default();
        let a = PeerName::new("a");
        let (before, after) = (networks(&["10.77.1.0/26", "10.77.2.0/26"]), networks(&["10.77.2.0/26"]));
        limits.set(&a, 1366, &before);
        assert_eq!(limits.set(&a, 1366, &after), [before, after.clone()].concat());
        assert_eq!((limits.networks.len(), limits.mtu(&after[0])), (1, Some(1366)));
        limits.set(&a, 1366, &[]);
        assert!(limits.networks.is_empty() && !limits.contains(&a));
    }

    #[test]
    fn no_route_gets_less_than_every_host_accepts() {
        let mut limits = NetworkLimits::default();
        let both = networks(&["10.77.1.0/26", "fd77::/112"]);
        limits.set(&PeerName::new("a"), 10, &both);
        assert_eq!(both.iter().map(|network| limits.mtu(network)).collect::<Vec<_>>(), [Some(576), Some(1280)]);
    }
}

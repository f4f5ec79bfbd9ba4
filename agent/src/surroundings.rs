//! Where this node stands: its own addresses, gateways and name servers, and the way to the controller. A view that would take them away is refused
//! before anything of it is installed, for nobody could correct it afterwards. Pure, but for [`resolvers_here`].

use std::fmt;
use std::net::IpAddr;

use edge_types::{NodeView, Role};
use ipnetwork::IpNetwork;

/// Addresses that this node needs outside of every tunnel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Its own, of uplinks; never those of our bridge or of pods.
    pub addresses: Vec<IpAddr>,
    /// Next hops of its default routes.
    pub gateways: Vec<IpAddr>,
    /// Its name servers, if they are the network's and not the cluster's own.
    pub resolvers: Vec<IpAddr>,
    /// Interfaces of its default routes, the first of each family.
    pub uplink_v4: Option<String>,
    /// Likewise for IPv6.
    pub uplink_v6: Option<String>,
}

/// What a network of the view would take away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    network: IpNetwork,
    of: String,
    address: IpAddr,
    what: &'static str,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { network, of, address, what } = self;
        write!(
            f,
            "{of} {network} holds {what} {address}: it would cut this node off, since nothing to or from {network} travels outside of a tunnel; \
             correct the ranges or networks at the controller, or renumber this node's network"
        )
    }
}

impl Surroundings {
    /// The interface by which packets of this family leave.
    pub fn uplink(&self, ipv4: bool) -> Option<&str> {
        if ipv4 { self.uplink_v4.as_deref() } else { self.uplink_v6.as_deref() }
    }

    /// The first thing that the view would take away. `controllers` are the addresses by which the controller is reached.
    pub fn conflict(&self, view: &NodeView, controllers: &[IpAddr]) -> Option<Conflict> {
        // What a hub fronts is around it, and is let through.
        let here = |address: &IpAddr| view.networks.iter().any(|network| network.contains(*address));
        let needed = self.needed(controllers);
        let in_ranges = view.cluster_ranges.iter().find_map(|network| {
            let (address, what) = needed.iter().find(|(address, _)| network.contains(*address) && !here(address))?;
            Some(Conflict { network: *network, of: "cluster range".into(), address: *address, what })
        });
        // Our bridge takes an address of each of our segments.
        let in_segments = || {
            view.segments.iter().find_map(|network| {
                let (address, what) = needed.iter().find(|(address, _)| network.contains(*address))?;
                Some(Conflict { network: *network, of: "segment".into(), address: *address, what })
            })
        };
        in_ranges.or_else(in_segments).or_else(|| self.conflict_with_peers(view, &needed))
    }

    fn conflict_with_peers(&self, view: &NodeView, needed: &[(IpAddr, &'static str)]) -> Option<Conflict> {
        if view.role == Role::Cloud {
            // It reaches the cloud's networks without a tunnel.
            return None;
        }
        view.peers.iter().find_map(|peer| {
            peer.networks.iter().filter(|network| !view.local_networks().any(|own| overlap(&own, network))).find_map(
                |network| {
                    let (address, what) = needed.iter().find(|(address, _)| network.contains(*address))?;
                    let of = format!("the network of {}", peer.name);
                    Some(Conflict { network: *network, of, address: *address, what })
                },
            )
        })
    }

    fn needed(&self, controllers: &[IpAddr]) -> Vec<(IpAddr, &'static str)> {
        let named = |addresses: &[IpAddr], what: &'static str| {
            addresses.iter().map(|address| (address.to_canonical(), what)).collect::<Vec<_>>()
        };
        let mut needed = named(&self.addresses, "this node's own address");
        needed.extend(named(&self.gateways, "its gateway"));
        needed.extend(named(&self.resolvers, "its name server"));
        needed.extend(named(controllers, "the controller's address"));
        needed.retain(|(address, _)| !address.is_loopback() && !address.is_unspecified());
        needed
    }
}

/// Name servers of this host: where it asks itself (systemd-resolved, dnsmasq), those that this in turn asks.
pub fn resolvers_here() -> Vec<IpAddr> {
    let read = |path: &str| std::fs::read_to_string(path).map_or(vec![], |text| resolvers(&text));
    let direct = read("/etc/resolv.conf");
    if direct.is_empty() { read("/run/systemd/resolve/resolv.conf") } else { direct }
}

/// Name servers of a `resolv.conf` (resolv.conf(5)). None where the file is Kubernetes' own for pods (its search list has `svc.DOMAIN`): the cluster's
/// DNS is meant to be reached through the tunnel.
pub fn resolvers(resolv_conf: &str) -> Vec<IpAddr> {
    let lines = || resolv_conf.lines().map(|line| line.split_whitespace());
    let of_the_cluster = lines().any(|mut words| {
        matches!(words.next(), Some("search" | "domain")) && words.any(|domain| domain.starts_with("svc."))
    });
    if of_the_cluster {
        return vec![];
    }
    let server = |mut words: std::str::SplitWhitespace<'_>| {
        let address = words.next().filter(|word| *word == "nameserver").and(words.next())?;
        address.split('%').next()?.parse().ok()
    };
    lines().filter_map(server).filter(|address: &IpAddr| !address.is_loopback()).collect()
}

/// Networks that a view makes unreachable without a tunnel, each once, in order.
pub fn guarded(view: &NodeView) -> Vec<IpNetwork> {
    let mut networks: Vec<IpNetwork> = view.cluster_ranges.clone();
    if view.role != Role::Cloud {
        networks.extend(view.peers.iter().flat_map(|peer| &peer.networks));
    }
    networks.sort_unstable();
    networks.dedup();
    networks
}

/// What of `new` is not within anything of `old`: what it could cut this node off with.
pub fn added(old: &NodeView, new: &NodeView) -> Vec<IpNetwork> {
    let old = guarded(old);
    let encloses = |outer: &IpNetwork, inner: &IpNetwork| {
        outer.is_ipv4() == inner.is_ipv4() && outer.prefix() <= inner.prefix() && outer.contains(inner.network())
    };
    guarded(new).into_iter().filter(|network| !old.iter().any(|known| encloses(known, network))).collect()
}

fn overlap(one: &IpNetwork, other: &IpNetwork) -> bool {
    one.is_ipv4() == other.is_ipv4() && (one.contains(other.network()) || other.contains(one.network()))
}

#[cfg(test)]
mod tests {
    use edge_types::Peer;

    use super::*;

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn networks(texts: &[&str]) -> Vec<IpNetwork> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn view(role: Role, ranges: &[&str], hub: &[&str]) -> NodeView {
        NodeView {
            version: 1,
            node: "edge-1".parse().unwrap(),
            role,
            communities: Default::default(),
            cluster_ranges: networks(ranges),
            segments: vec![],
            networks: vec![],
            peers: vec![Peer {
                name: "cloud-1".parse().unwrap(),
                role: Role::Hub,
                endpoints: vec![],
                segments: vec![],
                networks: networks(hub),
                certificates_from: 0,
            }],
            trust_anchors: vec![],
            segment_prefix: Default::default(),
        }
    }

    fn home() -> Surroundings {
        Surroundings {
            addresses: addresses(&["192.168.1.10", "2001:db8:1::10"]),
            gateways: addresses(&["192.168.1.1", "fe80::1"]),
            resolvers: addresses(&["10.0.0.53"]),
            uplink_v4: Some("eth0".into()),
            uplink_v6: Some("eth0".into()),
        }
    }

    #[test]
    fn a_view_that_holds_what_this_node_needs_is_named_with_what_it_is() {
        let controllers = addresses(&["203.0.113.1", "2001:db8:ffff::1"]);
        let ours: &[&str] = &["10.77.0.0/16", "fd77::/48"];
        for (ranges, hub, words) in [
            (ours, &[][..], None),
            (ours, &["10.244.0.0/16", "10.96.0.0/12"][..], None),
            (&["192.168.0.0/16"], &[], Some("cluster range 192.168.0.0/16 holds this node's own address 192.168.1.10")),
            (&["2001:db8:1::/48"], &[], Some("this node's own address 2001:db8:1::10")),
            (&["192.168.1.0/29"], &[], Some("its gateway 192.168.1.1")),
            (&["10.0.0.0/16"], &[], Some("its name server 10.0.0.53")),
            (&["203.0.113.0/24"], &[], Some("the controller's address 203.0.113.1")),
            (&["2001:db8:ffff::/64"], &[], Some("the controller's address 2001:db8:ffff::1")),
            (ours, &["192.168.0.0/16"], Some("the network of cloud-1 192.168.0.0/16 holds this node's own address")),
            (ours, &["192.168.1.0/29"], Some("its gateway")),
            (ours, &["10.0.0.0/8"], Some("its name server")),
            (ours, &["203.0.113.0/28"], Some("the controller's address")),
            (ours, &["0.0.0.0/0"], Some("this node's own address")),
        ] {
            let found = home().conflict(&view(Role::Edge, ranges, hub), &controllers).map(|found| found.to_string());
            match (words, &found) {
                (None, None) => {}
                (Some(words), Some(found)) if found.contains(words) => {}
                _ => panic!("{ranges:?} {hub:?}: {found:?}, expected {words:?}"),
            }
        }
        let mut own = view(Role::Edge, &["10.77.0.0/16"], &[]);
        own.segments = networks(&["192.168.1.0/26"]);
        assert!(home().conflict(&own, &[]).unwrap().to_string().starts_with("segment 192.168.1.0/26"));
    }

    #[test]
    fn what_a_hub_fronts_is_around_it_and_a_cloud_node_needs_no_tunnel_to_it() {
        let cloud = Surroundings {
            addresses: addresses(&["10.1.0.5"]),
            gateways: addresses(&["10.1.0.1"]),
            ..Surroundings::default()
        };
        let controller = addresses(&["10.96.0.20"]);
        let fronted = ["10.1.0.0/16", "10.96.0.0/12"];
        // Another hub fronts the same.
        let mut hub = view(Role::Hub, &["10.77.0.0/16"], &fronted);
        hub.networks = networks(&fronted);
        assert_eq!(cloud.conflict(&hub, &controller), None);
        assert_eq!(cloud.conflict(&view(Role::Cloud, &["10.77.0.0/16"], &fronted), &controller), None);
        assert!(cloud.conflict(&view(Role::Edge, &["10.77.0.0/16"], &fronted), &controller).is_some());
        assert!(cloud.conflict(&view(Role::Cloud, &["10.1.0.0/16"], &[]), &[]).is_some());
    }

    #[test]
    fn only_networks_that_nothing_before_enclosed_are_added() {
        let old = view(Role::Edge, &["10.77.0.0/16"], &["10.244.0.0/16"]);
        let new = view(Role::Edge, &["10.77.0.0/16", "fd77::/48"], &["10.244.3.0/24", "10.77.9.0/24", "10.0.0.0/8"]);
        assert_eq!(added(&old, &new), networks(&["10.0.0.0/8", "fd77::/48"]));
        assert_eq!(added(&new, &old), networks(&[]));
        assert_eq!(added(&old, &old), networks(&[]));
    }

    #[test]
    fn loopback_is_in_nobodys_way() {
        let here = Surroundings { addresses: addresses(&["127.0.0.1", "::1"]), ..Surroundings::default() };
        assert_eq!(here.conflict(&view(Role::Edge, &["127.0.0.0/8", "::/64"], &[]), &addresses(&["127.0.0.1"])), None);
    }

    #[test]
    fn name_servers_are_those_of_the_network_and_not_the_clusters_own() {
        let host = "# made by hand\nsearch lan\nnameserver 192.168.1.1\nnameserver fe80::1%eth0\n nameserver 127.0.0.53\noptions edns0\n";
        assert_eq!(resolvers(host), addresses(&["192.168.1.1", "fe80::1"]));
        let pod = "search edge-cni.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n";
        assert_eq!(resolvers(pod), addresses(&[]));
        assert_eq!(resolvers("nameserver\nnameserver x\n"), addresses(&[]));
    }
}

//! The underlay: addresses that this node needs outside of every tunnel. These are the addresses of
//! the node, its gateways, its name servers and the controller, and addresses that every host
//! needs, such as multicast addresses. A view whose networks contain one of these addresses is
//! refused, since the node could no longer receive a corrected view. Except for [`host_resolvers`],
//! this module does no I/O.
//!
//! Any host on the node's network can change most of these addresses with a router advertisement or
//! a DHCP lease. For this reason, an address leads to the refusal of a view only if no network of
//! the current view contains it. Otherwise one such packet could block all later views and their
//! revocations.

use std::fmt;
use std::net::IpAddr;

use edge_types::network::{contains, overlap, special_use};
use edge_types::{NodeView, Role, SharedPeer};
use ipnetwork::IpNetwork;

const NAME_SERVER: &str = "its name server";

/// Addresses that this node needs outside of every tunnel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Underlay {
    /// Addresses of the node's uplinks, without the addresses of the bridge and of pods.
    pub addresses: Vec<IpAddr>,
    /// Gateways of the default routes.
    pub gateways: Vec<IpAddr>,
    /// Name servers, except those that the node reaches through the tunnels according to its
    /// configuration.
    pub resolvers: Vec<IpAddr>,
    /// Interface of the first IPv4 default route.
    pub uplink_v4: Option<String>,
    /// Interface of the first IPv6 default route.
    pub uplink_v6: Option<String>,
}

/// A network in a view that contains an address which the node needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressConflict {
    network: IpNetwork,
    of: String,
    address: IpAddr,
    what: &'static str,
}

impl AddressConflict {
    /// Returns the network in the view that contains the address.
    pub fn network(&self) -> IpNetwork {
        self.network
    }
}

impl fmt::Display for AddressConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { network, of, address, what } = self;
        write!(
            f,
            "{of} {network} holds {what} {address}: that cuts this node off, since nothing to or from {network} travels outside of a tunnel; \
             correct the ranges or networks at the controller, or renumber this node's network"
        )?;
        if *what == NAME_SERVER {
            write!(
                f,
                "; or, if the node reaches it through the tunnels, list it in agent.toml: resolvers_behind_tunnels = [\"{address}\"]"
            )?;
        }
        Ok(())
    }
}

impl Underlay {
    /// Returns the interface of the default route of this family.
    pub fn uplink(&self, ipv4: bool) -> Option<&str> {
        if ipv4 { self.uplink_v4.as_deref() } else { self.uplink_v6.as_deref() }
    }

    /// Returns the first conflict: an address within the networks of `view`, but not within those
    /// of `current`, the current view. `controllers` are the controllers' addresses.
    pub fn conflict(
        &self,
        current: Option<&NodeView>,
        view: &NodeView,
        controllers: &[IpAddr],
    ) -> Option<AddressConflict> {
        let present = current.map_or(vec![], |current| self.conflicts(current, controllers));
        let is_new = |conflict: &AddressConflict| present.iter().all(|present| present.address != conflict.address);
        self.conflicts(view, controllers).into_iter().find(is_new)
    }

    /// Returns the conflicts of a view, with at most one for each address.
    pub fn conflicts(&self, view: &NodeView, controllers: &[IpAddr]) -> Vec<AddressConflict> {
        // The hubs are collected once, since only a few of ten thousand peers are hubs.
        let hubs: Vec<&SharedPeer> = view.peers.iter().filter(|peer| !peer.networks.is_empty()).collect();
        let find = |address: &IpAddr, what| {
            let (network, of) = holder(view, &hubs, *address)?;
            Some(AddressConflict { network, of, address: *address, what })
        };
        let needed = self.needed(controllers);
        let mut conflicts: Vec<AddressConflict> =
            needed.iter().filter_map(|(address, what)| find(address, *what)).collect();
        conflicts.extend(special_networks(view, &hubs));
        conflicts
    }

    /// Returns the addresses that the node needs, each with a description.
    fn needed(&self, controllers: &[IpAddr]) -> Vec<(IpAddr, &'static str)> {
        let mut needed = Self::usable(&self.addresses, "this node's own address");
        needed.extend(Self::usable(&self.gateways, "its gateway"));
        needed.extend(Self::usable(controllers, "the controller's address"));
        needed.extend(Self::usable(&self.resolvers, NAME_SERVER));
        needed
    }

    fn usable(addresses: &[IpAddr], what: &'static str) -> Vec<(IpAddr, &'static str)> {
        let canonical = addresses.iter().map(|address| (address.to_canonical(), what));
        canonical.filter(|(address, _)| !address.is_loopback() && !address.is_unspecified()).collect()
    }
}

/// Returns the networks of the view that contain addresses which every host needs.
fn special_networks(view: &NodeView, hubs: &[&SharedPeer]) -> Vec<AddressConflict> {
    let named = |networks: &[IpNetwork], of: &str| -> Vec<(IpNetwork, String)> {
        networks.iter().map(|network| (*network, of.to_owned())).collect()
    };
    let mut networks = named(&view.cluster_ranges, "cluster range");
    networks.extend(named(&view.segments, "segment"));
    for peer in hubs.iter().filter(|_| view.role != Role::Cloud) {
        networks.extend(named(&peer.networks, &format!("the network of {}", peer.name)));
    }
    let conflict = |(network, of): (IpNetwork, String)| {
        let special = special_use(&network)?;
        let address = network.network().max(special.network.network());
        Some(AddressConflict { network, of, address, what: special.what })
    };
    networks.into_iter().filter_map(conflict).collect()
}

/// Returns the network in the view that routes packets to this address into a tunnel, with a
/// description.
fn holder(view: &NodeView, hubs: &[&SharedPeer], address: IpAddr) -> Option<(IpNetwork, String)> {
    let of = |networks: &[IpNetwork], what: &str| {
        networks.iter().find(|network| network.contains(address)).map(|network| (*network, what.to_owned()))
    };
    // On a hub, the networks that it fronts are not guarded.
    let fronted = view.networks.iter().any(|network| network.contains(address));
    let in_ranges = if fronted { None } else { of(&view.cluster_ranges, "cluster range") };
    // Segments are checked as well, because the bridge gets an address from each segment of this
    // node.
    in_ranges.or_else(|| of(&view.segments, "segment")).or_else(|| {
        if view.role == Role::Cloud {
            // A cloud node reaches the cloud's networks without a tunnel.
            return None;
        }
        hubs.iter().find_map(|peer| {
            let ours = |network: &IpNetwork| view.local_networks().any(|own| overlap(&own, network));
            let network = peer.networks.iter().find(|network| network.contains(address) && !ours(network))?;
            Some((*network, format!("the network of {}", peer.name)))
        })
    })
}

/// Returns the name servers of this host, and those that systemd-resolved uses, without those in
/// `behind_tunnels`.
pub fn host_resolvers(behind_tunnels: &[IpAddr]) -> Vec<IpAddr> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    resolvers(&[read("/etc/resolv.conf"), read("/run/systemd/resolve/resolv.conf")], behind_tunnels)
}

/// Returns the name servers in files in the format of resolv.conf(5), each once, without loopback
/// addresses and without those in `behind_tunnels`.
fn resolvers(files: &[String], behind_tunnels: &[IpAddr]) -> Vec<IpAddr> {
    let server = |line: &str| -> Option<IpAddr> {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and(words.next())?;
        Some(address.split('%').next()?.parse::<IpAddr>().ok()?.to_canonical())
    };
    let mut found = Vec::new();
    for address in files.iter().flat_map(|text| text.lines()).filter_map(server) {
        let listed = behind_tunnels.iter().any(|listed| listed.to_canonical() == address);
        if !listed && !address.is_loopback() && !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

/// Returns the networks that a view makes unreachable outside of a tunnel, each once, sorted.
pub fn guarded(view: &NodeView) -> Vec<IpNetwork> {
    let mut networks: Vec<IpNetwork> = view.cluster_ranges.clone();
    if view.role != Role::Cloud {
        networks.extend(view.peers.iter().flat_map(|peer| &peer.networks));
    }
    networks.sort_unstable();
    networks.dedup();
    networks
}

/// Returns the guarded networks of `new` that lie within none of `old`. Only these networks can
/// additionally cut the node off.
pub fn added(old: &NodeView, new: &NodeView) -> Vec<IpNetwork> {
    let old = guarded(old);
    guarded(new).into_iter().filter(|network| !old.iter().any(|known| contains(known, network))).collect()
}

#[cfg(test)]
mod tests {
    use edge_types::Peer;

    use super::*;
    use crate::test_view::empty_view;

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn networks(texts: &[&str]) -> Vec<IpNetwork> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn view(role: Role, ranges: &[&str], hub: &[&str]) -> NodeView {
        NodeView {
            role,
            cluster_ranges: networks(ranges),
            peers: vec![SharedPeer::from(Peer {
                name: "cloud-1".parse().unwrap(),
                role: Role::Hub,
                endpoints: vec![],
                segments: vec![],
                networks: networks(hub),
                mapped: vec![],
                tcp_port: None,
                on_demand_in: Default::default(),
                certificates_from: 0,
            })]
            .into(),
            ..empty_view()
        }
    }

    fn home() -> Underlay {
        Underlay {
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
            let found =
                home().conflict(None, &view(Role::Edge, ranges, hub), &controllers).map(|found| found.to_string());
            match (words, &found) {
                (None, None) => {}
                (Some(words), Some(found)) if found.contains(words) => {}
                _ => panic!("{ranges:?} {hub:?}: {found:?}, expected {words:?}"),
            }
        }
        let mut own = view(Role::Edge, &["10.77.0.0/16"], &[]);
        own.segments = networks(&["192.168.1.0/26"]);
        assert!(home().conflict(None, &own, &[]).unwrap().to_string().starts_with("segment 192.168.1.0/26"));
    }

    #[test]
    fn networks_with_addresses_that_every_node_needs_are_refused_and_those_in_force_stay() {
        let here = Underlay::default();
        let good = view(Role::Edge, &["10.77.0.0/16"], &["10.244.0.0/16"]);
        assert_eq!(here.conflict(None, &good, &[]), None);
        for special in ["ff00::/8", "fe80::/64", "::/64", "224.0.0.0/4", "127.0.0.0/8", "169.254.0.0/16", "::/0"] {
            for (role, ranges, hub) in [
                (Role::Edge, &["10.77.0.0/16", special][..], &[][..]),
                (Role::Edge, &["10.77.0.0/16"], &[special]),
                (Role::Hub, &["10.77.0.0/16", special], &[]),
                (Role::Cloud, &["10.77.0.0/16", special], &[]),
            ] {
                let careless = view(role, ranges, hub);
                let refused = here.conflict(Some(&good), &careless, &[]).unwrap();
                assert_eq!(refused.network(), special.parse().unwrap());
                assert!(refused.to_string().contains("addresses"), "{refused}");
                assert_eq!(here.conflict(Some(&careless), &careless, &[]), None, "it was in force");
            }
        }
        let mut own = good;
        own.segments = networks(&["fe80::/120"]);
        assert!(here.conflict(None, &own, &[]).unwrap().to_string().starts_with("segment fe80::/120"));
    }

    #[test]
    fn what_the_view_in_force_takes_away_already_is_no_reason_to_refuse_another() {
        // A router advertisement has given this node an address within the cluster range, and a
        // DHCP lease has given it another name server.
        let here = Underlay {
            addresses: addresses(&["192.168.1.10", "fd77::abcd"]),
            gateways: addresses(&["192.168.1.1"]),
            resolvers: addresses(&["10.244.0.53"]),
            ..Underlay::default()
        };
        let current = view(Role::Edge, &["10.77.0.0/16", "fd77::/48"], &["10.244.0.0/16"]);
        let named: Vec<_> = here.conflicts(&current, &[]).iter().map(ToString::to_string).collect();
        assert_eq!(named.len(), 2, "{named:?}");
        assert!(named[0].contains("this node's own address fd77::abcd"), "{named:?}");
        assert!(named[1].contains("its name server 10.244.0.53"), "{named:?}");
        let judged = |new: &NodeView| here.conflict(Some(&current), new, &[]).map(|found| found.to_string());
        assert_eq!(judged(&current), None);
        let revoking = NodeView { version: 2, peers: vec![].into(), ..current.clone() };
        assert_eq!(judged(&revoking), None);
        let mut granted = current.clone();
        granted.segments = networks(&["fd77::abc0/122"]);
        assert_eq!(judged(&granted), None, "its addresses are the range's");
        let wider = view(Role::Edge, &["10.0.0.0/8", "fd00::/8"], &["10.244.0.0/16"]);
        assert_eq!(judged(&wider), None, "it takes away no more");
        let careless = view(Role::Edge, &["10.77.0.0/16", "fd77::/48", "192.168.0.0/16"], &["10.244.0.0/16"]);
        assert!(judged(&careless).unwrap().contains("192.168.0.0/16 holds this node's own address 192.168.1.10"));
        // Without a current view, every address leads to a refusal.
        assert!(here.conflict(None, &current, &[]).is_some());
    }

    #[test]
    fn each_name_server_counts_also_if_another_one_is_left() {
        let here = Underlay { resolvers: addresses(&["192.0.2.53", "10.77.0.53"]), ..Underlay::default() };
        for (ranges, hub, words) in [
            (&["10.77.0.0/16"][..], &[][..], "cluster range 10.77.0.0/16 holds its name server 10.77.0.53"),
            (
                &["10.78.0.0/16"],
                &["192.0.2.0/24"],
                "the network of cloud-1 192.0.2.0/24 holds its name server 192.0.2.53",
            ),
        ] {
            let refused = here.conflict(None, &view(Role::Edge, ranges, hub), &[]).unwrap().to_string();
            assert!(refused.contains(words) && refused.contains("resolvers_behind_tunnels"), "{refused}");
        }
        // Neither address is a reason to refuse the next view if the current view already contains
        // it.
        let current = view(Role::Edge, &["10.77.0.0/16"], &[]);
        assert_eq!(here.conflict(Some(&current), &current, &[]), None);
        let both = view(Role::Edge, &["10.77.0.0/16"], &["192.0.2.0/24"]);
        assert!(here.conflict(Some(&current), &both, &[]).unwrap().to_string().contains("its name server 192.0.2.53"));
    }

    #[test]
    fn what_a_hub_fronts_is_around_it_and_a_cloud_node_needs_no_tunnel_to_it() {
        let cloud =
            Underlay { addresses: addresses(&["10.1.0.5"]), gateways: addresses(&["10.1.0.1"]), ..Underlay::default() };
        let controller = addresses(&["10.96.0.20"]);
        let fronted = ["10.1.0.0/16", "10.96.0.0/12"];
        // There is another hub that fronts the same networks.
        let mut hub = view(Role::Hub, &["10.77.0.0/16"], &fronted);
        hub.networks = networks(&fronted);
        assert_eq!(cloud.conflict(None, &hub, &controller), None);
        assert_eq!(cloud.conflict(None, &view(Role::Cloud, &["10.77.0.0/16"], &fronted), &controller), None);
        assert!(cloud.conflict(None, &view(Role::Edge, &["10.77.0.0/16"], &fronted), &controller).is_some());
        assert!(cloud.conflict(None, &view(Role::Cloud, &["10.1.0.0/16"], &[]), &[]).is_some());
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
    fn loopback_addresses_cause_no_conflict() {
        let here = Underlay { addresses: addresses(&["127.0.0.1", "::1"]), ..Underlay::default() };
        assert_eq!(here.needed(&addresses(&["127.0.0.1"])), []);
    }

    #[test]
    fn name_servers_are_those_of_the_files_without_the_host_itself_and_those_that_the_operator_lists() {
        let read = |files: &[&str], listed: &[&str]| {
            let files: Vec<String> = files.iter().map(|text| (*text).to_owned()).collect();
            resolvers(&files, &addresses(listed))
        };
        let host = "# made by hand\nsearch lan\nnameserver 192.168.1.1\nnameserver fe80::1%eth0\n nameserver 127.0.0.53\noptions edns0\n";
        assert_eq!(read(&[host], &[]), addresses(&["192.168.1.1", "fe80::1"]));
        assert!(read(&["nameserver\nnameserver x\n"], &[]).is_empty());
        // The servers that systemd-resolved uses are included, even if resolv.conf names other
        // servers besides systemd-resolved.
        let asked = "nameserver 192.168.1.1\nnameserver 10.0.0.53\n";
        assert_eq!(read(&[host, asked], &[]), addresses(&["192.168.1.1", "fe80::1", "10.0.0.53"]));
        // A name server counts as part of the cluster only if the operator configures it.
        let pod = "search edge-cni.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n";
        assert_eq!(read(&[pod], &[]), addresses(&["10.96.0.10"]));
        assert_eq!(read(&[pod, asked], &["10.96.0.10", "::ffff:10.0.0.53"]), addresses(&["192.168.1.1"]));
    }
}

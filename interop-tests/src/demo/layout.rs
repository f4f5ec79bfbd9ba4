//! The nodes and sites of the demo's network, and of the larger one for random events.

use super::world::CLOUD_NETWORKS;
use crate::topology::NetworkPlan;

/// The edge nodes of the demo.
pub(super) const EDGES: [&str; 4] = ["edge-a1", "edge-a2", "edge-b1", "edge-c1"];

/// All nodes of the demo that run an agent.
pub(super) const NODES: [&str; 6] = ["cloud-1", "cloud-2", "edge-a1", "edge-a2", "edge-b1", "edge-c1"];

/// A network: its nodes, in the order in which they join, and their communities.
#[derive(Debug)]
pub(super) struct Layout {
    /// The cloud's nodes with their roles, `hub` or `cloud`. The controller runs on the first one.
    pub(super) cloud: &'static [(&'static str, &'static str)],
    /// The edges.
    edges: &'static [&'static str],
    /// The edges that are always members of community alpha.
    pub(super) alpha: &'static [&'static str],
    /// The edges of community beta, unless they are guests of alpha at present.
    pub(super) beta: &'static [&'static str],
    /// The edges that join and leave community alpha at random.
    pub(super) guests: &'static [&'static str],
}

/// The demo: one hub, another cloud node, four edges.
pub(super) const DEMO: Layout = Layout {
    cloud: &[("cloud-1", "hub"), ("cloud-2", "cloud")],
    edges: &EDGES,
    alpha: &["edge-a1", "edge-a2"],
    beta: &["edge-b1"],
    guests: &["edge-b1", "edge-c1"],
};

/// Twelve nodes: two hubs, another cloud node, nine edges.
pub(super) const TWELVE_NODES: Layout = Layout {
    cloud: &[("cloud-1", "hub"), ("cloud-2", "cloud"), ("cloud-3", "hub")],
    edges: &["edge-a1", "edge-a2", "edge-b1", "edge-c1", "edge-d1", "edge-d2", "edge-e1", "edge-e2", "edge-f1"],
    alpha: &["edge-a1", "edge-a2", "edge-d1", "edge-d2"],
    beta: &["edge-b1", "edge-e2"],
    guests: &["edge-b1", "edge-c1", "edge-f1"],
};

/// Returns the pods' networks on the cloud's node with this number, which counts from 1.
pub(super) fn cloud_pod_networks(number: usize) -> [String; 2] {
    [format!("10.244.{number}.0/24"), format!("fd44::{number}:0/112")]
}

impl Layout {
    /// Returns the edge nodes.
    pub(super) fn edges(&self) -> impl Iterator<Item = &'static str> + Clone + use<> {
        self.edges.iter().copied()
    }

    /// Returns the nodes that run an agent.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &'static str> + use<> {
        let cloud = self.cloud;
        cloud.iter().map(|(name, _)| *name).chain(self.edges())
    }

    /// Returns the hubs.
    pub(super) fn hubs(&self) -> impl Iterator<Item = &'static str> + Clone + use<> {
        let cloud = self.cloud;
        cloud.iter().filter(|(_, role)| *role == "hub").map(|(name, _)| *name)
    }

    /// Returns the controller's settings for several hubs. Each fronts the networks of its own pods
    /// in addition to those that all hubs front. Otherwise edges would send packets for them to
    /// the first hub, and the other hub would drop what that hub forwards in clear.
    pub(super) fn own_networks_of_hubs(&self) -> String {
        if self.hubs().count() < 2 {
            return String::new();
        }
        let settings = self.cloud.iter().zip(1..).filter(|((_, role), _)| *role == "hub").map(|((name, _), number)| {
            let own = cloud_pod_networks(number);
            let networks: Vec<&str> = CLOUD_NETWORKS.into_iter().chain(own.iter().map(String::as_str)).collect();
            format!("[hub.{name}]\nnetworks = {networks:?}\n")
        });
        settings.collect()
    }

    /// Returns the captured interfaces: router, interface, and an address behind it that answers
    /// pings. On the LANs behind NATs, edges get other addresses at times, and a printer answers.
    pub(super) fn watched(&self) -> Vec<(&'static str, String, &'static str)> {
        let mut watched = vec![("r-cloud", "isp".to_owned(), "203.0.113.11")];
        for edge in self.edges() {
            let Site { router, outside, inside } = site(edge);
            let own = inside[0].or(inside[1]).unwrap_or_default();
            let lan = if is_behind_nat(edge) { PRINTER } else { own };
            watched.push((router, lan_of(edge), lan));
            let isp = if outside[0].is_some() { "203.0.113.1" } else { "2001:db8::1" };
            watched.push((router, "isp".to_owned(), isp));
        }
        watched
    }

    /// Returns the network.
    pub(super) fn plan(&self) -> NetworkPlan {
        let mut plan = NetworkPlan::new();
        let core = plan.router("r-cloud");
        core.on("isp", &["203.0.113.1/24", "2001:db8::1/64"]).on("cloud", &["198.51.100.1/24", "2001:db8:c::1/64"]);
        for edge in self.edges().filter(|edge| !is_behind_nat(edge)) {
            let Site { outside, inside, .. } = site(edge);
            for (family, network) in [network(inside[0], 24), network(inside[1], 64)].into_iter().enumerate() {
                if let (Some(network), Some(outside)) = (network, outside[family]) {
                    core.route(&network, outside);
                }
            }
        }
        for (name, _) in self.cloud {
            let [v4, v6] = site(name).inside.map(Option::unwrap_or_default);
            plan.host(name)
                .on("cloud", &[&format!("{v4}/24"), &format!("{v6}/64")])
                .via("198.51.100.1")
                .via("2001:db8:c::1")
                .own_directory("/etc/edge-controller");
        }
        for edge in self.edges() {
            add_site(&mut plan, edge);
        }
        // A hostile neighbour of a1, and a hostile machine on the cloud's LAN.
        plan.host("neighbour").on("lan-a1", &["192.0.2.66/24", "2001:db8:a1::66/64"]).via("192.0.2.1");
        plan.host("cloud-neighbour").on("cloud", &["198.51.100.66/24", "2001:db8:c::66/64"]).via("198.51.100.1");
        plan
    }
}

/// The address of the printers on the LANs behind NATs.
const PRINTER: &str = "192.168.1.254";

/// An edge node and its router, with the addresses of both, at most one of each family.
pub(super) struct Site {
    /// Name of the site's router.
    pub(super) router: &'static str,
    /// The router's addresses on the internet: IPv4, IPv6.
    pub(super) outside: [Option<&'static str>; 2],
    /// The node's addresses: IPv4, IPv6.
    pub(super) inside: [Option<&'static str>; 2],
}

/// Returns the site of a node.
pub(super) fn site(node: &str) -> Site {
    let private = [Some("192.168.1.10"), None];
    let (router, outside, inside) = match node {
        "edge-a1" => {
            ("r-a1", [Some("203.0.113.11"), Some("2001:db8::11")], [Some("192.0.2.10"), Some("2001:db8:a1::10")])
        }
        "edge-a2" => ("r-a2", [Some("203.0.113.12"), None], private),
        "edge-b1" => ("r-b1", [None, Some("2001:db8::13")], [None, Some("2001:db8:b1::10")]),
        "edge-c1" => ("r-c1", [Some("203.0.113.14"), None], private),
        "edge-d1" => {
            ("r-d1", [Some("203.0.113.15"), Some("2001:db8::15")], [Some("198.18.1.10"), Some("2001:db8:d1::10")])
        }
        "edge-d2" => ("r-d2", [Some("203.0.113.16"), None], private),
        "edge-e1" => ("r-e1", [Some("203.0.113.17"), None], private),
        "edge-e2" => ("r-e2", [None, Some("2001:db8::18")], [None, Some("2001:db8:e2::10")]),
        "edge-f1" => ("r-f1", [Some("203.0.113.19"), None], private),
        "cloud-2" => return in_cloud("198.51.100.12", "2001:db8:c::12"),
        "cloud-3" => return in_cloud("198.51.100.13", "2001:db8:c::13"),
        _ => return in_cloud("198.51.100.11", "2001:db8:c::11"),
    };
    Site { router, outside, inside }
}

fn in_cloud(v4: &'static str, v6: &'static str) -> Site {
    Site { router: "r-cloud", outside: [Some("203.0.113.1"), Some("2001:db8::1")], inside: [Some(v4), Some(v6)] }
}

/// Returns whether a node is behind a NAT.
pub(super) fn is_behind_nat(node: &str) -> bool {
    site(node).inside[0].is_some_and(|address| address.starts_with("192.168."))
}

/// Returns whether a node has a public address of each family, at which every other node reaches
/// it.
pub(super) fn has_both_families(node: &str) -> bool {
    !is_behind_nat(node) && site(node).inside.iter().all(Option::is_some)
}

/// Returns the name of a node's interface.
pub(super) fn lan_of(node: &str) -> String {
    if node.starts_with("cloud-") { "cloud".to_owned() } else { node.replace("edge-", "lan-") }
}

/// Returns the network of a node's address with this prefix length. The node has number 10 in it.
fn network(inside: Option<&str>, prefix: u8) -> Option<String> {
    inside.map(|address| match prefix {
        24 => format!("{}0/24", address.trim_end_matches("10")),
        _ => format!("{}/{prefix}", address.trim_end_matches("10")),
    })
}

/// Adds an edge, its router, and what else is on its LAN.
fn add_site(plan: &mut NetworkPlan, edge: &'static str) {
    let Site { router, outside, inside } = site(edge);
    let lan = lan_of(edge);
    let prefixes = ["24", "64"];
    let with_prefix = |addresses: [Option<&str>; 2]| -> Vec<String> {
        let pairs = addresses.into_iter().zip(prefixes);
        pairs.filter_map(|(address, prefix)| Some(format!("{}/{prefix}", address?))).collect()
    };
    let gateways = inside.map(|address| address.map(|address| format!("{}1", address.trim_end_matches("10"))));
    let (isp, inner) = (with_prefix(outside), with_prefix(gateways.each_ref().map(Option::as_deref)));
    let own = with_prefix(inside);
    let node = plan.router(router).on("isp", &strs(&isp)).on(&lan, &strs(&inner));
    for (address, next) in outside.iter().zip(["203.0.113.1", "2001:db8::1"]) {
        if address.is_some() {
            node.via(next);
        }
    }
    if is_behind_nat(edge) {
        node.masquerade("isp");
        plan.host(&lan.replace("lan-", "printer-")).on(&lan, &[&format!("{PRINTER}/24")]).via("192.168.1.1");
    }
    let host = plan.host(edge).on(&lan, &strs(&own));
    for gateway in gateways.iter().flatten() {
        host.via(gateway);
    }
    if edge == "edge-a1" {
        // A rule from another program on this host masquerades all packets that the host forwards.
        host.masquerade(&lan);
    }
}

fn strs(addresses: &[String]) -> Vec<&str> {
    addresses.iter().map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_network_has_twelve_nodes_and_two_hubs() {
        assert_eq!((TWELVE_NODES.nodes().count(), TWELVE_NODES.hubs().count()), (12, 2));
        assert!(DEMO.nodes().eq(NODES) && DEMO.edges().eq(EDGES));
    }

    #[test]
    fn every_site_is_captured_on_both_sides_and_no_address_is_used_twice() {
        for layout in [&DEMO, &TWELVE_NODES] {
            assert_eq!(layout.watched().len(), 1 + 2 * layout.edges().count());
            let mut public: Vec<_> = layout.edges().flat_map(|edge| site(edge).outside).flatten().collect();
            let count = public.len();
            public.sort_unstable();
            public.dedup();
            assert_eq!(public.len(), count);
        }
        let mark = |edge: &str| DEMO.watched().into_iter().find(|(_, wire, _)| *wire == lan_of(edge)).unwrap().2;
        assert_eq!((mark("edge-a1"), mark("edge-a2"), mark("edge-b1")), ("192.0.2.10", PRINTER, "2001:db8:b1::10"));
    }

    #[test]
    fn networks_and_gateways_follow_from_the_address() {
        assert_eq!(network(Some("192.0.2.10"), 24).unwrap(), "192.0.2.0/24");
        assert_eq!(network(Some("2001:db8:a1::10"), 64).unwrap(), "2001:db8:a1::/64");
        assert!(has_both_families("edge-d1") && !has_both_families("edge-b1") && !has_both_families("edge-a2"));
    }
}

//! The uplinks, on which this host receives router advertisements.

use super::bridge;
use super::link::{DefaultRoute, Link, Links};
use crate::error::Result;

/// Returns the names of the links that are uplinks or may be uplinks.
pub(crate) fn names(links: &mut Links) -> Result<Vec<String>> {
    let all = links.all()?;
    let routes = links.default_routes()?;
    Ok(all.iter().filter(|link| is_uplink(link, &all, &routes)).map(|link| link.name.clone()).collect())
}

/// An uplink of a kind that container runtimes also use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Uplink {
    pub(crate) name: String,
    pub(crate) is_bridge: bool,
}

/// Returns the uplinks of these kinds: bridges with hardware ports, and links with a default route.
/// Pods' bridges are left out.
pub(crate) fn of_container_kinds(all: &[Link], routes: &[DefaultRoute], kinds: &[&str]) -> Vec<Uplink> {
    let carries_default = |link: &Link| routes.iter().any(|route| route.main && route.device == link.index);
    let of_kind = all.iter().filter(|link| kinds.contains(&link.kind.as_str()) && !bridge::is_ours(link));
    let outside = of_kind.filter(|link| carries_default(link) || link.kind == "bridge" && is_uplink(link, all, routes));
    outside.map(|link| Uplink { name: link.name.clone(), is_bridge: link.kind == "bridge" }).collect()
}

/// Returns whether a link is an uplink. A port of a bridge is not an uplink, and neither is a
/// bridge with only pods and containers as ports, such as docker0, or a veth without a default
/// route. A veth with a default route is the uplink of a machine that is itself a container.
fn is_uplink(link: &Link, all: &[Link], routes: &[DefaultRoute]) -> bool {
    let has_default = routes.iter().any(|route| route.main && route.device == link.index && route.gateway.is_some());
    match link.kind.as_str() {
        _ if link.loopback || is_port(link, all) => false,
        "bridge" => all.iter().any(|port| port.master == Some(link.index) && !is_virtual(port)),
        "veth" => has_default,
        _ => true,
    }
}

/// Returns whether a link is a port of a bridge, a bond or a similar link. A link in a VRF does not
/// count as a port.
fn is_port(link: &Link, all: &[Link]) -> bool {
    link.master.is_some_and(|index| !all.iter().any(|master| master.index == index && master.kind == "vrf"))
}

/// Returns whether a port connects to software on this machine instead of hardware.
fn is_virtual(port: &Link) -> bool {
    matches!(port.kind.as_str(), "veth" | "tun" | "dummy")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: &str, master: Option<u32>) -> Link {
        Link { index, name: name.into(), kind: kind.into(), master, ..Link::default() }
    }

    #[test]
    fn what_pods_and_containers_hang_on_is_no_uplink() {
        let all = [
            Link { loopback: true, ..link(1, "lo", "", None) },
            link(2, "eth0", "", None),
            link(3, "docker0", "bridge", None),
            link(4, "veth1", "veth", Some(3)),
            link(5, "br0", "bridge", None),
            link(6, "eth1", "", Some(5)),
            link(7, "vnet0", "tun", Some(5)),
            link(8, "cali1", "veth", None),
            link(9, "eth2", "veth", None),
            link(10, "ecni0", "bridge", None),
            link(11, "wwan0", "", None),
            link(12, "eth0.5", "vlan", None),
            link(13, "vrf0", "vrf", None),
            link(14, "eth3", "", Some(13)),
        ];
        let gateway = Some("fe80::1".parse().unwrap());
        let routes = [DefaultRoute { device: 9, gateway, main: true, ipv4: true }];
        let uplinks: Vec<&str> =
            all.iter().filter(|link| is_uplink(link, &all, &routes)).map(|link| link.name.as_str()).collect();
        assert_eq!(uplinks, ["eth0", "br0", "eth2", "wwan0", "eth0.5", "vrf0", "eth3"]);
    }
    #[test]
    fn a_bridge_of_containers_leads_outside_if_it_holds_hardware_or_carries_a_default_route() {
        let all = [
            link(2, "eth0", "", None),
            link(3, "docker0", "bridge", None),
            link(4, "veth1", "veth", Some(3)),
            link(5, "br0", "bridge", None),
            link(6, "eth1", "", Some(5)),
            link(7, "virbr0", "bridge", None),
            link(8, "eth2", "veth", None),
            link(9, "eth0.5", "vlan", None),
            Link { alias: "edge-cni bridge".into(), ..link(10, "ecni0", "bridge", None) },
        ];
        let routes = [7, 8, 9, 10].map(|device| DefaultRoute { device, gateway: None, main: true, ipv4: true });
        let found = of_container_kinds(&all, &routes, &["bridge", "veth"]);
        let found: Vec<(&str, bool)> = found.iter().map(|uplink| (uplink.name.as_str(), uplink.is_bridge)).collect();
        assert_eq!(found, [("br0", true), ("virbr0", true), ("eth2", false)]);
    }
}

//! Links, addresses and routes in the kernel, read through rtnetlink.

use std::net::IpAddr;

use anyhow::Context;
use futures_util::TryStreamExt;
use ipnetwork::IpNetwork;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteNextHop, RouteType, RouteVia,
};
use netlink_packet_route::rule::RuleMessage;
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

/// The alias that the plugin gives to its bridges.
const POD_BRIDGE: &str = "edge-cni bridge";
/// Prefix of the alias of the host end of a pod's interface. The container ID and the interface
/// name follow it.
const POD_PORT: &str = "edge-cni ";

/// An interface and its addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mtu: u32,
    pub(super) up: bool,
    /// Whether the interface is a bridge, dummy, tunnel or similar. Such an interface is an uplink
    /// only if it has a default route.
    pub(super) virtual_kind: bool,
    pub(super) loopback: bool,
    pub(super) bridge: bool,
    /// Whether the interface is a dummy, VXLAN, GENEVE or netkit device, as other CNIs and
    /// container runtimes use.
    pub(super) overlay: bool,
    /// Whether the interface is a dummy. Its addresses are those of Services (`kube-ipvs0` of
    /// kube-proxy, `nodelocaldns`), and other nodes have the same ones.
    pub(super) dummy: bool,
    /// Whether the interface is a bridge that the plugin created for any of its networks.
    pub(super) pod_bridge: bool,
    /// Whether the interface is a veth, whose other end may be in a pod.
    pub(super) veth: bool,
    /// Whether the interface is a veth with both ends on this machine, such as Cilium's
    /// `cilium_host`.
    pub(super) inner_veth: bool,
    /// Whether this is the host end of the interface of a pod that the plugin attached.
    pub(super) pod_port: bool,
    /// Index of the bridge or bond to which the interface belongs as a port.
    pub(super) controller: Option<u32>,
    pub(super) addresses: Vec<IpAddr>,
    /// Those of `addresses` that go away soon or cannot be used yet: temporary IPv6 addresses (RFC
    /// 8981), deprecated ones, and those for which duplicate address detection has not succeeded.
    pub(super) short_lived: Vec<IpAddr>,
    /// The networks of the interface's addresses.
    pub(super) networks: Vec<IpNetwork>,
}

/// A route in the main table. A multipath route is listed once for each next hop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) destination: IpNetwork,
    pub(super) device: Option<u32>,
    pub(super) via: Option<IpAddr>,
    pub(super) source: Option<IpAddr>,
    pub(super) metric: u32,
    pub(super) protocol: u8,
    /// The message from the kernel, which is sent back to delete the route.
    pub(super) message: Box<RouteMessage>,
}

impl Route {
    pub(super) fn is_default(&self) -> bool {
        self.destination.prefix() == 0
    }
}

/// The links, and the routes in the main table.
#[derive(Debug, Default)]
pub(super) struct NetworkState {
    pub(super) links: Vec<Link>,
    pub(super) routes: Vec<Route>,
    /// Whether there is a routing rule that depends on the source address (ip-rule(8)). Without
    /// one, the destination alone decides through which link a packet leaves.
    pub(super) source_rules: bool,
}

impl NetworkState {
    pub(super) async fn read(handle: &Handle) -> anyhow::Result<Self> {
        let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await.context("links")?;
        let addresses: Vec<AddressMessage> =
            handle.address().get().execute().try_collect().await.context("addresses")?;
        let mut links: Vec<Link> = links.iter().map(link).collect();
        for address in &addresses {
            if let Some(ip) = usable(address)
                && let Some(link) = links.iter_mut().find(|link| link.index == address.header.index)
            {
                link.addresses.push(ip);
                link.short_lived.extend(is_short_lived(address).then_some(ip));
                link.networks.extend(network(ip, address.header.prefix_len));
            }
        }
        let mut routes = Vec::new();
        for message in [
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        ] {
            let found: Vec<RouteMessage> =
                handle.route().get(message).execute().try_collect().await.context("routes")?;
            for found in found.into_iter().filter_map(route) {
                push_next_hops(found, &mut routes);
            }
        }
        Ok(Self { links, routes, source_rules: has_source_rules(handle).await })
    }

    pub(super) fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// Returns the index of the link on which an address is a neighbour of this node. `None` if the
    /// address is behind a router, or cannot be reached.
    pub(super) fn link_of_neighbour(&self, address: IpAddr) -> Option<u32> {
        let covering = self.routes.iter().filter(|route| route.destination.contains(address));
        let best = covering.max_by_key(|route| (route.destination.prefix(), std::cmp::Reverse(route.metric)))?;
        best.device.filter(|_| best.via.is_none())
    }

    /// Returns the names of the pods' bridges: `own`, even if it does not exist, then the other
    /// bridges that the plugin created.
    pub(super) fn pod_bridges(&self, own: &str) -> Vec<String> {
        let others = self.links.iter().filter(|link| link.pod_bridge).map(|link| link.name.as_str());
        let mut names: Vec<&str> = others.filter(|name| *name != own).collect();
        names.sort_unstable();
        [own].into_iter().chain(names).map(str::to_owned).collect()
    }

    /// Returns the networks of the pods' bridges, sorted.
    pub(super) fn pod_networks(&self, own: &str) -> Vec<IpNetwork> {
        let bridges = self.links.iter().filter(|link| link.pod_bridge || link.name == own);
        let mut networks: Vec<IpNetwork> = bridges.flat_map(|link| link.networks.iter().copied()).collect();
        networks.sort_unstable();
        networks.dedup();
        networks
    }

    /// Returns whether any of the pods' bridges has a port.
    pub(super) fn has_attached_pods(&self, own: &str) -> bool {
        let bridges = self.links.iter().filter(|link| link.pod_bridge || link.name == own);
        let indices: Vec<u32> = bridges.map(|link| link.index).collect();
        self.links.iter().filter_map(|link| link.controller).any(|controller| indices.contains(&controller))
    }

    pub(super) fn name_of(&self, index: u32) -> Option<&str> {
        self.links.iter().find(|link| link.index == index).map(|link| link.name.as_str())
    }
}

/// Returns whether a routing rule depends on the source address. A kernel without
/// `CONFIG_IP_MULTIPLE_TABLES` has no rules.
async fn has_source_rules(handle: &Handle) -> bool {
    for family in [IpVersion::V4, IpVersion::V6] {
        let rules: Vec<RuleMessage> = handle.rule().get(family).execute().try_collect().await.unwrap_or_default();
        if rules.iter().any(|rule| rule.header.src_len > 0) {
            return true;
        }
    }
    false
}

fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        ..Link::default()
    };
    let (mut marked, mut pod_alias) = (false, false);
    let (mut other_end, mut other_namespace) = (false, false);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfAlias(alias) => {
                // The name of the plugin's state directory may follow the prefix.
                pod_alias = alias.starts_with(POD_PORT);
                marked = alias.strip_prefix(POD_BRIDGE).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '));
            }
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(index) => link.controller = Some(*index).filter(|index| *index != 0),
            LinkAttribute::Link(_) => other_end = true,
            // The kernel names the namespace of the other end only if it is another one.
            LinkAttribute::LinkNetNsId(_) => other_namespace = true,
            LinkAttribute::LinkInfo(infos) => {
                link.dummy = infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Dummy)));
                link.bridge = infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Bridge)));
                link.overlay = infos.iter().any(|info| {
                    matches!(
                        info,
                        LinkInfo::Kind(InfoKind::Dummy | InfoKind::Vxlan | InfoKind::Geneve | InfoKind::Netkit)
                    )
                });
                link.veth = infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Veth)));
                link.virtual_kind = infos.iter().any(|info| match info {
                    // Interfaces of these kinds may be uplinks in containers, in virtual machines
                    // and in this project's lab.
                    LinkInfo::Kind(kind) => !matches!(
                        kind,
                        InfoKind::Veth | InfoKind::Vlan | InfoKind::Bond | InfoKind::MacVlan | InfoKind::IpVlan
                    ),
                    _ => false,
                });
            }
            _ => {}
        }
    }
    link.inner_veth = link.veth && other_end && !other_namespace;
    link.pod_bridge = marked && link.bridge;
    link.pod_port = pod_alias && link.veth;
    link
}

/// Returns the network of an address on a link. `None` for a prefix length of 0, because then every
/// source address would count as the address of a pod.
fn network(address: IpAddr, prefix: u8) -> Option<IpNetwork> {
    let network = IpNetwork::new(address, prefix).ok().filter(|network| network.prefix() > 0)?;
    IpNetwork::new(network.network(), prefix).ok()
}

/// Returns whether the address in a netlink message goes away soon or cannot be used yet.
fn is_short_lived(message: &AddressMessage) -> bool {
    let flags = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(flags.bits()),
        _ => None,
    });
    let flags = AddressFlags::from_bits_retain(flags.unwrap_or_else(|| message.header.flags.bits().into()));
    // For IPv6, the bit of IFA_F_SECONDARY is IFA_F_TEMPORARY (linux/if_addr.h).
    let temporary = message.header.family == AddressFamily::Inet6 && flags.contains(AddressFlags::Secondary);
    let unusable = AddressFlags::Deprecated | AddressFlags::Tentative | AddressFlags::Dadfailed;
    // An optimistic address can be used during its detection (RFC 4429).
    temporary || (flags.intersects(unusable) && !flags.contains(AddressFlags::Optimistic))
}

/// Returns the address in a netlink message, unless it is link-local or loopback.
fn usable(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    // With IPv6, IFA_LOCAL exists only on point-to-point links.
    let address = local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    })?;
    let link_local = match address {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    (!link_local && !address.is_loopback()).then_some(address)
}

pub(super) fn route(message: RouteMessage) -> Option<Route> {
    if message.header.kind != RouteType::Unicast || message.header.address_family == AddressFamily::Mpls {
        return None;
    }
    let table = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    if table.unwrap_or(u32::from(message.header.table)) != u32::from(RouteHeader::RT_TABLE_MAIN) {
        return None;
    }
    let any: IpAddr = if message.header.address_family == AddressFamily::Inet {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    };
    let mut route = Route {
        destination: IpNetwork::new(any, 0).ok()?,
        device: None,
        via: None,
        source: None,
        metric: 0,
        protocol: u8::from(message.header.protocol),
        message: Box::new(message.clone()),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                route.destination = IpNetwork::new(ip(address)?, message.header.destination_prefix_length).ok()?;
            }
            RouteAttribute::Oif(index) => route.device = Some(*index),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => route.via = gateway(attribute),
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            _ => {}
        }
    }
    Some(route)
}

/// Adds a route, once for each of its next hops.
fn push_next_hops(route: Route, routes: &mut Vec<Route>) {
    let hops: Option<&Vec<RouteNextHop>> = route.message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => Some(hops),
        _ => None,
    });
    let Some(hops) = hops else { return routes.push(route) };
    routes.extend(hops.iter().map(|hop| Route {
        device: Some(hop.interface_index),
        via: hop.attributes.iter().find_map(gateway),
        ..route.clone()
    }));
}

/// Returns the gateway in an attribute. `RTA_VIA` has the gateway of a route whose gateway is of
/// the other address family.
fn gateway(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(RouteVia::Inet(address)) => Some((*address).into()),
        RouteAttribute::Via(RouteVia::Inet6(address)) => Some((*address).into()),
        _ => None,
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Parseable;
    use netlink_packet_route::address::AddressHeaderFlags;

    use super::*;

    fn message(index: u32, name: &str, kind: InfoKind, alias: Option<&str>) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::IfName(name.into()));
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
        message.attributes.extend(alias.map(|alias| LinkAttribute::IfAlias(alias.into())));
        message
    }

    #[test]
    fn a_veth_with_both_ends_on_this_machine_is_recognised() {
        let veth = |attributes: &[LinkAttribute]| {
            let mut message = message(7, "cilium_host", InfoKind::Veth, None);
            message.attributes.extend_from_slice(attributes);
            link(&message)
        };
        assert!(veth(&[LinkAttribute::Link(8)]).inner_veth);
        assert!(!veth(&[LinkAttribute::Link(8), LinkAttribute::LinkNetNsId(0)]).inner_veth, "of a pod");
        assert!(!veth(&[LinkAttribute::LinkNetNsId(0), LinkAttribute::Link(8)]).inner_veth, "in another order");
        // A VLAN names its parent link.
        let mut vlan = message(7, "eth0.5", InfoKind::Vlan, None);
        vlan.attributes.push(LinkAttribute::Link(2));
        assert!(!link(&vlan).inner_veth && !link(&vlan).dummy);
        assert!(link(&message(7, "kube-ipvs0", InfoKind::Dummy, None)).dummy);
    }

    #[test]
    fn temporary_deprecated_and_tentative_addresses_are_recognised() {
        let with = |family, flags: AddressFlags| {
            let mut message = AddressMessage::default();
            message.header.family = family;
            message.attributes.push(AddressAttribute::Flags(flags));
            is_short_lived(&message)
        };
        let lasting = AddressFlags::Permanent | AddressFlags::Managetempaddr | AddressFlags::StablePrivacy;
        assert!(!with(AddressFamily::Inet6, lasting) && !with(AddressFamily::Inet6, AddressFlags::empty()));
        assert!(with(AddressFamily::Inet6, AddressFlags::Secondary), "IFA_F_TEMPORARY");
        assert!(!with(AddressFamily::Inet, AddressFlags::Secondary), "a second IPv4 address of a network lasts");
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            assert!(with(family, AddressFlags::Deprecated));
        }
        assert!(with(AddressFamily::Inet6, AddressFlags::Tentative | AddressFlags::Dadfailed));
        assert!(!with(AddressFamily::Inet6, AddressFlags::Tentative | AddressFlags::Optimistic));
        let mut old = AddressMessage::default();
        old.header.family = AddressFamily::Inet6;
        old.header.flags = AddressHeaderFlags::Secondary;
        assert!(is_short_lived(&old), "a kernel that reports flags only in the header");
    }

    #[test]
    fn devices_of_other_cnis_are_recognised_by_their_kind() {
        let kinds = [
            InfoKind::Dummy,
            InfoKind::Vxlan,
            InfoKind::Geneve,
            InfoKind::Netkit,
            InfoKind::Wireguard,
            InfoKind::Tun,
            InfoKind::Other("ppp".into()),
            InfoKind::IpIp,
            InfoKind::GreTun,
            InfoKind::Bridge,
        ];
        let links = kinds.map(|kind| link(&message(2, "dev", kind, None)));
        assert_eq!(links.iter().filter(|link| link.overlay).count(), 4);
        assert!(links[..4].iter().all(|link| link.overlay) && links.iter().all(|link| link.virtual_kind));
        assert_eq!(links.iter().position(|link| link.bridge), Some(9));
    }

    #[test]
    fn an_address_is_a_neighbour_if_the_most_specific_route_has_no_gateway() {
        let route = |destination: &str, device, via: Option<&str>, metric| Route {
            destination: destination.parse().unwrap(),
            device,
            via: via.map(|text| text.parse().unwrap()),
            source: None,
            metric,
            protocol: 2,
            message: Box::default(),
        };
        let routes = vec![
            route("0.0.0.0/0", Some(2), Some("192.0.2.254"), 0),
            route("192.0.2.0/24", Some(2), None, 100),
            route("192.0.2.0/24", Some(3), None, 600),
            route("192.0.2.128/25", Some(2), Some("192.0.2.7"), 0),
            // A multipath route, with one entry for each next hop.
            route("198.51.100.0/24", Some(2), Some("192.0.2.7"), 0),
            route("198.51.100.0/24", Some(3), Some("192.0.2.8"), 0),
            route("2001:db8::/64", Some(4), None, 256),
        ];
        let observed = NetworkState { routes, ..NetworkState::default() };
        let link = |address: &str| observed.link_of_neighbour(address.parse().unwrap());
        assert_eq!(link("192.0.2.1"), Some(2));
        assert_eq!(link("192.0.2.130"), None);
        assert_eq!(link("203.0.113.1"), None);
        assert_eq!(link("198.51.100.1"), None);
        assert_eq!(link("2001:db8::1"), Some(4));
        assert_eq!(link("2001:db9::1"), None);
    }

    #[test]
    fn every_next_hop_of_a_multipath_route_counts() {
        // `ip route add default nexthop via 192.0.2.1 dev 2 nexthop via inet6 2001:db8::1 dev 3
        // nexthop dev 4`, as the kernel dumps it.
        let hop = |interface: u32, gateway: &[u8]| {
            let mut bytes = u16::try_from(8 + gateway.len()).unwrap().to_ne_bytes().to_vec();
            bytes.extend([0, 0]);
            bytes.extend(interface.to_ne_bytes());
            bytes.extend(gateway);
            bytes
        };
        let attribute = |kind: u16, value: &[u8]| {
            let mut bytes = u16::try_from(4 + value.len()).unwrap().to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        const RTA_GATEWAY: u16 = 5;
        const RTA_MULTIPATH: u16 = 9;
        const RTA_VIA: u16 = 18;
        let mut via = 10_u16.to_ne_bytes().to_vec();
        via.extend("2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
        let hops =
            [hop(2, &attribute(RTA_GATEWAY, &[192, 0, 2, 1])), hop(3, &attribute(RTA_VIA, &via)), hop(4, &[])].concat();
        // `struct rtmsg`: AF_INET, main table, protocol static, universe, unicast.
        let mut bytes = vec![2, 0, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0];
        bytes.extend(attribute(RTA_MULTIPATH, &hops));
        let message = RouteMessage::parse(&bytes).unwrap();
        let mut routes = Vec::new();
        push_next_hops(route(message).unwrap(), &mut routes);
        let found: Vec<_> = routes.iter().map(|route| (route.device, route.via.map(|via| via.to_string()))).collect();
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(found, [(Some(2), some("192.0.2.1")), (Some(3), some("2001:db8::1")), (Some(4), None)]);
        assert!(routes.iter().all(Route::is_default));
    }

    #[test]
    fn bridges_of_other_networks_of_the_plugin_are_pods_bridges_too() {
        let links = [
            message(2, "ecni1", InfoKind::Bridge, Some(POD_BRIDGE)),
            message(3, "ecni0", InfoKind::Bridge, Some(POD_BRIDGE)),
            message(4, "docker0", InfoKind::Bridge, Some("a bridge")),
            message(5, "dummy0", InfoKind::Dummy, Some(POD_BRIDGE)),
        ];
        let mut observed = NetworkState { links: links.iter().map(link).collect(), ..NetworkState::default() };
        assert_eq!(observed.pod_bridges("ecni0"), ["ecni0", "ecni1"]);
        let networks = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNetwork>>();
        for (link, address) in observed.links.iter_mut().zip(["10.77.3.1", "10.77.1.1", "172.17.0.1", "10.9.9.9"]) {
            link.networks.extend(network(address.parse().unwrap(), 26));
            link.networks.extend(network(address.parse().unwrap(), 0));
        }
        assert_eq!(observed.pod_networks("ecni0"), networks(&["10.77.1.0/26", "10.77.3.0/26"]));
        observed.links.clear();
        assert_eq!(observed.pod_bridges("ecni0"), ["ecni0"], "it comes with the first pod");
        let port = link(&message(6, "ecnip1", InfoKind::Veth, Some("edge-cni c0ffee eth0")));
        assert!(port.pod_port && !links.iter().any(|other| link(other).pod_port));
    }
}

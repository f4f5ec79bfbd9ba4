//! Links, addresses and routes of one network namespace, through one netlink socket.

use std::net::IpAddr;

use edge_types::IpNetwork;
use edge_xfrm::netlink::{self, Netlink};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoBridgePort, InfoKind, InfoPortData, InfoPortKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo,
    LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteNextHop, RouteProtocol, RouteScope,
    RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

pub(crate) use netlink_packet_route::link::BridgePortState;

use crate::error::{Code, Error, Result};
use crate::mac::Mac;
use crate::pod_route::PodRoute;

/// `group_fwd_mask` of a port. With it, the bridge treats frames to the groups 01:80:c2:00:00:0X
/// like all others, so that the bridge's filter sees them. Without it, the bridge learns addresses
/// from them and passes LLDP frames to the host before any filter. (It always drops pause frames,
/// bit 1.)
const ALL_GROUPS: u16 = 0xfffd;

/// Access to links, addresses and routes of the network namespace in which the socket was opened.
#[derive(Debug)]
pub(crate) struct Links {
    netlink: Netlink,
}

/// A link, with the attributes that the plugin uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// The kernel's name of the kind, such as `bridge` or `veth`. Empty for hardware.
    pub(crate) kind: String,
    pub(crate) mac: Mac,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    pub(crate) loopback: bool,
    pub(crate) alias: String,
    /// Index of the bridge or other link of which this link is a port.
    pub(crate) master: Option<u32>,
    /// The spanning tree state, if the link is a port of a bridge.
    pub(crate) port_state: Option<BridgePortState>,
    /// The port settings, if the link is a port that this release has configured.
    pub(crate) port: Option<PortSettings>,
    /// For a veth whose other end is in another namespace: that end's index, and our namespace's ID
    /// for that namespace.
    pub(crate) peer: Option<(u32, i32)>,
}

impl Links {
    /// Opens the socket in the thread's network namespace.
    pub(crate) fn open() -> Result<Self> {
        let netlink = Netlink::open(netlink_sys::protocols::NETLINK_ROUTE);
        Ok(Self { netlink: netlink.map_err(|error| kernel_error("open a netlink socket", &error))? })
    }

    /// Finds a link by its name.
    pub(crate) fn find(&mut self, name: &str) -> Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        match self.netlink.get("RTM_GETLINK", RouteNetlinkMessage::GetLink(message)) {
            Ok(RouteNetlinkMessage::NewLink(message)) => Ok(Some(Link::read(&message))),
            Ok(_) => Ok(None),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(kernel_error(&format!("read link {name}"), &error)),
        }
    }

    /// All links.
    pub(crate) fn all(&mut self) -> Result<Vec<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let found = self.netlink.dump("RTM_GETLINK", RouteNetlinkMessage::GetLink(message));
        let links = found.map_err(|error| kernel_error("read all links", &error))?.into_iter();
        let links = links.filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(message) => Some(Link::read(&message)),
            _ => None,
        });
        Ok(links.collect())
    }

    /// Creates a link. Returns false if there is one with that name.
    pub(crate) fn create(&mut self, what: &str, message: LinkMessage) -> Result<bool> {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        match self.netlink.execute("RTM_NEWLINK", RouteNetlinkMessage::NewLink(message), flags) {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(kernel_error(&format!("create {what}"), &error)),
        }
    }

    /// Deletes a link. Succeeds if the link is gone already.
    pub(crate) fn delete(&mut self, link: &Link) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        match self.netlink.execute("RTM_DELLINK", RouteNetlinkMessage::DelLink(message), 0) {
            Err(error) if error.errno() != Some(libc::ENODEV) => {
                Err(kernel_error(&format!("delete {}", link.name), &error))
            }
            _ => Ok(()),
        }
    }

    /// Brings a link up.
    pub(crate) fn set_up(&mut self, link: &Link) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.set_link(&format!("bring {} up", link.name), message)
    }

    /// Makes a link a port of a bridge, and leaves it down. No frame passes until
    /// [`Self::bring_port_up`] has set the port's options, which the kernel does not accept
    /// earlier.
    pub(crate) fn make_port(&mut self, link: &Link, bridge: &Link) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        message.header.change_mask = LinkFlags::Up;
        self.set_link(&format!("bring {} down", link.name), message.clone())?;
        message.header.change_mask = LinkFlags::empty();
        message.attributes.push(LinkAttribute::Controller(bridge.index));
        self.set_link(&format!("make {} a port of {}", link.name, bridge.name), message)
    }

    /// Gives a bridge's port an alias and these settings, and brings it up.
    pub(crate) fn bring_port_up(&mut self, link: &Link, alias: String, port: PortSettings) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes.push(LinkAttribute::IfAlias(alias));
        self.send_port_settings(link, message, port)
    }

    /// Gives a bridge's port these settings.
    pub(crate) fn configure_port(&mut self, link: &Link, port: PortSettings) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        self.send_port_settings(link, message, port)
    }

    fn send_port_settings(&mut self, link: &Link, mut message: LinkMessage, port: PortSettings) -> Result<()> {
        let data = LinkInfo::PortData(InfoPortData::BridgePort(port.attributes()));
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::PortKind(InfoPortKind::Bridge), data]));
        // RTM_SETLINK ignores a port's settings.
        let outcome = self.netlink.execute("RTM_NEWLINK", RouteNetlinkMessage::NewLink(message), 0);
        outcome.map_err(|error| kernel_error(&format!("set {} up as a port of the bridge", link.name), &error))
    }

    /// Gives a link an alias.
    pub(crate) fn set_alias(&mut self, link: &Link, alias: &str) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        message.attributes.push(LinkAttribute::IfAlias(alias.to_owned()));
        self.set_link(&format!("set the alias of {}", link.name), message)
    }

    /// Returns the MAC address of a veth's other end in another namespace. `None` if that end is
    /// gone.
    pub(crate) fn peer_mac(&mut self, link: &Link) -> Result<Option<Mac>> {
        let Some((index, namespace)) = link.peer else { return Ok(None) };
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::IfNetnsId(namespace));
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        match self.netlink.get("RTM_GETLINK", RouteNetlinkMessage::GetLink(message)) {
            Ok(RouteNetlinkMessage::NewLink(message)) => Ok(Some(Link::read(&message).mac)),
            Ok(_) => Ok(None),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(kernel_error(&format!("read the other end of {}", link.name), &error)),
        }
    }

    /// Gives a link a MAC address.
    pub(crate) fn set_mac(&mut self, link: &Link, mac: Mac) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        message.attributes.push(LinkAttribute::Address(mac.to_vec()));
        self.set_link(&format!("set the MAC address of {}", link.name), message)
    }

    /// Gives a link an MTU, bytes.
    pub(crate) fn set_mtu(&mut self, link: &Link, mtu: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        message.attributes.push(LinkAttribute::Mtu(mtu));
        self.set_link(&format!("set the MTU of {} to {mtu} bytes", link.name), message)
    }

    fn set_link(&mut self, what: &str, message: LinkMessage) -> Result<()> {
        let outcome = self.netlink.execute("RTM_SETLINK", RouteNetlinkMessage::SetLink(message), 0);
        outcome.map_err(|error| kernel_error(what, &error))
    }

    /// Addresses of a link.
    pub(crate) fn addresses(&mut self, link: &Link) -> Result<Vec<IpAddr>> {
        Ok(self.addresses_with_prefix(link)?.iter().map(IpNetwork::ip).collect())
    }

    /// Addresses of a link, with their prefix lengths.
    pub(crate) fn addresses_with_prefix(&mut self, link: &Link) -> Result<Vec<IpNetwork>> {
        let mut message = AddressMessage::default();
        message.header.index = link.index;
        let found = self.netlink.dump("RTM_GETADDR", RouteNetlinkMessage::GetAddress(message));
        let found = found.map_err(|error| kernel_error(&format!("read the addresses of {}", link.name), &error))?;
        let addresses = found.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(message) if message.header.index == link.index => {
                IpNetwork::new(address_of(&message)?, message.header.prefix_len).ok()
            }
            _ => None,
        });
        Ok(addresses.collect())
    }

    /// Removes an address from a link. Succeeds if the link does not have it.
    pub(crate) fn delete_address(&mut self, link: &Link, address: IpNetwork) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.index = link.index;
        message.header.family = family(address.ip());
        message.header.prefix_len = address.prefix();
        message.attributes.push(AddressAttribute::Local(address.ip()));
        match self.netlink.execute("RTM_DELADDR", RouteNetlinkMessage::DelAddress(message), 0) {
            Err(error) if error.errno() != Some(libc::EADDRNOTAVAIL) => {
                Err(kernel_error(&format!("take the address {address} from {}", link.name), &error))
            }
            _ => Ok(()),
        }
    }

    /// Returns whether duplicate address detection is in progress for an address of the link. Fails
    /// if it found a duplicate.
    pub(crate) fn detects_duplicates(&mut self, link: &Link) -> Result<bool> {
        let mut message = AddressMessage::default();
        message.header.index = link.index;
        message.header.family = AddressFamily::Inet6;
        let found = self.netlink.dump("RTM_GETADDR", RouteNetlinkMessage::GetAddress(message));
        let found = found.map_err(|error| kernel_error(&format!("read the addresses of {}", link.name), &error))?;
        let mut goes_on = false;
        for message in found {
            let RouteNetlinkMessage::NewAddress(message) = message else { continue };
            if message.header.index != link.index {
                continue;
            }
            let flags = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Flags(flags) => Some(*flags),
                _ => None,
            });
            let flags = flags.unwrap_or_else(AddressFlags::empty);
            if flags.contains(AddressFlags::Dadfailed) {
                let address = address_of(&message).map(|address| address.to_string()).unwrap_or_default();
                return Err(Error::new(
                    Code::TryAgainLater,
                    format!(
                        "another interface on the bridge has the address {address}, as duplicate address detection found; look for who uses it, and try \
                         again"
                    ),
                ));
            }
            goes_on |= flags.contains(AddressFlags::Tentative);
        }
        Ok(goes_on)
    }

    /// Adds an address to a link. Succeeds if the link has it already. Without `detect_duplicates`
    /// it skips duplicate address detection, which would delay an IPv6 address by two seconds. The
    /// leases exclude duplicates.
    pub(crate) fn add_address(
        &mut self,
        link: &Link,
        address: IpAddr,
        prefix: u8,
        detect_duplicates: bool,
    ) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.index = link.index;
        message.header.family = family(address);
        message.header.prefix_len = prefix;
        message.attributes.push(AddressAttribute::Local(address));
        message.attributes.push(AddressAttribute::Address(address));
        if address.is_ipv6() && !detect_duplicates {
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        match self.netlink.execute("RTM_NEWADDR", RouteNetlinkMessage::NewAddress(message), flags) {
            Err(error) if error.errno() != Some(libc::EEXIST) => {
                Err(kernel_error(&format!("give {} the address {address}/{prefix}", link.name), &error))
            }
            _ => Ok(()),
        }
    }

    /// Adds a route over a link.
    pub(crate) fn add_route(&mut self, link: &Link, route: &PodRoute) -> Result<()> {
        let mut message = RouteMessage::default();
        let destination = route.destination;
        message.header.address_family = family(destination.ip());
        message.header.destination_prefix_length = destination.prefix();
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = route.scope.map_or(RouteScope::Universe, RouteScope::from);
        message.header.kind = RouteType::Unicast;
        let address = |address| match address {
            IpAddr::V4(address) => RouteAddress::Inet(address),
            IpAddr::V6(address) => RouteAddress::Inet6(address),
        };
        if destination.prefix() > 0 {
            message.attributes.push(RouteAttribute::Destination(address(destination.network())));
        }
        message.attributes.extend(route.gateway.map(|gateway| RouteAttribute::Gateway(address(gateway))));
        message.attributes.push(RouteAttribute::Oif(link.index));
        message.attributes.extend(route.priority.map(RouteAttribute::Priority));
        let metrics = [route.mtu.map(RouteMetric::Mtu), route.advmss.map(RouteMetric::Advmss)];
        let metrics: Vec<RouteMetric> = metrics.into_iter().flatten().collect();
        if !metrics.is_empty() {
            message.attributes.push(RouteAttribute::Metrics(metrics));
        }
        // The attribute takes precedence over the header's field, which has eight bits.
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.attributes.extend(route.table.map(RouteAttribute::Table));
        let through = route.gateway.map(|gateway| format!(" by {gateway}")).unwrap_or_default();
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        match self.netlink.execute("RTM_NEWROUTE", RouteNetlinkMessage::NewRoute(message), flags) {
            Ok(()) => Ok(()),
            Err(error) if error.errno() == Some(libc::EEXIST) => Err(Error::new(
                Code::NameTaken,
                format!("the pod has a route to {destination} already, so {} cannot bring one{through}", link.name),
            )),
            Err(error) => {
                Err(kernel_error(&format!("add the route to {destination}{through} over {}", link.name), &error))
            }
        }
    }
}

impl Links {
    /// Returns the default routes of all tables, one for each next hop.
    pub(crate) fn default_routes(&mut self) -> Result<Vec<DefaultRoute>> {
        let found = self.netlink.dump("RTM_GETROUTE", RouteNetlinkMessage::GetRoute(RouteMessage::default()));
        let found = found.map_err(|error| kernel_error("read the routes", &error))?;
        let routes = found.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewRoute(route) if route.header.destination_prefix_length == 0 => Some(route),
            _ => None,
        });
        Ok(routes.flat_map(|route| next_hops_of(&route)).collect())
    }

    /// Returns the destinations of all routes of the main table, without default routes.
    pub(crate) fn destinations(&mut self) -> Result<Vec<IpNetwork>> {
        let found = self.netlink.dump("RTM_GETROUTE", RouteNetlinkMessage::GetRoute(RouteMessage::default()));
        let found = found.map_err(|error| kernel_error("read the routes", &error))?;
        let destination = |route: &RouteMessage| {
            route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
                RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
                _ => None,
            })
        };
        let destinations = found.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewRoute(route) if route.header.table == RouteHeader::RT_TABLE_MAIN => {
                IpNetwork::new(destination(&route)?, route.header.destination_prefix_length).ok()
            }
            _ => None,
        });
        Ok(destinations.collect())
    }

    /// Returns the addresses of all links, with the index of the link.
    pub(crate) fn all_addresses(&mut self) -> Result<Vec<(u32, IpAddr)>> {
        let found = self.netlink.dump("RTM_GETADDR", RouteNetlinkMessage::GetAddress(AddressMessage::default()));
        let found = found.map_err(|error| kernel_error("read all addresses", &error))?.into_iter();
        let addresses = found.filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(message) => Some((message.header.index, address_of(&message)?)),
            _ => None,
        });
        Ok(addresses.collect())
    }
}

/// The settings of a bridge's port. All our ports have the same `group_fwd_mask`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PortSettings {
    /// Whether the bridge sends frames back through the port on which they arrived.
    pub(crate) hairpin: bool,
    /// Whether the bridge does not forward frames between this port and other ports with this
    /// setting.
    pub(crate) isolated: bool,
}

impl PortSettings {
    fn attributes(self) -> Vec<InfoBridgePort> {
        vec![
            InfoBridgePort::HairpinMode(self.hairpin),
            InfoBridgePort::Isolated(self.isolated),
            InfoBridgePort::GroupFwdMask(ALL_GROUPS),
        ]
    }

    /// Reads the settings from these attributes. `None` if `group_fwd_mask` has another value.
    fn read(attributes: &[InfoBridgePort]) -> Option<Self> {
        let hairpin = attributes.contains(&InfoBridgePort::HairpinMode(true));
        let isolated = attributes.contains(&InfoBridgePort::Isolated(true));
        attributes.contains(&InfoBridgePort::GroupFwdMask(ALL_GROUPS)).then_some(Self { hairpin, isolated })
    }
}

/// One next hop of a default route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DefaultRoute {
    /// Index of the link.
    pub(crate) device: u32,
    pub(crate) gateway: Option<IpAddr>,
    /// Whether the route is in the main table.
    pub(crate) main: bool,
    /// Whether the route is an IPv4 route.
    pub(crate) ipv4: bool,
}

fn next_hops_of(route: &RouteMessage) -> Vec<DefaultRoute> {
    let main = route.header.table == RouteHeader::RT_TABLE_MAIN;
    let ipv4 = route.header.address_family == AddressFamily::Inet;
    let gateway = |attributes: &[RouteAttribute]| {
        attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(address)) | RouteAttribute::Via(RouteVia::Inet(address)) => {
                Some(IpAddr::V4(*address))
            }
            RouteAttribute::Gateway(RouteAddress::Inet6(address)) | RouteAttribute::Via(RouteVia::Inet6(address)) => {
                Some(IpAddr::V6(*address))
            }
            _ => None,
        })
    };
    let device = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    let single = device.map(|device| DefaultRoute { device, gateway: gateway(&route.attributes), main, ipv4 });
    let hops = route.attributes.iter().filter_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => Some(hops),
        _ => None,
    });
    let of_hop = |hop: &RouteNextHop| DefaultRoute {
        device: hop.interface_index,
        gateway: gateway(&hop.attributes),
        main,
        ipv4,
    };
    single.into_iter().chain(hops.flatten().map(of_hop)).collect()
}

impl Link {
    fn read(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            up: message.header.flags.contains(LinkFlags::Up),
            loopback: message.header.flags.contains(LinkFlags::Loopback),
            ..Self::default()
        };
        let (mut peer, mut namespace) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::IfAlias(alias) => link.alias.clone_from(alias),
                LinkAttribute::Controller(index) => link.master = Some(*index),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Address(octets) => link.mac = octets.as_slice().try_into().unwrap_or_default(),
                LinkAttribute::LinkInfo(infos) => link.read_info(infos),
                LinkAttribute::Link(index) => peer = Some(*index),
                LinkAttribute::LinkNetNsId(id) => namespace = Some(*id),
                _ => {}
            }
        }
        link.peer = peer.zip(namespace);
        link
    }

    fn read_info(&mut self, infos: &[LinkInfo]) {
        for info in infos {
            match info {
                LinkInfo::Kind(InfoKind::Bridge) => self.kind = "bridge".into(),
                LinkInfo::Kind(InfoKind::Veth) => self.kind = "veth".into(),
                LinkInfo::Kind(kind) => self.kind = kind.to_string(),
                LinkInfo::PortData(InfoPortData::BridgePort(attributes)) => {
                    self.port = PortSettings::read(attributes);
                    self.port_state = attributes.iter().find_map(|attribute| match attribute {
                        InfoBridgePort::State(state) => Some(*state),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
    }
}

fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    // IPv6 addresses have no IFA_LOCAL, unless they have a peer address.
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn kernel_error(what: &str, error: &netlink::Error) -> Error {
    let hint = match error.errno() {
        Some(libc::EPERM) => "; edge-cni must run as root with CAP_NET_ADMIN",
        Some(libc::EOPNOTSUPP) => "; the kernel lacks what this needs (modules bridge, veth, dummy, ipv6)",
        _ => "",
    };
    Error::new(Code::Kernel, format!("cannot {what}{hint}: {error}"))
}

//! Links, addresses and routes of one network namespace, through one netlink socket.

use std::net::IpAddr;

use edge_types::IpNetwork;
use edge_xfrm::netlink::{
    self, AddressMessage, AddressRequest, BridgePort, LinkMessage, LinkRequest, Netlink, RawMessage, RouteMessage,
    RouteRequest, attribute,
};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};

pub(crate) use edge_xfrm::netlink::BridgePortState;

use crate::error::{Code, Error, Result};
use crate::mac::Mac;
use crate::pod_route::PodRoute;

/// `group_fwd_mask` of a port. With this mask, the bridge treats frames to the groups
/// 01:80:c2:00:00:0X like all other frames, so that the bridge's filter sees them. Without it, the
/// bridge learns addresses from such frames and passes LLDP frames to the host before any filter.
/// (It always drops pause frames, bit 1.)
const ALL_GROUPS: u16 = 0xfffd;

/// The names of requests, for errors.
const RTM_GETLINK: &str = "RTM_GETLINK";
const RTM_GETADDR: &str = "RTM_GETADDR";

/// Access to the links, addresses and routes of the network namespace in which the socket was
/// opened.
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
    /// Index of the bridge or other link to which this link belongs as a port.
    pub(crate) master: Option<u32>,
    /// The spanning tree state, if the link is a port of a bridge.
    pub(crate) port_state: Option<BridgePortState>,
    /// The port settings, if the link is a port that this release has configured.
    pub(crate) port: Option<PortSettings>,
    /// For a veth whose other end is in another namespace: the index of that end, and the ID of
    /// that namespace in this one.
    pub(crate) peer: Option<(u32, u32)>,
}

impl Links {
    /// Opens the socket in the thread's network namespace.
    pub(crate) fn open() -> Result<Self> {
        let netlink = Netlink::open(netlink_sys::protocols::NETLINK_ROUTE);
        Ok(Self { netlink: netlink.map_err(|error| kernel_error("open a netlink socket", &error))? })
    }

    /// Finds a link by its name.
    pub(crate) fn find(&mut self, name: &str) -> Result<Option<Link>> {
        self.get(LinkRequest::named(name), || format!("read link {name}"))
    }

    fn get(&mut self, request: LinkRequest, what: impl FnOnce() -> String) -> Result<Option<Link>> {
        let found = self.netlink.get(RTM_GETLINK, request.get());
        match found.and_then(|message: RawMessage| LinkMessage::read(RTM_GETLINK, &message)) {
            Ok(message) => Ok(Some(Link::from(message))),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(kernel_error(&what(), &error)),
        }
    }

    /// Returns all links.
    pub(crate) fn all(&mut self) -> Result<Vec<Link>> {
        let links = self.dump(RTM_GETLINK, LinkRequest::default().get(), LinkMessage::read, || "read all links".into());
        Ok(links?.into_iter().map(Link::from).collect())
    }

    fn dump<T>(
        &mut self,
        request: &'static str,
        message: RawMessage,
        read: impl Fn(&'static str, &RawMessage) -> netlink::Result<T>,
        what: impl FnOnce() -> String,
    ) -> Result<Vec<T>> {
        let found = self.netlink.dump(request, message);
        let read = |found: Vec<RawMessage>| found.iter().map(|message| read(request, message)).collect();
        found.and_then(read).map_err(|error| kernel_error(&what(), &error))
    }

    /// Creates a link. Returns `false` if a link with that name already exists.
    pub(crate) fn create(&mut self, what: &str, request: &LinkRequest) -> Result<bool> {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        match self.netlink.execute("RTM_NEWLINK", request.create(), flags) {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(kernel_error(&format!("create {what}"), &error)),
        }
    }

    /// Deletes a link. Succeeds if the link no longer exists.
    pub(crate) fn delete(&mut self, link: &Link) -> Result<()> {
        match self.netlink.execute("RTM_DELLINK", LinkRequest::of(link.index).delete(), 0) {
            Err(error) if error.errno() != Some(libc::ENODEV) => {
                Err(kernel_error(&format!("delete {}", link.name), &error))
            }
            _ => Ok(()),
        }
    }

    /// Brings a link up.
    pub(crate) fn set_up(&mut self, link: &Link) -> Result<()> {
        let mut request = LinkRequest::of(link.index);
        request.up(true);
        self.set_link(&format!("bring {} up", link.name), &request)
    }

    /// Makes a link a port of a bridge, and leaves it down. No frames pass until
    /// [`Self::bring_port_up`] has set the port's options. The kernel does not accept these options
    /// earlier.
    pub(crate) fn make_port(&mut self, link: &Link, bridge: &Link) -> Result<()> {
        let mut request = LinkRequest::of(link.index);
        request.up(false);
        self.set_link(&format!("bring {} down", link.name), &request)?;
        let mut request = LinkRequest::of(link.index);
        request.attributes.number(attribute::CONTROLLER, bridge.index);
        self.set_link(&format!("make {} a port of {}", link.name, bridge.name), &request)
    }

    /// Sets the alias and the settings of a bridge port, and brings it up.
    pub(crate) fn bring_port_up(&mut self, link: &Link, alias: &str, port: PortSettings) -> Result<()> {
        let mut request = LinkRequest::of(link.index);
        request.up(true);
        request.attributes.text(attribute::ALIAS, alias);
        self.send_port_settings(link, request, port)
    }

    /// Sets the settings of a bridge port.
    pub(crate) fn configure_port(&mut self, link: &Link, port: PortSettings) -> Result<()> {
        self.send_port_settings(link, LinkRequest::of(link.index), port)
    }

    fn send_port_settings(&mut self, link: &Link, mut request: LinkRequest, port: PortSettings) -> Result<()> {
        request.bridge_port(&port.into());
        // RTM_NEWLINK is used, since RTM_SETLINK ignores the settings of a port.
        let outcome = self.netlink.execute("RTM_NEWLINK", request.create(), 0);
        outcome.map_err(|error| kernel_error(&format!("set {} up as a port of the bridge", link.name), &error))
    }

    /// Sets the alias of a link.
    pub(crate) fn set_alias(&mut self, link: &Link, alias: &str) -> Result<()> {
        let mut request = LinkRequest::of(link.index);
        request.attributes.text(attribute::ALIAS, alias);
        self.set_link(&format!("set the alias of {}", link.name), &request)
    }

    /// Returns the MAC address of a veth's other end in another namespace. `None` if that end no
    /// longer exists.
    pub(crate) fn peer_mac(&mut self, link: &Link) -> Result<Option<Mac>> {
        let Some((index, namespace)) = link.peer else { return Ok(None) };
        let mut request = LinkRequest::of(index);
        request.attributes.number(attribute::TARGET_NETNS_ID, namespace);
        Ok(self.get(request, || format!("read the other end of {}", link.name))?.map(|peer| peer.mac))
    }

    /// Sets the MAC address of a link.
    pub(crate) fn set_mac(&mut self, link: &Link, mac: Mac) -> Result<()> {
        let mut request = LinkRequest::of(link.index);
        request.attributes.bytes(attribute::ADDRESS, &mac);
        self.set_link(&format!("set the MAC address of {}", link.name), &request)
    }

    /// Sets the MTU of a link, in bytes.
    pub(crate) fn set_mtu(&mut self, link: &Link, mtu: u32) -> Result<()> {
        let mut request = LinkRequest::of(link.index);
        request.attributes.number(attribute::MTU, mtu);
        self.set_link(&format!("set the MTU of {} to {mtu} bytes", link.name), &request)
    }

    fn set_link(&mut self, what: &str, request: &LinkRequest) -> Result<()> {
        let outcome = self.netlink.execute("RTM_SETLINK", request.set(), 0);
        outcome.map_err(|error| kernel_error(what, &error))
    }

    /// Returns the addresses of a link.
    pub(crate) fn addresses(&mut self, link: &Link) -> Result<Vec<IpAddr>> {
        Ok(self.addresses_with_prefix(link)?.iter().map(IpNetwork::ip).collect())
    }

    /// Returns the addresses of a link, with their prefix lengths.
    pub(crate) fn addresses_with_prefix(&mut self, link: &Link) -> Result<Vec<IpNetwork>> {
        let found = self.addresses_of(link, AddressMessage::dump(link.index))?.into_iter();
        Ok(found.filter_map(|found| IpNetwork::new(found.address?, found.prefix).ok()).collect())
    }

    fn addresses_of(&mut self, link: &Link, request: RawMessage) -> Result<Vec<AddressMessage>> {
        let what = || format!("read the addresses of {}", link.name);
        let mut found = self.dump(RTM_GETADDR, request, AddressMessage::read, what)?;
        found.retain(|found| found.index == link.index);
        Ok(found)
    }

    /// Removes an address from a link. Succeeds if the link does not have it.
    pub(crate) fn delete_address(&mut self, link: &Link, address: IpNetwork) -> Result<()> {
        let request = AddressRequest { index: link.index, address: address.ip(), prefix: address.prefix() };
        match self.netlink.execute("RTM_DELADDR", request.delete(), 0) {
            Err(error) if error.errno() != Some(libc::EADDRNOTAVAIL) => {
                Err(kernel_error(&format!("take the address {address} from {}", link.name), &error))
            }
            _ => Ok(()),
        }
    }

    /// Returns whether duplicate address detection is in progress for an address of the link. Fails
    /// if the detection found a duplicate.
    pub(crate) fn detects_duplicates(&mut self, link: &Link) -> Result<bool> {
        let mut goes_on = false;
        for found in self.addresses_of(link, AddressMessage::dump_ipv6(link.index))? {
            if found.duplicate() {
                let address = found.address.map(|address| address.to_string()).unwrap_or_default();
                return Err(Error::new(
                    Code::TryAgainLater,
                    format!(
                        "another interface on the bridge has the address {address}, as duplicate address detection found; look for who uses it, and try \
                         again"
                    ),
                ));
            }
            goes_on |= found.tentative();
        }
        Ok(goes_on)
    }

    /// Adds an address to a link. Succeeds if the link already has it. Without `detect_duplicates`,
    /// the kernel skips duplicate address detection, which would delay an IPv6 address by two
    /// seconds. There are no duplicates, since each address is leased only once.
    pub(crate) fn add_address(
        &mut self,
        link: &Link,
        address: IpAddr,
        prefix: u8,
        detect_duplicates: bool,
    ) -> Result<()> {
        let nodad = address.is_ipv6() && !detect_duplicates;
        let request = AddressRequest { index: link.index, address, prefix };
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        match self.netlink.execute("RTM_NEWADDR", request.create(nodad), flags) {
            Err(error) if error.errno() != Some(libc::EEXIST) => {
                Err(kernel_error(&format!("give {} the address {address}/{prefix}", link.name), &error))
            }
            _ => Ok(()),
        }
    }

    /// Adds a route over a link.
    pub(crate) fn add_route(&mut self, link: &Link, route: &PodRoute) -> Result<()> {
        let destination = route.destination;
        let mut request = RouteRequest::new(destination, link.index);
        request.scope = route.scope.unwrap_or(RouteRequest::UNIVERSE);
        request.gateway = route.gateway;
        request.priority = route.priority;
        request.mtu = route.mtu;
        request.advmss = route.advmss;
        request.table = route.table;
        let through = route.gateway.map(|gateway| format!(" by {gateway}")).unwrap_or_default();
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        match self.netlink.execute("RTM_NEWROUTE", request.create(), flags) {
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
    /// Returns the default routes of all tables, with one entry for each next hop.
    pub(crate) fn default_routes(&mut self) -> Result<Vec<DefaultRoute>> {
        let routes = self.routes()?.into_iter().filter(|route| route.default);
        Ok(routes.flat_map(next_hops_of).collect())
    }

    /// Returns the destinations of all routes of the main table, without default routes.
    pub(crate) fn destinations(&mut self) -> Result<Vec<IpNetwork>> {
        let routes = self.routes()?.into_iter().filter(|route| route.main);
        Ok(routes.filter_map(|route| route.destination).collect())
    }

    fn routes(&mut self) -> Result<Vec<RouteMessage>> {
        self.dump("RTM_GETROUTE", RouteMessage::dump(), RouteMessage::read, || "read the routes".into())
    }

    /// Returns the addresses of all links, with the index of the link.
    pub(crate) fn all_addresses(&mut self) -> Result<Vec<(u32, IpAddr)>> {
        let what = || "read all addresses".into();
        let found = self.dump(RTM_GETADDR, AddressMessage::dump(0), AddressMessage::read, what)?.into_iter();
        Ok(found.filter_map(|found| Some((found.index, found.address?))).collect())
    }
}

/// The settings of a bridge port. All ports of the plugin have the same `group_fwd_mask`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PortSettings {
    /// Whether the bridge sends frames back through the port on which they arrived.
    pub(crate) hairpin: bool,
    /// Whether the bridge does not forward frames between this port and other ports with this
    /// setting.
    pub(crate) isolated: bool,
}

impl PortSettings {
    /// Returns the settings of a port. `None` if `group_fwd_mask` has another value.
    fn read(port: BridgePort) -> Option<Self> {
        let BridgePort { hairpin, isolated, group_fwd_mask, .. } = port;
        (group_fwd_mask == ALL_GROUPS).then_some(Self { hairpin, isolated })
    }
}

impl From<PortSettings> for BridgePort {
    fn from(PortSettings { hairpin, isolated }: PortSettings) -> Self {
        Self { state: None, hairpin, isolated, group_fwd_mask: ALL_GROUPS }
    }
}

/// A next hop of a default route.
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

fn next_hops_of(route: RouteMessage) -> impl Iterator<Item = DefaultRoute> {
    let RouteMessage { main, ipv4, next_hops, .. } = route;
    next_hops.into_iter().map(move |hop| DefaultRoute { device: hop.device, gateway: hop.gateway, main, ipv4 })
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        Self {
            index: message.index,
            name: message.name,
            kind: message.kind,
            mac: message.address.as_slice().try_into().unwrap_or_default(),
            mtu: message.mtu,
            up: message.up,
            loopback: message.loopback,
            alias: message.alias,
            master: message.controller,
            port_state: message.port.and_then(|port| port.state),
            port: message.port.and_then(PortSettings::read),
            peer: message.link.zip(message.link_netns_id),
        }
    }
}

fn kernel_error(what: &str, error: &netlink::Error) -> Error {
    let hint = match error.errno() {
        Some(libc::EPERM) => "; edge-cni must run as root with CAP_NET_ADMIN",
        Some(libc::EOPNOTSUPP) => "; the kernel lacks what this needs (modules bridge, veth, dummy, ipv6)",
        _ => "",
    };
    Error::new(Code::Kernel, format!("cannot {what}{hint}: {error}"))
}

//! The dummy device that carries a route for every cluster range. A packet that no policy matches
//! is sent to this device and dropped, instead of leaving by the default route. (With an
//! `unreachable` route the kernel would refuse the packet before it looks up XFRM policies.)

use std::collections::HashSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::config::GuardConfig;
use super::defect::Defect;
use super::route::{DEVICE, GuardRoute, ROUTE_PROTOCOL};
use crate::error::{Error, Result};
use crate::netlink::{self, Netlink};

/// Kinds that the device may have, best first. A bridge without ports drops packets as well, and
/// pods need bridges anyway.
const KINDS: [InfoKind; 2] = [InfoKind::Dummy, InfoKind::Bridge];
/// Metric of the routes with the node's source address. It is high, so that another route to the
/// same range takes precedence: that of the bridge, on a node whose segment is the whole range.
const METRIC_WITH_SOURCE: u32 = 0x00EC_0000;
/// Metric of the routes without a source address, which have lower precedence. They stay when the
/// bridge's address is removed, while the kernel deletes the routes with that address as source.
const METRIC_BARE: u32 = 0x00EC_0001;

/// The device, accessed through its own socket.
pub(super) struct Device {
    netlink: Netlink,
}

impl Device {
    pub(super) fn open() -> Result<Self> {
        Ok(Self { netlink: Netlink::open(NETLINK_ROUTE)? })
    }

    pub(super) fn check(&mut self, config: &GuardConfig) -> Result<Vec<Defect>> {
        let Some((index, up)) = self.find()? else {
            return Ok(std::iter::once(Defect::Device)
                .chain(wanted_routes(config).into_iter().map(Defect::Route))
                .collect());
        };
        let mut defects = if up { Vec::new() } else { vec![Defect::Device] };
        defects.extend(self.missing_routes(index, config)?.into_iter().map(Defect::Route));
        Ok(defects)
    }

    pub(super) fn install(&mut self, config: &GuardConfig) -> Result<Vec<Defect>> {
        let mut defects = Vec::new();
        let index = match self.find()? {
            Some((index, true)) => index,
            found => {
                defects.push(Defect::Device);
                if found.is_none() {
                    self.create()?;
                }
                let (index, up) = self.find()?.ok_or_else(|| Error::GuardDevice {
                    reason: format!("interface {DEVICE} vanished as soon as it was made: another program deletes it"),
                })?;
                if !up {
                    self.set_up(index)?;
                }
                index
            }
        };
        if config.cluster_ranges.iter().any(IpNetwork::is_ipv6) {
            enable_ipv6();
        }
        let missing = self.missing_routes(index, config)?;
        for route in &missing {
            self.add_route(index, route)?;
        }
        defects.extend(missing.into_iter().map(Defect::Route));
        Ok(defects)
    }

    /// Removes the device. Returns whether it existed.
    pub(super) fn remove(&mut self) -> Result<bool> {
        let Some((index, _)) = self.find()? else { return Ok(false) };
        let mut message = LinkMessage::default();
        message.header.index = index;
        match self.netlink.execute("delete the guard's device (RTM_DELLINK)", RouteNetlinkMessage::DelLink(message), 0)
        {
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(false),
            outcome => Ok(outcome.map(|()| true)?),
        }
    }

    /// Returns the index of the device and whether it is up. An interface of another kind with the
    /// same name is an error.
    fn find(&mut self) -> Result<Option<(u32, bool)>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(DEVICE.to_owned()));
        let request = "look for the guard's device (RTM_GETLINK)";
        let link = match self.netlink.get(request, RouteNetlinkMessage::GetLink(message)) {
            Ok(RouteNetlinkMessage::NewLink(link)) => link,
            Ok(_) => return Err(netlink::Error::Malformed { request, reason: "it is not a link".into() }.into()),
            Err(error) if error.errno() == Some(libc::ENODEV) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let ours = link.attributes.iter().any(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => KINDS.iter().any(|kind| infos.contains(&LinkInfo::Kind(kind.clone()))),
            _ => false,
        });
        if !ours {
            let reason = format!("interface {DEVICE} exists and is not a dummy device: rename or delete it");
            return Err(Error::GuardDevice { reason });
        }
        Ok(Some((link.header.index, link.header.flags.contains(LinkFlags::Up))))
    }

    fn create(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        for kind in KINDS {
            let mut message = LinkMessage::default();
            // A dummy device does not use ARP. ARP is turned off for a bridge too, so that packets
            // are dropped at once, without a neighbour lookup.
            message.header.flags = LinkFlags::Up | LinkFlags::Noarp;
            message.header.change_mask = LinkFlags::Up | LinkFlags::Noarp;
            message.attributes.push(LinkAttribute::IfName(DEVICE.to_owned()));
            message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
            let request = "make the guard's device (RTM_NEWLINK; CONFIG_DUMMY)";
            outcome = self.netlink.execute(request, RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL);
            match &outcome {
                // This kernel lacks this kind of device, so try the next one.
                Err(error) if error.errno() == Some(libc::EOPNOTSUPP) => {}
                // Another process has created the device.
                Err(error) if error.errno() == Some(libc::EEXIST) => return Ok(()),
                _ => break,
            }
        }
        Ok(outcome?)
    }

    fn set_up(&mut self, index: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        let request = "set the guard's device up (RTM_NEWLINK)";
        Ok(self.netlink.execute(request, RouteNetlinkMessage::NewLink(message), 0)?)
    }

    fn missing_routes(&mut self, index: u32, config: &GuardConfig) -> Result<Vec<GuardRoute>> {
        let wanted = wanted_routes(config);
        let mut present = HashSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            if wanted.iter().any(|route| family_of(&route.range) == family) {
                present.extend(self.routes(index, family)?);
            }
        }
        Ok(wanted.into_iter().filter(|route| !present.contains(route)).collect())
    }

    /// Reads our routes over the device.
    fn routes(&mut self, index: u32, family: AddressFamily) -> Result<Vec<GuardRoute>> {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.attributes.push(RouteAttribute::Oif(index));
        let request = "read the guard's routes (RTM_GETROUTE)";
        let answers: Vec<RouteNetlinkMessage> = match self.netlink.dump(request, RouteNetlinkMessage::GetRoute(message))
        {
            Ok(answers) => answers,
            // There is no route over this device yet: an IPv6 table that was never used does not
            // exist.
            Err(error) if error.errno() == Some(libc::ENOENT) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        Ok(answers.iter().filter_map(|answer| guard_route(answer, index)).collect())
    }

    fn add_route(&mut self, index: u32, route: &GuardRoute) -> Result<()> {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: family_of(&route.range),
            destination_prefix_length: route.range.prefix(),
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: RouteProtocol::from(ROUTE_PROTOCOL),
            scope: if route.range.is_ipv4() { RouteScope::Link } else { RouteScope::Universe },
            kind: RouteType::Unicast,
            ..RouteHeader::default()
        };
        message.attributes.push(RouteAttribute::Destination(RouteAddress::from(route.range.network())));
        message.attributes.push(RouteAttribute::Oif(index));
        message.attributes.push(RouteAttribute::Priority(metric(route)));
        message.attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(RouteAddress::from(source))));
        let request = "add a route of the guard (RTM_NEWROUTE)";
        // The request replaces an existing route, since the bridge's address may have changed.
        self.netlink.execute(request, RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE).map_err(
            |error| {
                let hint = match error.errno() {
                    Some(libc::EINVAL) if route.source.is_some() => {
                        " (the host has no such address, or it is still tentative)"
                    }
                    Some(libc::EACCES) => " (IPv6 is turned off for new devices: net.ipv6.conf.default.disable_ipv6)",
                    _ => "",
                };
                Error::Guard { what: format!("route {route}{hint}"), error: Box::new(error.into()) }
            },
        )
    }
}

fn wanted_routes(config: &GuardConfig) -> Vec<GuardRoute> {
    let mut routes = Vec::new();
    for range in &config.cluster_ranges {
        let range = IpNetwork::new(range.network(), range.prefix()).unwrap_or(*range);
        routes.push(GuardRoute { range, source: None });
        let source = config.bridge_addresses.iter().find(|address| address.is_ipv4() == range.is_ipv4());
        routes.extend(source.map(|source| GuardRoute { range, source: Some(*source) }));
    }
    routes
}

fn metric(route: &GuardRoute) -> u32 {
    if route.source.is_some() { METRIC_WITH_SOURCE } else { METRIC_BARE }
}

/// Reads a route of ours from the kernel's response.
fn guard_route(answer: &RouteNetlinkMessage, index: u32) -> Option<GuardRoute> {
    let RouteNetlinkMessage::NewRoute(message) = answer else { return None };
    if message.header.protocol != RouteProtocol::from(ROUTE_PROTOCOL)
        || message.header.table != RouteHeader::RT_TABLE_MAIN
    {
        return None;
    }
    let (mut destination, mut source, mut priority, mut device) = (None, None, 0, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address),
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Priority(metric) => priority = *metric,
            RouteAttribute::Oif(oif) => device = *oif,
            _ => {}
        }
    }
    let range = IpNetwork::new(destination?, message.header.destination_prefix_length).ok()?;
    let route = GuardRoute { range, source };
    (device == index && priority == metric(&route)).then_some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

fn family_of(network: &IpNetwork) -> AddressFamily {
    if network.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// Turns IPv6 on for the device, since it may be off for new devices. If the setting cannot be
/// written, adding the route fails and reports the error.
fn enable_ipv6() {
    let path = format!("/proc/sys/net/ipv6/conf/{DEVICE}/disable_ipv6");
    if std::fs::read_to_string(&path).is_ok_and(|text| text.trim() == "1") {
        let _ = std::fs::write(&path, "0");
    }
}

//! The dummy device that carries a route for every cluster range. A packet that no policy matches
//! is sent to this device and dropped, instead of leaving over the default route. (With an
//! `unreachable` route the kernel would refuse the packet before it looks up XFRM policies.)

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::config::GuardConfig;
use super::defect::Defect;
use super::route::{DEVICE, GuardRoute, ROUTE_PROTOCOL};
use crate::error::{Error, Result};
use crate::netlink::{LinkMessage, LinkRequest, Netlink, RawMessage, RouteMessage, RouteRequest};

/// Kinds that the device may have, in order of preference. A bridge without ports also drops
/// packets, and every kernel that runs pods supports bridges.
const KINDS: [&str; 2] = ["dummy", "bridge"];
/// Metric of the routes with the node's source address. It is high, so that another route to the
/// same range takes precedence, such as the bridge's route on a node whose segment is the whole
/// range.
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
        // A source address may be refused, for example while it is tentative. The other routes are
        // still needed, so the last refused one is added again after them, for its error.
        let refused = missing.iter().filter(|route| self.add_route(index, route).is_err()).last();
        if let Some(route) = refused {
            self.add_route(index, route)?;
        }
        defects.extend(missing.into_iter().map(Defect::Route));
        Ok(defects)
    }

    /// Removes the device. Returns `false` if there was none.
    pub(super) fn remove(&mut self) -> Result<bool> {
        let Some((index, _)) = self.find()? else { return Ok(false) };
        let request = "delete the guard's device (RTM_DELLINK)";
        match self.netlink.execute(request, LinkRequest::of(index).delete(), 0) {
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(false),
            outcome => Ok(outcome.map(|()| true)?),
        }
    }

    /// Returns the index of the device and whether it is up, or `None` if it does not exist.
    /// Returns an error if an interface of another kind has its name.
    fn find(&mut self) -> Result<Option<(u32, bool)>> {
        let request = "look for the guard's device (RTM_GETLINK)";
        let found = self.netlink.get(request, LinkRequest::named(DEVICE).get());
        let link = match found.and_then(|message: RawMessage| LinkMessage::read(request, &message)) {
            Ok(link) => link,
            Err(error) if error.errno() == Some(libc::ENODEV) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let ours = KINDS.contains(&link.kind.as_str());
        if !ours {
            let reason = format!("interface {DEVICE} exists and is not a dummy device: rename or delete it");
            return Err(Error::GuardDevice { reason });
        }
        Ok(Some((link.index, link.up)))
    }

    fn create(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        for kind in KINDS {
            let mut device = LinkRequest::named(DEVICE);
            // A dummy device does not use ARP. ARP is turned off for a bridge too, so that packets
            // are dropped immediately, without a neighbour lookup.
            device.up(true);
            device.without_arp();
            device.kind(kind);
            let request = "make the guard's device (RTM_NEWLINK; CONFIG_DUMMY)";
            outcome = self.netlink.execute(request, device.create(), NLM_F_CREATE | NLM_F_EXCL);
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
        let mut device = LinkRequest::of(index);
        device.up(true);
        let request = "set the guard's device up (RTM_NEWLINK)";
        Ok(self.netlink.execute(request, device.create(), 0)?)
    }

    fn missing_routes(&mut self, index: u32, config: &GuardConfig) -> Result<Vec<GuardRoute>> {
        let wanted = wanted_routes(config);
        let mut present = Vec::new();
        for ipv4 in [true, false] {
            if wanted.iter().any(|route| route.range.is_ipv4() == ipv4) {
                present.extend(self.routes(index, ipv4)?);
            }
        }
        Ok(wanted.into_iter().filter(|route| !present.contains(route)).collect())
    }

    /// Reads our routes over the device with this index.
    fn routes(&mut self, index: u32, ipv4: bool) -> Result<Vec<GuardRoute>> {
        let request = "read the guard's routes (RTM_GETROUTE)";
        let answers: Vec<RawMessage> = match self.netlink.dump(request, RouteMessage::dump_over(index, ipv4)) {
            Ok(answers) => answers,
            // There is no route over this device yet: the kernel does not create the IPv6 table
            // before it is first used.
            Err(error) if error.errno() == Some(libc::ENOENT) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut routes = Vec::new();
        for answer in &answers {
            routes.extend(guard_route(&RouteMessage::read(request, answer)?, index));
        }
        Ok(routes)
    }

    fn add_route(&mut self, index: u32, route: &GuardRoute) -> Result<()> {
        let mut wanted = RouteRequest::new(route.range, index);
        wanted.protocol = ROUTE_PROTOCOL;
        wanted.scope = if route.range.is_ipv4() { RouteRequest::LINK } else { RouteRequest::UNIVERSE };
        wanted.priority = Some(metric(route));
        wanted.source = route.source;
        let request = "add a route of the guard (RTM_NEWROUTE)";
        // The request replaces an existing route, since the bridge's address may have changed.
        self.netlink.execute(request, wanted.create(), NLM_F_CREATE | NLM_F_REPLACE).map_err(|error| {
            let hint = match error.errno() {
                Some(libc::EINVAL | libc::EACCES) => {
                    " (the host has no such address, it is still tentative, or net.ipv6.conf.default.disable_ipv6 is 1)"
                }
                _ => "",
            };
            Error::Guard { what: format!("route {route}{hint}"), error: Box::new(error.into()) }
        })
    }
}

fn wanted_routes(config: &GuardConfig) -> Vec<GuardRoute> {
    let mut routes = Vec::new();
    for range in &config.cluster_ranges {
        let other = config
            .sources
            .iter()
            .filter(|(other, _)| other == range)
            .map(|(_, source)| *source)
            .max_by_key(Option::is_some);
        let range = IpNetwork::new(range.network(), range.prefix()).unwrap_or(*range);
        routes.push(GuardRoute { range, source: None });
        let bridge = || config.bridge_addresses.iter().copied().find(|address| address.is_ipv4() == range.is_ipv4());
        let source = other.unwrap_or_else(bridge);
        routes.extend(source.map(|source| GuardRoute { range, source: Some(source) }));
    }
    routes
}

fn metric(route: &GuardRoute) -> u32 {
    if route.source.is_some() { METRIC_WITH_SOURCE } else { METRIC_BARE }
}

/// Returns the route, if it is one of the guard's.
fn guard_route(message: &RouteMessage, index: u32) -> Option<GuardRoute> {
    let device = message.next_hops.first()?.device;
    let route = GuardRoute { range: message.destination?, source: message.source };
    (message.protocol == ROUTE_PROTOCOL && message.main && device == index && message.priority == metric(&route))
        .then_some(route)
}

/// Turns IPv6 on for the device, since the host may turn it off for new devices. If the setting
/// cannot be written, adding the route fails and reports the error.
fn enable_ipv6() {
    let path = format!("/proc/sys/net/ipv6/conf/{DEVICE}/disable_ipv6");
    if std::fs::read_to_string(&path).is_ok_and(|text| text.trim() == "1") {
        let _ = std::fs::write(&path, "0");
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn of_two_tunnels_to_the_same_range_the_one_with_an_address_gives_the_source() {
        let range: IpNetwork = "10.2.0.0/16".parse().unwrap();
        let address: IpAddr = "10.9.0.1".parse().unwrap();
        for sources in [[None, Some(address)], [Some(address), None]] {
            let sources = sources.map(|source| (range, source)).to_vec();
            let config = GuardConfig { cluster_ranges: vec![range], sources, ..GuardConfig::default() };
            let found: Vec<_> = wanted_routes(&config).into_iter().map(|route| route.source).collect();
            assert_eq!(found, [None, Some(address)]);
        }
    }
}

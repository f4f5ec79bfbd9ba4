//! Routes: `struct rtmsg` and `linux/rtnetlink.h`.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::DecodeError;

use super::values::{FAMILY_IPV4, FAMILY_IPV6, address, each_attribute, family_of, number, octets_of, read};
use crate::netlink::error::Result;
use crate::netlink::message::{Attributes, RawMessage};

/// Length of the fixed part, bytes (`struct rtmsg`).
const FIXED: usize = 12;
/// Length of the fixed part of one of several next hops, bytes (`struct rtnexthop`).
const NEXT_HOP: usize = 8;

const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;

const RT_TABLE_MAIN: u8 = 254;
const RTN_UNICAST: u8 = 1;

/// A request for a unicast route over a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteRequest {
    /// Destination network.
    pub destination: IpNetwork,
    /// Index of the link.
    pub device: u32,
    /// `RTPROT_...`: the origin of the route.
    pub protocol: u8,
    /// `RT_SCOPE_...`.
    pub scope: u8,
    /// The next hop.
    pub gateway: Option<IpAddr>,
    /// The source address of the node's own packets.
    pub source: Option<IpAddr>,
    /// The metric. If `None`, the kernel chooses one.
    pub priority: Option<u32>,
    /// MTU, bytes.
    pub mtu: Option<u32>,
    /// The TCP maximum segment size to advertise, bytes.
    pub advmss: Option<u32>,
    /// The table, if it is not the main one.
    pub table: Option<u32>,
}

impl RouteRequest {
    /// `RTPROT_STATIC`.
    pub const STATIC: u8 = 4;
    /// `RT_SCOPE_UNIVERSE`.
    pub const UNIVERSE: u8 = 0;
    /// `RT_SCOPE_LINK`.
    pub const LINK: u8 = 253;

    /// Makes a request for a route to this network over the link with this index.
    #[must_use]
    pub fn new(destination: IpNetwork, device: u32) -> Self {
        Self {
            destination,
            device,
            protocol: Self::STATIC,
            scope: Self::UNIVERSE,
            gateway: None,
            source: None,
            priority: None,
            mtu: None,
            advmss: None,
            table: None,
        }
    }

    /// Returns the `RTM_NEWROUTE` request.
    #[must_use]
    pub fn create(&self) -> RawMessage {
        let mut attributes = Attributes::default();
        if self.destination.prefix() > 0 {
            attributes.bytes(RTA_DST, &octets_of(self.destination.network()));
        }
        for (kind, address) in [(RTA_GATEWAY, self.gateway), (RTA_PREFSRC, self.source)] {
            if let Some(address) = address {
                attributes.bytes(kind, &octets_of(address));
            }
        }
        // The table attribute takes precedence over the field in the fixed part, which has only
        // eight bits.
        for (kind, value) in [(RTA_OIF, Some(self.device)), (RTA_PRIORITY, self.priority), (RTA_TABLE, self.table)] {
            if let Some(value) = value {
                attributes.number(kind, value);
            }
        }
        if self.mtu.is_some() || self.advmss.is_some() {
            attributes.nest(RTA_METRICS, |metrics| {
                for (kind, value) in [(RTAX_MTU, self.mtu), (RTAX_ADVMSS, self.advmss)] {
                    if let Some(value) = value {
                        metrics.number(kind, value);
                    }
                }
            });
        }
        let family = family_of(self.destination.ip());
        let prefix = self.destination.prefix();
        // The zeros after `prefix` are the prefix length of the source and the type of service; the
        // last four are the flags.
        let mut body = vec![family, prefix, 0, 0, RT_TABLE_MAIN, self.protocol, self.scope, RTN_UNICAST, 0, 0, 0, 0];
        body.extend(attributes.octets());
        RawMessage { kind: RTM_NEWROUTE, body }
    }
}

/// A route, as `RTM_NEWROUTE` reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteMessage {
    /// Whether it is an IPv4 route.
    pub ipv4: bool,
    /// Destination network. `None` for a default route, or another family than IPv4 and IPv6.
    pub destination: Option<IpNetwork>,
    /// Whether it is a default route.
    pub default: bool,
    /// Whether it is in the main table.
    pub main: bool,
    /// `RTPROT_...`: the origin of the route.
    pub protocol: u8,
    /// The source address of the node's own packets.
    pub source: Option<IpAddr>,
    /// The metric.
    pub priority: u32,
    /// Next hops for the packets: none, one, or several from which the kernel chooses.
    pub next_hops: Vec<NextHop>,
}

/// A next hop of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextHop {
    /// Index of the link.
    pub device: u32,
    /// The router (`RTA_GATEWAY` or `RTA_VIA`).
    pub gateway: Option<IpAddr>,
}

impl RouteMessage {
    /// Returns a request for all routes.
    #[must_use]
    pub fn dump() -> RawMessage {
        RawMessage { kind: RTM_GETROUTE, body: vec![0; FIXED] }
    }

    /// Returns a request for the IPv4 or IPv6 routes over a link.
    #[must_use]
    pub fn dump_over(device: u32, ipv4: bool) -> RawMessage {
        let mut attributes = Attributes::default();
        attributes.number(RTA_OIF, device);
        let mut body = vec![if ipv4 { FAMILY_IPV4 } else { FAMILY_IPV6 }];
        body.resize(FIXED, 0);
        body.extend(attributes.octets());
        RawMessage { kind: RTM_GETROUTE, body }
    }

    /// Parses the kernel's response to `request`.
    ///
    /// # Errors
    /// Returns an error if the message is not an `RTM_NEWROUTE`, or is malformed.
    pub fn read(request: &'static str, message: &RawMessage) -> Result<Self> {
        read(request, message, RTM_NEWROUTE, Self::read_body)
    }

    fn read_body(body: &[u8]) -> Result<Self, DecodeError> {
        let [family, prefix, _, _, table, protocol, ..] =
            *body.first_chunk::<FIXED>().ok_or("it is shorter than its fixed part")?;
        let (mut destination, mut source, mut priority) = (None, None, 0);
        let (mut device, mut gateway, mut several) = (None, None, Vec::new());
        each_attribute(body, FIXED, |kind, value| {
            match kind {
                RTA_DST => destination = Some(value.to_vec()),
                RTA_OIF => device = Some(number(value)?),
                RTA_PREFSRC => source = address(value).ok(),
                RTA_PRIORITY => priority = number(value)?,
                RTA_MULTIPATH => several = next_hops(value)?,
                _ => read_gateway(kind, value, &mut gateway),
            }
            Ok(())
        })?;
        let ip = matches!(family, FAMILY_IPV4 | FAMILY_IPV6);
        let destination = destination.filter(|_| ip).map(|value| address(&value)).transpose()?;
        let mut next_hops: Vec<NextHop> = device.map(|device| NextHop { device, gateway }).into_iter().collect();
        next_hops.extend(several);
        Ok(Self {
            ipv4: family == FAMILY_IPV4,
            destination: destination.and_then(|address| IpNetwork::new(address, prefix).ok()),
            default: prefix == 0,
            main: table == RT_TABLE_MAIN,
            protocol,
            source,
            priority,
            next_hops,
        })
    }
}

/// Parses an attribute that holds an IPv4 or IPv6 router. Leaves `gateway` unchanged for other
/// attributes.
fn read_gateway(kind: u16, value: &[u8], gateway: &mut Option<IpAddr>) {
    let found = match (kind, value) {
        (RTA_GATEWAY, value) => address(value),
        // `struct rtvia`: the family, then the address.
        (RTA_VIA, [_, _, value @ ..]) => address(value),
        _ => return,
    };
    *gateway = found.ok().or(*gateway);
}

/// Parses each `struct rtnexthop` with its attributes.
fn next_hops(mut bytes: &[u8]) -> Result<Vec<NextHop>, DecodeError> {
    let mut hops = Vec::new();
    while let Some([l0, l1, _, _, i0, i1, i2, i3]) = bytes.first_chunk::<NEXT_HOP>() {
        let length = usize::from(u16::from_ne_bytes([*l0, *l1]));
        let hop = bytes.get(..length).ok_or("a next hop ends beyond its message")?;
        let mut gateway = None;
        each_attribute(hop, NEXT_HOP, |kind, value| {
            read_gateway(kind, value, &mut gateway);
            Ok(())
        })?;
        hops.push(NextHop { device: u32::from_ne_bytes([*i0, *i1, *i2, *i3]), gateway });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(hops)
}

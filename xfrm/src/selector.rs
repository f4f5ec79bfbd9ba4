//! The selector: the packets that an SA or a policy matches.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_xfrm as nl;

use crate::uapi;

/// The error for a selector or an SA with one IPv4 side and one IPv6 side.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{one} and {other} are of different address families")]
pub struct MixedFamilies {
    /// One side.
    pub one: String,
    /// The other side.
    pub other: String,
}

/// A port and the mask of its significant bits (`xfrm_selector` in `linux/xfrm.h`). All zeros match
/// any port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PortMask {
    /// Value of the port.
    pub value: u16,
    /// Mask: `0xffff` for one port, 0 for any port.
    pub mask: u16,
}

impl PortMask {
    /// Any port.
    pub const ANY: PortMask = PortMask { value: 0, mask: 0 };

    /// Returns the value and mask that match exactly this port.
    pub const fn exactly(value: u16) -> PortMask {
        PortMask { value, mask: 0xffff }
    }
}

/// Source and destination networks, protocol and ports. Within one direction the kernel keeps at
/// most one policy for a selector, regardless of priority and owner, so the selector identifies a
/// policy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    source: IpNetwork,
    destination: IpNetwork,
    protocol: u8,
    source_port: PortMask,
    destination_port: PortMask,
    interface: i32,
    uid: u32,
}

impl Selector {
    /// Makes a selector for all packets from one network to another. Host bits are cleared, since
    /// the kernel compares selectors bit by bit.
    pub fn new(source: IpNetwork, destination: IpNetwork) -> Result<Self, MixedFamilies> {
        if source.is_ipv4() != destination.is_ipv4() {
            return Err(MixedFamilies { one: source.to_string(), other: destination.to_string() });
        }
        Ok(Self {
            source: canonical(source),
            destination: canonical(destination),
            protocol: 0,
            source_port: PortMask::ANY,
            destination_port: PortMask::ANY,
            interface: 0,
            uid: 0,
        })
    }

    /// Narrows the selector to one IP protocol (6 TCP, 17 UDP, ...) and to ports. Protocol 0
    /// matches any protocol.
    #[must_use]
    pub fn with_protocol(mut self, protocol: u8, source_port: PortMask, destination_port: PortMask) -> Self {
        self.protocol = protocol;
        self.source_port = source_port;
        self.destination_port = destination_port;
        self
    }

    /// Returns the same selector with source and destination exchanged.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            ..self
        }
    }

    /// Returns the source network.
    pub fn source(&self) -> IpNetwork {
        self.source
    }

    /// Returns the destination network.
    pub fn destination(&self) -> IpNetwork {
        self.destination
    }

    /// Returns the IP protocol, 0 for any.
    pub fn protocol(&self) -> u8 {
        self.protocol
    }

    /// Returns the source port.
    pub fn source_port(&self) -> PortMask {
        self.source_port
    }

    /// Returns the destination port.
    pub fn destination_port(&self) -> PortMask {
        self.destination_port
    }

    /// Returns whether the selector is for IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.source.is_ipv4()
    }

    /// Makes a selector for all packets of one family.
    pub fn any(ipv4: bool) -> Self {
        let any = any_network(ipv4);
        Self {
            source: any,
            destination: any,
            protocol: 0,
            source_port: PortMask::ANY,
            destination_port: PortMask::ANY,
            interface: 0,
            uid: 0,
        }
    }

    /// Returns the unspecified address of this selector's family.
    pub(crate) fn any_address(&self) -> IpAddr {
        any_network(self.is_ipv4()).ip()
    }

    pub(crate) fn to_kernel(self) -> nl::Selector {
        nl::Selector {
            daddr: nl::Address::from_ip(&self.destination.ip()),
            saddr: nl::Address::from_ip(&self.source.ip()),
            dport: self.destination_port.value,
            dport_mask: self.destination_port.mask,
            sport: self.source_port.value,
            sport_mask: self.source_port.mask,
            family: uapi::family_of(self.source.ip()),
            prefixlen_d: self.destination.prefix(),
            prefixlen_s: self.source.prefix(),
            proto: self.protocol,
            ifindex: self.interface,
            user: self.uid,
        }
    }

    /// Parses a selector from the kernel. Returns `None` if the family or a prefix length is
    /// invalid.
    pub(crate) fn from_kernel(raw: &nl::Selector) -> Option<Self> {
        let network = |address: &nl::Address, prefix: u8| {
            let ip = uapi::address(address, raw.family)?;
            IpNetwork::new(ip, prefix).ok()
        };
        Some(Self {
            source: network(&raw.saddr, raw.prefixlen_s)?,
            destination: network(&raw.daddr, raw.prefixlen_d)?,
            protocol: raw.proto,
            source_port: PortMask { value: raw.sport, mask: raw.sport_mask },
            destination_port: PortMask { value: raw.dport, mask: raw.dport_mask },
            interface: raw.ifindex,
            uid: raw.user,
        })
    }
}

impl fmt::Display for PortMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mask {
            0 => f.write_str("any"),
            0xffff => write!(f, "{}", self.value),
            mask => write!(f, "{}/{mask:#06x}", self.value),
        }
    }
}

impl fmt::Debug for PortMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.source, self.destination)?;
        if self.protocol != 0 {
            write!(f, " proto {}", self.protocol)?;
        }
        if self.source_port != PortMask::ANY {
            write!(f, " sport {}", self.source_port)?;
        }
        if self.destination_port != PortMask::ANY {
            write!(f, " dport {}", self.destination_port)?;
        }
        if self.interface != 0 {
            write!(f, " dev {}", self.interface)?;
        }
        if self.uid != 0 {
            write!(f, " uid {}", self.uid)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Returns `0.0.0.0/0` or `::/0`.
pub(crate) fn any_network(ipv4: bool) -> IpNetwork {
    let unspecified: IpAddr =
        if ipv4 { std::net::Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    match unspecified {
        IpAddr::V4(ip) => IpNetwork::V4(ipnetwork::Ipv4Network::new_checked(ip, 0).unwrap_or_else(|| ip.into())),
        IpAddr::V6(ip) => IpNetwork::V6(ipnetwork::Ipv6Network::new_checked(ip, 0).unwrap_or_else(|| ip.into())),
    }
}

fn canonical(network: IpNetwork) -> IpNetwork {
    IpNetwork::new(network.network(), network.prefix()).unwrap_or(network)
}

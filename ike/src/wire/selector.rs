//! Traffic selectors (RFC 7296 3.13).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::reader::{InvalidMessage, Reader};

/// Maximum number of selectors of one payload. The count field has one octet.
pub const MAX_SELECTORS: usize = 255;

const TS_IPV4_ADDR_RANGE: u8 = 7;
const TS_IPV6_ADDR_RANGE: u8 = 8;

/// A range of addresses and ports of one protocol. Both addresses have the same family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrafficSelector {
    /// IP protocol. 0 matches any protocol.
    pub protocol: u8,
    /// First port, or ICMP type and code (RFC 7296 3.13.1). A start of 65535 with an end of 0 means
    /// OPAQUE: the selector matches no port.
    pub start_port: u16,
    /// Last port.
    pub end_port: u16,
    /// First address.
    pub start: IpAddr,
    /// Last address.
    pub end: IpAddr,
}

impl TrafficSelector {
    /// Makes a selector for any protocol and port of the addresses from `start` to `end`. Returns
    /// `None` if the addresses have different families or are in the wrong order.
    pub fn addresses(start: IpAddr, end: IpAddr) -> Option<Self> {
        let ordered = start <= end && start.is_ipv4() == end.is_ipv4();
        //= RFC 7296 3.13.1 MUST 1: all ports begin at 0
        //= RFC 7296 3.13.1 MUST 2: all ports end at 65535
        ordered.then_some(Self { protocol: 0, start_port: 0, end_port: u16::MAX, start, end })
    }

    /// Returns whether the selector matches all ports.
    //= RFC 7296 3.13.1 MUST 3: ANY
    pub fn any_port(&self) -> bool {
        self.start_port == 0 && self.end_port == u16::MAX
    }

    /// Returns the intersection of both selectors, or `None` if it is empty (RFC 7296 2.9).
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        let protocol = match (self.protocol, other.protocol) {
            (0, protocol) | (protocol, 0) => protocol,
            (a, b) if a == b => a,
            _ => return None,
        };
        if self.start.is_ipv4() != other.start.is_ipv4() {
            return None;
        }
        let (start, end) = (self.start.max(other.start), self.end.min(other.end));
        let (start_port, end_port) = match (self.any_port(), other.any_port()) {
            (true, _) => (other.start_port, other.end_port),
            (_, true) => (self.start_port, self.end_port),
            // OPAQUE intersects only with itself and with "any".
            _ if self.start_port > self.end_port || other.start_port > other.end_port => {
                let same = self.start_port == other.start_port && self.end_port == other.end_port;
                same.then_some((self.start_port, self.end_port))?
            }
            _ => {
                let ports = (self.start_port.max(other.start_port), self.end_port.min(other.end_port));
                (ports.0 <= ports.1).then_some(ports)?
            }
        };
        (start <= end).then_some(Self { protocol, start_port, end_port, start, end })
    }

    /// Returns whether this selector matches everything that `other` matches.
    pub fn contains(&self, other: &Self) -> bool {
        self.intersection(other).as_ref() == Some(other)
    }

    /// Returns the smallest set of networks that contains exactly these addresses.
    pub fn networks(&self) -> impl Iterator<Item = IpNetwork> + use<> {
        let (first, last, bits) = match (self.start, self.end) {
            (IpAddr::V4(start), IpAddr::V4(end)) => (u128::from(u32::from(start)), u128::from(u32::from(end)), 32),
            (IpAddr::V6(start), IpAddr::V6(end)) => (u128::from(start), u128::from(end), 128),
            // An empty range.
            _ => (1, 0, 128),
        };
        let mut next = Some(first);
        std::iter::from_fn(move || {
            let start = next.filter(|start| *start <= last)?;
            // The alignment of the address and the end of the range limit the size of the largest
            // network that starts at this address.
            let span = last.saturating_sub(start);
            let by_end = match span.checked_add(1) {
                Some(count) => count.ilog2(),
                None => 128,
            };
            let size = start.trailing_zeros().min(by_end).min(bits);
            next = 1_u128.checked_shl(size).and_then(|count| start.checked_add(count));
            let address = if bits == 32 {
                u32::try_from(start).map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |start| IpAddr::V4(start.into()))
            } else {
                IpAddr::V6(Ipv6Addr::from(start))
            };
            let prefix = u8::try_from(bits.saturating_sub(size)).unwrap_or(0);
            IpNetwork::new(address, prefix).ok()
        })
    }
}

/// The addresses as a network if they are one, then protocol and ports unless they are any.
impl fmt::Display for TrafficSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut networks = self.networks();
        match (networks.next(), networks.next()) {
            (Some(network), None) => write!(f, "{network}")?,
            _ => write!(f, "{}-{}", self.start, self.end)?,
        }
        if self.protocol != 0 {
            write!(f, " protocol {}", self.protocol)?;
        }
        match (self.start_port, self.end_port) {
            _ if self.any_port() => Ok(()),
            (start, end) if start > end => f.write_str(" port OPAQUE"),
            (start, end) if start == end => write!(f, " port {start}"),
            (start, end) => write!(f, " ports {start}-{end}"),
        }
    }
}

impl From<IpNetwork> for TrafficSelector {
    fn from(network: IpNetwork) -> Self {
        let (start, end) = match network {
            IpNetwork::V4(network) => (network.network().into(), network.broadcast().into()),
            IpNetwork::V6(network) => (network.network().into(), network.broadcast().into()),
        };
        Self { protocol: 0, start_port: 0, end_port: u16::MAX, start, end }
    }
}

/// Encodes the contents of a Traffic Selector payload.
pub(crate) fn encode_selectors(selectors: &[TrafficSelector], out: &mut Vec<u8>) {
    let selectors = selectors.get(..MAX_SELECTORS).unwrap_or(selectors);
    out.push(u8::try_from(selectors.len()).unwrap_or(u8::MAX));
    //= RFC 7296 3.13 MUST 1: RESERVED is zero
    out.extend_from_slice(&[0; 3]);
    for selector in selectors {
        selector.encode(out);
    }
}

/// Decodes the contents of a Traffic Selector payload. Omits selectors of other types (labels, RFC
/// 9478), which narrows the offer to the selectors that we support.
pub(crate) fn read_selectors(reader: &mut Reader<'_>) -> Result<Vec<TrafficSelector>, InvalidMessage> {
    let stated = reader.u8()?;
    //= RFC 7296 3.13 MUST 2: RESERVED is ignored
    reader.array::<3>()?;
    let mut selectors = Vec::new();
    let mut actual = 0;
    while !reader.is_empty() {
        if actual == usize::from(stated) {
            return Err(InvalidMessage::SelectorCount { stated, actual: actual.saturating_add(1) });
        }
        selectors.extend(read_selector(reader)?);
        actual = actual.saturating_add(1);
    }
    if actual != usize::from(stated) {
        return Err(InvalidMessage::SelectorCount { stated, actual });
    }
    Ok(selectors)
}

fn read_selector(reader: &mut Reader<'_>) -> Result<Option<TrafficSelector>, InvalidMessage> {
    let kind = reader.u8()?;
    let protocol = reader.u8()?;
    let length = reader.u16()?;
    let mut inner = reader.sub("traffic selector", length, 4)?;
    let size = match kind {
        TS_IPV4_ADDR_RANGE => 16,
        TS_IPV6_ADDR_RANGE => 40,
        //= RFC 7296 2.9 REQUIRED 5: unknown types of selectors
        _ => return Ok(None),
    };
    if length != size {
        return Err(InvalidMessage::SelectorLength { kind, length });
    }
    let start_port = inner.u16()?;
    let end_port = inner.u16()?;
    let (start, end): (IpAddr, IpAddr) = if kind == TS_IPV4_ADDR_RANGE {
        (inner.array::<4>()?.into(), inner.array::<4>()?.into())
    } else {
        (inner.array::<16>()?.into(), inner.array::<16>()?.into())
    };
    // RFC 7296 3.13.1: OPAQUE ports are 65535 to 0.
    //= RFC 7296 3.13.1 MUST 4: OPAQUE
    let opaque = start_port == u16::MAX && end_port == 0;
    if start > end || (start_port > end_port && !opaque) {
        return Err(InvalidMessage::SelectorRange);
    }
    Ok(Some(TrafficSelector { protocol, start_port, end_port, start, end }))
}

impl TrafficSelector {
    fn encode(&self, out: &mut Vec<u8>) {
        let (kind, length): (u8, u16) =
            if self.start.is_ipv4() { (TS_IPV4_ADDR_RANGE, 16) } else { (TS_IPV6_ADDR_RANGE, 40) };
        out.extend_from_slice(&[kind, self.protocol]);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&self.start_port.to_be_bytes());
        out.extend_from_slice(&self.end_port.to_be_bytes());
        for address in [self.start, self.end] {
            match address {
                IpAddr::V4(address) => out.extend_from_slice(&address.octets()),
                IpAddr::V6(address) => out.extend_from_slice(&address.octets()),
            }
        }
    }
}

//! Messages in the layout of RFC 7296 section 3. The oracle has its own parser, so that it detects
//! mistakes in the library's parser.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Payload types (RFC 7296 3.2, RFC 7383 2.5).
pub mod payload {
    pub const SA: u8 = 33;
    pub const KE: u8 = 34;
    pub const ID_INITIATOR: u8 = 35;
    pub const ID_RESPONDER: u8 = 36;
    pub const AUTH: u8 = 39;
    pub const NONCE: u8 = 40;
    pub const NOTIFY: u8 = 41;
    pub const DELETE: u8 = 42;
    pub const TS_INITIATOR: u8 = 44;
    pub const TS_RESPONDER: u8 = 45;
    pub const ENCRYPTED: u8 = 46;
    pub const CONFIGURATION: u8 = 47;
    pub const FRAGMENT: u8 = 53;
}

/// Exchange types (RFC 7296 3.1).
pub mod exchange {
    pub const IKE_SA_INIT: u8 = 34;
    pub const IKE_AUTH: u8 = 35;
    pub const CREATE_CHILD_SA: u8 = 36;
    pub const INFORMATIONAL: u8 = 37;
}

/// Notify message types (RFC 7296 3.10.1, RFC 7383 2.3).
pub mod notify {
    pub const INVALID_KE_PAYLOAD: u16 = 17;
    pub const AUTHENTICATION_FAILED: u16 = 24;
    pub const UNACCEPTABLE_ADDRESSES: u16 = 40;
    pub const UNEXPECTED_NAT_DETECTED: u16 = 41;
    pub const TEMPORARY_FAILURE: u16 = 43;
    pub const CHILD_SA_NOT_FOUND: u16 = 44;
    pub const INITIAL_CONTACT: u16 = 16384;
    pub const SET_WINDOW_SIZE: u16 = 16385;
    pub const NAT_DETECTION_SOURCE_IP: u16 = 16388;
    pub const NAT_DETECTION_DESTINATION_IP: u16 = 16389;
    pub const COOKIE: u16 = 16390;
    pub const USE_TRANSPORT_MODE: u16 = 16391;
    pub const REKEY_SA: u16 = 16393;
    pub const MOBIKE_SUPPORTED: u16 = 16396;
    pub const ADDITIONAL_IP4_ADDRESS: u16 = 16397;
    pub const ADDITIONAL_IP6_ADDRESS: u16 = 16398;
    pub const NO_ADDITIONAL_ADDRESSES: u16 = 16399;
    pub const UPDATE_SA_ADDRESSES: u16 = 16400;
    pub const COOKIE2: u16 = 16401;
    pub const NO_NATS_ALLOWED: u16 = 16402;
    pub const CHILDLESS_IKEV2_SUPPORTED: u16 = 16418;
    pub const FRAGMENTATION_SUPPORTED: u16 = 16430;
}

/// Security protocol identifiers (RFC 7296 3.3.1).
pub const PROTOCOL_IKE: u8 = 1;
pub const PROTOCOL_ESP: u8 = 3;

pub const FLAG_INITIATOR: u8 = 0x08;
pub const FLAG_RESPONSE: u8 = 0x20;
pub const HEADER_LEN: usize = 28;

/// The part of a message that is malformed or missing.
pub type Malformed = &'static str;

/// The SPIs of an IKE SA: the initiator's, then the responder's.
pub type Spis = (u64, u64);

/// The IKE header (3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub spis: Spis,
    pub next: u8,
    pub version: u8,
    pub exchange: u8,
    pub flags: u8,
    pub id: u32,
}

impl Header {
    pub fn read(datagram: &[u8]) -> Result<Self, Malformed> {
        let mut octets = Octets(datagram);
        let spis = (octets.u64()?, octets.u64()?);
        let [next, version, exchange, flags] = octets.take(4)? else { return Err("header") };
        let (next, version, exchange, flags) = (*next, *version, *exchange, *flags);
        let (id, length) = (octets.u32()?, octets.u32()?);
        if length as usize != datagram.len() {
            return Err("length of the message");
        }
        Ok(Self { spis, next, version, exchange, flags, id })
    }

    pub fn response(&self) -> bool {
        self.flags & FLAG_RESPONSE != 0
    }

    /// Returns whether the original initiator of the IKE SA sent the message.
    pub fn initiator_flag(&self) -> bool {
        self.flags & FLAG_INITIATOR != 0
    }
}

/// A payload without its generic header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    pub kind: u8,
    /// The critical bit and the reserved bits.
    pub flags: u8,
    pub body: Vec<u8>,
}

/// Parses a chain of payloads (3.2) to its end.
pub fn chain(first: u8, octets: &[u8]) -> Result<Vec<Payload>, Malformed> {
    let (mut octets, mut kind, mut payloads) = (Octets(octets), first, Vec::new());
    while kind != 0 {
        let [next, flags] = octets.take(2)? else { return Err("generic header") };
        let (next, flags) = (*next, *flags);
        let length = usize::from(octets.u16()?).checked_sub(4).ok_or("length of a payload")?;
        payloads.push(Payload { kind, flags, body: octets.take(length)?.to_vec() });
        kind = next;
    }
    if octets.0.is_empty() { Ok(payloads) } else { Err("end of the chain") }
}

/// A Notify payload (3.10).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notify {
    pub protocol: u8,
    pub spi: Vec<u8>,
    pub kind: u16,
    pub data: Vec<u8>,
}

/// A Delete payload (3.11).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delete {
    pub protocol: u8,
    pub spis: Vec<u32>,
}

/// A proposal (3.3.1) with its transforms: type, ID, key length in bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    pub number: u8,
    pub protocol: u8,
    pub spi: Vec<u8>,
    pub transforms: Vec<(u8, u16, u16)>,
}

impl Proposal {
    /// Returns the ID and key length of the only transform of a type, or zeros if there is none.
    pub fn one(&self, kind: u8) -> (u16, u16) {
        self.transforms.iter().find(|transform| transform.0 == kind).map_or((0, 0), |(_, id, bits)| (*id, *bits))
    }

    pub fn spi32(&self) -> u32 {
        self.spi.as_slice().try_into().map_or(0, u32::from_be_bytes)
    }

    pub fn spi64(&self) -> u64 {
        self.spi.as_slice().try_into().map_or(0, u64::from_be_bytes)
    }
}

/// A traffic selector (3.13.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Selector {
    pub protocol: u8,
    pub ports: (u16, u16),
    pub addresses: (IpAddr, IpAddr),
}

impl Selector {
    pub fn within(&self, other: &Self) -> bool {
        (other.protocol == 0 || other.protocol == self.protocol)
            && other.ports.0 <= self.ports.0
            && self.ports.1 <= other.ports.1
            && self.addresses.0.is_ipv4() == other.addresses.0.is_ipv4()
            && other.addresses.0 <= self.addresses.0
            && self.addresses.1 <= other.addresses.1
    }
}

/// A message in clear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub header: Header,
    pub payloads: Vec<Payload>,
}

impl Message {
    pub fn find(&self, kind: u8) -> Option<&[u8]> {
        self.payloads.iter().find(|payload| payload.kind == kind).map(|payload| payload.body.as_slice())
    }

    pub fn notifies(&self) -> Vec<Notify> {
        let of = self.payloads.iter().filter(|payload| payload.kind == payload::NOTIFY);
        of.filter_map(|payload| read_notify(&payload.body).ok()).collect()
    }

    pub fn notify(&self, kind: u16) -> Option<Notify> {
        self.notifies().into_iter().find(|notify| notify.kind == kind)
    }

    /// Returns the first error notification (types below 16384).
    pub fn error(&self) -> Option<u16> {
        self.notifies().into_iter().map(|notify| notify.kind).find(|kind| *kind < 16384)
    }

    pub fn deletes(&self) -> Vec<Delete> {
        let of = self.payloads.iter().filter(|payload| payload.kind == payload::DELETE);
        of.filter_map(|payload| read_delete(&payload.body).ok()).collect()
    }

    /// Returns the SPIs of all CHILD_SAs that the message deletes.
    pub fn deleted_children(&self) -> Vec<u32> {
        let esp = self.deletes().into_iter().filter(|delete| delete.protocol == PROTOCOL_ESP);
        esp.flat_map(|delete| delete.spis).collect()
    }

    pub fn deletes_ike_sa(&self) -> bool {
        self.deletes().iter().any(|delete| delete.protocol == PROTOCOL_IKE)
    }

    pub fn proposals(&self) -> Vec<Proposal> {
        self.find(payload::SA).and_then(|body| read_proposals(body).ok()).unwrap_or_default()
    }

    pub fn nonce(&self) -> Option<&[u8]> {
        self.find(payload::NONCE)
    }

    /// Returns the group and the public value of the Key Exchange payload (3.4).
    pub fn key_exchange(&self) -> Option<(u16, &[u8])> {
        let body = self.find(payload::KE)?;
        Some((u16::from_be_bytes([*body.first()?, *body.get(1)?]), body.get(4..)?))
    }

    pub fn selectors(&self, kind: u8) -> Vec<Selector> {
        self.find(kind).and_then(|body| read_selectors(body).ok()).unwrap_or_default()
    }

    /// Returns the SPI of REKEY_SA, which is the sender's inbound SPI (1.3.3).
    pub fn rekeys(&self) -> Option<u32> {
        let notify = self.notify(notify::REKEY_SA)?;
        Some(notify.spi.as_slice().try_into().map_or(0, u32::from_be_bytes))
    }
}

fn read_notify(body: &[u8]) -> Result<Notify, Malformed> {
    let mut octets = Octets(body);
    let [protocol, spi_len] = octets.take(2)? else { return Err("Notify") };
    let (protocol, spi_len) = (*protocol, usize::from(*spi_len));
    let kind = octets.u16()?;
    let spi = octets.take(spi_len)?.to_vec();
    Ok(Notify { protocol, spi, kind, data: octets.0.to_vec() })
}

fn read_delete(body: &[u8]) -> Result<Delete, Malformed> {
    let mut octets = Octets(body);
    let [protocol, spi_len] = octets.take(2)? else { return Err("Delete") };
    let (protocol, spi_len) = (*protocol, *spi_len);
    let count = octets.u16()?;
    if (protocol == PROTOCOL_IKE && (spi_len, count) != (0, 0)) || (protocol == PROTOCOL_ESP && spi_len != 4) {
        return Err("SPI size of Delete");
    }
    Ok(Delete { protocol, spis: (0..count).map(|_| octets.u32()).collect::<Result<_, _>>()? })
}

fn read_proposals(body: &[u8]) -> Result<Vec<Proposal>, Malformed> {
    let (mut octets, mut proposals) = (Octets(body), Vec::new());
    while !octets.0.is_empty() {
        let more = octets.take(2)?.first().copied();
        let length = usize::from(octets.u16()?).checked_sub(4).ok_or("length of a proposal")?;
        let mut inner = Octets(octets.take(length)?);
        let [number, protocol, spi_len, count] = inner.take(4)? else { return Err("proposal") };
        let (number, protocol, spi_len, count) = (*number, *protocol, usize::from(*spi_len), *count);
        let spi = inner.take(spi_len)?.to_vec();
        let mut transforms = Vec::new();
        for _ in 0..count {
            inner.take(2)?;
            let length = usize::from(inner.u16()?).checked_sub(4).ok_or("length of a transform")?;
            let mut transform = Octets(inner.take(length)?);
            let kind = transform.u16()?.to_be_bytes()[0];
            let id = transform.u16()?;
            let mut bits = 0;
            while !transform.0.is_empty() {
                let (attribute, value) = (transform.u16()?, transform.u16()?);
                bits = if attribute == 0x800e { value } else { return Err("attribute of a transform") };
            }
            transforms.push((kind, id, bits));
        }
        if !inner.0.is_empty() || (more == Some(0)) != octets.0.is_empty() {
            return Err("end of a proposal");
        }
        proposals.push(Proposal { number, protocol, spi, transforms });
    }
    Ok(proposals)
}

fn read_selectors(body: &[u8]) -> Result<Vec<Selector>, Malformed> {
    let mut octets = Octets(body);
    let count = octets.take(4)?.first().copied().unwrap_or_default();
    let mut selectors = Vec::new();
    for _ in 0..count {
        let [kind, protocol] = octets.take(2)? else { return Err("selector") };
        let (kind, protocol) = (*kind, *protocol);
        octets.u16()?;
        let ports = (octets.u16()?, octets.u16()?);
        let mut address = || -> Result<IpAddr, Malformed> {
            match kind {
                7 => Ok(Ipv4Addr::from(octets.u32()?).into()),
                8 => Ok(Ipv6Addr::from((u128::from(octets.u64()?) << 64) | u128::from(octets.u64()?)).into()),
                _ => Err("type of a selector"),
            }
        };
        selectors.push(Selector { protocol, ports, addresses: (address()?, address()?) });
    }
    if octets.0.is_empty() { Ok(selectors) } else { Err("end of the selectors") }
}

/// Octets that have not been read yet.
pub struct Octets<'a>(pub &'a [u8]);

impl<'a> Octets<'a> {
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or("octets: too few")?;
        self.0 = rest;
        Ok(taken)
    }

    pub fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_be_bytes(self.take(2)?.try_into().map_err(|_| "number")?))
    }

    pub fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_be_bytes(self.take(4)?.try_into().map_err(|_| "number")?))
    }

    pub fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(self.take(8)?.try_into().map_err(|_| "number")?))
    }
}

//! Notify payload (RFC 7296 3.10).

use std::net::{IpAddr, SocketAddr};

use super::numbers::{HashAlgorithm, NotifyType, Protocol};
use super::reader::{Codec, InvalidMessage, Reader};

/// A notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notify {
    /// Notify message type.
    pub kind: NotifyType,
    /// Protocol of the SA that the notification is about, or [`Protocol::None`] if it is not about
    /// an SA, or about this IKE SA.
    pub protocol: Protocol,
    /// SPI of that SA. May be empty.
    pub spi: Vec<u8>,
    /// Notification data.
    pub data: Vec<u8>,
}

impl Notify {
    /// Makes a notification without data.
    pub fn new(kind: NotifyType) -> Self {
        Self::with_data(kind, Vec::new())
    }

    /// Makes a notification with data.
    pub fn with_data(kind: NotifyType, data: Vec<u8>) -> Self {
        //= RFC 7296 3.10 MUST 2: no protocol without SPI
        //= RFC 7296 3.10 MUST 4: no SPI of the IKE SA
        Self { kind, protocol: Protocol::None, spi: Vec::new(), data }
    }

    /// Makes a notification about an ESP SA, identified by the sender's inbound SPI: REKEY_SA,
    /// CHILD_SA_NOT_FOUND.
    pub fn about_child(kind: NotifyType, spi: u32) -> Self {
        //= RFC 7296 1.3.3 REQUIRED 2: REKEY_SA names our inbound SPI
        //= RFC 7296 3.10 MUST 1: the protocol of a CHILD_SA
        Self { kind, protocol: Protocol::Esp, spi: spi.to_be_bytes().to_vec(), data: Vec::new() }
    }

    /// Makes a SIGNATURE_HASH_ALGORITHMS notification (RFC 7427 4).
    pub fn signature_hashes(hashes: &[HashAlgorithm]) -> Self {
        let data = hashes.iter().flat_map(|&hash| u16::from(hash).to_be_bytes()).collect();
        Self::with_data(NotifyType::SignatureHashAlgorithms, data)
    }

    /// Makes a SET_WINDOW_SIZE notification (RFC 7296 2.3).
    pub fn window_size(requests: u32) -> Self {
        //= RFC 7296 2.3 MUST 1: four octets
        Self::with_data(NotifyType::SetWindowSize, requests.to_be_bytes().to_vec())
    }

    /// Makes an INVALID_KE_PAYLOAD notification with the group that we require (RFC 7296 1.3).
    pub fn invalid_ke(group: u16) -> Self {
        Self::with_data(NotifyType::InvalidKePayload, group.to_be_bytes().to_vec())
    }

    /// Makes an ADDITIONAL_IP4_ADDRESS or ADDITIONAL_IP6_ADDRESS notification (RFC 4555 4.2.2).
    pub fn additional_address(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::with_data(NotifyType::AdditionalIp4Address, address.octets().to_vec()),
            IpAddr::V6(address) => Self::with_data(NotifyType::AdditionalIp6Address, address.octets().to_vec()),
        }
    }

    /// Makes a NO_NATS_ALLOWED notification with the addresses and ports of a datagram (RFC 4555
    /// 4.2.6).
    pub fn no_nats_allowed(source: SocketAddr, destination: SocketAddr) -> Self {
        let octets = |address: SocketAddr| match address.ip().to_canonical() {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
        Self::with_data(NotifyType::NoNatsAllowed, [octets(source), octets(destination), ports].concat())
    }

    /// Returns the address of ADDITIONAL_IP4_ADDRESS or ADDITIONAL_IP6_ADDRESS. Returns `None` for
    /// another notification, or if the data is not such an address.
    pub fn address(&self) -> Option<IpAddr> {
        match self.kind {
            NotifyType::AdditionalIp4Address => <[u8; 4]>::try_from(self.data.as_slice()).ok().map(IpAddr::from),
            NotifyType::AdditionalIp6Address => <[u8; 16]>::try_from(self.data.as_slice()).ok().map(IpAddr::from),
            _ => None,
        }
    }

    /// Returns the SPI of the ESP or AH SA that the notification is about.
    pub fn child_spi(&self) -> Option<u32> {
        if !matches!(self.protocol, Protocol::Esp | Protocol::Ah) {
            return None;
        }
        //= RFC 7296 3.10 MUST 3: the protocol is ignored without SPI
        self.spi.as_slice().try_into().ok().map(u32::from_be_bytes)
    }

    /// Returns the data as one 16-bit number, such as the group of INVALID_KE_PAYLOAD.
    pub fn data_u16(&self) -> Option<u16> {
        self.data.as_slice().try_into().ok().map(u16::from_be_bytes)
    }

    /// Returns the data as the hash algorithms of SIGNATURE_HASH_ALGORITHMS. Ignores an odd last
    /// octet.
    pub fn hashes(&self) -> Vec<HashAlgorithm> {
        self.data
            .chunks_exact(2)
            .filter_map(|pair| pair.try_into().ok())
            .map(u16::from_be_bytes)
            .map(HashAlgorithm::from)
            .collect()
    }
}

impl Codec for Notify {
    fn encode(&self, out: &mut Vec<u8>) {
        // SPIs have 0, 4 or 8 octets. The length of a received SPI always fits into one octet.
        let spi = self.spi.get(..usize::from(u8::MAX)).unwrap_or(&self.spi);
        out.push(self.protocol.into());
        out.push(u8::try_from(spi.len()).unwrap_or(u8::MAX));
        out.extend_from_slice(&u16::from(self.kind).to_be_bytes());
        out.extend_from_slice(spi);
        out.extend_from_slice(&self.data);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, InvalidMessage> {
        let protocol = reader.u8()?.into();
        let spi_size = usize::from(reader.u8()?);
        let kind = reader.u16()?.into();
        let spi = reader.take(spi_size)?.to_vec();
        Ok(Self { kind, protocol, spi, data: reader.rest().to_vec() })
    }
}

impl InvalidMessage {
    /// Returns the notification for the response to an authentic request that violates the protocol
    /// in this way (RFC 7296 2.21): UNSUPPORTED_CRITICAL_PAYLOAD with its type,
    /// INVALID_MAJOR_VERSION with our version, or INVALID_SYNTAX.
    pub fn notify(&self) -> Notify {
        match *self {
            Self::UnsupportedCriticalPayload(kind) => {
                //= RFC 7296 2.5 MUST 11: UNSUPPORTED_CRITICAL_PAYLOAD
                Notify::with_data(NotifyType::UnsupportedCriticalPayload, vec![kind])
            }
            Self::MajorVersion(_) => Notify::with_data(NotifyType::InvalidMajorVersion, vec![2]),
            //= RFC 7296 3.10.1 MUST 4: INVALID_SYNTAX is for the rest
            _ => Notify::new(NotifyType::InvalidSyntax),
        }
    }
}

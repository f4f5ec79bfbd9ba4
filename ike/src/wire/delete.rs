//! Delete payload (RFC 7296 3.11).

use super::numbers::Protocol;
use super::reader::{Codec, InvalidMessage, Reader};

/// The SAs that the sender has removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delete {
    /// This IKE SA with all its CHILD_SAs.
    Ike,
    /// CHILD_SAs, by the sender's inbound SPIs.
    //= RFC 7296 3.11 MUST 1: SPIs of one protocol
    //= RFC 7296 3.11 MUST NOT 2: protocols are not mixed
    Children {
        /// ESP or AH, or any other protocol with SPIs of 4 octets.
        protocol: Protocol,
        /// SPIs.
        spis: Vec<u32>,
    },
}

impl Delete {
    /// Makes the deletion of one ESP CHILD_SA, by our inbound SPI.
    pub fn child(spi: u32) -> Self {
        Self::Children { protocol: Protocol::Esp, spis: vec![spi] }
    }
}

impl Codec for Delete {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Ike => out.extend_from_slice(&[Protocol::Ike.into(), 0, 0, 0]),
            Self::Children { protocol, spis } => {
                let count = u16::try_from(spis.len()).unwrap_or(u16::MAX);
                out.extend_from_slice(&[(*protocol).into(), 4]);
                out.extend_from_slice(&count.to_be_bytes());
                out.extend(spis.iter().take(count.into()).flat_map(|spi| spi.to_be_bytes()));
            }
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, InvalidMessage> {
        let protocol = reader.u8()?;
        let size = reader.u8()?;
        let count = reader.u16()?;
        match (Protocol::from(protocol), size, count) {
            (Protocol::Ike, 0, 0) => Ok(Self::Ike),
            //= RFC 7296 3.11 MUST 3: SPIs of no or four octets
            (Protocol::Ike, ..) => Err(InvalidMessage::DeleteSpis { protocol, size, count }),
            (protocol, 4, count) => {
                // The payload's length limits the count: `take` checks it before memory is
                // allocated.
                let octets = reader.take(usize::from(count).saturating_mul(4))?;
                let spis = octets.chunks_exact(4).filter_map(|spi| spi.try_into().ok()).map(u32::from_be_bytes);
                Ok(Self::Children { protocol, spis: spis.collect() })
            }
            _ => Err(InvalidMessage::DeleteSpis { protocol, size, count }),
        }
    }
}

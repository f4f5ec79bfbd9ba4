//! Key Exchange payload (RFC 7296 3.4) and nonce lengths (3.9).

use super::reader::{Codec, InvalidMessage, Reader};

/// Minimum size of a nonce, bytes.
//= RFC 7296 2.10 MUST 2: 128 bits
pub const NONCE_MIN: usize = 16;
/// Maximum size of a nonce, bytes.
pub const NONCE_MAX: usize = 256;

/// The sender's share of a key exchange: a public key or, for a KEM, an encapsulation key or
/// ciphertext.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyExchange {
    /// The method: a transform ID of type KE, for example 31.
    pub group: u16,
    /// Key exchange data.
    pub data: Vec<u8>,
}

impl Codec for KeyExchange {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.group.to_be_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.data);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, InvalidMessage> {
        let group = reader.u16()?;
        reader.u16()?;
        Ok(Self { group, data: reader.rest().to_vec() })
    }
}

/// Parses a nonce and checks its length.
pub(crate) fn read_nonce(reader: &mut Reader<'_>) -> Result<Vec<u8>, InvalidMessage> {
    let nonce = reader.rest();
    //= RFC 7296 3.9 MUST 1: 16 to 256 octets
    if !(NONCE_MIN..=NONCE_MAX).contains(&nonce.len()) {
        return Err(InvalidMessage::NonceLength(nonce.len()));
    }
    Ok(nonce.to_vec())
}

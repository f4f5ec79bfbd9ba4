//! One payload: generic header and contents (RFC 7296 3.2).

use super::auth::{Authentication, Certificate, CertificateRequest};
use super::configuration::Configuration;
use super::delete::Delete;
use super::id::Id;
use super::key_exchange::{KeyExchange, read_nonce};
use super::notify::Notify;
use super::numbers::PayloadType;
use super::reader::{Codec, InvalidMessage, Reader, with_length};
use super::sa::{Proposal, encode_proposals, read_proposals};
use super::selector::{TrafficSelector, encode_selectors, read_selectors};

/// A payload. The variants are named after the payload types.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// SA: proposals.
    SecurityAssociation(Vec<Proposal>),
    /// KE: a share of a key exchange.
    KeyExchange(KeyExchange),
    /// IDi: the initiator's identification.
    IdInitiator(Id),
    /// IDr: the responder's identification.
    IdResponder(Id),
    /// CERT: a certificate.
    Certificate(Certificate),
    /// CERTREQ: acceptable certification authorities.
    CertificateRequest(CertificateRequest),
    /// AUTH: authentication data.
    Authentication(Authentication),
    /// Ni or Nr: a nonce.
    Nonce(Vec<u8>),
    /// N: a notification.
    Notify(Notify),
    /// D: SAs that the sender deletes.
    Delete(Delete),
    /// V: a vendor ID.
    VendorId(Vec<u8>),
    /// TSi: the initiator's traffic selectors.
    TrafficSelectorsInitiator(Vec<TrafficSelector>),
    /// TSr: the responder's traffic selectors.
    TrafficSelectorsResponder(Vec<TrafficSelector>),
    /// CP: configuration.
    Configuration(Configuration),
    /// EAP, and unknown payloads that are not critical.
    Unknown {
        /// Payload type.
        kind: PayloadType,
        /// Payload contents.
        data: Vec<u8>,
    },
}

impl Payload {
    /// Returns the payload type.
    pub fn kind(&self) -> PayloadType {
        match self {
            Self::SecurityAssociation(_) => PayloadType::SecurityAssociation,
            Self::KeyExchange(_) => PayloadType::KeyExchange,
            Self::IdInitiator(_) => PayloadType::IdInitiator,
            Self::IdResponder(_) => PayloadType::IdResponder,
            Self::Certificate(_) => PayloadType::Certificate,
            Self::CertificateRequest(_) => PayloadType::CertificateRequest,
            Self::Authentication(_) => PayloadType::Authentication,
            Self::Nonce(_) => PayloadType::Nonce,
            Self::Notify(_) => PayloadType::Notify,
            Self::Delete(_) => PayloadType::Delete,
            Self::VendorId(_) => PayloadType::VendorId,
            Self::TrafficSelectorsInitiator(_) => PayloadType::TrafficSelectorsInitiator,
            Self::TrafficSelectorsResponder(_) => PayloadType::TrafficSelectorsResponder,
            Self::Configuration(_) => PayloadType::Configuration,
            Self::Unknown { kind, .. } => *kind,
        }
    }

    /// Returns whether a message may have only one payload of this type.
    pub(crate) fn is_single(kind: PayloadType) -> bool {
        matches!(
            kind,
            PayloadType::SecurityAssociation
                | PayloadType::KeyExchange
                | PayloadType::IdInitiator
                | PayloadType::IdResponder
                | PayloadType::Authentication
                | PayloadType::Nonce
                | PayloadType::TrafficSelectorsInitiator
                | PayloadType::TrafficSelectorsResponder
        )
    }

    /// Writes the generic header and the contents.
    pub(crate) fn encode(&self, next: PayloadType, out: &mut Vec<u8>) {
        with_length(out, 2, |out| {
            //= RFC 7296 2.5 MUST 7: RESERVED is zero
            //= RFC 7296 2.5 MUST NOT 13: no critical flag in responses
            //= RFC 7296 3.2 MUST 1: critical is zero to be skipped
            //= RFC 7296 3.2 MUST 4: critical is zero for the RFC's types
            //= RFC 7296 3.2 MUST 6: reserved bits are zero
            //= RFC 7296 3.12 MUST 2: a vendor ID is not critical
            out.extend_from_slice(&[next.into(), 0, 0, 0]);
            match self {
                Self::SecurityAssociation(proposals) => encode_proposals(proposals, out),
                Self::KeyExchange(contents) => contents.encode(out),
                Self::IdInitiator(id) | Self::IdResponder(id) => id.encode(out),
                Self::Certificate(contents) => contents.encode(out),
                Self::CertificateRequest(contents) => contents.encode(out),
                Self::Authentication(contents) => contents.encode(out),
                Self::Notify(contents) => contents.encode(out),
                Self::Delete(contents) => contents.encode(out),
                Self::TrafficSelectorsInitiator(selectors) | Self::TrafficSelectorsResponder(selectors) => {
                    encode_selectors(selectors, out);
                }
                Self::Configuration(contents) => contents.encode(out),
                Self::Nonce(octets) | Self::VendorId(octets) | Self::Unknown { data: octets, .. } => {
                    out.extend_from_slice(octets);
                }
            }
        });
    }

    /// Decodes the contents of a payload of type `kind`, up to the end of `reader`.
    pub(crate) fn read(kind: PayloadType, critical: bool, mut reader: Reader<'_>) -> Result<Self, InvalidMessage> {
        let contents = &mut reader;
        let payload = match kind {
            PayloadType::SecurityAssociation => Self::SecurityAssociation(read_proposals(contents)?),
            PayloadType::KeyExchange => Self::KeyExchange(KeyExchange::read(contents)?),
            PayloadType::IdInitiator => Self::IdInitiator(Id::read(contents)?),
            PayloadType::IdResponder => Self::IdResponder(Id::read(contents)?),
            PayloadType::Certificate => Self::Certificate(Certificate::read(contents)?),
            PayloadType::CertificateRequest => Self::CertificateRequest(CertificateRequest::read(contents)?),
            PayloadType::Authentication => Self::Authentication(Authentication::read(contents)?),
            PayloadType::Nonce => Self::Nonce(read_nonce(contents)?),
            PayloadType::Notify => Self::Notify(Notify::read(contents)?),
            PayloadType::Delete => Self::Delete(Delete::read(contents)?),
            //= RFC 7296 3.12 MUST 3: unknown vendor IDs are ignored
            PayloadType::VendorId => Self::VendorId(contents.rest().to_vec()),
            PayloadType::TrafficSelectorsInitiator => Self::TrafficSelectorsInitiator(read_selectors(contents)?),
            PayloadType::TrafficSelectorsResponder => Self::TrafficSelectorsResponder(read_selectors(contents)?),
            PayloadType::Configuration => Self::Configuration(Configuration::read(contents)?),
            //= RFC 7296 3.1 MUST NOT 2: no SK in SK
            PayloadType::Encrypted | PayloadType::EncryptedFragment => return Err(InvalidMessage::MisplacedEncrypted),
            // RFC 7296 2.5: the critical bit matters only for unknown types. All types that RFC
            // 7296 defines count as known.
            //= RFC 7296 2.5 REQUIRED 14: critical is for the type alone
            //= RFC 7296 3.2 MUST 3: critical does not matter for known types
            PayloadType::Unknown(number) if critical => {
                //= RFC 7296 2.5 MUST 10: unknown and critical is refused
                return Err(InvalidMessage::UnsupportedCriticalPayload(number));
            }
            //= RFC 7296 3.2 MUST 5: all types are understood
            PayloadType::Eap | PayloadType::None | PayloadType::Unknown(_) => {
                //= RFC 7296 2.5 MUST 9: undefined payloads are skipped
                //= RFC 7296 2.5 MUST 12: unknown and not critical is ignored
                Self::Unknown { kind, data: contents.rest().to_vec() }
            }
        };
        reader.finish()?;
        Ok(payload)
    }
}

//! One payload: generic header and contents (RFC 7296 3.2).

use super::auth::{Authentication, Certificate, CertificateRequest};
use super::delete::Delete;
use super::id::Id;
use super::key_exchange::{KeyExchange, read_nonce};
use super::notify::Notify;
use super::numbers::PayloadType;
use super::reader::{Codec, InvalidMessage, Reader, with_length};
use super::sa::{Proposal, encode_proposals, read_proposals};
use super::selector::{TrafficSelector, encode_selectors, read_selectors};

/// A payload, named by its type.
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
    /// CP, EAP, and unknown payloads that are not critical.
    Unknown {
        /// Its type.
        kind: PayloadType,
        /// Its contents.
        data: Vec<u8>,
    },
}

impl Payload {
    /// Its type.
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
            Self::Unknown { kind, .. } => *kind,
        }
    }

    /// Whether a message may have only one payload of this type.
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

    /// Writes generic header and contents.
    pub(crate) fn encode(&self, next: PayloadType, out: &mut Vec<u8>) {
        with_length(out, 2, |out| {
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
                Self::Nonce(octets) | Self::VendorId(octets) | Self::Unknown { data: octets, .. } => {
                    out.extend_from_slice(octets);
                }
            }
        });
    }

    /// Reads the contents of a payload of type `kind`, all of `reader`.
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
            PayloadType::VendorId => Self::VendorId(contents.rest().to_vec()),
            PayloadType::TrafficSelectorsInitiator => Self::TrafficSelectorsInitiator(read_selectors(contents)?),
            PayloadType::TrafficSelectorsResponder => Self::TrafficSelectorsResponder(read_selectors(contents)?),
            PayloadType::Encrypted | PayloadType::EncryptedFragment => return Err(InvalidMessage::MisplacedEncrypted),
            // RFC 7296 2.5: the critical bit counts only for types that are not understood. Types
            // of RFC 7296 itself count as understood.
            PayloadType::Unknown(number) if critical => {
                return Err(InvalidMessage::UnsupportedCriticalPayload(number));
            }
            PayloadType::Configuration | PayloadType::Eap | PayloadType::None | PayloadType::Unknown(_) => {
                Self::Unknown { kind, data: contents.rest().to_vec() }
            }
        };
        reader.finish()?;
        Ok(payload)
    }
}

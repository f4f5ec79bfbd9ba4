//! Messages in clear and the chain of payloads (RFC 7296 3.1, 3.2).

use super::auth::{Authentication, Certificate, CertificateRequest};
use super::configuration::Configuration;
use super::delete::Delete;
use super::header::{CheckedHeader, Header, set_length};
use super::id::Id;
use super::key_exchange::KeyExchange;
use super::notify::Notify;
use super::numbers::{NotifyType, PayloadType};
use super::payload::Payload;
use super::reader::{InvalidMessage, Reader};
use super::sa::Proposal;
use super::selector::TrafficSelector;

/// Maximum number of payloads in one message. An IKE_AUTH message with a certificate chain has
/// fewer than 30.
pub const MAX_PAYLOADS: usize = 128;

/// Number of payloads for which there is room at once. Messages of IKE_SA_INIT and IKE_AUTH have
/// ten or fewer, apart from certificates.
const USUAL_PAYLOADS: usize = 12;

/// Number of octets for which there is room at once, besides certificates.
const USUAL_LEN: usize = 384;

const CRITICAL: u8 = 0x80;

/// A message in clear: IKE_SA_INIT, or a response to a message that belongs to no IKE SA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The IKE header (RFC 7296 3.1).
    pub header: Header,
    /// All payloads in order.
    pub payloads: Payloads,
}

impl Message {
    /// Makes a response in clear to the request with this header. `responder_spi` is our SPI, or 0
    /// if there is none yet.
    pub(crate) fn response(request: &Header, responder_spi: u64, payloads: Payloads) -> Self {
        //= RFC 7296 1.5 REQUIRED 2: the answer copies the request's header
        let header = Header { responder_spi, from_initiator: !request.from_initiator, response: true, ..*request };
        Self { header, payloads }
    }

    /// Encodes the message, without the non-ESP marker.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        self.header.encode(&mut out, self.payloads.first_kind());
        encode_chain(self.payloads.as_slice(), &mut out);
        let length = out.len();
        set_length(&mut out, length);
        out
    }

    /// Decodes a datagram without the non-ESP marker.
    ///
    /// # Errors
    /// Returns [`InvalidMessage::MisplacedEncrypted`] if the message is encrypted, and another
    /// error if it is malformed.
    pub fn decode(datagram: &[u8]) -> Result<Self, InvalidMessage> {
        let mut reader = Reader::new("message", datagram);
        let front = CheckedHeader::read(&mut reader, datagram.len())?;
        Ok(Self { header: front.header, payloads: Payloads::read(front.next_payload, reader)? })
    }
}

/// The payloads of a message, in order. In a decoded message, a payload type that may occur only
/// once never occurs twice.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Payloads(Vec<Payload>);

impl Payloads {
    /// Makes an empty list of payloads, with room for those of IKE_SA_INIT or IKE_AUTH.
    pub fn new() -> Self {
        Self(Vec::with_capacity(USUAL_PAYLOADS))
    }

    /// Adds a payload at the end.
    pub fn push(&mut self, payload: Payload) {
        self.0.push(payload);
    }

    /// Adds a notification at the end.
    pub fn push_notify(&mut self, notify: Notify) {
        self.push(Payload::Notify(notify));
    }

    /// Returns all payloads.
    pub fn as_slice(&self) -> &[Payload] {
        &self.0
    }

    /// Iterates over all payloads.
    pub fn iter(&self) -> std::slice::Iter<'_, Payload> {
        self.0.iter()
    }

    /// Returns whether there are no payloads. Such a message is a liveness check or the response to
    /// one.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn find<'a, T>(&'a self, kind: PayloadType, pick: impl Fn(&'a Payload) -> Option<T>) -> Result<T, InvalidMessage> {
        //= RFC 7296 2.5 MUST NOT 16: any order of payloads
        self.0.iter().find_map(pick).ok_or(InvalidMessage::Missing(kind))
    }

    /// Returns the proposals of the SA payload.
    ///
    /// # Errors
    /// Returns [`InvalidMessage::Missing`] if there is no SA payload. All getters of payloads that
    /// may occur only once return this error.
    pub fn proposals(&self) -> Result<&[Proposal], InvalidMessage> {
        self.find(PayloadType::SecurityAssociation, |payload| match payload {
            Payload::SecurityAssociation(proposals) => Some(proposals.as_slice()),
            _ => None,
        })
    }

    /// Returns the first Configuration payload of this CFG type.
    pub fn configuration(&self, kind: u8) -> Option<&Configuration> {
        self.0.iter().find_map(|payload| match payload {
            Payload::Configuration(contents) if contents.kind == kind => Some(contents),
            _ => None,
        })
    }

    /// Returns the KE payload.
    ///
    /// # Errors
    /// Returns [`InvalidMessage::Missing`] if there is none.
    pub fn key_exchange(&self) -> Result<&KeyExchange, InvalidMessage> {
        self.find(PayloadType::KeyExchange, |payload| match payload {
            Payload::KeyExchange(contents) => Some(contents),
            _ => None,
        })
    }

    /// Returns the nonce.
    ///
    /// # Errors
    /// Returns [`InvalidMessage::Missing`] if there is none.
    pub fn nonce(&self) -> Result<&[u8], InvalidMessage> {
        self.find(PayloadType::Nonce, |payload| match payload {
            Payload::Nonce(nonce) => Some(nonce.as_slice()),
            _ => None,
        })
    }

    /// Returns the IDi payload.
    ///
    /// # Errors
    /// Returns [`InvalidMessage::Missing`] if there is none.
    pub fn id_initiator(&self) -> Result<&Id, InvalidMessage> {
        self.find(PayloadType::IdInitiator, |payload| match payload {
            Payload::IdInitiator(id) => Some(id),
            _ => None,
        })
    }

    /// Returns the IDr payload.
    ///
    /// # Errors
    /// Returns [`InvalidMessage::Missing`] if there is none.
    pub fn id_responder(&self) -> Result<&Id, InvalidMessage> {
        self.find(PayloadType::IdResponder, |payload| match payload {
            Payload::IdResponder(id) => Some(id),
            _ => None,
        })
    }

    /// Returns the AUTH payload.
    ///
    /// # Errors
    /// Returns [`InvalidMessage::Missing`] if there is none.
    pub fn authentication(&self) -> Result<&Authentication, InvalidMessage> {
        self.find(PayloadType::Authentication, |payload| match payload {
            Payload::Authentication(contents) => Some(contents),
            _ => None,
        })
    }

    /// Returns the selectors of the TSi payload.
    ///
    /// # Errors
    /// Returns [`InvalidMessage::Missing`] if there is none.
    pub fn selectors_initiator(&self) -> Result<&[TrafficSelector], InvalidMessage> {
        self.find(PayloadType::TrafficSelectorsInitiator, |payload| match payload {
            Payload::TrafficSelectorsInitiator(selectors) => Some(selectors.as_slice()),
            _ => None,
        })
    }

    /// Returns the selectors of the TSr payload.
    ///
    /// # Errors
    /// Returns [`InvalidMessage::Missing`] if there is none.
    pub fn selectors_responder(&self) -> Result<&[TrafficSelector], InvalidMessage> {
        self.find(PayloadType::TrafficSelectorsResponder, |payload| match payload {
            Payload::TrafficSelectorsResponder(selectors) => Some(selectors.as_slice()),
            _ => None,
        })
    }

    /// Returns all CERT payloads, in order.
    pub fn certificates(&self) -> impl Iterator<Item = &Certificate> {
        self.0.iter().filter_map(|payload| match payload {
            Payload::Certificate(contents) => Some(contents),
            _ => None,
        })
    }

    /// Returns all CERTREQ payloads, in order.
    pub fn certificate_requests(&self) -> impl Iterator<Item = &CertificateRequest> {
        self.0.iter().filter_map(|payload| match payload {
            Payload::CertificateRequest(contents) => Some(contents),
            _ => None,
        })
    }

    /// Returns all notifications, in order.
    pub fn notifies(&self) -> impl Iterator<Item = &Notify> {
        self.0.iter().filter_map(|payload| match payload {
            Payload::Notify(contents) => Some(contents),
            _ => None,
        })
    }

    /// Returns the first notification of a type.
    pub fn notify(&self, kind: NotifyType) -> Option<&Notify> {
        //= RFC 7296 3.10.1 MUST 2: unknown notifications are ignored
        //= RFC 7296 3.10.1 MUST 3: unknown status types are ignored
        self.notifies().find(|notify| notify.kind == kind)
    }

    /// Returns the first notification that reports an error.
    pub fn error(&self) -> Option<&Notify> {
        //= RFC 7296 3.10.1 MUST 1: an unknown error is an error
        self.notifies().find(|notify| notify.kind.is_error())
    }

    /// Returns all DELETE payloads, in order.
    pub fn deletes(&self) -> impl Iterator<Item = &Delete> {
        self.0.iter().filter_map(|payload| match payload {
            Payload::Delete(contents) => Some(contents),
            _ => None,
        })
    }

    /// Encodes the chain, without the IKE header. An empty chain has no octets.
    pub fn encode(&self) -> Vec<u8> {
        let certificates = self.certificates().fold(0, |len: usize, it| len.saturating_add(it.data.len()));
        let mut out = Vec::with_capacity(certificates.saturating_add(USUAL_LEN));
        encode_chain(&self.0, &mut out);
        out
    }

    /// Decodes a chain whose first payload is of type `first`.
    ///
    /// # Errors
    /// Returns an error that describes what is malformed.
    pub fn decode(first: PayloadType, octets: &[u8]) -> Result<Self, InvalidMessage> {
        Self::read(first, Reader::new("payloads", octets))
    }

    /// Returns the type of the first payload, which the header or SK contains.
    pub fn first_kind(&self) -> PayloadType {
        self.0.first().map_or(PayloadType::None, Payload::kind)
    }

    /// Decodes a chain whose first payload is of type `first`, up to the end of `reader`.
    fn read(first: PayloadType, mut reader: Reader<'_>) -> Result<Self, InvalidMessage> {
        let mut payloads: Vec<Payload> = Vec::with_capacity(USUAL_PAYLOADS);
        let mut kind = first;
        while kind != PayloadType::None {
            if payloads.len() == MAX_PAYLOADS {
                return Err(InvalidMessage::TooMany { what: "payloads", limit: MAX_PAYLOADS });
            }
            if Payload::is_single(kind) && payloads.iter().any(|payload| payload.kind() == kind) {
                return Err(InvalidMessage::Duplicate(kind));
            }
            let generic = GenericHeader::read(&mut reader)?;
            let contents = reader.sub("payload", generic.length, GenericHeader::LEN)?;
            payloads.push(Payload::read(kind, generic.critical, contents)?);
            kind = generic.next;
        }
        reader.finish()?;
        Ok(Self(payloads))
    }
}

impl Extend<Payload> for Payloads {
    fn extend<T: IntoIterator<Item = Payload>>(&mut self, payloads: T) {
        self.0.extend(payloads);
    }
}

impl FromIterator<Payload> for Payloads {
    fn from_iter<T: IntoIterator<Item = Payload>>(payloads: T) -> Self {
        Self(payloads.into_iter().collect())
    }
}

impl From<Vec<Payload>> for Payloads {
    fn from(payloads: Vec<Payload>) -> Self {
        Self(payloads)
    }
}

/// The generic payload header (RFC 7296 3.2).
#[derive(Debug, Clone, Copy)]
pub(crate) struct GenericHeader {
    pub(crate) next: PayloadType,
    pub(crate) critical: bool,
    pub(crate) length: u16,
}

impl GenericHeader {
    pub(crate) const LEN: usize = 4;

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, InvalidMessage> {
        let next = reader.u8()?.into();
        //= RFC 7296 2.5 MUST 8: RESERVED is ignored
        //= RFC 7296 3.2 MUST 7: reserved bits are ignored
        let critical = reader.u8()? & CRITICAL != 0;
        Ok(Self { next, critical, length: reader.u16()? })
    }
}

/// Encodes payloads with their generic headers. In the header of the last one, the next payload is
/// "none".
fn encode_chain(payloads: &[Payload], out: &mut Vec<u8>) {
    let mut rest = payloads.iter();
    while let Some(payload) = rest.next() {
        let next = rest.as_slice().first().map_or(PayloadType::None, Payload::kind);
        payload.encode(next, out);
    }
}

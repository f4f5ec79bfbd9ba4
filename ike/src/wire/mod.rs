//! The encoding of IKEv2 messages (RFC 7296 3, RFC 7383). Each type encodes and decodes itself.
//!
//! The code in this module limits its work and its memory, and never panics. A datagram either
//! becomes a [`Message`] (IKE_SA_INIT, in clear), is opened by `crypto::IkeCipher` into
//! [`Payloads`], or is refused with an [`InvalidMessage`] that describes the violation.
//!
//! - [`Header`]: SPIs, exchange, flags, message ID.
//! - [`Payloads`]: the chain of [`Payload`]s in a message, with getters.
//! - [`Proposal`], [`TrafficSelector`], [`Notify`], ...: the payloads' contents.
//! - [`AgentNotification`]: notifications for private use between agents of ours.
//! - [`Reassembly`]: fragments of one message (RFC 7383).

mod agent_notification;
mod auth;
mod configuration;
mod delete;
mod encrypted;
mod header;
mod id;
mod key_exchange;
mod message;
mod notify;
mod numbers;
mod payload;
mod reader;
mod reassembly;
mod sa;
mod selector;
mod transform_text;

pub use agent_notification::{AgentNotification, MAX_NODE_NAME, RelayRefusal, RelayToken, VENDOR_ID};
pub use auth::{Authentication, Certificate, CertificateRequest};
pub use configuration::{Configuration, ConfigurationAttribute, MAX_CONFIGURATION_ATTRIBUTES};
pub use delete::Delete;
pub use header::{HEADER_LEN, Header};
pub use id::Id;
pub use key_exchange::{KeyExchange, NONCE_MAX, NONCE_MIN};
pub use message::{MAX_PAYLOADS, Message, Payloads};
pub use notify::Notify;
pub use numbers::{
    AuthMethod, CertificateEncoding, ExchangeType, HashAlgorithm, IdType, NotifyType, PayloadType, Protocol,
    TransformType,
};
pub use payload::Payload;
pub use reader::InvalidMessage;
pub use reassembly::{Fragment, MAX_FRAGMENTS, MAX_REASSEMBLED, Reassembly};
pub use sa::{Attribute, MAX_PROPOSALS, MAX_TRANSFORMS, Proposal, Transform};
pub use selector::{MAX_SELECTORS, TrafficSelector};

pub(crate) use encrypted::{EncryptedMessage, EncryptedPrefix};

#[cfg(test)]
mod tests;

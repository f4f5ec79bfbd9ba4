//! Requests to the XFRM subsystem and its responses.

use netlink_packet_core::{DecodeError, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use netlink_packet_xfrm as nl;
use netlink_packet_xfrm::XfrmMessage;
use zeroize::Zeroize;

use crate::policy::InstalledPolicy;
use crate::sa::Sa;

/// A request to XFRM. It may hold a key, which it wipes when dropped.
#[derive(Clone)]
pub(crate) struct XfrmRequest(XfrmMessage);

impl From<XfrmMessage> for XfrmRequest {
    fn from(message: XfrmMessage) -> Self {
        Self(message)
    }
}

impl Drop for XfrmRequest {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

pub(crate) fn wipe(message: &mut XfrmMessage) {
    if let XfrmMessage::AddSa(message) | XfrmMessage::UpdateSa(message) = message {
        for attribute in &mut message.nlas {
            match attribute {
                nl::XfrmAttrs::EncryptionAlgAead(algorithm) => algorithm.alg_key.zeroize(),
                nl::XfrmAttrs::EncryptionAlg(algorithm) => algorithm.alg_key.zeroize(),
                nl::XfrmAttrs::AuthenticationAlgTrunc(algorithm) => algorithm.alg_key.zeroize(),
                _ => {}
            }
        }
    }
}

impl NetlinkSerializable for XfrmRequest {
    fn message_type(&self) -> u16 {
        self.0.message_type()
    }

    fn buffer_len(&self) -> usize {
        NetlinkSerializable::buffer_len(&self.0)
    }

    fn serialize(&self, buffer: &mut [u8]) {
        self.0.serialize(buffer);
    }
}

/// An SA in XFRM's response to a request. `None` for a message of a type that was not requested.
pub(crate) struct SaResponse(pub(crate) Option<Box<Sa>>);

impl NetlinkDeserializable for SaResponse {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, body: &[u8]) -> Result<Self, DecodeError> {
        match header.message_type {
            nl::XFRM_MSG_NEWSA | nl::XFRM_MSG_UPDSA => Ok(Self(Some(Box::new(Sa::decode(body)?)))),
            _ => Ok(Self(None)),
        }
    }
}

/// A policy in XFRM's response to a request. `None` for a per-socket policy, or for a message of a
/// type that was not requested. This is a separate type, so that the CNI plugin, which uses only
/// policies, contains no machine code that reads SAs.
pub(crate) struct PolicyResponse(pub(crate) Option<Box<InstalledPolicy>>);

impl NetlinkDeserializable for PolicyResponse {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, body: &[u8]) -> Result<Self, DecodeError> {
        match header.message_type {
            nl::XFRM_MSG_NEWPOLICY | nl::XFRM_MSG_UPDPOLICY => Ok(Self(InstalledPolicy::decode(body)?.map(Box::new))),
            _ => Ok(Self(None)),
        }
    }
}

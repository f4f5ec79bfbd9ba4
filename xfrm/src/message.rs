//! Requests to the XFRM subsystem, and its responses.

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

/// A message with which XFRM answers a request.
pub(crate) enum XfrmResponse {
    Sa(Box<Sa>),
    Policy(Box<InstalledPolicy>),
    /// Not used: a policy of a single socket, or a type that was not requested.
    Other,
}

impl NetlinkDeserializable for XfrmResponse {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, body: &[u8]) -> Result<Self, DecodeError> {
        match header.message_type {
            nl::XFRM_MSG_NEWSA | nl::XFRM_MSG_UPDSA => Ok(XfrmResponse::Sa(Box::new(Sa::decode(body)?))),
            nl::XFRM_MSG_NEWPOLICY | nl::XFRM_MSG_UPDPOLICY => Ok(InstalledPolicy::decode(body)?
                .map_or(XfrmResponse::Other, |policy| XfrmResponse::Policy(Box::new(policy)))),
            _ => Ok(XfrmResponse::Other),
        }
    }
}

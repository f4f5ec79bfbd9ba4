//! The data of IKE_SA_INIT that IKE_AUTH needs, and the capabilities that we announce in it.

use crate::auth::{Authenticator, SignedOctets};
use crate::crypto::{IkeKeys, Nonces};
use crate::wire::{HashAlgorithm, Id, Notify, NotifyType};

/// Returns our capabilities, for IKE_SA_INIT.
pub(super) fn capabilities() -> [Notify; 2] {
    [Notify::new(NotifyType::Ikev2FragmentationSupported), Notify::signature_hashes(&Authenticator::HASHES)]
}

/// The data of IKE_SA_INIT that IKE_AUTH needs.
#[derive(Debug)]
pub(super) struct InitTranscript {
    pub(super) hashes: Option<Vec<HashAlgorithm>>,
    pub(super) request: Vec<u8>,
    pub(super) response: Vec<u8>,
    pub(super) initiator_nonce: Vec<u8>,
    pub(super) responder_nonce: Vec<u8>,
    /// Whether the responder supports IKE_AUTH without a CHILD_SA (RFC 6023).
    pub(super) childless: bool,
}

impl InitTranscript {
    pub(super) fn nonces(&self) -> Nonces<'_> {
        Nonces { initiator: &self.initiator_nonce, responder: &self.responder_nonce }
    }

    pub(super) fn initiator_octets(&self, keys: &IkeKeys, id: &Id) -> SignedOctets {
        SignedOctets::initiator(keys, &self.request, &self.responder_nonce, id)
    }

    pub(super) fn responder_octets(&self, keys: &IkeKeys, id: &Id) -> SignedOctets {
        SignedOctets::responder(keys, &self.response, &self.initiator_nonce, id)
    }
}

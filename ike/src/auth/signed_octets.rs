//! The octets that AUTH covers (RFC 7296 2.15).

use crate::config::Prf;
use crate::crypto::{IkeKey, IkeKeys};
use crate::wire::Id;

/// The octets that one end's AUTH covers.
#[derive(Clone)]
pub struct SignedOctets {
    prf: Prf,
    octets: Vec<u8>,
}

impl SignedOctets {
    /// Computes InitiatorSignedOctets = RealMessage1 | NonceRData | prf(SK_pi,
    /// RestOfInitIDPayload). `request` is the last IKE_SA_INIT request as it was sent, from the
    /// header's first octet on. It contains the cookie if the responder requested one.
    pub fn initiator(keys: &IkeKeys, request: &[u8], responder_nonce: &[u8], id: &Id) -> Self {
        Self::new(keys.suite.prf, request, responder_nonce, keys.key(IkeKey::Pi), id)
    }

    /// Computes ResponderSignedOctets = RealMessage2 | NonceIData | prf(SK_pr,
    /// RestOfRespIDPayload). `response` is the IKE_SA_INIT response as it was sent.
    pub fn responder(keys: &IkeKeys, response: &[u8], initiator_nonce: &[u8], id: &Id) -> Self {
        Self::new(keys.suite.prf, response, initiator_nonce, keys.key(IkeKey::Pr), id)
    }

    fn new(prf: Prf, message: &[u8], nonce: &[u8], sk_p: &[u8], id: &Id) -> Self {
        let maced_id = prf.compute(sk_p, &[&id.head(), &id.data]);
        //= RFC 7296 2.15 REQUIRED 1: what AUTH covers
        Self { prf, octets: [message, nonce, maced_id.expose()].concat() }
    }

    pub(super) fn prf(&self) -> Prf {
        self.prf
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.octets
    }
}

impl std::fmt::Debug for SignedOctets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SignedOctets").field("prf", &self.prf).finish_non_exhaustive()
    }
}

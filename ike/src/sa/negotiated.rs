//! What an IKE SA keeps about its negotiation, mostly to show it.

use std::net::IpAddr;

use super::path::Path;
use crate::auth::Proof;
use crate::crypto::IkeSuite;
use crate::event::{IkeDetails, NotServed, PeerCertificate};

/// The result of the negotiation, in less memory than [`IkeDetails`].
#[derive(Debug, Clone)]
pub(crate) struct Negotiated {
    /// How the peer authenticated.
    pub(super) proof: Proof,
    pub(super) nat_local: bool,
    pub(super) nat_remote: bool,
    pub(super) mobike: bool,
    pub(super) not_served: NotServed,
    /// The peer's certificate, if it authenticated with one.
    pub(crate) certificate: Option<Box<PeerCertificate>>,
    /// The addresses that one end has given the other one.
    pub(crate) internal_addresses: Box<[IpAddr]>,
    /// Whether IKE_AUTH has created a CHILD_SA of the first configured child. It is kept when the
    /// IKE SA is rekeyed.
    pub(crate) has_created_first_child: bool,
    /// Whether the peer, as the responder, supports IKE_AUTH without a CHILD_SA (RFC 6023).
    pub(super) peer_supports_childless: bool,
}

impl Negotiated {
    /// Returns the result of IKE_AUTH on this path.
    pub(super) fn new(
        proof: Proof,
        certificate: Option<PeerCertificate>,
        path: &Path,
        internal_addresses: Vec<IpAddr>,
        not_served: NotServed,
    ) -> Self {
        Self {
            proof,
            nat_local: path.nat_local,
            nat_remote: path.nat_remote,
            mobike: false,
            not_served,
            certificate: certificate.map(Box::new),
            internal_addresses: internal_addresses.into(),
            has_created_first_child: false,
            peer_supports_childless: false,
        }
    }

    /// Returns the result for an IKE SA with this suite.
    pub(super) fn details(&self, suite: IkeSuite) -> IkeDetails {
        IkeDetails {
            proposal: suite,
            authentication: self.proof.name(),
            nat_local: self.nat_local,
            nat_remote: self.nat_remote,
            mobike: self.mobike,
            certificate: self.certificate.as_deref().cloned(),
            internal_addresses: self.internal_addresses.to_vec(),
            not_served: self.not_served,
        }
    }
}

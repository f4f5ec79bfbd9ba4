//! A configured peer with its parsed credentials.

use std::net::IpAddr;
use std::sync::Arc;

use crate::address_assignment::{AddressAssignment, as_networks};
use crate::auth::{Authenticator, CredentialError};
use crate::child_sas::ChildLifetime;
use crate::config::{Identity, PeerConfig};
use crate::output::Context;

/// A peer's configuration and its prepared credentials.
#[derive(Debug)]
pub(crate) struct Profile {
    /// The configuration, shared with the caller: ten thousand copies of the certificate chain,
    /// trust anchors and proposals would take megabytes.
    pub(crate) config: Arc<PeerConfig>,
    pub(crate) auth: Arc<Authenticator>,
}

impl Profile {
    pub(crate) fn new(config: Arc<PeerConfig>) -> Result<Self, CredentialError> {
        //= RFC 7296 3.5 MUST NOT 3: no terminator in a name
        //= RFC 7296 3.5 MUST NOT 4: no terminator in a mail address
        if let Identity::Fqdn(text) | Identity::Email(text) = &config.local_id
            && text.contains(char::is_control)
        {
            return Err(CredentialError::ControlCharacter);
        }
        Ok(Self { auth: Arc::new(Authenticator::new(&config.auth)?), config })
    }

    /// Returns the peer's configuration for an IKE SA with these internal addresses: they take the
    /// place of the networks on the side of the end that has them. Without an address, no CHILD_SA
    /// is possible.
    pub(crate) fn with_internal_addresses(self: &Arc<Self>, addresses: &[IpAddr]) -> Arc<Self> {
        if self.config.address_assignment == AddressAssignment::Off {
            return Arc::clone(self);
        }
        let mut config = PeerConfig::clone(&self.config);
        for child in std::iter::once(&mut config.child).chain(&mut config.additional_children) {
            let replaced = match config.address_assignment {
                AddressAssignment::Request => &mut child.local,
                AddressAssignment::Off | AddressAssignment::Pool(_) => &mut child.remote,
            };
            *replaced = as_networks(addresses, replaced);
        }
        Arc::new(Self { config: Arc::new(config), auth: Arc::clone(&self.auth) })
    }

    /// Chooses the lifetime of a CHILD_SA that is created now.
    pub(crate) fn child_lifetime(&self, cx: &mut Context<'_>) -> ChildLifetime {
        let timing = self.config.timing;
        ChildLifetime { rekey: cx.now + cx.jittered(timing.child_lifetime), end: cx.now + timing.child_hard_lifetime() }
    }
}

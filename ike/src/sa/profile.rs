//! A configured peer with its parsed credentials.

use std::sync::Arc;

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
    pub(crate) auth: Authenticator,
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
        Ok(Self { auth: Authenticator::new(&config.auth)?, config })
    }

    /// Chooses the lifetime of a CHILD_SA that is created now.
    pub(crate) fn child_lifetime(&self, cx: &mut Context<'_>) -> ChildLifetime {
        let timing = self.config.timing;
        ChildLifetime { rekey: cx.now + cx.jittered(timing.child_lifetime), end: cx.now + timing.child_hard_lifetime() }
    }
}

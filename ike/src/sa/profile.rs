//! A configured peer.

use crate::auth::{Authenticator, CredentialError};
use crate::child_sas::ChildLifetime;
use crate::config::PeerConfig;
use crate::output::Context;

/// A peer's configuration and its prepared credentials.
#[derive(Debug)]
pub(crate) struct Profile {
    pub(crate) config: PeerConfig,
    pub(crate) auth: Authenticator,
}

impl Profile {
    pub(crate) fn new(config: PeerConfig) -> Result<Self, CredentialError> {
        Ok(Self { auth: Authenticator::new(&config.auth)?, config })
    }

    /// The lifetime of a CHILD_SA made now.
    pub(crate) fn child_lifetime(&self, cx: &mut Context<'_>) -> ChildLifetime {
        let timing = self.config.timing;
        ChildLifetime { rekey: cx.now + cx.jittered(timing.child_lifetime), end: cx.now + timing.child_hard_lifetime() }
    }
}

//! A configured peer.

use crate::auth::{Authenticator, CredentialError};
use crate::config::PeerConfig;
use crate::output::Context;
use crate::time::Instant;

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

    /// When a CHILD_SA made now is to be rekeyed.
    pub(crate) fn rekey_at(&self, cx: &mut Context<'_>) -> Instant {
        cx.now + cx.jittered(self.config.timing.child_lifetime)
    }
}

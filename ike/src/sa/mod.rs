//! IKE SAs. INIT and AUTH are states that are consumed by what comes next; after that, one small
//! type for each exchange.
//!
//! ```text
//! InitiatorInit -> InitiatorAuth -> IkeSa      we begin
//!            HalfOpen       -> IkeSa      the peer begins
//! ```

mod channel;
mod child;
mod established;
mod exchange;
pub(crate) mod failure;
mod init_transcript;
mod initiator_auth;
mod initiator_init;
mod path;
mod responder;

pub(crate) use channel::{Channel, LastResponse};
pub(crate) use established::{CloseReason, IkeSa, Initiation, Lifecycle, SaStep};
pub(crate) use exchange::Task;
pub(crate) use initiator_auth::{AuthStep, InitiatorAuth};
pub(crate) use initiator_init::{AuthTurn, InitStep, InitiatorInit};
pub(crate) use responder::{AuthOutcome, HalfOpen, InitOutcome, InitPolicy, reply};

use crate::auth::{Authenticator, CredentialError};
use crate::config::PeerConfig;

/// A peer as configured, with what was prepared from it.
#[derive(Debug)]
pub(crate) struct Profile {
    pub(crate) config: PeerConfig,
    pub(crate) auth: Authenticator,
}

impl Profile {
    pub(crate) fn new(config: PeerConfig) -> Result<Self, CredentialError> {
        Ok(Self { auth: Authenticator::new(&config.auth)?, config })
    }
}

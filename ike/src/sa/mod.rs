//! IKE SAs. INIT and AUTH are states that are consumed by what comes next; after that, one small
//! type for each exchange.
//!
//! ```text
//! Dialing -> Authenticating -> IkeSa      we begin
//!            HalfOpen       -> IkeSa      the peer begins
//! ```

mod authenticating;
mod channel;
mod child;
mod dialing;
mod established;
mod exchange;
pub(crate) mod failure;
mod path;
mod responder;
mod secured;

pub(crate) use authenticating::{AuthStep, Authenticating};
pub(crate) use channel::{Answered, Channel};
pub(crate) use dialing::{Dialing, InitStep, Turn};
pub(crate) use established::{Begun, Closed, IkeSa, Standing, Verdict};
pub(crate) use exchange::Task;
pub(crate) use responder::{AuthOutcome, HalfOpen, InitAnswer, InitPolicy, reply};

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

//! A key exchange of either end, with its Key Exchange payloads.

use std::fmt;

use super::error::KeyExchangeError;
use super::method::{Responded, Started};
use crate::config::Group;
use crate::environment::Environment;
use crate::secret::Secret;
use crate::wire::KeyExchange;

/// A key exchange that we begin: [`Self::start`], send [`Self::payload`], then [`Self::finish`]
/// with the responder's payload. Its private key is good for this one exchange.
pub struct InitiatorKeyExchange {
    group: Group,
    started: Box<dyn Started>,
}

impl InitiatorKeyExchange {
    /// Makes a key pair of this method, used once.
    ///
    /// # Errors
    /// [`KeyExchangeError::NoRandomness`].
    pub fn start(group: Group, env: &mut dyn Environment) -> Result<Self, KeyExchangeError> {
        Ok(Self { group, started: group.method().start(env)? })
    }

    /// The method that this exchange uses.
    pub fn group(&self) -> Group {
        self.group
    }

    /// Our share as KEi.
    pub fn payload(&self) -> KeyExchange {
        KeyExchange { group: self.group.number(), data: self.started.share().to_vec() }
    }

    /// The shared secret, from KEr.
    ///
    /// # Errors
    /// If the responder's share is not one of this method, or gives away the secret.
    pub fn finish(self, response: &KeyExchange) -> Result<Secret, KeyExchangeError> {
        check_group(self.group, response)?;
        self.started.finish(&response.data)
    }
}

/// A key exchange that the peer begins: [`Self::respond`] to its payload, send [`Self::payload`],
/// then take the [`Self::secret`].
pub struct ResponderKeyExchange {
    group: Group,
    responded: Box<dyn Responded>,
}

impl ResponderKeyExchange {
    /// Makes our share from the initiator's KEi.
    ///
    /// # Errors
    /// If the initiator's share is of another method or length, or there is no randomness. Whether
    /// a Diffie-Hellman share is a good one is known only when [`Self::secret`] computes with it.
    pub fn respond(group: Group, request: &KeyExchange, env: &mut dyn Environment) -> Result<Self, KeyExchangeError> {
        check_group(group, request)?;
        Ok(Self { group, responded: group.method().respond(&request.data, env)? })
    }

    /// Our share as KEr.
    pub fn payload(&self) -> KeyExchange {
        KeyExchange { group: self.group.number(), data: self.responded.share().to_vec() }
    }

    /// The shared secret.
    ///
    /// # Errors
    /// If the initiator's share is not one of this method, or gives away the secret.
    pub fn secret(self) -> Result<Secret, KeyExchangeError> {
        self.responded.secret()
    }
}

fn check_group(group: Group, payload: &KeyExchange) -> Result<(), KeyExchangeError> {
    let expected = group.number();
    if payload.group == expected { Ok(()) } else { Err(KeyExchangeError::Group { expected, found: payload.group }) }
}

impl fmt::Debug for InitiatorKeyExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InitiatorKeyExchange").field("group", &self.group).finish_non_exhaustive()
    }
}

impl fmt::Debug for ResponderKeyExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponderKeyExchange").field("group", &self.group).finish_non_exhaustive()
    }
}

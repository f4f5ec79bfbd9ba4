//! One end's part of a key exchange, with its Key Exchange payloads.

use std::fmt;

use super::error::KeyExchangeError;
use super::method::{Responded, Started};
use crate::config::Group;
use crate::environment::Environment;
use crate::secret::Secret;
use crate::wire::KeyExchange;

/// A key exchange that we initiate. Call [`Self::start`], send [`Self::payload`], then call
/// [`Self::finish`] with the responder's payload. The private key is used only for this exchange.
pub struct InitiatorKeyExchange {
    group: Group,
    started: Box<dyn Started>,
}

impl InitiatorKeyExchange {
    /// Makes our share. It is used only once.
    ///
    /// # Errors
    /// Returns [`KeyExchangeError::NoRandomness`] if the system's random source fails.
    pub fn start(group: Group, env: &mut dyn Environment) -> Result<Self, KeyExchangeError> {
        Ok(Self { group, started: group.method().start(env)? })
    }

    /// Returns the method that this exchange uses.
    pub fn group(&self) -> Group {
        self.group
    }

    /// Returns our share as KEi.
    pub fn payload(&self) -> KeyExchange {
        KeyExchange { group: self.group.number(), data: self.started.share().to_vec() }
    }

    /// Computes the shared secret from KEr.
    ///
    /// # Errors
    /// Returns an error if the responder's share is not valid for this method, or would reveal the
    /// secret.
    pub fn finish(self, response: &KeyExchange) -> Result<Secret, KeyExchangeError> {
        check_group(self.group, response)?;
        self.started.finish(&response.data)
    }
}

/// A key exchange that the peer initiates. Call [`Self::respond`] with its payload, send
/// [`Self::payload`], then call [`Self::secret`].
pub struct ResponderKeyExchange {
    group: Group,
    responded: Box<dyn Responded>,
}

impl ResponderKeyExchange {
    /// Makes our share from the initiator's KEi.
    ///
    /// # Errors
    /// Returns an error if the initiator's share has another method or length, or if the system's
    /// random source fails. A Diffie-Hellman share is fully checked only in [`Self::secret`].
    pub fn respond(group: Group, request: &KeyExchange, env: &mut dyn Environment) -> Result<Self, KeyExchangeError> {
        check_group(group, request)?;
        Ok(Self { group, responded: group.method().respond(&request.data, env)? })
    }

    /// Returns our share as KEr.
    pub fn payload(&self) -> KeyExchange {
        KeyExchange { group: self.group.number(), data: self.responded.share().to_vec() }
    }

    /// Computes the shared secret.
    ///
    /// # Errors
    /// Returns an error if the initiator's share is not valid for this method, or would reveal the
    /// secret.
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

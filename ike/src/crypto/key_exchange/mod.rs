//! Key exchange: one file for each method, and a table of all methods.

mod diffie_hellman;
mod ecp;
mod error;
mod exchange;
mod method;
mod methods;
mod modp;
mod p521;
mod x25519;

pub use error::KeyExchangeError;
pub use exchange::{InitiatorKeyExchange, ResponderKeyExchange};

//! Nonces (RFC 7296 2.10, 3.9): each one comes from the random numbers that its endpoint drew, and
//! is for one exchange only.

use std::collections::{HashMap, HashSet};

use super::octets::{Message, Spis, exchange};
use super::{Judged, require};

/// The message that a nonce is for. It may be sent several times, and an IKE_SA_INIT request with a
/// cookie in addition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Use {
    node: usize,
    spis: Spis,
    exchange: u8,
    response: bool,
    id: u32,
}

/// The nonces of all nodes.
#[derive(Debug, Default)]
pub struct Nonces {
    drawn: HashSet<Vec<u8>>,
    used: HashMap<Vec<u8>, Use>,
}

impl Nonces {
    /// Records random octets that an endpoint drew.
    pub fn drawn(&mut self, octets: &[u8]) {
        self.drawn.insert(octets.to_vec());
    }

    /// Judges the nonce of a message that the node sends, if it has one.
    pub fn judge(&mut self, node: usize, message: &Message) -> Judged {
        let Some(nonce) = message.nonce() else { return Ok(()) };
        let header = message.header;
        let mut this =
            Use { node, spis: header.spis, exchange: header.exchange, response: header.response(), id: header.id };
        if header.exchange == exchange::IKE_SA_INIT && !header.response() {
            this.spis.1 = 0;
        }
        //= RFC 7296 2.10 MUST 1: nonces are random
        require!(self.drawn.contains(nonce), "RFC 7296 2.10", "nobody drew the nonce {nonce:x?}");
        let known = *self.used.entry(nonce.to_vec()).or_insert(this);
        //= RFC 7296 3.9 MUST NOT 2: no nonce twice
        require!(known == this, "RFC 7296 3.9", "one nonce for {known:x?} and {this:x?}");
        Ok(())
    }
}

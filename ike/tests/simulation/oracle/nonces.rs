//! Nonces (RFC 7296 2.10, 3.9) and COOKIE2 (RFC 4555 4.2.5): each one comes from the random numbers
//! that its endpoint drew, and is for one exchange only.

use std::collections::{HashMap, HashSet};

use super::octets::{Header, Message, Spis, exchange, notify};
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

impl Use {
    fn of(node: usize, message: &Message) -> Self {
        let Header { mut spis, exchange, id, .. } = message.header;
        let response = message.header.response();
        if exchange == exchange::IKE_SA_INIT && !response {
            spis.1 = 0;
        }
        Self { node, spis, exchange, response, id }
    }
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
        //= RFC 7296 2.10 MUST 1: nonces are random
        require!(self.drawn.contains(nonce), "RFC 7296 2.10", "nobody drew the nonce {nonce:x?}");
        let this = Use::of(node, message);
        let known = *self.used.entry(nonce.to_vec()).or_insert(this);
        //= RFC 7296 3.9 MUST NOT 2: no nonce twice
        require!(known == this, "RFC 7296 3.9", "one nonce for {known:x?} and {this:x?}");
        Ok(())
    }

    /// Judges COOKIE2 of a request that the node sends, if it has one.
    pub fn judge_cookie2(&mut self, node: usize, request: &Message) -> Judged {
        let Some(cookie) = request.notify(notify::COOKIE2).map(|notify| notify.data) else { return Ok(()) };
        let this = Use::of(node, request);
        //= RFC 4555 4.2.5 MUST 2: COOKIE2 is unpredictable
        require!(self.drawn.contains(&cookie), "RFC 4555 4.2.5", "nobody drew the COOKIE2 {cookie:x?}");
        let known = *self.used.entry(cookie).or_insert(this);
        require!(known == this, "RFC 4555 4.2.5", "one COOKIE2 for {known:x?} and {this:x?}");
        Ok(())
    }
}

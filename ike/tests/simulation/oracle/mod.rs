//! An independent judge of every run. It reads the cleartext of every message, knows what RFC 7296
//! and RFC 7383 demand of the end that sent it, and panics at the first violation with the section
//! and a trace. It is written from the RFCs' words: it parses and decrypts by itself, derives all
//! keys by itself, and takes only events and datagrams from the library. So two ends that share a
//! mistake do not agree about it here.
//!
//! Each end is judged by what it has seen itself, step by step. A step is one call into an
//! endpoint: its cause, the events that it reported and the datagrams that it sent.
//!
//! - `octets`: messages as octets.
//! - `key_exchange`: secrets of key exchanges.
//! - `keys`: the key schedule and the Encrypted payload.
//! - `node`: one end, and the order of judgement within a step.
//! - `init`: IKE_SA_INIT: cookies, half-open IKE SAs, other key exchange methods, NATs.
//! - `ike_sa`: one IKE SA: message IDs, windows, retransmission, fragments, nonces of the cipher.
//! - `auth`: IKE_AUTH and the rekey of an IKE SA.
//! - `mobike`: changes of addresses (RFC 4555).
//! - `child_sa`: CHILD_SAs: negotiation, rekeys, collisions, deletions.
//! - `kernel_orders`: the events that install, switch and remove.
//! - `trace`: what happened, for people.

mod auth;
mod child_sa;
mod ike_sa;
mod init;
mod kernel_orders;
mod key_exchange;
pub mod keys;
mod mobike;
mod node;
pub mod octets;
mod trace;

use std::net::SocketAddr;
use std::time::Duration;

use edge_ike::{Event, Transmit};

pub use init::clear;
use keys::PrivateKeys;
use node::Node;
use trace::Trace;

/// A rule that an end broke.
#[derive(Debug, Clone)]
pub struct Violation {
    /// The document and section.
    pub rule: &'static str,
    /// What was found.
    pub found: String,
}

pub type Judged<T = ()> = Result<T, Violation>;

/// Ends the judgement of a step with a violation if the condition does not hold.
macro_rules! require {
    ($holds:expr, $rule:literal, $($found:tt)+) => {
        if !$holds {
            return Err($crate::oracle::Violation { rule: $rule, found: format!($($found)+) });
        }
    };
}
use require;

/// Ends the judgement of a step with a violation.
macro_rules! broken {
    ($rule:literal, $($found:tt)+) => {
        return Err($crate::oracle::Violation { rule: $rule, found: format!($($found)+) })
    };
}
use broken;

/// Why an endpoint was called.
#[derive(Debug, Clone, Copy)]
pub enum Cause<'a> {
    /// A datagram came, to this address and from that one.
    Received(&'a [u8], SocketAddr, SocketAddr),
    /// A deadline came this long ago.
    Timer(Duration),
    /// Its owner asked for something.
    Owner,
    /// Its owner reports that ESP was sent.
    EspSent,
    /// Its owner reports that ESP has come for this SPI.
    EspReceived(u32),
    /// Its owner reports that ESP has come for this SPI from another address than the one that
    /// this end sends to.
    EspFrom(u32, SocketAddr),
}

/// One call into an endpoint.
#[derive(Debug)]
pub struct Step<'a> {
    pub node: usize,
    pub at: Duration,
    pub cause: Cause<'a>,
    /// The random octets that it drew.
    pub drawn: &'a [Vec<u8>],
    pub events: &'a [Event],
    pub sent: &'a [Transmit],
}

/// The limits of an endpoint's configuration.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub nat_port: u16,
    pub cookie_threshold: usize,
    pub half_open_limit: usize,
    /// Octets of UDP payload.
    pub fragment_size: usize,
}

/// What all nodes share.
#[derive(Debug, Default)]
pub struct Shared {
    pub private_keys: PrivateKeys,
    /// Pre-shared keys that prove an identity. Empty: AUTH is not checked.
    pub psks: Vec<Vec<u8>>,
}

/// How long a CHILD_SA had been in use when its end began to rekey it by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RekeyAge(pub Duration);

/// The judge of a network.
#[derive(Debug, Default)]
pub struct Oracle {
    pub shared: Shared,
    nodes: Vec<Node>,
    trace: Trace,
    /// What a violation's message begins with, so that the run can be repeated.
    pub replay: String,
}

impl Oracle {
    pub fn add_node(&mut self, limits: Limits) {
        self.nodes.push(Node::new(limits));
    }

    /// The endpoint of a node was replaced by a new one, which knows nothing.
    pub fn restarted(&mut self, node: usize) {
        self.nodes[node].restarted();
    }

    /// Judges a step.
    pub fn judge(&mut self, step: &Step<'_>) {
        for octets in step.drawn {
            self.shared.private_keys.drawn(octets);
        }
        let node = &mut self.nodes[step.node];
        if let Err(violation) = node.judge(step, &mut self.shared, &mut self.trace) {
            self.report(step.node, step.at, &violation);
        }
    }

    /// Something that is under way although the network is at rest, if there is such.
    pub fn unrest(&self) -> Option<Violation> {
        self.nodes.iter().find_map(|node| node.judge_at_rest().err())
    }

    /// Whether there are messages that were not read: nothing is known of the key exchange.
    pub fn is_blind(&self) -> bool {
        self.nodes.iter().any(Node::is_blind)
    }

    /// Judges what must be true when nothing is under way any more.
    pub fn judge_at_rest(&self, at: Duration) {
        for (index, node) in self.nodes.iter().enumerate() {
            if let Err(violation) = node.judge_at_rest() {
                self.report(index, at, &violation);
            }
        }
    }

    /// How old CHILD_SAs were when a timer rekeyed them.
    pub fn rekey_ages(&self) -> Vec<RekeyAge> {
        self.nodes.iter().flat_map(|node| node.rekey_ages.iter().copied()).collect()
    }

    /// What happened so far.
    pub fn story(&self) -> String {
        self.trace.to_string()
    }

    fn report(&self, node: usize, at: Duration, violation: &Violation) -> ! {
        panic!(
            "{}{}: node {node} at {at:?}: {}; before that:\n{}",
            self.replay, violation.rule, violation.found, self.trace
        );
    }
}

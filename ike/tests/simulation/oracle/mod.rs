//! An independent judge of every run. It decrypts and reads every message, checks it against the
//! requirements of RFC 7296 and RFC 7383 for its sender, and panics at the first violation with the
//! section and a trace. It was written from the text of the RFCs: it has its own parser, decryption
//! and key derivation, and uses only events and datagrams of the library. Therefore it also detects
//! mistakes that both ends make in the same way.
//!
//! Each end is judged step by step, by its own messages and events. A step is one call into an
//! endpoint: its cause, the events that it reported and the datagrams that it sent.
//!
//! - `octets`: messages in the layout of RFC 7296 section 3, and the parser for them.
//! - `key_exchange`: the key exchange methods whose secrets the oracle can compute.
//! - `keys`: the key schedule and the Encrypted payload. `charon` tests them with keys of
//!   strongSwan's.
//! - `nonces`: the origin of nonces, and their use for one exchange only.
//! - `node`: one end, its actions, and the order in which a step is judged.
//! - `init`: IKE_SA_INIT with cookies, half-open IKE SAs, changes of the key exchange method, and
//!   NATs.
//! - `ike_sa`: one IKE SA with its message IDs, retransmission, fragments, and nonces of
//!   the cipher.
//! - `window`: the window of one end for the peer's requests.
//! - `auth`: IKE_AUTH and the rekey of an IKE SA.
//! - `mobike`: address changes by MOBIKE (RFC 4555).
//! - `child_sa`: CHILD_SAs with their negotiation, rekeys and collisions.
//! - `child_deletion`: the deletion of CHILD_SAs.
//! - `kernel_orders`: the events that install, switch and remove SAs in the kernel.
//! - `trace`: a readable record of a run.

mod auth;
mod charon;
mod child_deletion;
mod child_sa;
mod childless;
mod configuration;
mod ike_sa;
mod init;
mod kernel_orders;
mod key_exchange;
pub mod keys;
mod mobike;
mod node;
mod nonces;
pub mod octets;
mod trace;
mod window;

use std::net::SocketAddr;
use std::time::Duration;

use edge_ike::{Event, Transmit};

pub use init::clear;
use keys::PrivateKeys;
use node::Node;
use nonces::Nonces;
use trace::Trace;

/// A violation of a rule by an end.
#[derive(Debug, Clone)]
pub struct Violation {
    /// The RFC and its section.
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

/// The cause of a call into an endpoint.
#[derive(Debug, Clone, Copy)]
pub enum Cause<'a> {
    /// A datagram arrived: its octets, its destination and its source.
    Received(&'a [u8], SocketAddr, SocketAddr),
    /// A deadline passed this long ago.
    Timer(Duration),
    /// The owner gave a command.
    Owner,
    /// The owner reports that ESP was sent.
    EspSent,
    /// The owner reports that ESP was received for this SPI.
    EspReceived(u32),
    /// The owner reports that ESP was received for this SPI from an address to which this end does
    /// not send.
    EspFrom(u32, SocketAddr),
}

/// One call into an endpoint.
#[derive(Debug)]
pub struct Step<'a> {
    pub node: usize,
    pub at: Duration,
    pub cause: Cause<'a>,
    /// The random octets that the endpoint drew.
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
    /// Size of the UDP payload, bytes.
    pub fragment_size: usize,
}

/// The data that is shared by all nodes.
#[derive(Debug, Default)]
pub struct Shared {
    pub private_keys: PrivateKeys,
    pub nonces: Nonces,
    /// Pre-shared keys that prove an identity. If there are none, the oracle does not check AUTH.
    pub psks: Vec<Vec<u8>>,
}

/// How long a CHILD_SA had been in use when a timer of its end started the rekey.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RekeyAge(pub Duration);

/// The judge of a network.
#[derive(Debug, Default)]
pub struct Oracle {
    pub shared: Shared,
    nodes: Vec<Node>,
    trace: Trace,
    /// The first line of a violation's message, which explains how to repeat the run.
    pub replay: String,
}

impl Oracle {
    pub fn add_node(&mut self, limits: Limits) {
        self.nodes.push(Node::new(limits));
    }

    /// Records that the endpoint of a node was replaced by a new one without state.
    pub fn restarted(&mut self, node: usize) {
        self.nodes[node].restarted();
    }

    /// Judges a step.
    pub fn judge(&mut self, step: &Step<'_>) {
        for octets in step.drawn {
            self.shared.private_keys.drawn(octets);
            self.shared.nonces.drawn(octets);
        }
        let node = &mut self.nodes[step.node];
        if let Err(violation) = node.judge(step, &mut self.shared, &mut self.trace) {
            self.report(step.node, step.at, &violation);
        }
    }

    /// Returns the first violation that [`Self::judge_at_rest`] would report, if there is one.
    pub fn unrest(&self) -> Option<Violation> {
        self.nodes.iter().find_map(|node| node.judge_at_rest().err())
    }

    /// Returns whether there are messages that the oracle could not decrypt because it does not
    /// know the secret of the key exchange.
    pub fn is_blind(&self) -> bool {
        self.nodes.iter().any(Node::is_blind)
    }

    /// Judges the conditions that must hold when no exchange is in progress.
    pub fn judge_at_rest(&self, at: Duration) {
        for (index, node) in self.nodes.iter().enumerate() {
            if let Err(violation) = node.judge_at_rest() {
                self.report(index, at, &violation);
            }
        }
    }

    /// Returns the ages of CHILD_SAs at the time a timer rekeyed them.
    pub fn rekey_ages(&self) -> Vec<RekeyAge> {
        self.nodes.iter().flat_map(|node| node.rekey_ages.iter().copied()).collect()
    }

    /// Returns the record of the run so far.
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

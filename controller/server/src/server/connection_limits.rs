//! Limits the number of connections in total, from strangers (peers that have not shown a node's
//! certificate), and from each node.
//!
//! If all connections for strangers are in use, [`SourceShares`] decides which stranger's
//! connection, if any, is closed to admit a new one. So a host that takes all of the strangers'
//! connections loses its own. After an outage, nodes behind one address may reconnect at once and
//! use all connections; a limit for each source would not allow that. A connection on which a
//! node's certificate was shown does not count as a stranger's and is never closed for a
//! stranger's.
//!
//! A node with too many connections loses its oldest one, because the node may have lost its
//! network and reconnected before the controller notices. The closed connection is the oldest of
//! those with the certificate that has the most connections. So if a node has joined again, the
//! holder of the node's former certificate cannot cut the node off.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use edge_controller_domain::source_shares::{Share, SourceShares};
use edge_types::NodeName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::api::caller::NodeCertificate;
use crate::logs;

/// Maximum number of connections; 10,000 nodes have one each.
pub(super) const CONNECTIONS: usize = 20_000;
/// Maximum number of strangers' connections, which are still in their handshake or joining.
const STRANGERS: usize = 1024;
/// Divisor that applies if only few files may be open: strangers then have at most one in this many
/// connections.
const STRANGERS_DIVISOR: usize = 4;
/// Number of open files that are kept for everything else: store, API server, health and metrics,
/// the operator.
const OTHER_FILES: usize = 128;
/// Time that a handshake may take over a slow path to a busy controller. A younger connection is
/// not closed for another one from its own source.
const HANDSHAKE_ALLOWANCE: Duration = Duration::from_secs(3);
/// Maximum number of connections of one node. A node has one for its view, and a second one while
/// it renews its certificate or requests segments.
const PER_NODE: usize = 8;

/// The connection limits, shared by all listeners.
pub(super) struct ConnectionLimits {
    all: Arc<Semaphore>,
    /// Maximum number of strangers' connections.
    strangers: usize,
    taken: Mutex<Connections>,
}

#[derive(Default)]
struct Connections {
    strangers: SourceShares,
    /// One map for all nodes, which takes less memory than a list for each node.
    nodes: BTreeMap<(NodeName, u64), NodeConnection>,
    next: u64,
}

struct NodeConnection {
    /// Serial number of the node's certificate.
    serial: String,
    connection: CancellationToken,
}

/// Permission for one connection. The permission ends when this value is dropped.
pub(super) struct ConnectionPermit {
    owner: ConnectionOwner,
    limits: Arc<ConnectionLimits>,
    _one_of_all: OwnedSemaphorePermit,
}

enum ConnectionOwner {
    Stranger(Share),
    Node(NodeName, u64),
}

impl ConnectionLimits {
    /// Makes limits that fit this number of open files.
    pub(super) fn new(files: u64) -> Arc<Self> {
        let files = usize::try_from(files).unwrap_or(usize::MAX);
        let connections = files.saturating_sub(OTHER_FILES).clamp(STRANGERS_DIVISOR, CONNECTIONS);
        let strangers = STRANGERS.min(connections / STRANGERS_DIVISOR);
        Arc::new(Self { all: Arc::new(Semaphore::new(connections)), strangers, taken: Mutex::default() })
    }

    /// Admits a stranger's connection. Returns its permission and a token that is cancelled when
    /// the connection must be closed for another one. `None` if no connection is free.
    pub(super) fn admit(self: &Arc<Self>, from: IpAddr, now: Instant) -> Option<(ConnectionPermit, CancellationToken)> {
        let permit = self.all.clone().try_acquire_owned().ok()?;
        let mut taken = self.taken();
        if taken.strangers.total() >= self.strangers {
            let source = taken.strangers.displace_for(from, 1, HANDSHAKE_ALLOWANCE, now)?;
            if logs::may_log_stranger() {
                tracing::info!(%source, "too many connections without a node's certificate: the oldest from there is cut off");
            }
        }
        let (share, displaced) = taken.strangers.enter(from, 1, now);
        drop(taken);
        let permit =
            ConnectionPermit { owner: ConnectionOwner::Stranger(share), limits: self.clone(), _one_of_all: permit };
        Some((permit, displaced))
    }

    fn taken(&self) -> MutexGuard<'_, Connections> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connections {
    /// Closes one connection of this node if it has the maximum number.
    fn displace_connection_of(&mut self, node: &NodeName) {
        let of_node = (node.clone(), 0)..=(node.clone(), u64::MAX);
        let all: Vec<(u64, &str)> =
            self.nodes.range(of_node).map(|((_, number), known)| (*number, known.serial.as_str())).collect();
        if all.len() < PER_NODE {
            return;
        }
        let by = |serial: &str| all.iter().filter(|(_, other)| *other == serial).count();
        let oldest =
            all.iter().max_by_key(|(number, serial)| (by(serial), Reverse(*number))).map(|(number, _)| *number);
        if let Some(known) = oldest.and_then(|number| self.nodes.remove(&(node.clone(), number))) {
            if logs::may_log_node() {
                tracing::warn!(%node, "it has more than {PER_NODE} connections: its oldest is cut off");
            }
            known.connection.cancel();
        }
    }
}

impl ConnectionPermit {
    /// Counts the connection as one of the node with this certificate. Cancelling `connection`
    /// closes it.
    pub(super) fn identify(&mut self, certificate: &NodeCertificate, connection: &CancellationToken) {
        let NodeCertificate { name: node, serial, .. } = certificate;
        let mut taken = self.limits.taken();
        if let ConnectionOwner::Stranger(share) = self.owner {
            taken.strangers.leave(share);
        }
        taken.displace_connection_of(node);
        let number = taken.next;
        taken.next += 1;
        let known = NodeConnection { serial: serial.clone(), connection: connection.clone() };
        taken.nodes.insert((node.clone(), number), known);
        drop(taken);
        self.owner = ConnectionOwner::Node(node.clone(), number);
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut taken = self.limits.taken();
        match &self.owner {
            ConnectionOwner::Stranger(share) => taken.strangers.leave(*share),
            ConnectionOwner::Node(node, number) => drop(taken.nodes.remove(&(node.clone(), *number))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge_types::Role;
    use std::net::Ipv6Addr;

    type Held = (ConnectionPermit, CancellationToken);

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn crowd(limits: &Arc<ConnectionLimits>, from: &str, count: usize, now: Instant) -> Vec<Held> {
        (0..count).map(|_| limits.admit(address(from), now).unwrap()).collect()
    }

    fn certificate(node: &str, serial: &str) -> NodeCertificate {
        NodeCertificate { name: node.parse().unwrap(), role: Role::Edge, serial: serial.into(), not_after: 0 }
    }

    fn connect(limits: &Arc<ConnectionLimits>, certificate: &NodeCertificate) -> Held {
        let (mut permit, _) = limits.admit(address("192.0.2.1"), Instant::now()).unwrap();
        let connection = CancellationToken::new();
        permit.identify(certificate, &connection);
        (permit, connection)
    }

    fn displaced(held: &[Held]) -> usize {
        held.iter().filter(|(_, displaced)| displaced.is_cancelled()).count()
    }

    #[test]
    fn as_many_nodes_as_there_are_places_may_come_from_one_address_and_none_is_displaced() {
        let (limits, now) = (ConnectionLimits::new(u64::MAX), Instant::now());
        let held = crowd(&limits, "192.0.2.1", STRANGERS, now);
        assert!(
            limits.admit(address("192.0.2.1"), now + HANDSHAKE_ALLOWANCE / 2).is_none(),
            "the oldest may be on its way"
        );
        assert_eq!(displaced(&held), 0);
        assert!(limits.admit(address("192.0.2.1"), now + HANDSHAKE_ALLOWANCE).is_some());
        assert!(held[0].1.is_cancelled() && displaced(&held) == 1, "the oldest took too long");
    }

    #[test]
    fn a_newcomer_displaces_the_oldest_of_the_source_with_the_most_at_once() {
        let (limits, now) = (ConnectionLimits::new(u64::MAX), Instant::now());
        let few = crowd(&limits, "192.0.2.1", STRANGERS / 4, now);
        let many = crowd(&limits, "192.0.2.2", STRANGERS - STRANGERS / 4, now);
        let newcomers = crowd(&limits, "192.0.2.3", 10, now);
        assert!(displaced(&few) == 0 && displaced(&newcomers) == 0);
        assert!(many[..10].iter().all(|(_, displaced)| displaced.is_cancelled()) && displaced(&many) == 10);
    }

    #[test]
    fn no_crowd_of_strangers_displaces_who_has_shown_a_certificate() {
        let limits = ConnectionLimits::new(u64::MAX);
        let nodes = (0..256).map(|nth| {
            let (mut permit, as_stranger) = limits.admit(address("192.0.2.1"), Instant::now()).unwrap();
            let connection = CancellationToken::new();
            permit.identify(&certificate(&format!("edge-{nth}"), "01"), &connection);
            (permit, connection, as_stranger)
        });
        let nodes: Vec<_> = nodes.collect();
        assert_eq!(limits.taken().strangers.total(), 0, "who has shown a certificate is no stranger");
        // The connections come from the address of the nodes, from another one, and from as many
        // other networks as there are connections.
        for from in ["192.0.2.1", "198.51.100.1"] {
            for _ in 0..2 * STRANGERS {
                let _ = limits.admit(address(from), Instant::now()).map(std::mem::forget);
            }
        }
        for nth in 0..2 * STRANGERS as u128 {
            let from = Ipv6Addr::from_bits(0x2001_0db8 << 96 | nth << 80);
            let _ = limits.admit(from.into(), Instant::now() + HANDSHAKE_ALLOWANCE).map(std::mem::forget);
        }
        let cut_off = nodes.iter().filter(|(_, node, stranger)| node.is_cancelled() || stranger.is_cancelled());
        assert_eq!(cut_off.count(), 0);
        assert!(limits.taken().strangers.total() <= STRANGERS);
    }

    #[test]
    fn what_is_dropped_or_shown_to_be_a_node_leaves_its_place_to_strangers() {
        let (limits, now) = (ConnectionLimits::new(u64::MAX), Instant::now());
        let mut held = crowd(&limits, "192.0.2.1", STRANGERS, now);
        held.pop();
        held[0].0.identify(&certificate("edge-1", "01"), &CancellationToken::new());
        let more = crowd(&limits, "192.0.2.1", 2, now);
        assert!(displaced(&held) == 0 && displaced(&more) == 0);
        drop((held, more));
        let taken = limits.taken();
        assert!(taken.strangers.total() == 0 && taken.nodes.is_empty());
        assert_eq!(limits.all.available_permits(), CONNECTIONS);
    }

    #[test]
    fn a_node_loses_its_oldest_connection_and_another_node_none() {
        let limits = ConnectionLimits::new(u64::MAX);
        let other = connect(&limits, &certificate("edge-2", "02"));
        let held: Vec<Held> = (0..PER_NODE + 2).map(|_| connect(&limits, &certificate("edge-1", "01"))).collect();
        assert!(held[0].1.is_cancelled() && held[1].1.is_cancelled() && displaced(&held) == 2);
        assert!(!other.1.is_cancelled());
    }

    #[test]
    fn who_has_a_former_certificate_of_a_node_displaces_himself_and_not_the_node() {
        let limits = ConnectionLimits::new(u64::MAX);
        let node = connect(&limits, &certificate("edge-1", "02"));
        let former: Vec<Held> = (0..2 * PER_NODE).map(|_| connect(&limits, &certificate("edge-1", "01"))).collect();
        assert!(!node.1.is_cancelled() && displaced(&former) == PER_NODE + 1);
    }
}

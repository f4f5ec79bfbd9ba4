//! Who may be connected: places for all, a part of them for who has shown no node's certificate,
//! and a few for each node.
//!
//! Whoever comes last is let in and a stranger makes room, as [`FairShares`] says: one host that takes
//! all places of strangers takes them from itself, and as many nodes as there are places may come
//! back at once from behind one address, which a limit on each source would not let them do. Who
//! has shown a node's certificate is no stranger, and makes room for none.
//!
//! A node with too many connections loses its oldest: it may have lost its network, and come back
//! before that is known of them. It loses it of the certificate by which it has the most, so that
//! who holds a former certificate of a node that joined anew does not cut off that node.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use edge_controller_domain::fair_shares::{FairShares, Share};
use edge_types::NodeName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::api::caller::NodeCertificate;
use crate::logs;

/// Connections at once; 10,000 nodes have one each.
pub(super) const CONNECTIONS: usize = 20_000;
/// Connections at once that have shown no node's certificate: still in their handshake, or joining.
const STRANGERS: usize = 1024;
/// Where few files may be open, strangers have this part of the connections at most.
const STRANGERS_PART: usize = 4;
/// Files that are left for everything else: store, API server, health and metrics, the operator.
const OTHER_FILES: usize = 128;
/// Time that a handshake takes over a slow path to a busy controller.
const PATIENCE: Duration = Duration::from_secs(3);
/// Connections of one node. It has one, and another for a moment when its certificate is renewed.
const OF_ONE_NODE: usize = 8;

/// All places of all listeners.
pub(super) struct Places {
    all: Arc<Semaphore>,
    /// How many of them strangers may have.
    strangers: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    strangers: FairShares,
    /// In one map, which takes less memory than a list for each node.
    nodes: BTreeMap<(NodeName, u64), Known>,
    next: u64,
}

struct Known {
    /// The serial number of its certificate.
    serial: String,
    connection: CancellationToken,
}

/// A place; free again when it is dropped.
pub(super) struct Place {
    holder: Holder,
    places: Arc<Places>,
    _one_of_all: OwnedSemaphorePermit,
}

enum Holder {
    Stranger(Share),
    Node(NodeName, u64),
}

impl Places {
    /// As far as so many open files allow.
    pub(super) fn new(files: u64) -> Arc<Self> {
        let files = usize::try_from(files).unwrap_or(usize::MAX);
        let connections = files.saturating_sub(OTHER_FILES).clamp(STRANGERS_PART, CONNECTIONS);
        let strangers = STRANGERS.min(connections / STRANGERS_PART);
        Arc::new(Self { all: Arc::new(Semaphore::new(connections)), strangers, taken: Mutex::default() })
    }

    /// A place for who has shown no node's certificate yet, and what is cancelled when it goes to
    /// someone else. `None`: all are taken.
    pub(super) fn take(self: &Arc<Self>, from: IpAddr, now: Instant) -> Option<(Place, CancellationToken)> {
        let permit = self.all.clone().try_acquire_owned().ok()?;
        let mut taken = self.taken();
        if taken.strangers.total() >= self.strangers {
            let source = taken.strangers.displace_for(from, 1, PATIENCE, now)?;
            if logs::may_tell_of_stranger() {
                tracing::info!(%source, "too many connections without a node's certificate: the oldest from there is cut off");
            }
        }
        let (share, displaced) = taken.strangers.enter(from, 1, now);
        drop(taken);
        let place = Place { holder: Holder::Stranger(share), places: self.clone(), _one_of_all: permit };
        Some((place, displaced))
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// Cuts off a connection of this node, where it has as many as it may have.
    fn make_room_for_node(&mut self, node: &NodeName) {
        let of_node = (node.clone(), 0)..=(node.clone(), u64::MAX);
        let all: Vec<(u64, &str)> =
            self.nodes.range(of_node).map(|((_, number), known)| (*number, known.serial.as_str())).collect();
        if all.len() < OF_ONE_NODE {
            return;
        }
        let by = |serial: &str| all.iter().filter(|(_, other)| *other == serial).count();
        let oldest =
            all.iter().max_by_key(|(number, serial)| (by(serial), Reverse(*number))).map(|(number, _)| *number);
        if let Some(known) = oldest.and_then(|number| self.nodes.remove(&(node.clone(), number))) {
            tracing::warn!(%node, "it has more than {OF_ONE_NODE} connections: its oldest is cut off");
            known.connection.cancel();
        }
    }
}

impl Place {
    /// Its holder has shown this certificate; cancelling `connection` cuts it off.
    pub(super) fn is_of(&mut self, certificate: &NodeCertificate, connection: &CancellationToken) {
        let NodeCertificate { name: node, serial, .. } = certificate;
        let mut taken = self.places.taken();
        if let Holder::Stranger(share) = self.holder {
            taken.strangers.leave(share);
        }
        taken.make_room_for_node(node);
        let number = taken.next;
        taken.next += 1;
        let known = Known { serial: serial.clone(), connection: connection.clone() };
        taken.nodes.insert((node.clone(), number), known);
        drop(taken);
        self.holder = Holder::Node(node.clone(), number);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        match &self.holder {
            Holder::Stranger(share) => taken.strangers.leave(*share),
            Holder::Node(node, number) => drop(taken.nodes.remove(&(node.clone(), *number))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge_types::Role;
    use std::net::Ipv6Addr;

    type Held = (Place, CancellationToken);

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn crowd(places: &Arc<Places>, from: &str, count: usize, now: Instant) -> Vec<Held> {
        (0..count).map(|_| places.take(address(from), now).unwrap()).collect()
    }

    fn certificate(node: &str, serial: &str) -> NodeCertificate {
        NodeCertificate { name: node.parse().unwrap(), role: Role::Edge, serial: serial.into(), not_after: 0 }
    }

    fn connect(places: &Arc<Places>, certificate: &NodeCertificate) -> Held {
        let (mut place, _) = places.take(address("192.0.2.1"), Instant::now()).unwrap();
        let connection = CancellationToken::new();
        place.is_of(certificate, &connection);
        (place, connection)
    }

    fn displaced(held: &[Held]) -> usize {
        held.iter().filter(|(_, displaced)| displaced.is_cancelled()).count()
    }

    #[test]
    fn as_many_nodes_as_there_are_places_may_come_from_one_address_and_none_is_displaced() {
        let (places, now) = (Places::new(u64::MAX), Instant::now());
        let held = crowd(&places, "192.0.2.1", STRANGERS, now);
        assert!(places.take(address("192.0.2.1"), now + PATIENCE / 2).is_none(), "the oldest may be on its way");
        assert_eq!(displaced(&held), 0);
        assert!(places.take(address("192.0.2.1"), now + PATIENCE).is_some());
        assert!(held[0].1.is_cancelled() && displaced(&held) == 1, "the oldest took too long");
    }

    #[test]
    fn a_newcomer_displaces_the_oldest_of_the_source_with_the_most_at_once() {
        let (places, now) = (Places::new(u64::MAX), Instant::now());
        let few = crowd(&places, "192.0.2.1", STRANGERS / 4, now);
        let many = crowd(&places, "192.0.2.2", STRANGERS - STRANGERS / 4, now);
        let newcomers = crowd(&places, "192.0.2.3", 10, now);
        assert!(displaced(&few) == 0 && displaced(&newcomers) == 0);
        assert!(many[..10].iter().all(|(_, displaced)| displaced.is_cancelled()) && displaced(&many) == 10);
    }

    #[test]
    fn no_crowd_of_strangers_displaces_who_has_shown_a_certificate() {
        let places = Places::new(u64::MAX);
        let nodes = (0..256).map(|nth| {
            let (mut place, as_stranger) = places.take(address("192.0.2.1"), Instant::now()).unwrap();
            let connection = CancellationToken::new();
            place.is_of(&certificate(&format!("edge-{nth}"), "01"), &connection);
            (place, connection, as_stranger)
        });
        let nodes: Vec<_> = nodes.collect();
        assert_eq!(places.taken().strangers.total(), 0, "who has shown a certificate is no stranger");
        // From the address of the nodes themselves, from one other, and from as many networks as
        // there are places.
        for from in ["192.0.2.1", "198.51.100.1"] {
            for _ in 0..2 * STRANGERS {
                let _ = places.take(address(from), Instant::now()).map(std::mem::forget);
            }
        }
        for nth in 0..2 * STRANGERS as u128 {
            let from = Ipv6Addr::from_bits(0x2001_0db8 << 96 | nth << 80);
            let _ = places.take(from.into(), Instant::now() + PATIENCE).map(std::mem::forget);
        }
        let cut_off = nodes.iter().filter(|(_, node, stranger)| node.is_cancelled() || stranger.is_cancelled());
        assert_eq!(cut_off.count(), 0);
        assert!(places.taken().strangers.total() <= STRANGERS);
    }

    #[test]
    fn what_is_dropped_or_shown_to_be_a_node_leaves_its_place_to_strangers() {
        let (places, now) = (Places::new(u64::MAX), Instant::now());
        let mut held = crowd(&places, "192.0.2.1", STRANGERS, now);
        held.pop();
        held[0].0.is_of(&certificate("edge-1", "01"), &CancellationToken::new());
        let more = crowd(&places, "192.0.2.1", 2, now);
        assert!(displaced(&held) == 0 && displaced(&more) == 0);
        drop((held, more));
        let taken = places.taken();
        assert!(taken.strangers.total() == 0 && taken.nodes.is_empty());
        assert_eq!(places.all.available_permits(), CONNECTIONS);
    }

    #[test]
    fn a_node_loses_its_oldest_connection_and_another_node_none() {
        let places = Places::new(u64::MAX);
        let other = connect(&places, &certificate("edge-2", "02"));
        let held: Vec<Held> = (0..OF_ONE_NODE + 2).map(|_| connect(&places, &certificate("edge-1", "01"))).collect();
        assert!(held[0].1.is_cancelled() && held[1].1.is_cancelled() && displaced(&held) == 2);
        assert!(!other.1.is_cancelled());
    }

    #[test]
    fn who_has_a_former_certificate_of_a_node_displaces_himself_and_not_the_node() {
        let places = Places::new(u64::MAX);
        let node = connect(&places, &certificate("edge-1", "02"));
        let former: Vec<Held> = (0..2 * OF_ONE_NODE).map(|_| connect(&places, &certificate("edge-1", "01"))).collect();
        assert!(!node.1.is_cancelled() && displaced(&former) == OF_ONE_NODE + 1);
    }
}

//! Who may be connected: places for all, a part of them for who has shown no node's certificate, and a few for each node.
//!
//! Whoever comes last is let in and someone else makes room, by this rule: the source with the most strangers loses its oldest. So one host that
//! takes all places of strangers takes them from itself, and as many nodes as there are places may come back at once from behind one address,
//! which a limit on each source would not let them do. Only where that would not be fairer, since the newcomer's own source has as many, the
//! oldest keeps its place while it may still be on its way: otherwise a crowd at the door would cut every handshake short, and nobody would get in.
//!
//! A node with too many connections loses its oldest: it may have lost its network, and come back before that is known of them. It loses it of the
//! certificate by which it has the most, so that who holds a former certificate of a node that joined anew does not cut off that node.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use edge_types::NodeName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::api::caller::NodeCertificate;

/// Connections at once; 10,000 nodes have one each.
pub(super) const CONNECTIONS: usize = 20_000;
/// Connections at once that have shown no node's certificate: still in their handshake, or joining.
const STRANGERS: usize = 1024;
/// Time that a handshake takes over a slow path to a busy controller.
const PATIENCE: Duration = Duration::from_secs(3);
/// Connections of one node. It has one, and another for a moment when its certificate is renewed.
const OF_ONE_NODE: usize = 8;

/// All places of all listeners.
pub(super) struct Places {
    all: Arc<Semaphore>,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    /// In the order in which they came.
    strangers: HashMap<IpAddr, BTreeMap<u64, Stranger>>,
    /// In one map, which takes less memory than a list for each node.
    nodes: BTreeMap<(NodeName, u64), Known>,
    next: u64,
}

struct Stranger {
    since: Instant,
    displaced: CancellationToken,
}

struct Known {
    /// The serial number of its certificate.
    serial: String,
    connection: CancellationToken,
}

/// A place; free again when it is dropped.
pub(super) struct Place {
    holder: Holder,
    number: u64,
    places: Arc<Places>,
    _one_of_all: OwnedSemaphorePermit,
}

enum Holder {
    Stranger(IpAddr),
    Node(NodeName),
}

impl Places {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { all: Arc::new(Semaphore::new(CONNECTIONS)), taken: Mutex::default() })
    }

    /// A place for who has shown no node's certificate yet, and what is cancelled when it goes to someone else. `None`: all are taken.
    pub(super) fn take(self: &Arc<Self>, from: IpAddr, now: Instant) -> Option<(Place, CancellationToken)> {
        let permit = self.all.clone().try_acquire_owned().ok()?;
        let (source, displaced) = (source(from), CancellationToken::new());
        let mut taken = self.taken();
        if taken.strangers.values().map(BTreeMap::len).sum::<usize>() >= STRANGERS {
            taken.make_room(source, now)?;
        }
        let number = taken.number();
        let stranger = Stranger { since: now, displaced: displaced.clone() };
        taken.strangers.entry(source).or_default().insert(number, stranger);
        drop(taken);
        let place = Place { holder: Holder::Stranger(source), number, places: self.clone(), _one_of_all: permit };
        Some((place, displaced))
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Takes a stranger's place from the source that has the most, for one of `newcomer`; from the one that waits longest where several have as many.
    fn make_room(&mut self, newcomer: IpAddr, now: Instant) -> Option<()> {
        let own = self.strangers.get(&newcomer).map_or(0, BTreeMap::len);
        let (source, number) = self
            .strangers
            .iter()
            .filter_map(|(source, all)| Some((all.len(), *all.keys().next()?, *source)))
            .max_by_key(|(count, oldest, _)| (*count, Reverse(*oldest)))
            .map(|(_, oldest, source)| (source, oldest))?;
        let all = self.strangers.get(&source)?;
        if all.len() <= own + 1 && now.saturating_duration_since(all.get(&number)?.since) < PATIENCE {
            return None;
        }
        let stranger = self.leave(source, number)?;
        tracing::info!(%source, "too many connections without a node's certificate: the oldest from there is cut off");
        stranger.displaced.cancel();
        Some(())
    }

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

    fn leave(&mut self, source: IpAddr, number: u64) -> Option<Stranger> {
        let all = self.strangers.get_mut(&source)?;
        let stranger = all.remove(&number);
        if all.is_empty() {
            self.strangers.remove(&source);
        }
        stranger
    }
}

impl Place {
    /// Its holder has shown this certificate; cancelling `connection` cuts it off.
    pub(super) fn is_of(&mut self, certificate: &NodeCertificate, connection: &CancellationToken) {
        let NodeCertificate { name: node, serial, .. } = certificate;
        let mut taken = self.places.taken();
        if let Holder::Stranger(source) = self.holder {
            taken.leave(source, self.number);
        }
        taken.make_room_for_node(node);
        let known = Known { serial: serial.clone(), connection: connection.clone() };
        taken.nodes.insert((node.clone(), self.number), known);
        drop(taken);
        self.holder = Holder::Node(node.clone());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        match &self.holder {
            Holder::Stranger(source) => drop(taken.leave(*source, self.number)),
            Holder::Node(node) => drop(taken.nodes.remove(&(node.clone(), self.number))),
        }
    }
}

/// What counts as one source: whoever has an IPv6 address has a /64 of them (RFC 6177, RFC 7934).
fn source(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge_types::Role;

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
        let (places, now) = (Places::new(), Instant::now());
        let held = crowd(&places, "192.0.2.1", STRANGERS, now);
        assert!(places.take(address("192.0.2.1"), now + PATIENCE / 2).is_none(), "the oldest may be on its way");
        assert_eq!(displaced(&held), 0);
        assert!(places.take(address("192.0.2.1"), now + PATIENCE).is_some());
        assert!(held[0].1.is_cancelled() && displaced(&held) == 1, "the oldest took too long");
    }

    #[test]
    fn a_newcomer_displaces_the_oldest_of_the_source_with_the_most_at_once() {
        let (places, now) = (Places::new(), Instant::now());
        let few = crowd(&places, "192.0.2.1", STRANGERS / 4, now);
        let many = crowd(&places, "192.0.2.2", STRANGERS - STRANGERS / 4, now);
        let newcomers = crowd(&places, "192.0.2.3", 10, now);
        assert!(displaced(&few) == 0 && displaced(&newcomers) == 0);
        assert!(many[..10].iter().all(|(_, displaced)| displaced.is_cancelled()) && displaced(&many) == 10);
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_source() {
        let (places, now) = (Places::new(), Instant::now());
        let held: Vec<Held> = (0..STRANGERS)
            .map(|nth| places.take(Ipv6Addr::from_bits(0x20010db8 << 96 | nth as u128).into(), now).unwrap())
            .collect();
        let other = places.take(address("2001:db8:0:1::1"), now);
        assert!(other.is_some() && displaced(&held) == 1);
        assert_eq!(source(address("::ffff:192.0.2.1")), address("192.0.2.1"));
    }

    #[test]
    fn what_is_dropped_or_shown_to_be_a_node_leaves_its_place_to_strangers() {
        let (places, now) = (Places::new(), Instant::now());
        let mut held = crowd(&places, "192.0.2.1", STRANGERS, now);
        held.pop();
        held[0].0.is_of(&certificate("edge-1", "01"), &CancellationToken::new());
        let more = crowd(&places, "192.0.2.1", 2, now);
        assert!(displaced(&held) == 0 && displaced(&more) == 0);
        drop((held, more));
        let taken = places.taken();
        assert!(taken.strangers.is_empty() && taken.nodes.is_empty());
        assert_eq!(places.all.available_permits(), CONNECTIONS);
    }

    #[test]
    fn a_node_loses_its_oldest_connection_and_another_node_none() {
        let places = Places::new();
        let other = connect(&places, &certificate("edge-2", "02"));
        let held: Vec<Held> = (0..OF_ONE_NODE + 2).map(|_| connect(&places, &certificate("edge-1", "01"))).collect();
        assert!(held[0].1.is_cancelled() && held[1].1.is_cancelled() && displaced(&held) == 2);
        assert!(!other.1.is_cancelled());
    }

    #[test]
    fn who_has_a_former_certificate_of_a_node_displaces_himself_and_not_the_node() {
        let places = Places::new();
        let node = connect(&places, &certificate("edge-1", "02"));
        let former: Vec<Held> = (0..2 * OF_ONE_NODE).map(|_| connect(&places, &certificate("edge-1", "01"))).collect();
        assert!(!node.1.is_cancelled() && displaced(&former) == OF_ONE_NODE + 1);
    }
}

//! Tests a hub with thousands of peers: the limit of simultaneous attempts.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::endpoint::Phase;
use crate::wire::{ExchangeType, Header};

const HUB: &str = "192.0.2.1:500";
/// Time from one end to the other.
const LATENCY: Duration = Duration::from_millis(20);
/// The default of [`EndpointConfig::attempt_limit`].
const LIMIT: usize = 64;

/// A hub and its edges. Index 0 is the hub; edge `n` has the address 10.0.n/256.n%256.
struct Crowd {
    now: Duration,
    ends: Vec<End>,
    /// Datagrams by the time at which they arrive.
    transit: BTreeMap<(Duration, u64), Transmit>,
    sent: u64,
    due: BTreeSet<(Duration, usize)>,
    /// When the hub has sent the first IKE_SA_INIT of each attempt, and to whom.
    attempts: BTreeMap<u64, (Duration, SocketAddr)>,
    /// The largest number of the hub's attempts that held a place.
    most_places: usize,
    /// The largest number of the hub's attempts that ran at once.
    most_attempts: usize,
    /// When each edge came up at the hub, and when one was given up since.
    up: BTreeMap<PeerName, Duration>,
    lost: BTreeMap<PeerName, Duration>,
}

fn edge_name(index: usize) -> PeerName {
    PeerName::new(&format!("edge-{index:04}"))
}

fn edge_address(index: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, u8::try_from(index / 256).unwrap(), u8::try_from(index % 256).unwrap()], 500))
}

fn pairing(local: &str, remote: &str, local_address: SocketAddr, remote_address: SocketAddr) -> PeerConfig {
    let psk = Auth::Psk(Secret::new(b"correct horse battery staple".to_vec()));
    PeerConfig {
        name: PeerName::new(remote),
        local: Some(local_address.ip()),
        remotes: vec![remote_address],
        local_id: Identity::Fqdn(local.into()),
        remote_id: Identity::Fqdn(remote.into()),
        ..config(0, psk)
    }
}

impl Crowd {
    /// Makes a hub and edges. An edge is silent until it is started.
    fn new(edges: usize) -> Self {
        let end = |seed| End {
            endpoint: Endpoint::new(EndpointConfig::default()),
            host: Host::new(seed),
            events: Vec::new(),
            down: seed != 0,
        };
        Self {
            now: Duration::from_secs(1000),
            ends: (0..=u64::try_from(edges).unwrap()).map(end).collect(),
            transit: BTreeMap::new(),
            sent: 0,
            due: BTreeSet::new(),
            attempts: BTreeMap::new(),
            most_places: 0,
            most_attempts: 0,
            up: BTreeMap::new(),
            lost: BTreeMap::new(),
        }
    }

    /// Starts an edge whose peer is the hub.
    fn start_edge(&mut self, index: usize, initiate: bool) {
        self.ends[index].down = false;
        let hub = HUB.parse().unwrap();
        let config = PeerConfig { initiate, ..pairing(edge_name(index).as_str(), "hub", edge_address(index), hub) };
        self.call(index, |endpoint, now, env| endpoint.set_peer(config, now, env).unwrap());
    }

    /// Configures edges as peers of the hub, as after its start.
    fn start_hub(&mut self, edges: impl Iterator<Item = usize>) {
        let hub = HUB.parse().unwrap();
        for index in edges {
            let config = pairing("hub", edge_name(index).as_str(), hub, edge_address(index));
            let now = Instant::new(self.now);
            let End { endpoint, host, .. } = &mut self.ends[0];
            endpoint.set_peer(config, now, host).unwrap();
        }
        self.drain(0);
    }

    fn call<R>(&mut self, us: usize, call: impl FnOnce(&mut Endpoint, Instant, &mut dyn Environment) -> R) -> R {
        let now = Instant::new(self.now);
        let End { endpoint, host, .. } = &mut self.ends[us];
        let result = call(endpoint, now, host);
        self.drain(us);
        result
    }

    fn drain(&mut self, us: usize) {
        let end = &mut self.ends[us];
        while let Some(event) = end.endpoint.poll_event() {
            match (us, event) {
                (0, Event::IkeUp { peer, .. }) => drop(self.up.entry(peer).or_insert(self.now)),
                (0, Event::IkeDown { peer, .. }) => {
                    self.up.remove(&peer);
                    self.lost.insert(peer, self.now);
                }
                _ => {}
            }
        }
        while let Some(transmit) = end.endpoint.poll_transmit() {
            let header = Header::decode(&transmit.payload);
            if let Ok(header) = header
                && us == 0
                && header.exchange == ExchangeType::IkeSaInit
                && !header.response
            {
                self.attempts.entry(header.initiator_spi).or_insert((self.now, transmit.remote));
            }
            self.sent += 1;
            self.transit.insert((self.now + LATENCY, self.sent), transmit);
        }
        if us == 0 {
            self.most_places = self.most_places.max(end.endpoint.attempt_queue.running().len());
            end.endpoint.check_queues();
            let running = end.endpoint.peers.values().filter(|peer| peer.attempt.is_some()).count();
            self.most_attempts = self.most_attempts.max(running);
        }
        let at = end.endpoint.poll_timeout().map(|at| at.since_start().max(self.now));
        self.due.retain(|(_, owner)| *owner != us);
        self.due.extend(at.map(|at| (at, us)));
    }

    /// Runs until nothing is left to do before `end`, or until `done`.
    fn run_until(&mut self, end: Duration, mut done: impl FnMut(&Self) -> bool) {
        while !done(self) {
            let arrival = self.transit.keys().next().map(|(at, _)| *at);
            let due = self.due.first().copied();
            match (arrival, due) {
                (Some(at), due) if at <= end && due.is_none_or(|(other, _)| at <= other) => {
                    self.now = at;
                    let (_, transmit) = self.transit.pop_first().unwrap();
                    self.arrive(&transmit);
                }
                (_, Some((at, us))) if at <= end => {
                    self.now = at;
                    self.call(us, |endpoint, now, env| endpoint.handle_timeout(now, env));
                }
                _ => {
                    self.now = end;
                    return;
                }
            }
        }
    }

    fn arrive(&mut self, transmit: &Transmit) {
        let index = match transmit.remote.ip() {
            ip if ip == HUB.parse::<SocketAddr>().unwrap().ip() => 0,
            IpAddr::V4(ip) => usize::from(ip.octets()[2]) * 256 + usize::from(ip.octets()[3]),
            IpAddr::V6(_) => unreachable!(),
        };
        if self.ends[index].down {
            return;
        }
        let Transmit { local, remote, payload } = transmit;
        self.call(index, |endpoint, now, env| endpoint.handle(payload, *remote, *local, now, env));
    }

    fn phase(&self, index: usize) -> Phase {
        self.ends[0].endpoint.phase(&edge_name(index)).unwrap()
    }

    /// Returns the largest number of attempts of the hub that began within this time.
    fn most_begun_within(&self, time: Duration) -> usize {
        let mut begun: Vec<Duration> = self.attempts.values().map(|(at, _)| *at).collect();
        begun.sort_unstable();
        (0..begun.len()).map(|first| begun[first..].partition_point(|at| *at < begun[first] + time)).max().unwrap_or(0)
    }
}

#[test]
fn a_hub_that_starts_reaches_two_thousand_edges_a_limited_number_at_a_time() {
    let mut crowd = Crowd::new(2000);
    (1..=2000).for_each(|index| crowd.start_edge(index, false));
    let start = crowd.now;
    crowd.start_hub(1..=2000);
    assert_eq!(crowd.attempts.len(), LIMIT, "the others wait");
    assert_eq!([1, 2000].map(|index| crowd.phase(index)), [Phase::Connecting; 2]);
    assert_eq!(crowd.ends[0].endpoint.stranded_peers(), Vec::new());
    crowd.run_until(start + 10 * SECOND, |crowd| crowd.up.len() == 2000);
    assert_eq!(crowd.up.len(), 2000);
    assert_eq!((crowd.most_places, crowd.most_attempts), (LIMIT, LIMIT));
    assert_eq!(crowd.attempts.len(), 2000, "each is tried once");
    let order = |index: usize| crowd.up[&edge_name(index)];
    assert!((1..=1900).all(|index| order(index) <= order(index + 100)), "in order");
}

#[test]
fn silent_peers_delay_the_others_by_half_a_second_and_no_more_attempts_run_than_stated() {
    let mut crowd = Crowd::new(2000);
    // The last one in each hundred answers.
    let answers = |index: &usize| index.is_multiple_of(100);
    (1..=2000).filter(answers).for_each(|index| crowd.start_edge(index, false));
    let start = crowd.now;
    crowd.start_hub(1..=2000);
    crowd.run_until(start + 20 * SECOND, |crowd| crowd.up.len() == 20);
    let taken = crowd.now - start;
    assert_eq!(crowd.up.len(), 20, "{taken:?}");
    // 2000 / 64 times half a second, and half of the start delay each time.
    assert!(taken < 17 * SECOND, "{taken:?}");
    assert_eq!(crowd.most_places, LIMIT);
    let timing = Timing::default();
    assert!(crowd.most_begun_within(timing.retransmit) <= 2 * LIMIT);
    // An attempt lasts five and a half seconds.
    assert!(crowd.most_attempts <= 12 * LIMIT, "{}", crowd.most_attempts);
    // Later, all of them are tried again and again, but never more than that at once, and an edge
    // that is back is reached.
    crowd.start_edge(1, false);
    crowd.run_until(start + 120 * SECOND, |crowd| crowd.up.len() == 21);
    assert_eq!(crowd.up.len(), 21);
    assert!(crowd.most_attempts <= 12 * LIMIT, "{}", crowd.most_attempts);
}

#[test]
fn an_edge_that_dials_a_hub_with_thousands_of_silent_peers_is_answered_at_once() {
    let mut crowd = Crowd::new(2000);
    let start = crowd.now;
    crowd.start_hub(1..=2000);
    crowd.run_until(start + SECOND, |_| false);
    let begun = crowd.now;
    crowd.start_edge(1999, true);
    crowd.run_until(start + 10 * SECOND, |crowd| !crowd.up.is_empty());
    // IKE_SA_INIT there and back, and IKE_AUTH there.
    assert_eq!(crowd.up.get(&edge_name(1999)), Some(&(begun + 3 * LATENCY)));
    let dialled = |crowd: &Crowd| crowd.attempts.values().any(|(_, to)| *to == edge_address(1999));
    crowd.run_until(start + 60 * SECOND, |_| false);
    assert!(!dialled(&crowd), "the hub need not dial it");
}

#[test]
fn an_edge_that_was_up_is_dialled_before_thousands_that_never_answered() {
    let mut crowd = Crowd::new(4000);
    crowd.start_edge(1, false);
    crowd.start_hub(1..=1);
    let start = crowd.now;
    crowd.run_until(start + SECOND, |_| false);
    assert_eq!(crowd.up.len(), 1);
    // The edge loses its state without a word, and does not dial.
    crowd.ends[1].endpoint = Endpoint::new(EndpointConfig::default());
    crowd.start_edge(1, false);
    crowd.start_hub(2..=4000);
    crowd.run_until(start + 25 * SECOND, |crowd| !crowd.lost.is_empty() && !crowd.up.is_empty());
    let (lost, up) = (crowd.lost[&edge_name(1)], crowd.up[&edge_name(1)]);
    let untried = 4000 - crowd.attempts.len();
    assert!(untried > 500, "{untried} others have not had their first turn");
    // The next place is its own, or the one after it.
    assert!(up - lost < SECOND + SECOND / 2, "{:?}", up - lost);
}

#[test]
fn a_hub_lets_the_edges_that_dial_come_first() {
    let mut crowd = Crowd::new(1000);
    let start = crowd.now;
    // The edges have noticed that the hub was away, and try again within a second.
    crowd.start_hub(1..=1000);
    let mut order: Vec<(Duration, usize)> =
        (1..=1000).map(|index| (start + SECOND / 1000 * u32::try_from(index * 7 % 1000).unwrap(), index)).collect();
    order.sort_unstable();
    for (at, index) in order {
        crowd.run_until(at, |_| false);
        crowd.start_edge(index, true);
    }
    crowd.run_until(start + 30 * SECOND, |crowd| crowd.up.len() == 1000);
    assert_eq!(crowd.up.len(), 1000);
    let retransmissions = crowd.ends[0].endpoint.sent_requests().retransmissions;
    assert!(crowd.attempts.len() < 300, "{} attempts, {retransmissions} retransmissions", crowd.attempts.len());
}

#[test]
fn a_forged_request_postpones_an_attempt_only_once() {
    let mut crowd = Crowd::new(2);
    crowd.ends[0].endpoint.config.attempt_limit = 1;
    crowd.start_edge(2, false);
    // Edge 1 is silent, and edge 2 waits for its place.
    crowd.start_hub([1, 2].into_iter());
    assert_eq!(crowd.attempts.len(), 1);
    let start = crowd.now;
    let mut forger = Crowd::new(2);
    for round in 1..20 {
        // The forger's request has another SPI each time, and the answer to it does not reach it.
        forger.ends[2].host = Host::new(1000 + round);
        forger.ends[2].endpoint = Endpoint::new(EndpointConfig::default());
        forger.transit.clear();
        forger.start_edge(2, true);
        let (_, request) = forger.transit.pop_first().unwrap();
        crowd.arrive(&request);
        crowd.run_until(start + SECOND / 4 * u32::try_from(round).unwrap(), |_| false);
    }
    let name = edge_name(2);
    let late = crowd.up.get(&name).map(|up| *up - start);
    assert!(late.is_some_and(|late| late >= 2 * SECOND && late < 3 * SECOND), "{late:?}");
}

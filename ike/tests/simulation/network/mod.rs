//! A network of many endpoints with one clock in one thread. Datagrams are delayed, lost,
//! duplicated, reordered and translated by NATs, as determined by one seed.
//!
//! - `links`: links, NATs and random numbers.
//! - `host`: the environment of an endpoint.
//! - `tcp`: TCP connections between hosts (RFC 9329).

mod host;
mod links;
mod tcp;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use edge_ike::event::{NotServed, PeerError, PeerErrorKind};
use edge_ike::{
    ChildId, Endpoint, EndpointConfig, Environment, Event, Instant, PeerName, Purpose, TcpConnectionId, Transmit,
};

use crate::kernel::{Esp, Kernel};
use crate::oracle::{Cause, Limits, Oracle, Step};
use crate::peers::{OTHER_PSK, PSK};

pub use self::host::Host;
pub use self::links::{LinkQuality, Nat, Random};

#[derive(Debug)]
pub struct Node {
    pub endpoint: Endpoint,
    pub host: Host,
    pub nat: Option<Nat>,
    pub events: Vec<(Duration, Event)>,
    /// Whether the node is down: it neither sends nor receives.
    pub down: bool,
}

impl Node {
    /// Returns the errors that were reported, in order.
    pub fn reported_errors(&self) -> Vec<PeerError> {
        let error = |(_, event): &(Duration, Event)| match event {
            Event::PeerFailed { error, .. } | Event::Refused { error, .. } => Some(error.clone()),
            _ => None,
        };
        self.events.iter().filter_map(error).collect()
    }

    /// Returns what the peers of the IKE SAs that came up asked for in vain, in order.
    pub fn not_served(&self) -> Vec<NotServed> {
        let not_served = |(_, event): &(Duration, Event)| match event {
            Event::IkeUp { details, .. } => Some(details.not_served),
            _ => None,
        };
        self.events.iter().filter_map(not_served).collect()
    }

    pub fn errors(&self) -> Vec<PeerErrorKind> {
        self.reported_errors().into_iter().map(|error| error.kind).collect()
    }
}

/// Minimum time between two reports from the kernel about ESP of an SA.
const ESP_REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Identifies a kind of report from the kernel: that ESP was sent, or that it was received, on one
/// SA.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct EspReport {
    node: usize,
    peer: PeerName,
    spi: u32,
    sent: bool,
}

/// A direction of traffic: the sending node, the receiving node, and the purpose of the CHILD_SA at
/// the sending node.
pub type Way = (usize, usize, Purpose);

#[derive(Debug, Clone)]
enum Payload {
    Ike(Vec<u8>),
    /// The packet, its direction, and whether an earlier packet had arrived in this direction.
    Esp(Esp, Way, bool),
}

#[derive(Debug, Clone)]
struct Packet {
    from: SocketAddr,
    to: SocketAddr,
    payload: Payload,
}

/// A function that is called with every IKE datagram on the wire and may change it. Returns false
/// to drop the datagram.
type Tap = Box<dyn FnMut(SocketAddr, SocketAddr, &mut Vec<u8>) -> bool>;

pub struct Network {
    /// Judges every step of every endpoint.
    pub oracle: Oracle,
    pub now: Duration,
    pub nodes: Vec<Node>,
    pub quality: LinkQuality,
    pub random: Random,
    /// Directions in which a packet has arrived once. From then on, all packets in these directions
    /// must arrive.
    pub working: BTreeSet<Way>,
    pub watch: bool,
    pub esp_sent: u64,
    pub esp_arrived: u64,
    pub esp_lost_by_network: u64,
    /// Every IKE datagram that was sent.
    pub wire: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
    /// IKE datagrams that arrived at addresses without a node: from, to, octets.
    pub outside: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
    pub tap: Option<Tap>,
    /// Directed pairs of hosts between which no datagram passes.
    pub cut: BTreeSet<(usize, usize)>,
    /// SAs that recently reported ESP: the time at which they may report again, and whether more
    /// ESP was sent or received since.
    esp_reports: BTreeMap<EspReport, (Duration, bool)>,
    /// For each end of each TCP connection, the number that the connection has at the other end.
    tcp: BTreeMap<TcpConnectionId, TcpConnectionId>,
    /// Whether kernels report ESP that comes from an address other than the SA's.
    pub report_sources: bool,
    /// When a source of ESP was last reported for an SA, by node and SPI.
    sources_reported: BTreeMap<(usize, u32), Duration>,
    sequence: u64,
    flying: BinaryHeap<Reverse<(Duration, u64)>>,
    packets: BTreeMap<u64, Packet>,
}

impl Network {
    pub fn new(seed: u64, quality: LinkQuality) -> Self {
        let mut oracle = Oracle::default();
        oracle.shared.psks = vec![PSK.to_vec(), OTHER_PSK.to_vec()];
        oracle.replay = format!("seed {seed}: ");
        Self {
            oracle,
            now: Duration::from_secs(1000),
            nodes: Vec::new(),
            quality,
            random: Random(seed),
            working: BTreeSet::new(),
            watch: false,
            esp_sent: 0,
            esp_arrived: 0,
            esp_lost_by_network: 0,
            wire: Vec::new(),
            outside: Vec::new(),
            tap: None,
            cut: BTreeSet::new(),
            esp_reports: BTreeMap::new(),
            tcp: BTreeMap::new(),
            report_sources: false,
            sources_reported: BTreeMap::new(),
            sequence: 0,
            flying: BinaryHeap::new(),
            packets: BTreeMap::new(),
        }
    }

    pub fn instant(&self) -> Instant {
        Instant::new(self.now)
    }

    pub fn add(&mut self, address: &str, nat: Option<Nat>) -> usize {
        self.add_with(address, nat, EndpointConfig::default())
    }

    pub fn add_with(&mut self, address: &str, nat: Option<Nat>, config: EndpointConfig) -> usize {
        let random = Random(self.random.next());
        self.oracle.add_node(Limits {
            nat_port: config.nat_port,
            cookie_threshold: config.cookie_threshold,
            half_open_limit: config.half_open_limit,
            fragment_size: config.fragment_size,
        });
        let host = Host {
            kernel: Kernel::default(),
            address: address.parse().unwrap(),
            more_addresses: Vec::new(),
            tcp: BTreeMap::new(),
            former_addresses: Vec::new(),
            unix_time: 1_800_000_000,
            random,
            refuse_percent: 0,
            drawn: Vec::new(),
        };
        self.nodes.push(Node { endpoint: Endpoint::new(config), host, nat, events: Vec::new(), down: false });
        self.nodes.len() - 1
    }

    /// Calls into an endpoint, carries out its events and sends its datagrams.
    pub fn call<R>(&mut self, node: usize, call: impl FnOnce(&mut Endpoint, Instant, &mut dyn Environment) -> R) -> R {
        self.step(node, Cause::Owner, call)
    }

    fn step<R>(
        &mut self,
        node: usize,
        cause: Cause<'_>,
        call: impl FnOnce(&mut Endpoint, Instant, &mut dyn Environment) -> R,
    ) -> R {
        let now = self.instant();
        let Node { endpoint, host, .. } = &mut self.nodes[node];
        let result = call(endpoint, now, host);
        let events: Vec<Event> = std::iter::from_fn(|| endpoint.poll_event()).collect();
        let sent: Vec<Transmit> = std::iter::from_fn(|| endpoint.poll_transmit()).collect();
        let drawn = std::mem::take(&mut host.drawn);
        self.oracle.judge(&Step { node, at: self.now, cause, drawn: &drawn, events: &events, sent: &sent });
        for event in events {
            let this = &mut self.nodes[node];
            this.host.kernel.carry_out(&event);
            this.events.push((self.now, event));
        }
        for transmit in sent {
            let host = &self.nodes[node].host;
            if host.has(transmit.local.ip()) {
                self.send(node, transmit.local, transmit.remote, Payload::Ike(transmit.payload));
            } else {
                assert!(host.former_addresses.contains(&transmit.local.ip()), "sent from an address of the host");
            }
        }
        result
    }

    /// Replaces a node's address by another one, and reports this to the endpoint as its owner.
    pub fn move_node(&mut self, node: usize, new: IpAddr) {
        let host = &mut self.nodes[node].host;
        let old = std::mem::replace(&mut host.address, new);
        host.former_addresses.retain(|former| *former != new);
        host.former_addresses.push(old);
        let addresses = [vec![new], host.more_addresses.clone()].concat();
        self.call(node, |endpoint, now, env| endpoint.set_addresses(addresses, now, env));
        self.call(node, |endpoint, now, env| endpoint.local_address_changed(old, |_| Some(new), now, env));
    }

    /// Replaces a node's endpoint by a new one without state.
    pub fn restart(&mut self, node: usize) {
        let this = &mut self.nodes[node];
        this.endpoint = Endpoint::new(this.endpoint.config().clone());
        this.host.kernel.restart();
        self.oracle.restarted(node);
    }

    fn send(&mut self, node: usize, local: SocketAddr, to: SocketAddr, payload: Payload) {
        if self.nodes[node].down {
            return;
        }
        let from = match &mut self.nodes[node].nat {
            Some(nat) if to.ip() != local.ip() => nat.outwards(local.port()),
            _ => local,
        };
        let mut payload = payload;
        if let Payload::Ike(octets) = &mut payload {
            self.wire.push((from, to, octets.clone()));
            if let Some(tap) = &mut self.tap
                && !tap(from, to, octets)
            {
                return;
            }
        }
        self.fly(Packet { from, to, payload });
    }

    /// Sends an IKE datagram from any address.
    pub fn inject(&mut self, from: SocketAddr, to: SocketAddr, octets: Vec<u8>) {
        self.fly(Packet { from, to, payload: Payload::Ike(octets) });
    }

    fn fly(&mut self, packet: Packet) {
        let packet = self.in_tcp(packet);
        let copies = if self.random.chance(self.quality.double_percent) { 2 } else { 1 };
        for _ in 0..copies {
            if self.random.chance(self.quality.loss_percent) {
                self.esp_lost_by_network += u64::from(matches!(packet.payload, Payload::Esp(..)));
                continue;
            }
            let spread = (self.quality.delay_max - self.quality.delay_min).as_micros() as u64;
            let step = (self.quality.delay_step.as_micros() as u64).max(1);
            let delay = self.quality.delay_min + Duration::from_micros(self.random.below(spread + 1) / step * step);
            let mut packet = packet.clone();
            if let Payload::Ike(octets) = &mut packet.payload
                && self.random.chance(self.quality.corrupt_percent)
            {
                let at = self.random.below(octets.len() as u64) as usize;
                octets[at] ^= 1 << self.random.below(8);
            }
            self.sequence += 1;
            self.flying.push(Reverse((self.now + delay, self.sequence)));
            self.packets.insert(self.sequence, packet);
        }
    }

    fn land(&mut self, packet: Packet) {
        let Packet { from, to, payload } = packet;
        // A datagram to a host's own address is always delivered to the host itself, even if hosts
        // in other networks have the same address.
        let itself = self.nodes.iter().position(|node| node.host.address == to.ip() && from.ip() == to.ip());
        let place = itself.or_else(|| {
            self.nodes.iter().position(|node| match &node.nat {
                Some(nat) => nat.public == to.ip(),
                None => node.host.has(to.ip()),
            })
        });
        let Some(node) = place else {
            if let Payload::Ike(octets) = payload {
                self.outside.push((from, to, octets));
            }
            return;
        };
        if self.nodes[node].down {
            return;
        }
        let sender = self.nodes.iter().position(|node| match &node.nat {
            Some(nat) => nat.public == from.ip(),
            None => node.host.has(from.ip()),
        });
        if sender.is_some_and(|sender| self.cut.contains(&(sender, node))) {
            return;
        }
        let port = match &self.nodes[node].nat {
            Some(nat) if itself.is_none() => match nat.inwards(to.port()) {
                Some(port) => port,
                None => return,
            },
            _ => to.port(),
        };
        let host = &self.nodes[node].host;
        let local = SocketAddr::new(if host.has(to.ip()) { to.ip() } else { host.address }, port);
        match payload {
            Payload::Ike(octets) => {
                let cause = Cause::Received(&octets, local, from);
                self.step(node, cause, |endpoint, now, env| endpoint.handle(&octets, local, from, now, env));
            }
            Payload::Esp(esp, way, worked) => {
                if let Some(peer) = self.nodes[node].host.kernel.decrypts(&esp) {
                    self.note_source(node, &peer, esp.spi, from);
                    self.note_esp(EspReport { node, peer, spi: esp.spi, sent: false });
                    self.esp_arrived += 1;
                    self.working.insert(way);
                } else if self.watch && worked {
                    panic!(
                        "at {:?}: ESP {:x} from node {} to node {} finds no SA; before that{}",
                        self.now,
                        esp.spi,
                        way.0,
                        way.1,
                        self.history()
                    );
                }
            }
        }
    }

    /// Sends one ESP packet of each purpose in both directions between two nodes.
    pub fn esp(&mut self, a: (usize, &PeerName), b: (usize, &PeerName)) {
        for ((from, _), (to, peer)) in [(b, (a.0, a.1)), (a, (b.0, b.1))].map(|(from, to)| (from, to)) {
            let packets = self.nodes[from].host.kernel.encrypt(peer);
            let worked = |way: &&Way| self.watch && (way.0, way.1) == (from, to);
            if let Some(way) = self.working.iter().filter(worked).find(|way| !packets.contains_key(&way.2)) {
                panic!(
                    "at {:?}: node {from} has nothing to send with to node {to} for {}; before that{}",
                    self.now,
                    way.2,
                    self.history()
                );
            }
            for (purpose, (esp, local, remote)) in packets {
                if !self.nodes[from].host.has(local.ip()) {
                    continue;
                }
                self.esp_sent += 1;
                let (peer, spi) = (peer.clone(), esp.spi);
                self.note_esp(EspReport { node: from, peer, spi, sent: true });
                let way = (from, to, purpose);
                let worked = self.working.contains(&way);
                self.send(from, SocketAddr::new(local.ip(), 4500), remote, Payload::Esp(esp, way, worked));
            }
        }
    }

    /// Reports the source of received ESP in the same way as the kernel: if it differs from the
    /// SA's address, at most once a second for each SA.
    fn note_source(&mut self, node: usize, peer: &PeerName, spi: u32, from: SocketAddr) {
        let known = self.nodes[node].host.kernel.paths.get(&ChildId(spi)).is_some_and(|(_, remote)| *remote == from);
        let lately = self.sources_reported.get(&(node, spi)).is_some_and(|at| self.now < *at + ESP_REPORT_INTERVAL);
        if !self.report_sources || known || lately {
            return;
        }
        self.sources_reported.insert((node, spi), self.now);
        self.step(node, Cause::EspFrom(spi, from), |endpoint, now, env| {
            endpoint.esp_came_from(peer, spi, from, now, env);
        });
    }

    /// Reports ESP in the same way as the kernel: the first packet after an idle second
    /// immediately, and then once a second if there were more packets.
    fn note_esp(&mut self, report: EspReport) {
        if !self.nodes[report.node].endpoint.config().esp_reported {
            return;
        }
        match self.esp_reports.get_mut(&report) {
            Some((_, more)) => *more = true,
            None => {
                self.esp_reports.insert(report.clone(), (self.now + ESP_REPORT_INTERVAL, false));
                self.report_esp(&report);
            }
        }
    }

    fn report_esp(&mut self, report: &EspReport) {
        let EspReport { node, peer, spi, sent } = report;
        if *sent {
            self.step(*node, Cause::EspSent, |endpoint, now, _| endpoint.esp_sent(peer, *spi, now));
        } else {
            self.step(*node, Cause::EspReceived(*spi), |endpoint, now, _| endpoint.esp_received(peer, *spi, now));
        }
    }

    fn report_due_esp(&mut self) {
        let now = self.now;
        let due: Vec<EspReport> =
            self.esp_reports.iter().filter(|(_, (until, _))| *until <= now).map(|(report, _)| report.clone()).collect();
        for report in due {
            if let Some((_, true)) = self.esp_reports.remove(&report) {
                self.note_esp(report);
            }
        }
    }

    /// Returns the time of the next event.
    fn next(&self) -> Option<Duration> {
        let timers = self.nodes.iter().filter(|node| !node.down).filter_map(|node| node.endpoint.poll_timeout());
        let timers = timers.map(Instant::since_start);
        let reports = self.esp_reports.values().map(|(until, _)| *until);
        timers.chain(reports).chain(self.flying.peek().map(|Reverse((at, _))| *at)).min()
    }

    /// Runs until `until`.
    pub fn run_until(&mut self, until: Duration) {
        while self.advance(until) {}
        self.now = until;
    }

    /// Does the same as [`Self::run_until`], but stops as soon as an IKE datagram has arrived at an
    /// address without a node.
    pub fn run_until_outside(&mut self, until: Duration) {
        while self.outside.is_empty() {
            if !self.advance(until) {
                self.now = until;
                return;
            }
        }
    }

    /// Runs the next event, if it is due until `until`. Returns false if it is not.
    fn advance(&mut self, until: Duration) -> bool {
        let Some(next) = self.next().filter(|next| *next <= until) else { return false };
        self.now = self.now.max(next);
        self.report_due_esp();
        if let Some(Reverse((at, sequence))) = self.flying.peek().copied()
            && at <= self.now
        {
            self.flying.pop();
            let packet = self.packets.remove(&sequence).unwrap();
            self.land(packet);
            return true;
        }
        for node in 0..self.nodes.len() {
            let due = self.nodes[node].endpoint.poll_timeout().map(Instant::since_start);
            if let Some(due) = due.filter(|due| *due <= self.now && !self.nodes[node].down) {
                let cause = Cause::Timer(self.now - due);
                self.step(node, cause, |endpoint, now, env| endpoint.handle_timeout(now, env));
            }
        }
        true
    }

    pub fn run_for(&mut self, time: Duration) {
        self.run_until(self.now + time);
    }

    /// Runs while ESP is sent in both directions between two nodes every few milliseconds.
    pub fn run_with_traffic(&mut self, time: Duration, a: (usize, &PeerName), b: (usize, &PeerName)) {
        let end = self.now + time;
        while self.now < end {
            self.esp(a, b);
            let step = Duration::from_micros(2_000 + self.random.below(8_000));
            self.run_until((self.now + step).min(end));
        }
    }

    /// Returns the events of all nodes in order, for error messages.
    pub fn history(&self) -> String {
        let mut lines: Vec<(Duration, String)> = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            lines.extend(node.events.iter().map(|(at, event)| (*at, format!("node {index}: {}", brief(event)))));
        }
        lines.sort_by_key(|(at, _)| *at);
        lines.iter().map(|(at, line)| format!("\n  {at:?} {line}")).collect()
    }

    /// Checks that there is no superfluous state: no reserved SPIs, at most one IKE SA with each
    /// peer, and at most one CHILD_SA of each purpose.
    pub fn assert_tidy(&self) {
        self.oracle.judge_at_rest(self.now);
        for (index, node) in self.nodes.iter().enumerate().filter(|(_, node)| !node.down) {
            assert!(node.host.kernel.reserved.is_empty(), "node {index} has reserved SPIs left");
            for (peer, tunnel) in &node.host.kernel.tunnels {
                let (inbound, outbound) = (tunnel.inbound.len(), tunnel.outbound.len());
                assert_eq!(inbound, outbound, "node {index} has too many SAs of {peer}:{}", self.history());
                let ike = node.host.kernel.ike_sas.iter().filter(|(name, _)| name == peer).count();
                assert!(ike <= 1, "node {index} has {ike} IKE SAs with {peer}");
            }
        }
    }

    /// Checks that no state and no deadline is left.
    pub fn assert_nothing_left(&self) {
        for (index, node) in self.nodes.iter().enumerate() {
            let kernel = &node.host.kernel;
            let tunnels =
                kernel.tunnels.values().any(|tunnel| !tunnel.inbound.is_empty() || !tunnel.outbound.is_empty());
            assert!(!tunnels && kernel.ike_sas.is_empty(), "node {index} has an SA left:{}", self.history());
            assert!(kernel.reserved.is_empty(), "node {index} has reserved SPIs left: {:x?}", kernel.reserved);
            assert_eq!(node.endpoint.poll_timeout(), None, "node {index} waits for something");
        }
    }
}

/// Formats an event in one line.
pub fn brief(event: &Event) -> String {
    match event {
        Event::IkeUp { ike, initiator, .. } => format!("IkeUp {:x} initiator {initiator}", ike.initiator),
        Event::IkeReplaced { old, new, .. } => format!("IkeReplaced {:x} by {:x}", old.initiator, new.initiator),
        Event::IkeDown { ike, reason, .. } => format!("IkeDown {:x} {reason:?}", ike.initiator),
        Event::ChildUp { child, replaces, .. } => {
            format!("ChildUp {:x} (out {:x}) replaces {replaces:x?}", child.id.0, child.outbound_spi)
        }
        Event::ChildRekeyed { old, new, switch, .. } => {
            format!("ChildRekeyed {:x} by {:x} (out {:x}) {switch:?}", old.0, new.id.0, new.outbound_spi)
        }
        Event::OutboundSwitch { old, new, .. } => format!("OutboundSwitch {:x} to {:x}", old.0, new.id.0),
        Event::ChildDown { child, reason, .. } => format!("ChildDown {:x} {reason:?}", child.0),
        other => format!("{other:?}"),
    }
}

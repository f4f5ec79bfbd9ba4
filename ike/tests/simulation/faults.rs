//! Simulates runs, each of which is determined by a seed. A few endpoints communicate over a
//! network that loses, duplicates, reorders, delays and corrupts datagrams, and that is partitioned
//! at times. NATs rebind, nodes sleep and restart, kernels refuse SPIs, hosts move to other
//! addresses, owners give commands, and attackers replay, divert and flood. Then the network heals,
//! and each pair must settle with one IKE SA and one CHILD_SA of each purpose, the same at both
//! ends. The oracle judges every step of the run.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::panic::catch_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use edge_ike::config::Group;
use edge_ike::{EndpointConfig, PeerConfig, PeerName, Purpose};

use crate::foreign;
use crate::network::{LinkQuality, Nat, Network, Random};
use crate::oracle::octets::{FLAG_INITIATOR, Header, exchange, notify, payload};
use crate::peers::{SECOND, name, peer, with_children};

/// Maximum time for recovery after the network has healed, seconds. It is longer than all delays
/// after failures, the lifetime of half-open IKE SAs, and the half minute until a peer that has
/// forgotten the IKE SA is asked with the five minutes for which a responder with MOBIKE repeats
/// the request.
const RECOVERY: u64 = 340;

/// One run, determined by a seed.
pub struct Run {
    pub network: Network,
    random: Random,
    /// Decides which nodes support MOBIKE and which move. This generator is separate from `random`,
    /// so that its decisions do not change anything else in a run.
    moves: Random,
    /// Whether hosts move.
    mobile: bool,
    /// Number of moves so far.
    moved: u16,
    /// The original address of each node, and whether the node is behind a NAT there.
    homes: Vec<(IpAddr, bool)>,
    /// The configurations of each node.
    configs: Vec<Vec<PeerConfig>>,
    /// Number of requests that attackers have sent.
    strangers: u64,
}

impl Run {
    pub fn new(seed: u64) -> Self {
        let mut random = Random(seed ^ 0x5eed);
        let mut moves = Random(seed ^ 0x4555);
        let mobile = moves.chance(60);
        let mut network = Network::new(seed, LinkQuality::RELIABLE);
        // Only one run in eight uses reports of sources, so that the other runs remain the same as
        // in earlier releases.
        network.report_sources = seed % 8 == 5;
        network.oracle.replay = format!("replay with SEEDS=1 SEED={seed} make soak\n");
        let nodes = 2 + random.below(3) as usize;
        let hidden: Vec<bool> = (0..nodes).map(|node| node > 0 && random.chance(25)).collect();
        let force = random.chance(50);
        let groups = if random.chance(40) { vec![Group::X25519] } else { Vec::new() };
        let (child_lifetime, ike_lifetime) = (12 + random.below(30) as u32, 25 + random.below(70) as u32);
        let authentication_lifetime = 25 + random.below(150) as u32;
        let transmissions = 4 + random.below(4) as u32;
        let at = |node: usize| if hidden[node] { format!("192.0.2.{node}") } else { format!("10.0.0.{}", node + 1) };
        for (node, hidden) in hidden.iter().enumerate() {
            let endpoint = EndpointConfig {
                cookie_threshold: [0, 2, 64][random.below(3) as usize],
                half_open_limit: [6, 4096][random.below(2) as usize],
                fragment_size: [1232, 400][random.below(2) as usize],
                esp_reported: random.chance(50),
                ..EndpointConfig::default()
            };
            let nat = hidden.then(|| Nat::new(&at(node)));
            network.add_with(&format!("10.0.0.{}", node + 1), nat, endpoint);
        }
        let mut configs: Vec<Vec<PeerConfig>> = (0..nodes).map(|_| Vec::new()).collect();
        for us in 0..nodes {
            for them in us + 1..nodes {
                if hidden[us] && hidden[them] {
                    continue;
                }
                let both = random.chance(60);
                let children = if random.chance(35) { 2 + random.below(2) as usize } else { 1 };
                for (us, them, begins) in [(us, them, true), (them, us, false)] {
                    let address = at(them);
                    let remotes: &[&str] = if hidden[them] { &[] } else { &[&address] };
                    let mut config = peer(&id(us), &id(them), remotes);
                    config.initiate = both || hidden[us] || (begins && !hidden[them]);
                    config.force_encapsulation = force;
                    config.mobike = moves.chance(85);
                    with_children(&mut config, children);
                    for child in [&mut config.child].into_iter().chain(&mut config.additional_children) {
                        child.proposals[0].groups.clone_from(&groups);
                    }
                    config.timing.child_lifetime = SECOND * child_lifetime;
                    config.timing.ike_lifetime = SECOND * ike_lifetime;
                    config.timing.authentication_lifetime = SECOND * authentication_lifetime;
                    config.timing.transmissions = transmissions;
                    config.timing.idle_liveness = 30 * SECOND;
                    // Patience must end within the time for recovery. Like reports of sources, it
                    // leaves the other runs as they were.
                    if seed % 8 == 3 {
                        config.timing.patient = true;
                        config.timing.retransmit = Duration::from_millis(200);
                    }
                    configs[us].push(config);
                }
            }
        }
        let homes = network.nodes.iter().map(|node| (node.host.address, node.nat.is_some())).collect();
        Self { network, random, moves, mobile, moved: 0, homes, configs, strangers: 0 }
    }

    /// Configures the peers of a node.
    fn configure(&mut self, node: usize) {
        for config in self.configs[node].clone() {
            self.network.call(node, |endpoint, now, env| endpoint.set_peer(config, now, env)).unwrap();
        }
    }

    fn node(&mut self) -> usize {
        self.random.below(self.network.nodes.len() as u64) as usize
    }

    /// Chooses a node and one of its peers. Returns both, and the node's name for that peer.
    fn pair(&mut self) -> Option<(usize, usize, PeerName)> {
        let us = self.node();
        let peers = &self.configs[us];
        let config = peers.get(self.random.below(peers.len().max(1) as u64) as usize)?;
        let them = (0..self.network.nodes.len()).find(|node| name(&id(*node)) == config.name)?;
        Some((us, them, config.name.clone()))
    }

    /// Performs the run: configures all nodes, causes faults, and waits until all pairs have
    /// settled.
    pub fn whole(&mut self) {
        for node in 0..self.network.nodes.len() {
            self.configure(node);
        }
        let faulty = 20 + self.random.below(60);
        let end = self.network.now + Duration::from_secs(faulty);
        while self.network.now < end {
            if self.random.chance(15) {
                self.weather();
            }
            if self.mobile && self.moves.chance(15) {
                self.move_somebody();
            }
            self.act();
            let step = Duration::from_millis(self.random.below(2500));
            self.network.run_for(step);
        }
        self.heal();
        self.come_to_rest();
    }

    /// Changes the quality of the network.
    fn weather(&mut self) {
        let random = &mut self.random;
        self.network.quality = match random.below(4) {
            0 => LinkQuality::RELIABLE,
            1 => LinkQuality::REORDERING,
            2 => LinkQuality { delay_step: Duration::from_millis(40), ..LinkQuality::REORDERING },
            _ => LinkQuality {
                delay_min: Duration::from_millis(1),
                delay_max: Duration::from_millis(20 + random.below(2500)),
                loss_percent: random.below(35),
                double_percent: random.below(40),
                corrupt_percent: random.below(8),
                delay_step: Duration::from_millis(1 + random.below(20)),
            },
        };
    }

    /// Performs a random action.
    fn act(&mut self) {
        let what = self.random.below(28);
        match what {
            0..=5 | 24 => {
                if let Some((us, _, peer)) = self.pair() {
                    self.network.call(us, |endpoint, now, env| match what {
                        0..=2 => endpoint.rekey_children(&peer, now, env),
                        3 => endpoint.reauthenticate(&peer, now, env),
                        24 => endpoint.rekey_ike(&peer, now, env),
                        _ => endpoint.check_liveness(&peer, now, env),
                    });
                }
            }
            6..=9 | 25..=27 => {
                // Both ends of a pair act at the same time.
                if let Some((us, them, peer)) = self.pair() {
                    let ours = name(&id(us));
                    for (node, peer) in [(us, peer), (them, ours)] {
                        self.network.call(node, |endpoint, now, env| match what {
                            6..=8 => endpoint.rekey_children(&peer, now, env),
                            9 => endpoint.reauthenticate(&peer, now, env),
                            27 if node == us => endpoint.rekey_children(&peer, now, env),
                            _ => endpoint.rekey_ike(&peer, now, env),
                        });
                    }
                }
            }
            10 => {
                if let Some((us, _, peer)) = self.pair() {
                    self.network.call(us, |endpoint, now, env| endpoint.terminate(&peer, now, env));
                    let pause = Duration::from_millis(self.random.below(3000));
                    self.network.run_for(pause);
                    self.network.call(us, |endpoint, now, env| endpoint.connect(&peer, now, env));
                }
            }
            11 | 12 => {
                // Start a partition in one or both directions, or end all partitions.
                let (a, b) = (self.node(), self.node());
                if self.random.chance(50) {
                    self.network.cut.clear();
                } else if a != b {
                    self.network.cut.insert((a, b));
                    if self.random.chance(50) {
                        self.network.cut.insert((b, a));
                    }
                }
            }
            13 => {
                let node = self.node();
                if let Some(nat) = &mut self.network.nodes[node].nat {
                    nat.rebind();
                }
            }
            14 => {
                let node = self.node();
                self.network.restart(node);
                self.configure(node);
            }
            15 => {
                // The node sleeps, and wakes up after many deadlines have passed. Its wall clock is
                // stepped.
                let node = self.node();
                self.network.nodes[node].down = true;
                let sleep = Duration::from_millis(self.random.below(12_000));
                self.network.run_for(sleep);
                self.network.nodes[node].down = false;
                self.network.nodes[node].host.unix_time += self.random.below(100_000);
            }
            16 => {
                let node = self.node();
                self.network.nodes[node].host.refuse_percent = [0, 20, 70][self.random.below(3) as usize];
            }
            17..=19 => self.replay(),
            20 | 21 => self.flood(),
            22 | 23 => {
                if let Some((us, them, peer)) = self.pair() {
                    for _ in 0..1 + self.random.below(20) {
                        self.network.esp((us, &name(&id(us))), (them, &peer));
                        let pause = Duration::from_millis(self.random.below(300));
                        self.network.run_for(pause);
                    }
                }
            }
            _ => {}
        }
    }

    /// Gives a host another address, perhaps behind a NAT, or its original address.
    fn move_somebody(&mut self) {
        let node = self.moves.below(self.homes.len() as u64) as usize;
        let (home, hidden) = self.homes[node];
        self.moved += 1;
        let [high, low] = self.moved.to_be_bytes();
        let new = match self.moves.below(4) {
            0 => home,
            1 => self.network.nodes[node].host.address,
            _ => IpAddr::from([10, 1, high, low]),
        };
        if !hidden {
            let nat = (new != home && self.moves.chance(30)).then(|| Nat::new(&format!("192.0.3.{low}")));
            self.network.nodes[node].nat = nat;
        } else if let Some(nat) = &mut self.network.nodes[node].nat {
            nat.rebind();
        }
        if new != self.network.nodes[node].host.address {
            self.network.move_node(node, new);
        }
    }

    /// Sends some recorded datagrams again, as an attacker would: unchanged or changed, from the
    /// original or another address.
    fn replay(&mut self) {
        let seen = self.network.wire.len() as u64;
        if seen == 0 {
            return;
        }
        for _ in 0..1 + self.random.below(4) {
            // Recent datagrams are more likely.
            let back = self.random.below(self.random.clone().below(seen) + 1) + 1;
            let (from, to, mut octets) = self.network.wire[(seen - back) as usize].clone();
            let from = if self.random.chance(70) { stranger(self.random.below(9)) } else { from };
            if self.random.chance(30) {
                let at = self.random.below(octets.len() as u64) as usize;
                octets[at] ^= 1 << self.random.below(8);
            }
            self.network.inject(from, to, octets);
        }
    }

    /// Sends IKE_SA_INIT requests from attackers. Some contain the cookie that the node sent,
    /// others a different cookie.
    fn flood(&mut self) {
        let node = self.node();
        if self.network.nodes[node].nat.is_some() {
            return;
        }
        let to = SocketAddr::new(self.network.nodes[node].host.address, 500);
        for _ in 0..1 + self.random.below(10) {
            self.strangers += 1;
            let (from, spi) = (stranger(self.random.below(9)), 0xffff_0000 + self.strangers);
            let octets = init_request(spi, None);
            self.network.inject(from, to, octets);
        }
        let pause = Duration::from_millis(self.random.below(400));
        self.network.run_for(pause);
        for (_, at, octets) in std::mem::take(&mut self.network.outside) {
            let Some(answer) = crate::oracle::clear(&octets) else { continue };
            let Some(cookie) = answer.notify(notify::COOKIE) else { continue };
            let (mut cookie, mut spi, mut from) = (cookie.data, answer.header.spis.0, at);
            match self.random.below(6) {
                0 => cookie.iter_mut().take(2).for_each(|octet| *octet ^= 1),
                1 => spi ^= 1 << 40,
                2 => from.set_ip(stranger(10 + self.random.below(9)).ip()),
                _ => {}
            }
            self.network.inject(from, to, init_request(spi, Some(&cookie)));
        }
    }

    fn heal(&mut self) {
        self.network.quality = LinkQuality::RELIABLE;
        self.network.cut.clear();
        for (node, (_, hidden)) in self.network.nodes.iter_mut().zip(&self.homes) {
            node.down = false;
            node.host.refuse_percent = 0;
            node.nat.take_if(|_| !hidden);
        }
        for (node, (home, _)) in self.homes.clone().into_iter().enumerate() {
            if self.network.nodes[node].host.address != home {
                self.network.move_node(node, home);
            }
        }
        for node in 0..self.network.nodes.len() {
            // With shorter lifetimes, some SA would always be in a rekey.
            for config in &mut self.configs[node] {
                config.timing.child_lifetime = 3600 * SECOND;
                config.timing.ike_lifetime = 3600 * SECOND;
                config.timing.authentication_lifetime = 3600 * SECOND;
            }
            self.configure(node);
            for config in self.configs[node].clone().into_iter().filter(|config| config.initiate) {
                self.network.call(node, |endpoint, now, env| endpoint.connect(&config.name, now, env));
            }
        }
    }

    /// Waits until every pair has settled and both ends agree.
    fn come_to_rest(&mut self) {
        let mut unrest = String::new();
        for _ in 0..RECOVERY {
            self.network.run_for(SECOND);
            match self.unrest() {
                None => return,
                Some(found) => unrest = found,
            }
        }
        panic!(
            "{}{RECOVERY} s after the network has healed, {unrest}; before that:\n{}",
            self.network.oracle.replay,
            self.network.oracle.story()
        );
    }

    /// Describes what has not settled. Returns `None` if everything has settled.
    fn unrest(&self) -> Option<String> {
        for (us, configs) in self.configs.iter().enumerate() {
            let kernel = &self.network.nodes[us].host.kernel;
            if !kernel.reserved.is_empty() {
                return Some(format!("node {us} has reserved SPIs {:x?}", kernel.reserved));
            }
            for config in configs {
                let them = (0..self.network.nodes.len()).find(|node| name(&id(*node)) == config.name)?;
                let theirs = &self.network.nodes[them].host.kernel;
                let ours = name(&id(us));
                let ikes = |kernel: &crate::kernel::Kernel, peer: &PeerName| -> Vec<edge_ike::IkeId> {
                    kernel.ike_sas.iter().filter(|(name, _)| name == peer).map(|(_, ike)| *ike).collect()
                };
                let (here, there) = (ikes(kernel, &config.name), ikes(theirs, &ours));
                if here.len() != 1 || here != there {
                    return Some(format!("nodes {us} and {them} have IKE SAs {here:x?} and {there:x?}"));
                }
                let (Some(a), Some(b)) = (kernel.tunnels.get(&config.name), theirs.tunnels.get(&ours)) else {
                    return Some(format!("nodes {us} and {them} never had a CHILD_SA"));
                };
                let children = config.children().count();
                for purpose in config.children().map(|child| Purpose { child: child.name.clone(), part: None }) {
                    let (Some(out), Some(back)) = (a.outbound.get(&purpose), b.outbound.get(&purpose)) else {
                        return Some(format!("nodes {us} and {them} have no CHILD_SA for {purpose}"));
                    };
                    let same = out.outbound_spi == back.inbound_spi
                        && back.outbound_spi == out.inbound_spi
                        && out.outbound_key == back.inbound_key
                        && back.outbound_key == out.inbound_key;
                    if !same || a.inbound.len() != children || b.inbound.len() != children {
                        return Some(format!(
                            "node {us} sends with {:x} for {purpose} and has {:x?}, node {them} with {:x} and {:x?}",
                            out.outbound_spi,
                            a.inbound.keys(),
                            back.outbound_spi,
                            b.inbound.keys()
                        ));
                    }
                }
            }
        }
        self.network.oracle.unrest().map(|violation| format!("{}: {}", violation.rule, violation.found))
    }
}

fn id(node: usize) -> String {
    format!("node-{node}.example")
}

/// Returns the address of an attacker.
fn stranger(number: u64) -> SocketAddr {
    SocketAddr::new(std::net::Ipv4Addr::new(203, 0, 113, number as u8 + 1).into(), 500)
}

/// Makes an IKE_SA_INIT request from an attacker.
pub fn init_request(spi: u64, cookie: Option<&[u8]>) -> Vec<u8> {
    let header = Header {
        spis: (spi, 0),
        next: 0,
        version: 0x20,
        exchange: exchange::IKE_SA_INIT,
        flags: FLAG_INITIATOR,
        id: 0,
    };
    let cookie = cookie.map(|cookie| foreign::notification(notify::COOKIE, 0, &[], cookie));
    // A point of Curve25519 whose private key is unknown.
    let mut public = [9; 32];
    public[..8].copy_from_slice(&spi.to_be_bytes());
    let parts = [foreign::ike_proposal(None), foreign::key_exchange(&public), (payload::NONCE, vec![5; 32])];
    foreign::clear(&header, &cookie.into_iter().chain(parts).collect::<Vec<_>>())
}

pub fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().expect("a number"))
}

/// Number of seeds in a test run, which takes 100 s on two cores. `make soak SEEDS=n` runs more,
/// starting with `SEED`.
const SEEDS: u64 = 20_000;

#[test]
fn every_pair_comes_to_rest_after_any_faults() {
    //= RFC 7296 2.8.1 REQUIRED 6: a refusal after the peer's rekey
    let first = number("SEED", 0);
    let next = AtomicU64::new(first);
    let end = first + number("SEEDS", SEEDS);
    let failed = Mutex::new(BTreeMap::new());
    let work = || {
        while let Some(seed) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|seed| *seed < end) {
            if let Err(panic) = catch_unwind(|| Run::new(seed).whole()) {
                let said = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                failed.lock().unwrap().insert(seed, said);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let failed = failed.into_inner().unwrap();
    if let Some((seed, said)) = failed.first_key_value() {
        panic!("seeds {:?} fail; seed {seed}: {said}", failed.keys());
    }
}

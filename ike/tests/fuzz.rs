//! Runs the fuzzing targets for a short time. The seed inputs are the messages, in clear, that two
//! honest endpoints exchange in a simulated life of an IKE SA, and certificates. They are changed
//! at random places. `make fuzz MINUTES=n` runs libFuzzer for longer.
#![allow(missing_docs, unreachable_pub)]

#[path = "../fuzz/targets.rs"]
mod targets;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use edge_ike::wire::{ExchangeType, HEADER_LEN, Header, Message};
use edge_ike::{Endpoint, EndpointConfig, Event, Instant, PeerName};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, RngSeed, TestRunner};
use targets::Kernel;

/// Number of inputs for each target.
const CASES: u32 = 2000;

/// Two honest endpoints, of which the first records all messages in clear.
struct Honest {
    endpoints: [Endpoint; 2],
    kernels: [Kernel; 2],
    now: Instant,
    messages: Vec<Vec<u8>>,
    events: Vec<Event>,
}

impl Honest {
    /// Both ends come up, rekey the CHILD_SA and the IKE SA, ask whether the other is there, and
    /// delete the IKE SA.
    fn life() -> Self {
        let addresses: [SocketAddr; 2] = targets::ENDS.map(SocketAddr::from);
        let endpoints = [0, 1].map(|_| Endpoint::new(EndpointConfig::default()));
        let kernels = [1, 2].map(Kernel::new);
        let mut honest = Self { endpoints, kernels, now: Instant::default(), messages: vec![], events: vec![] };
        honest.endpoints[0].begin_capture(BTreeSet::from([addresses[1].ip()]));
        let name = PeerName::new("peer");
        for end in [1, 0] {
            let (endpoint, kernel) = (&mut honest.endpoints[end], &mut honest.kernels[end]);
            endpoint.set_peer(targets::honest_peer(end), honest.now, kernel).unwrap();
        }
        honest.run();
        type Step<'a> = &'a dyn Fn(&mut Endpoint, Instant, &mut Kernel) -> bool;
        let steps: [Step<'_>; 5] = [
            &|endpoint, now, kernel| endpoint.rekey_children(&name, now, kernel),
            &|endpoint, now, kernel| endpoint.rekey_ike(&name, now, kernel),
            &|endpoint, now, kernel| endpoint.check_liveness(&name, now, kernel),
            &|endpoint, now, kernel| endpoint.reauthenticate(&name, now, kernel),
            &|endpoint, now, kernel| endpoint.terminate(&name, now, kernel),
        ];
        for step in steps {
            for end in [0, 1] {
                // Not both ends always have something to do.
                let _ = step(&mut honest.endpoints[end], honest.now, &mut honest.kernels[end]);
                honest.run();
            }
        }
        honest
    }

    /// Delivers what the ends send for a minute.
    fn run(&mut self) {
        let end = self.now + Duration::from_secs(60);
        loop {
            let mut quiet = true;
            for from in [0, 1] {
                self.events.extend(std::iter::from_fn(|| self.endpoints[from].poll_event()));
                while let Some(sent) = self.endpoints[from].poll_transmit() {
                    quiet = false;
                    let to = 1 - from;
                    self.endpoints[to].handle(&sent.payload, sent.remote, sent.local, self.now, &mut self.kernels[to]);
                    let captured = self.endpoints[0].take_captured();
                    self.messages.extend(captured.messages.into_iter().map(|captured| captured.message));
                }
            }
            let captured = self.endpoints[0].take_captured();
            self.messages.extend(captured.messages.into_iter().map(|captured| captured.message));
            if !quiet {
                continue;
            }
            let next = self.endpoints.iter().filter_map(Endpoint::poll_timeout).min();
            let Some(next) = next.filter(|next| *next < end) else { break };
            self.now = self.now.max(next);
            for end in [0, 1] {
                self.endpoints[end].handle_timeout(self.now, &mut self.kernels[end]);
            }
        }
        self.now = end;
    }
}

/// Returns the seed inputs of a target.
fn seeds(target: &str, honest: &Honest) -> Vec<Vec<u8>> {
    let messages = || honest.messages.iter();
    let (ca, leaf, crl) = (targets::CA, targets::LEAF, targets::CRL);
    let with_length = |der: &[u8]| [&(der.len() as u16).to_be_bytes(), der].concat();
    match target {
        "payloads" => messages().map(|message| [&message[16..17], &message[HEADER_LEN..]].concat()).collect(),
        "reassembly" => vec![[[1, 2, 33, 4], [1, 2, 3, 4], [2, 2, 0, 4], [5, 6, 7, 8]].concat()],
        "session" => {
            let is_later = |message: &&Vec<u8>| {
                let header = Header::decode(message).unwrap();
                matches!(header.exchange, ExchangeType::CreateChildSa | ExchangeType::Informational)
            };
            let part = |message: &Vec<u8>| {
                let header = Header::decode(message).unwrap();
                let exchange = u8::from(header.exchange == ExchangeType::CreateChildSa);
                let body = &message[HEADER_LEN..];
                let what = if header.response { 1 } else { 3 };
                let [high, low] = (body.len() as u16).to_be_bytes();
                [&[high, low, what, exchange, message[16]], body].concat()
            };
            let parts: Vec<Vec<u8>> = messages().filter(is_later).map(part).collect();
            [vec![parts.concat()], parts].concat()
        }
        "selectors" => vec![
            [[0, 0, 0, 16, 10, 1, 0, 0, 0, 0], [1, 0, 0, 20, 172, 16, 0, 0, 0, 0]].concat(),
            [[6, 6, 6, 8, 10, 2, 3, 0, 22, 23], [1, 0, 0, 31, 0, 0, 0, 0, 0, 0]].concat(),
        ],
        "certificates" => vec![
            [&[0], ca].concat(),
            [&[1], crl].concat(),
            [vec![2], with_length(leaf)].concat(),
            [vec![2], with_length(leaf), with_length(ca)].concat(),
        ],
        _ => messages().cloned().collect(),
    }
}

/// Generates a changed seed input, a script of several changed seed inputs, or arbitrary octets.
fn input(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let changed = (select(seeds), vec(any::<(Index, u8)>(), 0..6)).prop_map(|(mut octets, changes)| {
        for (at, value) in changes {
            let at = at.index(octets.len());
            octets[at] = value;
        }
        octets
    });
    let part = |(what, mut octets): (u8, Vec<u8>)| {
        octets.resize(octets.len().next_multiple_of(4), 0);
        [vec![(octets.len() / 4) as u8, what], octets].concat()
    };
    prop_oneof![
        3 => changed.clone(),
        2 => vec((any::<u8>(), changed.clone()).prop_map(part), 1..12).prop_map(|parts| parts.concat()),
        2 => vec(changed, 1..6).prop_map(|parts| parts.concat()),
        1 => vec(any::<u8>(), 0..400),
    ]
}

#[test]
fn no_target_panics_at_changed_messages() {
    let honest = Honest::life();
    for (name, target) in targets::TARGETS {
        // The inputs are the same in every run. `make fuzz` tries other inputs.
        let config =
            Config { cases: CASES, rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..Config::default() };
        let tried = TestRunner::new(config).run(&input(seeds(name, &honest)), |octets| {
            target(&octets);
            Ok(())
        });
        tried.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn the_seeds_are_messages_of_all_exchanges_and_each_target_takes_them() {
    let honest = Honest::life();
    let mut exchanges = BTreeMap::new();
    for message in &honest.messages {
        let message = Message::decode(message).unwrap();
        *exchanges.entry(message.header.exchange.to_string()).or_insert(0) += 1;
    }
    for (exchange, least) in [("IKE_SA_INIT", 2), ("IKE_AUTH", 2), ("CREATE_CHILD_SA", 4), ("INFORMATIONAL", 4)] {
        assert!(exchanges.get(exchange).is_some_and(|count| *count >= least), "{exchanges:?}");
    }
    let rekeyed = |event: &Event| matches!(event, Event::ChildRekeyed { .. });
    assert!(honest.events.iter().any(rekeyed));
    for (name, target) in targets::TARGETS {
        let seeds = seeds(name, &honest);
        assert!(!seeds.is_empty(), "{name}");
        seeds.iter().for_each(|seed| target(seed));
    }
}

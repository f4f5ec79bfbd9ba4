//! Tests two honest ends and an attacker who sees all datagrams between them and sends additional
//! ones, but cannot block any.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use edge_ike::{Endpoint, EndpointConfig, Instant, Transmit};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::kernel::Kernel;
use crate::peer;

/// A datagram that the attacker sends in addition to a datagram between the ends.
#[derive(Debug, Clone)]
enum Addition {
    /// The same datagram with some octets changed, to the same receiver.
    Mutilated(Vec<(Index, u8)>),
    /// The beginning of the datagram, to the same receiver.
    Cut(Index),
    /// The same datagram, to the same receiver.
    Again,
    /// The same datagram to its sender.
    Reflected,
    /// An older datagram, to the receiver of this one.
    Older(Index),
}

fn addition() -> impl Strategy<Value = Addition> {
    prop_oneof![
        4 => vec(any::<(Index, u8)>(), 1..4).prop_map(Addition::Mutilated),
        1 => any::<Index>().prop_map(Addition::Cut),
        1 => Just(Addition::Again),
        1 => Just(Addition::Reflected),
        1 => any::<Index>().prop_map(Addition::Older),
    ]
}

/// The path between both ends. The first end has the smaller identity.
struct ForwardedPath {
    ends: [(Endpoint, Kernel, SocketAddr); 2],
    now: Instant,
    seen: Vec<Vec<u8>>,
}

impl ForwardedPath {
    fn new(seed: u64) -> Self {
        let ends = [0, 1].map(|us| {
            let mut kernel = Kernel::generous(seed.wrapping_add(us as u64).max(1));
            let mut endpoint = Endpoint::new(EndpointConfig::default());
            endpoint.set_peer(peer::honest(us), Instant::default(), &mut kernel).unwrap();
            (endpoint, kernel, peer::address(us))
        });
        Self { ends, now: Instant::default(), seen: Vec::new() }
    }

    fn collect(&mut self) -> VecDeque<Transmit> {
        let mut sent = VecDeque::new();
        for (endpoint, kernel, _) in &mut self.ends {
            while let Some(event) = endpoint.poll_event() {
                kernel.apply(&event);
            }
            sent.extend(std::iter::from_fn(|| endpoint.poll_transmit()));
        }
        sent
    }

    fn deliver(&mut self, datagram: &[u8], from: SocketAddr, to: SocketAddr) {
        // With MOBIKE, both ends switch to port 4500.
        if let Some((endpoint, kernel, _)) = self.ends.iter_mut().find(|(_, _, address)| address.ip() == to.ip()) {
            endpoint.handle(datagram, to, from, self.now, kernel);
        }
    }

    /// Delivers datagrams until neither end sends any more. Adds an attacker's datagram before or
    /// after each one.
    fn carry(&mut self, additions: &[Addition], before: bool) {
        let mut additions = additions.iter().cycle();
        let mut queue = self.collect();
        for _ in 0..1000 {
            let Some(Transmit { local, remote, payload }) = queue.pop_front() else {
                return;
            };
            let addition = additions.next().cloned();
            if !before {
                self.deliver(&payload, local, remote);
                queue.extend(self.collect());
            }
            match addition {
                Some(Addition::Mutilated(changes)) => {
                    let mut forged = payload.clone();
                    for (at, value) in changes {
                        let at = at.index(forged.len());
                        forged[at] ^= value.max(1);
                    }
                    self.deliver(&forged, local, remote);
                }
                Some(Addition::Cut(at)) => self.deliver(&payload[..at.index(payload.len())], local, remote),
                Some(Addition::Again) => self.deliver(&payload, local, remote),
                Some(Addition::Reflected) => self.deliver(&payload, remote, local),
                Some(Addition::Older(at)) if !self.seen.is_empty() => {
                    let older = self.seen[at.index(self.seen.len())].clone();
                    self.deliver(&older, local, remote);
                }
                _ => {}
            }
            queue.extend(self.collect());
            if before {
                self.deliver(&payload, local, remote);
                queue.extend(self.collect());
            }
            self.seen.push(payload);
        }
        panic!("two ends that talk to each other for ever");
    }

    fn wait(&mut self, time: Duration, additions: &[Addition], before: bool) {
        let end = self.now + time;
        loop {
            let next = self.ends.iter().filter_map(|(endpoint, ..)| endpoint.poll_timeout()).min();
            let Some(next) = next.filter(|next| *next <= end) else {
                break;
            };
            self.now = self.now.max(next);
            for (endpoint, kernel, _) in &mut self.ends {
                endpoint.handle_timeout(self.now, kernel);
            }
            self.carry(additions, before);
        }
        self.now = end;
    }

    fn up(&self) -> bool {
        self.ends.iter().all(|(_, kernel, _)| kernel.outbound.len() == 1)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn who_only_adds_what_comes_late_disturbs_nothing(
        seed in 1..u64::MAX,
        additions in vec(addition(), 1..24),
        owners in vec((0..2_usize, 0..3_u8), 0..6),
    ) {
        //= RFC 7296 2.4 MUST NOT 3: nothing unprotected proves a failure
        //= RFC 7296 2.21.4 MUST NOT 6: INVALID_IKE_SPI changes nothing
        let mut path = ForwardedPath::new(seed);
        let (endpoint, kernel, _) = &mut path.ends[0];
        endpoint.connect(&peer::honest(0).name, path.now, kernel);
        path.carry(&additions, false);
        prop_assert!(path.up(), "a tunnel at once");
        for (end, what) in &owners {
            let name = peer::honest(*end).name;
            let now = path.now;
            let (endpoint, kernel, _) = &mut path.ends[*end];
            match what {
                0 => endpoint.rekey_children(&name, now, kernel),
                1 => endpoint.rekey_ike(&name, now, kernel),
                _ => endpoint.check_liveness(&name, now, kernel),
            };
            path.carry(&additions, false);
            prop_assert!(path.up(), "a tunnel always");
            path.wait(Duration::from_millis(1500), &additions, false);
            prop_assert!(path.up(), "a tunnel always");
        }
        path.wait(Duration::from_secs(30), &additions, false);
        for (endpoint, kernel, _) in &path.ends {
            prop_assert_eq!(kernel.inbound.len(), 1, "one tunnel in the end: {:?}", endpoint.snapshot());
            prop_assert!(kernel.reserved.is_empty());
        }
    }

    #[test]
    fn who_adds_what_comes_early_is_forgotten_when_he_stops(seed in 1..u64::MAX, additions in vec(addition(), 1..24)) {
        let mut path = ForwardedPath::new(seed);
        let (endpoint, kernel, _) = &mut path.ends[0];
        endpoint.connect(&peer::honest(0).name, path.now, kernel);
        path.carry(&additions, true);
        path.wait(Duration::from_secs(20), &additions, true);
        // The attacker has stopped, and the owner connects to the peer again.
        let now = path.now;
        let (endpoint, kernel, _) = &mut path.ends[0];
        endpoint.connect(&peer::honest(0).name, now, kernel);
        path.carry(&[], false);
        path.wait(Duration::from_secs(60), &[], false);
        let (endpoint, kernel, _) = &mut path.ends[0];
        endpoint.connect(&peer::honest(0).name, path.now, kernel);
        path.carry(&[], false);
        prop_assert!(path.up());
        path.wait(Duration::from_secs(60), &[], false);
        for (_, kernel, _) in &path.ends {
            prop_assert_eq!(kernel.inbound.len(), 1);
            prop_assert!(kernel.reserved.is_empty());
        }
    }
}

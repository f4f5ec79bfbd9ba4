use super::*;

const LOCAL: &str = "198.51.100.1:4500";
const REMOTE: &str = "203.0.113.9:4500";

fn path(remote: &str) -> PeerPath {
    PeerPath {
        local: LOCAL.parse().unwrap(),
        remote: remote.parse().unwrap(),
        encapsulation: Encapsulation { ipv4: true, udp: true },
        pod_mtu: 1418,
    }
}

fn at(milliseconds: u64) -> Instant {
    Instant::new(Duration::from_millis(milliseconds))
}

/// Numbers of probes that never repeat.
#[derive(Default)]
struct Numbers(u64);

impl Numbers {
    fn source(&mut self) -> impl FnMut() -> u64 {
        || {
            self.0 += 1;
            self.0
        }
    }
}

/// Answers all probes of at most `limit` bytes until no search is in progress. Returns the peers
/// whose paths have another limit after a search than before.
fn run(
    table: &mut PathMtuTable,
    numbers: &mut Numbers,
    probes: Vec<Probe>,
    mut now: Instant,
    limit: u32,
) -> Vec<PeerName> {
    let (mut probes, mut changed) = (probes, Vec::new());
    loop {
        for probe in probes.iter().filter(|probe| probe.size <= limit) {
            changed.extend(table.answered(probe.id, probe.path.remote, now + Duration::from_millis(5)));
        }
        let Some(due) = table.due() else { break };
        now = due;
        let (peers, further) = table.timeout(now, numbers.source());
        changed.extend(peers);
        probes = further;
    }
    changed.into_iter().filter(|change| change.new_limit).map(|change| change.peer).collect()
}

#[test]
fn a_path_with_a_black_hole_gets_a_limit_and_others_do_not() {
    let (mut table, mut numbers) = (PathMtuTable::default(), Numbers::default());
    let [a, b] = ["a", "b"].map(PeerName::new);
    let probes = table.esp_sent(&a, path(REMOTE), (1, 20_000), at(1000), numbers.source());
    assert_eq!(probes.iter().map(|probe| probe.size).collect::<Vec<_>>(), [1480]);
    assert_eq!(run(&mut table, &mut numbers, probes, at(1000), 1430), std::slice::from_ref(&a));
    let probes = table.esp_sent(&b, path("203.0.113.10:4500"), (2, 20_000), at(9000), numbers.source());
    assert!(run(&mut table, &mut numbers, probes, at(9000), 1500).is_empty());
    // 1430 - 20 - 8 - 32, down to a multiple of 4, less 2.
    assert_eq!(table.of(&a), Some(PathMtu { limit: Some(1366), unanswered: false, refining: false, over_ipv4: true }));
    assert_eq!(table.of(&b), Some(PathMtu { limit: None, unanswered: false, refining: false, over_ipv4: true }));
    table.remove(&a);
    assert_eq!(table.of(&a), None);
}

#[test]
fn bytes_count_from_the_last_event_and_a_new_sa_begins_at_zero() {
    let (mut table, mut numbers) = (PathMtuTable::default(), Numbers::default());
    let a = PeerName::new("a");
    let mut sent = |table: &mut PathMtuTable, spi, bytes, now| {
        let probes = table.esp_sent(&a, path(REMOTE), (spi, bytes), at(now), numbers.source());
        let count = probes.len();
        for probe in probes {
            table.answered(probe.id, probe.path.remote, at(now));
        }
        count
    };
    assert_eq!(sent(&mut table, 1, 5_000, 1_000), 0);
    assert_eq!(sent(&mut table, 1, 5_000, 2_000), 0);
    assert_eq!(sent(&mut table, 1, 9_000, 3_000), 1);
    assert_eq!(sent(&mut table, 1, 9_500, 60_000), 0);
    assert_eq!(sent(&mut table, 2, 4_000, 61_000), 0, "4,500 bytes");
    assert_eq!(sent(&mut table, 2, 8_000, 62_000), 1, "8,500 bytes");
}

/// A host that cannot see the probes can neither make a path look wide nor end a search.
#[test]
fn answers_that_nobody_waits_for_change_nothing() {
    let (mut table, mut numbers) = (PathMtuTable::default(), Numbers::default());
    let a = PeerName::new("a");
    let elsewhere: SocketAddr = "192.0.2.66:4500".parse().unwrap();
    let probes = table.esp_sent(&a, path(REMOTE), (1, 20_000), at(1000), numbers.source());
    assert_eq!(table.answered(999, REMOTE.parse().unwrap(), at(1001)), None, "a number that was not sent");
    assert_eq!(table.answered(probes[0].id, elsewhere, at(1001)), None, "from another address");
    assert!(table.due().is_some(), "the check goes on");
    let late = at(1000) + PROBE_LIFETIME + Duration::from_millis(1);
    let (_, further) = table.timeout(late, numbers.source());
    assert!(further.len() > 5);
    let before = further[0];
    table.esp_sent(&a, path("203.0.113.77:4500"), (1, 20_000), late, numbers.source());
    assert_eq!(table.answered(before.id, before.path.remote, late), None, "to a probe on the former path");
    assert!(!table.is_probe(before.id));
}

/// A peer that drops probes, or answers only small ones, limits packets to itself, and no further
/// than what every host must accept.
#[test]
fn a_lying_peer_cannot_push_the_limit_below_the_smallest_packets() {
    for (ipv4, smallest) in [(true, 578), (false, 1198)] {
        let (mut table, mut numbers) = (PathMtuTable::default(), Numbers::default());
        let a = PeerName::new("a");
        let path = PeerPath { encapsulation: Encapsulation { ipv4, udp: true }, ..path(REMOTE) };
        let mut changes = 0;
        for second in 1..120 {
            let probes = table.esp_sent(&a, path, (1, second * 10_000_000), at(second * 1000), numbers.source());
            let lowest = path.encapsulation.smallest();
            changes += run(&mut table, &mut numbers, probes, at(second * 1000), lowest).len();
        }
        let limit = table.of(&a).unwrap().limit.unwrap();
        assert_eq!(limit, smallest);
        assert_eq!(changes, 1, "and does not make it flap");
    }
}

#[test]
fn ten_thousand_idle_peers_cost_nothing_and_busy_ones_share_the_checks() {
    let (mut table, mut numbers) = (PathMtuTable::default(), Numbers::default());
    let names: Vec<PeerName> = (0..10_000).map(|number| PeerName::new(&format!("edge-{number}"))).collect();
    let mut probes = Vec::new();
    for peer in &names {
        probes.extend(table.esp_sent(peer, path(REMOTE), (1, 100_000), at(1000), numbers.source()));
    }
    assert_eq!(probes.len(), 50);
    for peer in &names {
        probes.extend(table.esp_sent(peer, path(REMOTE), (1, 200_000), at(2000), numbers.source()));
    }
    assert_eq!(probes.len(), 100);
    assert!(table.probes.len() <= MAX_PROBES);
    for probe in probes {
        table.answered(probe.id, probe.path.remote, at(2001));
    }
    assert!(table.due().is_none() && !table.expects_answers());
}

#[test]
fn searches_of_many_paths_take_turns() {
    let (mut table, mut numbers) = (PathMtuTable::default(), Numbers::default());
    for number in 0..200_u64 {
        let peer = PeerName::new(&format!("edge-{number}"));
        table.esp_sent(&peer, path(REMOTE), (1, 100_000), at(1000 * (1 + number / 50)), numbers.source());
    }
    let (_, probes) = table.timeout(at(60_000), numbers.source());
    let searching = table.peers.values().filter(|entry| entry.search.is_searching()).count();
    assert_eq!(searching, MAX_SEARCHES);
    assert!(table.probes.len() <= MAX_PROBES && probes.len() > 200);
    run(&mut table, &mut numbers, probes, at(60_000), 1400);
    let limited = table.peers.values().filter(|entry| entry.known().limit.is_some()).count();
    assert_eq!(limited, 200, "each path gets its turn");
}

/// No probe of more than 4096 bytes is answered.
#[test]
fn where_pods_have_jumbo_frames_the_largest_probes_are_those_that_a_peer_answers() {
    for (carries, limit) in [(8980, None), (1500, Some(1438))] {
        let (mut table, mut numbers) = (PathMtuTable::default(), Numbers::default());
        let a = PeerName::new("a");
        let path = PeerPath { pod_mtu: 8918, ..path(REMOTE) };
        let probes = table.esp_sent(&a, path, (1, 20_000), at(1000), numbers.source());
        assert_eq!(probes.iter().map(|probe| probe.size).collect::<Vec<_>>(), [4124]);
        run(&mut table, &mut numbers, probes, at(1000), carries);
        assert_eq!(table.of(&a).unwrap().limit, limit);
    }
}

/// Routes of different sizes are used in turn, as with load sharing.
#[test]
fn a_path_that_is_narrow_at_some_moments_gets_one_limit() {
    let (mut table, mut numbers) = (PathMtuTable::default(), Numbers::default());
    let a = PeerName::new("a");
    let mut changes = 0;
    for second in 1..600 {
        let probes = table.esp_sent(&a, path(REMOTE), (1, second * 10_000_000), at(second * 1000), numbers.source());
        let carries = if second / 5 % 2 == 0 { 1500 } else { 1430 };
        changes += run(&mut table, &mut numbers, probes, at(second * 1000), carries).len();
    }
    assert_eq!((changes, table.of(&a).unwrap().limit), (1, Some(1366)));
}

#[test]
fn after_another_path_is_known_the_limit_is_reported_again() {
    let (mut table, mut numbers) = (PathMtuTable::default(), Numbers::default());
    let a = PeerName::new("a");
    let probes = table.esp_sent(&a, path(REMOTE), (1, 20_000), at(1000), numbers.source());
    run(&mut table, &mut numbers, probes, at(1000), 1430);
    let over_ipv6 = PeerPath { encapsulation: Encapsulation { ipv4: false, udp: true }, ..path("[2001:db8::9]:4500") };
    let probes = table.esp_sent(&a, over_ipv6, (1, 40_000), at(9000), numbers.source());
    assert_eq!(run(&mut table, &mut numbers, probes, at(9000), 1430), std::slice::from_ref(&a));
    assert_eq!(table.of(&a).unwrap().limit, Some(1346), "another overhead");
}

use proptest::prelude::*;

use super::*;

const FULL: u32 = 1480;
const SMALLEST: u32 = 640;
const ROUND_TRIP: Duration = Duration::from_millis(20);

fn at(milliseconds: u64) -> Instant {
    Instant::new(Duration::from_millis(milliseconds))
}

/// Sends probes over a path that answers those for which `answers` is true, until the search rests.
/// Returns the number of probes, and the time.
fn finish(
    search: &mut Search,
    probes: Vec<u32>,
    mut now: Instant,
    mut answers: impl FnMut(u32) -> bool,
) -> (usize, Instant) {
    let (mut count, mut probes) = (0, probes);
    loop {
        count += probes.len();
        for size in probes.drain(..).filter(|size| answers(*size)).collect::<Vec<_>>() {
            search.answered(size, ROUND_TRIP, now + ROUND_TRIP);
        }
        let Some(due) = search.due() else { return (count, now) };
        assert!(due >= now, "a search that never ends");
        now = due;
        probes = search.timeout(now);
        assert!(count < 1000, "a search without end");
    }
}

/// Sends enough traffic for a check, and carries it out. Returns the number of probes and the end.
fn check(search: &mut Search, now: Instant, answers: impl FnMut(u32) -> bool) -> (usize, Instant) {
    search.add_sent(MIN_SENT);
    assert!(search.wants_check(now));
    let probes = search.check(now, CHECK_INTERVAL);
    finish(search, probes, now, answers)
}

fn up_to(limit: u32) -> impl Fn(u32) -> bool {
    move |size| size <= limit
}

#[test]
fn the_limit_is_found_to_the_size_of_esps_padding_within_a_few_seconds() {
    for limit in SMALLEST..FULL {
        let mut search = Search::new(SMALLEST, FULL);
        let (probes, end) = check(&mut search, at(1000), up_to(limit));
        let found = search.limit().unwrap();
        assert!(found <= limit && limit - found < PADDING, "{found} of {limit}");
        assert!(probes <= 120, "{probes} probes for {limit}");
        assert!(end <= at(3500), "{end:?} for {limit}");
    }
}

/// The first round takes 500 ms after the check of 500 ms.
#[test]
fn connections_go_on_with_the_first_limit_while_the_search_makes_it_more_exact() {
    for limit in SMALLEST..FULL {
        let mut search = Search::new(SMALLEST, FULL);
        search.add_sent(MIN_SENT);
        let (mut probes, mut now) = (search.check(at(1000), CHECK_INTERVAL), at(1000));
        while search.limit().is_none() {
            for size in probes.drain(..).filter(|size| *size <= limit).collect::<Vec<_>>() {
                search.answered(size, ROUND_TRIP, now + ROUND_TRIP);
            }
            now = search.due().unwrap();
            probes = search.timeout(now);
        }
        assert!(now <= at(2300), "{now:?} for {limit}");
        let first = search.limit().unwrap();
        let refines = search.is_refining();
        finish(&mut search, probes, now, up_to(limit));
        assert!(search.limit().unwrap() >= first && !search.is_refining());
        assert!(refines || search.limit() == Some(first));
        search.add_sent(MIN_SENT);
        assert_eq!(search.check(now + RAISE_INTERVAL / 2, CHECK_INTERVAL), [search.limit().unwrap()]);
    }
}

/// The check and the two waves of the first round take 100 ms each.
#[test]
fn where_round_trips_are_known_to_be_short_the_first_limit_comes_within_a_third_of_a_second() {
    for limit in SMALLEST..FULL {
        let mut search = Search::new(SMALLEST, FULL);
        let (_, end) = check(&mut search, at(1000), up_to(1500));
        let began = end + CHECK_INTERVAL;
        search.add_sent(MIN_SENT);
        let (mut probes, mut now) = (search.check(began, CHECK_INTERVAL), began);
        while search.limit().is_none() {
            for size in probes.drain(..).filter(|size| *size <= limit).collect::<Vec<_>>() {
                search.answered(size, ROUND_TRIP, now + ROUND_TRIP);
            }
            now = search.due().unwrap();
            probes = search.timeout(now);
        }
        assert!(now <= began + Duration::from_millis(330), "{now:?} for {limit}");
    }
}

#[test]
fn a_path_that_carries_everything_costs_one_probe_for_each_check() {
    let mut search = Search::new(SMALLEST, FULL);
    assert_eq!(check(&mut search, at(1000), up_to(1500)).0, 1);
    search.add_sent(MIN_SENT);
    assert!(!search.wants_check(at(999) + CHECK_INTERVAL));
    assert!(search.wants_check(at(1000) + CHECK_INTERVAL));
    assert_eq!(search.limit(), None);
}

#[test]
fn a_path_without_traffic_is_not_probed() {
    let mut search = Search::new(SMALLEST, FULL);
    search.add_sent(MIN_SENT - 1);
    assert!(!search.wants_check(at(1 << 40)));
    assert_eq!(search.due(), None);
}

#[test]
fn one_lost_probe_changes_nothing() {
    let mut search = Search::new(SMALLEST, FULL);
    let mut lost = false;
    check(&mut search, at(1000), |_| std::mem::replace(&mut lost, true));
    assert_eq!((search.limit(), search.is_unanswered()), (None, false));
}

#[test]
fn late_answers_are_no_reason_for_a_limit() {
    // The round trip of 900 ms is longer than the first wait.
    let mut search = Search::new(SMALLEST, FULL);
    search.add_sent(MIN_SENT);
    assert_eq!(search.check(at(1000), CHECK_INTERVAL), [FULL]);
    let sizes = search.timeout(at(1500));
    assert!(sizes.len() > 5 && search.is_searching());
    search.answered(FULL, Duration::from_millis(900), at(1900));
    assert_eq!((search.limit(), search.is_resting()), (None, true));
    search.add_sent(MIN_SENT);
    search.check(at(9000), CHECK_INTERVAL);
    assert_eq!(search.due(), Some(at(9000) + MAX_WAIT), "the next wait fits the round trip");
}

#[test]
fn a_peer_that_answers_nothing_changes_nothing_and_is_asked_ever_more_seldom() {
    let mut search = Search::new(SMALLEST, FULL);
    let (_, mut now) = check(&mut search, at(1000), |_| false);
    assert_eq!((search.limit(), search.is_unanswered()), (None, true));
    for expected in [5, 10, 20, 40, 80, 160, 300, 300] {
        search.add_sent(MIN_SENT);
        assert!(!search.wants_check(now + Duration::from_millis(expected * 1000 - 1)), "{expected}");
        now = now + Duration::from_secs(expected);
        (_, now) = check(&mut search, now, |_| false);
    }
    check(&mut search, now + MAX_UNANSWERED_WAIT, up_to(1500));
    assert!(!search.is_unanswered());
}

#[test]
fn a_limit_stays_if_the_peer_no_longer_answers() {
    let mut search = Search::new(SMALLEST, FULL);
    let (_, end) = check(&mut search, at(1000), up_to(1400));
    check(&mut search, end + CHECK_INTERVAL + ROUND_TRIP, |_| false);
    assert_eq!((search.limit(), search.is_unanswered()), (Some(1400), true));
}

#[test]
fn larger_sizes_are_tried_again_after_ten_minutes_and_not_before() {
    let mut search = Search::new(SMALLEST, FULL);
    let (_, found) = check(&mut search, at(1000), up_to(1400));
    let (mut now, mut largest) = (found, 0);
    // Meanwhile the path carries everything again.
    while search.limit().is_some() {
        now = now + CHECK_INTERVAL + ROUND_TRIP;
        (_, now) = check(&mut search, now, |size| {
            largest = largest.max(size);
            true
        });
        assert!(search.limit().is_none() || largest == 1400);
    }
    // The limit came after the check began and before the search ended.
    assert!(now >= at(1000) + RAISE_INTERVAL && now < found + RAISE_INTERVAL + CHECK_INTERVAL * 2, "{now:?}");
}

#[test]
fn an_attempt_to_raise_the_limit_also_finds_a_smaller_one() {
    for (then, expected) in [(1400, Some(1400)), (1452, Some(1452)), (1300, Some(1300)), (1500, None)] {
        let mut search = Search::new(SMALLEST, FULL);
        let (_, found) = check(&mut search, at(1000), up_to(1400));
        let (_, end) = check(&mut search, found + RAISE_INTERVAL + CHECK_INTERVAL, up_to(then));
        assert_eq!(search.limit(), expected);
        search.add_sent(MIN_SENT);
        let next = search.check(end + CHECK_INTERVAL, CHECK_INTERVAL);
        assert_eq!(next, [expected.unwrap_or(FULL)], "the next attempt is ten minutes away");
    }
}

#[test]
fn on_another_path_larger_sizes_are_tried_at_once_and_the_limit_stays_until_then() {
    let mut search = Search::new(SMALLEST, FULL);
    let (_, found) = check(&mut search, at(1000), up_to(1400));
    let now = found + CHECK_INTERVAL + ROUND_TRIP;
    search.path_changed(SMALLEST, FULL, now);
    assert_eq!(search.limit(), Some(1400));
    assert!(search.wants_check(now), "no further traffic is needed");
    let probes = search.check(now, CHECK_INTERVAL);
    finish(&mut search, probes, now, up_to(1500));
    assert_eq!(search.limit(), None);
}

#[test]
fn a_path_that_changes_all_the_time_is_checked_no_more_often() {
    let mut search = Search::new(SMALLEST, FULL);
    let mut checks = 0;
    for step in 0..1000 {
        let now = at(step * 100);
        search.path_changed(SMALLEST, FULL, now);
        if search.wants_check(now) {
            checks += 1;
            search.check(now, CHECK_INTERVAL);
        }
    }
    assert!(checks <= 112, "{checks} checks in 100 s");
}

#[test]
fn jumbo_frames_are_searched_too() {
    for limit in [1500, 2000, 4321, 8999] {
        let mut search = Search::new(SMALLEST, 9000);
        let (probes, _) = check(&mut search, at(1000), up_to(limit));
        let found = search.limit().unwrap();
        assert!(found <= limit && limit - found < PADDING, "{found} of {limit}");
        assert!(probes <= 200, "{probes}");
    }
}

proptest! {
    #[test]
    fn whatever_is_answered_the_limit_is_a_size_that_was_tried_and_every_search_ends(
        smallest in 0_u32..2000,
        full in 0_u32..70_000,
        answers in proptest::collection::vec(any::<bool>(), 1..64),
    ) {
        let mut search = Search::new(smallest, full);
        let (mut next, mut now, mut answered) = (0, at(1000), std::collections::BTreeSet::new());
        for _ in 0..4 {
            let (probes, end) = check(&mut search, now, |size| {
                next += 1;
                let answers = answers[next % answers.len()];
                if answers {
                    answered.insert(size);
                }
                answers
            });
            prop_assert!(probes <= 400);
            if let Some(limit) = search.limit() {
                prop_assert!(limit >= smallest && limit < full.max(smallest));
                prop_assert!(answered.contains(&limit));
            }
            now = end + MAX_UNANSWERED_WAIT + RAISE_INTERVAL;
        }
    }
}

//! How long the notifications from rtnetlink are collected before the host is read. This module
//! does no I/O.

use std::time::Duration;

use tokio::time::Instant;

/// Wait for the notifications of one change, such as an address and its route. Tunnels from an
/// address that is gone stand still meanwhile.
const SHORTEST: Duration = Duration::from_millis(20);
/// Maximum wait, while changes do not end: a link that flaps, or hundreds of addresses.
const LONGEST: Duration = Duration::from_millis(160);
/// Number of changes in a row that wait [`SHORTEST`]. The wait doubles with each further one.
const SHORT_WAITS: u32 = 4;
/// Time without a change after which the next one waits [`SHORTEST`] again.
const CALM: Duration = Duration::from_secs(2);

/// Maximum number of passes in a row of which the rest is postponed.
const MOST_POSTPONED: u32 = 2;

/// The changes in a row.
#[derive(Debug, Default)]
pub(super) struct Settling {
    changes: u32,
    last: Option<Instant>,
    /// Number of passes in a row of which the rest was postponed.
    postponed: u32,
    is_rest_postponed: bool,
}

impl Settling {
    /// Returns whether the rest of a pass is postponed, after what tunnels follow was published.
    /// `moved` says whether that has changed. So tunnels and the connection to the controller do
    /// not wait for the rest if a route comes soon after its address.
    pub(super) fn may_postpone_rest(&mut self, moved: bool) -> bool {
        self.is_rest_postponed = moved && self.postponed < MOST_POSTPONED;
        self.postponed = if self.is_rest_postponed { self.postponed.saturating_add(1) } else { 0 };
        self.is_rest_postponed
    }

    /// Returns whether the rest of the last pass was postponed. The next pass begins soon then.
    pub(super) fn is_rest_postponed(&mut self) -> bool {
        std::mem::take(&mut self.is_rest_postponed)
    }

    /// Returns how long to collect notifications after the first one, which has arrived now.
    pub(super) fn wait(&mut self, now: Instant) -> Duration {
        if self.last.is_none_or(|last| now >= last + CALM) {
            self.changes = 0;
        }
        self.last = Some(now);
        self.changes = self.changes.saturating_add(1);
        let doublings = self.changes.saturating_sub(SHORT_WAITS);
        SHORTEST.saturating_mul(2_u32.saturating_pow(doublings)).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the waits for changes that never end. A reading takes this time.
    fn waits(settling: &mut Settling, mut now: Instant, reading: Duration, within: Duration) -> Vec<u128> {
        let end = now + within;
        let mut waits = Vec::new();
        while now < end {
            let wait = settling.wait(now);
            waits.push(wait.as_millis());
            now += wait + reading;
        }
        waits
    }

    #[test]
    fn the_first_changes_wait_shortly_and_ten_seconds_of_changes_cause_no_more_than_68_readings() {
        let (mut settling, now) = (Settling::default(), Instant::now());
        let flapping = waits(&mut settling, now, Duration::ZERO, Duration::from_secs(10));
        assert_eq!(flapping[..8], [20, 20, 20, 20, 40, 80, 160, 160]);
        assert!(flapping.len() <= 68, "{}", flapping.len());
        let later = now + Duration::from_secs(11);
        assert_eq!(settling.wait(later), LONGEST, "it was calm for less than two seconds");
        assert_eq!(settling.wait(later + CALM), SHORTEST);
    }

    #[test]
    fn of_passes_in_which_addresses_change_every_third_one_is_complete() {
        let mut settling = Settling::default();
        let postponed = [true; 7].map(|moved| settling.may_postpone_rest(moved));
        assert_eq!(postponed, [true, true, false, true, true, false, true]);
        assert!(settling.is_rest_postponed() && !settling.is_rest_postponed());
        assert!(!settling.may_postpone_rest(false) && !settling.is_rest_postponed());
    }

    #[test]
    fn changes_that_end_and_begin_again_wait_shortly_only_as_often_as_they_pause() {
        let (mut settling, mut now, mut readings) = (Settling::default(), Instant::now(), 0);
        for _ in 0..10 {
            readings += waits(&mut settling, now, Duration::ZERO, Duration::from_millis(500)).len();
            now += Duration::from_millis(500) + CALM;
        }
        assert!(readings <= 90, "{readings} in 25 s");
    }
}

//! The search for the largest packet that a path carries (RFC 8899 5).
//!
//! All sizes are those of IP packets as the path sees them. While traffic flows, a probe of the
//! current size is sent now and then. If it gets no answer, probes of many sizes are sent at once.
//! The largest size that is answered is the new limit, which further rounds make more exact. With a
//! limit, larger sizes are tried again after [`RAISE_INTERVAL`].
//!
//! A limit needs an answer to a smaller probe. A peer that answers nothing changes nothing.

use std::time::Duration;

use edge_ike::Instant;

use super::encapsulation::PADDING;

/// Number of bytes that must have been sent to the peer since the last answer before the path is
/// checked again. A check sends less than a fifth of this.
const MIN_SENT: u64 = 8 << 10;
/// Minimum time between two checks of a path. It is a little less than the kernel's interval
/// between two reports of traffic, so that each report can begin a check.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_millis(900);
/// Time after which larger sizes are tried again (RFC 8899 5.1.1 `PMTU_RAISE_TIMER`, RFC 8201 4).
pub(super) const RAISE_INTERVAL: Duration = Duration::from_secs(600);
/// Time to wait for an answer if the round-trip time is unknown.
const DEFAULT_WAIT: Duration = Duration::from_millis(500);
/// Bounds of that time if the round-trip time is known. It is then [`ROUND_TRIPS`] times as long.
/// With the minimum, the first limit comes 0.3 s after a check has begun, and so at most 1.3 s
/// after the path has changed: before a TCP sender sends its lost packet for the third time, after
/// 1.4 s. An answer that is later only causes further probes.
const MIN_WAIT: Duration = Duration::from_millis(100);
const MAX_WAIT: Duration = Duration::from_secs(2);
const ROUND_TRIPS: u32 = 4;
/// First delay after a search without any answer. It doubles each time.
const UNANSWERED_WAIT: Duration = Duration::from_secs(5);
/// Maximum of that delay.
const MAX_UNANSWERED_WAIT: Duration = Duration::from_secs(300);
/// Maximum number of sizes in one round.
const MAX_SIZES: u32 = 24;
/// Number of probes of each size in a round, in case one is lost.
const WAVES: u8 = 2;
/// Maximum number of rounds in one search.
const MAX_ROUNDS: u8 = 4;
/// MTUs of common links, from which a search begins.
const COMMON_SIZES: [u32; 16] =
    [1006, 1280, 1320, 1340, 1360, 1380, 1400, 1412, 1420, 1430, 1440, 1452, 1460, 1472, 1480, 1492];

/// The state of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Search {
    /// The smallest size that is tried.
    smallest: u32,
    /// The largest packet that the tunnel sends.
    full: u32,
    /// The largest size that the path carries, if it is less than `full`.
    limit: Option<u32>,
    /// Bytes sent since the last answer.
    sent: u64,
    next_check: Instant,
    /// With a limit: the time from which larger sizes are tried.
    raise_at: Instant,
    /// How long to wait for an answer.
    wait: Duration,
    /// Number of searches without any answer in a row.
    unanswered: u32,
    activity: Activity,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Activity {
    Resting,
    /// A probe of the current size was sent.
    Checking {
        until: Instant,
    },
    Searching(Round),
}

/// The probes that were sent at about the same time.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Round {
    /// Ascending.
    sizes: Vec<u32>,
    /// The largest size that was answered in this search.
    best: Option<u32>,
    /// The largest size of the search. Once it is answered, the search is over.
    last: u32,
    /// Whether sizes below the limit have been left out.
    raises: bool,
    waves: u8,
    number: u8,
    until: Instant,
}

impl Search {
    pub(super) fn new(smallest: u32, full: u32) -> Self {
        Self {
            smallest,
            full: full.max(smallest),
            limit: None,
            sent: 0,
            next_check: Instant::default(),
            raise_at: Instant::default(),
            wait: DEFAULT_WAIT,
            unanswered: 0,
            activity: Activity::Resting,
        }
    }

    /// Returns the largest size that the path carries, if it is less than the largest packet that
    /// the tunnel sends.
    pub(super) fn limit(&self) -> Option<u32> {
        self.limit
    }

    /// Returns whether the last search got no answer at all.
    pub(super) fn is_unanswered(&self) -> bool {
        self.unanswered > 0
    }

    pub(super) fn is_resting(&self) -> bool {
        self.activity == Activity::Resting
    }

    pub(super) fn is_searching(&self) -> bool {
        matches!(self.activity, Activity::Searching(_))
    }

    /// Returns whether a search is making the limit more exact.
    pub(super) fn is_refining(&self) -> bool {
        matches!(&self.activity, Activity::Searching(round) if round.number > 1)
    }

    /// Returns the time at which [`Self::timeout`] must be called.
    pub(super) fn due(&self) -> Option<Instant> {
        match &self.activity {
            Activity::Resting => None,
            Activity::Checking { until } => Some(*until),
            Activity::Searching(round) => Some(round.until),
        }
    }

    /// Records that `bytes` more bytes were sent to the peer.
    pub(super) fn add_sent(&mut self, bytes: u64) {
        self.sent = self.sent.saturating_add(bytes);
    }

    /// Returns whether the path should be checked now.
    pub(super) fn wants_check(&self, now: Instant) -> bool {
        self.is_resting() && self.sent >= MIN_SENT && self.next_check <= now
    }

    /// Begins a check, or the attempt to raise the limit. The next check comes after `interval` at
    /// the earliest. Returns the sizes of the probes.
    pub(super) fn check(&mut self, now: Instant, interval: Duration) -> Vec<u32> {
        self.next_check = now + interval;
        match self.limit {
            Some(limit) if self.raise_at <= now => self.begin_round(self.first_sizes(limit, self.full), true, now),
            limit => {
                self.activity = Activity::Checking { until: now + self.wait };
                vec![limit.unwrap_or(self.full)]
            }
        }
    }

    /// Records that the path is another one now, or that the tunnel sends packets of another
    /// maximum size. The limit stays until larger sizes are answered, which are tried as soon as
    /// traffic flows.
    pub(super) fn path_changed(&mut self, smallest: u32, full: u32, now: Instant) {
        let limit = self.limit.map(|limit| limit.max(smallest)).filter(|limit| *limit < full);
        // The interval between checks stays, so that a path that changes all the time costs no more
        // probes than one that does not.
        let next_check = if self.unanswered > 0 { now } else { self.next_check };
        *self = Self { limit, next_check, raise_at: now, sent: self.sent.max(MIN_SENT), ..Self::new(smallest, full) };
    }

    /// Handles the answer to a probe of this size.
    pub(super) fn answered(&mut self, size: u32, round_trip: Duration, now: Instant) {
        self.wait = (round_trip * ROUND_TRIPS).clamp(MIN_WAIT, MAX_WAIT);
        let (wait, expected) = (self.wait, self.limit.unwrap_or(self.full));
        match &mut self.activity {
            Activity::Resting => {}
            Activity::Checking { .. } => {
                if size >= expected {
                    self.rest();
                }
            }
            Activity::Searching(round) => {
                round.best = round.best.max(Some(size));
                round.until = round.until.min(now + wait);
                if size >= round.last {
                    let raises = round.raises;
                    self.conclude(size, raises, now);
                }
            }
        }
    }

    /// Handles the end of the wait for answers. Returns the sizes of the next probes.
    pub(super) fn timeout(&mut self, now: Instant) -> Vec<u32> {
        match std::mem::replace(&mut self.activity, Activity::Resting) {
            Activity::Resting => vec![],
            Activity::Checking { .. } => {
                let suspect = self.limit.unwrap_or(self.full);
                self.begin_round(self.first_sizes(self.smallest, suspect), false, now)
            }
            Activity::Searching(mut round) if round.waves < WAVES => {
                round.waves += 1;
                round.until = now + self.wait;
                let larger: Vec<u32> = round.sizes.iter().copied().filter(|size| Some(*size) > round.best).collect();
                self.activity = Activity::Searching(round);
                larger
            }
            Activity::Searching(round) => self.end_round(round, now),
        }
    }

    fn end_round(&mut self, round: Round, now: Instant) -> Vec<u32> {
        let Some(best) = round.best else {
            if round.raises {
                // Perhaps the path carries less than the limit now.
                let limit = self.limit.unwrap_or(self.full);
                return self.begin_round(self.first_sizes(self.smallest, limit), false, now);
            }
            self.unanswered = self.unanswered.saturating_add(1);
            let doubled = UNANSWERED_WAIT * 2_u32.saturating_pow(self.unanswered.min(8) - 1);
            self.next_check = now + doubled.min(MAX_UNANSWERED_WAIT);
            self.sent = 0;
            return vec![];
        };
        let too_large = round.sizes.iter().copied().find(|size| *size > best);
        let between = too_large.map(|too_large| spread(best, too_large)).unwrap_or_default();
        if between.is_empty() || round.number >= MAX_ROUNDS {
            self.conclude(best, round.raises, now);
            return vec![];
        }
        if !round.raises && self.limit.is_none_or(|limit| best < limit) {
            // Connections continue with this limit while the search makes it more exact.
            self.limit = Some(best);
            self.raise_at = now + RAISE_INTERVAL;
        }
        // The size that got no answer stays in the list, as the upper end.
        let sizes: Vec<u32> = between.iter().copied().chain(too_large).collect();
        self.activity = Activity::Searching(Round {
            sizes,
            best: Some(best),
            last: round.last,
            raises: round.raises,
            waves: 1,
            number: round.number + 1,
            until: now + self.wait,
        });
        between
    }

    fn begin_round(&mut self, sizes: Vec<u32>, raises: bool, now: Instant) -> Vec<u32> {
        self.activity = Activity::Searching(Round {
            sizes: sizes.clone(),
            best: None,
            last: sizes.last().copied().unwrap_or(self.full),
            raises,
            waves: 1,
            number: 1,
            until: now + self.wait,
        });
        sizes
    }

    fn conclude(&mut self, best: u32, raised: bool, now: Instant) {
        let limit = Some(best).filter(|best| *best < self.full);
        // A false alarm at the limit does not put off the attempt to raise it.
        if limit != self.limit || raised {
            self.raise_at = now + RAISE_INTERVAL;
        }
        self.limit = limit;
        self.rest();
    }

    fn rest(&mut self) {
        self.activity = Activity::Resting;
        self.unanswered = 0;
        self.sent = 0;
    }

    /// Returns the sizes of a first round, from `first` to `last`, both included.
    fn first_sizes(&self, first: u32, last: u32) -> Vec<u32> {
        let common = COMMON_SIZES.into_iter().chain([1500]).filter(|size| first < *size && *size < last);
        let mut sizes: Vec<u32> = [first].into_iter().chain(common).collect();
        if let Some(jumbo) = sizes.last().copied().filter(|size| *size >= 1500) {
            let room = usize::try_from(MAX_SIZES).unwrap_or_default().saturating_sub(sizes.len() + 1);
            let steps: Vec<u32> = spread(jumbo, last);
            let every = steps.len().div_ceil(room.max(1)).max(1);
            sizes.extend(steps.into_iter().step_by(every));
        }
        if last > first {
            sizes.push(last);
        }
        sizes
    }
}

/// Returns at most [`MAX_SIZES`] sizes between `passes` and `too_large`, both excluded, at equal
/// distances. Empty if no size between them makes a difference, because ESP pads packets.
fn spread(passes: u32, too_large: u32) -> Vec<u32> {
    let distance = too_large.saturating_sub(passes);
    let step = distance.div_ceil(MAX_SIZES + 1).next_multiple_of(PADDING).max(PADDING);
    let mut sizes = Vec::new();
    let mut size = passes.saturating_add(step);
    while size < too_large {
        sizes.push(size);
        size = size.saturating_add(step);
    }
    sizes
}

#[cfg(test)]
mod tests;

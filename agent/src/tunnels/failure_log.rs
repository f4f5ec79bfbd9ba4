//! Decides which failures of peers get a separate log line. If many peers fail at the same time,
//! most of the failures share one line. This module does no I/O.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::time::Duration;

use edge_ike::{Instant, PeerName};

/// Number of failures in a period that get a separate line. The other failures share one line at
/// the end of the period.
const SINGLE_LINES: usize = 5;
/// Length of a period, which begins with a failure.
const PERIOD: Duration = Duration::from_secs(60);

/// The failures in a period. The size of the set is at most the number of peers that fail in the
/// period.
#[derive(Debug, Default)]
pub(super) struct FailureLog {
    ends: Option<Instant>,
    single: usize,
    /// Peers with failures that were not logged separately.
    joined: BTreeSet<PeerName>,
    joined_failures: usize,
    first_joined: String,
}

impl FailureLog {
    /// Records a failure. Returns `true` if it must be logged now. Otherwise it is included in the
    /// line from [`Self::end_period`].
    pub(super) fn record(&mut self, peer: &PeerName, error: &impl Display, now: Instant) -> bool {
        self.ends.get_or_insert(now + PERIOD);
        if self.single < SINGLE_LINES {
            self.single += 1;
            return true;
        }
        if self.joined.is_empty() {
            self.first_joined = format!("peer {peer}: {error}");
        }
        self.joined.insert(peer.clone());
        self.joined_failures += 1;
        false
    }

    /// Returns the time at which [`Self::end_period`] is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.ends
    }

    /// Ends the period if its time has passed. Returns the log line about the failures that were
    /// not logged separately.
    pub(super) fn end_period(&mut self, now: Instant) -> Option<String> {
        if self.ends.is_none_or(|ends| ends > now) {
            return None;
        }
        let Self { joined, joined_failures, first_joined, .. } = std::mem::take(self);
        if joined.is_empty() {
            return None;
        }
        let (seconds, peers) = (PERIOD.as_secs(), joined.len());
        Some(format!(
            "{joined_failures} more failures of {peers} peers in {seconds} s, the first: {first_joined}; `edge-agent status` shows each peer"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::new(Duration::from_secs(seconds))
    }

    #[test]
    fn when_25_peers_vanish_five_have_lines_of_their_own_and_the_others_share_one() {
        let mut log = FailureLog::default();
        let mut logged = 0;
        for attempt in 0..4 {
            for number in 0..25 {
                let peer = PeerName::new(&format!("edge-{number:02}"));
                logged += usize::from(log.record(&peer, &"it does not answer", at(100 + attempt * 10)));
            }
        }
        assert_eq!(logged, 5);
        assert_eq!(log.due(), Some(at(160)));
        assert_eq!(log.end_period(at(159)), None);
        let line = log.end_period(at(160)).unwrap();
        let expected = "95 more failures of 25 peers in 60 s, the first: peer edge-05: it does not answer";
        assert!(line.starts_with(expected), "{line}");
        // The next period begins with the next failure.
        assert_eq!((log.due(), log.end_period(at(1000))), (None, None));
        assert!(log.record(&PeerName::new("edge-01"), &"it does not answer", at(1000)));
        assert_eq!(log.end_period(at(1060)), None, "nothing was left out");
    }
}

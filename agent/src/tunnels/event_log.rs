//! Decides which events of peers get a separate log line. If the same happens to many peers at the
//! same time, as when a hub restarts, most of it shares one line for each kind of event. Failures
//! have [`super::failure_log`]. This module does no I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use edge_ike::{Instant, PeerName};

/// Number of events of a kind in a period that get a separate line. The others share one line at
/// the end of the period. With all kinds, these are at most 231 lines in a period.
const SINGLE_LINES: usize = 20;
/// Length of a period, which begins with an event.
const PERIOD: Duration = Duration::from_secs(60);

/// What happened to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PeerEvent {
    IkeUp,
    IkeReplaced,
    IkeDown,
    ChildUp,
    ChildRekeyed,
    ChildDown,
    Moved,
    Relayed,
    Idle,
    PathMtu,
    /// Of an address that is no peer's, which stands for the peer.
    Refused,
}

impl PeerEvent {
    /// Returns the words for several such events.
    fn words(self) -> &'static str {
        match self {
            Self::IkeUp => "IKE SAs established",
            Self::IkeReplaced => "IKE SAs replaced",
            Self::IkeDown => "IKE SAs gone",
            Self::ChildUp => "CHILD_SAs established",
            Self::ChildRekeyed => "CHILD_SAs rekeyed",
            Self::ChildDown => "CHILD_SAs gone",
            Self::Moved => "changes of address",
            Self::Relayed => "relays begun",
            Self::Idle => "tunnels on demand closed",
            Self::PathMtu => "changes of the path MTU",
            Self::Refused => "initiators refused",
        }
    }
}

/// Logs an event of a peer at level `info` if `loud` is set, otherwise at level `debug`.
macro_rules! info_if {
    ($loud:expr, $($event:tt)+) => {
        if $loud { tracing::info!($($event)+) } else { tracing::debug!($($event)+) }
    };
}
pub(super) use info_if;

/// The events in a period. The size of the sets is at most the number of peers with events, or of
/// refusals, of which the endpoint reports at most 16 in a second.
#[derive(Debug, Default)]
pub(super) struct EventLog {
    ends: Option<Instant>,
    kinds: BTreeMap<PeerEvent, OfKind>,
}

#[derive(Debug, Default)]
struct OfKind {
    single: usize,
    /// Number of events that were not logged separately, their peers, and the first of these.
    joined: usize,
    peers: BTreeSet<PeerName>,
    first: Option<PeerName>,
}

impl EventLog {
    /// Records an event. Returns `true` if it must be logged now. Otherwise it is included in a
    /// line from [`Self::end_period`].
    pub(super) fn record(&mut self, event: PeerEvent, peer: &PeerName, now: Instant) -> bool {
        self.ends.get_or_insert(now + PERIOD);
        let of_kind = self.kinds.entry(event).or_default();
        if of_kind.single < SINGLE_LINES {
            of_kind.single += 1;
            return true;
        }
        of_kind.joined += 1;
        of_kind.first.get_or_insert_with(|| peer.clone());
        if !of_kind.peers.contains(peer) {
            of_kind.peers.insert(peer.clone());
        }
        false
    }

    /// Returns the time at which [`Self::end_period`] is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.ends
    }

    /// Ends the period if its time has passed. Returns the log lines about the events that were not
    /// logged separately, at most one for each kind.
    pub(super) fn end_period(&mut self, now: Instant) -> Vec<String> {
        if self.ends.is_none_or(|ends| ends > now) {
            return vec![];
        }
        let line = |(event, OfKind { joined, peers, first, .. }): (PeerEvent, OfKind)| {
            let (words, peers, seconds, first) = (event.words(), peers.len(), PERIOD.as_secs(), first?);
            Some(format!(
                "{joined} more {words}, of {peers} peers in {seconds} s, the first with {first}; `edge-agent status` shows each peer"
            ))
        };
        std::mem::take(self).kinds.into_iter().filter_map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::new(Duration::from_secs(seconds))
    }

    fn name(number: usize) -> PeerName {
        PeerName::new(&format!("edge-{number:03}"))
    }

    /// The lines of an hour in which each of a thousand peers comes up, is rekeyed and is lost once
    /// a minute.
    #[test]
    fn a_thousand_peers_that_come_and_go_all_the_time_take_a_bounded_number_of_lines() {
        let events = [PeerEvent::IkeUp, PeerEvent::ChildUp, PeerEvent::ChildRekeyed, PeerEvent::ChildDown];
        let mut log = EventLog::default();
        let mut lines = 0;
        for second in 0..3600 {
            lines += log.end_period(at(second)).len();
            for number in (0..1000).filter(|number| number % 60 == usize::try_from(second % 60).unwrap()) {
                lines += events.iter().filter(|event| log.record(**event, &name(number), at(second))).count();
            }
        }
        assert!(lines <= 60 * events.len() * (SINGLE_LINES + 1), "{lines}");
    }

    #[test]
    fn events_beyond_the_limit_of_their_kind_share_a_line() {
        let mut log = EventLog::default();
        let single = (0..500).filter(|number| log.record(PeerEvent::IkeUp, &name(*number), at(100))).count();
        assert_eq!(single, SINGLE_LINES);
        assert!(log.record(PeerEvent::IkeDown, &name(7), at(101)), "another kind has lines of its own");
        assert!(!log.record(PeerEvent::IkeUp, &name(499), at(102)));
        assert_eq!((log.due(), log.end_period(at(159))), (Some(at(160)), vec![]));
        let lines = log.end_period(at(160));
        let expected = "481 more IKE SAs established, of 480 peers in 60 s, the first with edge-020";
        assert!(lines.len() == 1 && lines[0].starts_with(expected), "{lines:?}");
        // The next period begins with the next event.
        assert_eq!(log.due(), None);
        assert!(log.record(PeerEvent::IkeUp, &name(1), at(1000)));
        assert_eq!(log.end_period(at(1060)), Vec::<String>::new(), "nothing was left out");
    }
}

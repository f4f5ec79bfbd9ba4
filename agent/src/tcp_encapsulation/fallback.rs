//! Decides when an edge connects to a hub by TCP, when it tries UDP again, and when it closes the
//! connection. It does no I/O.

use std::collections::BTreeMap;
use std::time::Duration;

use edge_ike::{Instant, PeerName, TcpConnectionId};

/// Time for a hub to answer by UDP before the edge connects to it by TCP.
const UDP_FIRST: Duration = Duration::from_secs(5);
/// Time until the next connection after one could not be established, or has ended. It doubles
/// after each failure, up to [`MAX_WAIT`].
const MIN_WAIT: Duration = Duration::from_secs(1);
/// Maximum time between two attempts to connect to a hub.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// Interval at which UDP is tried while the tunnel uses TCP. An attempt costs an IKE_SA_INIT
/// request for each address, and its retransmissions.
const UDP_INTERVAL: Duration = Duration::from_secs(60);
/// Time for which a connection stays open after the tunnel has returned to UDP, since the hub may
/// still send on it.
const LINGER: Duration = Duration::from_secs(20);

/// The hubs that this node does not reach by UDP. There is at most one entry for each hub.
#[derive(Debug, Default)]
pub struct Fallback {
    hubs: BTreeMap<PeerName, Hub>,
}

#[derive(Debug)]
struct Hub {
    /// The connection whose address the endpoint tries or uses. It may have ended: it is replaced
    /// when another one is open, so that the endpoint follows at once.
    connection: Option<TcpConnectionId>,
    next: Next,
    /// The delay after the next failure.
    wait: Duration,
    /// Why no connection could be established.
    error: Option<String>,
}

/// What is done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Connect.
    Dial(Instant),
    /// An attempt to connect is running.
    Dialing,
    /// The connection is open. The tunnel comes up on it or stays on it. UDP is tried at the given
    /// time.
    TryUdp(Instant),
    /// The tunnel has returned to UDP. The connection is closed at the given time.
    Close(Instant),
}

/// What the owner must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Connect to the hub.
    Dial(PeerName),
    /// Try the hub's UDP addresses.
    TryUdp(PeerName),
    /// Close the connection to the hub.
    Close(PeerName, TcpConnectionId),
}

impl Fallback {
    /// Records that the hub should be up and is not, or does not answer by UDP.
    pub fn unreached(&mut self, hub: &PeerName, now: Instant) {
        let fresh = || Hub { connection: None, next: Next::Dial(now + UDP_FIRST), wait: MIN_WAIT, error: None };
        let hub = self.hubs.entry(hub.clone()).or_insert_with(fresh);
        if matches!(hub.next, Next::Close(_)) {
            hub.next = Next::TryUdp(now + UDP_INTERVAL);
        }
    }

    /// Records that the hub is up, and answers, by UDP.
    pub fn up_by_udp(&mut self, name: &PeerName, now: Instant) {
        let Some(hub) = self.hubs.get_mut(name) else { return };
        match (hub.next, hub.connection) {
            (Next::Close(_), _) => {}
            (Next::TryUdp(_), Some(_)) => hub.next = Next::Close(now + LINGER),
            // A connection that is still being established is closed when it is open.
            _ => drop(self.hubs.remove(name)),
        }
    }

    /// Records that the hub is up by TCP. The time of the next attempt by UDP stays: a tunnel that
    /// comes up again and again must not put it off for ever.
    pub fn up_by_tcp(&mut self, hub: &PeerName, now: Instant) {
        if let Some(hub) = self.hubs.get_mut(hub) {
            match hub.next {
                Next::Dial(_) | Next::Dialing => return,
                Next::TryUdp(_) => {}
                Next::Close(_) => hub.next = Next::TryUdp(now + UDP_INTERVAL),
            }
            hub.wait = MIN_WAIT;
        }
    }

    /// Records that a connection is open. Returns `false` if it is not needed any more. Otherwise
    /// [`Self::connection`] returns it.
    pub fn opened(&mut self, hub: &PeerName, id: TcpConnectionId, now: Instant) -> bool {
        let Some(hub) = self.hubs.get_mut(hub).filter(|hub| hub.next == Next::Dialing) else { return false };
        (hub.connection, hub.error) = (Some(id), None);
        hub.next = Next::TryUdp(now + UDP_INTERVAL);
        true
    }

    /// Records that no connection could be established, and why.
    pub fn failed(&mut self, hub: &PeerName, error: String, now: Instant) {
        if let Some(hub) = self.hubs.get_mut(hub).filter(|hub| hub.next == Next::Dialing) {
            hub.error = Some(error);
            hub.again(now);
        }
    }

    /// Records that a connection has ended.
    pub fn ended(&mut self, id: TcpConnectionId, now: Instant) {
        let of_id = self.hubs.iter_mut().find(|(_, hub)| hub.connection == Some(id));
        match of_id {
            Some((name, Hub { next: Next::Close(_), .. })) => {
                let name = name.clone();
                self.hubs.remove(&name);
            }
            Some((_, hub)) if matches!(hub.next, Next::TryUdp(_)) => hub.again(now),
            _ => {}
        }
    }

    /// Forgets a hub. Returns its connection.
    pub fn forget(&mut self, hub: &PeerName) -> Option<TcpConnectionId> {
        self.hubs.remove(hub)?.connection
    }

    /// Returns the connection to a hub, whose address the endpoint should try.
    pub fn connection(&self, hub: &PeerName) -> Option<TcpConnectionId> {
        self.hubs.get(hub)?.connection
    }

    /// Returns why no connection to a hub could be established.
    pub fn error(&self, hub: &PeerName) -> Option<&str> {
        self.hubs.get(hub)?.error.as_deref()
    }

    /// Returns the time at which [`Self::take_due`] next returns an action.
    pub fn next_due(&self) -> Option<Instant> {
        self.hubs.values().filter_map(|hub| hub.next.at()).min()
    }

    /// Returns the actions that are due.
    pub fn take_due(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        self.hubs.retain(|name, hub| {
            if hub.next.at().is_none_or(|at| at > now) {
                return true;
            }
            match hub.next {
                Next::Dial(_) => {
                    hub.next = Next::Dialing;
                    actions.push(Action::Dial(name.clone()));
                }
                Next::TryUdp(_) => {
                    hub.next = Next::TryUdp(now + UDP_INTERVAL);
                    actions.push(Action::TryUdp(name.clone()));
                }
                Next::Close(_) => {
                    actions.extend(hub.connection.map(|id| Action::Close(name.clone(), id)));
                    return false;
                }
                Next::Dialing => {}
            }
            true
        });
        actions
    }
}

impl Next {
    fn at(self) -> Option<Instant> {
        match self {
            Self::Dial(at) | Self::TryUdp(at) | Self::Close(at) => Some(at),
            Self::Dialing => None,
        }
    }
}

impl Hub {
    fn again(&mut self, now: Instant) {
        self.next = Next::Dial(now + self.wait);
        self.wait = (self.wait * 2).min(MAX_WAIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: TcpConnectionId = TcpConnectionId::new(1);
    const TWO: TcpConnectionId = TcpConnectionId::new(2);

    fn at(seconds: u64) -> Instant {
        Instant::new(Duration::from_secs(seconds))
    }

    fn hub() -> PeerName {
        PeerName::new("hub")
    }

    /// A fallback whose hub is up on connection 1 since second 5.
    fn up_by_tcp() -> Fallback {
        let mut fallback = Fallback::default();
        fallback.unreached(&hub(), at(0));
        assert_eq!(fallback.take_due(at(5)), [Action::Dial(hub())]);
        assert!(fallback.opened(&hub(), ONE, at(5)));
        fallback.up_by_tcp(&hub(), at(5));
        fallback
    }

    #[test]
    fn a_hub_that_answers_by_udp_in_time_is_not_dialed() {
        let mut fallback = Fallback::default();
        fallback.unreached(&hub(), at(0));
        fallback.unreached(&hub(), at(4));
        assert_eq!((fallback.next_due(), fallback.take_due(at(4))), (Some(at(5)), vec![]));
        fallback.up_by_udp(&hub(), at(4));
        assert_eq!((fallback.next_due(), fallback.take_due(at(5))), (None, vec![]));
    }

    #[test]
    fn udp_is_tried_every_minute_and_the_connection_lingers_after_the_return() {
        let mut fallback = up_by_tcp();
        assert_eq!(fallback.connection(&hub()), Some(ONE));
        assert_eq!(fallback.next_due(), Some(at(65)));
        assert_eq!(fallback.take_due(at(65)), [Action::TryUdp(hub())]);
        assert_eq!(fallback.take_due(at(125)), [Action::TryUdp(hub())]);
        fallback.up_by_udp(&hub(), at(126));
        fallback.up_by_udp(&hub(), at(140));
        assert_eq!(fallback.take_due(at(145)), []);
        assert_eq!(fallback.take_due(at(146)), [Action::Close(hub(), ONE)]);
        assert_eq!((fallback.connection(&hub()), fallback.next_due()), (None, None));
        // The connection has been closed.
        fallback.ended(ONE, at(147));
        assert_eq!(fallback.next_due(), None);
    }

    #[test]
    fn a_tunnel_that_comes_up_by_tcp_again_and_again_does_not_put_off_udp() {
        let mut fallback = up_by_tcp();
        for seconds in (10..=60).step_by(5) {
            fallback.up_by_tcp(&hub(), at(seconds));
        }
        assert_eq!(fallback.take_due(at(65)), [Action::TryUdp(hub())]);
    }

    #[test]
    fn udp_that_fails_again_soon_keeps_the_connection() {
        let mut fallback = up_by_tcp();
        fallback.up_by_udp(&hub(), at(66));
        fallback.unreached(&hub(), at(70));
        assert_eq!(fallback.take_due(at(86)), [], "the connection stays open");
        assert_eq!(fallback.connection(&hub()), Some(ONE));
    }

    #[test]
    fn failures_are_repeated_with_growing_delays_and_the_last_one_is_known() {
        let mut fallback = Fallback::default();
        fallback.unreached(&hub(), at(0));
        let (mut now, mut waits) = (at(5), Vec::new());
        for _ in 0..8 {
            assert_eq!(fallback.take_due(now), [Action::Dial(hub())]);
            assert_eq!(fallback.next_due(), None, "one attempt at a time");
            fallback.failed(&hub(), "refused".into(), now);
            let next = fallback.next_due().unwrap();
            waits.push(next.saturating_since(now).as_secs());
            now = next;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(fallback.error(&hub()), Some("refused"));
        assert_eq!(fallback.take_due(now), [Action::Dial(hub())]);
        assert!(fallback.opened(&hub(), ONE, now));
        assert_eq!(fallback.error(&hub()), None);
    }

    #[test]
    fn a_connection_that_ends_is_replaced_and_its_address_stays_until_then() {
        let mut fallback = up_by_tcp();
        fallback.ended(TWO, at(10));
        fallback.ended(ONE, at(10));
        assert_eq!(fallback.connection(&hub()), Some(ONE));
        // The IKE SA on the ended connection is still there.
        fallback.up_by_tcp(&hub(), at(10));
        assert_eq!(fallback.take_due(at(11)), [Action::Dial(hub())]);
        assert!(fallback.opened(&hub(), TWO, at(11)));
        assert_eq!(fallback.connection(&hub()), Some(TWO));
        fallback.ended(ONE, at(12));
        assert_eq!(fallback.next_due(), Some(at(71)));
    }

    #[test]
    fn a_connection_that_comes_too_late_is_not_used() {
        let mut fallback = Fallback::default();
        fallback.unreached(&hub(), at(0));
        fallback.take_due(at(5));
        fallback.up_by_udp(&hub(), at(6));
        assert!(!fallback.opened(&hub(), ONE, at(7)));
        assert_eq!(fallback.forget(&hub()), None);
        let mut fallback = up_by_tcp();
        assert_eq!(fallback.forget(&hub()), Some(ONE));
        assert!(!fallback.opened(&hub(), TWO, at(7)));
    }
}

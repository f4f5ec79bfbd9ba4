//! Decides when an edge connects to a hub by TCP, when it tries UDP again, and when it closes the
//! connection. It does no I/O.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use edge_ike::{Instant, PeerName, TcpConnectionId};
use edge_types::jitter;

/// Time for a hub to answer by UDP before the edge connects to it by TCP.
const UDP_FIRST: Duration = Duration::from_secs(5);
/// Maximum time until the next connection after one could not be established, or has ended; at
/// least half of it. The connections of all edges end together when a hub restarts. It doubles
/// after each failure, up to [`MAX_WAIT`].
const MIN_WAIT: Duration = Duration::from_secs(1);
/// Maximum time between two attempts to connect to a hub.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// Interval at which UDP is tried while the tunnel uses TCP. An attempt costs an IKE_SA_INIT
/// request for each address, and its retransmissions.
const UDP_INTERVAL: Duration = Duration::from_secs(60);
/// Time for an IKE SA to come up on an open connection. Then the connection is closed: something
/// else than the hub may have accepted it, for example a proxy, or a balancer whose hub is gone.
const IKE_SA_TIMEOUT: Duration = Duration::from_secs(15);
/// Maximum number of a hub's addresses that are remembered because no IKE SA came up on a
/// connection to them. Beyond it, the one to which this happened first is forgotten.
const MAX_WITHOUT_IKE_SA: usize = 8;
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
    /// The hub's address at the other end of that connection.
    address: Option<SocketAddr>,
    /// The addresses to which a connection was open without an IKE SA, the latest last. The others
    /// are dialed first.
    without_ike_sa: Vec<SocketAddr>,
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
    /// The connection is open, and no IKE SA is up on it. It is closed at the given time, and
    /// another one follows.
    GiveUp(Instant),
    /// The tunnel uses the connection. UDP is tried at the given time.
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
        let fresh = || Hub {
            connection: None,
            address: None,
            without_ike_sa: vec![],
            next: Next::Dial(now + UDP_FIRST),
            wait: MIN_WAIT,
            error: None,
        };
        let hub = self.hubs.entry(hub.clone()).or_insert_with(fresh);
        // An IKE SA that is gone may have been lost together with the hub behind a balancer.
        if matches!(hub.next, Next::Close(_) | Next::TryUdp(_)) {
            hub.next = Next::GiveUp(now + IKE_SA_TIMEOUT);
        }
    }

    /// Records that the hub is up, and answers, by UDP.
    pub fn up_by_udp(&mut self, name: &PeerName, now: Instant) {
        let Some(hub) = self.hubs.get_mut(name) else { return };
        match (hub.next, hub.connection) {
            (Next::Close(_), _) => {}
            (Next::GiveUp(_) | Next::TryUdp(_), Some(_)) => hub.next = Next::Close(now + LINGER),
            // A connection that is still being established is closed when it is open.
            _ => drop(self.hubs.remove(name)),
        }
    }

    /// Records that the hub is up by TCP on a connection. The time of the next attempt by UDP
    /// stays: a tunnel that comes up again and again must not put it off for ever.
    pub fn up_by_tcp(&mut self, hub: &PeerName, id: TcpConnectionId, now: Instant) {
        // The IKE SA on a connection that has ended is still there for a while.
        let Some(hub) = self.hubs.get_mut(hub).filter(|hub| hub.connection == Some(id)) else { return };
        match hub.next {
            Next::Dial(_) | Next::Dialing => return,
            Next::TryUdp(_) => {}
            Next::GiveUp(_) | Next::Close(_) => hub.next = Next::TryUdp(now + UDP_INTERVAL),
        }
        hub.wait = MIN_WAIT;
        let address = hub.address;
        hub.without_ike_sa.retain(|it| Some(*it) != address);
    }

    /// Returns in which order the hub's addresses are dialed: all of the first choice at once, and
    /// those of the second one if that fails. The addresses on which no IKE SA came up are the
    /// second choice. If there are no others, the one to which this happened first is the first
    /// choice.
    pub fn dial_order(&self, hub: &PeerName, addresses: &[SocketAddr]) -> [Vec<SocketAddr>; 2] {
        let without_ike_sa = self.hubs.get(hub).map(|hub| hub.without_ike_sa.as_slice()).unwrap_or_default();
        let (mut second, mut first): (Vec<_>, Vec<_>) =
            addresses.iter().copied().partition(|address| without_ike_sa.contains(address));
        if first.is_empty() {
            let earliest = without_ike_sa.iter().find(|address| second.contains(address)).copied();
            second.retain(|address| Some(*address) != earliest);
            first.extend(earliest);
        }
        [first, second]
    }

    /// Records that a connection to an address of the hub is open. Returns `false` if it is not
    /// needed any more. Otherwise [`Self::connection`] returns it.
    pub fn opened(&mut self, hub: &PeerName, id: TcpConnectionId, address: Option<SocketAddr>, now: Instant) -> bool {
        let Some(hub) = self.hubs.get_mut(hub).filter(|hub| hub.next == Next::Dialing) else { return false };
        (hub.connection, hub.address, hub.error) = (Some(id), address, None);
        hub.next = Next::GiveUp(now + IKE_SA_TIMEOUT);
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
            Some((_, hub)) if matches!(hub.next, Next::GiveUp(_) | Next::TryUdp(_)) => hub.again(now),
            _ => {}
        }
    }

    /// Records that this node no longer has the address of a connection, which is therefore closed.
    /// The next connection does not wait. Returns the hub if the tunnel needs another connection.
    pub fn address_gone(&mut self, id: TcpConnectionId, now: Instant) -> Option<PeerName> {
        self.ended(id, now);
        let (name, hub) = self.hubs.iter_mut().find(|(_, hub)| hub.connection == Some(id))?;
        if matches!(hub.next, Next::Dial(_)) {
            (hub.next, hub.wait) = (Next::Dial(now), MIN_WAIT);
        }
        Some(name.clone())
    }

    /// Returns the connections whose addresses the endpoint tries or uses.
    pub fn connections(&self) -> Vec<TcpConnectionId> {
        self.hubs.values().filter_map(|hub| hub.connection).collect()
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
                Next::GiveUp(_) => {
                    hub.error = hub.address.map(|address| {
                        format!("a TCP connection to {address} is accepted, but no IKE SA comes up on it")
                    });
                    hub.remember_without_ike_sa();
                    actions.extend(hub.connection.take().map(|id| Action::Close(name.clone(), id)));
                    hub.again(now);
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
            Self::Dial(at) | Self::GiveUp(at) | Self::TryUdp(at) | Self::Close(at) => Some(at),
            Self::Dialing => None,
        }
    }
}

impl Hub {
    fn remember_without_ike_sa(&mut self) {
        let Some(address) = self.address.take() else { return };
        self.without_ike_sa.retain(|it| *it != address);
        self.without_ike_sa.push(address);
        if self.without_ike_sa.len() > MAX_WITHOUT_IKE_SA {
            self.without_ike_sa.remove(0);
        }
    }

    fn again(&mut self, now: Instant) {
        self.next = Next::Dial(now + jitter::between(self.wait / 2, self.wait));
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

    /// The address of the hub with this number.
    fn address(number: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, number], 443))
    }

    fn hub() -> PeerName {
        PeerName::new("hub")
    }

    /// A fallback whose hub is up on connection 1 since second 5.
    fn up_by_tcp() -> Fallback {
        let mut fallback = Fallback::default();
        fallback.unreached(&hub(), at(0));
        assert_eq!(fallback.take_due(at(5)), [Action::Dial(hub())]);
        assert!(fallback.opened(&hub(), ONE, Some(address(4)), at(5)));
        fallback.up_by_tcp(&hub(), ONE, at(5));
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
            fallback.up_by_tcp(&hub(), ONE, at(seconds));
        }
        assert_eq!(fallback.take_due(at(65)), [Action::TryUdp(hub())]);
    }

    #[test]
    fn udp_that_fails_again_soon_keeps_the_connection() {
        let mut fallback = up_by_tcp();
        fallback.up_by_udp(&hub(), at(66));
        fallback.unreached(&hub(), at(70));
        fallback.up_by_tcp(&hub(), ONE, at(75));
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
            waits.push(next.saturating_since(now));
            now = next;
        }
        for (wait, most) in waits.into_iter().zip([1, 2, 4, 8, 16, 32, 60, 60].map(Duration::from_secs)) {
            assert!((most / 2..=most).contains(&wait), "{wait:?} of {most:?}");
        }
        assert_eq!(fallback.error(&hub()), Some("refused"));
        assert_eq!(fallback.take_due(now), [Action::Dial(hub())]);
        assert!(fallback.opened(&hub(), ONE, Some(address(4)), now));
        assert_eq!(fallback.error(&hub()), None);
    }

    #[test]
    fn a_connection_that_ends_is_replaced_and_its_address_stays_until_then() {
        let mut fallback = up_by_tcp();
        fallback.ended(TWO, at(10));
        fallback.ended(ONE, at(10));
        assert_eq!(fallback.connection(&hub()), Some(ONE));
        // The IKE SA on the ended connection is still there.
        fallback.up_by_tcp(&hub(), ONE, at(10));
        assert_eq!(fallback.take_due(at(11)), [Action::Dial(hub())]);
        assert!(fallback.opened(&hub(), TWO, Some(address(4)), at(11)));
        assert_eq!(fallback.connection(&hub()), Some(TWO));
        fallback.ended(ONE, at(12));
        fallback.up_by_tcp(&hub(), TWO, at(12));
        assert_eq!(fallback.next_due(), Some(at(72)));
    }

    #[test]
    fn a_connection_whose_address_is_gone_is_replaced_at_once() {
        let mut fallback = up_by_tcp();
        assert_eq!(fallback.connections(), [ONE]);
        assert_eq!(fallback.address_gone(TWO, at(10)), None);
        assert_eq!(fallback.address_gone(ONE, at(10)), Some(hub()));
        assert_eq!(fallback.take_due(at(10)), [Action::Dial(hub())]);
        // There may be no route yet from the new address.
        fallback.failed(&hub(), "no route".into(), at(10));
        assert!(fallback.next_due().unwrap() <= at(11));
        assert_eq!(fallback.take_due(at(11)), [Action::Dial(hub())]);
        // The address stays gone while another connection is dialed.
        assert_eq!(fallback.address_gone(ONE, at(11)), Some(hub()));
        assert_eq!(fallback.take_due(at(12)), [], "one attempt at a time");
        assert!(fallback.opened(&hub(), TWO, Some(address(4)), at(12)));
        assert_eq!(fallback.connections(), [TWO]);
        // A tunnel that has returned to UDP needs no other connection.
        let mut fallback = up_by_tcp();
        fallback.up_by_udp(&hub(), at(10));
        assert_eq!((fallback.address_gone(ONE, at(11)), fallback.next_due()), (None, None));
    }

    #[test]
    fn a_connection_that_comes_too_late_is_not_used() {
        let mut fallback = Fallback::default();
        fallback.unreached(&hub(), at(0));
        fallback.take_due(at(5));
        fallback.up_by_udp(&hub(), at(6));
        assert!(!fallback.opened(&hub(), ONE, Some(address(4)), at(7)));
        assert_eq!(fallback.forget(&hub()), None);
        let mut fallback = up_by_tcp();
        assert_eq!(fallback.forget(&hub()), Some(ONE));
        assert!(!fallback.opened(&hub(), TWO, Some(address(4)), at(7)));
    }

    #[test]
    fn a_connection_on_which_no_ike_sa_comes_up_is_closed_and_the_other_addresses_are_dialed_first() {
        let (both, four, six) = ([address(4), address(6)], vec![address(4)], vec![address(6)]);
        let mut fallback = Fallback::default();
        fallback.unreached(&hub(), at(0));
        fallback.take_due(at(5));
        assert_eq!(fallback.dial_order(&hub(), &both), [both.to_vec(), vec![]]);
        assert!(fallback.opened(&hub(), ONE, Some(address(4)), at(5)));
        // The endpoint goes on without success. This does not put the end off.
        fallback.unreached(&hub(), at(12));
        assert_eq!(fallback.take_due(at(19)), []);
        assert_eq!(fallback.take_due(at(20)), [Action::Close(hub(), ONE)]);
        assert_eq!(fallback.connection(&hub()), None);
        assert!(fallback.error(&hub()).unwrap().contains("192.0.2.4:443"), "{:?}", fallback.error(&hub()));
        assert_eq!(fallback.take_due(at(80)), [Action::Dial(hub())]);
        assert_eq!(fallback.dial_order(&hub(), &both), [six.clone(), four.clone()]);
        // The other one is silent too: then each is the first choice in turn.
        assert!(fallback.opened(&hub(), TWO, Some(address(6)), at(80)));
        assert_eq!(fallback.take_due(at(95)), [Action::Close(hub(), TWO)]);
        assert_eq!(fallback.dial_order(&hub(), &both), [four.clone(), six.clone()]);
        // An IKE SA shows that the address is the hub's.
        assert_eq!(fallback.take_due(at(155)), [Action::Dial(hub())]);
        assert!(fallback.opened(&hub(), ONE, Some(address(4)), at(155)));
        fallback.up_by_tcp(&hub(), ONE, at(156));
        assert_eq!(fallback.dial_order(&hub(), &both), [four, six]);
        assert_eq!(fallback.take_due(at(171)), []);
    }

    #[test]
    fn a_connection_whose_ike_sa_is_gone_is_closed_unless_another_one_comes_up_on_it() {
        let mut fallback = up_by_tcp();
        fallback.unreached(&hub(), at(30));
        fallback.up_by_tcp(&hub(), ONE, at(40));
        assert_eq!(fallback.take_due(at(45)), []);
        fallback.unreached(&hub(), at(50));
        // What happens on an earlier connection shows nothing about this one.
        fallback.up_by_tcp(&hub(), TWO, at(51));
        assert_eq!(fallback.take_due(at(65)), [Action::Close(hub(), ONE)]);
        assert!(matches!(fallback.take_due(at(67))[..], [Action::Dial(_)]));
    }

    #[test]
    fn few_addresses_without_an_ike_sa_are_remembered() {
        let mut fallback = Fallback::default();
        fallback.unreached(&hub(), at(0));
        for number in 0..100 {
            let now = at(100 * (u64::from(number) + 1));
            assert_eq!(fallback.take_due(now), [Action::Dial(hub())]);
            assert!(fallback.opened(&hub(), ONE, Some(address(number)), now));
            assert_eq!(fallback.take_due(now + IKE_SA_TIMEOUT), [Action::Close(hub(), ONE)]);
        }
        let all: Vec<_> = (0..100).map(address).collect();
        assert_eq!(fallback.dial_order(&hub(), &all)[1], all[100 - MAX_WITHOUT_IKE_SA..]);
    }

    #[test]
    fn edges_whose_connections_end_together_do_not_dial_together() {
        let mut edges: Vec<_> = (0..100).map(|_| up_by_tcp()).collect();
        edges.iter_mut().for_each(|edge| edge.ended(ONE, at(10)));
        let due: std::collections::BTreeSet<_> = edges.iter().filter_map(Fallback::next_due).collect();
        assert!(due.len() > 50, "{due:?}");
    }
}

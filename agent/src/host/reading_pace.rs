//! Determines when links and routes are read again. The kernel reports each change of any route,
//! and reading all routes of a router with a full table takes long, so changes of routes that do
//! not concern the agent wait. This module does no I/O.

use std::time::Duration;

use edge_xfrm::guard::ROUTE_PROTOCOL;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::RouteMessage;
use tokio::time::Instant;

/// Interval at which sysctls are compared with the desired values even without a notification. The
/// kernel sends no notifications about `disable_policy`, `disable_xfrm` and `accept_ra`. nftables
/// is not compared periodically.
pub(super) const FULL_CHECK: Duration = Duration::from_secs(10);
/// Number of routes that increase the time until the next reading by one [`FULL_CHECK`]. Without a
/// notification, links and routes are read again after [`FULL_CHECK`], or later if there are many
/// routes, so that a node with ten thousand routes does not read them all the time. With fewer
/// routes than this, no notification waits.
const ROUTES_PER_CHECK: usize = 1000;
/// Divisor for the maximum share of the time that readings after changes of other programs' routes
/// may take, which is 5%.
const SHARE: u32 = 20;
/// Maximum time for which a change of other programs' routes waits.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// When links and routes must be read again.
#[derive(Debug)]
pub(super) struct ReadingPace {
    /// Time until which the last reading counts as current; `None` if it does not.
    current_until: Option<Instant>,
    /// Whether other programs' routes have changed since the last reading.
    changed: bool,
    /// The time before which a change of other programs' routes causes no reading.
    not_before: Instant,
}

impl ReadingPace {
    pub(super) fn new() -> Self {
        Self { current_until: None, changed: false, not_before: Instant::now() }
    }

    /// Returns whether links and routes must be read now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.current_until.is_none_or(|until| until <= now) || (self.changed && self.not_before <= now)
    }

    /// Waits until a change of other programs' routes may be read. Never ends without such a
    /// change.
    pub(super) async fn due(&self) {
        match self.waits_until() {
            Some(until) => tokio::time::sleep_until(until).await,
            None => std::future::pending().await,
        }
    }

    fn waits_until(&self) -> Option<Instant> {
        self.changed.then_some(self.not_before)
    }

    /// Makes a reading due immediately.
    pub(super) fn expire(&mut self) {
        self.current_until = None;
    }

    /// Records a notification from the kernel.
    pub(super) fn notified(&mut self, message: &NetlinkMessage<RouteNetlinkMessage>) {
        if is_urgent(message) {
            self.expire();
        } else {
            self.changed = true;
        }
    }

    /// Records that a reading began. Until [`Self::has_read`], the last reading is not current, so
    /// that a failed one is repeated.
    pub(super) fn begin(&mut self) {
        (self.current_until, self.changed) = (None, false);
    }

    /// Records that the reading has found this number of routes, took this time and ended at `now`.
    pub(super) fn has_read(&mut self, routes: usize, took: Duration, now: Instant) {
        self.current_until = Some(now + until_next_reading(routes));
        self.not_before = now + pause(routes, took);
    }
}

/// Returns whether a notification may concern the agent at once: it is about a link, an address, a
/// default route or a route of the agent.
fn is_urgent(message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    match &message.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route)) => {
            let RouteMessage { header, .. } = route;
            header.destination_prefix_length == 0 || u8::from(header.protocol) == ROUTE_PROTOCOL
        }
        // Notifications are lost when very many routes change.
        NetlinkPayload::Overrun(_) => false,
        _ => true,
    }
}

/// Returns whether tunnels may have to follow: the notification is about a link, an address or a
/// default route.
pub(super) fn moves_tunnels(message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    match &message.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route)) => {
            route.header.destination_prefix_length == 0 && u8::from(route.header.protocol) != ROUTE_PROTOCOL
        }
        NetlinkPayload::Overrun(_) => false,
        _ => true,
    }
}

/// Returns the time for which links and routes count as current after a reading, unless the kernel
/// sends a notification. `routes` is the number of routes.
fn until_next_reading(routes: usize) -> Duration {
    // The check may run slightly early.
    let more = u32::try_from(routes / ROUTES_PER_CHECK).unwrap_or(u32::MAX);
    (FULL_CHECK / 2).saturating_add(FULL_CHECK.saturating_mul(more))
}

fn pause(routes: usize, took: Duration) -> Duration {
    if routes < ROUTES_PER_CHECK { Duration::ZERO } else { took.saturating_mul(SHARE).min(LONGEST_WAIT) }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NetlinkHeader;
    use netlink_packet_route::link::LinkMessage;
    use netlink_packet_route::route::RouteProtocol;

    use super::*;

    #[test]
    fn a_node_with_ten_times_the_routes_reads_them_in_proportion_as_seldom() {
        // The checks are 10 s apart.
        let ticks = |routes| until_next_reading(routes).as_secs() / FULL_CHECK.as_secs() + 1;
        assert_eq!([0, 999, 1000, 10_000, 100_000].map(ticks), [1, 1, 2, 11, 101]);
        assert!(until_next_reading(usize::MAX) > FULL_CHECK);
    }

    #[test]
    fn readings_of_a_full_table_take_a_twentieth_of_the_time_while_its_routes_change() {
        let pauses = |routes| [10, 1000, 60_000].map(|took| pause(routes, Duration::from_millis(took)).as_millis());
        assert_eq!(pauses(100_000), [200, 20_000, 30_000]);
        assert_eq!(pauses(999), [0; 3]);
    }

    fn message(inner: RouteNetlinkMessage) -> NetlinkMessage<RouteNetlinkMessage> {
        NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(inner))
    }

    fn route(prefix: u8, protocol: RouteProtocol) -> NetlinkMessage<RouteNetlinkMessage> {
        let mut route = RouteMessage::default();
        (route.header.destination_prefix_length, route.header.protocol) = (prefix, protocol);
        message(RouteNetlinkMessage::DelRoute(route))
    }

    #[test]
    fn changes_of_other_programs_routes_wait_and_what_concerns_the_agent_does_not() {
        let (mut pace, now) = (ReadingPace::new(), Instant::now());
        assert!(pace.is_due(now), "nothing was read");
        pace.begin();
        pace.has_read(100_000, Duration::from_secs(1), now);
        assert!(!pace.is_due(now));
        let overrun = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::Overrun(vec![]));
        for others in [route(24, RouteProtocol::Bgp), overrun] {
            assert_eq!(pace.waits_until(), None);
            for _ in 0..1000 {
                pace.notified(&others);
            }
            let due = pace.waits_until().unwrap();
            assert_eq!(due - now, Duration::from_secs(20));
            assert!(!pace.is_due(now) && pace.is_due(due));
            pace.begin();
            assert!(pace.is_due(now), "a reading that fails is repeated");
            pace.has_read(100_000, Duration::from_secs(1), now);
            assert!(!pace.is_due(due), "nothing has changed since");
        }
        for urgent in [
            route(0, RouteProtocol::Bgp),
            route(16, RouteProtocol::from(ROUTE_PROTOCOL)),
            message(RouteNetlinkMessage::NewLink(LinkMessage::default())),
        ] {
            pace.notified(&urgent);
            assert!(pace.is_due(now), "{urgent:?}");
            pace.begin();
            pace.has_read(100_000, Duration::from_secs(1), now);
        }
    }
}

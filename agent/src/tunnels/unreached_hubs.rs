//! The hubs to which this edge has no tunnel, while it has one to another hub. The controller tells
//! the cloud nodes, which then route to this edge's pods through a hub that it reaches.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use edge_ike::{Instant, PeerName};
use edge_types::NodeName;
use tokio::sync::watch;

use crate::desired::TunnelState;

/// Time after which a hub is reported that has had no tunnel yet, since the tunnels to several hubs
/// are not set up at the same moment. A hub that was lost is reported at once, and not again before
/// it had a tunnel for 30 s ([`TunnelState::Returned`]), so that a path that comes and goes causes
/// few reports.
const DELAY: Duration = Duration::from_secs(1);

/// What the tunnels' driver publishes for the report to the controller.
#[derive(Debug, Default)]
pub struct TunnelsToController {
    /// This node's mapped addresses; `None` until a hub has reported one.
    pub mapped: watch::Sender<Option<Vec<SocketAddr>>>,
    /// The hubs to which this node has no tunnel; `None` until it has a tunnel to a hub.
    pub unreached_hubs: watch::Sender<Option<Vec<NodeName>>>,
}

/// Publishes the hubs without a tunnel.
#[derive(Debug)]
pub(super) struct UnreachedHubs {
    published: watch::Sender<Option<Vec<NodeName>>>,
    /// The hubs to publish, and when to do so.
    waiting: Option<(Vec<NodeName>, Instant)>,
    /// The hubs that have had a tunnel, at most as many as the view has.
    were_up: BTreeSet<PeerName>,
}

impl UnreachedHubs {
    pub(super) fn new(published: watch::Sender<Option<Vec<NodeName>>>) -> Self {
        Self { published, waiting: None, were_up: BTreeSet::new() }
    }

    /// Handles other states of the hubs' tunnels.
    pub(super) fn update(&mut self, states: &BTreeMap<PeerName, TunnelState>, now: Instant) {
        let before = self.published.borrow().clone();
        self.were_up.retain(|hub| states.contains_key(hub));
        let up = states.iter().filter(|(_, state)| **state != TunnelState::Down);
        self.were_up.extend(up.map(|(hub, _)| hub.clone()));
        let Some(unreached) = unreached(states, before.as_deref().unwrap_or_default()) else {
            self.waiting = None;
            return;
        };
        let is_known = |hub: &NodeName| {
            self.were_up.contains(&PeerName::new(hub.as_str())) || before.iter().flatten().any(|known| known == hub)
        };
        let due = if unreached.iter().all(is_known) { now } else { self.next_due().unwrap_or(now + DELAY) };
        self.waiting = Some((unreached, due));
    }

    /// Publishes what has waited until now.
    pub(super) fn publish_due(&mut self, now: Instant) {
        let Some((unreached, _)) = self.waiting.take_if(|(_, due)| *due <= now) else { return };
        self.published.send_if_modified(|published| {
            let now = Some(unreached);
            let changed = *published != now;
            if changed {
                let hubs: Vec<&str> = now.iter().flatten().map(NodeName::as_str).collect();
                tracing::info!(?hubs, "the hubs to which there is no tunnel, beside those to which there is one");
            }
            *published = now;
            changed
        });
    }

    /// Returns the time at which something is published next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.as_ref().map(|(_, due)| *due)
    }
}

/// Returns the hubs through which packets do not reach this node, but through another hub. `None`
/// if no hub has a tunnel: this node may only be cut off for a moment, so nothing changes. A hub of
/// `before` that came back a short time ago stays among them, unless this node itself uses it.
fn unreached(states: &BTreeMap<PeerName, TunnelState>, before: &[NodeName]) -> Option<Vec<NodeName>> {
    let (used, _) = states
        .iter()
        .filter(|(_, state)| **state != TunnelState::Down)
        .min_by_key(|(name, state)| (**state, (*name).clone()))?;
    let unreached = states.iter().filter_map(|(hub, state)| {
        let name: NodeName = hub.as_str().parse().ok()?;
        let is_unreached = match state {
            TunnelState::Up => false,
            TunnelState::Returned | TunnelState::Leaving => hub != used && before.contains(&name),
            TunnelState::Down => true,
        };
        is_unreached.then_some(name)
    });
    Some(unreached.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node with hubs, and a clock.
    struct Node {
        hubs: UnreachedHubs,
        states: BTreeMap<PeerName, TunnelState>,
    }

    impl Node {
        fn new() -> Self {
            Self { hubs: UnreachedHubs::new(watch::Sender::default()), states: BTreeMap::new() }
        }

        /// Sets the state of a hub and returns what is published then, on one line.
        fn at(&mut self, millis: u64, hub: &str, state: TunnelState) -> Option<String> {
            self.states.insert(PeerName::new(hub), state);
            let now = Instant::new(Duration::from_millis(millis));
            self.hubs.update(&self.states, now);
            self.hubs.publish_due(now);
            self.published()
        }

        fn later(&mut self, millis: u64) -> Option<String> {
            self.hubs.publish_due(Instant::new(Duration::from_millis(millis)));
            self.published()
        }

        fn published(&self) -> Option<String> {
            let published = self.hubs.published.borrow();
            published.as_ref().map(|hubs| hubs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        }
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn hubs_that_come_up_one_after_the_other_are_not_reported_in_between() {
        let mut node = Node::new();
        assert_eq!(node.at(0, "hub-1", TunnelState::Down), None);
        assert_eq!(node.at(0, "hub-2", TunnelState::Up), None);
        assert_eq!(node.at(900, "hub-1", TunnelState::Up), some(""), "the controller may know an old state");
        assert_eq!(node.hubs.next_due(), None);
    }

    #[test]
    fn a_hub_without_a_tunnel_is_reported_until_it_has_one_for_some_time() {
        let mut node = Node::new();
        node.at(0, "hub-2", TunnelState::Up);
        assert_eq!(node.at(10, "hub-1", TunnelState::Down), some(""));
        // Another change does not delay the report.
        assert_eq!(node.at(500, "hub-3", TunnelState::Up), some(""));
        assert_eq!(node.later(1010), some("hub-1"));
        assert_eq!(node.at(5000, "hub-1", TunnelState::Returned), some("hub-1"));
        assert_eq!(node.at(6000, "hub-1", TunnelState::Down), some("hub-1"));
        assert_eq!(node.at(7000, "hub-1", TunnelState::Returned), some("hub-1"));
        assert_eq!(node.at(37_000, "hub-1", TunnelState::Up), some(""));
        // A hub that was never reported need not be.
        assert_eq!(node.at(38_000, "hub-1", TunnelState::Leaving), some(""));
        assert_eq!(node.at(48_000, "hub-1", TunnelState::Returned), some(""));
        assert_eq!(node.at(49_000, "hub-1", TunnelState::Down), some("hub-1"), "it was lost");
    }

    #[test]
    fn a_node_without_any_hub_reports_nothing_new_and_the_hub_that_it_uses_is_reached() {
        let mut node = Node::new();
        node.at(0, "hub-2", TunnelState::Up);
        node.at(0, "hub-1", TunnelState::Down);
        assert_eq!(node.later(1000), some("hub-1"));
        assert_eq!(node.at(2000, "hub-2", TunnelState::Down), some("hub-1"));
        assert_eq!(node.later(9000), some("hub-1"));
        assert_eq!(node.at(9000, "hub-1", TunnelState::Returned), some("hub-2"));
        assert_eq!(node.at(11_000, "hub-2", TunnelState::Returned), some("hub-2"), "the first of both is used");
        // The view no longer has hub-2.
        node.states.remove(&PeerName::new("hub-2"));
        assert_eq!(node.at(13_000, "hub-1", TunnelState::Returned), some(""));
    }
}

//! Checks the conditions that must hold, whichever node sends requests and whichever controller
//! dies.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use edge_controller_domain::segments::overlap;
use edge_types::IpNetwork;

/// Quarantine in seconds.
pub(super) const QUARANTINE: u64 = 2;
/// Tolerance: the controller counts whole seconds, and the first one may be nearly over.
const ROUNDING: Duration = Duration::from_secs(1);

/// The holder of each segment, according to the responses to nodes.
#[derive(Default)]
pub(super) struct Model(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    held_segments: Vec<HeldSegment>,
    counts: BTreeMap<&'static str, usize>,
}

/// The time for which one node holds one segment.
struct HeldSegment {
    network: IpNetwork,
    node: String,
    /// Number of times that the node had joined before.
    life: u32,
    request: String,
    /// Time at which the node received the response.
    from: Instant,
    /// Time at which the deregistration of the node began.
    until: Option<Instant>,
    /// Whether the deregistration may be incomplete, so that the name still holds the segment.
    inherited: bool,
}

impl Model {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an action, so that a test can check that it happened.
    pub(super) fn count(&self, what: &'static str) {
        *self.inner().counts.entry(what).or_default() += 1;
    }

    /// Returns those of these actions that have not occurred yet.
    pub(super) fn missing(&self, what: &[&'static str]) -> Vec<&'static str> {
        let inner = self.inner();
        what.iter().copied().filter(|what| !inner.counts.contains_key(what)).collect()
    }

    pub(super) fn summary(&self) -> String {
        self.inner().counts.iter().fold(String::new(), |mut text, (what, count)| {
            let _ = write!(text, "{what} {count}, ");
            text
        })
    }

    /// Records that a node received a segment.
    pub(super) fn heard(&self, node: &str, life: u32, request: &str, network: IpNetwork) {
        let mut inner = self.inner();
        let now = Instant::now();
        let mut again = false;
        for held in inner.held_segments.iter().filter(|held| overlap(&held.network, &network)) {
            let said = || {
                let (heard, left) = (held.from.elapsed(), held.until.map(|until| until.elapsed()));
                let (before, its) = (held.network, (&held.node, held.life, &held.request));
                format!(
                    "{network} is told {node} (life {life}, {request}); {before} was told {its:?} {heard:?} ago, which left {left:?} ago"
                )
            };
            if (held.node.as_str(), held.life) == (node, life) {
                assert!(held.network == network && held.request == request, "twice for one node: {}", said());
                return;
            }
            let until = held.until.unwrap_or_else(|| panic!("two owners: {}", said()));
            let early = now.duration_since(until) + ROUNDING < Duration::from_secs(QUARANTINE);
            let kept = held.inherited && held.node == node;
            assert!(!early || kept, "before its quarantine was over: {}", said());
            again = true;
        }
        let held = HeldSegment {
            network,
            node: node.into(),
            life,
            request: request.into(),
            from: now,
            until: None,
            inherited: false,
        };
        inner.held_segments.push(held);
        *inner.counts.entry(if again { "granted anew" } else { "granted" }).or_default() += 1;
    }

    /// Records that the deregistration of a node begins.
    pub(super) fn leaves(&self, node: &str, life: u32) {
        let now = Instant::now();
        let mut inner = self.inner();
        let its = inner.held_segments.iter_mut().filter(|held| held.node == node && held.life == life);
        its.for_each(|held| held.until = Some(now));
    }

    /// Records that the deregistration of a node may be incomplete.
    pub(super) fn half_left(&self, node: &str, life: u32) {
        let mut inner = self.inner();
        let its = inner.held_segments.iter_mut().filter(|held| held.node == node && held.life == life);
        its.for_each(|held| held.inherited = true);
    }

    /// Returns all held segments and their nodes.
    pub(super) fn held(&self) -> BTreeMap<IpNetwork, String> {
        let inner = self.inner();
        let held = inner.held_segments.iter().filter(|held| held.until.is_none());
        held.map(|held| (held.network, held.node.clone())).collect()
    }
}

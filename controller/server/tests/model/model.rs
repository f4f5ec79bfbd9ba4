//! What must hold, whichever node asks and whichever controller dies.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use edge_controller_domain::segments::overlap;
use edge_types::IpNetwork;

/// Quarantine in seconds.
pub(super) const QUARANTINE: u64 = 2;
/// The controller counts whole seconds, and the first one may be nearly over.
const ROUNDING: Duration = Duration::from_secs(1);

/// The holder of each segment, according to the responses that nodes got.
#[derive(Default)]
pub(super) struct Model(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    tenures: Vec<Tenure>,
    counts: BTreeMap<&'static str, usize>,
}

/// The time for which one node holds one segment.
struct Tenure {
    network: IpNetwork,
    node: String,
    /// How often the node had joined before.
    life: u32,
    request: String,
    /// When the node got the response.
    from: Instant,
    /// When the deregistration of the node began.
    until: Option<Instant>,
    /// The deregistration may be incomplete, so that its name still holds the segment.
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

    /// Asserts that these actions happened: a history without them proves nothing.
    pub(super) fn assert_happened(&self, what: &[&'static str]) {
        let inner = self.inner();
        let missing: Vec<_> = what.iter().filter(|what| !inner.counts.contains_key(*what)).collect();
        assert!(missing.is_empty(), "this never happened: {missing:?}; what did: {:?}", inner.counts);
    }

    pub(super) fn summary(&self) -> String {
        self.inner().counts.iter().fold(String::new(), |mut text, (what, count)| {
            let _ = write!(text, "{what} {count}, ");
            text
        })
    }

    /// Notes that a node got a segment.
    pub(super) fn heard(&self, node: &str, life: u32, request: &str, network: IpNetwork) {
        let mut inner = self.inner();
        let now = Instant::now();
        let mut again = false;
        for tenure in inner.tenures.iter().filter(|tenure| overlap(&tenure.network, &network)) {
            let said = || {
                let (heard, left) = (tenure.from.elapsed(), tenure.until.map(|until| until.elapsed()));
                let (before, its) = (tenure.network, (&tenure.node, tenure.life, &tenure.request));
                format!(
                    "{network} is told {node} (life {life}, {request}); {before} was told {its:?} {heard:?} ago, which left {left:?} ago"
                )
            };
            if (tenure.node.as_str(), tenure.life) == (node, life) {
                assert!(tenure.network == network && tenure.request == request, "twice for one node: {}", said());
                return;
            }
            let until = tenure.until.unwrap_or_else(|| panic!("two owners: {}", said()));
            let early = now.duration_since(until) + ROUNDING < Duration::from_secs(QUARANTINE);
            let kept = tenure.inherited && tenure.node == node;
            assert!(!early || kept, "before its quarantine was over: {}", said());
            again = true;
        }
        let tenure = Tenure {
            network,
            node: node.into(),
            life,
            request: request.into(),
            from: now,
            until: None,
            inherited: false,
        };
        inner.tenures.push(tenure);
        *inner.counts.entry(if again { "granted anew" } else { "granted" }).or_default() += 1;
    }

    /// Notes that the deregistration of a node begins.
    pub(super) fn leaves(&self, node: &str, life: u32) {
        let now = Instant::now();
        let mut inner = self.inner();
        let its = inner.tenures.iter_mut().filter(|tenure| tenure.node == node && tenure.life == life);
        its.for_each(|tenure| tenure.until = Some(now));
    }

    /// Notes that the deregistration of a node may be incomplete.
    pub(super) fn half_left(&self, node: &str, life: u32) {
        let mut inner = self.inner();
        let its = inner.tenures.iter_mut().filter(|tenure| tenure.node == node && tenure.life == life);
        its.for_each(|tenure| tenure.inherited = true);
    }

    /// All held segments and their nodes.
    pub(super) fn held(&self) -> BTreeMap<IpNetwork, String> {
        let inner = self.inner();
        let held = inner.tenures.iter().filter(|tenure| tenure.until.is_none());
        held.map(|tenure| (tenure.network, tenure.node.clone())).collect()
    }
}

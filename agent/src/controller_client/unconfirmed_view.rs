//! The two views that `take_back` needs in addition to the current view: the previous view, and the
//! view that was taken back last.

use std::sync::Arc;

use edge_types::{IpNetwork, NodeView};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::underlay::guarded;

/// File in the state directory with the last [`TakenBackView`].
pub(super) const TAKEN_BACK_FILE: &str = "taken-back.json";
/// Time after which a view that was taken back once is tried again, in seconds.
const SECOND_TRY_AFTER_SECONDS: u64 = 3600;

/// Exists while the current view is unconfirmed: no message from the controller has arrived under
/// it yet.
#[derive(Debug, Clone)]
pub(super) struct UnconfirmedView {
    /// The view to restore.
    pub(super) before: Arc<NodeView>,
    /// The time at which the current view replaced `before`.
    pub(super) began: Instant,
}

/// The last view that was taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TakenBackView {
    /// Version of that view.
    pub(super) version: u64,
    /// Networks that the view added, at least one.
    pub(super) added: Vec<IpNetwork>,
    /// The time at which the view was taken back, in seconds since 1970-01-01 UTC.
    pub(super) at: u64,
    /// Whether that view cut the node off. Decided when the controller is reached again.
    pub(super) blamed: bool,
    /// The number of views that added these networks and were taken back in succession.
    pub(super) times: u32,
}

impl TakenBackView {
    /// Returns whether `view` may be applied although this view was taken back. While the
    /// controller is unreachable, a view that adds the same networks is not applied, since another
    /// failure would prove nothing.
    pub(super) fn allows(&self, view: &NodeView, now: u64) -> bool {
        let guarded = guarded(view);
        // `all` is true for an empty list, which would refuse every view.
        let adds_the_same = !self.added.is_empty() && self.added.iter().all(|network| guarded.contains(network));
        !adds_the_same || (self.blamed && self.times < 2 && now >= self.at.saturating_add(SECOND_TRY_AFTER_SECONDS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_view::empty_view;

    fn view(version: u64, ranges: &[&str]) -> NodeView {
        NodeView { version, cluster_ranges: ranges.iter().map(|text| text.parse().unwrap()).collect(), ..empty_view() }
    }

    #[test]
    fn what_was_taken_back_is_not_tried_while_the_controller_is_away_and_once_more_when_it_was_to_blame() {
        let (same, other) = (view(9, &["10.77.0.0/16", "10.99.0.0/16"]), view(9, &["10.77.0.0/16", "10.98.0.0/16"]));
        let added = vec!["10.99.0.0/16".parse().unwrap()];
        let undecided = TakenBackView { version: 8, added, at: 1000, blamed: false, times: 1 };
        let later = 1000 + SECOND_TRY_AFTER_SECONDS;
        for now in [1000, 1060, later, later * 100] {
            assert!(!undecided.allows(&same, now), "{now}");
            assert!(undecided.allows(&other, now), "{now}");
        }
        let blamed = TakenBackView { blamed: true, ..undecided };
        assert!(!blamed.allows(&same, later - 1));
        assert!(blamed.allows(&same, later) && blamed.allows(&other, 1000));
        assert!(!TakenBackView { times: 2, ..blamed.clone() }.allows(&same, later * 100));
        let empty = TakenBackView { added: vec![], ..blamed };
        assert!(empty.allows(&same, 1000) && empty.allows(&other, 1000), "it says nothing of any view");
    }
}

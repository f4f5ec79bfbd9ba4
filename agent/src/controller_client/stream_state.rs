//! Holds the last view from the controller, to which its next change applies. Usually that is the
//! current view. If that view is refused, it is still kept here, because the change that corrects
//! it is relative to it.

use std::sync::Arc;

use edge_types::{NodeView, ViewChange};

/// The last view that was received, with all changes applied.
#[derive(Debug, Clone)]
pub(super) struct StreamState {
    /// Identifies the controller process that can send the changes since this view; `None` if the
    /// controller sends whole views only.
    epoch: Option<String>,
    view: Arc<NodeView>,
}

impl StreamState {
    /// Starts from a whole view.
    pub(super) fn new(epoch: Option<String>, view: NodeView) -> Self {
        Self { epoch, view: Arc::new(view) }
    }

    /// Returns the view, with all changes from the stream applied.
    pub(super) fn view(&self) -> &Arc<NodeView> {
        &self.view
    }

    /// Applies a change. Returns `None` if the change is relative to another version.
    pub(super) fn apply(self, change: ViewChange) -> Option<Self> {
        let view = change.apply_to(Arc::unwrap_or_clone(self.view))?;
        Some(Self::new(self.epoch, view))
    }

    /// Returns the query parameters `&from=VERSION&epoch=EPOCH`, which make the controller send
    /// only the changes since `held`, the current view.
    pub(super) fn query(state: Option<&Self>, held: Option<&NodeView>) -> String {
        let Some(held) = held else { return String::new() };
        let mut query = format!("&from={}", held.version);
        // After a refused view no epoch is sent. The controller then sends that view as a whole, so
        // that each connection validates it and reports the reason to the operator.
        if let Some(epoch) = state.filter(|state| *state.view == *held).and_then(|state| state.epoch.as_deref())
            && epoch.bytes().all(|byte| byte.is_ascii_alphanumeric())
        {
            query.push_str("&epoch=");
            query.push_str(epoch);
        }
        query
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_view::empty_view;

    fn view(version: u64) -> NodeView {
        NodeView { version, cluster_ranges: vec![], ..empty_view() }
    }

    #[test]
    fn only_changes_are_requested_if_the_view_in_force_is_the_one_that_was_sent_last() {
        let state = StreamState::new(Some("ab12".into()), view(7));
        assert_eq!(StreamState::query(Some(&state), Some(&view(7))), "&from=7&epoch=ab12");
        assert_eq!(StreamState::query(Some(&state), Some(&view(6))), "&from=6", "version 7 was refused");
        assert_eq!(StreamState::query(Some(&state), None), "");
        assert_eq!(StreamState::query(None, Some(&view(6))), "&from=6");
        let odd = StreamState::new(Some("a&watch=false".into()), view(7));
        assert_eq!(StreamState::query(Some(&odd), Some(&view(7))), "&from=7");
    }

    #[test]
    fn changes_follow_each_other_and_one_that_was_missed_is_noticed() {
        let change = |from, version| ViewChange { from, version, own: None, put: vec![], gone: vec![] };
        let state = StreamState::new(None, view(7)).apply(change(7, 9)).unwrap().apply(change(9, 10)).unwrap();
        assert_eq!(state.view().version, 10);
        assert!(state.apply(change(11, 12)).is_none());
    }
}

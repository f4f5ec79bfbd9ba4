//! What the controller has told on a stream: the view onto which its next change applies. Mostly
//! that is the view in force; a view that was refused is remembered too, since the change that
//! mends it is a change of that one.

use std::sync::Arc;

use edge_types::{NodeView, ViewChange};

/// The version that was told last.
#[derive(Debug, Clone)]
pub(super) struct Told {
    /// Names the run of the controller that remembers what changed since; `None` from one that
    /// tells whole views only.
    epoch: Option<String>,
    view: Arc<NodeView>,
}

impl Told {
    /// A whole view has come.
    pub(super) fn new(epoch: Option<String>, view: NodeView) -> Self {
        Self { epoch, view: Arc::new(view) }
    }

    /// The view.
    pub(super) fn view(&self) -> &Arc<NodeView> {
        &self.view
    }

    /// A change has come; `None` if it is not one of this version.
    pub(super) fn changed(self, change: ViewChange) -> Option<Self> {
        let view = change.apply_to(Arc::unwrap_or_clone(self.view))?;
        Some(Self::new(self.epoch, view))
    }

    /// What to ask for, so that only news is told to a node whose view in force is `held`:
    /// `&from=VERSION&epoch=EPOCH`.
    pub(super) fn query(told: Option<&Self>, held: Option<&NodeView>) -> String {
        let Some(held) = held else { return String::new() };
        let mut query = format!("&from={}", held.version);
        // A view that was refused is asked for as a whole, and judged, at every connection: the
        // operator is to see what is wrong with it.
        if let Some(epoch) = told.filter(|told| *told.view == *held).and_then(|told| told.epoch.as_deref())
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
    use edge_types::Role;

    use super::*;

    fn view(version: u64) -> NodeView {
        NodeView {
            version,
            node: "edge-1".parse().unwrap(),
            role: Role::Edge,
            communities: Default::default(),
            cluster_ranges: vec![],
            segments: vec![],
            networks: vec![],
            peers: vec![],
            trust_anchors: vec![],
            segment_prefix: Default::default(),
        }
    }

    #[test]
    fn only_changes_are_asked_for_where_the_view_in_force_is_the_one_that_was_told_last() {
        let told = Told::new(Some("ab12".into()), view(7));
        assert_eq!(Told::query(Some(&told), Some(&view(7))), "&from=7&epoch=ab12");
        assert_eq!(Told::query(Some(&told), Some(&view(6))), "&from=6", "version 7 was refused");
        assert_eq!(Told::query(Some(&told), None), "");
        assert_eq!(Told::query(None, Some(&view(6))), "&from=6");
        let odd = Told::new(Some("a&watch=false".into()), view(7));
        assert_eq!(Told::query(Some(&odd), Some(&view(7))), "&from=7");
    }

    #[test]
    fn changes_follow_each_other_and_one_that_was_missed_is_noticed() {
        let change = |from, version| ViewChange { from, version, own: None, put: vec![], gone: vec![] };
        let told = Told::new(None, view(7)).changed(change(7, 9)).unwrap().changed(change(9, 10)).unwrap();
        assert_eq!(told.view().version, 10);
        assert!(told.changed(change(11, 12)).is_none());
    }
}

//! The outcome of the negotiations on an IKE SA, from which the endpoint makes the peer's latest
//! failure.

use super::offer_text::list;
use crate::config::PeerConfig;
use crate::event::PeerError;
use crate::purpose::ChildName;

/// The outcome of the negotiations on an IKE SA. `None` if the endpoint has taken the latest
/// outcome and no child has failed, as usual.
#[derive(Debug, Default)]
pub(super) struct Outcome(Option<Box<State>>);

#[derive(Debug, Clone, Default)]
struct State {
    /// The latest outcome, until the endpoint takes it: `Some(None)` for a success, or
    /// `Some(Some(error))`.
    latest: Option<Option<PeerError>>,
    /// The children that have failed and were not negotiated since, each with its latest failure.
    /// The child that failed first comes first. There is at most one entry for each configured
    /// child.
    failed_children: Vec<(ChildName, PeerError)>,
}

impl Outcome {
    /// Copies the children that have failed on an IKE SA that this one replaces.
    pub(super) fn take_failed_children(&mut self, old: &Self) {
        for (child, error) in old.0.iter().flat_map(|state| &state.failed_children) {
            if !self.has_failed(child) {
                self.state().failed_children.push((child.clone(), error.clone()));
            }
        }
    }

    /// Returns whether this child has failed and was not negotiated since.
    pub(super) fn has_failed(&self, child: &ChildName) -> bool {
        self.0.iter().flat_map(|state| &state.failed_children).any(|failed| failed.0 == *child)
    }

    /// Records a failure. It remains the last one until the next success.
    pub(super) fn failed(&mut self, error: PeerError, config: &PeerConfig) {
        let state = self.state();
        state.failed_children.retain(|failed| config.child_named(&failed.0).is_some());
        state.latest = Some(Some(with_names(error, &state.failed_children)));
    }

    /// Records the failure of a configured child, until a CHILD_SA of this child is negotiated.
    pub(super) fn child_failed(&mut self, child: &ChildName, error: PeerError, config: &PeerConfig) {
        let state = self.state();
        state.failed_children.retain(|failed| config.child_named(&failed.0).is_some());
        match state.failed_children.iter_mut().find(|failed| failed.0 == *child) {
            Some(failed) => failed.1 = error,
            None => state.failed_children.push((child.clone(), error)),
        }
        state.latest = Some(state.first_failure());
    }

    /// Clears the last failure after a success. `child` is the child that was negotiated, if any.
    /// If other configured children have failed, their failure is the last one again.
    pub(super) fn succeeded(&mut self, child: Option<&ChildName>, config: &PeerConfig) {
        let state = self.state();
        state.failed_children.retain(|failed| Some(&failed.0) != child && config.child_named(&failed.0).is_some());
        state.latest = Some(state.first_failure());
    }

    /// Takes the latest outcome. Returns `None` if there was none since the last call, `Some(None)`
    /// for a success, and the error otherwise.
    pub(super) fn take(&mut self) -> Option<Option<PeerError>> {
        let latest = self.0.as_mut()?.latest.take();
        self.0.take_if(|state| state.failed_children.is_empty());
        latest
    }

    fn state(&mut self) -> &mut State {
        self.0.get_or_insert_default()
    }
}

impl State {
    /// Returns the failure of the child that failed first. It does not change when the other ones
    /// are tried again.
    fn first_failure(&self) -> Option<PeerError> {
        let ((_, error), others) = self.failed_children.split_first()?;
        Some(with_names(error.clone(), others))
    }
}

/// Adds the names of these children to an error about something else.
fn with_names(mut error: PeerError, children: &[(ChildName, PeerError)]) -> PeerError {
    if !children.is_empty() {
        let names: Vec<&ChildName> = children.iter().map(|failed| &failed.0).collect();
        error.detail = format!("{}; also failed: {}", error.detail, list(&names));
    }
    error
}

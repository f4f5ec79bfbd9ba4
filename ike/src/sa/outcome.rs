//! The outcome of the negotiations on an IKE SA, from which the endpoint makes the peer's latest
//! failure.

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
    /// The child that failed last and was not negotiated since, with its failure. The success of
    /// another child does not hide it.
    failed_child: Option<(ChildName, PeerError)>,
}

impl Outcome {
    /// Copies the child that failed last on the IKE SA that this one replaces by a rekey.
    pub(super) fn take_failed_child(&mut self, old: &Self) {
        if let Some(failed) = old.0.as_ref().and_then(|state| state.failed_child.clone()) {
            self.state().failed_child = Some(failed);
        }
    }

    /// Records a failure. It remains the last one until the next success.
    pub(super) fn failed(&mut self, error: PeerError) {
        self.state().latest = Some(Some(error));
    }

    /// Records the failure of a configured child. It remains the last one until the next failure,
    /// or until a CHILD_SA of this child is negotiated.
    pub(super) fn child_failed(&mut self, child: ChildName, error: PeerError) {
        let state = self.state();
        state.failed_child = Some((child, error.clone()));
        state.latest = Some(Some(error));
    }

    /// Clears the last failure, since a CHILD_SA of this child was negotiated. If another child has
    /// failed that is still configured, its failure is the last one again.
    pub(super) fn child_succeeded(&mut self, child: &ChildName, config: &PeerConfig) {
        let state = self.state();
        state.failed_child.take_if(|failed| failed.0 == *child || config.child_named(&failed.0).is_none());
        state.latest = Some(state.failed_child.as_ref().map(|failed| failed.1.clone()));
    }

    /// Takes the latest outcome. Returns `None` if there was none since the last call, `Some(None)`
    /// for a success, and the error otherwise.
    pub(super) fn take(&mut self) -> Option<Option<PeerError>> {
        let latest = self.0.as_mut()?.latest.take();
        self.0.take_if(|state| state.failed_child.is_none());
        latest
    }

    fn state(&mut self) -> &mut State {
        self.0.get_or_insert_default()
    }
}

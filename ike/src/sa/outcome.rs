//! The outcome of the negotiations on an IKE SA, from which the endpoint makes the peer's latest
//! failure.

use super::ike_sa::IkeSa;
use crate::event::{Event, PeerError};
use crate::output::Context;
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

    fn state(&mut self) -> &mut State {
        self.0.get_or_insert_default()
    }
}

impl IkeSa {
    /// Reports a failure to the owner. It remains the last failure until the next success.
    pub(super) fn report(&mut self, error: PeerError, cx: &mut Context<'_>) {
        self.outcome.state().latest = Some(Some(error.clone()));
        cx.out.event(Event::PeerFailed { peer: self.profile.config.name.clone(), error });
    }

    /// Reports the failure of a configured child to the owner. It remains the last failure until
    /// the next failure, or until a CHILD_SA of this child is negotiated.
    pub(super) fn report_child(&mut self, child: &ChildName, error: PeerError, cx: &mut Context<'_>) {
        self.outcome.state().failed_child = Some((child.clone(), error.clone()));
        self.report(error, cx);
    }

    /// Clears the last failure, since a CHILD_SA of this child was negotiated. If another child has
    /// failed that is still configured, its failure is the last one again.
    pub(super) fn negotiation_succeeded(&mut self, child: &ChildName) {
        let config = &self.profile.config;
        let state = self.outcome.state();
        state.failed_child.take_if(|failed| failed.0 == *child || config.child_named(&failed.0).is_none());
        state.latest = Some(state.failed_child.as_ref().map(|failed| failed.1.clone()));
    }

    /// Takes the outcome of the latest negotiation. Returns `None` if there was no negotiation
    /// since the last call, `Some(None)` for a success, and the error otherwise.
    pub(crate) fn take_outcome(&mut self) -> Option<Option<PeerError>> {
        let latest = self.outcome.0.as_mut()?.latest.take();
        self.outcome.0.take_if(|state| state.failed_child.is_none());
        latest
    }
}

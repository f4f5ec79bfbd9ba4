//! Reports what the negotiations on an IKE SA have come to.

use super::failure::{CREATE_CHILD_SA, INFORMATIONAL};
use super::ike_sa::IkeSa;
use super::own_requests::OutstandingRequest;
use crate::event::{Event, PeerError};
use crate::output::Context;
use crate::purpose::ChildName;
use crate::time::Instant;
use crate::wire::ExchangeType;

impl IkeSa {
    /// Reports a failure to the owner. It remains the last failure until the next success.
    pub(super) fn report(&mut self, error: PeerError, cx: &mut Context<'_>) {
        self.outcome.failed(error.clone(), &self.profile.config);
        cx.out.event(Event::PeerFailed { peer: self.profile.config.name.clone(), error });
    }

    /// Reports the failure of a configured child to the owner. The child counts as failed until a
    /// CHILD_SA of it is negotiated.
    pub(super) fn report_child(&mut self, child: &ChildName, error: PeerError, cx: &mut Context<'_>) {
        self.outcome.child_failed(child, error.clone(), &self.profile.config);
        cx.out.event(Event::PeerFailed { peer: self.profile.config.name.clone(), error });
    }

    /// Records that IKE_AUTH has not created a CHILD_SA of this configured child, which the
    /// endpoint reports.
    pub(super) fn child_failed_in_auth(&mut self, child: &ChildName, error: PeerError) {
        self.outcome.child_failed(child, error, &self.profile.config);
    }

    /// Returns the exchange of our request that waits for a response.
    pub(crate) fn waits_in(&self) -> &'static str {
        match self.outstanding.as_ref().map(OutstandingRequest::exchange) {
            Some(ExchangeType::CreateChildSa) => CREATE_CHILD_SA,
            _ => INFORMATIONAL,
        }
    }

    /// Returns whether the first of several children has failed.
    pub(crate) fn has_first_of_several_failed(&self) -> bool {
        let config = &self.profile.config;
        config.children().nth(1).is_some() && self.outcome.has_failed(&config.child.name)
    }

    /// Clears the last failure, since a CHILD_SA of this child was negotiated, or since the peer
    /// was authenticated without one.
    pub(crate) fn negotiation_succeeded(&mut self, child: Option<&ChildName>) {
        self.outcome.succeeded(child, &self.profile.config);
    }

    /// Copies what is known of children that have failed on an IKE SA that this one replaces by a
    /// new authentication.
    pub(crate) fn take_failed_children_of(&mut self, old: &Self, now: Instant) {
        self.outcome.take_failed_children(&old.outcome);
        self.missing.replaces(&old.missing, now);
    }

    /// Takes the outcome of the latest negotiation. Returns `None` if there was no negotiation
    /// since the last call, `Some(None)` for a success, and the error otherwise.
    pub(crate) fn take_outcome(&mut self) -> Option<Option<PeerError>> {
        self.outcome.take()
    }
}

//! Decides when a new IKE SA is begun because the peer refuses the first child on the present one.
//! IKE_AUTH creates the first child without a key exchange (RFC 7296 1.2), so it may succeed where
//! CREATE_CHILD_SA fails.

use std::time::Duration;

use super::ike_sa::{IkeSa, Lifecycle};
use super::new_ike_sa::{NewIkeSa, REFUSED_AGAIN};
use crate::address_assignment::AddressAssignment;
use crate::child_sas::ChildSas;
use crate::childless::Childless;
use crate::event::ChildId;
use crate::purpose::{ChildName, Purpose};
use crate::time::Instant;
use crate::wire::NotifyType;

/// Time in which a peer whose rekey of a CHILD_SA we have refused may begin another IKE SA itself.
/// Most initiators do so at once.
const PEER_BEGINS: Duration = Duration::from_secs(3);
/// Minimum age of a CHILD_SA whose rekey we have refused, and of the authentication where the peer
/// refuses a missing CHILD_SA, for another IKE SA. Each new IKE SA has a new CHILD_SA, so a peer
/// with which refusals continue costs one IKE SA in this time.
const REFUSED_FROM: Duration = Duration::from_secs(10);

impl IkeSa {
    /// Returns whether an IKE SA that we begin in place of this one creates a CHILD_SA of this
    /// configured child by IKE_AUTH, that is, without a key exchange (RFC 7296 1.2). It creates the
    /// first child, unless it leaves it out (RFC 6023). A peer that asks for its address has to
    /// begin itself.
    pub(super) fn is_child_of_next_ike_auth(&self, child: &ChildName) -> bool {
        let config = &self.profile.config;
        let pool = matches!(config.address_assignment, AddressAssignment::Pool(_));
        let leaves_out = match config.childless {
            Childless::Never | Childless::Allow => false,
            Childless::Prefer => !self.initiation().by_us() || self.negotiated.peer_supports_childless,
            Childless::Force => true,
        };
        *child == config.child.name && !pool && !leaves_out && self.lifecycle == Lifecycle::Active
    }

    /// Returns whether to begin a new IKE SA because the peer has refused a CHILD_SA for a reason
    /// that may not hold for IKE_AUTH, for example because it requires another key exchange method.
    /// The CHILD_SA was to replace `old`, or is missing.
    ///
    /// If this IKE SA has other CHILD_SAs, the peer may delete them as soon as the new one is
    /// authenticated, which then has to create them again. So a new one must not have failed a
    /// short time ago. For a missing child it must also be promising: IKE_AUTH has created the
    /// child before. And the others must not be lost: they must have been created by
    /// CREATE_CHILD_SA since the peer was authenticated, as a whole, and no request about them must
    /// have failed since. So two ends with different first children do not take turns in ending
    /// each other's.
    pub(super) fn refused_child_needs_new_ike_sa(
        &mut self,
        old: Option<ChildId>,
        refused: &Purpose,
        kind: NotifyType,
        child_sas: &ChildSas,
        now: Instant,
    ) -> bool {
        if !self.is_child_of_next_ike_auth(&refused.child) {
            return false;
        }
        if old.is_some_and(|old| child_sas.live(old).is_some()) {
            return self.missing.new_ike_sa_mut().begin(now);
        }
        let mut others = child_sas.children_of(self.spi()).map(|(_, child)| child).peekable();
        // pluto 4.10 answers another group with INVALID_SYNTAX. NO_ADDITIONAL_SAS and
        // TS_UNACCEPTABLE are about the other CHILD_SAs, or come again.
        let of_algorithms =
            matches!(kind, NotifyType::NoProposalChosen | NotifyType::InvalidKePayload | NotifyType::InvalidSyntax);
        if now < self.authenticated() + REFUSED_FROM {
            return false;
        }
        let alone = others.peek().is_none();
        let are_others_safe = others.all(|child| {
            let Purpose { child: name, part, .. } = &child.sa.purpose;
            let created_later = child.established > self.authenticated();
            *name != refused.child && part.is_none() && created_later && !self.outcome.has_failed(name)
        });
        let promising = self.negotiated.has_created_first_child && of_algorithms && are_others_safe;
        let promising = match self.missing.new_ike_sa() {
            // After an attempt at the end of the child's lifetime, the next ones follow.
            NewIkeSa::Refused(_) => self.negotiated.has_created_first_child && of_algorithms,
            // The peer has accepted the child and deleted it again.
            NewIkeSa::IsThis(since) if now < since + REFUSED_AGAIN => false,
            _ => promising,
        };
        (alone || promising) && self.missing.new_ike_sa_mut().begin(now)
    }

    /// Returns whether another IKE_AUTH can be expected to create a CHILD_SA of the first child.
    pub(crate) fn may_expect_first_child_of_auth(&self) -> bool {
        let has_failed = matches!(self.missing.new_ike_sa(), NewIkeSa::Refused(_) | NewIkeSa::Unlikely(_));
        self.negotiated.has_created_first_child && !self.silent && !has_failed
    }

    /// Records that IKE_AUTH has not created the first of several children: that of this IKE SA, or
    /// that of another one, which we have begun in its place. Then none is begun for the child for
    /// a while; it is still requested on this one. Returns false for a single child, which is tried
    /// again without a pause.
    pub(crate) fn first_child_refused_in_auth(&mut self, now: Instant) -> bool {
        let records = self.lifecycle == Lifecycle::Active && self.profile.config.children().nth(1).is_some();
        if records {
            self.missing.new_ike_sa_mut().refused(now);
        }
        records
    }

    /// Plans another IKE SA because we have refused the peer's rekey of `old`: no algorithms are in
    /// common, for example no key exchange method. A new IKE SA can create the first child before
    /// the old CHILD_SA ends. The attempt goes to where this IKE SA ends, even if no address is
    /// configured. Does nothing if the CHILD_SA is new, or if IKE_AUTH would not create it.
    pub(super) fn replace_after_refusal(&mut self, old: ChildId, child_sas: &ChildSas, now: Instant) {
        let due = child_sas.live(old).is_some_and(|child| {
            self.is_child_of_next_ike_auth(&child.sa.purpose.child) && now >= child.established + REFUSED_FROM
        });
        if due && self.missing.new_ike_sa_mut().begin(now) && !mutation!("refused_rekey_of_peer_ignored") {
            self.missing.plan_new_ike_sa(now + PEER_BEGINS);
        }
    }
}

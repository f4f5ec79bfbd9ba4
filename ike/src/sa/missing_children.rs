//! Decides when an IKE SA requests missing CHILD_SAs, and when it tries again to replace one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::ike_sa::{IkeSa, Lifecycle};
use super::own_requests::QueuedRequest;
use crate::address_assignment::AddressAssignment;
use crate::child_sas::ChildSas;
use crate::childless::Childless;
use crate::config::Timing;
use crate::deadlines::Timer;
use crate::event::ChildId;
use crate::output::Context;
use crate::purpose::{ChildName, Purpose};
use crate::time::Instant;
use crate::wire::NotifyType;

/// If the peer deletes a new CHILD_SA after this time, another one is requested immediately. If the
/// peer deletes it earlier, the delay before the next request doubles.
const CHILD_PROVEN: Duration = Duration::from_secs(2);

/// Maximum time for which an IKE SA may exist without a CHILD_SA.
const CHILDLESS_TIMEOUT: Duration = Duration::from_secs(60);

/// Time in which a peer whose rekey of a CHILD_SA we have refused may begin another IKE SA itself.
/// Most initiators do so at once.
const PEER_BEGINS: Duration = Duration::from_secs(3);
/// Minimum age of a CHILD_SA whose rekey we have refused, and of the authentication where the peer
/// refuses a missing CHILD_SA, for another IKE SA. Each new IKE SA has a new CHILD_SA, so a peer
/// with which refusals continue costs one IKE SA in this time.
const REFUSED_FROM: Duration = Duration::from_secs(10);
/// Time without another attempt if an IKE SA that we began for the first child has not created it
/// either, or has created it and the peer refuses it again, while there are other CHILD_SAs.
const REFUSED_AGAIN: Duration = Duration::from_secs(600);

/// The planned requests for missing CHILD_SAs: for the purposes of the configured children and of
/// the IKE SA that this one replaces. There are at most as many requests as the sum of
/// [`max_children`](crate::PeerConfig::max_children) and the number of configured children.
#[derive(Debug, Default)]
pub(super) struct MissingChildren(
    /// `None` if none was ever missing, as usual.
    Option<Box<Plans>>,
);

#[derive(Debug, Default)]
struct Plans {
    /// When to request each purpose.
    planned: BTreeMap<Purpose, Instant>,
    /// When each purpose was last requested because it was missing, and the delay before that
    /// request.
    recreated: BTreeMap<Purpose, (Instant, Duration)>,
    new_ike_sa: NewIkeSa,
}

/// Whether another IKE SA was begun because the peer refuses the first child on this one.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum NewIkeSa {
    #[default]
    NotBegun,
    Begun,
    /// Its IKE_AUTH did not create the child either, at this time.
    Refused(Instant),
    /// It is this one, since this time.
    IsThis(Instant),
}

impl MissingChildren {
    fn plans(&mut self) -> &mut Plans {
        self.0.get_or_insert_default()
    }

    /// Plans a request for this purpose, unless one is planned already.
    pub(super) fn plan(&mut self, purpose: Purpose, at: Instant) {
        self.plans().planned.entry(purpose).or_insert(at);
    }

    /// Plans a request for this purpose at this time. Replaces an earlier plan.
    pub(super) fn plan_again(&mut self, purpose: Purpose, at: Instant) {
        self.plans().planned.insert(purpose, at);
    }

    /// Plans a request for a CHILD_SA that existed until now. The first request is sent
    /// immediately. If the peer keeps deleting the CHILD_SA, the delays grow.
    pub(super) fn recreate(&mut self, purpose: Purpose, timing: &Timing, now: Instant) {
        let plans = self.plans();
        let wait = match plans.recreated.get(&purpose) {
            Some((at, wait)) if now < *at + CHILD_PROVEN => {
                wait.saturating_mul(2).clamp(timing.retry, timing.child_retry_max())
            }
            _ if mutation!("deleted_child_recreated_late") => timing.child_retry_max(),
            _ => Duration::ZERO,
        };
        let wait = if mutation!("deleted_child_recreated_without_bound") { Duration::ZERO } else { wait };
        let at = now + wait;
        plans.recreated.insert(purpose.clone(), (at, wait));
        plans.planned.insert(purpose, at);
    }

    /// Cancels the plan for a purpose, because the CHILD_SA exists or is no longer wanted.
    pub(super) fn cancel(&mut self, purpose: &Purpose) {
        if let Some(plans) = &mut self.0 {
            plans.planned.remove(purpose);
        }
    }

    /// Returns whether a request for this purpose is planned.
    pub(super) fn is_planned(&self, purpose: &Purpose) -> bool {
        self.0.as_ref().is_some_and(|plans| plans.planned.contains_key(purpose))
    }

    /// Returns the time at which the next request is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.as_ref()?.planned.values().min().copied()
    }

    /// Removes and returns the purposes that are due now.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Purpose> {
        let due = self.0.as_mut().map(|plans| plans.planned.extract_if(.., |_, at| *at <= now));
        due.into_iter().flatten().map(|(purpose, _)| purpose).collect()
    }

    /// Moves the plans of an IKE SA to this one, which replaces it.
    pub(super) fn inherit(&mut self, old: &mut Self) {
        let Some(old) = old.0.take() else { return };
        let plans = self.plans();
        for (purpose, at) in old.planned {
            plans.planned.entry(purpose).or_insert(at);
        }
        for (purpose, last) in old.recreated {
            plans.recreated.entry(purpose).or_insert(last);
        }
        if plans.new_ike_sa == NewIkeSa::NotBegun {
            plans.new_ike_sa = old.new_ike_sa;
        }
    }

    /// Records that another IKE SA is to create the first child beside the CHILD_SAs of this one.
    /// Returns false if an earlier one did not create it either a short time ago: each of them is a
    /// handshake, and with some peers the end of this IKE SA.
    pub(super) fn begin_new_ike_sa(&mut self, now: Instant) -> bool {
        let plans = self.plans();
        let begins = !matches!(plans.new_ike_sa, NewIkeSa::Refused(at) if now < at + REFUSED_AGAIN);
        if begins {
            plans.new_ike_sa = NewIkeSa::Begun;
        }
        begins
    }

    fn new_ike_sa(&self) -> NewIkeSa {
        self.0.as_ref().map_or(NewIkeSa::NotBegun, |plans| plans.new_ike_sa)
    }

    /// Records that this IKE SA was begun for the first child, if it replaces one that says so. The
    /// peer may delete the child and refuse it again.
    pub(super) fn has_brought_first_child(&mut self, old: &Self, now: Instant) {
        if old.0.as_ref().is_some_and(|plans| plans.new_ike_sa == NewIkeSa::Begun) {
            self.plans().new_ike_sa = NewIkeSa::IsThis(now);
        }
    }

    /// Records that the first child is configured differently now.
    pub(super) fn first_child_changed(&mut self) {
        if let Some(plans) = &mut self.0 {
            plans.new_ike_sa = NewIkeSa::NotBegun;
        }
    }

    /// Records that the IKE_AUTH of another IKE SA has not created the first child. Returns whether
    /// that IKE SA was begun because of the child.
    fn new_ike_sa_refused(&mut self, now: Instant) -> bool {
        let Some(plans) = &mut self.0 else { return false };
        let begun = plans.new_ike_sa == NewIkeSa::Begun;
        if begun {
            plans.new_ike_sa = NewIkeSa::Refused(now);
        }
        begun
    }
}

impl IkeSa {
    /// Plans requests for CHILD_SAs when the IKE SA is established. If we initiated the IKE SA or
    /// have `initiate` set, we request the CHILD_SAs that IKE_AUTH did not create, and those of the
    /// IKE SAs that this one replaces (`replaced`). The initiator of the IKE SA sends its requests
    /// immediately, the other end after a while. `left_out` states that IKE_AUTH left out the first
    /// one (RFC 6023).
    pub(crate) fn plan_children(
        &mut self,
        replaced: &[Purpose],
        left_out: bool,
        child_sas: &ChildSas,
        cx: &mut Context<'_>,
    ) {
        let profile = Arc::clone(&self.profile);
        let config = &profile.config;
        let (me, ours) = (self.spi(), self.initiation().by_us());
        if (!ours && !config.initiate) || mutation!("additional_child_forgotten") {
            return;
        }
        let later = cx.now + config.timing.child_retry_max();
        let at = if ours { cx.now } else { later };
        let configured = config.children().skip(usize::from(!left_out)).map(|child| Purpose::whole(&child.name));
        let replaced = replaced.iter().filter(|purpose| config.may_have(purpose)).cloned();
        for purpose in configured.chain(replaced).filter(|purpose| !child_sas.serves(me, purpose)) {
            // IKE_AUTH has just failed to create this CHILD_SA.
            let failed = !left_out && purpose.child == config.child.name && purpose.part.is_none();
            let at = if failed { later } else { at };
            self.missing.plan(purpose, at);
        }
    }

    /// Plans requests for an IKE SA without a CHILD_SA. If `initiate` is set, we request CHILD_SAs
    /// later. Otherwise the peer may request one.
    pub(crate) fn schedule_child_creation(&mut self, cx: &mut Context<'_>) {
        let config = &self.profile.config;
        if config.initiate {
            for child in config.children() {
                self.missing.plan_again(Purpose::whole(&child.name), cx.now + config.timing.child_retry_max());
            }
        } else {
            self.timers.set(Timer::Childless, cx.now + CHILDLESS_TIMEOUT);
        }
    }

    /// Schedules another attempt to rekey `old`, or to create a CHILD_SA if there is none of this
    /// purpose.
    pub(super) fn retry_child_later(
        &mut self,
        old: Option<ChildId>,
        purpose: &Purpose,
        wait: Duration,
        child_sas: &mut ChildSas,
        cx: &mut Context<'_>,
    ) {
        // A rekey may have been queued in the meantime. It has to wait too.
        self.queue.retain(|queued| !matches!(queued, QueuedRequest::RekeyChild(child) if Some(*child) == old));
        if let Some(child) = old.and_then(|old| child_sas.live_mut(old)) {
            child.rekey = Some(cx.now + wait);
        } else if !child_sas.serves(self.spi(), purpose) {
            self.missing.plan_again(purpose.clone(), cx.now + wait);
        }
    }

    /// Returns whether an IKE SA that we begin in place of this one creates a CHILD_SA of this
    /// configured child by IKE_AUTH, that is, without a key exchange (RFC 7296 1.2). It creates the
    /// first child, unless it is to leave it out (RFC 6023). A peer that asks for its address has
    /// to begin itself.
    pub(super) fn is_child_of_next_ike_auth(&self, child: &ChildName) -> bool {
        let config = &self.profile.config;
        let pool = matches!(config.address_assignment, AddressAssignment::Pool(_));
        *child == config.child.name
            && !pool
            && config.childless < Childless::Prefer
            && self.lifecycle == Lifecycle::Active
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
        let old = old.filter(|old| child_sas.live(*old).is_some());
        let mut others = child_sas.children_of(self.spi()).map(|(_, child)| child).peekable();
        if old.is_some() {
            let alone = others.all(|child| child.sa.purpose.child == refused.child);
            return alone || self.missing.begin_new_ike_sa(now);
        }
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
            NewIkeSa::Refused(_) => of_algorithms,
            // The peer has accepted the child and deleted it again.
            NewIkeSa::IsThis(since) if now < since + REFUSED_AGAIN => false,
            _ => promising,
        };
        alone || (promising && self.missing.begin_new_ike_sa(now))
    }

    /// Records that IKE_AUTH of another IKE SA, which we have begun, has not created the first
    /// child. Returns whether that IKE SA was begun for the child although this one has other
    /// CHILD_SAs. Then none is begun for the child for a while; it is still requested on this one.
    pub(crate) fn new_ike_sa_refused(&mut self, child_sas: &ChildSas, now: Instant) -> bool {
        let has_others = child_sas.children_of(self.spi()).next().is_some();
        self.lifecycle == Lifecycle::Active && has_others && self.missing.new_ike_sa_refused(now)
    }

    /// Plans another IKE SA because we have refused the peer's rekey of `old`: no algorithms are in
    /// common, for example no key exchange method. A new IKE SA can create the first child before
    /// the old CHILD_SA ends. The attempt goes to where this IKE SA ends, even if no address is
    /// configured. Does nothing if the CHILD_SA is new, or if IKE_AUTH would not create it.
    pub(super) fn replace_after_refusal(&mut self, old: ChildId, child_sas: &ChildSas, now: Instant) {
        let due = child_sas.live(old).is_some_and(|child| {
            self.is_child_of_next_ike_auth(&child.sa.purpose.child) && now >= child.established + REFUSED_FROM
        });
        if due && !mutation!("refused_rekey_of_peer_ignored") {
            let planned = self.timers.get(Timer::Reauthenticate);
            self.timers.set(Timer::Reauthenticate, planned.map_or(now + PEER_BEGINS, |at| at.min(now + PEER_BEGINS)));
        }
    }

    /// Handles the end of a CHILD_SA of this purpose. If exactly one CHILD_SA of the purpose is
    /// left and its DELETE is still queued, that CHILD_SA was redundant only while the other one
    /// existed, so it stays.
    pub(super) fn keep_last_child(&mut self, purpose: &Purpose, child_sas: &mut ChildSas, now: Instant) {
        let left = child_sas.ids_for(self.spi(), purpose);
        let [last] = left.as_slice() else { return };
        if !self.queue.contains(&QueuedRequest::DeleteChild(*last)) {
            return;
        }
        self.drop_requests_of(*last);
        if let Some(child) = child_sas.live_mut(*last) {
            child.redundant = false;
            // The CHILD_SA that replaced this one is gone.
            child.rekey.get_or_insert(now + self.channel.timing().retry);
        }
    }

    /// Handles the deletion of a configured CHILD_SA when no other one is being created. If
    /// `initiate` is set, we request it again immediately. If the peer keeps deleting it, the
    /// delays grow.
    pub(super) fn child_deleted(&mut self, purpose: &Purpose, child_sas: &ChildSas, cx: &mut Context<'_>) {
        let whole = Purpose::whole(&purpose.child);
        let config = &self.profile.config;
        let wanted = config.initiate && config.child_named(&whole.child).is_some();
        if wanted && !child_sas.serves(self.spi(), &whole) {
            self.missing.recreate(whole, &config.timing, cx.now);
        } else if !config.initiate && child_sas.children_of(self.spi()).next().is_none() {
            self.timers.set(Timer::Childless, cx.now + CHILDLESS_TIMEOUT);
        }
    }

    /// Requests the configured CHILD_SAs because a packet waits, even if `initiate` is not set.
    /// Skips CHILD_SAs that exist or are being created.
    pub(crate) fn want_children(&mut self, child_sas: &ChildSas, cx: &mut Context<'_>) {
        for purpose in self.profile.config.children().map(|child| Purpose::whole(&child.name)) {
            if !child_sas.serves(self.spi(), &purpose) && !self.brings(&purpose) {
                self.missing.recreate(purpose, &self.profile.config.timing, cx.now);
            }
        }
    }
}

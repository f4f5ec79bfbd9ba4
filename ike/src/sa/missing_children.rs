//! Decides when an IKE SA requests missing CHILD_SAs, and when it tries again to replace one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::ike_sa::IkeSa;
use super::new_ike_sa::NewIkeSa;
use super::own_requests::QueuedRequest;
use crate::child_sas::ChildSas;
use crate::config::Timing;
use crate::deadlines::Timer;
use crate::event::ChildId;
use crate::output::Context;
use crate::purpose::Purpose;
use crate::time::Instant;

/// If the peer deletes a new CHILD_SA after this time, another one is requested immediately. If the
/// peer deletes it earlier, the delay before the next request doubles.
const CHILD_PROVEN: Duration = Duration::from_secs(2);

/// Maximum time for which an IKE SA may exist without a CHILD_SA.
pub(super) const CHILDLESS_TIMEOUT: Duration = Duration::from_secs(60);

/// Time after which consecutive TEMPORARY_FAILURE responses mean that the ends have different
/// states. RFC 7296 2.25 suggests several minutes.
const OUT_OF_STEP: Duration = Duration::from_secs(5 * 60);

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
    /// When to begin it, if the peer has not begun one by then.
    new_ike_sa_at: Option<Instant>,
    /// The purposes whose requests the peer has put off a short time ago. As each of them is
    /// requested again within [`Timing::child_retry_max`], there are no more than CHILD_SAs.
    put_off: BTreeMap<Purpose, PutOff>,
}

/// How a peer puts a CHILD_SA off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PutOffBy {
    TemporaryFailure,
    /// The peer deletes the new CHILD_SA before its response.
    Deletion,
}

/// Consecutive requests for one purpose that the peer has put off.
#[derive(Debug, Clone, Copy)]
pub(super) struct PutOff {
    by: PutOffBy,
    /// When the peer first did so in this way.
    since: Instant,
    /// When the request is repeated.
    until: Instant,
    /// The delay before it.
    pub(super) wait: Duration,
}

impl PutOff {
    /// Returns whether this is not the first one.
    pub(super) fn goes_on(&self, now: Instant) -> bool {
        self.since < now
    }

    /// Returns whether the ends have different states (RFC 7296 2.25).
    pub(super) fn lasts(&self, now: Instant) -> bool {
        self.since + OUT_OF_STEP <= now
    }
}

impl MissingChildren {
    fn plans(&mut self) -> &mut Plans {
        self.0.get_or_insert_default()
    }

    /// Returns what is known about a new IKE SA for the first child.
    pub(super) fn new_ike_sa(&self) -> NewIkeSa {
        self.0.as_ref().map_or_else(NewIkeSa::default, |plans| plans.new_ike_sa)
    }

    /// Does the same as [`Self::new_ike_sa`], to change it.
    pub(super) fn new_ike_sa_mut(&mut self) -> &mut NewIkeSa {
        &mut self.plans().new_ike_sa
    }

    /// Plans to begin a new IKE SA for the first child.
    pub(super) fn plan_new_ike_sa(&mut self, at: Instant) {
        self.plans().new_ike_sa_at.get_or_insert(at);
    }

    /// Returns the time at which to begin a new IKE SA for the first child.
    pub(super) fn new_ike_sa_at(&self) -> Option<Instant> {
        self.0.as_ref()?.new_ike_sa_at
    }

    /// Returns whether a new IKE SA for the first child is due, once.
    pub(super) fn take_due_new_ike_sa(&mut self, now: Instant) -> bool {
        self.0.as_mut().is_some_and(|plans| plans.new_ike_sa_at.take_if(|at| *at <= now).is_some())
    }

    /// Records that this IKE SA replaces another one by a new authentication.
    pub(super) fn replaces(&mut self, old: &Self, now: Instant) {
        if let Some(new) = old.new_ike_sa().successor(now) {
            self.plans().new_ike_sa = new;
        }
    }

    /// Records that the first child is configured differently now.
    pub(super) fn first_child_changed(&mut self) {
        if let Some(plans) = &mut self.0 {
            plans.new_ike_sa = NewIkeSa::NotBegun;
        }
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
    /// immediately. If the peer keeps deleting the CHILD_SA, the delays grow. Returns the delay.
    pub(super) fn recreate(&mut self, purpose: Purpose, timing: &Timing, now: Instant) -> Duration {
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
        wait
    }

    /// Records that the peer has put off a request for this purpose, whether the CHILD_SA is
    /// missing or is rekeyed. The delay before the next one doubles each time, from `first` to
    /// `longest`.
    pub(super) fn put_off(
        &mut self,
        purpose: &Purpose,
        by: PutOffBy,
        (first, longest): (Duration, Duration),
        now: Instant,
    ) -> PutOff {
        let put_off = &mut self.plans().put_off;
        // A purpose may be gone since.
        put_off.retain(|_, last| now <= last.until + longest);
        let last = put_off.remove(purpose);
        let wait = last.map_or(first, |last| last.wait.saturating_mul(2).min(longest.max(first)));
        let wait = if mutation!("temporary_failure_repeated_often") { first } else { wait };
        let since = last.filter(|last| last.by == by).map_or(now, |last| last.since);
        let put_off = PutOff { by, since, until: now + wait, wait };
        self.plans().put_off.insert(purpose.clone(), put_off);
        put_off
    }

    /// Cancels the plan for a purpose, because the CHILD_SA exists or is no longer wanted.
    pub(super) fn cancel(&mut self, purpose: &Purpose) {
        if let Some(plans) = &mut self.0 {
            plans.planned.remove(purpose);
            plans.put_off.remove(purpose);
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
        plans.new_ike_sa.inherit(old.new_ike_sa);
        plans.new_ike_sa_at = plans.new_ike_sa_at.or(old.new_ike_sa_at);
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
        let configured = config.children().map(|child| Purpose::whole(&child.name));
        let moving = replaced.iter().filter(|purpose| config.may_have(purpose)).cloned();
        for purpose in configured.chain(moving).filter(|purpose| !child_sas.serves(me, purpose)) {
            // IKE_AUTH has just failed to create this CHILD_SA. If CREATE_CHILD_SA has created the
            // one on the IKE SA that goes, it may do so again.
            let failed = !left_out
                && purpose.child == config.child.name
                && purpose.part.is_none()
                && !replaced.contains(&purpose);
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
    /// delays grow. Returns the delay.
    pub(super) fn child_deleted(&mut self, purpose: &Purpose, child_sas: &ChildSas, cx: &mut Context<'_>) -> Duration {
        let whole = Purpose::whole(&purpose.child);
        let config = &self.profile.config;
        let wanted = config.initiate && config.child_named(&whole.child).is_some();
        if wanted && !child_sas.serves(self.spi(), &whole) {
            return self.missing.recreate(whole, &config.timing, cx.now);
        }
        if !config.initiate && child_sas.children_of(self.spi()).next().is_none() {
            self.timers.set(Timer::Childless, cx.now + CHILDLESS_TIMEOUT);
        }
        Duration::ZERO
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

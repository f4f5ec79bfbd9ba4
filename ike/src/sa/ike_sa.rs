//! The state of an established IKE SA.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::agent_peer::AgentPeer;
use super::channel::Channel;
use super::initiation::Initiation;
use super::last_response::LastResponse;
use super::lifetime::Lifetime;
use super::missing_children::MissingChildren;
use super::mobike::Mobike;
use super::negotiated::Negotiated;
use super::outcome::Outcome;
use super::own_requests::{OutstandingRequest, QueuedRequest};
use super::path::Following;
use super::profile::Profile;
use crate::child_sas::ChildSas;
use crate::crypto::{IkeKeys, IkeRole};
use crate::deadlines::{Timer, Timers};
use crate::event::{DownReason, IkeDetails, IkeId, PeerError};
use crate::output::Context;
use crate::time::Instant;

/// Maximum time for the peer to delete an SA that it should delete: the old CHILD_SA of its rekey,
/// or the redundant one of two IKE SAs. After this time we delete the SA. This time is longer than
/// all retransmissions take.
const PEER_DELETE_TIMEOUT: Duration = Duration::from_secs(15);

/// The state in the life of an IKE SA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lifecycle {
    /// The IKE SA is in use.
    Active,
    /// Another IKE SA has replaced this one, which waits to be deleted.
    Superseded(IkeId),
    /// The IKE SA was reported down, and our DELETE has not been answered yet.
    Deleting,
}

/// What the endpoint must do after a message or deadline of an IKE SA was handled.
#[derive(Debug)]
pub(crate) enum SaStep {
    /// Nothing has to be done.
    Continue,
    /// Create a new IKE SA by IKE_SA_INIT and IKE_AUTH to replace this one.
    Reauthenticate,
    /// The same, but only because a new IKE SA may create the first child.
    BringFirstChild,
    /// Report the IKE SA down immediately and send DELETE. It must not be used any longer.
    End(DownReason, PeerError),
    /// Either end rekeyed the IKE SA.
    Rekeyed {
        /// The new IKE SA.
        new: Box<IkeSa>,
        /// The IKE SA that the peer's simultaneous rekey created, if `new` also replaces it (RFC
        /// 7296 2.8.2).
        redundant: Option<IkeId>,
    },
    /// Send DELETE for the IKE SA that our rekey created, which is redundant.
    Redundant(Box<IkeSa>),
    /// Release the IKE SA. Both ends have deleted it, or it has failed.
    Closed(CloseReason),
}

/// The reason why an IKE SA has ended.
#[derive(Debug)]
pub(crate) enum CloseReason {
    /// The peer sent DELETE.
    ByPeer,
    /// The peer has confirmed our DELETE.
    ByUs,
    /// The peer did not respond.
    Timeout,
    /// A protocol error ended the IKE SA.
    Failed(PeerError),
}

/// An established IKE SA.
#[derive(Debug)]
pub(crate) struct IkeSa {
    pub(super) channel: Channel,
    pub(super) profile: Arc<Profile>,
    pub(crate) negotiated: Negotiated,
    pub(super) lifecycle: Lifecycle,
    /// Whether we delete this superseded IKE SA as soon as the IKE SA that we initiated in its
    /// place has all the CHILD_SAs.
    pub(super) delete_when_served: bool,
    pub(super) outstanding: Option<OutstandingRequest>,
    /// Requests to send when the window is free. No request is queued twice, so there are only a
    /// few for each CHILD_SA and each purpose.
    pub(super) queue: VecDeque<QueuedRequest>,
    initiation: Initiation,
    established: Instant,
    pub(super) lifetime: Lifetime,
    /// When to rekey the IKE SA. `None` if the peer refuses rekeys, or if a new IKE SA will replace
    /// this one.
    pub(super) rekey_at: Option<Instant>,
    /// How often the peer has answered our rekey with TEMPORARY_FAILURE.
    pub(super) temporary_failures: u8,
    /// How often CHILD_SAs were rekeyed because their ESP had stopped.
    pub(super) replacements_of_stopped: u8,
    /// Whether we know that the peer has this IKE SA too. As the responder, we know it after the
    /// peer's first message after IKE_AUTH.
    confirmed: bool,
    /// Whether [`PeerSilent`](crate::Event::PeerSilent) was reported after the last
    /// [`PeerHeard`](crate::Event::PeerHeard).
    pub(super) silent: bool,
    /// When to request the CHILD_SAs that are missing.
    pub(super) missing: MissingChildren,
    pub(super) outcome: Outcome,
    pub(super) timers: Timers,
    /// The MOBIKE state. `None` if one of the ends does not support MOBIKE.
    pub(super) mobike: Option<Mobike>,
    /// What is known about the peer as an agent of ours. `None`: it did not announce that it is
    /// one.
    pub(super) agent: Option<AgentPeer>,
}

impl IkeSa {
    /// Creates an IKE SA that was just established. It stays in its box, since moving it would copy
    /// a kilobyte each time.
    pub(crate) fn new(
        mut channel: Channel,
        profile: Arc<Profile>,
        negotiated: Negotiated,
        initiation: Initiation,
        cx: &mut Context<'_>,
    ) -> Box<Self> {
        channel.forget_auth_keys();
        let certificate = negotiated.certificate.as_ref().map(|shown| shown.not_after);
        let lifetime = Lifetime::begin(&profile, certificate, cx.now);
        let mut timers = Timers::default();
        timers.set(Timer::Reauthenticate, lifetime.reauthentication(&profile, initiation, cx));
        timers.set(Timer::Expire, lifetime.check_at(&profile, cx));
        let rekey_at = Some(lifetime.rekey(&profile, initiation, cx));
        let mut sa = Box::new(Self {
            confirmed: channel.role == IkeRole::Initiator,
            silent: false,
            channel,
            profile,
            negotiated,
            lifecycle: Lifecycle::Active,
            delete_when_served: false,
            outstanding: None,
            queue: VecDeque::new(),
            initiation,
            established: cx.now,
            lifetime,
            rekey_at,
            temporary_failures: 0,
            replacements_of_stopped: 0,
            missing: MissingChildren::default(),
            outcome: Outcome::default(),
            timers,
            mobike: None,
            agent: None,
        });
        sa.set_timers(cx.now);
        sa
    }

    /// Sets the MOBIKE state, or `None` if one of the ends does not support MOBIKE.
    pub(super) fn with_mobike(mut self: Box<Self>, mobike: Option<Mobike>) -> Box<Self> {
        self.negotiated.mobike = mobike.is_some();
        self.channel.following = match &mobike {
            None => Following::Answer,
            Some(_) if self.initiation.by_us() => Following::OwnUpdate,
            Some(_) => Following::Update,
        };
        self.mobike = mobike;
        self.channel.peer_may_move = self.peer_may_move();
        self
    }

    // A responder that can begin an IKE SA itself, also one that does so only on demand, does not
    // wait long: its next packet would wait as long.
    //= RFC 4555 3.11 SHOULD 1: the responder waits long
    fn peer_may_move(&self) -> bool {
        let config = &self.profile.config;
        self.mobike.is_some() && !self.initiation.by_us() && !config.initiate && config.remotes.is_empty()
    }

    /// Returns the SPIs of both ends.
    pub(crate) fn ike(&self) -> IkeId {
        self.channel.ike
    }

    /// Returns our SPI, by which the endpoint finds the IKE SA.
    pub(crate) fn spi(&self) -> u64 {
        self.channel.local_spi()
    }

    /// Returns whether we are the initiator of the IKE SA.
    pub(crate) fn initiator(&self) -> bool {
        self.channel.role == IkeRole::Initiator
    }

    /// Returns the peer's configuration that this IKE SA uses.
    pub(crate) fn profile(&self) -> &Arc<Profile> {
        &self.profile
    }

    /// Replaces the peer's configuration.
    pub(crate) fn set_profile(&mut self, profile: Arc<Profile>, cx: &mut Context<'_>) {
        let lifetimes = |profile: &Profile| {
            let timing = profile.config.timing;
            (timing.ike_lifetime, timing.authentication_lifetime)
        };
        if lifetimes(&self.profile) != lifetimes(&profile) {
            self.lifetime.change(&profile, cx.now);
            let renewal = self.lifetime.reauthentication(&profile, self.initiation, cx).max(cx.now);
            self.timers.set(Timer::Reauthenticate, renewal);
            self.timers.set(Timer::Expire, self.lifetime.check_at(&profile, cx));
            let rekey = self.lifetime.rekey(&profile, self.initiation, cx).max(cx.now);
            self.rekey_at = self.rekey_at.map(|_| rekey);
        } else if self.profile.auth.certificate_grace() != profile.auth.certificate_grace() {
            let renewal = self.lifetime.reauthentication(&profile, self.initiation, cx).max(cx.now);
            self.timers.set(Timer::Reauthenticate, renewal);
            self.timers.set(Timer::Expire, self.lifetime.check_at(&profile, cx));
        }
        let profile = profile.with_internal_addresses(&self.negotiated.internal_addresses);
        if self.profile.config.child != profile.config.child {
            self.negotiated.has_created_first_child = false;
            self.missing.first_child_changed();
        }
        self.profile = profile;
        self.channel.profile = Some(Arc::clone(&self.profile));
        self.channel.peer_may_move = self.peer_may_move();
        self.set_timers(cx.now);
    }

    /// Returns whether this IKE SA has a CHILD_SA with traffic that is no longer configured.
    pub(crate) fn exceeds_configuration(&self, child_sas: &ChildSas) -> bool {
        child_sas.children_of(self.spi()).any(|(_, child)| !self.profile.config.allows(&child.sa))
    }

    /// Requires the peer to authenticate again soon, since the credentials that authenticated it,
    /// or the traffic of its CHILD_SAs, are no longer configured. If the peer does not, this IKE SA
    /// ends.
    pub(crate) fn require_reauthentication(&mut self, cx: &mut Context<'_>) {
        let renewal = self.lifetime.configuration_changed(cx);
        self.timers.set(Timer::Reauthenticate, renewal);
        self.timers.set(Timer::Expire, self.lifetime.check_at(&self.profile, cx));
    }

    /// Makes the IKE SA that replaces this one in a rekey (RFC 7296 2.18). The peer has not
    /// authenticated again, so the lifetime of its authentication continues. In comparisons with
    /// other IKE SAs of the peer, the new IKE SA counts as old as this one. `role` is our role in
    /// the rekey.
    pub(super) fn successor(&self, keys: IkeKeys, ike: IkeId, role: IkeRole, cx: &mut Context<'_>) -> Box<Self> {
        //= RFC 7296 2.18 MUST 4: message IDs begin at 0 again
        let channel = Channel::new(
            keys,
            ike,
            role,
            self.channel.path,
            self.channel.fragments(),
            Some(Arc::clone(&self.profile)),
            cx.now,
        );
        let new = Self::new(channel, Arc::clone(&self.profile), self.negotiated.clone(), self.initiation, cx);
        // `seen_as` is a hash of our address that covers the SPIs of this IKE SA, so it is not
        // valid for the new one.
        let mut new = new.with_mobike(self.mobike.clone().map(|mobike| Mobike { seen_as: None, ..mobike }));
        new.agent = self.agent;
        new.outcome.take_failed_children(&self.outcome);
        new.channel.unchecked.clone_from(&self.channel.unchecked);
        if !mutation!("authentication_prolonged_by_rekey") {
            new.lifetime = self.lifetime.rekeyed(&self.profile, cx.now);
            new.timers.set(Timer::Reauthenticate, self.reauthenticate_at().max(cx.now));
            new.timers.set(Timer::Expire, new.lifetime.check_at(&new.profile, cx));
        }
        new
    }

    /// Copies the addresses of another IKE SA, whose CHILD_SAs move to this one.
    pub(crate) fn take_addresses_of(&mut self, other: &Self) {
        if self.mobike.is_some() && other.mobike.is_some() {
            self.mobike = other.mobike.clone().map(|mobike| Mobike { seen_as: None, ..mobike });
            self.channel.path = other.channel.path;
            self.channel.unchecked.clone_from(&other.channel.unchecked);
        }
    }

    /// Returns the result of the negotiation, for display.
    pub(crate) fn details(&self) -> IkeDetails {
        self.negotiated.details(self.channel.keys().suite)
    }

    /// Returns our address and the peer's.
    pub(crate) fn addresses(&self) -> (SocketAddr, SocketAddr) {
        (self.channel.path.local, self.channel.path.remote)
    }

    /// Returns whether ESP or IKE messages of this IKE SA are sent from this address of ours.
    pub(crate) fn sends_from(&self, local: IpAddr) -> bool {
        self.channel.sends_from(local)
    }

    /// Returns our address and the peer's for IKE messages. They differ from [`Self::addresses`]
    /// while a new path is checked (RFC 4555 3.7).
    pub(crate) fn message_addresses(&self) -> (SocketAddr, SocketAddr) {
        self.channel.message_addresses()
    }

    /// Returns which end initiated the IKE SA, and when.
    pub(crate) fn initiation(&self) -> Initiation {
        self.initiation
    }

    /// Returns the time at which the IKE SA was established.
    pub(crate) fn established(&self) -> Instant {
        self.established
    }

    /// Returns the time at which the peer was authenticated, in this IKE SA or in one from which it
    /// was rekeyed.
    pub(crate) fn authenticated(&self) -> Instant {
        self.lifetime.authenticated()
    }

    /// Returns the time at which the IKE SA requests the next missing CHILD_SA.
    pub(crate) fn create_child_at(&self) -> Option<Instant> {
        self.missing.next()
    }

    /// Returns the time at which the IKE SA will be rekeyed, if a rekey is scheduled.
    pub(crate) fn rekey_at(&self) -> Option<Instant> {
        self.rekey_at
    }

    /// Returns the time at which the last authentic message arrived, or the last ESP if the owner
    /// reports ESP.
    pub(crate) fn last_received(&self) -> Instant {
        self.channel.signs.last()
    }

    /// Returns whether only patience keeps the IKE SA, since the peer has been silent for a while.
    pub(crate) fn needs_patience(&self, now: Instant) -> bool {
        self.channel.needs_patience(now)
    }

    /// Returns whether nothing is known to have arrived after `at`.
    pub(crate) fn is_silent_since(&self, at: Instant) -> bool {
        self.channel.signs.are_before(at)
    }

    /// Records that ESP of one of the CHILD_SAs was received.
    pub(crate) fn esp_received(&mut self, now: Instant) {
        self.channel.signs.esp_received(now);
        self.set_timers(now);
    }

    /// Records that ESP of one of the CHILD_SAs was sent. ESP in UDP also keeps the mapping of a
    /// NAT in front of us alive (RFC 3948 4).
    pub(crate) fn esp_sent(&mut self, now: Instant) {
        self.channel.signs.esp_sent(now);
        if self.channel.path.encapsulated() {
            self.channel.last_sent = now;
        }
        self.set_timers(now);
    }

    /// Returns the time at which IKE_SA_INIT and IKE_AUTH will create a new IKE SA in place of this
    /// one.
    pub(crate) fn reauthenticate_at(&self) -> Instant {
        self.timers.get(Timer::Reauthenticate).unwrap_or(self.established)
    }

    /// Returns whether we know that the peer has this IKE SA too.
    pub(crate) fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// Returns whether the peer may still wait for our IKE_AUTH response, so that it would treat an
    /// IKE SA that we initiate as a simultaneous initiation. On an idle IKE SA the peer may send
    /// nothing that confirms the response, but it does not wait longer than it repeats a request.
    /// ESP confirms it too: the peer has the CHILD_SA.
    pub(crate) fn may_await_response(&self, now: Instant) -> bool {
        !self.confirmed
            && !self.channel.signs.has_esp_arrived()
            && now < self.established + self.channel.timing().longest_exchange()
    }

    /// Returns the state in the life of the IKE SA.
    pub(crate) fn lifecycle(&self) -> Lifecycle {
        self.lifecycle
    }

    pub(super) fn confirm(&mut self, child_sas: &mut ChildSas, cx: &mut Context<'_>) {
        if std::mem::replace(&mut self.confirmed, true) || self.lifecycle != Lifecycle::Active {
            return;
        }
        for id in child_sas.newest_of(self.spi()) {
            //= RFC 7296 2.8 REQUIRED 11: the responder sends on the old SA
            child_sas.switch_to(id, cx.out);
        }
    }

    /// Returns the time at which to call [`Self::handle_timeout`].
    pub(crate) fn next_deadline(&self, child_sas: Option<&ChildSas>) -> Option<Instant> {
        let active = self.lifecycle == Lifecycle::Active;
        let children = child_sas.filter(|_| active).into_iter().flat_map(|child_sas| child_sas.children_of(self.spi()));
        let child = children.map(|(_, child)| child.rekey.map_or(child.end, |rekey| rekey.min(child.end))).min();
        let planned =
            [self.missing.next(), self.missing.new_ike_sa_at(), self.rekey_at].map(|at| at.filter(|_| active));
        planned.into_iter().chain([self.timers.next(), child]).flatten().min()
    }

    /// Handles the end of the IKE SA that superseded this one. `lifecycle` is the last state of
    /// that IKE SA. If it was superseded too, its successor now supersedes this IKE SA. Otherwise
    /// this IKE SA becomes active again, unless it is already being deleted, and tells the peer our
    /// address if that has changed in the meantime.
    pub(crate) fn reinstate(
        &mut self,
        gone: IkeId,
        lifecycle: Lifecycle,
        child_sas: &mut ChildSas,
        cx: &mut Context<'_>,
    ) {
        let deleting = matches!(self.outstanding, Some(OutstandingRequest::DeleteIke))
            || self.queue.contains(&QueuedRequest::DeleteIke);
        if self.lifecycle != Lifecycle::Superseded(gone) {
            return;
        }
        if let Lifecycle::Superseded(by) = lifecycle {
            self.lifecycle = Lifecycle::Superseded(by);
        } else if !deleting {
            self.lifecycle = Lifecycle::Active;
            self.delete_when_served = false;
            self.channel.signs.reinstated();
            self.timers.stop(Timer::Cleanup);
            self.tell_missed_move(child_sas, cx);
        }
    }

    /// Records that the IKE SA from the peer's simultaneous rekey has ended. Returns false if there
    /// was no such rekey.
    pub(crate) fn end_collision(&mut self, gone: IkeId) -> bool {
        match &mut self.outstanding {
            Some(OutstandingRequest::RekeyIke(request)) => {
                request.collision.take_if(|collision| collision.peers_sa == gone).is_some()
            }
            _ => false,
        }
    }

    /// Releases the reserved SPIs. Returns the last response, so that it can be sent again if it
    /// was lost.
    pub(crate) fn release(mut self, cx: &mut Context<'_>) -> Option<LastResponse> {
        self.release_queue(cx);
        if let Some(outstanding) = self.outstanding.take() {
            outstanding.release(&self.profile, cx);
        }
        self.channel.into_last_response()
    }

    /// Sets a deadline for an SA that the peer should delete. If the peer does not delete it, we
    /// do.
    pub(super) fn schedule_cleanup(&mut self, now: Instant) {
        self.timers.set(Timer::Cleanup, now + PEER_DELETE_TIMEOUT);
    }

    pub(super) fn set_timers(&mut self, now: Instant) {
        let timing = self.channel.timing();
        if self.channel.path.nat_found {
            // The path may have changed since the last message.
            self.channel.signs.limit_idle(timing.idle_liveness);
        }
        match self.channel.retransmit_at() {
            Some(at) => {
                self.timers.set(Timer::Retransmit, at);
                self.timers.stop(Timer::Liveness);
            }
            None => {
                self.timers.stop(Timer::Retransmit);
                let factor = if mutation!("liveness_never_checked") { 10_000 } else { 1 };
                let never = timing.liveness.saturating_mul(factor - 1);
                let check_at = self.channel.signs.check_at(&timing) + never;
                self.timers.set(Timer::Liveness, check_at.max(now));
            }
        }
        //= RFC 7296 2.23 SHOULD 11: keepalives behind a NAT
        match self.channel.keepalive_at() {
            Some(at) => self.timers.set(Timer::Keepalive, at.max(now)),
            None => self.timers.stop(Timer::Keepalive),
        }
    }

    pub(super) fn is_closing(&self) -> bool {
        self.lifecycle != Lifecycle::Active || self.queue.contains(&QueuedRequest::DeleteIke)
    }
}

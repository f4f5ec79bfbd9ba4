//! An IKE SA after IKE_AUTH: hands messages to the exchanges, begins what is queued, watches the
//! clock.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::Profile;
use super::channel::{Channel, Incoming, LastResponse};
use super::exchange::{self, PendingRequest, Task};
use super::failure::{self, INFORMATIONAL};
use crate::crypto::Role;
use crate::event::{ChildId, Event, IkeDetails, IkeId, PeerError};
use crate::output::Context;
use crate::time::Instant;
use crate::timer::{Timer, Timers};
use crate::tunnel::Tunnel;
use crate::wire::{ExchangeType, Header, InvalidMessage, Payloads};

/// How long the peer may take to delete what it should (the old CHILD_SA of its rekey, the redundant of
/// two IKE SAs) before we do; longer than any retransmission.
const PEER_DELETE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long an IKE SA may be without a CHILD_SA.
const CHILDLESS_TIMEOUT: Duration = Duration::from_secs(60);
/// Wait before a failed renewal is begun again.
const REAUTHENTICATION_RETRY: Duration = Duration::from_secs(60);

/// Who began an IKE SA, and when: when its IKE_SA_INIT was sent, or arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Initiation {
    /// We are its initiator.
    ByUs(Instant),
    /// We are its responder.
    ByPeer(Instant),
}

/// What an IKE SA is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lifecycle {
    /// It is the one of its peer.
    Active,
    /// Another has taken its place, and it waits to be deleted.
    Superseded(IkeId),
    /// It was reported down; only the peer is still being told.
    Deleting,
}

/// What became of an IKE SA by a step.
#[derive(Debug)]
pub(crate) enum SaStep {
    /// It goes on.
    Continue,
    /// It has become old: a new one is to be made.
    Reauthenticate,
    /// The peer has rekeyed it: this is the new one; the old waits to be deleted.
    Rekeyed(Box<IkeSa>),
    /// It is over.
    Closed(CloseReason),
}

/// Why an IKE SA is over.
#[derive(Debug)]
pub(crate) enum CloseReason {
    /// The peer deleted it.
    ByPeer,
    /// We did.
    ByUs,
    /// The peer does not answer.
    Timeout,
    /// Something broke it.
    Failed(PeerError),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct IkeSa {
    pub(super) channel: Channel,
    pub(super) profile: Arc<Profile>,
    pub(super) details: IkeDetails,
    pub(super) lifecycle: Lifecycle,
    pub(super) pending: Option<PendingRequest>,
    pub(super) queue: VecDeque<Task>,
    initiation: Initiation,
    established: Instant,
    /// The peer is known to have this IKE SA too: as responder we know by its first message after
    /// IKE_AUTH.
    confirmed: bool,
    /// When a CHILD_SA is to be asked for, there being none.
    pub(super) create_child_at: Option<Instant>,
    pub(super) timers: Timers,
}

impl IkeSa {
    /// An IKE SA that was just established.
    pub(crate) fn new(
        channel: Channel,
        profile: Arc<Profile>,
        details: IkeDetails,
        initiation: Initiation,
        cx: &mut Context<'_>,
    ) -> Self {
        let lifetime = profile.config.timing.ike_lifetime;
        // Its initiator makes it anew; the responder only if that does not happen.
        let renew = match initiation {
            Initiation::ByUs(_) => cx.jittered(lifetime),
            Initiation::ByPeer(_) => lifetime.saturating_add(lifetime / 4),
        };
        let mut timers = Timers::default();
        timers.set(Timer::Reauthenticate, cx.now + renew);
        let mut sa = Self {
            confirmed: channel.role == Role::Initiator,
            channel,
            profile,
            details,
            lifecycle: Lifecycle::Active,
            pending: None,
            queue: VecDeque::new(),
            initiation,
            established: cx.now,
            create_child_at: None,
            timers,
        };
        sa.set_timers(cx.now);
        sa
    }

    /// Its SPIs.
    pub(crate) fn ike(&self) -> IkeId {
        self.channel.ike
    }

    /// Our SPI.
    pub(crate) fn spi(&self) -> u64 {
        self.channel.local_spi()
    }

    /// Our end of it.
    pub(crate) fn initiator(&self) -> bool {
        self.channel.role == Role::Initiator
    }

    /// The peer's configuration that it goes by.
    pub(crate) fn profile(&self) -> &Arc<Profile> {
        &self.profile
    }

    /// Goes by this configuration of the peer from now on.
    pub(crate) fn set_profile(&mut self, profile: Arc<Profile>, now: Instant) {
        self.channel.timing = profile.config.timing;
        self.profile = profile;
        self.set_timers(now);
    }

    /// For people.
    pub(crate) fn details(&self) -> &IkeDetails {
        &self.details
    }

    /// Our address and the peer's.
    pub(crate) fn addresses(&self) -> (SocketAddr, SocketAddr) {
        (self.channel.path.local, self.channel.path.remote)
    }

    /// Who began it and when.
    pub(crate) fn initiation(&self) -> Initiation {
        self.initiation
    }

    /// Since when it is established here.
    pub(crate) fn established(&self) -> Instant {
        self.established
    }

    /// When an authentic message came last.
    pub(crate) fn last_received(&self) -> Instant {
        self.channel.last_received
    }

    /// When it is made anew.
    pub(crate) fn reauthenticate_at(&self) -> Instant {
        self.timers.get(Timer::Reauthenticate).unwrap_or(self.established)
    }

    /// The peer is known to have it too.
    pub(crate) fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// What it is for.
    pub(crate) fn lifecycle(&self) -> Lifecycle {
        self.lifecycle
    }

    /// Takes a datagram (without marker) for our SPI.
    pub(crate) fn handle(
        &mut self,
        header: &Header,
        datagram: &[u8],
        local: SocketAddr,
        remote: SocketAddr,
        tunnel: &mut Tunnel,
        cx: &mut Context<'_>,
    ) -> SaStep {
        let incoming = self.channel.receive(header, datagram, local, remote, cx);
        if matches!(incoming, Incoming::Nothing) {
            return SaStep::Continue;
        }
        self.confirm(tunnel, cx);
        if self.channel.take_peer_moved() {
            self.report_move(tunnel, cx);
        }
        let step = match incoming {
            Incoming::Nothing => SaStep::Continue,
            Incoming::Request(exchange, Ok(payloads)) => self.answer(exchange, &payloads, tunnel, cx),
            Incoming::Request(exchange, Err(error)) => self.answer_invalid(exchange, error, cx),
            Incoming::Response(exchange, payloads) => self.finish(exchange, payloads, tunnel, cx),
        };
        self.start_queued_tasks(tunnel, cx);
        step
    }

    /// Does what is due.
    pub(crate) fn handle_timeout(&mut self, tunnel: &mut Tunnel, cx: &mut Context<'_>) -> SaStep {
        let mut step = SaStep::Continue;
        // start_queued_tasks() sets the timers anew.
        while let Some(timer) = self.timers.expired(cx.now) {
            match timer {
                Timer::Retransmit => {
                    if self.channel.retransmit_at().is_some_and(|at| at <= cx.now)
                        && self.channel.retransmit(cx).is_none()
                    {
                        return SaStep::Closed(CloseReason::Timeout);
                    }
                }
                Timer::Liveness => self.probe_if_silent(cx),
                Timer::Keepalive => {
                    if self.channel.last_sent + self.channel.timing.nat_keepalive <= cx.now {
                        self.channel.keepalive(cx);
                    }
                }
                Timer::Reauthenticate => {
                    self.timers.set(Timer::Reauthenticate, cx.now + REAUTHENTICATION_RETRY);
                    if self.lifecycle == Lifecycle::Active {
                        step = SaStep::Reauthenticate;
                    }
                }
                Timer::Cleanup => self.clean_up(tunnel),
            }
        }
        if self.lifecycle == Lifecycle::Active {
            self.rekey_due(tunnel, cx.now);
        }
        self.start_queued_tasks(tunnel, cx);
        step
    }

    /// When to call [`Self::handle_timeout`].
    pub(crate) fn next_deadline(&self, tunnel: Option<&Tunnel>) -> Option<Instant> {
        let active = self.lifecycle == Lifecycle::Active;
        let children = tunnel.filter(|_| active).into_iter().flat_map(|tunnel| tunnel.children_of(self.spi()));
        let rekey = children.filter_map(|(_, child)| child.rekey).min();
        [self.timers.next(), rekey, self.create_child_at.filter(|_| active)].into_iter().flatten().min()
    }

    /// Begins something; at once if the window is free.
    pub(crate) fn begin(&mut self, task: Task, tunnel: &mut Tunnel, cx: &mut Context<'_>) {
        self.enqueue(task);
        self.start_queued_tasks(tunnel, cx);
    }

    /// Another IKE SA has taken the place of this one. If that was begun by us, we delete this one
    /// now; else the peer does, or we do later.
    pub(crate) fn supersede(&mut self, by: IkeId, ours: bool, tunnel: &mut Tunnel, cx: &mut Context<'_>) {
        self.lifecycle = Lifecycle::Superseded(by);
        if ours {
            self.delete(tunnel, cx);
        } else {
            self.timers.set(Timer::Cleanup, cx.now + PEER_DELETE_TIMEOUT);
        }
    }

    /// The IKE SA that was to replace this one is gone: it serves again, unless it is being deleted
    /// already.
    pub(crate) fn reinstate(&mut self, gone: IkeId) {
        let deleting = matches!(self.pending, Some(PendingRequest::DeleteIke)) || self.queue.contains(&Task::DeleteIke);
        if self.lifecycle == Lifecycle::Superseded(gone) && !deleting {
            self.lifecycle = Lifecycle::Active;
            self.timers.stop(Timer::Cleanup);
        }
    }

    /// Sends DELETE for the IKE SA, once the window is free.
    pub(crate) fn delete(&mut self, tunnel: &mut Tunnel, cx: &mut Context<'_>) {
        self.release_queue(cx);
        self.begin(Task::DeleteIke, tunnel, cx);
    }

    /// As [`Self::delete`], after it was reported down.
    pub(crate) fn delete_reported_down(&mut self, tunnel: &mut Tunnel, cx: &mut Context<'_>) {
        self.lifecycle = Lifecycle::Deleting;
        if let Some(pending) = self.pending.replace(PendingRequest::Abandoned) {
            pending.release(&self.profile, cx);
        }
        self.delete(tunnel, cx);
    }

    /// Its CHILD_SA did not come to be. The peer may still ask for one; an initiator asks again
    /// later.
    pub(crate) fn schedule_child_creation(&mut self, cx: &mut Context<'_>) {
        if self.profile.config.initiate {
            self.create_child_at = Some(cx.now + self.profile.config.timing.retry_max);
        } else {
            self.timers.set(Timer::Cleanup, cx.now + CHILDLESS_TIMEOUT);
        }
    }

    /// Speaks from another address of ours from now on. True: the peer follows, since it believes
    /// in a NAT before us, and is shown where by an authentic message (RFC 7296 2.23). False: what
    /// it sends goes on to the old address, until a new IKE SA is made.
    pub(crate) fn change_local_address(&mut self, local: IpAddr, tunnel: &mut Tunnel, cx: &mut Context<'_>) -> bool {
        if self.channel.path.remote.is_ipv4() != local.is_ipv4() {
            return false;
        }
        self.channel.path.local.set_ip(local);
        self.report_move(tunnel, cx);
        if self.channel.busy() {
            self.channel.resend(cx);
            self.set_timers(cx.now);
        } else if self.channel.path.nat_local {
            self.begin(Task::Liveness, tunnel, cx);
        }
        self.channel.path.nat_local
    }

    /// Leaves nothing reserved behind. What is given is the last answer, to be repeated if it was
    /// lost.
    pub(crate) fn release(mut self, cx: &mut Context<'_>) -> Option<LastResponse> {
        self.release_queue(cx);
        if let Some(pending) = self.pending.take() {
            pending.release(&self.profile, cx);
        }
        self.channel.into_last_response()
    }

    fn release_queue(&mut self, cx: &mut Context<'_>) {
        for task in std::mem::take(&mut self.queue) {
            task.release(&self.profile, cx);
        }
    }

    fn confirm(&mut self, tunnel: &mut Tunnel, cx: &mut Context<'_>) {
        if std::mem::replace(&mut self.confirmed, true) || self.lifecycle != Lifecycle::Active {
            return;
        }
        if let Some((id, _)) = tunnel
            .children_of(self.spi())
            .filter(|(_, child)| !child.redundant)
            .max_by_key(|(_, child)| child.established)
        {
            tunnel.switch_to(id, cx.out);
        }
    }

    fn report_move(&self, tunnel: &Tunnel, cx: &mut Context<'_>) {
        let (local, remote) = self.addresses();
        let children = tunnel.ids_with_lingering(self.spi());
        if self.lifecycle != Lifecycle::Deleting {
            cx.out.event(Event::PeerMoved { peer: self.profile.config.name.clone(), children, local, remote });
        }
    }

    fn answer(
        &mut self,
        exchange: ExchangeType,
        payloads: &Payloads,
        tunnel: &mut Tunnel,
        cx: &mut Context<'_>,
    ) -> SaStep {
        match exchange {
            ExchangeType::Informational => exchange::answer_informational(self, payloads, tunnel, cx),
            ExchangeType::CreateChildSa => exchange::answer_create_child_sa(self, payloads, tunnel, cx),
            // IKE_AUTH is over, and of other exchanges we said nothing: whoever sends them gets no
            // answer.
            _ => SaStep::Continue,
        }
    }

    /// RFC 7296 2.21.3: INVALID_SYNTAX in an authentic message is fatal for both ends; an unknown
    /// critical payload is not.
    fn answer_invalid(&mut self, exchange: ExchangeType, error: InvalidMessage, cx: &mut Context<'_>) -> SaStep {
        let payloads = Payloads::from(vec![crate::wire::Payload::Notify(error.notify())]);
        self.channel.respond(exchange, &payloads, cx);
        match error {
            InvalidMessage::UnsupportedCriticalPayload(_) => SaStep::Continue,
            _ => SaStep::Closed(CloseReason::Failed(failure::invalid(exchange_name(exchange), error))),
        }
    }

    fn finish(
        &mut self,
        exchange: ExchangeType,
        payloads: Result<Payloads, InvalidMessage>,
        tunnel: &mut Tunnel,
        cx: &mut Context<'_>,
    ) -> SaStep {
        let Some(pending) = self.pending.take() else {
            return SaStep::Continue;
        };
        match payloads {
            _ if matches!(pending, PendingRequest::Abandoned) => SaStep::Continue,
            Ok(payloads) if exchange == pending.exchange() => pending.finish(self, &payloads, tunnel, cx),
            Ok(_) => {
                let detail = format!("expected an answer to {}, got one to {exchange}", pending.exchange());
                pending.release(&self.profile, cx);
                let kind = crate::event::PeerErrorKind::Protocol;
                SaStep::Closed(CloseReason::Failed(PeerError::new(INFORMATIONAL, kind, detail)))
            }
            Err(error) => {
                pending.release(&self.profile, cx);
                SaStep::Closed(CloseReason::Failed(failure::invalid(exchange_name(exchange), error)))
            }
        }
    }

    pub(super) fn enqueue(&mut self, task: Task) {
        if !self.queue.contains(&task) {
            self.queue.push_back(task);
        }
    }

    /// Takes what concerns a CHILD_SA off the queue.
    pub(super) fn drop_tasks_of(&mut self, id: ChildId) {
        self.queue.retain(|task| !matches!(task, Task::RekeyChild(child) | Task::DeleteChild(child) if *child == id));
    }

    /// Whether we are about to delete a CHILD_SA.
    pub(super) fn is_deleting(&self, id: ChildId) -> bool {
        matches!(self.pending, Some(PendingRequest::DeleteChild(child)) if child == id)
            || self.queue.contains(&Task::DeleteChild(id))
    }

    /// The peer should delete something soon; if it does not, we do.
    pub(super) fn schedule_cleanup(&mut self, now: Instant) {
        self.timers.set(Timer::Cleanup, now + PEER_DELETE_TIMEOUT);
    }

    fn clean_up(&mut self, tunnel: &mut Tunnel) {
        let best = tunnel
            .children_of(self.spi())
            .max_by_key(|(_, child)| (!child.redundant, child.established))
            .map(|(id, _)| id);
        let Some(best) = best.filter(|_| self.lifecycle == Lifecycle::Active) else {
            self.enqueue(Task::DeleteIke);
            return;
        };
        for id in tunnel.ids_of(self.spi()).into_iter().filter(|id| *id != best) {
            self.enqueue(Task::DeleteChild(id));
        }
    }

    fn rekey_due(&mut self, tunnel: &mut Tunnel, now: Instant) {
        for id in tunnel.ids_of(self.spi()) {
            if let Some(child) = tunnel.live_mut(id)
                && child.rekey.is_some_and(|at| at <= now)
            {
                child.rekey = None;
                self.enqueue(Task::RekeyChild(id));
            }
        }
        if self.create_child_at.is_some_and(|at| at <= now) {
            self.create_child_at = None;
            self.enqueue(Task::CreateChild);
        }
    }

    fn probe_if_silent(&mut self, cx: &Context<'_>) {
        let silent = self.channel.last_received + self.channel.timing.liveness <= cx.now;
        if silent && !self.channel.busy() && self.queue.is_empty() {
            self.enqueue(Task::Liveness);
        }
    }

    /// Begins what is queued, if the window is free.
    fn start_queued_tasks(&mut self, tunnel: &mut Tunnel, cx: &mut Context<'_>) {
        while !self.channel.busy() {
            let Some(task) = self.queue.pop_front() else {
                break;
            };
            self.pending = task.begin(self, tunnel, cx);
        }
        self.set_timers(cx.now);
    }

    fn set_timers(&mut self, now: Instant) {
        let timing = self.channel.timing;
        match self.channel.retransmit_at() {
            Some(at) => {
                self.timers.set(Timer::Retransmit, at);
                self.timers.stop(Timer::Liveness);
            }
            None => {
                self.timers.stop(Timer::Retransmit);
                let silent = self.channel.last_received + timing.liveness;
                self.timers.set(Timer::Liveness, silent.max(now));
            }
        }
        if self.channel.path.nat_local {
            self.timers.set(Timer::Keepalive, (self.channel.last_sent + timing.nat_keepalive).max(now));
        }
    }
}

fn exchange_name(exchange: ExchangeType) -> &'static str {
    match exchange {
        ExchangeType::CreateChildSa => failure::CREATE_CHILD_SA,
        ExchangeType::IkeAuth => failure::IKE_AUTH,
        _ => INFORMATIONAL,
    }
}

//! Drives an established IKE SA: passes messages to the exchanges, sends queued requests, and
//! handles deadlines.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::superseded::Survivor;
use super::{create_child_response, informational, request};
use crate::child_sas::ChildSas;
use crate::childless::Childless;
use crate::deadlines::Timer;
use crate::event::{DownReason, Event, PeerError, PeerErrorKind};
use crate::output::Context;
use crate::purpose::Purpose;
use crate::sa::HeldDatagram;
use crate::sa::channel::Incoming;
use crate::sa::failure::{self, INFORMATIONAL};
use crate::sa::ike_sa::{CloseReason, IkeSa, Lifecycle, SaStep};
use crate::sa::missing_children::CHILDLESS_TIMEOUT;
use crate::sa::own_requests::{CreateChildRequest, OutstandingRequest, QueuedRequest};
use crate::sa::path::Path;
use crate::time::Instant;
use crate::wire::{ExchangeType, Header, InvalidMessage, Notify, NotifyType, Payload, Payloads};

/// Delay before a failed reauthentication is tried again.
const REAUTHENTICATION_RETRY: Duration = Duration::from_secs(60);
/// Delay before a refused rekey of an IKE SA that only the peer can replace is tried again.
const REKEY_RETRY: Duration = Duration::from_secs(60);
/// Minimum delay before another check of an IKE SA whose lifetime has not ended yet.
const EXPIRY_CHECK: Duration = Duration::from_secs(1);

impl IkeSa {
    /// Handles a datagram (without the non-ESP marker) for our SPI.
    pub(crate) fn handle(
        &mut self,
        header: &Header,
        datagram: &[u8],
        local: SocketAddr,
        remote: SocketAddr,
        child_sas: &mut ChildSas,
        cx: &mut Context<'_>,
    ) -> SaStep {
        let incoming = self.channel.receive(header, datagram, local, remote, cx);
        if matches!(incoming, Incoming::Nothing) {
            return SaStep::Continue;
        }
        self.confirm(child_sas, cx);
        if std::mem::take(&mut self.silent) {
            cx.out.event(Event::PeerHeard { peer: self.profile.config.name.clone() });
        }
        if self.channel.take_peer_moved() {
            self.report_move(child_sas, cx);
        }
        let step = match incoming {
            Incoming::Nothing => SaStep::Continue,
            Incoming::Request(exchange, Ok(payloads)) => self.answer(exchange, &payloads, child_sas, cx),
            Incoming::Request(exchange, Err(error)) => self.answer_invalid(exchange, error, cx),
            Incoming::Response(exchange, payloads) => self.finish(exchange, payloads, child_sas, cx),
        };
        let step = match step {
            //= RFC 7296 2.2 MUST 2: message IDs end with the IKE SA
            SaStep::Continue if self.lifecycle == Lifecycle::Active && self.channel.message_ids_are_used_up() => {
                let detail = "the message IDs of the IKE SA are used up; a new one begins again";
                SaStep::End(
                    DownReason::Expired,
                    PeerError::new(INFORMATIONAL, PeerErrorKind::Expired, detail.to_owned()),
                )
            }
            step => step,
        };
        // Nothing more is sent on an IKE SA that has ended. If it was rekeyed, the new IKE SA takes
        // over its queue first.
        if !matches!(step, SaStep::Closed(_) | SaStep::Rekeyed { .. }) {
            if let Some((local, remote)) = self.channel.take_answered_elsewhere() {
                self.move_to(local, remote, cx);
            }
            self.check_given_up(cx);
            self.probe_candidate(cx);
            self.send_queued(child_sas, cx);
        }
        step
    }

    /// Takes a datagram of the peer's next request that arrived before the last request was
    /// answered. It goes to [`Self::handle`].
    pub(crate) fn take_held(&mut self) -> Option<HeldDatagram> {
        self.channel.take_held()
    }

    /// Handles the deadlines that have passed.
    pub(crate) fn handle_timeout(&mut self, child_sas: &mut ChildSas, cx: &mut Context<'_>) -> SaStep {
        let mut step = SaStep::Continue;
        // `send_queued` sets the timers again.
        while let Some(timer) = self.timers.expired(cx.now) {
            match timer {
                Timer::Retransmit => {
                    if self.channel.retransmit_at().is_some_and(|at| at <= cx.now)
                        && self.channel.retransmit(self.is_patient(child_sas), cx).is_none()
                    {
                        //= RFC 7296 2.1 REQUIRED 7: an unanswered IKE SA goes
                        return SaStep::Closed(CloseReason::Timeout);
                    }
                    self.report_silence(cx);
                    if self.profile.config.initiate && self.needs_patience(cx.now) {
                        step = SaStep::Reauthenticate;
                    }
                    self.try_other_addresses(cx);
                }
                Timer::Liveness => self.probe_if_silent(cx),
                Timer::Keepalive => {
                    if self.channel.keepalive_at().is_some_and(|at| at <= cx.now) {
                        self.channel.keepalive(cx);
                    }
                }
                Timer::Reauthenticate => {
                    self.timers.set(Timer::Reauthenticate, cx.now + REAUTHENTICATION_RETRY);
                    if self.lifecycle == Lifecycle::Active {
                        step = SaStep::Reauthenticate;
                    }
                }
                Timer::Expire => {
                    self.timers.set(Timer::Expire, self.lifetime.check_at(&self.profile, cx).max(cx.now + EXPIRY_CHECK))
                }
                Timer::Cleanup => self.clean_up(child_sas),
                Timer::Childless => {
                    if child_sas.children_of(self.spi()).next().is_none() {
                        if self.brings_child() && (self.profile.config.initiate || self.is_asking()) {
                            self.timers.set(Timer::Childless, cx.now + CHILDLESS_TIMEOUT);
                        } else {
                            self.enqueue(QueuedRequest::DeleteIke);
                        }
                    }
                }
            }
        }
        if self.lifecycle == Lifecycle::Active {
            if let Some(error) = self.lifetime.over(&self.profile, cx) {
                //= RFC 7296 2.8 MUST 2: what cannot be rekeyed ends
                return SaStep::End(DownReason::Expired, error);
            }
            let due = self.missing.take_due_new_ike_sa(cx.now);
            if (self.expire_children(child_sas, cx) || due) && matches!(step, SaStep::Continue) {
                step = SaStep::BringFirstChild;
            }
            self.rekey_due(child_sas, cx.now);
        }
        self.send_queued(child_sas, cx);
        step
    }

    /// Schedules another rekey of the IKE SA after one that failed, unless one is scheduled.
    pub(crate) fn rekey_again(&mut self, now: Instant) {
        self.rekey_at.get_or_insert(now + REKEY_RETRY);
    }

    /// Queues a request, and sends it immediately if the window is free.
    pub(crate) fn begin(&mut self, request: QueuedRequest, child_sas: &mut ChildSas, cx: &mut Context<'_>) {
        self.enqueue(request);
        self.send_queued(child_sas, cx);
    }

    /// Moves the CHILD_SAs and queued requests to `new`, which replaces this IKE SA by a rekey (RFC
    /// 7296 2.18). `ours` states whether we delete this IKE SA. Otherwise the peer deletes it, or
    /// we delete it after a while.
    pub(crate) fn hand_over(&mut self, new: &mut Self, ours: bool, child_sas: &mut ChildSas, cx: &mut Context<'_>) {
        if child_sas.children_of(self.spi()).next().is_some() {
            new.take_addresses_of(self);
        }
        if !mutation!("children_left_with_rekeyed_ike_sa") {
            //= RFC 7296 2.8 REQUIRED 5: CHILD_SAs move
            child_sas.move_to(self.spi(), new.spi(), cx.now + new.channel.timing().retry);
        }
        self.hand_over_requests(new, cx);
        new.missing.inherit(&mut self.missing);
        if child_sas.children_of(new.spi()).nth(1).is_some() {
            new.schedule_cleanup(cx.now);
        }
        if mutation!("rekeyed_ike_sa_kept") {
            return;
        }
        //= RFC 7296 2.8 REQUIRED 7: the old IKE SA is deleted
        self.supersede(Survivor { ike: new.ike(), spi: new.spi(), ours }, child_sas, cx);
    }

    /// Moves requests about CHILD_SAs to the IKE SA that has these CHILD_SAs now.
    pub(crate) fn hand_over_requests(&mut self, new: &mut Self, cx: &mut Context<'_>) {
        // The peer does not accept the outstanding request on a redundant IKE SA, so send it again
        // on the new one.
        let unanswered = match self.outstanding.take() {
            Some(OutstandingRequest::CreateChild(request)) => {
                let CreateChildRequest { old, purpose, inbound, .. } = *request;
                inbound.release(&self.profile, cx);
                Some(old.map_or(QueuedRequest::CreateChild(purpose), QueuedRequest::RekeyChild))
            }
            Some(OutstandingRequest::DeleteChild(id)) => Some(QueuedRequest::DeleteChild(id)),
            Some(OutstandingRequest::DeleteUnused(unused)) => Some(QueuedRequest::DeleteUnused(unused)),
            Some(OutstandingRequest::DeleteRemoved(id)) => Some(QueuedRequest::DeleteRemoved(id)),
            Some(OutstandingRequest::UpdateAddresses(..)) => Some(QueuedRequest::UpdateAddresses),
            Some(OutstandingRequest::AnnounceAddresses(..)) => Some(QueuedRequest::AnnounceAddresses),
            Some(OutstandingRequest::CheckAddress(_)) => Some(QueuedRequest::CheckAddress),
            Some(OutstandingRequest::NotifyAgent(notification)) => Some(QueuedRequest::NotifyAgent(notification)),
            other => {
                self.outstanding = other;
                None
            }
        };
        if unanswered.is_some() {
            self.outstanding = Some(OutstandingRequest::Abandoned);
        }
        //= RFC 7296 1.3.2 SHOULD NOT 2: nothing new on the old IKE SA
        for request in unanswered.into_iter().chain(std::mem::take(&mut self.queue)) {
            match request {
                QueuedRequest::Liveness | QueuedRequest::RekeyIke | QueuedRequest::DeleteIke => {}
                request => new.enqueue(request),
            }
        }
    }

    /// Sends queued requests if the window is free.
    pub(crate) fn send_requests(&mut self, child_sas: &mut ChildSas, cx: &mut Context<'_>) {
        self.send_queued(child_sas, cx);
    }

    /// Starts to send the queued requests after [`Self::hand_over`].
    pub(crate) fn take_over(&mut self, child_sas: &mut ChildSas, cx: &mut Context<'_>) {
        self.send_queued(child_sas, cx);
    }

    /// Sends DELETE for the IKE SA when the window is free.
    pub(crate) fn delete(&mut self, child_sas: &mut ChildSas, cx: &mut Context<'_>) {
        //= RFC 7296 2.8 MUST 6: DELETE is the last request
        self.release_queue(cx);
        self.begin(QueuedRequest::DeleteIke, child_sas, cx);
    }

    /// Does the same as [`Self::delete`], after the IKE SA was reported down.
    //= RFC 7296 2.4 SHOULD 10: the peer is told of a deleted IKE SA
    pub(crate) fn delete_reported_down(&mut self, child_sas: &mut ChildSas, cx: &mut Context<'_>) {
        self.lifecycle = Lifecycle::Deleting;
        match self.outstanding.take() {
            // The IKE SA that this rekey creates must be deleted too.
            rekey @ Some(OutstandingRequest::RekeyIke(_)) => self.outstanding = rekey,
            Some(outstanding) => {
                outstanding.release(&self.profile, cx);
                self.outstanding = Some(OutstandingRequest::Abandoned);
            }
            None => {}
        }
        self.delete(child_sas, cx);
    }

    /// Replaces our address `old` on the path of ESP and on a path under check. Returns true if the
    /// peer switches to the new address. A peer that supports MOBIKE receives a message about the
    /// change (RFC 4555). A peer that detected a NAT in front of us receives an authentic message
    /// from the new address, and switches as soon as we have responded from there (RFC 7296 2.23).
    /// Returns false if the peer continues to send to the old address until a new IKE SA replaces
    /// this one.
    pub(crate) fn change_local_address(
        &mut self,
        old: IpAddr,
        local: IpAddr,
        child_sas: &mut ChildSas,
        cx: &mut Context<'_>,
    ) -> bool {
        let before = self.channel.path.local.ip();
        if before == old && self.channel.path.remote.is_ipv4() != local.is_ipv4() {
            return false;
        }
        self.channel.replace_local_ip(old, local);
        if self.channel.path.local.ip() != before {
            self.report_move(child_sas, cx);
        }
        if self.mobike.is_some() {
            self.local_address_changed(child_sas, cx);
            return true;
        }
        if self.channel.busy() {
            self.channel.resend(cx);
            self.set_timers(cx.now);
        } else if self.channel.path.nat_local {
            self.begin(QueuedRequest::Liveness, child_sas, cx);
        }
        self.channel.path.nat_local
    }

    /// Handles authentic ESP of one of our CHILD_SAs from an address to which we do not send. An
    /// attacker can copy a packet and forge its source, so we first send a request to that address
    /// (RFC 7296 2.23).
    pub(crate) fn esp_came_from(&mut self, remote: SocketAddr, child_sas: &mut ChildSas, cx: &mut Context<'_>) {
        self.channel.esp_came_from(remote);
        self.probe_candidate(cx);
        self.send_queued(child_sas, cx);
    }

    fn probe_candidate(&mut self, cx: &mut Context<'_>) {
        if self.channel.probe_candidate(cx) && self.queue.is_empty() {
            self.enqueue(QueuedRequest::Liveness);
        }
    }

    /// Reports that the peer does not respond. Reports this only once until the next message from
    /// the peer.
    fn report_silence(&mut self, cx: &mut Context<'_>) {
        let silent = self.lifecycle == Lifecycle::Active && self.channel.is_silent(cx.now);
        if silent && !std::mem::replace(&mut self.silent, true) {
            cx.out.event(Event::PeerSilent { peer: self.profile.config.name.clone() });
        }
    }

    pub(super) fn report_move(&self, child_sas: &ChildSas, cx: &mut Context<'_>) {
        let Path { local, remote, .. } = self.channel.path;
        let encapsulated = self.channel.path.encapsulated();
        let children = child_sas.ids_with_lingering(self.spi());
        if self.lifecycle != Lifecycle::Deleting {
            let peer = self.profile.config.name.clone();
            cx.out.event(Event::PeerMoved { peer, children, local, remote, encapsulated });
        }
    }

    fn answer(
        &mut self,
        exchange: ExchangeType,
        payloads: &Payloads,
        child_sas: &mut ChildSas,
        cx: &mut Context<'_>,
    ) -> SaStep {
        match exchange {
            ExchangeType::Informational => informational::answer(self, payloads, child_sas, cx),
            ExchangeType::CreateChildSa => create_child_response::answer(self, payloads, child_sas, cx),
            // IKE_AUTH has ended, and we announced no other exchanges. Without a response the peer
            // would retransmit its request and then abandon the IKE SA (RFC 7296 2.1, 2.21.3).
            _ => {
                let payloads = Payloads::from(vec![Payload::Notify(Notify::new(NotifyType::InvalidSyntax))]);
                self.channel.respond(exchange, &payloads, cx);
                SaStep::Continue
            }
        }
    }

    /// Answers a malformed request. RFC 7296 2.21.3: INVALID_SYNTAX in an authentic message is
    /// fatal for both ends. An unknown critical payload is not fatal.
    //= RFC 7296 2.21.3 MUST 1: errors are answered
    fn answer_invalid(&mut self, exchange: ExchangeType, error: InvalidMessage, cx: &mut Context<'_>) -> SaStep {
        let payloads = Payloads::from(vec![Payload::Notify(error.notify())]);
        self.channel.respond(exchange, &payloads, cx);
        match error {
            InvalidMessage::UnsupportedCriticalPayload(_) => SaStep::Continue,
            //= RFC 7296 2.21.3 REQUIRED 3: INVALID_SYNTAX is the end
            _ => SaStep::Closed(CloseReason::Failed(failure::invalid(exchange_name(exchange), error))),
        }
    }

    fn finish(
        &mut self,
        exchange: ExchangeType,
        payloads: Result<Payloads, InvalidMessage>,
        child_sas: &mut ChildSas,
        cx: &mut Context<'_>,
    ) -> SaStep {
        let Some(outstanding) = self.outstanding.take() else {
            return SaStep::Continue;
        };
        // If the response cannot be parsed, the ends may have different states. End the IKE SA, and
        // send DELETE to the peer.
        match payloads {
            _ if matches!(outstanding, OutstandingRequest::Abandoned) => SaStep::Continue,
            Ok(payloads) if exchange == outstanding.exchange() => {
                request::finish(outstanding, self, &payloads, child_sas, cx)
            }
            // The peer has our DELETE, whatever it answers.
            _ if matches!(outstanding, OutstandingRequest::DeleteIke) => SaStep::Closed(CloseReason::ByUs),
            // The IKE SA was reported down already, and its DELETE follows.
            _ if self.lifecycle == Lifecycle::Deleting => {
                outstanding.release(&self.profile, cx);
                SaStep::Continue
            }
            Ok(_) => {
                let detail = format!("expected an answer to {}, got one to {exchange}", outstanding.exchange());
                outstanding.release(&self.profile, cx);
                let kind = PeerErrorKind::Protocol;
                SaStep::End(DownReason::Failed, PeerError::new(INFORMATIONAL, kind, detail))
            }
            //= RFC 7296 2.21 REQUIRED 1: no error about a response
            //= RFC 7296 2.21.3 SHOULD NOT 2: no INFORMATIONAL about a response
            Err(error) => {
                outstanding.release(&self.profile, cx);
                SaStep::End(DownReason::Failed, failure::invalid(exchange_name(exchange), error))
            }
        }
    }

    /// Removes CHILD_SAs whose lifetime has ended (RFC 7296 2.8). Returns true if the first
    /// configured child has ended although `initiate` is set, so that only a new IKE SA can create
    /// it. With [`Childless::Prefer`] this depends on whether the peer can do without it in
    /// IKE_AUTH, so it is tried too.
    fn expire_children(&mut self, child_sas: &mut ChildSas, cx: &mut Context<'_>) -> bool {
        let me = self.spi();
        let over: Vec<_> = child_sas
            .children_of(me)
            .filter(|(_, child)| child.end <= cx.now)
            .map(|(id, child)| (id, child.sa.purpose.clone()))
            .collect();
        let mut renew = false;
        for (id, purpose) in &over {
            //= RFC 7296 2.8 MUST NOT 1: nothing lives beyond its lifetime
            child_sas.remove_at_once(*id, DownReason::Expired, cx.out);
            self.drop_requests_of(*id);
            self.keep_last_child(purpose, child_sas, cx.now);
            if matches!(self.outstanding, Some(OutstandingRequest::DeleteChild(child)) if child == *id) {
                // Its DELETE is under way already.
                self.outstanding = Some(OutstandingRequest::DeleteRemoved(*id));
            } else {
                //= RFC 7296 2.4 MUST 9: the peer is told of a deleted CHILD_SA
                self.enqueue(QueuedRequest::DeleteRemoved(*id));
            }
            let error = failure::not_rekeyed(purpose, &self.profile.config);
            self.report_child(&purpose.child, error, cx);
            let config = &self.profile.config;
            let first = purpose.child == config.child.name && !child_sas.serves(me, purpose);
            if config.initiate && first && config.childless < Childless::Force {
                // Other CHILD_SAs would be in danger each time.
                renew |= self.missing.new_ike_sa_mut().begin(cx.now);
            }
            self.child_deleted(purpose, child_sas, cx);
        }
        renew
    }

    fn rekey_due(&mut self, child_sas: &mut ChildSas, now: Instant) {
        for id in child_sas.ids_of(self.spi()) {
            if let Some(child) = child_sas.live_mut(id)
                && child.rekey.is_some_and(|at| at <= now)
            {
                child.rekey = None;
                self.enqueue(QueuedRequest::RekeyChild(id));
            }
        }
        if self.rekey_at.is_some_and(|at| at <= now) {
            self.rekey_at = None;
            self.enqueue(QueuedRequest::RekeyIke);
        }
        for purpose in self.missing.take_due(now) {
            self.enqueue(QueuedRequest::CreateChild(purpose));
        }
    }

    /// Ensures that an active IKE SA that lacks a configured CHILD_SA either has an outstanding or
    /// scheduled request for it, or will end after a while. Deletions and rekeys by both ends may
    /// cross in many ways, so this function is called after every change, not for each of these
    /// cases.
    fn ensure_children(&mut self, child_sas: &ChildSas, cx: &mut Context<'_>) {
        if self.lifecycle != Lifecycle::Active {
            return;
        }
        let (me, profile) = (self.spi(), Arc::clone(&self.profile));
        if !profile.config.initiate {
            if child_sas.children_of(me).next().is_some() {
                self.timers.stop(Timer::Childless);
            } else if self.timers.get(Timer::Childless).is_none() {
                self.child_deleted(&Purpose::whole(&profile.config.child.name), child_sas, cx);
            }
            return;
        }
        for purpose in profile.config.children().map(|child| Purpose::whole(&child.name)) {
            let forgotten = purpose.child != profile.config.child.name && mutation!("additional_child_forgotten");
            if !child_sas.serves(me, &purpose) && !self.brings(&purpose) && !forgotten {
                self.child_deleted(&purpose, child_sas, cx);
            }
        }
    }

    fn probe_if_silent(&mut self, cx: &Context<'_>) {
        self.channel.forget_stale_fragments(cx.now);
        //= RFC 7296 2.4 REQUIRED 7: a silent peer is asked
        let silent = self.channel.signs.check_at(&self.channel.timing()) <= cx.now;
        if silent && !self.channel.busy() && self.queue.is_empty() {
            self.enqueue(QueuedRequest::Liveness);
        }
    }

    /// Sends queued requests while the window is free.
    pub(super) fn send_queued(&mut self, child_sas: &mut ChildSas, cx: &mut Context<'_>) {
        self.tell_changed_address();
        //= RFC 7296 2.3 MUST 2: one request at a time
        //= RFC 7296 2.3 MUST NOT 4: within the peer's window
        //= RFC 7296 2.3 MUST 5: wait for the window
        while !self.channel.busy() {
            let Some(queued) = self.queue.pop_front() else {
                break;
            };
            self.outstanding = request::begin(queued, self, child_sas, cx);
        }
        if self.queue.is_empty() {
            // An empty queue keeps no memory.
            self.queue.shrink_to_fit();
        }
        self.ensure_children(child_sas, cx);
        self.set_timers(cx.now);
    }
}

fn exchange_name(exchange: ExchangeType) -> &'static str {
    match exchange {
        ExchangeType::CreateChildSa => failure::CREATE_CHILD_SA,
        ExchangeType::IkeAuth => failure::IKE_AUTH,
        _ => INFORMATIONAL,
    }
}

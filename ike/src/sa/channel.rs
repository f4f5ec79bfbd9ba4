//! The protected channel of an IKE SA: message IDs and windows (RFC 7296 2.2, 2.3;
//! `receive_window` has the peer's requests that arrive early), retransmission of requests and
//! responses (`retransmission_timer`, `last_response`), fragments, NAT keepalives (RFC 3948 2.3),
//! and address changes (2.23).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::in_flight::InFlight;
use super::last_response::LastResponse;
use super::partial_message::PartialMessage;
use super::path::{Following, Path};
use super::profile::Profile;
use super::receive_window::{ArrivedDatagram, ReceiveWindow};
use super::retransmission_timer::{Persistence, RetransmissionTimer};
use super::signs_of_life::SignsOfLife;
use crate::config::Timing;
use crate::crypto::{IkeCipher, IkeKeys, IkeRole, OpenError};
use crate::event::IkeId;
use crate::output::Context;
use crate::time::{Instant, on_whole_second};
use crate::wire::{ExchangeType, Header, InvalidMessage, Payloads};

/// Size of the non-ESP marker, bytes. It counts towards the datagram's size.
const MARKER_LEN: usize = 4;

/// Number of transmissions of a request after which a peer counts as silent.
const SILENT_AFTER: u32 = 3;
/// Number of transmissions of a request after which a peer for which we have patience may have
/// restarted. With the default timing, the last of them is eight seconds after the first: on a path
/// that loses a fifth of the packets of each direction, one request in 500 needs more.
const NEEDS_PATIENCE: u32 = 6;

/// How many times longer the interval of keepalives is where no NAT was found and
/// [`Timing::idle_share`] is set: 100 seconds by default.
const WITHOUT_NAT: u32 = 5;

/// Upper limit of the time after which an idle peer is asked because of [`Timing::idle_share`].
const LONGEST_IDLE: Duration = Duration::from_secs(30 * 60);

/// The message ID after which an IKE SA must end. A thousand IDs are left, so that the IKE SA can
/// still send DELETE.
const LAST_MESSAGE_ID: u32 = u32::MAX - 1000;

/// The contents of a datagram.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// Nothing to do: the datagram is not authentic, is old, was answered with the stored response,
    /// or is part of an incomplete message.
    Nothing,
    /// The peer's next request. Answer it with [`Channel::respond`].
    Request(ExchangeType, Result<Payloads, InvalidMessage>),
    /// The response to our request.
    Response(ExchangeType, Result<Payloads, InvalidMessage>),
}

/// The protected channel of an IKE SA. What it seldom has is in boxes: there are ten thousand of
/// them at a hub.
#[derive(Debug)]
pub(crate) struct Channel {
    /// SPIs of both ends, in the header of every message.
    pub(crate) ike: IkeId,
    /// Our role in the IKE SA.
    pub(crate) role: IkeRole,
    /// Addresses, and NATs between them.
    pub(crate) path: Path,
    /// Evidence that the peer is alive.
    pub(crate) signs: SignsOfLife,
    /// When the last datagram was sent.
    pub(crate) last_sent: Instant,
    /// Has the timers. `None` while the peer is not known: it then has the default ones.
    pub(super) profile: Option<Arc<Profile>>,
    pub(super) cipher: IkeCipher,
    fragments: bool,
    next_request: u32,
    //= RFC 7296 2.1 MUST 3: the request is kept
    pub(super) in_flight: Option<Box<InFlight>>,
    pub(super) next_expected: u32,
    /// The number of requests that the peer may have sent before we have answered the first of
    /// them: one, until we have announced more.
    pub(super) window: u8,
    pub(super) received: Option<Box<ReceiveWindow>>,
    pub(super) last_response: Option<LastResponse>,
    partial_request: Option<Box<PartialMessage>>,
    partial_response: Option<Box<PartialMessage>>,
    pub(super) response_path: (SocketAddr, SocketAddr),
    /// How we follow a peer whose messages come from another address.
    pub(super) following: Following,
    /// Whether the peer has longer than usual to respond. As responder of an IKE SA with MOBIKE we
    /// cannot find another path, and if we do not begin IKE SAs ourselves, nothing is gained by
    /// giving this one up (RFC 4555 3.11).
    pub(super) peer_may_move: bool,
    /// A new path of IKE messages, while it is not known whether the peer receives on it. In the
    /// meantime, ESP stays on `path`.
    pub(super) unchecked: Option<Box<Path>>,
    /// Further pairs of our address and the peer's between which the outstanding request is sent,
    /// because the peer does not respond. Their number has a limit.
    pub(super) alternatives: Vec<(SocketAddr, SocketAddr)>,
    /// A path on which the peer did not respond to our check. It is checked again when the peer
    /// uses it again.
    pub(super) given_up: Option<Box<Path>>,
    /// The addresses between which the last answered request was sent, if it was sent between only
    /// one pair.
    pub(super) answered_between: Option<Box<(SocketAddr, SocketAddr)>>,
    /// Our address and the peer's, other than those in use, between which the peer has responded.
    /// The request was also sent between them.
    pub(super) answered_elsewhere: Option<Box<(SocketAddr, SocketAddr)>>,
    /// The source of the peer's newest message, if it is not the address to which we send. An
    /// attacker can copy a message and forge its source, so we switch to this address only after
    /// the peer has responded from it.
    pub(super) candidate: Option<Box<SocketAddr>>,
    /// Whether nothing has been sent to the candidate yet.
    pub(super) candidate_is_new: bool,
    pub(super) peer_moved: bool,
}

impl Channel {
    /// Creates a channel on which no message ID has been used.
    pub(crate) fn new(
        keys: IkeKeys,
        ike: IkeId,
        role: IkeRole,
        path: Path,
        fragments: bool,
        profile: Option<Arc<Profile>>,
        now: Instant,
    ) -> Self {
        Self {
            ike,
            role,
            cipher: IkeCipher::new(keys, role),
            path,
            signs: SignsOfLife::new(now),
            last_sent: now,
            profile,
            fragments,
            next_request: 0,
            in_flight: None,
            next_expected: 0,
            window: 1,
            received: None,
            last_response: None,
            partial_request: None,
            partial_response: None,
            response_path: (path.local, path.remote),
            following: Following::Answer,
            peer_may_move: false,
            unchecked: None,
            alternatives: Vec::new(),
            given_up: None,
            answered_between: None,
            answered_elsewhere: None,
            candidate: None,
            candidate_is_new: false,
            peer_moved: false,
        }
    }

    /// Returns the keys of the IKE SA, for AUTH and for the derivation of further keys.
    pub(crate) fn keys(&self) -> &IkeKeys {
        self.cipher.keys()
    }

    /// Forgets the keys for AUTH, since both ends have authenticated.
    pub(crate) fn forget_auth_keys(&mut self) {
        self.cipher.forget_auth_keys();
    }

    /// Returns the timers from the peer's configuration.
    pub(crate) fn timing(&self) -> Timing {
        self.profile.as_ref().map_or_else(Timing::default, |profile| profile.config.timing_when_up())
    }

    /// Skips message ID 0 of the initiator, which IKE_SA_INIT has used.
    pub(crate) fn after_init(mut self) -> Self {
        match self.role {
            IkeRole::Initiator => self.next_request = 1,
            IkeRole::Responder => self.next_expected = 1,
        }
        self
    }

    /// Returns our SPI. The peer puts it into every message to us.
    pub(crate) fn local_spi(&self) -> u64 {
        match self.role {
            IkeRole::Initiator => self.ike.initiator,
            IkeRole::Responder => self.ike.responder,
        }
    }

    /// Returns whether the peer supports fragments (RFC 7383).
    pub(crate) fn fragments(&self) -> bool {
        self.fragments
    }

    /// Returns the size of the fragments that wait for the rest of their request, bytes.
    pub(crate) fn fragment_octets(&self) -> usize {
        self.partial_request.as_ref().map_or(0, |partial| partial.octets())
    }

    /// Drops fragments that have waited for
    /// [`REASSEMBLY_TIMEOUT`](super::partial_message::REASSEMBLY_TIMEOUT) (RFC 7383 2.6).
    pub(crate) fn forget_stale_fragments(&mut self, now: Instant) {
        self.forget_stale_window(now);
        for partial in [&mut self.partial_request, &mut self.partial_response] {
            partial.take_if(|partial| partial.is_stale(now));
        }
    }

    /// Returns whether a request is outstanding. The window then has no room for another one.
    pub(crate) fn busy(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Returns whether the IKE SA must end because its message IDs will soon exceed 32 bits (RFC
    /// 7296 2.2).
    pub(crate) fn message_ids_are_used_up(&self) -> bool {
        //= RFC 7296 2.2 MUST 2: message IDs end with the IKE SA
        self.next_request.max(self.next_expected) > LAST_MESSAGE_ID
    }

    /// Sets both ends' next message ID to `id`, as if all earlier ones had been used.
    #[cfg(test)]
    pub(super) fn skip_to_message_id(&mut self, id: u32) {
        (self.next_request, self.next_expected) = (id, id);
    }

    /// Sends our next request. The window must be free.
    pub(crate) fn request(&mut self, exchange: ExchangeType, payloads: &Payloads, cx: &mut Context<'_>) {
        let announcing = self.announce_window(exchange, payloads);
        let payloads = announcing.as_ref().unwrap_or(payloads);
        let id = self.next_request;
        let header = self.header(exchange, false, id);
        let packets = self.seal(&header, payloads, cx);
        if let Some(capture) = &mut cx.out.capture {
            capture.encrypted(true, (self.path.local, self.path.remote), &header, payloads);
        }
        //= RFC 7296 2.2 REQUIRED 3: message IDs begin at 0
        self.next_request = self.next_request.saturating_add(1);
        self.partial_response = None;
        let retransmission = RetransmissionTimer::begin(&self.timing(), cx.now);
        self.alternatives.clear();
        let between = Some(self.message_addresses());
        let in_flight =
            InFlight { id, packets, retransmission, sent_to: None, fell_back: false, redirected: 0, between };
        self.transmit_request(Box::new(in_flight), cx);
    }

    /// Sends the response to the request of [`Incoming::Request`].
    pub(crate) fn respond(&mut self, exchange: ExchangeType, payloads: &Payloads, cx: &mut Context<'_>) {
        // An empty response to DELETE stays empty.
        let announcing =
            if exchange == ExchangeType::CreateChildSa { self.announce_window(exchange, payloads) } else { None };
        let payloads = announcing.as_ref().unwrap_or(payloads);
        self.keep_older_response(cx.now);
        //= RFC 7296 2.2 REQUIRED 4: the response has the request's ID
        let header = self.header(exchange, true, self.next_expected);
        let packets = self.seal(&header, payloads, cx);
        self.next_expected = self.next_expected.saturating_add(1);
        let Path { local: ours, remote: theirs, .. } = self.path;
        //= RFC 7296 2.11 MUST 2: the response goes back
        //= RFC 7296 2.23 MUST 3: responses go to the request's port
        let (local, remote) = if mutation!("response_sent_elsewhere") { (ours, theirs) } else { self.response_path };
        if let Some(capture) = &mut cx.out.capture {
            capture.encrypted(true, (local, remote), &header, payloads);
        }
        self.transmit(&packets, local, remote, cx);
        let request = self.partial_request.take().map(|partial| partial.first_datagram()).unwrap_or_default();
        //= RFC 7296 2.1 MUST 4: the response is kept
        let kept = LastResponse::new(request, packets, cx.now);
        self.last_response = Some(kept).filter(|_| !mutation!("response_not_kept"));
    }

    /// Sends the outstanding request again immediately, to the present addresses.
    //= RFC 7296 2.2 MUST 1: the same message ID again
    pub(crate) fn resend(&mut self, cx: &mut Context<'_>) {
        if let Some(mut in_flight) = self.in_flight.take() {
            in_flight.retransmission = RetransmissionTimer::begin(&self.timing(), cx.now);
            self.transmit_request(in_flight, cx);
        }
    }

    /// Sends the outstanding request immediately on the path that the peer asks for. The first
    /// time, all transmissions start again on that path. The number of such immediate transmissions
    /// is limited to the maximum number of transmissions of a request. After that, the request
    /// waits for its next transmission, so that a peer that moves all the time cannot make us send
    /// the request forever.
    pub(super) fn redirect(&mut self, cx: &mut Context<'_>) {
        let timing = self.timing();
        let limit = self.signs.transmissions(&timing);
        let Some(mut in_flight) = self.in_flight.take_if(|in_flight| in_flight.redirected < limit) else { return };
        if in_flight.redirected == 0 {
            in_flight.retransmission = RetransmissionTimer::begin(&timing, cx.now);
        }
        in_flight.redirected = in_flight.redirected.saturating_add(1);
        self.transmit_request(in_flight, cx);
    }

    /// Returns the time at which to call [`Self::retransmit`].
    pub(crate) fn retransmit_at(&self) -> Option<Instant> {
        self.in_flight.as_ref().map(|in_flight| in_flight.retransmission.next())
    }

    /// Retransmits the outstanding request. Returns `None` if all transmissions are used up and no
    /// ESP arrives either, so the peer is dead. `patient`: wait longer if the peer may move, or if
    /// the configuration says so.
    pub(crate) fn retransmit(&mut self, patient: bool, cx: &mut Context<'_>) -> Option<()> {
        let Some(mut in_flight) = self.in_flight.take() else {
            return Some(());
        };
        let timing = self.timing();
        //= RFC 7296 2.1 MUST 6: retransmit
        let limit = self.signs.transmissions(&timing);
        // A reason to go on may come after the usual transmissions.
        let grows = self.peer_may_move || timing.patient;
        let persistence = self.persistence(patient, &timing, cx.now);
        if in_flight.retransmission.advance(&timing, limit, persistence, grows, cx.now).is_none() {
            // There is no response from the address that is being checked. An attacker may have
            // forged it.
            self.given_up = Some(self.unchecked.take()?);
            if std::mem::replace(&mut in_flight.fell_back, true) {
                // The path in use had all transmissions too, but ESP may arrive on it.
                let persistence = self.persistence(false, &timing, cx.now);
                in_flight.retransmission.advance(&timing, limit, persistence, grows, cx.now)?;
            } else {
                in_flight.retransmission = RetransmissionTimer::begin(&timing, cx.now);
            }
        }
        cx.out.sent.retransmissions = cx.out.sent.retransmissions.saturating_add(1);
        if mutation!("request_changes") {
            in_flight.packets.iter_mut().filter_map(|packet| packet.last_mut()).for_each(|octet| *octet ^= 1);
        }
        self.transmit_request(in_flight, cx);
        Some(())
    }

    /// Returns whether the outstanding request is repeated although all its transmissions are used
    /// up. The reasons are about the path in use, and are no evidence about one that is being
    /// checked.
    fn persistence(&self, patient: bool, timing: &Timing, now: Instant) -> Persistence {
        let esp_arrives = self.signs.esp_arrives(timing, now) && !mutation!("esp_is_no_sign_of_life");
        match () {
            () if self.unchecked.is_some() => Persistence::None,
            () if patient && self.peer_may_move => Persistence::PeerMayMove,
            () if patient && timing.patient && !mutation!("lossy_path_counts_as_failure") => Persistence::Patient,
            () if esp_arrives => Persistence::EspArrives,
            () => Persistence::None,
        }
    }

    /// Returns whether the outstanding request was sent more than once.
    pub(crate) fn is_repeated(&self) -> bool {
        self.in_flight.as_ref().is_some_and(|in_flight| in_flight.retransmission.sent() > 1)
    }

    /// Returns whether the outstanding request was sent at least [`SILENT_AFTER`] times without a
    /// response.
    pub(crate) fn is_unanswered(&self) -> bool {
        self.in_flight.as_ref().is_some_and(|in_flight| in_flight.retransmission.sent() >= SILENT_AFTER)
    }

    /// Returns whether the peer counts as silent: it does not respond, and no ESP arrives either.
    pub(crate) fn is_silent(&self, now: Instant) -> bool {
        self.is_unanswered() && !self.signs.esp_arrives(&self.timing(), now)
    }

    /// Returns whether the peer has been silent for so long that only patience keeps the IKE SA. A
    /// peer that has restarted never answers on it.
    pub(crate) fn needs_patience(&self, now: Instant) -> bool {
        let sent = self.in_flight.as_ref().map_or(0, |in_flight| in_flight.retransmission.sent());
        self.timing().patient && sent >= NEEDS_PATIENCE && self.is_silent(now)
    }

    /// Sends a request to the peer's address, to the alternatives and, if there is one, to the
    /// candidate address. The peer responds from the address at which it is reachable.
    fn transmit_request(&mut self, mut in_flight: Box<InFlight>, cx: &mut Context<'_>) {
        let (local, remote) = self.message_addresses();
        //= RFC 7296 2.1 MUST 8: the same octets again
        self.transmit(&in_flight.packets, local, remote, cx);
        in_flight.between = in_flight.between.filter(|between| *between == (local, remote));
        for (local, remote) in self.alternatives.clone() {
            in_flight.between = None;
            self.transmit(&in_flight.packets, local, remote, cx);
        }
        if let Some(candidate) = self.candidate.as_deref().copied() {
            if !self.alternatives.contains(&(local, candidate)) {
                self.transmit(&in_flight.packets, local, candidate, cx);
            }
            self.candidate_is_new = false;
            in_flight.sent_to = Some(candidate);
            in_flight.between = None;
        }
        self.in_flight = Some(in_flight);
    }

    /// Takes both addresses from the authentic IKE_AUTH request, as its responder.
    pub(crate) fn begin_at(&mut self, local: SocketAddr, remote: SocketAddr) {
        self.path.local = local;
        self.path.remote = remote;
        self.candidate = None;
    }

    /// Returns the time at which the next NAT keepalive is due, or `None` if none is needed. It is
    /// on a whole second if the interval contains one, so that an owner with many IKE SAs wakes up
    /// once a second for all of them, not once for each.
    ///
    /// Where encapsulation was forced and no NAT was found, a firewall in front of this end may
    /// forget the flow. It should keep it for two minutes, and be refreshed by packets from inside
    /// (RFC 4787 REQ-5 and REQ-6, RFC 6092 REC-14 and REC-15).
    pub(crate) fn keepalive_at(&self) -> Option<Instant> {
        let timing = self.timing();
        let rarely = !self.path.nat_found && !timing.idle_share.is_zero();
        let interval = timing.nat_keepalive.saturating_mul(if rarely { WITHOUT_NAT } else { 1 });
        self.path.nat_local.then(|| on_whole_second(self.last_sent, interval))
    }

    /// Returns the time without an IKE message after which a peer is asked, if this endpoint has so
    /// many CHILD_SAs. Behind a NAT it does not depend on their number: the check also shows
    /// whether the NAT has another mapping for us (RFC 4555 3.8).
    fn idle_liveness(&self, child_sas: usize) -> Duration {
        let timing = self.timing();
        if self.path.nat_found {
            return timing.idle_liveness;
        }
        let child_sas = u32::try_from(child_sas).unwrap_or(u32::MAX);
        let share = timing.idle_share.saturating_mul(child_sas).min(LONGEST_IDLE);
        timing.idle_liveness.max(share)
    }

    /// Sends a NAT keepalive: one octet 0xff (RFC 3948 2.3).
    pub(crate) fn keepalive(&mut self, cx: &mut Context<'_>) {
        self.last_sent = cx.now;
        let Path { local, remote, .. } = self.path;
        cx.out.transmits.push_back(crate::environment::Transmit { local, remote, payload: vec![0xff] });
    }

    /// Returns whether the peer's address has changed since the last call.
    pub(crate) fn take_peer_moved(&mut self) -> bool {
        std::mem::take(&mut self.peer_moved)
    }

    /// Returns the last response, so that it can be sent again if it was lost.
    pub(crate) fn into_last_response(self) -> Option<LastResponse> {
        self.last_response
    }

    /// Handles a datagram (without the non-ESP marker) with our SPI.
    pub(crate) fn receive(
        &mut self,
        header: &Header,
        datagram: &[u8],
        local: SocketAddr,
        remote: SocketAddr,
        cx: &mut Context<'_>,
    ) -> Incoming {
        let ike = IkeId { initiator: header.initiator_spi, responder: header.responder_spi };
        let from_peer = header.from_initiator == (self.role == IkeRole::Responder);
        if ike != self.ike || !from_peer {
            return Incoming::Nothing;
        }
        let arrived = ArrivedDatagram { id: header.message_id, octets: datagram, local, remote };
        if header.response {
            //= RFC 7296 3.1 MUST NOT 14: responses are not answered
            if self.in_flight.as_ref().is_none_or(|in_flight| in_flight.id != header.message_id) {
                return Incoming::Nothing;
            }
        } else if header.message_id < self.next_expected && !mutation!("window_not_enforced") {
            self.answer_again(arrived, cx);
            //= RFC 7296 2.23 REQUIRED 18: old messages move nothing
            if mutation!("followed_by_old_message") {
                self.update_path(local, remote, true);
            }
            return Incoming::Nothing;
        //= RFC 7296 2.3 MUST NOT 8: no INVALID_MESSAGE_ID in a response
        //= RFC 7296 2.3 MUST NOT 9: no answer outside of the window
        } else if header.message_id != self.next_expected && !mutation!("window_not_enforced") {
            if !mutation!("requests_overtake") || !self.is_in_window(header.message_id) {
                self.hold(arrived, cx);
                return Incoming::Nothing;
            }
            self.next_expected = header.message_id;
        }
        let opened = match self.cipher.open(datagram) {
            Ok(opened) => Ok(opened),
            Err(OpenError::Contents(error)) => Err(error),
            //= RFC 7296 2.4 MUST NOT 3: nothing unprotected proves a failure
            //= RFC 7296 2.21.4 MUST NOT 5: INVALID_IKE_SPI is not answered
            //= RFC 7296 2.21.4 MUST NOT 6: INVALID_IKE_SPI changes nothing
            Err(OpenError::Malformed(_) | OpenError::Forged) => return Incoming::Nothing,
        };
        let partial = if header.response { &mut self.partial_response } else { &mut self.partial_request };
        let request = (!header.response).then_some(datagram);
        let Some(payloads) = partial.get_or_insert_default().add(opened, request, cx.now) else {
            return Incoming::Nothing;
        };
        let idle = self.idle_liveness(cx.out.inbound_spis.len());
        let idle = cx.config.esp_reported.then(|| cx.jittered(idle));
        self.signs.ike_received(cx.now, idle);
        //= RFC 7296 2.23 SHOULD NOT 17: followed when the peer has answered there
        let answered = if header.response { self.in_flight.take() } else { None };
        let confirmed = answered.as_ref().is_some_and(|in_flight| in_flight.sent_to == Some(remote));
        if let Some(answered) = answered {
            self.answered_between = answered.between.map(Box::new);
            self.partial_response = None;
            let alternatives = std::mem::take(&mut self.alternatives);
            let decides = self.following != Following::Update;
            let elsewhere = Some((local, remote)).filter(|pair| decides && alternatives.contains(pair));
            self.answered_elsewhere = elsewhere.map(Box::new);
        }
        self.update_path(local, remote, confirmed);
        if let (Some(capture), Ok(payloads)) = (&mut cx.out.capture, &payloads) {
            capture.encrypted(false, (local, remote), header, payloads);
        }
        if header.response {
            Incoming::Response(header.exchange, payloads)
        } else {
            //= RFC 7296 2.3 MUST 3: requests are taken while ours waits
            Incoming::Request(header.exchange, payloads)
        }
    }

    fn header(&self, exchange: ExchangeType, response: bool, message_id: u32) -> Header {
        Header {
            initiator_spi: self.ike.initiator,
            responder_spi: self.ike.responder,
            exchange,
            //= RFC 7296 3.1 MUST 18: none of the responder
            from_initiator: self.role == IkeRole::Initiator,
            response,
            message_id,
        }
    }

    fn seal(&mut self, header: &Header, payloads: &Payloads, cx: &Context<'_>) -> Vec<Vec<u8>> {
        let limit = (self.fragments || mutation!("fragments_unasked"))
            .then(|| cx.config.fragment_size.saturating_sub(MARKER_LEN));
        // If sealing fails, there are no datagrams, and the exchange times out. In this way an IKE
        // SA whose cipher is exhausted ends.
        self.cipher.seal(header, payloads, limit).unwrap_or_else(|error| {
            tracing::error!(%error, ike = ?self.ike, "message not sent");
            Vec::new()
        })
    }

    pub(super) fn transmit(
        &mut self,
        packets: &[Vec<u8>],
        local: SocketAddr,
        remote: SocketAddr,
        cx: &mut Context<'_>,
    ) {
        self.last_sent = cx.now;
        for packet in packets {
            cx.out.message(local, remote, cx.config.nat_port, packet);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::new(Duration::from_millis(millis))
    }

    #[test]
    fn keepalives_are_due_on_whole_seconds_and_not_late() {
        //= RFC 7296 2.23 SHOULD 11: keepalives behind a NAT
        for last_sent in [0, 1, 300, 999] {
            assert_eq!(on_whole_second(at(10_000 + last_sent), Duration::from_secs(20)), at(30_000));
        }
        // The keepalive is not due immediately, even if the interval is short.
        for (last_sent, interval, due) in [(10_000, 500, 10_500), (10_700, 500, 11_000), (10_700, 200, 10_900)] {
            assert_eq!(on_whole_second(at(last_sent), Duration::from_millis(interval)), at(due));
        }
    }
}

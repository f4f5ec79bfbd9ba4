//! MOBIKE (RFC 4555): address updates by the original initiator, announcements of addresses by
//! either end, and return routability checks. ESP uses a new address only after COOKIE2 was
//! returned from it.

use std::net::{IpAddr, SocketAddr};

use crate::child_sas::ChildSas;
use crate::crypto::nat_detection_hash;
use crate::event::DownReason;
use crate::output::Context;
use crate::sa::failure;
use crate::sa::ike_sa::{IkeSa, Lifecycle, SaStep};
use crate::sa::mobike::{self, Cookie2, LocalMove};
use crate::sa::own_requests::{OutstandingRequest, QueuedRequest};
use crate::sa::path::{NAT_PORT, Path};
use crate::tcp_connection::is_reserved_for_tcp;
use crate::wire::{ExchangeType, Notify, NotifyType, Payload, Payloads};

/// The address changes to make after the response to the peer's request was sent.
#[derive(Debug, Default)]
pub(super) struct AddressChange {
    /// The peer's present address, if we are the original initiator and the peer has left the
    /// address that we use.
    peer_left_for: Option<SocketAddr>,
}

impl IkeSa {
    fn forced(&self) -> bool {
        self.profile.config.force_encapsulation
    }

    /// Handles a change of our address and therefore of the path. Informs the peer.
    pub(super) fn local_address_changed(&mut self, child_sas: &mut ChildSas, cx: &mut Context<'_>) {
        //= RFC 4555 3.5 REQUIRED 4: outstanding requests use the new addresses
        self.channel.resend(cx);
        if self.lifecycle == Lifecycle::Active {
            self.enqueue_first(self.address_request());
        } else if let Some(mobike) = &mut self.mobike {
            mobike.missed_move = true;
        }
        self.send_queued(child_sas, cx);
    }

    /// Informs the peer of our address if it changed while this IKE SA was superseded.
    pub(in crate::sa) fn tell_missed_move(&mut self, child_sas: &mut ChildSas, cx: &mut Context<'_>) {
        if self.mobike.as_mut().is_some_and(|mobike| std::mem::take(&mut mobike.missed_move)) {
            self.enqueue_first(self.address_request());
            self.send_queued(child_sas, cx);
        }
    }

    /// Handles a change of this node's addresses other than the one in use. Informs the peer if the
    /// list that was sent to it differs.
    pub(crate) fn additional_addresses_changed(&mut self, child_sas: &mut ChildSas, cx: &mut Context<'_>) {
        let additional = mobike::own_additional(cx.config, &self.profile.config, self.channel.path.local.ip());
        if self.lifecycle == Lifecycle::Active && self.mobike.as_ref().is_some_and(|it| *it.announced != additional) {
            self.begin(QueuedRequest::AnnounceAddresses, child_sas, cx);
        }
    }

    /// Returns the request that informs the peer of our address.
    fn address_request(&self) -> QueuedRequest {
        //= RFC 4555 3.5 REQUIRED 3: the original initiator chooses the addresses
        if self.initiation().by_us() || mutation!("update_by_responder") {
            QueuedRequest::UpdateAddresses
        } else {
            QueuedRequest::AnnounceAddresses
        }
    }

    /// Returns whether the outstanding request may wait longer than usual for its response, if the
    /// peer may move: it is about an IKE SA that both ends have and neither has replaced, and that
    /// has CHILD_SAs or will request one. Nothing is lost with another one.
    pub(super) fn is_patient(&self, child_sas: &ChildSas) -> bool {
        let ends = matches!(self.outstanding, Some(OutstandingRequest::DeleteIke));
        let is_used =
            child_sas.children_of(self.spi()).next().is_some() || self.missing.next().is_some() || self.is_asking();
        self.lifecycle == Lifecycle::Active && self.is_confirmed() && !ends && is_used
    }

    /// Our address towards this address of the peer.
    fn local_towards(&self, remote: IpAddr, cx: &mut Context<'_>) -> Option<SocketAddr> {
        let local = self.channel.path.local;
        if local.is_ipv4() == remote.is_ipv4() && is_reserved_for_tcp(local.ip()) == is_reserved_for_tcp(remote) {
            return Some(local);
        }
        cx.env.source_address(remote).map(|ip| SocketAddr::new(ip, local.port()))
    }

    /// Moves to another address of ours while the present one still works. Messages fall back to
    /// the present path if the peer does not answer.
    pub(crate) fn move_to_local_address(
        &mut self,
        local: IpAddr,
        child_sas: &mut ChildSas,
        cx: &mut Context<'_>,
    ) -> LocalMove {
        let path = self.channel.path;
        let movable = self.mobike.is_some() && self.lifecycle == Lifecycle::Active;
        let possible = path.local.ip() != local && path.local.is_ipv4() == local.is_ipv4();
        let in_udp = !is_reserved_for_tcp(path.local.ip());
        if !movable || !possible || !in_udp || self.channel.is_unchecked() {
            return LocalMove::Impossible;
        }
        if !self.initiation().by_us() {
            return LocalMove::PeerChooses;
        }
        self.move_to(SocketAddr::new(local, path.local.port()), path.remote, cx);
        self.send_queued(child_sas, cx);
        LocalMove::Begun
    }

    /// Moves to these addresses of ours and of the peer. ESP follows after the peer has returned
    /// our COOKIE2.
    pub(super) fn move_to(&mut self, local: SocketAddr, remote: SocketAddr, cx: &mut Context<'_>) {
        if self.mobike.is_none() || self.lifecycle != Lifecycle::Active {
            return;
        }
        let path = self.channel.path;
        if !is_acceptable(local, remote) || self.channel.message_addresses() == (local, remote) {
            return;
        }
        if (local, remote) == (path.local, path.remote) {
            self.channel.leave_unchecked_path();
            self.channel.redirect(cx);
        } else {
            self.channel.check_path(Path { local, remote, ..path }, cx);
        }
        //= RFC 4555 3.5 REQUIRED 3: the original initiator chooses the addresses
        let by_us = self.initiation().by_us();
        self.enqueue_first(if by_us { QueuedRequest::UpdateAddresses } else { QueuedRequest::CheckAddress });
    }

    /// Handles a peer that does not respond at its present address: sends the outstanding request
    /// to its other addresses too, and from our other addresses. The responder does this only for
    /// an announcement that it has moved (RFC 4555 3.6).
    pub(super) fn try_other_addresses(&mut self, cx: &mut Context<'_>) {
        let announces = matches!(self.outstanding, Some(OutstandingRequest::AnnounceAddresses(..)));
        let may = self.lifecycle == Lifecycle::Active && (self.initiation().by_us() || announces);
        let Some(mobike) = self.mobike.as_ref().filter(|_| may) else { return };
        if self.channel.is_unchecked() || !self.channel.is_unanswered() {
            return;
        }
        let inner: Vec<_> = self.profile.config.children().flat_map(|child| &child.remote).collect();
        let path = self.channel.path;
        let mut others: Vec<IpAddr> = mobike.peer_addresses.to_vec();
        others.retain(|address| *address != path.remote.ip() && !mobike::is_inner(*address, inner.iter().copied()));
        // A NAT in front of the address in use need not be in front of the others.
        let mut ports = vec![path.remote.port()];
        if path.local.port() == cx.config.nat_port && path.remote.port() != NAT_PORT {
            ports.push(NAT_PORT);
        }
        let remotes = ports.iter().flat_map(|port| others.iter().map(|address| SocketAddr::new(*address, *port)));
        let remotes: Vec<SocketAddr> = std::iter::once(mobike.announced_by_peer_from).chain(remotes).collect();
        let theirs: Vec<(SocketAddr, SocketAddr)> =
            remotes.iter().filter_map(|remote| Some((self.local_towards(remote.ip(), cx)?, *remote))).collect();
        // RFC 4555 3.5: the initiator may use another address of its own.
        let own = mobike::own_additional(cx.config, &self.profile.config, path.local.ip());
        let own = own.into_iter().filter(|_| self.initiation().by_us());
        let own: Vec<SocketAddr> = own.map(|address| SocketAddr::new(address, path.local.port())).collect();
        let ours: Vec<(SocketAddr, SocketAddr)> = own.iter().map(|local| (*local, path.remote)).collect();
        // The number of pairs is limited, so the addresses of either end come in turn.
        let longest = theirs.len().max(ours.len());
        let in_turn = (0..longest).flat_map(|index| [theirs.get(index), ours.get(index)]).flatten();
        let mut pairs: Vec<(SocketAddr, SocketAddr)> = in_turn.copied().collect();
        for remote in remotes {
            pairs.extend(own.iter().map(|local| (*local, remote)));
        }
        self.channel.send_to_alternatives(pairs, cx);
    }

    /// Checks the path that was given up again if the peer uses it again.
    pub(super) fn check_given_up(&mut self, cx: &mut Context<'_>) {
        if self.lifecycle != Lifecycle::Active {
            return;
        }
        if let Some(path) = self.channel.take_given_up() {
            self.channel.check_path(path, cx);
            self.enqueue_first(QueuedRequest::CheckAddress);
        }
    }

    /// Starts to use this path for ESP.
    fn use_path(&mut self, path: Path, child_sas: &ChildSas, cx: &mut Context<'_>) {
        let before = self.channel.path;
        self.channel.use_path(path);
        (self.negotiated.nat_local, self.negotiated.nat_remote) = (path.nat_local, path.nat_remote);
        let of_esp = |path: Path| (path.local, path.remote, path.encapsulated());
        if of_esp(before) != of_esp(path) {
            self.report_move(child_sas, cx);
        }
    }
}

/// Returns whether a peer may have this address, given ours. An address that stands for a TCP
/// connection is acceptable only where it is in use already.
fn is_acceptable(local: SocketAddr, remote: SocketAddr) -> bool {
    mobike::can_be_reached(remote.ip()) && remote.port() != 0 && remote.ip() != local.ip()
}

/// Sends UPDATE_SA_ADDRESSES, with COOKIE2.
pub(super) fn update(sa: &mut IkeSa, cx: &mut Context<'_>) -> Option<OutstandingRequest> {
    let path = sa.channel.message_path();
    let additional = mobike::own_additional(cx.config, &sa.profile.config, path.local.ip());
    let forced = sa.forced();
    let mobike = sa.mobike.as_ref()?;
    let mut payloads = Payloads::new();
    payloads.push_notify(Notify::new(NotifyType::UpdateSaAddresses));
    let additional = Some(additional).filter(|additional| *mobike.announced != **additional);
    payloads.extend(additional.iter().flat_map(|additional| mobike::additional(additional)));
    payloads.extend(mobike::protection(&path, sa.channel.ike, forced));
    let cookie = Cookie2::new(cx);
    payloads.push(cookie.payload());
    sa.channel.request(ExchangeType::Informational, &payloads, cx);
    Some(OutstandingRequest::UpdateAddresses(cookie, additional))
}

/// Handles the response to UPDATE_SA_ADDRESSES.
pub(super) fn updated(
    sa: &mut IkeSa,
    cookie: Cookie2,
    additional: Option<Vec<IpAddr>>,
    payloads: &Payloads,
    child_sas: &mut ChildSas,
    cx: &mut Context<'_>,
) -> SaStep {
    let refusal = payloads.error().map(|notify| notify.kind);
    // A refusal may lack COOKIE2, but must not contain a wrong one.
    let bare_refusal = refusal.is_some() && payloads.notify(NotifyType::Cookie2).is_none();
    if !bare_refusal && !cookie.is_returned(payloads) {
        return wrong_cookie();
    }
    if let (None, Some(additional), Some(mobike)) = (refusal, additional, &mut sa.mobike) {
        // A refused request changes nothing at the peer (RFC 4555 3.5, 3.9).
        mobike.announced = additional.into();
    }
    if !sa.channel.answer_shows_path() {
        //= RFC 4555 3.5 REQUIRED 6: the addresses changed again
        //= RFC 4555 3.7 REQUIRED 6: a request to several addresses shows no path
        sa.enqueue_first(QueuedRequest::UpdateAddresses);
        return SaStep::Continue;
    }
    let Some(mobike) = sa.mobike.as_mut() else { return SaStep::Continue };
    match refusal {
        //= RFC 4555 3.9 SHOULD 4: the update is tried several times
        Some(NotifyType::UnexpectedNatDetected) if mobike.unexpected_nats < sa.profile.config.timing.transmissions => {
            mobike.unexpected_nats = mobike.unexpected_nats.saturating_add(1);
            sa.enqueue_first(QueuedRequest::UpdateAddresses);
            return SaStep::Continue;
        }
        Some(kind) => {
            mobike.unexpected_nats = 0;
            sa.report(failure::update_refused(kind, &sa.channel.message_path()), cx);
            if sa.channel.is_unchecked() {
                // Inform the peer at its previous address, so that both ends have the same path
                // again.
                sa.channel.leave_unchecked_path();
                sa.enqueue_first(QueuedRequest::UpdateAddresses);
                return SaStep::Continue;
            }
            return SaStep::Reauthenticate;
        }
        None => mobike.unexpected_nats = 0,
    }
    mobike.seen_as = seen_as(payloads).or(mobike.seen_as.take());
    let mut path = sa.channel.message_path();
    if path.nat_traversal {
        //= RFC 4555 3.5 REQUIRED 7: NAT traversal on or off
        path.detect(sa.channel.ike, payloads, sa.forced());
    }
    sa.use_path(path, child_sas, cx);
    SaStep::Continue
}

/// Returns the step for a response in which COOKIE2 is wrong or missing.
fn wrong_cookie() -> SaStep {
    //= RFC 4555 3.7 MUST 5: a different COOKIE2 closes the IKE SA
    SaStep::End(DownReason::Failed, failure::wrong_cookie2())
}

fn seen_as(payloads: &Payloads) -> Option<[u8; mobike::NAT_DETECTION_HASH_LEN]> {
    payloads.notify(NotifyType::NatDetectionDestinationIp)?.data.as_slice().try_into().ok()
}

/// Announces our addresses again if the peer's list was sent from another address. Call this after
/// the CHILD_SAs have moved, not immediately after UPDATE_SA_ADDRESSES.
//= RFC 4555 3.6 REQUIRED 3: the source of the message is part of the list
pub(super) fn announce_from_new_address(sa: &mut IkeSa) {
    let local = sa.channel.message_path().local.ip();
    if sa.lifecycle == Lifecycle::Active && sa.mobike.as_ref().is_some_and(|mobike| mobike.announced_from != local) {
        sa.enqueue(QueuedRequest::AnnounceAddresses);
    }
}

/// Announces our addresses to the peer. The message contains the addresses other than the one in
/// use, which is in the IP header.
pub(super) fn announce(sa: &mut IkeSa, cx: &mut Context<'_>) -> Option<OutstandingRequest> {
    let path = sa.channel.message_path();
    let additional = mobike::own_additional(cx.config, &sa.profile.config, path.local.ip());
    sa.mobike.as_ref()?;
    let mut payloads: Payloads = mobike::additional(&additional).into_iter().collect();
    if !path.nat_traversal {
        payloads.extend(mobike::protection(&path, sa.channel.ike, false));
    }
    sa.channel.request(ExchangeType::Informational, &payloads, cx);
    Some(OutstandingRequest::AnnounceAddresses(path.local.ip(), additional))
}

/// Handles the response to [`announce`].
pub(super) fn announced(
    sa: &mut IkeSa,
    address: IpAddr,
    additional: Vec<IpAddr>,
    payloads: &Payloads,
    cx: &mut Context<'_>,
) -> SaStep {
    let present = sa.channel.message_path().local.ip();
    //= RFC 4555 3.6 MUST 2: another source needs another request
    let changed = present != address || mobike::own_additional(cx.config, &sa.profile.config, present) != additional;
    let retries = sa.profile.config.timing.transmissions;
    let Some(mobike) = sa.mobike.as_mut() else { return SaStep::Continue };
    let refused = payloads.notify(NotifyType::UnexpectedNatDetected).is_some();
    // A list that is refused for good is not announced again until it changes.
    if !refused || mobike.unexpected_nats >= retries {
        (mobike.announced, mobike.announced_from) = (additional.into(), address);
    }
    if changed || (refused && mobike.unexpected_nats < retries) {
        mobike.unexpected_nats = mobike.unexpected_nats.saturating_add(u32::from(refused));
        // Queue the announcement behind a move that is in progress, since the move must not wait.
        sa.enqueue(QueuedRequest::AnnounceAddresses);
    } else {
        mobike.unexpected_nats = 0;
        if refused {
            sa.report(failure::update_refused(NotifyType::UnexpectedNatDetected, &sa.channel.path), cx);
        }
    }
    SaStep::Continue
}

/// Sends the request that checks whether the peer receives at the address of its
/// UPDATE_SA_ADDRESSES.
pub(super) fn check(sa: &mut IkeSa, cx: &mut Context<'_>) -> Option<OutstandingRequest> {
    if !sa.channel.is_unchecked() {
        return None;
    }
    let cookie = Cookie2::new(cx);
    sa.channel.request(ExchangeType::Informational, &Payloads::from(vec![cookie.payload()]), cx);
    Some(OutstandingRequest::CheckAddress(cookie))
}

/// Handles the response to [`check`].
pub(super) fn checked(
    sa: &mut IkeSa,
    cookie: Cookie2,
    payloads: &Payloads,
    child_sas: &mut ChildSas,
    cx: &mut Context<'_>,
) -> SaStep {
    //= RFC 4555 3.7 MUST 4: COOKIE2 is compared with the one that was sent
    if !cookie.is_returned(payloads) {
        return wrong_cookie();
    }
    if !sa.channel.is_unchecked() {
        return SaStep::Continue;
    }
    if sa.channel.answer_shows_path() {
        //= RFC 4555 3.7 SHOULD 1: the path is checked
        //= RFC 4555 3.7 SHOULD 2: ESP follows after the check
        sa.use_path(sa.channel.message_path(), child_sas, cx);
    } else {
        //= RFC 4555 3.7 REQUIRED 6: a request to several addresses shows no path
        sa.enqueue_first(QueuedRequest::CheckAddress);
    }
    SaStep::Continue
}

/// Returns the payloads of a liveness check. If we are the original initiator and behind a NAT,
/// they let us detect whether the NAT has a new mapping for us. A TCP connection has no mapping
/// that can change, and each end has its own address that stands for it.
pub(super) fn of_liveness_check(sa: &IkeSa) -> Payloads {
    let path = sa.channel.message_path();
    //= RFC 4555 3.8 SHOULD 2: liveness checks detect a changed NAT mapping
    let notifies = detects_mapping(sa).then(|| path.notifies(sa.channel.ike, sa.forced()));
    notifies.into_iter().flatten().map(Payload::Notify).collect()
}

/// Returns whether our liveness checks detect a new mapping of the NAT.
fn detects_mapping(sa: &IkeSa) -> bool {
    let path = sa.channel.message_path();
    let by_udp = !is_reserved_for_tcp(path.remote.ip());
    sa.mobike.is_some() && sa.initiation().by_us() && path.nat_local && path.nat_traversal && by_udp
}

/// Asks whether the NAT has a new mapping for us, after TEMPORARY_FAILURE. The peer may have
/// refused because of a request of its own, which it sends to the former mapping. As long as it
/// answers our requests, no liveness check is due.
pub(super) fn check_mapping(sa: &mut IkeSa) {
    if sa.lifecycle == Lifecycle::Active && detects_mapping(sa) && !mutation!("mapping_not_checked_after_refusal") {
        sa.enqueue(QueuedRequest::Liveness);
    }
}

/// Handles the response to a liveness check.
pub(super) fn liveness_checked(sa: &mut IkeSa, payloads: &Payloads) {
    let by_us = sa.initiation().by_us();
    // Without a NAT, the peer sees the address from which we send.
    let as_from_here = nat_detection_hash(sa.channel.ike, sa.channel.path.local);
    let Some(mobike) = sa.mobike.as_mut().filter(|_| by_us) else { return };
    let seen = seen_as(payloads);
    let known = mobike.seen_as.as_ref().unwrap_or(&as_from_here);
    if seen.as_ref().is_some_and(|seen| seen != known) && !mutation!("nat_mapping_not_compared") {
        //= RFC 4555 3.8 SHOULD 3: update the addresses if the mapping changed
        mobike.seen_as = seen;
        sa.enqueue_first(QueuedRequest::UpdateAddresses);
    }
}

/// Adds the requested payloads to the response, and carries out or records the changes that the
/// peer's request causes. A return routability check is sent before the response. The peer's answer
/// to it therefore arrives before the peer's next request, so CHILD_SAs of that request have the
/// new addresses.
pub(super) fn answer(
    sa: &mut IkeSa,
    payloads: &Payloads,
    answer: &mut Payloads,
    child_sas: &mut ChildSas,
    cx: &mut Context<'_>,
) -> AddressChange {
    let mut change = AddressChange::default();
    if sa.mobike.is_none() {
        return change;
    }
    let (local, remote) = sa.channel.request_addresses();
    let updates = payloads.notify(NotifyType::UpdateSaAddresses).is_some();
    let announced = mobike::additional_of(payloads);
    let in_use = (local, remote) == (sa.channel.path.local, sa.channel.path.remote);
    let mut path = Path { local, remote, ..sa.channel.path };
    if payloads.notify(NotifyType::NatDetectionSourceIp).is_some() && path.nat_traversal {
        //= RFC 4555 3.8 MUST 1: NAT detection is answered by NAT detection
        answer.extend(path.notifies(sa.channel.ike, sa.forced()).map(Payload::Notify));
        path.detect(sa.channel.ike, payloads, sa.forced());
    }
    if (updates || announced.is_some())
        && mobike::finds_unexpected_nat(payloads, local, remote)
        && !mutation!("unexpected_nat_accepted")
    {
        //= RFC 4555 3.9 REQUIRED 3: UNEXPECTED_NAT_DETECTED
        answer.push_notify(Notify::new(NotifyType::UnexpectedNatDetected));
        sa.report(failure::unexpected_nat(&path), cx);
    } else if updates && (sa.initiation().by_us() || !(in_use || is_acceptable(local, remote))) {
        answer.push_notify(Notify::new(NotifyType::UnacceptableAddresses));
    } else {
        if let Some(addresses) = announced {
            let by_us = sa.initiation().by_us();
            let current = sa.channel.message_addresses().1.ip();
            let left = current != remote.ip() && !addresses.contains(&current);
            change.peer_left_for = Some(remote).filter(|_| left && by_us);
            if let Some(mobike) = &mut sa.mobike {
                //= RFC 4555 3.6 REQUIRED 1: the list replaces the former one
                mobike.peer_addresses = addresses.into();
                if by_us {
                    mobike.announced_by_peer_from = remote;
                }
            }
        }
        if updates {
            take_update(sa, path, child_sas, cx);
        }
    }
    answer.extend(mobike::returned_cookie(payloads));
    change
}

/// Handles an address update by the original initiator.
fn take_update(sa: &mut IkeSa, path: Path, child_sas: &mut ChildSas, cx: &mut Context<'_>) {
    // An address update must not delay the end of an IKE SA.
    if sa.lifecycle == Lifecycle::Deleting {
        return;
    }
    //= RFC 4555 3.5 REQUIRED 5: the addresses of the IP header
    if path.remote == sa.channel.path.remote || mutation!("esp_moves_before_the_check") {
        let before = sa.channel.message_addresses();
        sa.use_path(path, child_sas, cx);
        if sa.channel.message_addresses() != before {
            //= RFC 4555 3.5 REQUIRED 4: outstanding requests use the new addresses
            sa.channel.redirect(cx);
        }
        return;
    }
    if sa.channel.message_path() != path {
        sa.channel.check_path(path, cx);
    }
    if sa.channel.busy() {
        sa.enqueue_first(QueuedRequest::CheckAddress);
    } else {
        sa.outstanding = check(sa, cx);
    }
}

/// Makes the address changes that a request caused. Call this after the response was sent.
pub(super) fn follow(sa: &mut IkeSa, change: AddressChange, cx: &mut Context<'_>) {
    if let Some(remote) = change.peer_left_for
        && let Some(local) = sa.local_towards(remote.ip(), cx)
    {
        sa.move_to(local, remote, cx);
    }
}

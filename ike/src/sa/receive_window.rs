//! The window for the peer's requests (RFC 7296 2.3): requests that arrive before an earlier one,
//! and the responses to the last requests.
//!
//! Requests are carried out in the order of their message IDs. So "the peer answered before it
//! sent" stays known for each pair of messages, and the rules for collisions (2.8.1, 2.25) need no
//! second form.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use super::channel::Channel;
use super::last_response::LastResponse;
use super::partial_message::REASSEMBLY_TIMEOUT;
use crate::config::AgentNotifications;
use crate::crypto::{OpenError, Opened};
use crate::output::Context;
use crate::time::Instant;
use crate::wire::{Delete, ExchangeType, Notify, Payload, Payloads};

/// Number of requests that a peer may send before we have answered the first of them, once we have
/// announced it.
pub(super) const WINDOW: u8 = 4;
/// Maximum number of datagrams of an IKE SA that wait for an earlier request. Further ones are
/// dropped, and the peer sends them again.
pub(super) const MAX_HELD: usize = 64;
/// Maximum size of these datagrams, bytes. Further ones are dropped.
pub(super) const MAX_HELD_OCTETS: usize = 16_384;
/// Maximum size of the responses before the last one, bytes. The oldest is forgotten first. Our
/// responses are small: four of them with the largest shares, MODP-4096, fit.
const MAX_OLDER_OCTETS: usize = 16_384;
/// Time after which a response other than the last one is forgotten. RFC 7296 2.1 allows this
/// "after a timeout of several minutes".
pub(super) const OLDER_RESPONSE_KEPT: Duration = Duration::from_secs(180);

/// What an IKE SA has only if the window is larger than one and is in use.
#[derive(Debug, Default)]
pub(super) struct ReceiveWindow {
    /// In the order of arrival.
    held: Vec<HeldDatagram>,
    /// Newest first.
    older: VecDeque<OlderResponse>,
}

/// A datagram of the peer, and the addresses between which it came.
#[derive(Debug, Clone, Copy)]
pub(super) struct ArrivedDatagram<'a> {
    /// The message ID in its header.
    pub(super) id: u32,
    /// The datagram without the non-ESP marker.
    pub(super) octets: &'a [u8],
    /// Our address and port.
    pub(super) local: SocketAddr,
    /// The peer's address and port.
    pub(super) remote: SocketAddr,
}

/// An authentic request, or a fragment of one, that waits for an earlier request.
#[derive(Debug)]
pub(crate) struct HeldDatagram {
    id: u32,
    since: Instant,
    /// The datagram without the non-ESP marker.
    pub(crate) datagram: Box<[u8]>,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
}

#[derive(Debug)]
struct OlderResponse {
    id: u32,
    /// When the response after it was sent.
    since: Instant,
    response: LastResponse,
}

impl Channel {
    /// Returns the notification that announces our window, unless the peer is an agent of ours:
    /// between two agents there is one CHILD_SA, and neither sends a second request.
    pub(super) fn window_size(&self) -> Option<Payload> {
        let config = &self.profile.as_ref()?.config;
        let foreign = config.agent_notifications == AgentNotifications::Off;
        foreign.then(|| Payload::Notify(Notify::window_size(WINDOW.into())))
    }

    /// Begins to take further requests, since the IKE_AUTH exchange has announced the window.
    //= RFC 7296 2.3 REQUIRED 11: one until the initial exchanges are complete
    pub(super) fn open_window(&mut self) {
        if self.window_size().is_some() {
            self.window = WINDOW;
        }
    }

    /// Announces our window on an IKE SA that a rekey has created. Such an IKE SA begins with a
    /// window of one. `payloads` is our message before it is encrypted.
    pub(super) fn announce_window(&mut self, exchange: ExchangeType, payloads: &Payloads) -> Option<Payloads> {
        let ends = payloads.deletes().any(|delete| *delete == Delete::Ike);
        if self.window > 1 || exchange == ExchangeType::IkeAuth || ends {
            return None;
        }
        let announcement = self.window_size()?;
        self.open_window();
        let mut payloads = payloads.clone();
        payloads.push(announcement);
        Some(payloads)
    }

    /// Returns whether the peer may send a request with this message ID while the next one is
    /// missing.
    pub(super) fn is_in_window(&self, id: u32) -> bool {
        let wider = if mutation!("window_wider_than_announced") { 2 } else { 1 };
        let width = u32::from(self.window).saturating_mul(wider);
        id.checked_sub(self.next_expected).is_some_and(|ahead| ahead < width)
    }

    /// Answers a request again that was answered before.
    pub(super) fn answer_again(&mut self, arrived: ArrivedDatagram<'_>, cx: &mut Context<'_>) {
        let ArrivedDatagram { id, octets, local, remote } = arrived;
        let last = id.checked_add(1) == Some(self.next_expected);
        let older = self.received.iter_mut().flat_map(|window| &mut window.older);
        let older = older.filter(|older| !last && older.id == id).map(|older| &mut older.response).next();
        let Some(response) = self.last_response.as_mut().filter(|_| last).or(older) else { return };
        // RFC 7383 2.5.2, 2.6.1: the peer may send its request again in smaller fragments, in which
        // case the first fragment counts as the retransmission.
        if matches!(self.cipher.open(octets), Ok(Opened::Fragment(fragment)) if fragment.number == 1) {
            response.send(local, remote, cx);
        } else {
            //= RFC 7296 2.1 MUST 2: a repeated request does nothing else
            response.repeat(octets, local, remote, cx);
        }
    }

    /// Holds a request that arrived before an earlier one, if it is authentic and within the
    /// window. It has no other effect before its turn. If it comes again, only its addresses
    /// change: the response goes to where the request came from last.
    //= RFC 7296 2.3 REQUIRED 12: requests out of order
    pub(super) fn hold(&mut self, arrived: ArrivedDatagram<'_>, cx: &mut Context<'_>) {
        let ArrivedDatagram { id, octets, local, remote } = arrived;
        //= RFC 7296 2.3 MUST NOT 9: no answer outside of the window
        if !self.is_in_window(id) {
            return;
        }
        if let Some(window) = &mut self.received {
            if let Some(held) = window.held.iter_mut().find(|held| *held.datagram == *octets) {
                (held.local, held.remote) = (local, remote);
                return;
            }
            let size: usize = window.held.iter().map(|held| held.datagram.len()).sum();
            if window.held.len() >= MAX_HELD || size.saturating_add(octets.len()) > MAX_HELD_OCTETS {
                return;
            }
        }
        if matches!(self.cipher.open(octets), Err(OpenError::Malformed(_) | OpenError::Forged)) {
            return;
        }
        let held = HeldDatagram { id, since: cx.now, datagram: octets.into(), local, remote };
        self.received.get_or_insert_default().held.push(held);
    }

    /// Takes a held datagram of the request whose turn has come.
    pub(crate) fn take_held(&mut self) -> Option<HeldDatagram> {
        let next = self.next_expected;
        let window = self.received.as_mut()?;
        let at = window.held.iter().position(|held| held.id == next)?;
        Some(window.held.remove(at))
    }

    /// Makes room for the response that is sent now. The one before it is kept as long as the peer
    /// may ask for it.
    //= RFC 7296 2.3 MUST 7: a copy of the response
    pub(super) fn keep_older_response(&mut self, now: Instant) {
        let answered = self.next_expected;
        let before = self.last_response.take().filter(|_| self.window > 1 && !mutation!("older_responses_forgotten"));
        if let Some(response) = before {
            let older = &mut self.received.get_or_insert_default().older;
            older.push_front(OlderResponse { id: answered.saturating_sub(1), since: now, response });
            // The last response is one of those that the window promises.
            older.truncate(usize::from(WINDOW).saturating_sub(1));
            while older.iter().map(|it| it.response.octets()).sum::<usize>() > MAX_OLDER_OCTETS {
                older.pop_back();
            }
        }
        if let Some(window) = &mut self.received {
            window.held.retain(|held| held.id > answered);
        }
    }

    /// Forgets what has waited for too long for an earlier request, and old responses.
    pub(super) fn forget_stale_window(&mut self, now: Instant) {
        let Some(window) = &mut self.received else { return };
        window.held.retain(|held| now < held.since + REASSEMBLY_TIMEOUT);
        window.older.retain(|older| now < older.since + OLDER_RESPONSE_KEPT);
        if window.held.is_empty() && window.older.is_empty() {
            self.received = None;
        }
    }

    /// Takes any held datagram.
    #[cfg(test)]
    pub(super) fn take_any_held(&mut self) -> Option<HeldDatagram> {
        self.received.as_mut()?.held.pop()
    }

    /// Returns the size of the held datagrams and of the responses before the last one, bytes.
    #[cfg(test)]
    pub(super) fn window_octets(&self) -> (usize, usize) {
        self.received.as_ref().map_or((0, 0), |window| {
            let held = window.held.iter().map(|held| held.datagram.len()).sum();
            (held, window.older.iter().map(|older| older.response.octets()).sum())
        })
    }
}

//! The window of one end of an IKE SA (RFC 7296 2.3): as many requests as this end has announced
//! may arrive before it has answered the first of them, and as many responses are kept.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use super::ike_sa::{IkeSa, Received};
use super::octets::{Header, Message, notify};
use super::{Judged, require};

/// RFC 7296 2.1: a response may be forgotten "after a timeout of several minutes".
const SEVERAL_MINUTES: Duration = Duration::from_secs(180);

/// A response that this end has sent.
#[derive(Debug, Clone)]
pub struct Answer {
    pub id: u32,
    pub first_datagram: Vec<u8>,
    pub datagrams: Vec<Vec<u8>>,
    pub at: Duration,
}

/// A datagram of a request that arrived before an earlier request.
#[derive(Debug, Clone)]
pub struct Early {
    header: Header,
    datagram: Vec<u8>,
    local: SocketAddr,
    from: SocketAddr,
}

/// The window of this end.
#[derive(Debug, Clone)]
pub struct Window {
    /// The number of requests: one, unless this end has announced more on this IKE SA.
    size: u32,
    early: Vec<Early>,
    /// Newest first.
    answers: VecDeque<Answer>,
}

impl Default for Window {
    fn default() -> Self {
        Self { size: 1, early: Vec::new(), answers: VecDeque::new() }
    }
}

impl Window {
    /// Reads the announcement in a message that this end sends.
    pub fn announced(&mut self, message: Option<&Message>) -> Judged {
        let Some(notify) = message.and_then(|message| message.notify(notify::SET_WINDOW_SIZE)) else { return Ok(()) };
        //= RFC 7296 2.3 MUST 1: four octets
        let size = <[u8; 4]>::try_from(notify.data.as_slice()).map_or(0, u32::from_be_bytes);
        require!(size > 0, "RFC 7296 2.3", "SET_WINDOW_SIZE with {:x?}", notify.data);
        self.size = self.size.max(size);
        Ok(())
    }

    /// Returns whether this end may hold a request of the peer, while `next` is missing.
    pub fn may_hold(&self, id: u32, next: u32) -> bool {
        id.checked_sub(next).is_some_and(|ahead| ahead > 0 && ahead < self.size)
    }

    /// Records a request that is early. It may have no effect before its turn. If it comes again,
    /// the response goes to where it came from last.
    pub fn hold(&mut self, header: &Header, datagram: &[u8], local: SocketAddr, from: SocketAddr) {
        //= RFC 7296 2.11 MUST 2: the response goes back
        if let Some(early) = self.early.iter_mut().find(|early| early.datagram == datagram) {
            (early.local, early.from) = (local, from);
            return;
        }
        self.early.push(Early { header: *header, datagram: datagram.to_vec(), local, from });
    }

    fn take_early(&mut self, id: u32) -> Option<Early> {
        self.early.retain(|early| early.header.id >= id);
        let at = self.early.iter().position(|early| early.header.id == id)?;
        Some(self.early.remove(at))
    }

    /// Records a response.
    pub fn answered(&mut self, answer: Answer) {
        self.answers.push_front(answer);
        //= RFC 7296 2.3 MUST 7: a copy of the response
        self.answers.truncate(self.size as usize);
    }

    /// Returns the response to a request that arrives once more: byte for byte, or its first
    /// fragment.
    pub fn answer_to(&self, datagram: &[u8]) -> Option<&Answer> {
        self.answers.iter().find(|answer| answer.first_datagram == datagram)
    }

    pub fn answer(&self, id: u32) -> Option<&Answer> {
        self.answers.iter().find(|answer| answer.id == id)
    }

    /// Returns whether this end must still have the response: it is the last one, or one of the
    /// others within several minutes.
    pub fn must_have(&self, id: u32, at: Duration) -> bool {
        let last = self.answers.front().is_some_and(|answer| answer.id == id);
        last || self.answers.iter().any(|answer| answer.id == id && at < answer.at + SEVERAL_MINUTES)
    }
}

impl IkeSa {
    /// Returns the next request of the peer, if it arrived early, and its addresses: ours and the
    /// peer's.
    pub fn next_early(&mut self) -> Option<(Header, Option<Message>, SocketAddr, SocketAddr)> {
        let next = self.next_peer();
        while let Some(early) = self.window.take_early(next) {
            if let Received::Request(header, message) =
                self.receive(&early.header, &early.datagram, early.local, early.from)
            {
                return Some((header, message, early.local, early.from));
            }
        }
        None
    }
}

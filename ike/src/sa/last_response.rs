//! Sends a response again for a retransmitted request (RFC 7296 2.1). `responder` does the
//! same for IKE_SA_INIT.

use std::net::SocketAddr;
use std::time::Duration;

use ring::digest::{SHA256, digest};

use crate::output::Context;
use crate::time::Instant;

/// Maximum number of times that a response is sent again in a burst. RFC 7296 2.4 suggests a dozen
/// transmissions of a request. Without a limit, an attacker who copies the request could make us
/// send the response to another host forever.
pub(super) const MAX_REPEATS: u8 = 16;
/// Time after which the response may be sent once more. A peer that changes its address sends its
/// request from each new one, so the total number of repetitions has no limit.
const REPEAT_INTERVAL: Duration = Duration::from_secs(1);

/// A response, stored until the next request, or until as many requests as the window announces
/// (RFC 7296 2.1). A retransmitted request is
/// recognized by its hash, so only an exact copy of the request causes another transmission.
#[derive(Debug)]
pub(crate) struct LastResponse {
    request: [u8; 32],
    packets: Box<[Box<[u8]>]>,
    /// How often the response may be sent again now, at most [`MAX_REPEATS`] times.
    repeats_left: u8,
    /// The time until which `repeats_left` has grown.
    counted: Instant,
}

impl LastResponse {
    /// Stores the packets of the response to the request whose datagram (or first fragment) has
    /// this [`fingerprint`].
    pub(super) fn new(request: [u8; 32], packets: Vec<Vec<u8>>, now: Instant) -> Self {
        let packets = packets.into_iter().map(Vec::into_boxed_slice).collect();
        Self { request, packets, repeats_left: MAX_REPEATS, counted: now }
    }

    /// Returns the size of the response, bytes.
    pub(super) fn octets(&self) -> usize {
        self.packets.iter().map(|packet| packet.len()).sum()
    }

    /// Sends the response again if this datagram is the request (or its first fragment, RFC 7383
    /// 2.6.1).
    pub(crate) fn repeat(&mut self, datagram: &[u8], local: SocketAddr, remote: SocketAddr, cx: &mut Context<'_>) {
        //= RFC 7296 2.1 MUST NOT 1: no response unasked
        if fingerprint(datagram) == self.request || mutation!("any_old_request_answered") {
            self.send(local, remote, cx);
        }
    }

    /// Sends the response again, at most [`MAX_REPEATS`] times in a burst and then once in each
    /// [`REPEAT_INTERVAL`].
    pub(super) fn send(&mut self, local: SocketAddr, remote: SocketAddr, cx: &mut Context<'_>) {
        while self.repeats_left < MAX_REPEATS && self.counted + REPEAT_INTERVAL <= cx.now {
            self.repeats_left = self.repeats_left.saturating_add(1);
            self.counted = self.counted + REPEAT_INTERVAL;
        }
        if self.repeats_left == MAX_REPEATS {
            self.counted = cx.now;
        }
        //= RFC 7296 2.1 MUST 5: a forgotten response is not made again
        let Some(left) = self.repeats_left.checked_sub(1) else { return };
        self.repeats_left = left;
        for packet in &self.packets {
            cx.out.message(local, remote, cx.config.nat_port, packet);
        }
    }
}

/// Returns the hash that identifies a retransmitted datagram.
pub(super) fn fingerprint(datagram: &[u8]) -> [u8; 32] {
    digest(&SHA256, datagram).as_ref().try_into().unwrap_or_default()
}

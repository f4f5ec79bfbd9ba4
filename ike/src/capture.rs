//! Copies of IKE messages with their payloads in clear, for debugging. The copies contain no keys:
//! the key exchange shares, nonces and AUTH payloads in them are also known to the peer.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};

use crate::wire::{Header, Message, Payloads};

/// Maximum total size of copies that the owner has not taken yet, bytes. Further messages are
/// dropped and counted.
const MAX_OCTETS: usize = 1 << 20;
/// Maximum number of IKE SAs whose messages are captured even after the peer has moved to another
/// address. At the limit, the oldest IKE SA is removed from the capture.
const MAX_SAS: usize = 64;

/// A copy of an IKE message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapturedMessage {
    /// Whether we sent the message.
    pub outgoing: bool,
    /// Our address and port.
    pub local: SocketAddr,
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// The message, without the non-ESP marker. The payloads of an encrypted message are decrypted,
    /// and a message that came in fragments is reassembled.
    pub message: Vec<u8>,
}

/// The messages captured since the last call of [`Endpoint::take_captured`](crate::Endpoint).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Captured {
    /// The messages, oldest first.
    pub messages: Vec<CapturedMessage>,
    /// Number of messages that were dropped because there was no room for them.
    pub dropped: u64,
}

/// The selection of messages to copy, and the copies that the owner has not taken yet.
#[derive(Debug, Default)]
pub(crate) struct Capture {
    addresses: BTreeSet<IpAddr>,
    /// Initiator's SPIs of the IKE SAs that used one of the captured addresses.
    sas: VecDeque<u64>,
    captured: Captured,
    octets: usize,
}

impl Capture {
    pub(crate) fn new(addresses: BTreeSet<IpAddr>) -> Self {
        Self { addresses, ..Self::default() }
    }

    /// Copies a message that was sent in clear.
    pub(crate) fn clear(&mut self, outgoing: bool, local: SocketAddr, remote: SocketAddr, message: &[u8]) {
        if let Some(header) = Header::peek(message)
            && self.concerns(&header, remote)
        {
            self.keep(CapturedMessage { outgoing, local, remote, message: message.to_vec() });
        }
    }

    /// Copies the decrypted payloads of a message.
    pub(crate) fn encrypted(
        &mut self,
        outgoing: bool,
        (local, remote): (SocketAddr, SocketAddr),
        header: &Header,
        payloads: &Payloads,
    ) {
        if self.concerns(header, remote) {
            let message = Message { header: *header, payloads: payloads.clone() }.encode();
            self.keep(CapturedMessage { outgoing, local, remote, message });
        }
    }

    pub(crate) fn take(&mut self) -> Captured {
        self.octets = 0;
        std::mem::take(&mut self.captured)
    }

    fn concerns(&mut self, header: &Header, remote: SocketAddr) -> bool {
        let known = self.sas.contains(&header.initiator_spi);
        if !known && self.addresses.contains(&remote.ip()) {
            if self.sas.len() >= MAX_SAS {
                self.sas.pop_front();
            }
            self.sas.push_back(header.initiator_spi);
            return true;
        }
        known
    }

    fn keep(&mut self, message: CapturedMessage) {
        let octets = self.octets.saturating_add(message.message.len());
        if octets > MAX_OCTETS {
            self.captured.dropped = self.captured.dropped.saturating_add(1);
        } else {
            self.octets = octets;
            self.captured.messages.push(message);
        }
    }
}

//! Copies of IKE messages with their payloads in clear, for whoever looks for a fault. They hold no
//! key: shares of key exchanges, nonces and proofs of authentication are what the peer sees too.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};

use crate::wire::{Header, Message, Payloads};

/// Most octets of messages that wait for the owner. Further ones are dropped and counted.
const MAX_OCTETS: usize = 1 << 20;
/// Most IKE SAs whose messages are captured wherever the peer moves. The oldest is forgotten first.
const MAX_SAS: usize = 64;

/// A copy of an IKE message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapturedMessage {
    /// We sent it.
    pub outgoing: bool,
    /// Our address and port.
    pub local: SocketAddr,
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// The message, without non-ESP marker. If it was encrypted, the payloads stand in it in clear,
    /// and one that came in fragments is whole.
    pub message: Vec<u8>,
}

/// What was captured since the last call of [`Endpoint::take_captured`](crate::Endpoint).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Captured {
    /// The messages, oldest first.
    pub messages: Vec<CapturedMessage>,
    /// How many more there were, for which there was no room.
    pub dropped: u64,
}

/// Which messages are copied, and copies that wait.
#[derive(Debug, Default)]
pub(crate) struct Capture {
    addresses: BTreeSet<IpAddr>,
    /// Initiator's SPIs of IKE SAs that were seen at the addresses.
    sas: VecDeque<u64>,
    captured: Captured,
    octets: usize,
}

impl Capture {
    pub(crate) fn new(addresses: BTreeSet<IpAddr>) -> Self {
        Self { addresses, ..Self::default() }
    }

    /// Copies a message in clear.
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

//! A message of an IKE SA, while only some of its fragments have arrived (RFC 7383 2.6).

use std::time::Duration;

use super::last_response::fingerprint;
use crate::crypto::Opened;
use crate::time::Instant;
use crate::wire::{InvalidMessage, Payloads, Reassembly};

/// Maximum time for which fragments wait for the rest of their message. It is longer than the time
/// for which a peer retransmits.
pub(super) const REASSEMBLY_TIMEOUT: Duration = Duration::from_secs(30);

/// What has arrived of a message.
#[derive(Debug, Default)]
pub(super) struct PartialMessage {
    reassembly: Reassembly,
    first_datagram: Option<[u8; 32]>,
    /// When the first fragment arrived.
    since: Option<Instant>,
}

impl PartialMessage {
    /// Adds the contents of an authentic datagram. Returns the message once it is complete.
    /// `request` is the datagram if it belongs to a request, which may arrive again.
    pub(super) fn add(
        &mut self,
        opened: Result<Opened, InvalidMessage>,
        request: Option<&[u8]>,
        now: Instant,
    ) -> Option<Result<Payloads, InvalidMessage>> {
        let fragment = match opened {
            Ok(Opened::Fragment(fragment)) => fragment,
            Ok(Opened::Message(payloads)) => {
                self.first_datagram = request.map(fingerprint);
                return Some(Ok(payloads));
            }
            Err(error) => {
                self.first_datagram = request.map(fingerprint);
                return Some(Err(error));
            }
        };
        if fragment.number == 1 {
            self.first_datagram = request.map(fingerprint);
        }
        self.since.get_or_insert(now);
        match self.reassembly.add(fragment) {
            // RFC 7383 2.6: a fragment with impossible numbers is dropped.
            Err(InvalidMessage::FragmentNumber { .. }) => None,
            complete => complete.transpose(),
        }
    }

    /// Returns the size of the fragments, bytes.
    pub(super) fn octets(&self) -> usize {
        self.reassembly.octets()
    }

    /// Returns whether fragments have waited for [`REASSEMBLY_TIMEOUT`].
    pub(super) fn is_stale(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| since + REASSEMBLY_TIMEOUT <= now)
    }

    /// Returns the fingerprint of a request's datagram, or of its first fragment.
    pub(super) fn first_datagram(&self) -> [u8; 32] {
        self.first_datagram.unwrap_or_default()
    }
}

//! Starts and stops the capture of IKE messages for the owner, and returns the copies.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::state::Endpoint;
use crate::capture::{Capture, Captured};

impl Endpoint {
    /// Starts to copy each IKE message, decrypted, to or from one of these addresses, or of an IKE
    /// SA that has used one of them. A retransmitted encrypted request is copied only once.
    /// Messages that cannot be decrypted are not copied. Ends an earlier capture.
    pub fn begin_capture(&mut self, addresses: BTreeSet<IpAddr>) {
        self.out.capture = Some(Capture::new(addresses));
    }

    /// Returns the messages copied since the last call. Call this after every call into the
    /// endpoint: the buffer for copies is small, and messages that do not fit are dropped and
    /// counted.
    pub fn take_captured(&mut self) -> Captured {
        self.out.capture.as_mut().map(Capture::take).unwrap_or_default()
    }

    /// Ends the capture and drops the copies that were not taken.
    pub fn end_capture(&mut self) {
        self.out.capture = None;
    }
}

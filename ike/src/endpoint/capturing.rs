//! Starts and stops the capture of IKE messages for the owner, and hands over the copies.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::state::Endpoint;
use crate::capture::{Capture, Captured};

impl Endpoint {
    /// From now on, copies each IKE message, without its encryption, that goes to or comes from one
    /// of these addresses, or belongs to an IKE SA that has used one of them. An encrypted request
    /// that is retransmitted is copied once. Messages that cannot be read are not copied. An
    /// earlier capture ends.
    pub fn begin_capture(&mut self, addresses: BTreeSet<IpAddr>) {
        self.out.capture = Some(Capture::new(addresses));
    }

    /// Returns the messages copied since the last call. Call this after every call into the
    /// endpoint: the room for copies is small, and messages that do not fit are dropped and
    /// counted.
    pub fn take_captured(&mut self) -> Captured {
        self.out.capture.as_mut().map(Capture::take).unwrap_or_default()
    }

    /// Ends the capture and drops the copies that wait.
    pub fn end_capture(&mut self) {
        self.out.capture = None;
    }
}

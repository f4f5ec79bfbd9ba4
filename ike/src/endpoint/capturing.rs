//! The owner has messages copied.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::state::Endpoint;
use crate::capture::{Capture, Captured};

impl Endpoint {
    /// Copies each IKE message from now on, without its encryption, that goes to or comes from one
    /// of these addresses, or belongs to an IKE SA that was seen there. A request that is sent
    /// again is copied once if it is encrypted. Messages that cannot be read are not copied. An
    /// earlier capture ends.
    pub fn begin_capture(&mut self, addresses: BTreeSet<IpAddr>) {
        self.out.capture = Some(Capture::new(addresses));
    }

    /// What was copied since the last call. Take it after every call into the endpoint: little
    /// waits, and what does not fit is dropped and counted.
    pub fn take_captured(&mut self) -> Captured {
        self.out.capture.as_mut().map(Capture::take).unwrap_or_default()
    }

    /// Copies no more, and forgets what waits.
    pub fn end_capture(&mut self) {
        self.out.capture = None;
    }
}

//! The end that initiated an IKE SA, and the time at which it did.

use crate::time::Instant;

/// The end that initiated an IKE SA, and the time at which its IKE_SA_INIT was sent or arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Initiation {
    /// We are the initiator. Holds the time at which our IKE_SA_INIT was sent.
    ByUs(Instant),
    /// We are the responder. Holds the time at which the peer's IKE_SA_INIT arrived.
    ByPeer(Instant),
}

impl Initiation {
    pub(crate) fn at(self) -> Instant {
        match self {
            Self::ByUs(at) | Self::ByPeer(at) => at,
        }
    }

    pub(crate) fn by_us(self) -> bool {
        matches!(self, Self::ByUs(_))
    }
}

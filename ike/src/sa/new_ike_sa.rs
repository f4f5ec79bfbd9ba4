//! What is known about a new IKE SA that is to create the first child, which the peer refuses on
//! the present one.

use std::time::Duration;

use crate::time::Instant;

/// Time without another attempt if an IKE SA that we began for the first child has not created it
/// either, or has created it and the peer refuses it again, while there are other CHILD_SAs.
pub(super) const REFUSED_AGAIN: Duration = Duration::from_secs(600);

/// Whether another IKE SA was begun because the peer refuses the first child on this one.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum NewIkeSa {
    #[default]
    NotBegun,
    Begun,
    /// Its IKE_AUTH did not create the child either, at this time.
    Refused(Instant),
    /// None was begun for the child, but IKE_AUTH of this one or of another one did not create it,
    /// at this time.
    Unlikely(Instant),
    /// It is this one, since this time.
    IsThis(Instant),
}

impl NewIkeSa {
    /// Records that another IKE SA is to create the first child. Returns false if IKE_AUTH did not
    /// create it a short time ago: each of them is a handshake, and with some peers the end of this
    /// IKE SA.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        let begins = !matches!(*self, Self::Refused(at) | Self::Unlikely(at) if now < at + REFUSED_AGAIN);
        if begins {
            *self = Self::Begun;
        }
        begins
    }

    /// Copies what an IKE SA has recorded to this one, which replaces it by a rekey.
    pub(super) fn inherit(&mut self, old: Self) {
        if *self == Self::NotBegun {
            *self = old;
        }
    }

    /// Returns what is known on the new IKE SA that replaces this one by a new authentication, if
    /// it was begun for the first child. The peer may delete the child and refuse it again.
    pub(super) fn successor(self, now: Instant) -> Option<Self> {
        (self == Self::Begun).then_some(Self::IsThis(now))
    }

    /// Records that IKE_AUTH has not created the first child.
    pub(super) fn refused(&mut self, now: Instant) {
        *self = match self {
            Self::Begun | Self::Refused(_) => Self::Refused(now),
            Self::NotBegun | Self::Unlikely(_) | Self::IsThis(_) => Self::Unlikely(now),
        };
    }
}

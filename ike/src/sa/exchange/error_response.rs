//! A request that is answered by an error notification.

use crate::event::PeerError;
use crate::wire::{Notify, Payload, Payloads};

/// The notification that refuses, and what to tell people if there is something to tell.
pub(super) type ErrorResponse = (Notify, Option<PeerError>);

/// An answer that is one notification.
pub(super) fn single_notify(notify: Notify) -> Payloads {
    Payloads::from(vec![Payload::Notify(notify)])
}

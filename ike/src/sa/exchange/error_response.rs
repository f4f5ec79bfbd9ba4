//! A request that is answered by an error notification.

use crate::crypto::KeyExchangeError;
use crate::event::{PeerError, PeerErrorKind};
use crate::sa::failure::CREATE_CHILD_SA;
use crate::wire::{Notify, NotifyType, Payload, Payloads};

/// The error notification, and the error to report if there is one.
pub(super) type ErrorResponse = (Notify, Option<PeerError>);

/// A response that holds one notification.
pub(super) fn single_notify(notify: Notify) -> Payloads {
    Payloads::from(vec![Payload::Notify(notify)])
}

/// The peer's share of a key exchange cannot be used.
pub(super) fn invalid_share(error: KeyExchangeError) -> ErrorResponse {
    let error = PeerError::new(CREATE_CHILD_SA, PeerErrorKind::Protocol, error.to_string());
    (Notify::new(NotifyType::InvalidSyntax), Some(error))
}

//! The exchanges on an established IKE SA: starting, answering and finishing each of them.
//! Exchanges interleave: our request and the peer's may be outstanding at the same time and concern
//! the same CHILD_SA.
//!
//! - `established`: passes messages to the exchanges, sends queued requests, and handles deadlines.
//! - `request`: sends our requests when the window is free, and handles the peer's responses.
//! - `create_child_request`, `create_child_response`: CREATE_CHILD_SA for CHILD_SAs from either
//!   end.
//! - `rekey_ike_request`, `rekey_ike_response`: CREATE_CHILD_SA for the IKE SA itself.
//! - `addresses`: MOBIKE (RFC 4555): address updates, announcements of addresses, and return
//!   routability checks.
//! - `agent_notifications`: notifications for private use between agents of ours.
//! - `lost_mapping`: CHILD_SAs whose ESP stops after the NAT in front of us has changed its
//!   mapping.
//! - `superseded`: IKE SAs that another one has replaced.
//! - `informational`: INFORMATIONAL for deletion, liveness checks and errors.

mod addresses;
mod agent_notifications;
mod create_child_request;
mod create_child_response;
mod established;
mod informational;
mod lost_mapping;
mod rekey_ike_request;
mod rekey_ike_response;
mod request;
mod superseded;

pub(crate) use superseded::Survivor;

use crate::child_sas::ChildSas;
use crate::crypto::KeyExchangeError;
use crate::event::{PeerError, PeerErrorKind};
use crate::sa::failure::{self, CREATE_CHILD_SA};
use crate::time::Instant;
use crate::wire::{Notify, NotifyType, Payload, Payloads};

/// An error notification as the response to a request, and the error to report, if there is one.
type ErrorResponse = (Notify, Option<PeerError>);

/// Makes a response with one notification.
fn single_notify(notify: Notify) -> Payloads {
    Payloads::from(vec![Payload::Notify(notify)])
}

/// Counts a request of the peer that is about to be carried out. Returns the refusal if the peer
/// exceeds the rate.
fn check_rate(child_sas: &mut ChildSas, now: Instant) -> Result<(), ErrorResponse> {
    child_sas.requests.take(now).map_err(|exceeded| {
        //= RFC 7296 2.25 SHOULD 1: TEMPORARY_FAILURE
        (Notify::new(NotifyType::TemporaryFailure), exceeded.report.then(failure::too_many_requests))
    })
}

/// Returns the error for a share from the peer that cannot be used.
fn invalid_share(error: KeyExchangeError) -> ErrorResponse {
    let error = PeerError::new(CREATE_CHILD_SA, PeerErrorKind::Protocol, error.to_string());
    (Notify::new(NotifyType::InvalidSyntax), Some(error))
}

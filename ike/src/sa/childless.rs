//! The messages of childless initiation (RFC 6023).

use crate::wire::{Notify, NotifyType, PayloadType, Payloads};

/// Returns the notification with which a responder announces its support (RFC 6023 4). Its protocol
/// is zero, as for every notification without SPI (RFC 7296 3.10). RFC 6023 asks for 1, after the
/// older RFC 5996; peers ignore the field.
pub(super) fn supported() -> Notify {
    //= RFC 6023 4 MUST 2: no SPI
    Notify::new(NotifyType::ChildlessIkev2Supported)
}

/// Returns whether a responder announces its support.
pub(super) fn is_supported(payloads: &Payloads) -> bool {
    payloads.notify(NotifyType::ChildlessIkev2Supported).is_some()
}

/// Returns whether an IKE_AUTH request leaves out everything about a CHILD_SA (RFC 6023 5).
pub(super) fn leaves_out_child(payloads: &Payloads) -> bool {
    let about_child = [
        PayloadType::SecurityAssociation,
        PayloadType::TrafficSelectorsInitiator,
        PayloadType::TrafficSelectorsResponder,
    ];
    !payloads.iter().any(|payload| about_child.contains(&payload.kind()))
}

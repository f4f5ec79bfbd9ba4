//! Childless initiation (RFC 6023): IKE_AUTH without the first CHILD_SA.

use crate::wire::{Notify, NotifyType, PayloadType, Payloads};

/// Whether IKE_AUTH creates the first CHILD_SA. Without it, CREATE_CHILD_SA creates all CHILD_SAs,
/// each with its own key exchange if its proposals have one. The words are strongSwan's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Childless {
    /// IKE_AUTH creates the first CHILD_SA, also if the peer is the initiator.
    Never,
    /// As initiator, IKE_AUTH creates the first CHILD_SA. As responder, the peer may leave it out.
    #[default]
    Allow,
    /// As initiator, the first CHILD_SA is left out if the peer supports this. As responder, the
    /// peer may leave it out.
    Prefer,
    /// IKE_AUTH never creates a CHILD_SA. As initiator, a peer that does not support this is not
    /// authenticated. As responder, a CHILD_SA in IKE_AUTH is refused.
    Force,
}

/// Returns the notification with which a responder announces its support (RFC 6023 4). Its protocol
/// is zero, as for every notification without SPI (RFC 7296 3.10). RFC 6023 asks for 1, after the
/// older RFC 5996; peers ignore the field.
pub(crate) fn supported() -> Notify {
    //= RFC 6023 4 MUST 2: no SPI
    Notify::new(NotifyType::ChildlessIkev2Supported)
}

/// Returns whether a responder announces its support.
pub(crate) fn is_supported(payloads: &Payloads) -> bool {
    payloads.notify(NotifyType::ChildlessIkev2Supported).is_some()
}

/// Returns whether an IKE_AUTH request leaves out everything about a CHILD_SA (RFC 6023 5).
pub(crate) fn leaves_out_child(payloads: &Payloads) -> bool {
    let about_child = [
        PayloadType::SecurityAssociation,
        PayloadType::TrafficSelectorsInitiator,
        PayloadType::TrafficSelectorsResponder,
    ];
    !payloads.iter().any(|payload| about_child.contains(&payload.kind()))
}

//! Childless initiation (RFC 6023): IKE_AUTH without the first CHILD_SA.

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

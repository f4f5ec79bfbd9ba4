//! The algorithms of an IKE SA.

use crate::config::{Cipher, Group, Prf};

/// The algorithms chosen for an IKE SA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IkeSuite {
    /// Protects the messages of the IKE SA.
    pub cipher: Cipher,
    /// Derives keys and computes AUTH.
    pub prf: Prf,
    /// The key exchange method that was used to make the keys.
    pub group: Group,
}

impl std::fmt::Display for IkeSuite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.cipher, self.prf, self.group)
    }
}

//! The ways in which a peer can prove its identity.

/// How a peer has proved its identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Proof {
    /// By the pre-shared key.
    Psk,
    /// By an Ed25519 signature.
    Ed25519,
    /// By an ECDSA signature on the curve P-256.
    EcdsaP256,
    /// By an ECDSA signature on the curve P-384.
    EcdsaP384,
    /// By an RSA signature.
    Rsa,
}

impl Proof {
    /// Returns a short name, for display.
    pub fn name(self) -> &'static str {
        match self {
            Self::Psk => "psk",
            Self::Ed25519 => "ed25519",
            Self::EcdsaP256 => "ecdsa-p256",
            Self::EcdsaP384 => "ecdsa-p384",
            Self::Rsa => "rsa",
        }
    }
}

impl std::fmt::Display for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

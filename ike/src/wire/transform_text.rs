//! Texts of proposals and transforms, for the operator. All of them are ASCII of our own, whatever
//! a message contains.

use std::fmt;

use super::numbers::{Protocol, TransformType};
use super::sa::{Attribute, Proposal, Transform};

/// The order in which the transform types of a proposal are shown, as in the texts of our own
/// proposals. Others come after these.
const ORDER: [TransformType; 5] = [
    TransformType::Encryption,
    TransformType::Integrity,
    TransformType::Prf,
    TransformType::KeyExchange,
    TransformType::SequenceNumbers,
];

/// The algorithms of all types, such as `AES_CBC-256|AES_CBC-128/HMAC_SHA2_256_128/MODP_2048`. The
/// protocol is named if it is neither IKE nor ESP.
impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !matches!(self.protocol, Protocol::Ike | Protocol::Esp) {
            write!(f, "{}: ", self.protocol)?;
        }
        let known = ORDER.iter().flat_map(|kind| self.transforms_of(*kind));
        let others = self.transforms.iter().filter(|transform| !ORDER.contains(&transform.kind));
        let mut before = None;
        for transform in known.chain(others) {
            match before.replace(transform.kind) {
                None => {}
                Some(kind) if kind == transform.kind => f.write_str("|")?,
                Some(_) => f.write_str("/")?,
            }
            transform.fmt(f)?;
        }
        if before.is_none() { f.write_str("no algorithm") } else { Ok(()) }
    }
}

/// The algorithm by the name in the registry of IANA with its key length, or the type and number.
impl fmt::Display for Transform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match name(self.kind, self.id) {
            Some(name) => f.write_str(name)?,
            None => write!(f, "{} {}", self.kind, self.id)?,
        }
        self.attributes.iter().try_for_each(|attribute| match attribute {
            Attribute::KeyLength(bits) => write!(f, "-{bits}"),
            Attribute::OtherShort { kind, .. } | Attribute::OtherLong { kind, .. } => {
                write!(f, " with attribute {kind}")
            }
        })
    }
}

/// Returns the name of an algorithm, also of those that we do not support: they are what an
/// operator looks for if a peer offers nothing else.
fn name(kind: TransformType, id: u16) -> Option<&'static str> {
    let names: &[(u16, &'static str)] = match kind {
        TransformType::Encryption => &[
            (2, "DES"),
            (3, "3DES"),
            (11, "NULL"),
            (12, "AES_CBC"),
            (13, "AES_CTR"),
            (14, "AES_CCM_8"),
            (15, "AES_CCM_12"),
            (16, "AES_CCM_16"),
            (18, "AES_GCM_8"),
            (19, "AES_GCM_12"),
            (20, "AES_GCM_16"),
            (21, "NULL_AUTH_AES_GMAC"),
            (23, "CAMELLIA_CBC"),
            (28, "CHACHA20_POLY1305"),
        ],
        TransformType::Prf => &[
            (1, "PRF_HMAC_MD5"),
            (2, "PRF_HMAC_SHA1"),
            (4, "PRF_AES128_XCBC"),
            (5, "PRF_HMAC_SHA2_256"),
            (6, "PRF_HMAC_SHA2_384"),
            (7, "PRF_HMAC_SHA2_512"),
            (8, "PRF_AES128_CMAC"),
        ],
        TransformType::Integrity => &[
            (0, "NONE"),
            (1, "HMAC_MD5_96"),
            (2, "HMAC_SHA1_96"),
            (5, "AES_XCBC_96"),
            (8, "AES_CMAC_96"),
            (12, "HMAC_SHA2_256_128"),
            (13, "HMAC_SHA2_384_192"),
            (14, "HMAC_SHA2_512_256"),
        ],
        TransformType::KeyExchange => &[
            (0, "NONE"),
            (1, "MODP_768"),
            (2, "MODP_1024"),
            (5, "MODP_1536"),
            (14, "MODP_2048"),
            (15, "MODP_3072"),
            (16, "MODP_4096"),
            (17, "MODP_6144"),
            (18, "MODP_8192"),
            (19, "ECP_256"),
            (20, "ECP_384"),
            (21, "ECP_521"),
            (22, "MODP_1024_160"),
            (23, "MODP_2048_224"),
            (24, "MODP_2048_256"),
            (25, "ECP_192"),
            (26, "ECP_224"),
            (27, "BRAINPOOL_P224R1"),
            (28, "BRAINPOOL_P256R1"),
            (29, "BRAINPOOL_P384R1"),
            (30, "BRAINPOOL_P512R1"),
            (31, "CURVE_25519"),
            (32, "CURVE_448"),
            (35, "ML_KEM_512"),
            (36, "ML_KEM_768"),
            (37, "ML_KEM_1024"),
        ],
        TransformType::SequenceNumbers => &[(0, "NO_ESN"), (1, "ESN")],
        _ => &[],
    };
    names.iter().find(|(number, _)| *number == id).map(|(_, name)| *name)
}

//! Proposals as text, with strongSwan's keywords: `aes256gcm16-prfsha256-x25519`.

use edge_ike::config::{Aead, EspProposal, Group, IkeProposal, Prf};
use serde::{Deserialize, Deserializer, de::Error};

fn aead(word: &str) -> Option<Aead> {
    match word {
        "aes128gcm16" | "aes128gcm" => Some(Aead::Aes128Gcm16),
        "aes256gcm16" | "aes256gcm" => Some(Aead::Aes256Gcm16),
        "chacha20poly1305" => Some(Aead::ChaCha20Poly1305),
        _ => None,
    }
}

fn prf(word: &str) -> Option<Prf> {
    match word {
        "prfsha256" => Some(Prf::HmacSha256),
        "prfsha384" => Some(Prf::HmacSha384),
        "prfsha512" => Some(Prf::HmacSha512),
        _ => None,
    }
}

fn group(word: &str) -> Option<Group> {
    match word {
        "x25519" | "curve25519" => Some(Group::X25519),
        "ecp256" | "p256" => Some(Group::P256),
        _ => None,
    }
}

/// Parses an IKE proposal. It needs encryption, a PRF and a group.
pub(crate) fn ike(text: &str) -> Result<IkeProposal, String> {
    let mut proposal = IkeProposal { aeads: vec![], prfs: vec![], groups: vec![] };
    for word in text.split('-') {
        if let Some(aead) = aead(word) {
            proposal.aeads.push(aead);
        } else if let Some(prf) = prf(word) {
            proposal.prfs.push(prf);
        } else if let Some(group) = group(word) {
            proposal.groups.push(group);
        } else {
            return Err(format!(
                "{word:?} in the IKE proposal {text:?} is unknown; known are aes128gcm16 aes256gcm16 chacha20poly1305, prfsha256 \
                 prfsha384 prfsha512, x25519 ecp256"
            ));
        }
    }
    let missing = [
        (proposal.aeads.is_empty(), "encryption (aes256gcm16)"),
        (proposal.prfs.is_empty(), "a PRF (prfsha256)"),
        (proposal.groups.is_empty(), "a key exchange (x25519)"),
    ];
    match missing.iter().find(|(missing, _)| *missing) {
        Some((_, what)) => Err(format!("the IKE proposal {text:?} lacks {what}")),
        None => Ok(proposal),
    }
}

/// Parses an ESP proposal. It needs encryption; groups (forward secrecy at rekeying) and `esn` or
/// `noesn` are optional.
pub(crate) fn esp(text: &str) -> Result<EspProposal, String> {
    let mut proposal = EspProposal { aeads: vec![], groups: vec![], esn: false };
    for word in text.split('-') {
        if let Some(aead) = aead(word) {
            proposal.aeads.push(aead);
        } else if let Some(group) = group(word) {
            proposal.groups.push(group);
        } else if word == "esn" {
            proposal.esn = true;
        } else if word != "noesn" {
            return Err(format!(
                "{word:?} in the ESP proposal {text:?} is unknown; known are aes128gcm16 aes256gcm16 chacha20poly1305, x25519 ecp256, \
                 esn noesn"
            ));
        }
    }
    if proposal.aeads.is_empty() {
        return Err(format!("the ESP proposal {text:?} lacks encryption (aes256gcm16)"));
    }
    Ok(proposal)
}

/// Default IKE proposals; also those between our own nodes.
pub(crate) fn default_ike() -> Vec<IkeProposal> {
    vec![IkeProposal {
        aeads: vec![Aead::Aes256Gcm16, Aead::Aes128Gcm16, Aead::ChaCha20Poly1305],
        prfs: vec![Prf::HmacSha256, Prf::HmacSha384, Prf::HmacSha512],
        groups: vec![Group::X25519, Group::P256],
    }]
}

/// Default ESP proposals; also those between our own nodes. The first has forward secrecy at
/// rekeying, the second has not, for peers that do not support it.
pub(crate) fn default_esp() -> Vec<EspProposal> {
    let aeads = vec![Aead::Aes256Gcm16, Aead::Aes128Gcm16, Aead::ChaCha20Poly1305];
    vec![
        EspProposal { aeads: aeads.clone(), groups: vec![Group::X25519, Group::P256], esn: false },
        EspProposal { aeads, groups: vec![], esn: false },
    ]
}

pub(super) fn ike_list<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<IkeProposal>, D::Error> {
    Vec::<String>::deserialize(from)?.iter().map(|text| ike(text).map_err(D::Error::custom)).collect()
}

pub(super) fn esp_list<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<EspProposal>, D::Error> {
    Vec::<String>::deserialize(from)?.iter().map(|text| esp(text).map_err(D::Error::custom)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proposals_are_read_word_by_word() {
        let proposal = ike("aes256gcm16-chacha20poly1305-prfsha384-x25519-ecp256").unwrap();
        assert_eq!(proposal.aeads, [Aead::Aes256Gcm16, Aead::ChaCha20Poly1305]);
        assert_eq!(proposal.prfs, [Prf::HmacSha384]);
        assert_eq!(proposal.groups, [Group::X25519, Group::P256]);
        let proposal = esp("aes128gcm16-x25519-esn").unwrap();
        assert_eq!((proposal.groups, proposal.esn), (vec![Group::X25519], true));
    }

    #[test]
    fn an_unknown_or_missing_word_is_named() {
        assert!(ike("aes256gcm16-prfsha256-modp2048").unwrap_err().contains("\"modp2048\""));
        assert!(ike("aes256gcm16-x25519").unwrap_err().contains("lacks a PRF"));
        assert!(esp("x25519").unwrap_err().contains("lacks encryption"));
        assert!(esp("").is_err());
    }
}

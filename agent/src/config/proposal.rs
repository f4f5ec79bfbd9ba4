//! Proposals as text, with strongSwan's keywords: `aes256gcm16-prfsha256-x25519`,
//! `aes256-sha256-modp2048`.

use edge_ike::config::{AesKeyLength, Cipher, EspProposal, Group, IkeProposal, Integrity, Prf};
use serde::{Deserialize, Deserializer, de::Error};

/// The meaning of one word of a proposal.
#[derive(Debug, Clone, Copy)]
enum Keyword {
    Aead(Cipher),
    AesCbc(AesKeyLength),
    Integrity(Integrity),
    Prf(Prf),
    Group(Group),
    Esn(bool),
}

/// The keywords. If several have the same meaning, messages use the first one.
const KEYWORDS: &[(&[&str], Keyword)] = &[
    (&["aes128gcm16", "aes128gcm"], Keyword::Aead(Cipher::Aes128Gcm16)),
    (&["aes256gcm16", "aes256gcm"], Keyword::Aead(Cipher::Aes256Gcm16)),
    (&["chacha20poly1305"], Keyword::Aead(Cipher::ChaCha20Poly1305)),
    (&["aes128", "aes"], Keyword::AesCbc(AesKeyLength::Bits128)),
    (&["aes192"], Keyword::AesCbc(AesKeyLength::Bits192)),
    (&["aes256"], Keyword::AesCbc(AesKeyLength::Bits256)),
    (&["sha256", "sha2_256"], Keyword::Integrity(Integrity::HmacSha256)),
    (&["sha384", "sha2_384"], Keyword::Integrity(Integrity::HmacSha384)),
    (&["sha512", "sha2_512"], Keyword::Integrity(Integrity::HmacSha512)),
    (&["prfsha256"], Keyword::Prf(Prf::HmacSha256)),
    (&["prfsha384"], Keyword::Prf(Prf::HmacSha384)),
    (&["prfsha512"], Keyword::Prf(Prf::HmacSha512)),
    (&["x25519", "curve25519"], Keyword::Group(Group::X25519)),
    (&["ecp256", "p256"], Keyword::Group(Group::P256)),
    (&["ecp384", "p384"], Keyword::Group(Group::P384)),
    (&["ecp521", "p521"], Keyword::Group(Group::P521)),
    (&["modp2048"], Keyword::Group(Group::Modp2048)),
    (&["modp3072"], Keyword::Group(Group::Modp3072)),
    (&["modp4096"], Keyword::Group(Group::Modp4096)),
    (&["esn"], Keyword::Esn(true)),
    (&["noesn"], Keyword::Esn(false)),
];

/// The words of a proposal, sorted by their meaning.
#[derive(Default)]
struct Words {
    aeads: Vec<Cipher>,
    key_lengths: Vec<AesKeyLength>,
    integrities: Vec<Integrity>,
    prfs: Vec<Prf>,
    groups: Vec<Group>,
    esn: bool,
}

impl Words {
    /// Parses the words of a proposal of `kind` (IKE or ESP). `accepts` returns whether that kind
    /// allows a keyword.
    fn read(kind: &str, text: &str, accepts: impl Fn(Keyword) -> bool) -> Result<Self, String> {
        let mut words = Self::default();
        for word in text.split('-') {
            let known = KEYWORDS.iter().find(|(names, keyword)| names.contains(&word) && accepts(*keyword));
            match known.map(|(_, keyword)| *keyword) {
                Some(Keyword::Aead(cipher)) => words.aeads.push(cipher),
                Some(Keyword::AesCbc(length)) => words.key_lengths.push(length),
                Some(Keyword::Integrity(integrity)) => words.integrities.push(integrity),
                Some(Keyword::Prf(prf)) => words.prfs.push(prf),
                Some(Keyword::Group(group)) => words.groups.push(group),
                Some(Keyword::Esn(esn)) => words.esn = esn,
                None => {
                    let known = KEYWORDS.iter().filter(|(_, keyword)| accepts(*keyword));
                    let known: Vec<&str> = known.filter_map(|(names, _)| names.first().copied()).collect();
                    return Err(format!(
                        "{word:?} in the {kind} proposal {text:?} is unknown; known are {}",
                        known.join(" ")
                    ));
                }
            }
        }
        Ok(words)
    }

    /// Returns the ciphers: the AEADs, or AES-CBC with each key length combined with each integrity
    /// algorithm.
    fn ciphers(&self, kind: &str, text: &str) -> Result<Vec<Cipher>, String> {
        let lacks = |what: &str| Err(format!("the {kind} proposal {text:?} lacks {what}"));
        match (self.aeads.is_empty(), self.key_lengths.is_empty(), self.integrities.is_empty()) {
            (true, true, _) => lacks("encryption (aes256gcm16)"),
            (false, false, _) => Err(format!(
                "the {kind} proposal {text:?} has AEADs and AES-CBC (aes128 aes192 aes256); make two proposals of it"
            )),
            (true, false, true) => lacks("integrity beside AES-CBC (sha256)"),
            (false, true, _) => Ok(self.aeads.clone()),
            (true, false, false) => {
                let with = |integrity: &Integrity| {
                    let integrity = *integrity;
                    self.key_lengths.iter().map(move |length| Cipher::AesCbc(*length, integrity))
                };
                Ok(self.integrities.iter().flat_map(with).collect())
            }
        }
    }
}

/// Parses an IKE proposal. It must contain a cipher, a PRF and a group. AES-CBC also requires an
/// integrity algorithm, whose hash is used for the PRF unless the proposal names a PRF.
pub(crate) fn ike(text: &str) -> Result<IkeProposal, String> {
    let words = Words::read("IKE", text, |keyword| !matches!(keyword, Keyword::Esn(_)))?;
    let ciphers = words.ciphers("IKE", text)?;
    let prfs =
        if words.prfs.is_empty() { words.integrities.iter().copied().map(same_hash).collect() } else { words.prfs };
    let proposal = IkeProposal { ciphers, prfs, groups: words.groups };
    let missing =
        [(proposal.prfs.is_empty(), "a PRF (prfsha256)"), (proposal.groups.is_empty(), "a key exchange (x25519)")];
    match missing.iter().find(|(missing, _)| *missing) {
        Some((_, what)) => Err(format!("the IKE proposal {text:?} lacks {what}")),
        None => Ok(proposal),
    }
}

fn same_hash(integrity: Integrity) -> Prf {
    match integrity {
        Integrity::HmacSha256 => Prf::HmacSha256,
        Integrity::HmacSha384 => Prf::HmacSha384,
        Integrity::HmacSha512 => Prf::HmacSha512,
    }
}

/// Parses an ESP proposal. It must contain a cipher, and with AES-CBC an integrity algorithm.
/// Groups (forward secrecy at rekeying) and `esn` or `noesn` are optional.
pub(crate) fn esp(text: &str) -> Result<EspProposal, String> {
    let words = Words::read("ESP", text, |keyword| !matches!(keyword, Keyword::Prf(_)))?;
    let ciphers = words.ciphers("ESP", text)?;
    if !words.aeads.is_empty() && !words.integrities.is_empty() {
        return Err(format!("the ESP proposal {text:?} has integrity beside an AEAD, which needs none; leave it out"));
    }
    Ok(EspProposal { ciphers, groups: words.groups, esn: words.esn })
}

const AEADS: [Cipher; 3] = [Cipher::Aes256Gcm16, Cipher::Aes128Gcm16, Cipher::ChaCha20Poly1305];
const PRFS: [Prf; 3] = [Prf::HmacSha256, Prf::HmacSha384, Prf::HmacSha512];
const GROUPS: [Group; 2] = [Group::X25519, Group::P256];
/// All groups, including those for peers that support none of [`GROUPS`]. The expensive ones come
/// last.
const ALL_GROUPS: [Group; 7] =
    [Group::X25519, Group::P256, Group::P384, Group::Modp2048, Group::Modp3072, Group::P521, Group::Modp4096];

/// Returns AES-CBC ciphers, for peers that support no AEAD.
fn aes_cbc() -> Vec<Cipher> {
    let integrities = [Integrity::HmacSha256, Integrity::HmacSha384, Integrity::HmacSha512];
    let lengths = [AesKeyLength::Bits256, AesKeyLength::Bits192, AesKeyLength::Bits128];
    integrities.iter().flat_map(|integrity| lengths.iter().map(|length| Cipher::AesCbc(*length, *integrity))).collect()
}

/// Returns the IKE proposals between our own nodes.
pub(crate) fn node_ike() -> Vec<IkeProposal> {
    vec![IkeProposal { ciphers: AEADS.to_vec(), prfs: PRFS.to_vec(), groups: GROUPS.to_vec() }]
}

/// Returns the ESP proposals between our own nodes. Only the first has forward secrecy at rekeying.
pub(crate) fn node_esp() -> Vec<EspProposal> {
    with_and_without_forward_secrecy(&[AEADS.to_vec()], &GROUPS)
}

/// Returns the IKE proposals for a static peer without configured ones: AEADs first, then AES-CBC
/// for peers that support nothing else. Each proposal allows any group.
pub(super) fn default_ike() -> Vec<IkeProposal> {
    let proposal = |ciphers| IkeProposal { ciphers, prfs: PRFS.to_vec(), groups: ALL_GROUPS.to_vec() };
    vec![proposal(AEADS.to_vec()), proposal(aes_cbc())]
}

/// Returns the ESP proposals for a static peer without configured ones. Forward secrecy at rekeying
/// is preferred, but not required.
pub(super) fn default_esp() -> Vec<EspProposal> {
    with_and_without_forward_secrecy(&[AEADS.to_vec(), aes_cbc()], &ALL_GROUPS)
}

fn with_and_without_forward_secrecy(ciphers: &[Vec<Cipher>], groups: &[Group]) -> Vec<EspProposal> {
    let proposal = |groups: &[Group], ciphers: &Vec<Cipher>| EspProposal {
        ciphers: ciphers.clone(),
        groups: groups.to_vec(),
        esn: false,
    };
    let with = ciphers.iter().map(|ciphers| proposal(groups, ciphers));
    with.chain(ciphers.iter().map(|ciphers| proposal(&[], ciphers))).collect()
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
        assert_eq!(proposal.ciphers, [Cipher::Aes256Gcm16, Cipher::ChaCha20Poly1305]);
        assert_eq!(proposal.prfs, [Prf::HmacSha384]);
        assert_eq!(proposal.groups, [Group::X25519, Group::P256]);
        let proposal = esp("aes128gcm16-x25519-esn").unwrap();
        assert_eq!((proposal.groups, proposal.esn), (vec![Group::X25519], true));
    }

    #[test]
    fn aes_cbc_goes_with_each_integrity_algorithm_and_its_hash_is_the_prf() {
        let cbc = |length, integrity| Cipher::AesCbc(length, integrity);
        let proposal = ike("aes256-aes128-sha256-sha512-ecp256").unwrap();
        assert_eq!(
            proposal.ciphers,
            [
                cbc(AesKeyLength::Bits256, Integrity::HmacSha256),
                cbc(AesKeyLength::Bits128, Integrity::HmacSha256),
                cbc(AesKeyLength::Bits256, Integrity::HmacSha512),
                cbc(AesKeyLength::Bits128, Integrity::HmacSha512),
            ]
        );
        assert_eq!(proposal.prfs, [Prf::HmacSha256, Prf::HmacSha512]);
        assert_eq!(ike("aes128-sha256-prfsha512-ecp256").unwrap().prfs, [Prf::HmacSha512]);
        // As in strongSwan: an AEAD needs no integrity algorithm, so `sha384` names the PRF.
        assert_eq!(ike("aes128gcm16-sha384-ecp256").unwrap().prfs, [Prf::HmacSha384]);
        assert_eq!(esp("aes192-sha384").unwrap().ciphers, [cbc(AesKeyLength::Bits192, Integrity::HmacSha384)]);
    }

    #[test]
    fn what_appliances_have_by_default_is_read() {
        let proposal = ike("aes256-sha256-modp2048").unwrap();
        assert_eq!(proposal.ciphers, [Cipher::AesCbc(AesKeyLength::Bits256, Integrity::HmacSha256)]);
        assert_eq!((proposal.prfs, proposal.groups), (vec![Prf::HmacSha256], vec![Group::Modp2048]));
        let groups = ike("aes128gcm16-prfsha256-ecp384-ecp521-modp3072-modp4096").unwrap().groups;
        assert_eq!(groups, [Group::P384, Group::P521, Group::Modp3072, Group::Modp4096]);
    }

    #[test]
    fn an_unknown_or_missing_word_is_named() {
        let unknown = ike("aes256gcm16-prfsha256-modp1024").unwrap_err();
        assert!(unknown.contains("\"modp1024\"") && unknown.contains("prfsha512 x25519 ecp256 ecp384"), "{unknown}");
        assert!(!esp("md5").unwrap_err().contains("prfsha256"), "an ESP proposal has no PRF");
        assert!(ike("aes256gcm16-x25519").unwrap_err().contains("lacks a PRF"));
        assert!(ike("aes256-prfsha256-x25519").unwrap_err().contains("lacks integrity"));
        assert!(ike("aes256-aes256gcm16-sha256-x25519").unwrap_err().contains("make two proposals"));
        assert!(esp("x25519").unwrap_err().contains("lacks encryption"));
        assert!(esp("aes256gcm16-sha256").unwrap_err().contains("leave it out"));
        assert!(esp("").is_err());
    }

    #[test]
    fn nodes_have_strong_algorithms_only_and_static_peers_others_after_them() {
        let is_aead = |cipher: &Cipher| cipher.integrity().is_none();
        assert!(node_ike().iter().all(|proposal| proposal.ciphers.iter().all(is_aead)));
        assert!(node_esp().iter().all(|proposal| proposal.ciphers.iter().all(is_aead)));
        assert_eq!(default_ike()[0].ciphers, node_ike()[0].ciphers);
        assert_eq!((&node_ike()[0].groups[..], &default_ike()[0].groups[..2]), (&GROUPS[..], &GROUPS[..]));
        assert!(!default_ike()[1].ciphers.iter().any(is_aead));
        assert_eq!(default_esp().len(), 4);
    }
}

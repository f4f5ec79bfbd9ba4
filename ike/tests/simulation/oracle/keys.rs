//! The key schedule (RFC 7296 2.13 to 2.18) and the Encrypted payload (RFC 5282, RFC 7634, RFC
//! 3602, RFC 4868), computed by the formulas of the RFCs. No code in this module comes from the
//! library. The oracle finds the private keys of the key exchanges among the random octets that the
//! endpoints drew.

use std::collections::HashMap;

use ring::{aead, hmac};

use super::key_exchange;
use super::octets::{HEADER_LEN, Header, Octets, Proposal, Spis, payload};

/// The transform types of RFC 7296 3.3.2.
const ENCR: u8 = 1;
const PRF: u8 = 2;
const INTEG: u8 = 3;

const SALT_LEN: usize = 4;
const IV_LEN: usize = 8;
/// Size of an AES block, and of the initialization vector of AES-CBC, bytes.
const BLOCK_LEN: usize = 16;

/// Curve25519 (RFC 8031).
pub const CURVE25519: u16 = 31;

/// The public keys of both ends of a key exchange, in the order of their octets.
type PublicKeys = [Vec<u8>; 2];

/// Private keys of key exchanges, by their public keys.
#[derive(Debug, Default)]
pub struct PrivateKeys {
    drawn: Vec<Vec<u8>>,
    by_public: HashMap<(u16, Vec<u8>), Vec<u8>>,
    /// The secrets that were computed, by method and both public keys. Both ends need each of them.
    secrets: HashMap<(u16, PublicKeys), Option<Vec<u8>>>,
}

impl PrivateKeys {
    /// Records random octets that an endpoint drew, which may be a private key.
    pub fn drawn(&mut self, octets: &[u8]) {
        self.drawn.push(octets.to_vec());
    }

    /// Forgets octets that turned out to be a nonce, so that nobody computes a public key of them.
    pub fn is_nonce(&mut self, octets: &[u8]) {
        if let Some(at) = self.drawn.iter().rposition(|drawn| drawn == octets) {
            self.drawn.remove(at);
        }
    }

    fn private(&mut self, group: u16, public: &[u8]) -> Option<Vec<u8>> {
        let wanted = (group, public.to_vec());
        while !self.by_public.contains_key(&wanted) {
            let private = self.drawn.pop()?;
            if let Some(public) = key_exchange::public(group, &private) {
                self.by_public.insert((group, public), private);
            }
        }
        self.by_public.get(&wanted).cloned()
    }

    /// Returns the secret of a key exchange, if the oracle supports its method and one private key
    /// was drawn.
    pub fn secret(&mut self, ours: (u16, &[u8]), theirs: (u16, &[u8])) -> Option<Vec<u8>> {
        let group = ours.0;
        if group != theirs.0 || !key_exchange::is_known(group) {
            return None;
        }
        let mut publics = [ours.1.to_vec(), theirs.1.to_vec()];
        publics.sort();
        let both = (group, publics);
        if let Some(known) = self.secrets.get(&both) {
            return known.clone();
        }
        let (private, public) = match self.private(group, ours.1) {
            Some(private) => (private, theirs.1),
            None => (self.private(group, theirs.1)?, ours.1),
        };
        let secret = key_exchange::secret(group, &private, public);
        self.secrets.insert(both, secret.clone());
        secret
    }
}

/// The negotiated algorithms of an IKE SA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suite {
    encryption: (u16, u16),
    integrity: u16,
    prf: u16,
}

impl Suite {
    pub fn of(proposal: &Proposal) -> Self {
        Self { encryption: proposal.one(ENCR), integrity: proposal.one(INTEG).0, prf: proposal.one(PRF).0 }
    }

    fn prf(self) -> Option<hmac::Algorithm> {
        match self.prf {
            5 => Some(hmac::HMAC_SHA256),
            6 => Some(hmac::HMAC_SHA384),
            7 => Some(hmac::HMAC_SHA512),
            _ => None,
        }
    }

    fn aead(self) -> Option<&'static aead::Algorithm> {
        match self.encryption {
            (20, 128) => Some(&aead::AES_128_GCM),
            (20, 256) => Some(&aead::AES_256_GCM),
            (28, 0) => Some(&aead::CHACHA20_POLY1305),
            _ => None,
        }
    }
}

/// Returns the hash of an integrity algorithm of RFC 4868. Its output is as long as the key and
/// twice as long as the ICV.
fn integrity_hash(id: u16) -> Option<hmac::Algorithm> {
    match id {
        12 => Some(hmac::HMAC_SHA256),
        13 => Some(hmac::HMAC_SHA384),
        14 => Some(hmac::HMAC_SHA512),
        _ => None,
    }
}

/// Returns the sizes of the keys for one direction, bytes: encryption (with the salt of an AEAD)
/// and integrity.
fn key_lens(encryption: (u16, u16), integrity: u16) -> Option<(usize, usize)> {
    match encryption {
        (12, 128 | 192 | 256) => {
            let hash = integrity_hash(integrity)?;
            Some((usize::from(encryption.1) / 8, hash.digest_algorithm().output_len()))
        }
        (20, 128 | 256) => Some((usize::from(encryption.1) / 8 + SALT_LEN, 0)),
        (28, 0) => Some((32 + SALT_LEN, 0)),
        _ => None,
    }
}

/// Returns the size of the keying material for one direction of an ESP SA, bytes.
pub fn esp_key_len(proposal: &Proposal) -> usize {
    let (encryption, integrity) = key_lens(proposal.one(ENCR), proposal.one(INTEG).0).unwrap_or_default();
    encryption + integrity
}

fn prf(algorithm: hmac::Algorithm, key: &[u8], data: &[&[u8]]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(algorithm, key), &data.concat()).as_ref().to_vec()
}

/// Computes prf+ (2.13).
fn prf_plus(algorithm: hmac::Algorithm, key: &[u8], seed: &[u8], len: usize) -> Vec<u8> {
    let (mut out, mut last) = (Vec::new(), Vec::new());
    let mut counter = 1_u8;
    while out.len() < len {
        last = prf(algorithm, key, &[&last, seed, &[counter]]);
        out.extend_from_slice(&last);
        counter += 1;
    }
    out.truncate(len);
    out
}

/// The keys of an IKE SA (2.14).
#[derive(Debug, Clone)]
pub struct Keys {
    suite: Suite,
    prf: hmac::Algorithm,
    d: Vec<u8>,
    /// The integrity keys of the original initiator and the original responder. Empty with an AEAD.
    integrity: [Vec<u8>; 2],
    /// The encryption keys of the original initiator and the original responder, with the salt of
    /// an AEAD.
    pub encryption: [Vec<u8>; 2],
    p: [Vec<u8>; 2],
}

impl Keys {
    /// Derives the keys after IKE_SA_INIT (2.14).
    pub fn initial(suite: Suite, nonces: (&[u8], &[u8]), spis: Spis, secret: &[u8]) -> Option<Self> {
        let skeyseed = prf(suite.prf()?, &[nonces.0, nonces.1].concat(), &[secret]);
        Self::expand(suite, &skeyseed, nonces, spis)
    }

    /// Derives the keys after a rekey of the IKE SA (2.18), with the PRF of the old IKE SA.
    pub fn rekeyed(&self, suite: Suite, nonces: (&[u8], &[u8]), spis: Spis, secret: &[u8]) -> Option<Self> {
        let skeyseed = prf(self.prf, &self.d, &[secret, nonces.0, nonces.1]);
        Self::expand(suite, &skeyseed, nonces, spis)
    }

    fn expand(suite: Suite, skeyseed: &[u8], nonces: (&[u8], &[u8]), spis: Spis) -> Option<Self> {
        let algorithm = suite.prf()?;
        let prf_len = algorithm.digest_algorithm().output_len();
        let (key_len, integrity_len) = key_lens(suite.encryption, suite.integrity)?;
        let seed = [nonces.0, nonces.1, &spis.0.to_be_bytes(), &spis.1.to_be_bytes()].concat();
        let all = prf_plus(algorithm, skeyseed, &seed, 3 * prf_len + 2 * (integrity_len + key_len));
        let mut all = Octets(&all);
        let mut next = |len| all.take(len).map(<[u8]>::to_vec).ok();
        let d = next(prf_len)?;
        let integrity = [next(integrity_len)?, next(integrity_len)?];
        let encryption = [next(key_len)?, next(key_len)?];
        let p = [next(prf_len)?, next(prf_len)?];
        Some(Self { suite, prf: algorithm, d, integrity, encryption, p })
    }

    /// Returns all keys with the RFC's names for them.
    pub fn named(&self) -> [(&'static str, &[u8]); 7] {
        let ([ai, ar], [ei, er], [pi, pr]) = (&self.integrity, &self.encryption, &self.p);
        let all = [("SK_d", &self.d), ("SK_ai", ai), ("SK_ar", ar), ("SK_ei", ei), ("SK_er", er)];
        let [d, ai, ar, ei, er] = all.map(|(name, key)| (name, key.as_slice()));
        [d, ai, ar, ei, er, ("SK_pi", pi), ("SK_pr", pr)]
    }

    /// Derives KEYMAT of a CHILD_SA (2.17): the keys with which the initiator of the exchange
    /// sends, and those of the responder.
    pub fn child(&self, key_len: usize, secret: Option<&[u8]>, nonces: (&[u8], &[u8])) -> (Vec<u8>, Vec<u8>) {
        let seed = [secret.unwrap_or_default(), nonces.0, nonces.1].concat();
        let mut keys = prf_plus(self.prf, &self.d, &seed, 2 * key_len);
        let second = keys.split_off(key_len);
        (keys, second)
    }

    /// Computes AUTH with a pre-shared key (2.15) of the original initiator or responder. `message`
    /// is the IKE_SA_INIT message of that end, `nonce` is the nonce of the other end, and `id` is
    /// the body of the ID payload of that end.
    pub fn psk_auth(&self, initiator: bool, psk: &[u8], message: &[u8], nonce: &[u8], id: &[u8]) -> Vec<u8> {
        let mac = prf(self.prf, &self.p[usize::from(!initiator)], &[id]);
        let key = prf(self.prf, psk, &[b"Key Pad for IKEv2"]);
        prf(self.prf, &key, &[message, nonce, &mac])
    }

    /// Decrypts a datagram that the original initiator or responder encrypted.
    pub fn open(&self, from_initiator: bool, datagram: &[u8]) -> Option<Opened> {
        let sealed = Sealed::read(datagram)?;
        let plain = match self.suite.encryption.0 {
            12 => self.open_cbc(from_initiator, &sealed)?,
            _ => self.open_aead(from_initiator, &sealed)?,
        };
        let (padding, rest) = plain.split_last()?;
        let inner = rest.get(..rest.len().checked_sub(usize::from(*padding))?)?.to_vec();
        Some(Opened { first: sealed.first, fragment: sealed.fragment, inner })
    }

    fn open_aead(&self, from_initiator: bool, sealed: &Sealed<'_>) -> Option<Vec<u8>> {
        let (key, salt) = self.key(from_initiator)?;
        let (iv, ciphertext) = sealed.body.split_at_checked(IV_LEN)?;
        let nonce = aead::Nonce::try_assume_unique_for_key(&[salt, iv].concat()).ok()?;
        let mut contents = ciphertext.to_vec();
        Some(key.open_in_place(nonce, aead::Aad::from(sealed.associated), &mut contents).ok()?.to_vec())
    }

    /// Checks the ICV, which covers all octets before it (3.14), and decrypts the ciphertext, which
    /// is a chain of blocks (NIST SP 800-38A 6.2).
    fn open_cbc(&self, from_initiator: bool, sealed: &Sealed<'_>) -> Option<Vec<u8>> {
        let end = usize::from(!from_initiator);
        let icv_len = self.integrity[end].len() / 2;
        let (authenticated, icv) = sealed.body.split_at_checked(sealed.body.len().checked_sub(icv_len)?)?;
        let expected =
            prf(integrity_hash(self.suite.integrity)?, &self.integrity[end], &[sealed.associated, authenticated]);
        if !expected.starts_with(icv) {
            return None;
        }
        let mut blocks = authenticated.chunks(BLOCK_LEN);
        let (mut last, mut plain) = (blocks.next()?, Vec::new());
        for block in blocks {
            let decrypted = decrypt_block(&self.encryption[end], block)?;
            plain.extend(decrypted.iter().zip(last).map(|(octet, chained)| octet ^ chained));
            last = block;
        }
        Some(plain)
    }

    /// Encrypts a message from the original initiator or responder in one datagram, with an AEAD.
    pub fn seal(&self, header: Header, first: u8, inner: &[u8], iv: u64) -> Option<Vec<u8>> {
        let (key, salt) = self.key(header.initiator_flag())?;
        let payload_len = 4 + IV_LEN + inner.len() + 1 + 16;
        let mut datagram = encode_header(&header, payload::ENCRYPTED, HEADER_LEN + payload_len);
        datagram.extend_from_slice(&[first, 0]);
        datagram.extend_from_slice(&u16::try_from(payload_len).ok()?.to_be_bytes());
        let nonce = aead::Nonce::try_assume_unique_for_key(&[salt, &iv.to_be_bytes()].concat()).ok()?;
        let mut contents = [inner, &[0]].concat();
        key.seal_in_place_append_tag(nonce, aead::Aad::from(datagram.clone()), &mut contents).ok()?;
        datagram.extend_from_slice(&iv.to_be_bytes());
        datagram.extend_from_slice(&contents);
        Some(datagram)
    }

    /// Returns the initialization vector of a datagram.
    pub fn initialization_vector<'a>(&self, sealed: &Sealed<'a>) -> Option<&'a [u8]> {
        sealed.body.get(..if self.suite.encryption.0 == 12 { BLOCK_LEN } else { IV_LEN })
    }

    fn key(&self, from_initiator: bool) -> Option<(aead::LessSafeKey, &[u8])> {
        let keymat = &self.encryption[usize::from(!from_initiator)];
        let (key, salt) = keymat.split_at_checked(keymat.len() - SALT_LEN)?;
        Some((aead::LessSafeKey::new(aead::UnboundKey::new(self.suite.aead()?, key).ok()?), salt))
    }
}

/// Decrypts one block with AES (FIPS 197).
fn decrypt_block(key: &[u8], block: &[u8]) -> Option<[u8; BLOCK_LEN]> {
    use aes::cipher::{BlockCipherDecrypt, KeyInit};
    let mut block = <[u8; BLOCK_LEN]>::try_from(block).ok()?.into();
    match key.len() {
        16 => aes::Aes128::new_from_slice(key).ok()?.decrypt_block(&mut block),
        24 => aes::Aes192::new_from_slice(key).ok()?.decrypt_block(&mut block),
        _ => aes::Aes256::new_from_slice(key).ok()?.decrypt_block(&mut block),
    }
    Some(block.into())
}

/// Encodes a header.
pub fn encode_header(header: &Header, next: u8, length: usize) -> Vec<u8> {
    let mut octets = [header.spis.0.to_be_bytes(), header.spis.1.to_be_bytes()].concat();
    octets.extend_from_slice(&[next, header.version, header.exchange, header.flags]);
    octets.extend_from_slice(&header.id.to_be_bytes());
    octets.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    octets
}

/// The decrypted contents of an Encrypted payload.
#[derive(Debug, Clone)]
pub struct Opened {
    /// Type of the first payload inside.
    pub first: u8,
    /// Number and total of a fragment.
    pub fragment: Option<(u16, u16)>,
    pub inner: Vec<u8>,
}

/// An Encrypted payload (RFC 7296 3.14) or an Encrypted Fragment payload (RFC 7383 2.5).
pub struct Sealed<'a> {
    first: u8,
    pub fragment: Option<(u16, u16)>,
    associated: &'a [u8],
    /// Initialization vector, ciphertext and ICV.
    body: &'a [u8],
}

impl<'a> Sealed<'a> {
    /// Parses the only payload of a datagram, if it is an encrypted one.
    pub fn read(datagram: &'a [u8]) -> Option<Self> {
        let header = Header::read(datagram).ok()?;
        let mut octets = Octets(datagram.get(HEADER_LEN..)?);
        let first = *octets.take(2).ok()?.first()?;
        if usize::from(octets.u16().ok()?) != datagram.len() - HEADER_LEN {
            return None;
        }
        let fragment = match header.next {
            payload::ENCRYPTED => None,
            payload::FRAGMENT => Some((octets.u16().ok()?, octets.u16().ok()?)),
            _ => return None,
        };
        let associated = datagram.get(..datagram.len() - octets.0.len())?;
        Some(Self { first, fragment, associated, body: octets.0 })
    }
}

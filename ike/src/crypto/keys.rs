//! Keys of IKE SAs and CHILD_SAs.

use crate::config::Cipher;
use crate::event::IkeId;
use crate::secret::Secret;
use crate::suite::IkeSuite;

impl IkeSuite {
    /// Returns the keys of an IKE SA in the order in which they are made, with their sizes, bytes.
    fn key_lengths(self) -> [(IkeKey, usize); 7] {
        //= RFC 7296 2.14 MUST 1: lengths of SK_d, SK_pi and SK_pr
        let (prf, key) = (self.prf.output_len(), self.cipher.encryption_key_len());
        let integrity = self.cipher.integrity_key_len();
        let mut protection = [(IkeKey::Ai, integrity), (IkeKey::Ar, integrity), (IkeKey::Ei, key), (IkeKey::Er, key)];
        if mutation!("encryption_keys_first") {
            protection.rotate_left(2);
        }
        let [first, second, third, fourth] = protection;
        //= RFC 7296 2.14 REQUIRED 3: the order of the keys
        [(IkeKey::D, prf), first, second, third, fourth, (IkeKey::Pi, prf), (IkeKey::Pr, prf)]
    }
}

/// The nonces of the initiator and the responder of the exchange that creates the keys.
#[derive(Debug, Clone, Copy)]
pub struct Nonces<'a> {
    /// Ni, 16 to 256 octets.
    pub initiator: &'a [u8],
    /// Nr, 16 to 256 octets.
    pub responder: &'a [u8],
}

/// Keys of an IKE SA (RFC 7296 2.14).
#[derive(Debug, Clone)]
pub struct IkeKeys {
    /// The algorithms that use the keys.
    pub suite: IkeSuite,
    /// All keys, one after another, in the order of [`IkeKey`]: one allocation instead of seven for
    /// each of many IKE SAs.
    keys: Secret,
}

/// One of the keys of an IKE SA, in the order in which RFC 7296 2.14 makes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IkeKey {
    /// SK_d: derives keys of CHILD_SAs and of the next IKE SA.
    D,
    /// SK_ai: authenticates messages of the original initiator. Empty with an AEAD (RFC 5282 7).
    Ai,
    /// SK_ar: authenticates messages of the original responder. Empty with an AEAD.
    Ar,
    /// SK_ei: encrypts messages of the original initiator. Holds the key, and the salt of an AEAD.
    Ei,
    /// SK_er: encrypts messages of the original responder. Holds the key, and the salt of an AEAD.
    Er,
    /// SK_pi: used to compute the initiator's AUTH.
    Pi,
    /// SK_pr: used to compute the responder's AUTH.
    Pr,
}

impl IkeKeys {
    /// Derives the keys of an IKE SA that IKE_SA_INIT makes: SKEYSEED = prf(Ni | Nr, g^ir).
    pub fn initial(suite: IkeSuite, nonces: Nonces<'_>, ike: IkeId, shared: &Secret) -> Self {
        let nonce = if mutation!("skeyseed_of_one_nonce") { nonces.initiator } else { nonces.responder };
        //= RFC 7296 2.14 REQUIRED 2: SKEYSEED
        let key = Secret::new([nonces.initiator, nonce].concat());
        let skeyseed = suite.prf.compute(key.expose(), &[shared.expose()]);
        Self::expand(suite, &skeyseed, nonces, ike)
    }

    /// Derives the keys of the IKE SA that replaces this one: SKEYSEED = prf(SK_d (old), g^ir (new)
    /// | Ni | Nr), with the old SA's PRF (RFC 7296 2.18). `ike` holds the new SPIs. Its initiator
    /// is the initiator of the exchange.
    pub fn rekey(&self, suite: IkeSuite, nonces: Nonces<'_>, ike: IkeId, shared: &Secret) -> Self {
        //= RFC 7296 2.18 REQUIRED 5: SKEYSEED of a rekey
        let data = [shared.expose(), nonces.initiator, nonces.responder];
        let skeyseed = self.suite.prf.compute(self.key(IkeKey::D), &data);
        Self::expand(suite, &skeyseed, nonces, ike)
    }

    /// Computes {SK_d | SK_ai | SK_ar | SK_ei | SK_er | SK_pi | SK_pr} = prf+(SKEYSEED, Ni | Nr |
    /// SPIi | SPIr).
    fn expand(suite: IkeSuite, skeyseed: &Secret, nonces: Nonces<'_>, ike: IkeId) -> Self {
        let responder = if mutation!("ike_keys_without_spi") { 0 } else { ike.responder };
        let (initiator, responder) = (ike.initiator.to_be_bytes(), responder.to_be_bytes());
        let seed = [nonces.initiator, nonces.responder, &initiator, &responder];
        let total = suite.key_lengths().iter().fold(0, |total: usize, (_, len)| total.saturating_add(*len));
        Self { suite, keys: suite.prf.expand(skeyseed.expose(), &seed, total) }
    }

    /// Returns one of the keys. SK_pi and SK_pr are empty after [`Self::without_auth_keys`].
    pub(crate) fn key(&self, which: IkeKey) -> &[u8] {
        let mut start: usize = 0;
        for (key, len) in self.suite.key_lengths() {
            let end = start.saturating_add(len);
            if key == which {
                return self.keys.expose().get(start..end).unwrap_or_default();
            }
            start = end;
        }
        &[]
    }

    /// Forgets SK_pi and SK_pr, which have no use after IKE_AUTH.
    pub(crate) fn without_auth_keys(&self) -> Self {
        let kept = self.keys.expose().len().saturating_sub(self.suite.prf.output_len().saturating_mul(2));
        let keys = self.keys.expose().get(..kept).unwrap_or_default();
        Self { suite: self.suite, keys: Secret::new(keys.to_vec()) }
    }

    /// Derives the keys of a CHILD_SA: KEYMAT = prf+(SK_d, [g^ir (new) |] Ni | Nr) (RFC 7296 2.17).
    /// The nonces come from the exchange that creates the CHILD_SA.
    pub fn child(&self, cipher: Cipher, nonces: Nonces<'_>, shared: Option<&Secret>) -> ChildKeys {
        let shared = shared.filter(|_| !mutation!("child_keys_without_secret"));
        let shared = shared.map_or([].as_slice(), Secret::expose);
        //= RFC 7296 2.17 REQUIRED 3: KEYMAT
        let seed = [shared, nonces.initiator, nonces.responder];
        let key_len = cipher.keymat_len();
        let keys = self.suite.prf.expand(self.key(IkeKey::D), &seed, key_len.saturating_mul(2));
        let mut keys = KeyMaterial(keys.expose());
        //= RFC 7296 2.17 MUST 1: keys of the initiator's direction first
        ChildKeys { from_initiator: keys.next(key_len), from_responder: keys.next(key_len) }
    }
}

/// Keys of a CHILD_SA, each in the kernel's layout: for an AEAD, the key and the salt (RFC 4106
/// 8.1, RFC 7634 2); otherwise, the encryption key and the integrity key (RFC 7296 2.17).
#[derive(Debug, Clone)]
pub struct ChildKeys {
    /// Protects packets that the initiator of the exchange sends.
    pub from_initiator: Secret,
    /// Protects packets that the responder of the exchange sends.
    pub from_responder: Secret,
}

impl Cipher {
    /// Returns the size of the keying material for one direction, in octets. An AEAD needs a key
    /// and 4 octets of salt (RFC 4106 8.1, RFC 7634 2). Another cipher needs an encryption key and
    /// an integrity key (RFC 7296 2.17).
    //= RFC 7296 2.17 MUST 2: the encryption key first
    pub fn keymat_len(self) -> usize {
        self.encryption_key_len().saturating_add(self.integrity_key_len())
    }
}

/// Keying material, from whose front keys are taken.
struct KeyMaterial<'a>(&'a [u8]);

impl KeyMaterial<'_> {
    fn next(&mut self, len: usize) -> Secret {
        let (key, rest) = self.0.split_at_checked(len).unwrap_or((self.0, &[]));
        self.0 = rest;
        Secret::new(key.to_vec())
    }
}

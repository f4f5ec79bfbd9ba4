//! Keys of IKE SAs and CHILD_SAs.

use crate::config::{Cipher, Group, Prf};
use crate::event::IkeId;
use crate::secret::Secret;

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
    /// SK_d: derives keys of CHILD_SAs and of the next IKE SA.
    pub(crate) d: Secret,
    /// SK_ai: authenticates messages of the original initiator. Empty with an AEAD (RFC 5282 7).
    pub(crate) ai: Secret,
    /// SK_ar: authenticates messages of the original responder. Empty with an AEAD.
    pub(crate) ar: Secret,
    /// SK_ei: encrypts messages of the original initiator. Holds the key, and the salt of an AEAD.
    pub(crate) ei: Secret,
    /// SK_er: encrypts messages of the original responder. Holds the key, and the salt of an AEAD.
    pub(crate) er: Secret,
    /// SK_pi: used to compute the initiator's AUTH.
    pub(crate) pi: Secret,
    /// SK_pr: used to compute the responder's AUTH.
    pub(crate) pr: Secret,
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
        let skeyseed = self.suite.prf.compute(self.d.expose(), &data);
        Self::expand(suite, &skeyseed, nonces, ike)
    }

    /// Computes {SK_d | SK_ai | SK_ar | SK_ei | SK_er | SK_pi | SK_pr} = prf+(SKEYSEED, Ni | Nr |
    /// SPIi | SPIr).
    fn expand(suite: IkeSuite, skeyseed: &Secret, nonces: Nonces<'_>, ike: IkeId) -> Self {
        let responder = if mutation!("ike_keys_without_spi") { 0 } else { ike.responder };
        let (initiator, responder) = (ike.initiator.to_be_bytes(), responder.to_be_bytes());
        let seed = [nonces.initiator, nonces.responder, &initiator, &responder];
        //= RFC 7296 2.14 MUST 1: lengths of SK_d, SK_pi and SK_pr
        let (prf_len, key_len) = (suite.prf.output_len(), suite.cipher.encryption_key_len());
        let integrity_len = suite.cipher.integrity_key_len();
        let total = prf_len.saturating_mul(3).saturating_add(suite.cipher.keymat_len().saturating_mul(2));
        let keys = suite.prf.expand(skeyseed.expose(), &seed, total);
        let mut keys = KeyMaterial(keys.expose());
        //= RFC 7296 2.14 REQUIRED 3: the order of the keys
        let d = keys.next(prf_len);
        let (ai, ar, ei, er) = if mutation!("encryption_keys_first") {
            let (ei, er) = (keys.next(key_len), keys.next(key_len));
            (keys.next(integrity_len), keys.next(integrity_len), ei, er)
        } else {
            let (ai, ar) = (keys.next(integrity_len), keys.next(integrity_len));
            (ai, ar, keys.next(key_len), keys.next(key_len))
        };
        Self { suite, d, ai, ar, ei, er, pi: keys.next(prf_len), pr: keys.next(prf_len) }
    }

    /// Derives the keys of a CHILD_SA: KEYMAT = prf+(SK_d, [g^ir (new) |] Ni | Nr) (RFC 7296 2.17).
    /// The nonces come from the exchange that creates the CHILD_SA.
    pub fn child(&self, cipher: Cipher, nonces: Nonces<'_>, shared: Option<&Secret>) -> ChildKeys {
        let shared = shared.filter(|_| !mutation!("child_keys_without_secret"));
        let shared = shared.map_or([].as_slice(), Secret::expose);
        //= RFC 7296 2.17 REQUIRED 3: KEYMAT
        let seed = [shared, nonces.initiator, nonces.responder];
        let key_len = cipher.keymat_len();
        let keys = self.suite.prf.expand(self.d.expose(), &seed, key_len.saturating_mul(2));
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

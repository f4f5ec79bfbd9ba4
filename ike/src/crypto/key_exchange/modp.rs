//! MODP groups of 2048, 3072 and 4096 bits (RFC 3526): the quadratic residues, and their negatives,
//! modulo a safe prime.

use std::marker::PhantomData;
use std::sync::OnceLock;

use crypto_bigint::modular::{FixedMontyForm, FixedMontyParams};
use crypto_bigint::{Odd, U320, U2048, U3072, U4096, Uint};
use zeroize::Zeroizing;

use super::diffie_hellman::KeyPair;
use super::error::KeyExchangeError;
use crate::environment::Environment;
use crate::secret::Secret;

/// A group whose prime has `LIMBS` machine words.
pub(super) trait Group<const LIMBS: usize>: Send + Sync + 'static {
    /// Size of the prime, bytes.
    const LEN: usize = Uint::<LIMBS>::BYTES;
    /// Size of a private key, bits. RFC 3526 1 requires twice the strength of the group, which is
    /// 112, 128 or about 150 bits. A longer key would not make the exchange stronger, but an order
    /// of magnitude slower.
    const EXPONENT_BITS: u32;

    /// Returns the prime, with precomputed values for modular arithmetic.
    fn prime() -> &'static FixedMontyParams<LIMBS>;
}

macro_rules! groups {
    ($($(#[$meta:meta])* $name:ident: $uint:ty, $exponent_bits:literal, $prime:literal;)+) => {
        $(
            $(#[$meta])*
            pub(super) struct $name;

            impl Group<{ <$uint>::LIMBS }> for $name {
                const EXPONENT_BITS: u32 = $exponent_bits;

                fn prime() -> &'static FixedMontyParams<{ <$uint>::LIMBS }> {
                    static PRIME: OnceLock<FixedMontyParams<{ <$uint>::LIMBS }>> = OnceLock::new();
                    PRIME.get_or_init(|| FixedMontyParams::new_vartime(Odd::<$uint>::from_be_hex($prime)))
                }
            }

            impl KeyExchange for $name {
                type Pair = Modp<Self, { <$uint>::LIMBS }>;
            }
        )+
    };
}

/// Gives access to the key pair type of a group without its size parameter.
pub(super) trait KeyExchange {
    /// A key pair of this group.
    type Pair;
}

// Columns: name, type of the prime, bits of a private key, prime (RFC 3526 3 to 5). The generator
// is 2.
groups! {
    /// 2048-bit MODP group.
    Modp2048: U2048, 256,
        "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD\
         EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED\
         EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F\
         83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B\
         E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA0510\
         15728E5A8AACAA68FFFFFFFFFFFFFFFF";
    /// 3072-bit MODP group.
    Modp3072: U3072, 288,
        "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD\
         EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED\
         EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F\
         83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B\
         E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA0510\
         15728E5A8AAAC42DAD33170D04507A33A85521ABDF1CBA64ECFB850458DBEF0A8AEA71575D060C7DB3970F85A6E1E4C7\
         ABF5AE8CDB0933D71E8C94E04A25619DCEE3D2261AD2EE6BF12FFA06D98A0864D87602733EC86A64521F2B18177B200C\
         BBE117577A615D6C770988C0BAD946E208E24FA074E5AB3143DB5BFCE0FD108E4B82D120A93AD2CAFFFFFFFFFFFFFFFF";
    /// 4096-bit MODP group.
    Modp4096: U4096, 320,
        "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD\
         EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED\
         EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F\
         83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B\
         E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA0510\
         15728E5A8AAAC42DAD33170D04507A33A85521ABDF1CBA64ECFB850458DBEF0A8AEA71575D060C7DB3970F85A6E1E4C7\
         ABF5AE8CDB0933D71E8C94E04A25619DCEE3D2261AD2EE6BF12FFA06D98A0864D87602733EC86A64521F2B18177B200C\
         BBE117577A615D6C770988C0BAD946E208E24FA074E5AB3143DB5BFCE0FD108E4B82D120A92108011A723C12A787E6D7\
         88719A10BDBA5B2699C327186AF4E23C1A946834B6150BDA2583E9CA2AD44CE8DBBBC2DB04DE8EF92E8EFC141FBECAA6\
         287C59474E6BC05D99B2964FA090C3A2233BA186515BE7ED1F612970CEE2D7AFB81BDD762170481CD0069127D5B05AA9\
         93B4EA988D8FDDC186FFB7DC90A6C08F4DF435C934063199FFFFFFFFFFFFFFFF";
}

/// A key pair of the group `G`. The private key comes from the environment, so that a test can
/// choose it.
pub(super) struct Modp<G, const LIMBS: usize> {
    exponent: Zeroizing<U320>,
    public: Vec<u8>,
    group: PhantomData<G>,
}

impl<G: Group<LIMBS>, const LIMBS: usize> Modp<G, LIMBS> {
    /// Computes `base` to the power of our private key, in constant time.
    fn power(&self, base: &Uint<LIMBS>) -> Uint<LIMBS> {
        FixedMontyForm::new(base, G::prime()).pow_bounded_exp(&self.exponent, G::EXPONENT_BITS).retrieve()
    }
}

impl<G: Group<LIMBS>, const LIMBS: usize> KeyPair for Modp<G, LIMBS> {
    const PUBLIC_LEN: usize = G::LEN;

    fn generate(env: &mut dyn Environment) -> Result<Self, KeyExchangeError> {
        let mut octets = Zeroizing::new([0; U320::BYTES]);
        // The first octets remain zero.
        let unused = U320::BYTES.saturating_sub(G::EXPONENT_BITS as usize / 8);
        env.fill_random(octets.get_mut(unused..).unwrap_or_default());
        let exponent = Zeroizing::new(U320::from_be_slice(octets.as_ref()));
        let mut pair = Self { exponent, public: Vec::new(), group: PhantomData };
        // RFC 7296 3.4: the share is as long as the prime.
        //= RFC 7296 3.4 MUST 1: a share as long as the prime
        pair.public = octets_of(&pair.power(&Uint::from_u8(2)));
        Ok(pair)
    }

    fn public(&self) -> &[u8] {
        &self.public
    }

    fn agree(self: Box<Self>, peer: &[u8]) -> Result<Secret, KeyExchangeError> {
        if peer.len() != G::LEN {
            return Err(KeyExchangeError::Length { expected: G::LEN, found: peer.len() });
        }
        // RFC 6989 2.1: modulo a safe prime, 1 < y < p - 1 is the only check that is needed.
        let peer = Uint::from_be_slice(peer);
        let last = G::prime().modulus().as_ref().wrapping_sub(&Uint::ONE);
        if peer <= Uint::ONE || peer >= last {
            return Err(KeyExchangeError::OutOfRange);
        }
        // RFC 7296 2.14: the secret is as long as the prime.
        //= RFC 7296 2.14 REQUIRED 5: a secret as long as the prime
        let shared = Zeroizing::new(self.power(&peer));
        Ok(Secret::new(octets_of(&shared)))
    }
}

/// Encodes a number in network byte order, with leading zeros.
fn octets_of<const LIMBS: usize>(number: &Uint<LIMBS>) -> Vec<u8> {
    number.as_limbs().iter().rev().flat_map(|limb| limb.0.to_be_bytes()).collect()
}

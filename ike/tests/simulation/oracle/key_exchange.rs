//! Key exchange methods for which the oracle can compute the secret from one private key:
//! Curve25519 (RFC 8031), MODP groups (RFC 3526) and the 521-bit random ECP group (RFC 5903). The
//! computations use a library other than ours, and the primes come from their formula.

use std::sync::OnceLock;

use num_bigint::{BigInt, BigUint};
use x25519_dalek::{PublicKey, StaticSecret};

use super::keys::CURVE25519;

const ECP_521: u16 = 21;

/// The MODP groups: number, size of the prime in bits, the constant in the prime's formula, and
/// size of our private keys in bytes.
const MODP: [(u16, u32, u32, usize); 3] = [(14, 2048, 124_476, 32), (15, 3072, 1_690_314, 36), (16, 4096, 240_904, 40)];

pub fn is_known(group: u16) -> bool {
    [CURVE25519, ECP_521].contains(&group) || MODP.iter().any(|(known, ..)| *known == group)
}

/// Returns the public key for these random octets, if they have the length of a private key.
pub fn public(group: u16, private: &[u8]) -> Option<Vec<u8>> {
    match group {
        CURVE25519 => {
            let private: [u8; 32] = private.try_into().ok()?;
            Some(PublicKey::from(&StaticSecret::from(private)).to_bytes().to_vec())
        }
        ECP_521 => Some(p521_private(private)?.public_key().to_sec1_bytes().get(1..)?.to_vec()),
        _ => {
            let private_len = MODP.iter().find(|(known, ..)| *known == group)?.3;
            (private.len() == private_len).then(|| power(group, &BigUint::from(2_u8), private))?
        }
    }
}

pub fn secret(group: u16, private: &[u8], public: &[u8]) -> Option<Vec<u8>> {
    match group {
        CURVE25519 => {
            let (private, public): ([u8; 32], [u8; 32]) = (private.try_into().ok()?, public.try_into().ok()?);
            Some(StaticSecret::from(private).diffie_hellman(&PublicKey::from(public)).as_bytes().to_vec())
        }
        ECP_521 => {
            let point = p521::PublicKey::from_sec1_bytes(&[&[4], public].concat()).ok()?;
            let shared = p521::ecdh::diffie_hellman(p521_private(private)?.to_nonzero_scalar(), point.as_affine());
            Some(shared.raw_secret_bytes().to_vec())
        }
        _ => power(group, &BigUint::from_bytes_be(public), private),
    }
}

/// Makes a private key from 521 of the 528 bits of the octets.
fn p521_private(octets: &[u8]) -> Option<p521::SecretKey> {
    let mut octets: [u8; 66] = octets.try_into().ok()?;
    octets[0] &= 1;
    p521::SecretKey::from_slice(&octets).ok()
}

/// Computes `base` to the power of `exponent`. The result is as long as the prime (RFC 7296 2.14).
fn power(group: u16, base: &BigUint, exponent: &[u8]) -> Option<Vec<u8>> {
    let prime = prime(group)?;
    let octets = base.modpow(&BigUint::from_bytes_be(exponent), prime).to_bytes_be();
    let len = usize::try_from(prime.bits() / 8).ok()?;
    Some([vec![0; len.checked_sub(octets.len())?], octets].concat())
}

/// Computes 2^n - 2^(n-64) - 1 + 2^64 * ([2^(n-130) pi] + c) (RFC 3526 3 to 5).
fn prime(group: u16) -> Option<&'static BigUint> {
    static PRIMES: OnceLock<[BigUint; 3]> = OnceLock::new();
    let primes = PRIMES.get_or_init(|| {
        MODP.map(|(_, bits, constant, _)| {
            let one = BigUint::from(1_u8);
            (&one << bits) - (&one << (bits - 64)) - &one + ((pi(bits - 130) + constant) << 64)
        })
    });
    primes.get(MODP.iter().position(|(known, ..)| *known == group)?)
}

/// Computes [2^bits pi] by Machin's formula: pi = 16 arctan(1/5) - 4 arctan(1/239).
fn pi(bits: u32) -> BigUint {
    const GUARD_BITS: u32 = 64;
    let one = BigInt::from(1) << (bits + GUARD_BITS);
    let arctan = |inverse: u32| {
        let (mut power, mut sum, mut divisor) = (&one / inverse, BigInt::from(0), 1_u32);
        while power != BigInt::from(0) {
            let term = &power / divisor;
            sum += if divisor % 4 == 1 { term } else { -term };
            power /= inverse * inverse;
            divisor += 2;
        }
        sum
    };
    let pi: BigInt = arctan(5) * 16 - arctan(239) * 4;
    (pi >> GUARD_BITS).to_biguint().unwrap_or_default()
}

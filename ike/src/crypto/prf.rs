//! prf and prf+ (RFC 7296 2.13, RFC 4868).

use crate::config::Prf;
use crate::secret::Secret;
use crate::wire::InvalidMessage;
use ring::hmac;

impl Prf {
    /// Returns the size of the output, bytes. SK_d, SK_pi and SK_pr have the same size (RFC 7296
    /// 2.14).
    //= RFC 7296 2.13 MUST 3: SK_d, SK_pi and SK_pr
    pub(crate) fn output_len(self) -> usize {
        match self {
            Self::HmacSha256 => 32,
            Self::HmacSha384 => 48,
            Self::HmacSha512 => 64,
        }
    }

    /// Checks that a nonce has at least half the size of the key (RFC 7296 2.10), which for HMAC is
    /// the size of the output.
    pub(crate) fn check_nonce(self, nonce: &[u8]) -> Result<(), InvalidMessage> {
        let (found, least) = (nonce.len(), self.output_len() / 2);
        //= RFC 7296 2.10 MUST 3: half the PRF's key
        if found >= least { Ok(()) } else { Err(InvalidMessage::ShortNonce { found, least }) }
    }

    fn algorithm(self) -> hmac::Algorithm {
        match self {
            Self::HmacSha256 => hmac::HMAC_SHA256,
            Self::HmacSha384 => hmac::HMAC_SHA384,
            Self::HmacSha512 => hmac::HMAC_SHA512,
        }
    }

    /// Computes prf(key, data). `data` is a list of parts.
    pub(crate) fn compute(self, key: &[u8], data: &[&[u8]]) -> Secret {
        //= RFC 7296 1.7 MUST 2: a PRF takes a key of any length
        let mut context = hmac::Context::with_key(&hmac::Key::new(self.algorithm(), key));
        for part in data {
            context.update(part);
        }
        Secret::new(context.sign().as_ref().to_vec())
    }

    /// Computes the first `len` octets of prf+(key, seed), where T1 = prf(K, S | 0x01), T2 = prf(K,
    /// T1 | S | 0x02), ... `seed` is a list of parts.
    ///
    /// prf+ ends after 255 blocks; the keys of one SA need fewer than ten blocks.
    pub(crate) fn expand(self, key: &[u8], seed: &[&[u8]], len: usize) -> Secret {
        let key = hmac::Key::new(self.algorithm(), key);
        let mut out = Vec::with_capacity(len);
        let mut last: Option<hmac::Tag> = None;
        //= RFC 7296 2.13 REQUIRED 5: prf+
        for counter in 1..=u8::MAX {
            if out.len() >= len {
                break;
            }
            let mut context = hmac::Context::with_key(&key);
            if let Some(last) = &last {
                context.update(last.as_ref());
            }
            for part in seed {
                context.update(part);
            }
            context.update(&[counter]);
            let block = context.sign();
            let missing = len.saturating_sub(out.len());
            out.extend_from_slice(block.as_ref().get(..missing).unwrap_or(block.as_ref()));
            last = Some(block);
        }
        Secret::new(out)
    }
}

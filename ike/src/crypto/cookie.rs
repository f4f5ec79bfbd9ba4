//! Cookies, which protect against floods of IKE_SA_INIT from forged addresses (RFC 7296 2.6).

use std::net::IpAddr;
use std::time::Duration;

use ring::hmac;
use zeroize::Zeroizing;

use crate::environment::Environment;
use crate::time::Instant;

/// Age at which a secret is replaced. Cookies made with the previous secret are still accepted.
pub const COOKIE_LIFETIME: Duration = Duration::from_secs(60);

/// Makes and checks cookies without storing any. A cookie consists of the version of the secret and
/// `HMAC(secret, IPi | SPIi | Ni)`.
#[derive(Debug)]
pub struct Cookies {
    current: CookieSecret,
    previous: Option<CookieSecret>,
}

struct CookieSecret {
    version: u8,
    secret: hmac::Key,
    since: Instant,
}

impl Cookies {
    /// Makes the first secret.
    pub fn new(env: &mut dyn Environment, now: Instant) -> Self {
        Self { current: CookieSecret::new(0, env, now), previous: None }
    }

    /// Returns the cookie that an initiator must return.
    pub fn cookie(
        &mut self,
        env: &mut dyn Environment,
        now: Instant,
        nonce: &[u8],
        from: IpAddr,
        initiator_spi: u64,
    ) -> Vec<u8> {
        self.rotate(env, now);
        //= RFC 7296 2.6 MUST 5: 1 to 64 octets
        let mut cookie = vec![self.current.version];
        cookie.extend_from_slice(self.current.hash(nonce, from, initiator_spi).as_ref());
        cookie
    }

    /// Returns whether `cookie` was made for this initiator with the current or the previous
    /// secret.
    pub fn accepts(
        &mut self,
        env: &mut dyn Environment,
        now: Instant,
        cookie: &[u8],
        nonce: &[u8],
        from: IpAddr,
        initiator_spi: u64,
    ) -> bool {
        self.rotate(env, now);
        let Some((version, hash)) = cookie.split_first() else {
            return false;
        };
        let generations = std::iter::once(&self.current).chain(&self.previous);
        generations.filter(|generation| generation.version == *version).any(|generation| {
            let expected = generation.hash(nonce, from, initiator_spi);
            subtle::ConstantTimeEq::ct_eq(expected.as_ref(), hash).into()
        })
    }

    fn rotate(&mut self, env: &mut dyn Environment, now: Instant) {
        let age = now.saturating_since(self.current.since);
        if age < COOKIE_LIFETIME {
            return;
        }
        let next = CookieSecret::new(self.current.version.wrapping_add(1), env, now);
        let last = std::mem::replace(&mut self.current, next);
        self.previous = (age < COOKIE_LIFETIME.saturating_mul(2)).then_some(last);
    }
}

impl CookieSecret {
    fn new(version: u8, env: &mut dyn Environment, now: Instant) -> Self {
        let mut secret = Zeroizing::new([0; 32]);
        env.fill_random(secret.as_mut());
        Self { version, secret: hmac::Key::new(hmac::HMAC_SHA256, secret.as_ref()), since: now }
    }

    //= RFC 7296 2.6.1 SHOULD 1: the cookie stays for another group
    fn hash(&self, nonce: &[u8], from: IpAddr, initiator_spi: u64) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.secret);
        // IPv4 addresses are mapped to IPv6. Every part except the last then has a fixed length, so
        // the hashed octets of two initiators always differ.
        let address = match from {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        if !mutation!("cookie_without_address") {
            context.update(&address.octets());
        }
        context.update(&initiator_spi.to_be_bytes());
        context.update(nonce);
        context.sign()
    }
}

impl std::fmt::Debug for CookieSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CookieSecret")
            .field("version", &self.version)
            .field("since", &self.since)
            .finish_non_exhaustive()
    }
}

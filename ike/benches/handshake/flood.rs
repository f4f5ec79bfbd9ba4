//! IKE_SA_INIT requests from forged addresses, while an endpoint asks for cookies (RFC 7296 2.6).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use edge_ike::{Endpoint, EndpointConfig, Instant};
use ring::hmac;
use std::hint::black_box;

use crate::cases::cpu;
use crate::pair::{Authentication, Pair, Recipe};

/// Number of requests in a round, each from another address. All are answered: an endpoint answers
/// as many strangers in a second.
const REQUESTS: u32 = 4096;

/// A flood of one request from many addresses.
pub(crate) struct Flood {
    pair: Pair,
    request: Vec<u8>,
    now: Instant,
}

impl Flood {
    pub(crate) fn new() -> Self {
        let config = EndpointConfig { cookie_threshold: 0, ..EndpointConfig::default() };
        let mut pair = Pair::with_responder(&Recipe::new(Authentication::Psk), Endpoint::new(config));
        let request = pair.first_request();
        Self { pair, request, now: Instant::default() }
    }

    /// Returns the time that the endpoint takes for a request, and the time of the HMAC that makes
    /// a cookie, microseconds. Panics if a request is not answered by a cookie alone.
    pub(crate) fn round(&mut self) -> (f64, f64) {
        // In each second as many answers are allowed.
        self.now = self.now + Duration::from_secs(1);
        let before = cpu();
        for source in 0..REQUESTS {
            let from = SocketAddr::new(IpAddr::V4(Ipv4Addr::from(0x0a00_0000 | source)), 500);
            let answer = self.pair.responder_takes(&self.request, from, self.now).expect("an answer");
            assert!(answer.payload.len() < 100 && answer.remote == from, "a cookie is asked for");
        }
        let between = cpu();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]);
        for source in 0..REQUESTS {
            // The address, the SPI and the nonce.
            black_box(hmac::sign(&key, black_box(&[u8::try_from(source & 0xff).unwrap_or(0); 16 + 8 + 32])));
        }
        let micros = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(REQUESTS);
        (micros(between - before), micros(cpu() - between))
    }
}

//! Random numbers from the system.

use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

/// The system gives no random numbers: nothing secret can be made.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the system gives no random numbers")]
pub struct NoRandomness;

/// Octets that nobody can guess; wiped when dropped.
pub fn octets(count: usize) -> Result<Zeroizing<Vec<u8>>, NoRandomness> {
    let mut bytes = Zeroizing::new(vec![0; count]);
    SystemRandom::new().fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(bytes)
}

/// A time between zero and `longest`, so that not everyone comes at once.
pub fn jitter(longest: Duration) -> Duration {
    let octet = octets(1).ok().and_then(|bytes| bytes.first().copied()).unwrap_or(u8::MAX);
    longest * u32::from(octet) / u32::from(u8::MAX)
}

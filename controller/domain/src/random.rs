//! Gets random numbers from the operating system.

use std::time::Duration;

use edge_types::jitter::between;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

/// The operating system provides no random numbers, so no secret can be generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system's random number generator failed")]
pub struct NoRandomness;

/// Returns random octets for secrets. They are wiped when dropped.
pub fn octets(count: usize) -> Result<Zeroizing<Vec<u8>>, NoRandomness> {
    let mut bytes = Zeroizing::new(vec![0; count]);
    SystemRandom::new().fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(bytes)
}

/// Returns a random time up to `longest`, so that clients do not all connect at the same moment.
pub fn jitter(longest: Duration) -> Duration {
    between(Duration::ZERO, longest)
}

//! Random numbers for times.

use crate::environment::Environment;

/// Random numbers that shorten times, so that many peers rarely act at the same moment. They are
/// not secret, so they come from SplitMix64 (Steele, Lea and Flood, 2014). To ask the system for
/// each would take a large part of the time that a handshake needs besides its cryptography.
#[derive(Debug, Default)]
pub(crate) struct Jitter {
    /// `None` until [`Self::seed`] was called.
    state: Option<u64>,
}

impl Jitter {
    /// Takes the seed from the environment, unless there is one.
    pub(crate) fn seed(&mut self, env: &mut dyn Environment) {
        self.state.get_or_insert_with(|| {
            let mut seed = [0; 8];
            env.fill_random(&mut seed);
            u64::from_be_bytes(seed)
        });
    }

    /// Returns the next number. All numbers are equally likely.
    pub(crate) fn next(&mut self) -> u16 {
        let state = self.state.unwrap_or_default().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.state = Some(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let [first, second, ..] = (mixed ^ (mixed >> 31)).to_be_bytes();
        u16::from_be_bytes([first, second])
    }
}

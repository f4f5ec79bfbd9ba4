//! Maps whose keys are our SPIs.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::child_sas::Spi;

/// A map by our SPI of an IKE SA. We choose our SPIs at random, so nobody else can choose keys with
/// the same hash, and an SPI can be its own hash.
pub(crate) type SpiMap<V> = HashMap<Spi, V, BuildHasherDefault<SpiHasher>>;

/// Returns an SPI as its own hash.
#[derive(Debug, Default)]
pub(crate) struct SpiHasher(u64);

impl Hasher for SpiHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, spi: u64) {
        self.0 = spi;
    }

    fn write(&mut self, octets: &[u8]) {
        for octet in octets {
            self.0 = self.0.rotate_left(8) ^ u64::from(*octet);
        }
    }
}

//! Maps whose keys no stranger chooses.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

/// A map by keys that come from this node: our random SPIs, the kernel's, and configured names.
/// They need no keyed hash, which protects against chosen keys that collide.
pub(crate) type OwnKeyMap<K, V> = HashMap<K, V, BuildHasherDefault<OwnKeyHasher>>;
/// A set of such keys.
pub(crate) type OwnKeySet<K> = HashSet<K, BuildHasherDefault<OwnKeyHasher>>;

/// A quick hash without a key: each word is mixed in by a rotation and a multiplication.
#[derive(Debug, Default)]
pub(crate) struct OwnKeyHasher(u64);

impl Hasher for OwnKeyHasher {
    fn finish(&self) -> u64 {
        // A product's high bits depend on all bits of its factors, and a map uses the low bits.
        self.0.rotate_left(26)
    }

    fn write(&mut self, octets: &[u8]) {
        let (words, rest) = octets.as_chunks::<8>();
        for word in words {
            self.write_u64(u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            self.write_u64(rest.iter().fold(0, |word, octet| (word << 8) | u64::from(*octet)));
        }
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(word.into());
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, Hash};

    use super::*;
    use crate::config::PeerName;

    /// Returns how many of these keys share the low bits of their hash that a map for them uses.
    fn most_alike<K: Hash>(keys: impl Iterator<Item = K>) -> usize {
        let builder = BuildHasherDefault::<OwnKeyHasher>::default();
        let mut places = HashMap::<u64, usize>::new();
        keys.for_each(|key| *places.entry(builder.hash_one(key) & 0x3fff).or_default() += 1);
        places.into_values().max().unwrap()
    }

    #[test]
    fn keys_that_differ_little_are_spread() {
        assert!(most_alike((0..10_000).map(|number| PeerName::new(&format!("edge-{number:05}")))) < 12);
        assert!(most_alike((0..10_000).map(|number| PeerName::new(&format!("{number:05}.edge.example.org")))) < 12);
        assert!(most_alike(0..10_000_u32) < 12);
        assert!(most_alike(0..10_000_u64) < 12);
    }
}

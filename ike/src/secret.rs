//! Secret bytes.

use zeroize::{Zeroize, ZeroizeOnDrop};

/// Secret bytes. They are wiped when dropped, never shown by `Debug`, and compared in constant
/// time.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
//= RFC 7296 2.12 MUST 1: keys are forgotten
pub struct Secret(Box<[u8]>);

impl Secret {
    /// Wraps bytes.
    pub fn new(mut bytes: Vec<u8>) -> Self {
        if bytes.len() == bytes.capacity() {
            return Self(bytes.into_boxed_slice());
        }
        // To give back the surplus memory may move the bytes, and leave a copy behind.
        let exact = bytes.as_slice().into();
        bytes.zeroize();
        Self(exact)
    }

    /// Returns the bytes.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        subtle::ConstantTimeEq::ct_eq(&*self.0, &*other.0).into()
    }
}

impl Eq for Secret {}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<secret>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_with_surplus_memory_are_kept_without_it() {
        let mut bytes = Vec::with_capacity(100);
        bytes.extend_from_slice(b"hunter2");
        assert_eq!(Secret::new(bytes).expose(), b"hunter2");
        assert_eq!(size_of::<Secret>(), 16);
    }

    #[test]
    fn debug_never_shows_the_bytes() {
        assert_eq!(format!("{:?}", Secret::new(b"hunter2".to_vec())), "<secret>");
    }
}

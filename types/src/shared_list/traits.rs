//! What a shared list has in common with a `Vec`: it is compared, indexed, collected and serialised
//! like one.

use std::fmt;
use std::ops::Index;

use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Iter, Keyed, SharedList};

impl<T> Default for SharedList<T> {
    fn default() -> Self {
        Self { parts: Vec::new(), len: 0, ordered: true }
    }
}

impl<T: fmt::Debug> fmt::Debug for SharedList<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

/// Lists with the same items in the same order are equal, however they are divided into parts.
impl<T: Eq> Eq for SharedList<T> {}

impl<T: PartialEq> PartialEq<[T]> for SharedList<T> {
    fn eq(&self, other: &[T]) -> bool {
        self.iter().eq(other)
    }
}

impl<T: PartialEq, const N: usize> PartialEq<[T; N]> for SharedList<T> {
    fn eq(&self, other: &[T; N]) -> bool {
        self.iter().eq(other)
    }
}

impl<T: PartialEq> PartialEq<Vec<T>> for SharedList<T> {
    fn eq(&self, other: &Vec<T>) -> bool {
        self.iter().eq(other)
    }
}

impl<T> Index<usize> for SharedList<T> {
    type Output = T;

    /// Returns the item at a position.
    ///
    /// # Panics
    /// If the list is shorter.
    #[expect(clippy::expect_used, reason = "as with a Vec, the caller knows the length")]
    fn index(&self, mut at: usize) -> &T {
        let mut parts = self.parts.iter();
        let part = parts.find(|part| {
            let found = at < part.len();
            if !found {
                at -= part.len();
            }
            found
        });
        part.and_then(|part| part.get(at)).expect("the list is shorter")
    }
}

impl<'a, T> IntoIterator for &'a SharedList<T> {
    type Item = &'a T;
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Iter<'a, T> {
        self.iter()
    }
}

impl<T: Keyed> From<Vec<T>> for SharedList<T> {
    fn from(items: Vec<T>) -> Self {
        let ordered = items.is_sorted_by(|one, next| one.key() < next.key());
        Self { ordered, ..Self::unordered(items) }
    }
}

impl<T: Keyed> FromIterator<T> for SharedList<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        items.into_iter().collect::<Vec<T>>().into()
    }
}

impl<T: Keyed + Clone> Extend<T> for SharedList<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, items: I) {
        items.into_iter().for_each(|item| self.push(item));
    }
}

impl<T: Serialize> Serialize for SharedList<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.len))?;
        self.iter().try_for_each(|item| list.serialize_element(item))?;
        list.end()
    }
}

impl<'de, T: Deserialize<'de> + Keyed> Deserialize<'de> for SharedList<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(Self::from)
    }
}

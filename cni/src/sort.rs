//! Sorting in little machine code. For each type of item the standard library's sorts take 4 KiB,
//! and its sets 3 KiB and such a sort. The plugin may have 1 MiB.

use std::borrow::Borrow;

/// Sorts a list, in n log n steps. Of two items neither of which comes before the other, either may
/// be the first.
pub(crate) fn sort_by<T>(items: &mut [T], before: impl Fn(&T, &T) -> bool) {
    heapsort(&mut List { items, before });
}

/// A set of items, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SortedSet<T>(Vec<T>);

impl<T: Ord> FromIterator<T> for SortedSet<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut items: Vec<T> = items.into_iter().collect();
        sort_by(&mut items, |one, other| one < other);
        items.dedup();
        Self(items)
    }
}

impl<T> SortedSet<T> {
    /// Whether it has this item.
    pub(crate) fn contains<Q: Ord + ?Sized>(&self, item: &Q) -> bool
    where
        T: Borrow<Q>,
    {
        self.0.binary_search_by(|other| other.borrow().cmp(item)).is_ok()
    }

    /// Whether it has none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T> IntoIterator for SortedSet<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// What heapsort does with a list of any type.
trait Sortable {
    fn len(&self) -> usize;
    /// Whether the item at `one` comes before the one at `other`.
    fn before(&self, one: usize, other: usize) -> bool;
    fn swap(&mut self, one: usize, other: usize);
}

struct List<'a, T, F> {
    items: &'a mut [T],
    before: F,
}

impl<T, F: Fn(&T, &T) -> bool> Sortable for List<'_, T, F> {
    fn len(&self) -> usize {
        self.items.len()
    }

    fn before(&self, one: usize, other: usize) -> bool {
        self.items.get(one).zip(self.items.get(other)).is_some_and(|(one, other)| (self.before)(one, other))
    }

    fn swap(&mut self, one: usize, other: usize) {
        self.items.swap(one, other);
    }
}

fn heapsort(list: &mut dyn Sortable) {
    let length = list.len();
    for root in (0..length / 2).rev() {
        sift_down(list, root, length);
    }
    for end in (1..length).rev() {
        list.swap(0, end);
        sift_down(list, 0, end);
    }
}

/// Moves the item at `root` down until none below it, and before `end`, comes after it.
fn sift_down(list: &mut dyn Sortable, mut root: usize, end: usize) {
    loop {
        let mut child = 2 * root + 1;
        if child >= end {
            return;
        }
        if child + 1 < end && list.before(child, child + 1) {
            child += 1;
        }
        if !list.before(root, child) {
            return;
        }
        list.swap(root, child);
        root = child;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lists_and_sets_are_those_of_the_standard_library(items in vec(any::<u8>(), 0..200)) {
            let (mut ours, mut expected) = (items.clone(), items.clone());
            sort_by(&mut ours, |one, other| one < other);
            expected.sort_unstable();
            prop_assert_eq!(ours, expected);
            let (set, expected): (SortedSet<u8>, BTreeSet<u8>) = (items.iter().copied().collect(), items.into_iter().collect());
            prop_assert_eq!(set.is_empty(), expected.is_empty());
            for item in 0..=u8::MAX {
                prop_assert_eq!(set.contains(&item), expected.contains(&item));
            }
            prop_assert!(set.into_iter().eq(expected));
        }
    }
}

//! Sorting with little machine code. For each item type, a sort from the standard library adds 4
//! KiB to the program, and a set adds 3 KiB in addition to the sort. The plugin's size limit is 1
//! MiB.

use std::borrow::Borrow;

/// Sorts a list in O(n log n) steps. The sort is not stable: two items that compare equal may
/// change their order.
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
    /// Returns whether the set contains this item.
    pub(crate) fn contains<Q: Ord + ?Sized>(&self, item: &Q) -> bool
    where
        T: Borrow<Q>,
    {
        self.0.binary_search_by(|other| other.borrow().cmp(item)).is_ok()
    }

    /// Returns whether the set is empty.
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

/// The operations of heapsort on a list of any item type.
trait Sortable {
    fn len(&self) -> usize;
    /// Returns whether the item at `one` comes before the item at `other`.
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

/// Moves the item at `root` down the heap until no item below it comes after it. The heap ends
/// before `end`.
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

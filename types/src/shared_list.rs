//! A list whose copies share what does not change. A hub may have ten thousand peers, and each edge
//! that joins, moves or leaves makes another view, while others still use the one before. To copy
//! such a list, to change one item, and to find what differs between two copies takes time for the
//! change and not for the list.

use std::fmt;
use std::ops::Index;
use std::slice;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Maximum number of items in a part: about the square root of ten thousand, so that neither the
/// list of parts nor a part is long.
const MAX_PART: usize = 128;
/// Number of items in the parts of a new list. They leave room for the next items.
const NEW_PART: usize = MAX_PART / 4 * 3;
/// Two neighbours that have at most this many items together are joined. So there are at most
/// `2 * len / (JOINED + 1) + 1` parts.
const JOINED: usize = MAX_PART / 2;

/// An item that is found by its key.
pub trait Keyed {
    /// The key. An ordered list has each key once.
    type Key: Ord;

    /// Returns the item's key.
    fn key(&self) -> &Self::Key;
}

impl Keyed for IpNetwork {
    type Key = Self;

    fn key(&self) -> &Self {
        self
    }
}

impl<K: Ord, V> Keyed for (K, V) {
    type Key = K;

    fn key(&self) -> &K {
        &self.0
    }
}

/// A list of items in parts that its copies share. Usually the items are in the order of their
/// keys, each key once; [`Self::is_ordered`] says so. A list that was received in another order
/// keeps that order until it is changed by key.
#[derive(Clone)]
pub struct SharedList<T> {
    /// None of them is empty, and none has more than [`MAX_PART`] items.
    parts: Vec<Arc<Vec<T>>>,
    len: usize,
    ordered: bool,
}

impl<T> SharedList<T> {
    /// Makes a list of items in any order. It counts as unordered, whatever their order is.
    #[must_use]
    pub fn unordered(items: Vec<T>) -> Self {
        let len = items.len();
        let mut parts = Vec::with_capacity(len.div_ceil(NEW_PART));
        let mut items = items.into_iter();
        while items.len() > 0 {
            parts.push(Arc::new(items.by_ref().take(NEW_PART).collect()));
        }
        Self { parts, len, ordered: len == 0 }
    }

    /// Returns the number of items.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there is no item.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns whether the items are known to be in the order of their keys, each key once.
    #[must_use]
    pub fn is_ordered(&self) -> bool {
        self.ordered
    }

    /// Returns the first item.
    #[must_use]
    pub fn first(&self) -> Option<&T> {
        self.iter().next()
    }

    /// Returns the items in their order.
    #[must_use]
    pub fn iter(&self) -> Iter<'_, T> {
        Iter { parts: self.parts.iter(), part: slice::Iter::default() }
    }

    /// Returns the number of parts that both lists share in memory, at whatever positions.
    #[must_use]
    pub fn shared_parts(&self, other: &Self) -> usize {
        self.parts.iter().filter(|part| other.parts.iter().any(|other| Arc::ptr_eq(part, other))).count()
    }

    /// Returns the number of parts.
    #[must_use]
    pub fn parts(&self) -> usize {
        self.parts.len()
    }
}

impl<T: Clone> SharedList<T> {
    /// Returns a copy of all items.
    #[must_use]
    pub fn to_vec(&self) -> Vec<T> {
        self.iter().cloned().collect()
    }
}

impl<T: Keyed> SharedList<T> {
    /// Returns the item with a key. In an unordered list it is the first one.
    #[must_use]
    pub fn get(&self, key: &T::Key) -> Option<&T> {
        if !self.ordered {
            return self.iter().find(|item| item.key() == key);
        }
        let part = self.parts.get(self.part_of(key))?;
        part.get(search(part, key).ok()?)
    }

    /// Returns the items of an ordered list from `key` on, this one included.
    #[must_use]
    pub fn iter_from(&self, key: &T::Key) -> Iter<'_, T> {
        self.iter_behind(self.part_of(key), |other| other < key)
    }

    /// Returns the items of an ordered list whose keys come after `key`.
    #[must_use]
    pub fn iter_after(&self, key: &T::Key) -> Iter<'_, T> {
        self.iter_behind(self.part_of(key), |other| other <= key)
    }

    fn iter_behind(&self, at: usize, is_before: impl Fn(&T::Key) -> bool) -> Iter<'_, T> {
        let mut parts = self.parts.get(at..).unwrap_or_default().iter();
        let part = parts.next().map(|part| part.as_slice()).unwrap_or_default();
        let from = part.partition_point(|item| is_before(visited(item).key()));
        Iter { parts, part: part.get(from..).unwrap_or_default().iter() }
    }

    /// Returns how `now` differs from this list: each item before and after the change, in the
    /// order of the keys. Items for which `is_same` is true do not differ; it must be false for
    /// items with different keys. `None` if one of the lists is unordered. Items in parts that both
    /// lists share are not looked at.
    #[must_use]
    pub fn differences<'a>(
        &'a self,
        now: &'a Self,
        is_same: fn(&T, &T) -> bool,
    ) -> Option<impl Iterator<Item = (Option<&'a T>, Option<&'a T>)>> {
        let both = self.ordered && now.ordered;
        both.then(|| Differences { before: Cursor::new(self), now: Cursor::new(now), is_same })
    }

    /// Returns the position of the only part that may have the key: the first one that does not end
    /// before it.
    fn part_of(&self, key: &T::Key) -> usize {
        self.parts.partition_point(|part| part.last().is_some_and(|last| visited(last).key() < key))
    }
}

impl<T: Keyed + Clone> SharedList<T> {
    /// Inserts an item and returns the one that had its key. An unordered list is ordered before;
    /// of several items with one key, the last one stays.
    pub fn insert(&mut self, item: T) -> Option<T> {
        self.make_ordered();
        let at = self.part_of(item.key()).min(self.parts.len().saturating_sub(1));
        let Some(part) = self.parts.get_mut(at) else {
            self.parts.push(Arc::new(vec![item]));
            self.len += 1;
            return None;
        };
        let part = Arc::make_mut(part);
        let within = match search(part, item.key()) {
            Ok(within) => return part.get_mut(within).map(|known| std::mem::replace(known, item)),
            Err(within) => within,
        };
        part.insert(within, item);
        self.len += 1;
        if part.len() > MAX_PART {
            let second = part.split_off(part.len() / 2);
            self.parts.insert(at + 1, Arc::new(second));
        }
        None
    }

    /// Removes the item with a key and returns it. An unordered list is ordered before, as by
    /// [`Self::insert`].
    pub fn remove(&mut self, key: &T::Key) -> Option<T> {
        self.make_ordered();
        let at = self.part_of(key);
        let part = self.parts.get_mut(at)?;
        let within = search(part, key).ok()?;
        let part = Arc::make_mut(part);
        let item = part.remove(within);
        self.len -= 1;
        if part.is_empty() {
            self.parts.remove(at);
            return Some(item);
        }
        for first in [at.checked_sub(1), Some(at)].into_iter().flatten() {
            if self.join(first) {
                break;
            }
        }
        Some(item)
    }

    /// Joins a part with the next one if both together are small. Returns whether it did.
    fn join(&mut self, first: usize) -> bool {
        let [Some(one), Some(next)] = [first, first + 1].map(|at| self.parts.get(at)) else { return false };
        if one.len() + next.len() > JOINED {
            return false;
        }
        let next = self.parts.remove(first + 1);
        if let Some(part) = self.parts.get_mut(first) {
            Arc::make_mut(part).extend(next.iter().cloned());
        }
        true
    }

    /// Adds an item at the end. The list is unordered afterwards, unless the item's key comes after
    /// all others.
    pub fn push(&mut self, item: T) {
        let last = self.parts.last().and_then(|part| part.last());
        self.ordered &= last.is_none_or(|last| last.key() < item.key());
        self.len += 1;
        match self.parts.last_mut() {
            Some(part) if part.len() < MAX_PART => Arc::make_mut(part).push(item),
            _ => self.parts.push(Arc::new(vec![item])),
        }
    }

    /// Puts the items in the order of their keys. Of several items with one key, the last one
    /// stays.
    pub fn make_ordered(&mut self) {
        if self.ordered {
            return;
        }
        let mut items = self.to_vec();
        // The sort is stable, and `dedup_by` keeps the first of equal neighbours.
        items.sort_by(|one, other| one.key().cmp(other.key()));
        items.dedup_by(|later, kept| {
            let same = later.key() == kept.key();
            if same {
                std::mem::swap(kept, later);
            }
            same
        });
        *self = items.into();
    }
}

fn search<T: Keyed>(part: &[T], key: &T::Key) -> Result<usize, usize> {
    part.binary_search_by(|item| visited(item).key().cmp(key))
}

/// Returns the item, after counting the look at it in a debug build.
fn visited<T>(item: &T) -> &T {
    if cfg!(debug_assertions) {
        visits::COUNT.set(visits::COUNT.get() + 1);
    }
    item
}

/// How many items of shared lists were looked at, by iteration or in search of a key, for tests
/// that a change is not carried out by a look at everything. Without debug assertions nothing is
/// counted.
pub mod visits {
    use std::cell::Cell;

    thread_local! {
        pub(super) static COUNT: Cell<u64> = const { Cell::new(0) };
    }

    /// Returns the result of `work`, and the number of looks that it takes on this thread.
    pub fn of<R>(work: impl FnOnce() -> R) -> (R, u64) {
        let before = COUNT.get();
        let result = work();
        (result, COUNT.get() - before)
    }
}

/// The items in their order.
#[derive(Debug)]
pub struct Iter<'a, T> {
    parts: slice::Iter<'a, Arc<Vec<T>>>,
    part: slice::Iter<'a, T>,
}

impl<T> Clone for Iter<'_, T> {
    fn clone(&self) -> Self {
        Self { parts: self.parts.clone(), part: self.part.clone() }
    }
}

impl<'a, T> Iterator for Iter<'a, T> {
    type Item = &'a T;

    fn next(&mut self) -> Option<&'a T> {
        loop {
            if let Some(item) = self.part.next() {
                return Some(visited(item));
            }
            self.part = self.parts.next()?.iter();
        }
    }
}

/// A position in a list.
struct Cursor<'a, T> {
    /// This part and those after it.
    parts: &'a [Arc<Vec<T>>],
    /// The position within the part.
    at: usize,
}

impl<'a, T> Cursor<'a, T> {
    fn new(list: &'a SharedList<T>) -> Self {
        Self { parts: &list.parts, at: 0 }
    }

    /// Returns the part, if nothing of it has been passed.
    fn whole_part(&self) -> Option<&'a Arc<Vec<T>>> {
        self.parts.first().filter(|_| self.at == 0)
    }

    fn pass_part(&mut self) {
        self.parts = self.parts.get(1..).unwrap_or_default();
        self.at = 0;
    }

    fn item(&self) -> Option<&'a T> {
        self.parts.first()?.get(self.at)
    }

    fn pass_item(&mut self) -> Option<&'a T> {
        let part = self.parts.first()?;
        let item = part.get(self.at);
        self.at += 1;
        if self.at >= part.len() {
            self.pass_part();
        }
        item
    }
}

struct Differences<'a, T> {
    before: Cursor<'a, T>,
    now: Cursor<'a, T>,
    is_same: fn(&T, &T) -> bool,
}

impl<'a, T: Keyed> Iterator for Differences<'a, T> {
    type Item = (Option<&'a T>, Option<&'a T>);

    fn next(&mut self) -> Option<Self::Item> {
        let (before, now) = (&mut self.before, &mut self.now);
        loop {
            if let (Some(one), Some(other)) = (before.whole_part(), now.whole_part())
                && Arc::ptr_eq(one, other)
            {
                before.pass_part();
                now.pass_part();
                continue;
            }
            let (old, new) = match (before.item(), now.item()) {
                (None, None) => return None,
                (Some(_), None) => return Some((before.pass_item(), None)),
                (None, Some(_)) => return Some((None, now.pass_item())),
                (Some(old), Some(new)) => (visited(old), new),
            };
            if (self.is_same)(old, new) {
                before.pass_item();
                now.pass_item();
                continue;
            }
            return Some(match old.key().cmp(new.key()) {
                std::cmp::Ordering::Less => (before.pass_item(), None),
                std::cmp::Ordering::Greater => (None, now.pass_item()),
                std::cmp::Ordering::Equal => (before.pass_item(), now.pass_item()),
            });
        }
    }
}

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
impl<T: PartialEq> PartialEq for SharedList<T> {
    fn eq(&self, other: &Self) -> bool {
        if self.len != other.len {
            return false;
        }
        let (mut one, mut other) = (Cursor::new(self), Cursor::new(other));
        loop {
            if let (Some(part), Some(of_other)) = (one.whole_part(), other.whole_part())
                && Arc::ptr_eq(part, of_other)
            {
                one.pass_part();
                other.pass_part();
                continue;
            }
            match (one.pass_item(), other.pass_item()) {
                (None, None) => return true,
                (item, of_other) if item.map(visited) != of_other => return false,
                _ => {}
            }
        }
    }
}

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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    type Entry = (usize, char);

    fn same(one: &Entry, other: &Entry) -> bool {
        one == other
    }

    fn is_sound(list: &SharedList<Entry>) -> bool {
        list.parts.iter().all(|part| (1..=MAX_PART).contains(&part.len()))
            && list.is_ordered()
            && list.iter().is_sorted_by(|one, next| one.0 < next.0)
            && list.iter().count() == list.len()
            && list.parts() <= 2 * list.len() / (JOINED + 1) + 1
    }

    fn numbers(count: usize) -> SharedList<Entry> {
        (0..count).map(|number| (number * 2, 'a')).collect()
    }

    #[test]
    fn a_change_of_one_of_ten_thousand_items_looks_at_as_few_as_one_of_a_hundred() {
        let looks = |count: usize| {
            let before = numbers(count);
            let ((), looks) = visits::of(|| {
                let mut after = before.clone();
                after.remove(&(count / 2 * 2));
                after.insert((count + 1, 'b'));
                let changes: Vec<_> = before.differences(&after, same).unwrap().collect();
                let expected = [(Some(&(count / 2 * 2, 'a')), None), (None, Some(&(count + 1, 'b')))];
                assert!(changes.len() == 2 && expected.iter().all(|change| changes.contains(change)));
                assert_ne!(before, after);
            });
            looks
        };
        // Two parts, and the search for them.
        assert!(looks(10_000) < 2 * 128 + 64, "{}", looks(10_000));
        assert!(looks(10_000) <= 4 * looks(100), "{} and {}", looks(10_000), looks(100));
    }

    #[test]
    fn a_copy_that_changes_shares_all_but_one_part() {
        let before = numbers(10_000);
        let mut after = before.clone();
        assert!(after.remove(&10_000).is_some() && after.remove(&10_000).is_none());
        assert_eq!((before.parts(), before.shared_parts(&after)), (105, 104));
        assert!(before.get(&10_000).is_some() && after.get(&10_000).is_none());
    }

    #[test]
    fn there_are_never_many_small_parts_in_whatever_order_items_go() {
        let all = numbers(3000);
        let orders: [fn(usize) -> usize; 4] =
            [|at| at, |at| 2999 - at, |at| at * 7 % 3000, |at| if at % 2 == 0 { at / 2 } else { 2999 - at / 2 }];
        for order in orders {
            let mut list = all.clone();
            for at in 0..3000 {
                assert!(list.remove(&(order(at) * 2)).is_some());
                assert!(list.parts() <= 2 * list.len() / (JOINED + 1) + 1, "{} of {}", list.parts(), list.len());
            }
            assert!(list.is_empty() && list.parts() == 0);
        }
    }

    #[test]
    fn an_unordered_list_keeps_its_order_until_it_is_changed_by_key() {
        let mut list: SharedList<Entry> = vec![(3, 'a'), (1, 'a'), (3, 'b'), (2, 'a')].into();
        assert!(!list.is_ordered() && list.differences(&list, same).is_none());
        assert_eq!(list, [(3, 'a'), (1, 'a'), (3, 'b'), (2, 'a')]);
        assert_eq!((list.get(&3), list[2], list.first()), (Some(&(3, 'a')), (3, 'b'), Some(&(3, 'a'))));
        assert_eq!(list.insert((2, 'c')), Some((2, 'a')));
        assert!(list.is_ordered());
        assert_eq!(list, vec![(1, 'a'), (2, 'c'), (3, 'b')]);
        list.push((4, 'a'));
        assert!(list.is_ordered());
        list.push((4, 'a'));
        assert!(!list.is_ordered() && list.len() == 5);
        assert_eq!(serde_json::to_string(&list).unwrap(), r#"[[1,"a"],[2,"c"],[3,"b"],[4,"a"],[4,"a"]]"#);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn it_does_what_an_ordered_map_does(
            start in 0..400_usize,
            changes in prop::collection::vec(
                (0..600_usize, prop::option::of(prop::sample::select(vec!['a', 'b']))), 0..700,
            ),
        ) {
            let before = numbers(start);
            let mut expected: BTreeMap<usize, char> = before.iter().copied().collect();
            let mut list = before.clone();
            for (number, change) in changes {
                let known = match change {
                    Some(item) => (list.insert((number, item)), expected.insert(number, item)),
                    None => (list.remove(&number), expected.remove(&number)),
                };
                prop_assert_eq!(known.0.map(|(_, item)| item), known.1);
            }
            prop_assert!(is_sound(&list) && before == numbers(start));
            prop_assert!(list.iter().copied().eq(expected.clone()));
            for number in (0..600).step_by(7) {
                prop_assert_eq!(list.get(&number).map(|(_, item)| item), expected.get(&number));
                let from = |start: usize| expected.range(start..).map(|(key, item)| (*key, *item));
                prop_assert!(list.iter_from(&number).copied().eq(from(number)));
                prop_assert!(list.iter_after(&number).copied().eq(from(number + 1)));
            }
            let old: BTreeMap<usize, char> = before.iter().copied().collect();
            let keys: std::collections::BTreeSet<usize> = old.keys().chain(expected.keys()).copied().collect();
            let wanted: Vec<_> = keys
                .into_iter()
                .map(|key| (old.get(&key).map(|item| (key, *item)), expected.get(&key).map(|item| (key, *item))))
                .filter(|(old, new)| old != new)
                .collect();
            let found: Vec<_> =
                before.differences(&list, same).unwrap().map(|(old, new)| (old.copied(), new.copied())).collect();
            prop_assert_eq!(&found, &wanted);
            prop_assert_eq!(before == list, wanted.is_empty());
            prop_assert_eq!(&list, &SharedList::from(list.to_vec()));
        }
    }
}

//! A list whose copies share what does not change. A hub may have ten thousand peers, and each edge
//! that joins, moves or leaves makes another view, while others still use the one before. To copy
//! such a list, to change one item, and to find what differs between two copies takes time for the
//! change and not for the list.

mod comparison;
#[cfg(test)]
mod tests;
mod traits;

use std::slice;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use self::comparison::Differences;

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
        both.then(|| Differences::new(self, now, is_same))
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

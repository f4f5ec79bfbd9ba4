//! Compares two lists without a look at the parts that they share.

use std::cmp::Ordering;
use std::sync::Arc;

use super::{Keyed, SharedList, visited};

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

/// The items that differ, in the order of their keys.
pub(super) struct Differences<'a, T> {
    before: Cursor<'a, T>,
    now: Cursor<'a, T>,
    is_same: fn(&T, &T) -> bool,
}

impl<'a, T> Differences<'a, T> {
    /// Both lists must be ordered.
    pub(super) fn new(before: &'a SharedList<T>, now: &'a SharedList<T>, is_same: fn(&T, &T) -> bool) -> Self {
        Self { before: Cursor::new(before), now: Cursor::new(now), is_same }
    }
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
                Ordering::Less => (before.pass_item(), None),
                Ordering::Greater => (None, now.pass_item()),
                Ordering::Equal => (before.pass_item(), now.pass_item()),
            });
        }
    }
}

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

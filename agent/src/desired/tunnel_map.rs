//! The tunnels by peer name, in a map whose copies share what does not change. A hub may have ten
//! thousand tunnels, and each edge that joins, moves or leaves makes another desired state, while
//! others still use the one before.

use std::fmt;
use std::slice;
use std::sync::Arc;

use edge_ike::PeerName;

use super::tunnel::DesiredTunnel;

/// Maximum number of tunnels in a part: about the square root of ten thousand, so that neither the
/// list of parts nor a part is long.
const MAX_PART: usize = 128;

type Entry = (PeerName, Arc<DesiredTunnel>);

/// The tunnels by peer name, in the order of the names. A copy costs as much as the number of
/// parts, and a change as much as one part.
#[derive(Clone, Default)]
pub struct TunnelMap {
    /// None of them is empty, and none has more than [`MAX_PART`] tunnels.
    parts: Vec<Arc<Vec<Entry>>>,
    len: usize,
}

impl TunnelMap {
    /// Returns the number of tunnels.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there is no tunnel.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the tunnel to a peer.
    #[must_use]
    pub fn get(&self, peer: &PeerName) -> Option<&Arc<DesiredTunnel>> {
        let part = self.parts.get(self.part_of(peer))?;
        let at = search(part, peer).ok()?;
        part.get(at).map(|(_, tunnel)| tunnel)
    }

    /// Returns whether there is a tunnel to a peer.
    #[must_use]
    pub fn contains_key(&self, peer: &PeerName) -> bool {
        self.get(peer).is_some()
    }

    /// Inserts a tunnel. Returns the tunnel that the peer had before.
    pub fn insert(&mut self, peer: PeerName, tunnel: Arc<DesiredTunnel>) -> Option<Arc<DesiredTunnel>> {
        let at = self.part_of(&peer).min(self.parts.len().saturating_sub(1));
        let Some(part) = self.parts.get_mut(at) else {
            self.parts.push(Arc::new(vec![(peer, tunnel)]));
            self.len += 1;
            return None;
        };
        let part = Arc::make_mut(part);
        let within = match search(part, &peer) {
            Ok(within) => return part.get_mut(within).map(|(_, known)| std::mem::replace(known, tunnel)),
            Err(within) => within,
        };
        part.insert(within, (peer, tunnel));
        self.len += 1;
        if part.len() > MAX_PART {
            let second = part.split_off(part.len() / 2);
            self.parts.insert(at + 1, Arc::new(second));
        }
        None
    }

    /// Removes a tunnel and returns it.
    pub fn remove(&mut self, peer: &PeerName) -> Option<Arc<DesiredTunnel>> {
        let at = self.part_of(peer);
        let within = search(self.parts.get(at)?, peer).ok()?;
        let part = Arc::make_mut(self.parts.get_mut(at)?);
        let (_, tunnel) = part.remove(within);
        self.len -= 1;
        let left = part.len();
        // It is joined with the next part if both together are small.
        let next = self.parts.get(at + 1).map_or(MAX_PART, |next| next.len());
        if left == 0 {
            self.parts.remove(at);
        } else if left + next <= MAX_PART / 2 {
            let next = self.parts.remove(at + 1);
            if let Some(part) = self.parts.get_mut(at) {
                Arc::make_mut(part).extend(next.iter().cloned());
            }
        }
        Some(tunnel)
    }

    /// Returns the tunnels in the order of the names.
    pub fn iter(&self) -> Iter<'_> {
        Iter { parts: self.parts.iter(), part: slice::Iter::default() }
    }

    /// Returns the tunnels whose names come after `peer`, in the order of the names.
    pub fn iter_after(&self, peer: &PeerName) -> Iter<'_> {
        let at = self.part_of(peer);
        let mut parts = self.parts.get(at..).unwrap_or_default().iter();
        let part = parts.next().map(|part| part.as_slice()).unwrap_or_default();
        let from = part.partition_point(|(name, _)| name <= peer);
        Iter { parts, part: part.get(from..).unwrap_or_default().iter() }
    }

    /// Returns the peers' names in their order.
    pub fn keys(&self) -> impl Iterator<Item = &PeerName> {
        self.iter().map(|(name, _)| name)
    }

    /// Returns the tunnels in the order of the names.
    pub fn values(&self) -> impl Iterator<Item = &Arc<DesiredTunnel>> {
        self.iter().map(|(_, tunnel)| tunnel)
    }

    /// Returns the position of the only part that may have the name: the first one that does not
    /// end before it.
    fn part_of(&self, peer: &PeerName) -> usize {
        self.parts.partition_point(|part| part.last().is_some_and(|(last, _)| last < peer))
    }
}

/// Maps with the same tunnels are equal, however they are divided into parts.
impl PartialEq for TunnelMap {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl fmt::Debug for TunnelMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

fn search(part: &[Entry], peer: &PeerName) -> Result<usize, usize> {
    part.binary_search_by(|(name, _)| name.cmp(peer))
}

/// Iterator over the tunnels in the order of the names.
#[derive(Debug, Clone)]
pub struct Iter<'a> {
    parts: slice::Iter<'a, Arc<Vec<Entry>>>,
    part: slice::Iter<'a, Entry>,
}

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a PeerName, &'a Arc<DesiredTunnel>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((name, tunnel)) = self.part.next() {
                return Some((name, tunnel));
            }
            self.part = self.parts.next()?.iter();
        }
    }
}

impl<'a> IntoIterator for &'a TunnelMap {
    type Item = (&'a PeerName, &'a Arc<DesiredTunnel>);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl FromIterator<Entry> for TunnelMap {
    /// Of two tunnels with one name, the later one is used. Sorted tunnels are fastest.
    fn from_iter<I: IntoIterator<Item = Entry>>(tunnels: I) -> Self {
        let mut all: Vec<Entry> = tunnels.into_iter().collect();
        if !all.is_sorted_by(|(one, _), (other, _)| one < other) {
            all.sort_by(|(one, _), (other, _)| one.cmp(other));
            // `dedup_by` keeps the first of equal neighbours.
            all.dedup_by(|(name, later), (before, kept)| {
                let same = *name == *before;
                if same {
                    std::mem::swap(kept, later);
                }
                same
            });
        }
        let len = all.len();
        // Parts that are not full leave room for the next tunnels.
        let parts = all.chunks(MAX_PART / 4 * 3).map(|part| Arc::new(part.to_vec())).collect();
        Self { parts, len }
    }
}

/// For tests, which know that the tunnel is there.
#[cfg(test)]
impl std::ops::Index<&PeerName> for TunnelMap {
    type Output = Arc<DesiredTunnel>;

    /// # Panics
    /// If there is no tunnel to the peer.
    fn index(&self, peer: &PeerName) -> &Self::Output {
        self.get(peer).expect("there is no tunnel to this peer")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::desired::Desired;
    use crate::desired::tests::{config, membership, peer};
    use edge_types::Role;

    fn tunnels(count: usize) -> Vec<Arc<DesiredTunnel>> {
        let of = |number| peer(&format!("edge-{number}"), Role::Edge, "192.0.2.7:500", &["10.77.2.0/26"], &[]);
        let membership = membership(Role::Hub, &["10.77.1.0/26"], &[], (0..count).map(of).collect());
        Desired::compute(&config(""), &[], Some(&membership)).tunnels.values().cloned().collect()
    }

    fn name(number: usize) -> PeerName {
        PeerName::new(&format!("peer-{number:05}"))
    }

    fn is_sound(map: &TunnelMap) -> bool {
        map.parts.iter().all(|part| (1..=MAX_PART).contains(&part.len()))
            && map.keys().is_sorted_by(|one, other| one < other)
            && map.iter().count() == map.len()
    }

    #[test]
    fn a_copy_that_changes_shares_all_but_one_part() {
        let tunnel = tunnels(1).remove(0);
        let before: TunnelMap = (0..10_000).map(|number| (name(number), tunnel.clone())).collect();
        let mut after = before.clone();
        assert!(after.remove(&name(5000)).is_some() && after.remove(&name(5000)).is_none());
        let shared = after.parts.iter().filter(|part| before.parts.iter().any(|other| Arc::ptr_eq(part, other)));
        assert_eq!((before.parts.len(), shared.count()), (105, 104));
        assert_eq!((before.len(), after.len()), (10_000, 9999));
        assert!(before.contains_key(&name(5000)) && !after.contains_key(&name(5000)));
        for number in (0..10_000).rev() {
            after.remove(&name(number));
            assert!(after.parts.len() <= after.len() / 30 + 60, "{} parts of {}", after.parts.len(), after.len());
        }
        assert!(after.is_empty() && after.parts.is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn it_does_what_an_ordered_map_does(
            start in 0..400_usize,
            changes in prop::collection::vec((0..600_usize, prop::option::of(0..2_usize)), 0..700),
        ) {
            let tunnels = tunnels(2);
            let first = (0..start).rev().map(|number| (name(number * 2 % 600), tunnels[number % 2].clone()));
            let mut expected: BTreeMap<PeerName, Arc<DesiredTunnel>> = first.clone().collect();
            let mut map: TunnelMap = first.collect();
            let (before, expected_before) = (map.clone(), expected.clone());
            for (number, change) in changes {
                match change {
                    Some(which) => prop_assert_eq!(
                        map.insert(name(number), tunnels[which].clone()),
                        expected.insert(name(number), tunnels[which].clone())
                    ),
                    None => prop_assert_eq!(map.remove(&name(number)), expected.remove(&name(number))),
                }
            }
            for (map, expected) in [(&map, &expected), (&before, &expected_before)] {
                prop_assert!(is_sound(map));
                prop_assert!(map.iter().eq(expected.iter()));
                for number in (0..600).step_by(7) {
                    let name = name(number);
                    prop_assert_eq!(map.get(&name), expected.get(&name));
                    let after = (std::ops::Bound::Excluded(&name), std::ops::Bound::Unbounded);
                    prop_assert!(map.iter_after(&name).eq(expected.range::<PeerName, _>(after)));
                }
            }
        }
    }
}

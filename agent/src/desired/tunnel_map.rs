//! The tunnels by peer name, in a map whose copies share what does not change.

use std::sync::Arc;

use edge_ike::PeerName;
use edge_types::{NodeName, SharedList, shared_list};

use super::tunnel::DesiredTunnel;

type Entry = (PeerName, Arc<DesiredTunnel>);

/// The tunnels by peer name, in the order of the names. See [`SharedList`] for what a copy and a
/// change cost.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TunnelMap(SharedList<Entry>);

impl TunnelMap {
    /// Returns the number of tunnels.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there is no tunnel.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the tunnel to a peer.
    #[must_use]
    pub fn get(&self, peer: &PeerName) -> Option<&Arc<DesiredTunnel>> {
        self.0.get(peer).map(|(_, tunnel)| tunnel)
    }

    /// Returns whether there is a tunnel to a peer.
    #[must_use]
    pub fn contains_key(&self, peer: &PeerName) -> bool {
        self.get(peer).is_some()
    }

    /// Inserts a tunnel. Returns the tunnel that the peer had before.
    pub fn insert(&mut self, peer: PeerName, tunnel: Arc<DesiredTunnel>) -> Option<Arc<DesiredTunnel>> {
        self.0.insert((peer, tunnel)).map(|(_, tunnel)| tunnel)
    }

    /// Removes a tunnel and returns it.
    pub fn remove(&mut self, peer: &PeerName) -> Option<Arc<DesiredTunnel>> {
        self.0.remove(peer).map(|(_, tunnel)| tunnel)
    }

    /// Returns the tunnels in the order of the names.
    pub fn iter(&self) -> Iter<'_> {
        Iter(self.0.iter())
    }

    /// Returns the first `most` peers to which a tunnel should be up and is not, for the report to
    /// the controller.
    #[must_use]
    pub fn first_down(&self, is_up: impl Fn(&PeerName) -> bool, most: usize) -> Vec<NodeName> {
        let down = self.iter().filter(|(peer, tunnel)| tunnel.counts() && !is_up(peer));
        down.filter_map(|(peer, _)| peer.as_str().parse().ok()).take(most).collect()
    }

    /// Returns the tunnels whose names come after `peer`, in the order of the names.
    pub fn iter_after(&self, peer: &PeerName) -> Iter<'_> {
        Iter(self.0.iter_after(peer))
    }

    /// Returns the peers' names in their order.
    pub fn keys(&self) -> impl Iterator<Item = &PeerName> {
        self.iter().map(|(name, _)| name)
    }

    /// Returns the tunnels in the order of the names.
    pub fn values(&self) -> impl Iterator<Item = &Arc<DesiredTunnel>> {
        self.iter().map(|(_, tunnel)| tunnel)
    }

    /// Returns the names of the tunnels that differ from those in `now`: before and after the
    /// change. Tunnels that both maps share are not looked at.
    pub fn differences<'a>(
        &'a self,
        now: &'a Self,
    ) -> impl Iterator<Item = (Option<&'a PeerName>, Option<&'a PeerName>)> {
        let is_same =
            |one: &Entry, other: &Entry| one.0 == other.0 && (Arc::ptr_eq(&one.1, &other.1) || one.1 == other.1);
        let name = |entry: &'a Entry| &entry.0;
        let changes = self.0.differences(&now.0, is_same).into_iter().flatten();
        changes.map(move |(before, now)| (before.map(name), now.map(name)))
    }
}

/// Iterator over the tunnels in the order of the names.
#[derive(Debug, Clone)]
pub struct Iter<'a>(shared_list::Iter<'a, Entry>);

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a PeerName, &'a Arc<DesiredTunnel>);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|(name, tunnel)| (name, tunnel))
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
        let mut list: SharedList<Entry> = tunnels.into_iter().collect();
        list.make_ordered();
        Self(list)
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

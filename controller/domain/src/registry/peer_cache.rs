//! Caches the JSON of each peer. A peer is serialised once for all views that contain the peer,
//! because one change may affect a thousand views at the same moment.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use edge_types::{NodeName, Peer};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// A [`Peer`] in JSON.
#[derive(Debug, Clone)]
pub struct PeerJson(Arc<RawValue>);

impl PeerJson {
    fn new(peer: &Peer) -> Option<Self> {
        // Serialising a peer never fails: all its map keys are field names.
        serde_json::value::to_raw_value(peer).ok().map(|json| Self(json.into()))
    }
}

impl Serialize for PeerJson {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// The JSON of nodes as the current state shows them; at most one entry for each node.
#[derive(Debug, Default)]
pub(super) struct PeerCache(Mutex<HashMap<NodeName, CachedPeer>>);

/// The JSON of a node for members of communities that have decided when tunnels are set up, and for
/// all others. Most nodes are in no such community.
#[derive(Debug, Default)]
struct CachedPeer {
    for_members: Option<PeerJson>,
    for_others: Option<PeerJson>,
}

impl CachedPeer {
    fn of(&mut self, for_members: bool) -> &mut Option<PeerJson> {
        if for_members { &mut self.for_members } else { &mut self.for_others }
    }
}

impl PeerCache {
    /// Returns the cached JSON for one kind of viewers, or serialises the result of `make` and
    /// caches it. The caller holds the state's lock, so `make` shows the current state.
    pub(super) fn get_or_make(
        &self,
        name: &NodeName,
        for_members: bool,
        make: impl FnOnce() -> Peer,
    ) -> Option<PeerJson> {
        if let Some(json) = self.entries().get_mut(name).and_then(|cached| cached.of(for_members).clone()) {
            return Some(json);
        }
        let json = PeerJson::new(&make())?;
        *self.entries().entry(name.clone()).or_default().of(for_members) = Some(json.clone());
        Some(json)
    }

    /// Drops the entries of nodes that changed.
    pub(super) fn forget<'a>(&mut self, names: impl IntoIterator<Item = &'a NodeName>) {
        let entries = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        for name in names {
            entries.remove(name);
        }
    }

    /// Drops all entries.
    pub(super) fn clear(&mut self) {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, HashMap<NodeName, CachedPeer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

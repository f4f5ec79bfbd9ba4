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
pub(super) struct PeerCache(Mutex<HashMap<NodeName, PeerJson>>);

impl PeerCache {
    /// Returns the cached JSON, or serialises the result of `make` and caches it. The caller holds
    /// the state's lock, so `make` shows the current state.
    pub(super) fn get_or_make(&self, name: &NodeName, make: impl FnOnce() -> Peer) -> Option<PeerJson> {
        if let Some(json) = self.entries().get(name) {
            return Some(json.clone());
        }
        let json = PeerJson::new(&make())?;
        self.entries().insert(name.clone(), json.clone());
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

    fn entries(&self) -> std::sync::MutexGuard<'_, HashMap<NodeName, PeerJson>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! Peers as they are told, made once for all who are told of them: a change of one node may concern
//! a thousand others at the same moment.

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
        // A peer always serialises: all its map keys are field names.
        serde_json::value::to_raw_value(peer).ok().map(|json| Self(json.into()))
    }
}

impl Serialize for PeerJson {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// Peers as the state now shows them, as far as anybody has asked; at most one for each node.
#[derive(Debug, Default)]
pub(super) struct Peers(Mutex<HashMap<NodeName, PeerJson>>);

impl Peers {
    /// What is kept of a peer, or what `make` makes of it, which is kept then. Whoever asks holds
    /// the state's lock, so that what is made is what the state shows.
    pub(super) fn get_or_make(&self, name: &NodeName, make: impl FnOnce() -> Peer) -> Option<PeerJson> {
        if let Some(json) = self.kept().get(name) {
            return Some(json.clone());
        }
        let json = PeerJson::new(&make())?;
        self.kept().insert(name.clone(), json.clone());
        Some(json)
    }

    /// These are seen differently now, or by others.
    pub(super) fn forget<'a>(&mut self, names: impl IntoIterator<Item = &'a NodeName>) {
        let kept = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        for name in names {
            kept.remove(name);
        }
    }

    /// All may be seen differently now.
    pub(super) fn clear(&mut self) {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, HashMap<NodeName, PeerJson>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! Checks the definitions of the custom resources (CRDs). An object exists only as long as its
//! definition: the API server deletes both together.
//!
//! When a definition is deleted, it first gets a `deletionTimestamp`. Then its objects are deleted,
//! and then the definition itself. So if the definition is read after an object was deleted, and
//! has the same UID and no `deletionTimestamp`, the object was not deleted with it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use edge_controller_domain::store::StoreError;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client};

use super::fields;
use crate::client::{REQUEST, explain, is_absent};
use crate::cluster_identity;
use crate::resources::kinds::Kind;

const WHAT: &str = "customresourcedefinitions.apiextensions.k8s.io";

/// UIDs of the definitions.
pub(super) type Uids = BTreeMap<Kind, String>;

pub(super) struct Definitions {
    api: Api<CustomResourceDefinition>,
    /// The definitions under which the known objects exist.
    known: Mutex<Uids>,
    /// The fields that each definition drops, with the definition's generation.
    dropped: Mutex<BTreeMap<Kind, (Generation, Vec<String>)>>,
    namespaces: Api<Namespace>,
    /// UID of the cluster in which the definitions exist, known after the first response.
    cluster: OnceLock<String>,
}

/// UID and generation of a definition. If either differs, its content may differ.
type Generation = (Option<String>, Option<i64>);

/// State of a definition.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum DefinitionState {
    /// The same definition as before.
    Unchanged,
    /// The definition is missing or about to be deleted, with a message.
    Unavailable(String),
    /// The definition was deleted and created again, with this UID.
    Recreated(String),
}

impl Definitions {
    pub(super) fn new(client: &Client) -> Self {
        let (api, namespaces) = (Api::all(client.clone()), Api::all(client.clone()));
        Self { api, known: Mutex::default(), dropped: Mutex::default(), namespaces, cluster: OnceLock::new() }
    }

    /// Checks that the API server still belongs to the same cluster, so that rows are not written
    /// into another cluster.
    pub(super) async fn check_cluster(&self) -> Result<(), String> {
        let found = cluster_identity::uid(&self.namespaces).await?;
        let known = self.cluster.get_or_init(|| found.clone());
        match *known == found {
            true => Ok(()),
            false => Err(format!(
                "the API server is of another cluster now: its namespace kube-system has the UID {found}, and had {known}. Nothing is written \
                 into it; to move there, import a backup"
            )),
        }
    }

    /// Returns the UIDs of all definitions.
    ///
    /// # Errors
    /// Returns an error if a definition is missing or about to be deleted, or the API server cannot
    /// be reached.
    pub(super) async fn require_all(&self) -> Result<Uids, StoreError> {
        let mut uids = Uids::new();
        for kind in Kind::CUSTOM {
            match state(kind, self.read(kind).await?, None) {
                DefinitionState::Recreated(uid) => drop(uids.insert(kind, uid)),
                DefinitionState::Unavailable(why) => return Err(StoreError::Failed(why)),
                DefinitionState::Unchanged => {}
            }
        }
        Ok(uids)
    }

    /// Checks that the definitions have not changed since `before`.
    pub(super) async fn check_same(&self, before: &Uids) -> Result<(), StoreError> {
        match self.require_all().await? == *before {
            true => Ok(()),
            false => Err(StoreError::Failed(
                "the definitions of our resources (CRDs) were created again while they were read; start the controller again".into(),
            )),
        }
    }

    /// Records the definitions under which the known objects exist.
    pub(super) fn set_known(&self, uids: Uids) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = uids;
    }

    /// Records that all objects of a kind were created again under this definition. Returns all
    /// definitions.
    pub(super) fn set_known_kind(&self, kind: Kind, uid: String) -> Uids {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(kind, uid);
        known.clone()
    }

    /// Reads the state of a definition. The read starts after this call.
    pub(super) async fn state(&self, kind: Kind) -> Result<DefinitionState, StoreError> {
        let found = self.read(kind).await?;
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&kind).cloned();
        Ok(state(kind, found, known.as_deref()))
    }

    /// Returns the fields that the served definition of a kind drops from what this program writes.
    /// The definition is read in full only when it has changed. A missing definition drops nothing,
    /// since nothing is written while it is missing.
    ///
    /// # Errors
    /// Returns an error if the API server cannot be reached.
    pub(super) async fn look_at_fields(&self, kind: Kind) -> Result<Vec<String>, StoreError> {
        let found = self.read(kind).await?.unwrap_or_default();
        let generation: Generation = (found.uid, found.generation);
        if let Some((before, dropped)) = self.all_dropped().get(&kind)
            && *before == generation
        {
            return Ok(dropped.clone());
        }
        let served = match tokio::time::timeout(REQUEST, self.api.get_opt(kind.what())).await {
            Ok(served) => served.map_err(|error| StoreError::Failed(explain(WHAT, &error)))?,
            Err(_) => return Err(silent()),
        };
        let dropped = served.map(|served| fields::dropped(kind, &served)).unwrap_or_default();
        self.all_dropped().insert(kind, (generation, dropped.clone()));
        Ok(dropped)
    }

    /// Returns the fields that the definition of a kind drops, as of the latest
    /// [`Self::look_at_fields`].
    pub(super) fn dropped(&self, kind: Kind) -> Vec<String> {
        self.all_dropped().get(&kind).map(|(_, dropped)| dropped.clone()).unwrap_or_default()
    }

    fn all_dropped(&self) -> MutexGuard<'_, BTreeMap<Kind, (Generation, Vec<String>)>> {
        self.dropped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read(&self, kind: Kind) -> Result<Option<ObjectMeta>, StoreError> {
        // The request names the object and no version, so that the API server reads from etcd.
        match tokio::time::timeout(REQUEST, self.api.get_metadata(kind.what())).await {
            Ok(Ok(found)) => Ok(Some(found.metadata)),
            Ok(Err(error)) if is_absent(&error) => Ok(None),
            Ok(Err(error)) => Err(StoreError::Failed(explain(WHAT, &error))),
            Err(_) => Err(silent()),
        }
    }
}

fn silent() -> StoreError {
    StoreError::Failed(format!("the API server did not answer about {WHAT} within {} s", REQUEST.as_secs()))
}

fn state(kind: Kind, found: Option<ObjectMeta>, known: Option<&str>) -> DefinitionState {
    let what = kind.what();
    match found {
        None => DefinitionState::Unavailable(format!(
            "the definition {what} (CRD) is missing: run kubectl apply -f deploy/crds, and restart no replica before its objects are written again"
        )),
        Some(found) if found.deletion_timestamp.is_some() => DefinitionState::Unavailable(format!(
            "the definition {what} (CRD) is being deleted, and all its objects with it: when it is gone run kubectl apply -f deploy/crds, and restart \
             no replica before its objects are written again"
        )),
        Some(found) => match found.uid.unwrap_or_default() {
            uid if Some(uid.as_str()) == known => DefinitionState::Unchanged,
            uid => DefinitionState::Recreated(uid),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    #[test]
    fn a_definition_counts_as_the_same_only_with_its_uid_and_while_nobody_deletes_it() {
        let there = ObjectMeta { uid: Some("u".into()), ..ObjectMeta::default() };
        assert_eq!(state(Kind::Node, Some(there.clone()), Some("u")), DefinitionState::Unchanged);
        assert_eq!(state(Kind::Node, Some(there.clone()), Some("before")), DefinitionState::Recreated("u".into()));
        let ending = ObjectMeta { deletion_timestamp: Some(Time(Timestamp::now())), ..there };
        for found in [None, Some(ending)] {
            let DefinitionState::Unavailable(why) = state(Kind::Node, found, Some("u")) else {
                panic!("it is not there")
            };
            assert!(why.contains("edgenodes.edge-cni.io") && why.contains("kubectl apply -f deploy/crds"), "{why}");
        }
    }
}

//! Sends single requests that write or read the object that holds a row.

use edge_controller_domain::state::Change;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::core::DynamicObject;

use super::object_versions::WriteBase;
use super::store_core::StoreCore;
use crate::client::{REQUEST, explain, is_absent};
use crate::resources::kinds::{DELETING, ForeignMetadata, Kind, ObjectKey, StoredObject, encode};
use crate::resources::raw_object::RawObject;

pub(super) enum Failure {
    /// The object is not at the expected version.
    Changed,
    Other(String),
}

/// Sends one write. Returns the object as written; `None` if it is gone.
pub(super) async fn send(
    core: &StoreCore,
    change: &Change,
    object_key: &ObjectKey,
    base: &WriteBase,
) -> Result<Option<StoredObject>, Failure> {
    let (kind, name) = (object_key.0, object_key.1.as_str());
    let api = core.apis.of(kind);
    let nothing = ForeignMetadata::default();
    let foreign = match base {
        WriteBase::Object { foreign, .. } => foreign,
        WriteBase::Nothing => &nothing,
    };
    let object = encode(change, foreign).map_err(Failure::Other)?;
    let failure = |error: kube::Error| match &error {
        kube::Error::Api(status) if status.code == 409 => Failure::Changed,
        error if is_absent(error) => Failure::Changed,
        error => Failure::Other(explain(kind.what(), error)),
    };
    let stored = |object: DynamicObject| decoded(kind, object).map(Some);
    match (object, base) {
        (Some(object), WriteBase::Nothing) => {
            with_timeout(kind, api.create(&PostParams::default(), &object)).await?.map_err(failure).and_then(stored)
        }
        // The plan was based on a state in which no node held the segment; otherwise it would not
        // grant the segment.
        (Some(_), WriteBase::Object { held: true, .. }) if matches!(change, Change::GrantSegment(_)) => {
            Err(Failure::Changed)
        }
        (Some(mut object), WriteBase::Object { uid, version, .. }) => {
            object.metadata.uid = Some(uid.clone());
            object.metadata.resource_version = Some(version.to_string());
            with_timeout(kind, api.replace(name, &PostParams::default(), &object))
                .await?
                .map_err(failure)
                .and_then(stored)
        }
        (None, WriteBase::Nothing) => Ok(None),
        (None, WriteBase::Object { uid, version, .. }) => {
            let version = match kind {
                Kind::Node | Kind::Segment => match mark(api, kind, name, uid, *version).await? {
                    Some(marked) => marked,
                    None => return Ok(None),
                },
                Kind::Community | Kind::Token => *version,
            };
            let preconditions = Preconditions { uid: Some(uid.clone()), resource_version: Some(version.to_string()) };
            let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
            match with_timeout(kind, api.delete(name, &params)).await? {
                Ok(_) => Ok(None),
                Err(error) if is_absent(&error) => Ok(None),
                Err(error) => Err(failure(error)),
            }
        }
    }
}

/// Marks an object for deletion, so that the other replicas can tell that a replica deletes it.
/// Returns the object's new version; `None` if the object is already gone.
async fn mark(
    api: &Api<DynamicObject>,
    kind: Kind,
    name: &str,
    uid: &str,
    version: u64,
) -> Result<Option<u64>, Failure> {
    let failure = |error: kube::Error| match &error {
        kube::Error::Api(status) if status.code == 409 => Failure::Changed,
        error => Failure::Other(explain(kind.what(), error)),
    };
    let found = match with_timeout(kind, api.get(name)).await? {
        Err(error) if is_absent(&error) => return Ok(None),
        found => found.map_err(failure)?,
    };
    let mut object = found;
    let same = object.metadata.uid.as_deref() == Some(uid)
        && object.metadata.resource_version.as_ref().is_some_and(|now| *now == version.to_string());
    if !same {
        return Err(Failure::Changed);
    }
    let now = Timestamp::now().to_string();
    object.metadata.annotations.get_or_insert_default().insert(DELETING.into(), now);
    match with_timeout(kind, api.replace(name, &PostParams::default(), &object)).await? {
        Err(error) if is_absent(&error) => Ok(None),
        written => decoded(kind, written.map_err(failure)?).map(|object| Some(object.version)),
    }
}

pub(super) async fn with_timeout<T>(kind: Kind, request: impl Future<Output = T>) -> Result<T, Failure> {
    tokio::time::timeout(REQUEST, request).await.map_err(|_| {
        Failure::Other(format!(
            "the API server did not answer about {} within {} s; its outcome is not known yet",
            kind.what(),
            REQUEST.as_secs()
        ))
    })
}

pub(super) fn decoded(kind: Kind, object: DynamicObject) -> Result<StoredObject, Failure> {
    StoredObject::of(kind, RawObject::from(object)).map_err(Failure::Other)
}

/// Reads an object; `None` if it does not exist.
pub(super) async fn read_object(core: &StoreCore, object_key: &ObjectKey) -> Result<Option<StoredObject>, Failure> {
    let found = with_timeout(object_key.0, core.apis.of(object_key.0).get_opt(&object_key.1)).await?;
    match found {
        Ok(Some(object)) => decoded(object_key.0, object).map(Some),
        Ok(None) => Ok(None),
        Err(error) => Err(Failure::Other(explain(object_key.0.what(), &error))),
    }
}

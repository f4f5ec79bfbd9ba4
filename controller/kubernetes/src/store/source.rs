//! How objects are read: of each only what a row and our writes need, and from the API server's
//! memory wherever that loses nothing.
//!
//! A list that must hold everything is read from etcd, and each object is decoded on its way. Only
//! API servers from 1.31 on that have an etcd which can say how far a watch has come (from 3.4.31
//! and 3.5.13 on) answer from their watch cache, which takes a quarter of the time. A list of many
//! objects is read from the cache of any of them: one of the objects is written first
//! ([`RowSource::write_one`]), and the list is asked to be no older than that write. The cache
//! hears of the write by the same watch that tells it of all changes before, so what it answers
//! holds them all.

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{ListParams, PostParams, WatchEvent, WatchParams};
use kube::core::{DynamicObject, ObjectList, Request};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

use super::kinds::{Kind, Observed};
use crate::client::is_absent;
use crate::list_watch::{ListWatch, WatchStream};
use crate::resources::GROUP;

/// Where there are no more objects than these besides the first one, reading them from etcd costs
/// less than a write.
const FEW: i64 = 500;
/// Attempts to write an object that others write too.
const ATTEMPTS: usize = 3;

/// An object without what we never look at; the managed fields alone are half of what comes.
#[derive(Clone, Deserialize)]
pub(super) struct Object<S> {
    #[serde(default)]
    pub(super) metadata: Metadata,
    /// Of a custom resource.
    #[serde(default = "absent")]
    pub(super) spec: Option<S>,
    /// Of a Secret.
    #[serde(default)]
    pub(super) data: Value,
}

/// What `#[serde(default)]` gives only where `S` has a default itself.
fn absent<S>() -> Option<S> {
    None
}

/// A spec that is not looked into yet: what is wrong with it is wrong with one object, not with a
/// list.
pub(super) trait Spec {
    fn read<T: DeserializeOwned>(self) -> serde_json::Result<T>;
}

impl Spec for Value {
    fn read<T: DeserializeOwned>(self) -> serde_json::Result<T> {
        serde_json::from_value(self)
    }
}

impl Spec for &RawValue {
    fn read<T: DeserializeOwned>(self) -> serde_json::Result<T> {
        serde_json::from_str(self.get())
    }
}

/// Its metadata.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Metadata {
    pub(super) name: Option<String>,
    pub(super) uid: Option<String>,
    pub(super) resource_version: Option<String>,
    pub(super) labels: Option<BTreeMap<String, String>>,
    pub(super) annotations: Option<BTreeMap<String, String>>,
    pub(super) finalizers: Option<Vec<String>>,
    pub(super) owner_references: Option<Vec<OwnerReference>>,
}

impl From<DynamicObject> for Object<Value> {
    fn from(object: DynamicObject) -> Self {
        let DynamicObject { metadata, mut data, .. } = object;
        let ObjectMeta { name, uid, resource_version, labels, annotations, finalizers, owner_references, .. } =
            metadata;
        let metadata = Metadata { name, uid, resource_version, labels, annotations, finalizers, owner_references };
        let mut take = |field| data.get_mut(field).map(Value::take);
        Self { metadata, spec: take("spec"), data: take("data").unwrap_or_default() }
    }
}

/// All objects of a kind.
pub(super) struct RowSource {
    pub(super) kind: Kind,
    pub(super) api: Api<DynamicObject>,
}

impl RowSource {
    fn request(&self) -> Request {
        Request::new(self.api.resource_url())
    }

    /// Writes some object without a change of its row, and tells the version that it has then:
    /// everything of this kind that was written before has a lower one. `None` where that is not
    /// worth it, or does not work.
    async fn write_one(&self) -> kube::Result<Option<String>> {
        let mut last_seen = None;
        for _ in 0..ATTEMPTS {
            let first = self.api.list(&ListParams::default().limit(1)).await?;
            let many = first.metadata.remaining_item_count.is_some_and(|more| more > FEW);
            let Some(mut object) = first.items.into_iter().next().filter(|_| many) else { return Ok(None) };
            let (uid, version) = (object.metadata.uid.clone(), object.metadata.resource_version.clone());
            // Somebody else has written it since we looked first: that serves as well.
            if last_seen.as_ref().is_some_and(|(last_uid, last_version)| *last_uid == uid && *last_version != version) {
                return Ok(version);
            }
            let name = object.metadata.name.clone().unwrap_or_default();
            let now = Timestamp::now().to_string();
            object.metadata.annotations.get_or_insert_default().insert(format!("{GROUP}/all-read-after"), now);
            match self.api.replace(&name, &PostParams::default(), &object).await {
                // The same version where somebody on the way has undone the change: then nothing
                // was written.
                Ok(written) => {
                    return Ok(written.metadata.resource_version.filter(|now| Some(now) != version.as_ref()));
                }
                Err(kube::Error::Api(status)) if status.code == 409 => last_seen = Some((uid, version)),
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

impl ListWatch for RowSource {
    type Object = Observed;

    fn what(&self) -> &str {
        self.kind.what()
    }

    fn selector(&self) -> Option<&str> {
        self.kind.selector()
    }

    /// About five megabytes. Each page costs the API server nearly the same, whatever is on it,
    /// where it reads from etcd.
    fn page_size(&self) -> u32 {
        5000
    }

    fn not_older_than(&self) -> BoxFuture<'_, kube::Result<Option<String>>> {
        match self.kind {
            Kind::Node | Kind::Segment => self.write_one().boxed(),
            // Never many; and what people write is not ours to touch.
            Kind::Community | Kind::Token => async { Ok(None) }.boxed(),
        }
    }

    fn list_page<'a>(&'a self, params: &'a ListParams) -> BoxFuture<'a, kube::Result<ObjectList<Observed>>> {
        async move {
            let request = self.request().list(params).map_err(kube::Error::BuildRequest)?;
            let text = self.api.clone().into_client().request_text(request).await?;
            let kind = self.kind;
            // So many that others would wait.
            let read = tokio::task::spawn_blocking(move || read(kind, &text));
            read.await.unwrap_or_else(|ended| Err(kube::Error::Service(ended.into())))
        }
        .boxed()
    }

    fn watch<'a>(
        &'a self,
        params: &'a WatchParams,
        since: &'a str,
    ) -> BoxFuture<'a, kube::Result<WatchStream<Observed>>> {
        async move {
            let request = self.request().watch(params, since).map_err(kube::Error::BuildRequest)?;
            let events = self.api.clone().into_client().request_events::<Object<Value>>(request).await?;
            let kind = self.kind;
            let of = move |object| Observed::of(kind, object).map_err(|why| kube::Error::Service(why.into()));
            let read = move |event| match event {
                WatchEvent::Added(object) => of(object).map(WatchEvent::Added),
                WatchEvent::Modified(object) => of(object).map(WatchEvent::Modified),
                WatchEvent::Deleted(object) => of(object).map(WatchEvent::Deleted),
                WatchEvent::Bookmark(bookmark) => Ok(WatchEvent::Bookmark(bookmark)),
                WatchEvent::Error(status) => Ok(WatchEvent::Error(status)),
            };
            Ok(events.map(move |event| event.and_then(read)).boxed())
        }
        .boxed()
    }

    fn version(object: &Observed) -> Result<u64, String> {
        Ok(object.version)
    }
}

fn read(kind: Kind, text: &str) -> kube::Result<ObjectList<Observed>> {
    let list: ObjectList<Object<&RawValue>> = serde_json::from_str(text).map_err(kube::Error::SerdeError)?;
    let ObjectList { types, metadata, items } = list;
    let items: Result<Vec<_>, String> = items.into_iter().map(|object| Observed::of(kind, object)).collect();
    Ok(ObjectList { types, metadata, items: items.map_err(|why| kube::Error::Service(why.into()))? })
}

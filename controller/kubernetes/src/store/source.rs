//! Lists and watches objects. Reads only the parts that rows and writes need, from the API server's
//! watch cache if that loses nothing.
//!
//! A complete list is normally read from etcd, and the API server decodes every object on the way.
//! A list from the watch cache takes a quarter of the time. API servers use the watch cache for
//! complete lists only from 1.31 on, and only with an etcd that can report the progress of a watch
//! (3.4.31, 3.5.13 or later). For long lists, this module makes the cache usable in any version: it
//! first writes one of the objects ([`RowSource::write_one`]) and requests a list that is not older
//! than that write. The cache receives the write by the same watch as all earlier changes, so its
//! response contains them all.

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{ListParams, PostParams, WatchEvent, WatchParams};
use kube::core::{DynamicObject, ObjectList, Request};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::client::is_absent;
use crate::list_watch::{ListWatch, WatchStream};
use crate::resources::GROUP;
use crate::resources::kinds::{Kind, StoredObject};
use crate::resources::raw_object::RawObject;

/// Maximum number of further objects for which reading them from etcd costs less than a write.
const FEW: i64 = 500;
/// Number of attempts to write an object that other writers change at the same time.
const ATTEMPTS: usize = 3;

/// A source that lists and watches the objects of one kind that hold rows.
pub(super) struct RowSource {
    pub(super) kind: Kind,
    pub(super) api: Api<DynamicObject>,
}

impl RowSource {
    fn request(&self) -> Request {
        Request::new(self.api.resource_url())
    }

    /// Writes one object without a change of its row, and returns its new version. Everything of
    /// this kind that was written before has a lower version. `None` if there are few objects, or
    /// if the write does not succeed.
    async fn write_one(&self) -> kube::Result<Option<String>> {
        let mut last_seen = None;
        for _ in 0..ATTEMPTS {
            let first = self.api.list(&ListParams::default().limit(1)).await?;
            let many = first.metadata.remaining_item_count.is_some_and(|more| more > FEW);
            let Some(mut object) = first.items.into_iter().next().filter(|_| many) else { return Ok(None) };
            let (uid, version) = (object.metadata.uid.clone(), object.metadata.resource_version.clone());
            // Another writer has written the object in the meantime: that version can also be used.
            if last_seen.as_ref().is_some_and(|(last_uid, last_version)| *last_uid == uid && *last_version != version) {
                return Ok(version);
            }
            let name = object.metadata.name.clone().unwrap_or_default();
            let now = Timestamp::now().to_string();
            object.metadata.annotations.get_or_insert_default().insert(format!("{GROUP}/all-read-after"), now);
            match self.api.replace(&name, &PostParams::default(), &object).await {
                // If the version is the same, an admission webhook has undone the change, and
                // nothing was written.
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
    type Object = StoredObject;

    fn what(&self) -> &str {
        self.kind.what()
    }

    fn selector(&self) -> Option<&str> {
        self.kind.selector()
    }

    /// A page of the list has about five megabytes. If the API server reads from etcd, each page
    /// costs nearly the same, whatever its size.
    fn page_size(&self) -> u32 {
        5000
    }

    fn not_older_than(&self) -> BoxFuture<'_, kube::Result<Option<String>>> {
        match self.kind {
            Kind::Node | Kind::Segment => self.write_one().boxed(),
            // There are never many of these objects, and the controller does not write objects that
            // people write.
            Kind::Community | Kind::Token => async { Ok(None) }.boxed(),
        }
    }

    fn list_page<'a>(&'a self, params: &'a ListParams) -> BoxFuture<'a, kube::Result<ObjectList<StoredObject>>> {
        async move {
            let request = self.request().list(params).map_err(kube::Error::BuildRequest)?;
            let text = self.api.clone().into_client().request_text(request).await?;
            let kind = self.kind;
            // Decoding many objects would block other tasks.
            let read = tokio::task::spawn_blocking(move || read(kind, &text));
            read.await.unwrap_or_else(|ended| Err(kube::Error::Service(ended.into())))
        }
        .boxed()
    }

    fn watch<'a>(
        &'a self,
        params: &'a WatchParams,
        since: &'a str,
    ) -> BoxFuture<'a, kube::Result<WatchStream<StoredObject>>> {
        async move {
            let request = self.request().watch(params, since).map_err(kube::Error::BuildRequest)?;
            let events = self.api.clone().into_client().request_events::<RawObject<Value>>(request).await?;
            let kind = self.kind;
            let of = move |object| StoredObject::of(kind, object).map_err(|why| kube::Error::Service(why.into()));
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

    fn version(object: &StoredObject) -> Result<u64, String> {
        Ok(object.version)
    }
}

fn read(kind: Kind, text: &str) -> kube::Result<ObjectList<StoredObject>> {
    let list: ObjectList<RawObject<&RawValue>> = serde_json::from_str(text).map_err(kube::Error::SerdeError)?;
    let ObjectList { types, metadata, items } = list;
    let items: Result<Vec<_>, String> = items.into_iter().map(|object| StoredObject::of(kind, object)).collect();
    Ok(ObjectList { types, metadata, items: items.map_err(|why| kube::Error::Service(why.into()))? })
}

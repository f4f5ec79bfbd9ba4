//! Keeps a list up to date: it reads the list in pages and then watches for changes after the
//! list's version.
//!
//! Every reported event is certain. An error, a closed connection, a lost permission or an
//! incomplete list causes no event, and in particular no deletion. The caller keeps its previous
//! state, and the request is repeated.

use std::fmt::Debug;
use std::time::Duration;

use edge_controller_domain::random;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use kube::api::{ListParams, VersionMatch, WatchEvent, WatchParams};
use kube::core::{ObjectList, PartialObjectMeta};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

use super::client::{ApiFailures, REQUEST, explain, version};

/// Time limit of a request for one page.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// Seconds after which the API server ends a watch. The next watch starts at the version where the
/// previous one ended.
const WATCH_SECONDS: u32 = 60;
/// Additional time for a watch to end after its time limit. After that its connection is considered
/// dead.
const WATCH_GRACE: Duration = Duration::from_secs(15);
/// First and maximum delay after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// One event of a list that is kept up to date.
#[derive(Debug)]
pub enum ListWatchEvent<T> {
    /// The list is read for the first time, or again after a failure. The
    /// [`ListWatchEvent::Listed`] that follows is newer than everything that was known before.
    ListStarted,
    /// All objects that exist, and the resourceVersion of this list.
    Listed(Vec<T>, u64),
    /// An object was added or changed.
    Applied(T),
    /// An object was deleted. This is its last state, with the resourceVersion of the deletion.
    Deleted(T),
    /// All events up to this resourceVersion were delivered.
    Bookmark(u64),
}

/// Objects that can be listed and watched.
pub trait ListWatch: Send + Sync + 'static {
    /// An object in the form in which it is delivered.
    type Object: Send + Clone + 'static;
    /// Returns plural and group of the resource, for messages: `segments.edge-cni.io`.
    fn what(&self) -> &str;
    /// Returns the label selector of the objects; `None` for all.
    fn selector(&self) -> Option<&str> {
        None
    }
    /// Returns the number of objects in one page.
    fn page_size(&self) -> u32;
    /// Returns the resourceVersion of a change that is made during this call. A list that is at
    /// least as new contains all objects that existed when the call began, and the API server can
    /// answer it from its watch cache. `None` if no such version is known, or if getting one costs
    /// more than it saves.
    fn not_older_than(&self) -> BoxFuture<'_, kube::Result<Option<String>>> {
        async { Ok(None) }.boxed()
    }
    /// Reads one page of the list, at most [`ListWatch::page_size`] objects.
    fn list_page<'a>(&'a self, params: &'a ListParams) -> BoxFuture<'a, kube::Result<ObjectList<Self::Object>>>;
    /// Opens a watch for changes after the resourceVersion `since`.
    fn watch<'a>(
        &'a self,
        params: &'a WatchParams,
        since: &'a str,
    ) -> BoxFuture<'a, kube::Result<WatchStream<Self::Object>>>;
    /// Returns the resourceVersion of an object.
    fn version(object: &Self::Object) -> Result<u64, String>;
}

/// The events of one watch, as the API server sends them.
pub type WatchStream<T> = BoxStream<'static, kube::Result<WatchEvent<T>>>;

/// A source that lists and watches only the metadata of objects. Only the metadata of Nodes is
/// needed, which is a fraction of their size. The second field is the plural of the kind.
pub struct Metadata<K>(pub Api<K>, pub &'static str);

impl<K> ListWatch for Metadata<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    type Object = PartialObjectMeta<K>;

    fn what(&self) -> &str {
        self.1
    }

    /// Returns a small number, because the API server reads whole objects for a page, and a Node
    /// may have tens of kilobytes.
    fn page_size(&self) -> u32 {
        500
    }

    fn list_page<'a>(&'a self, params: &'a ListParams) -> BoxFuture<'a, kube::Result<ObjectList<Self::Object>>> {
        self.0.list_metadata(params).boxed()
    }

    fn watch<'a>(
        &'a self,
        params: &'a WatchParams,
        since: &'a str,
    ) -> BoxFuture<'a, kube::Result<WatchStream<Self::Object>>> {
        async move { Ok(self.0.watch_metadata(params, since).await?.boxed()) }.boxed()
    }

    fn version(object: &Self::Object) -> Result<u64, String> {
        version(object.metadata.resource_version.as_deref())
    }
}

/// Reads all objects that exist at the time of the call. Tries the API server's watch cache first
/// and reads page by page if that fails.
///
/// # Errors
/// Returns an error if the API server cannot be reached, does not answer in time, or returns a
/// resourceVersion that is not a number.
pub async fn list<S: ListWatch>(source: &S) -> Result<(Vec<S::Object>, u64), String> {
    let not_older_than = within(source, REQUEST, source.not_older_than()).await;
    let read = match not_older_than {
        Ok(None) => return list_pages(source, None).await,
        Ok(Some(not_older_than)) => list_pages(source, Some(&not_older_than)).await,
        Err(why) => Err(why),
    };
    match read {
        Err(why) => {
            tracing::info!(what = source.what(), why, "not read from the API server's watch cache, but page by page");
            list_pages(source, None).await
        }
        read => read,
    }
}

async fn within<S: ListWatch, T>(
    source: &S,
    limit: Duration,
    request: BoxFuture<'_, kube::Result<T>>,
) -> Result<T, String> {
    let what = source.what();
    match tokio::time::timeout(limit, request).await {
        Ok(response) => response.map_err(|error| explain(what, &error)),
        Err(_) => Err(format!("the API server did not list {what} within {} s", limit.as_secs())),
    }
}

/// Reads all objects. With `not_older_than`, reads everything in one request from the API server's
/// watch cache, at that version or a later one. Without it, reads page by page: the first page is
/// the latest state, and the other pages are of the same version.
///
/// # Errors
/// Returns an error if the API server cannot be reached, does not answer in time, or returns a
/// resourceVersion that is not a number.
pub async fn list_pages<S: ListWatch>(
    source: &S,
    not_older_than: Option<&str>,
) -> Result<(Vec<S::Object>, u64), String> {
    let mut restarts = 0;
    'restart: loop {
        let mut params = ListParams {
            // A list from the watch cache needs no pages. An older API server would read pages from
            // etcd in any case.
            limit: not_older_than.is_none().then(|| source.page_size()),
            label_selector: source.selector().map(Into::into),
            resource_version: not_older_than.map(Into::into),
            version_match: not_older_than.map(|_| VersionMatch::NotOlderThan),
            ..ListParams::default()
        };
        let mut objects = Vec::new();
        loop {
            // The API server may have compacted the version of the following pages.
            let page = source.list_page(&params).map(|response| match response {
                Err(kube::Error::Api(status)) if status.code == 410 && restarts < 3 => Ok(None),
                response => response.map(Some),
            });
            let Some(page) = within(source, PAGE_TIMEOUT, page.boxed()).await? else {
                restarts += 1;
                continue 'restart;
            };
            objects.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => {
                    let at = version(page.metadata.resource_version.as_deref())?;
                    return Ok((objects, at));
                }
            }
        }
    }
}

/// Delivers all objects, unless the caller has them up to version `at`. Then delivers every change.
/// Never returns.
pub async fn list_and_watch<S: ListWatch>(
    source: S,
    mut at: Option<u64>,
    api_failures: ApiFailures,
    mut handle: impl FnMut(ListWatchEvent<S::Object>) + Send,
) {
    let mut backoff = BACKOFF.0;
    loop {
        let failed = match at {
            None => {
                handle(ListWatchEvent::ListStarted);
                match list(&source).await {
                    Ok((objects, version)) => {
                        handle(ListWatchEvent::Listed(objects, version));
                        at = Some(version);
                        None
                    }
                    Err(error) => Some(error),
                }
            }
            Some(_) => {
                let begun = tokio::time::Instant::now();
                match watch(&source, &mut at, &api_failures, &mut handle).await {
                    Ok(()) => {
                        backoff = BACKOFF.0;
                        if begun.elapsed() < BACKOFF.0 {
                            // A watch that ends at once is not reopened in a busy loop.
                            tokio::time::sleep(BACKOFF.0).await;
                        }
                        None
                    }
                    Err(error) => Some(error),
                }
            }
        };
        if let Some(error) = failed {
            api_failures.record(source.what(), error);
            tokio::time::sleep(backoff / 2 + random::jitter(backoff / 2)).await;
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }
}

/// Runs one watch to its end. The next watch continues where this one ended, so no change is
/// missed. If the API server has compacted that version, `at` is `None` afterwards.
async fn watch<S: ListWatch>(
    source: &S,
    at: &mut Option<u64>,
    api_failures: &ApiFailures,
    handle: &mut (impl FnMut(ListWatchEvent<S::Object>) + Send),
) -> Result<(), String> {
    let what = source.what();
    let params = WatchParams {
        timeout: Some(WATCH_SECONDS),
        label_selector: source.selector().map(Into::into),
        ..WatchParams::default()
    };
    let since = at.unwrap_or_default().to_string();
    let opened = tokio::time::timeout(REQUEST, source.watch(&params, &since)).await;
    let mut events = match opened {
        Ok(Ok(events)) => events,
        Ok(Err(kube::Error::Api(status))) if status.code == 410 => {
            tracing::info!(what, since, "the API server no longer has the changes since; reading everything again");
            *at = None;
            return Ok(());
        }
        Ok(Err(error)) => return Err(explain(what, &error)),
        Err(_) => {
            return Err(format!(
                "the API server did not start to send changes of {what} within {} s",
                REQUEST.as_secs()
            ));
        }
    };
    api_failures.clear(what);
    let end = tokio::time::Instant::now() + Duration::from_secs(WATCH_SECONDS.into()) + WATCH_GRACE;
    loop {
        let event = match tokio::time::timeout_at(end, events.next()).await {
            Ok(Some(Ok(event))) => event,
            Ok(Some(Err(error))) => return Err(explain(what, &error)),
            Ok(None) => return Ok(()),
            Err(_) => return Err(format!("the API server stopped sending while changes of {what} were watched")),
        };
        let (object, deleted) = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
            WatchEvent::Deleted(object) => (object, true),
            WatchEvent::Bookmark(bookmark) => {
                let to = version(Some(&bookmark.metadata.resource_version))?;
                *at = Some(to);
                handle(ListWatchEvent::Bookmark(to));
                continue;
            }
            WatchEvent::Error(status) if status.code == 410 => {
                tracing::info!(what, "the API server no longer has the changes since; reading everything again");
                *at = None;
                return Ok(());
            }
            WatchEvent::Error(status) => return Err(explain(what, &kube::Error::Api(status))),
        };
        *at = Some(S::version(&object)?);
        handle(if deleted { ListWatchEvent::Deleted(object) } else { ListWatchEvent::Applied(object) });
    }
}

#[cfg(test)]
mod tests;

//! A list that stays up to date: read in pages, then watched from there.
//!
//! What is told is certain. An error, a cut connection, a lost right or half a list tell nothing,
//! least of all that something is gone: then it is tried again, and what was told before goes on to
//! hold.

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

use super::client::{Obstacles, REQUEST, explain, version};

/// Time for one page.
const PAGE_TIME: Duration = Duration::from_secs(30);
/// A watch is asked to end after so many seconds, and begun again where it was.
const WATCH: u32 = 60;
/// A watch that says nothing for so long after its end has died without a word.
const GRACE: Duration = Duration::from_secs(15);
/// First and longest wait after a failure.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What is told.
#[derive(Debug)]
pub enum News<T> {
    /// Everything is going to be read: what comes next is [`News::All`], and is newer than what was
    /// known before.
    Reading,
    /// All objects that there are, and the resourceVersion at which that is so.
    All(Vec<T>, u64),
    /// An object came or changed.
    Put(T),
    /// An object was deleted; as it was last, with the resourceVersion of its deletion.
    Gone(T),
    /// Everything up to this resourceVersion has been told.
    At(u64),
}

/// Objects that can be listed and watched.
pub trait Source: Send + Sync + 'static {
    /// What comes.
    type Object: Send + Clone + 'static;
    /// Plural and group, for people.
    fn what(&self) -> &str;
    /// Which of them.
    fn selector(&self) -> Option<&str> {
        None
    }
    /// Objects in one page.
    fn page_size(&self) -> u32;
    /// The resourceVersion of a change that was made after this was asked for. A list that is no
    /// older holds all that was there by then, and the API server need not look further than its
    /// own memory for it. `None` where none is known, and where it is not worth it.
    fn floor(&self) -> BoxFuture<'_, kube::Result<Option<String>>> {
        async { Ok(None) }.boxed()
    }
    /// One page.
    fn page<'a>(&'a self, params: &'a ListParams) -> BoxFuture<'a, kube::Result<ObjectList<Self::Object>>>;
    /// Changes since.
    fn watch<'a>(
        &'a self,
        params: &'a WatchParams,
        since: &'a str,
    ) -> BoxFuture<'a, kube::Result<Events<Self::Object>>>;
    /// Its resourceVersion.
    fn version(object: &Self::Object) -> Result<u64, String>;
}

/// What a watch says.
pub type Events<T> = BoxStream<'static, kube::Result<WatchEvent<T>>>;

/// Metadata of objects: of a Node that is all that is looked at, and a fraction of its size.
pub struct Metadata<K>(pub Api<K>, pub &'static str);

impl<K> Source for Metadata<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    type Object = PartialObjectMeta<K>;

    fn what(&self) -> &str {
        self.1
    }

    /// The API server reads the objects whole, and of Nodes each may be tens of kilobytes.
    fn page_size(&self) -> u32 {
        500
    }

    fn page<'a>(&'a self, params: &'a ListParams) -> BoxFuture<'a, kube::Result<ObjectList<Self::Object>>> {
        self.0.list_metadata(params).boxed()
    }

    fn watch<'a>(
        &'a self,
        params: &'a WatchParams,
        since: &'a str,
    ) -> BoxFuture<'a, kube::Result<Events<Self::Object>>> {
        async move { Ok(self.0.watch_metadata(params, since).await?.boxed()) }.boxed()
    }

    fn version(object: &Self::Object) -> Result<u64, String> {
        version(object.metadata.resource_version.as_deref())
    }
}

/// Reads everything that is there by now, or fails. That it is tried in the API server's memory
/// first can only cost time.
pub async fn list<S: Source>(source: &S) -> Result<(Vec<S::Object>, u64), String> {
    let floor = timely(source, REQUEST, source.floor()).await;
    let read = match floor {
        Ok(None) => return pages(source, None).await,
        Ok(Some(floor)) => pages(source, Some(&floor)).await,
        Err(why) => Err(why),
    };
    match read {
        Err(why) => {
            tracing::info!(what = source.what(), why, "not read from the API server's memory, but page by page");
            pages(source, None).await
        }
        read => read,
    }
}

async fn timely<S: Source, T>(
    source: &S,
    limit: Duration,
    request: BoxFuture<'_, kube::Result<T>>,
) -> Result<T, String> {
    let what = source.what();
    match tokio::time::timeout(limit, request).await {
        Ok(answer) => answer.map_err(|error| explain(what, &error)),
        Err(_) => Err(format!("the API server did not list {what} within {} s", limit.as_secs())),
    }
}

/// Reads all in one piece that is no older than `floor`; or page by page, the first one as new as
/// can be and the others of the same version.
pub async fn pages<S: Source>(source: &S, floor: Option<&str>) -> Result<(Vec<S::Object>, u64), String> {
    let mut restarts = 0;
    'anew: loop {
        let mut params = ListParams {
            // What lies in memory need not be read page by page; an older API server reads pages
            // from etcd, whatever is asked of it.
            limit: floor.is_none().then(|| source.page_size()),
            label_selector: source.selector().map(Into::into),
            resource_version: floor.map(Into::into),
            version_match: floor.map(|_| VersionMatch::NotOlderThan),
            ..ListParams::default()
        };
        let mut objects = Vec::new();
        loop {
            // The pages that follow may be of a version that is forgotten already.
            let page = source.page(&params).map(|answered| match answered {
                Err(kube::Error::Api(status)) if status.code == 410 && restarts < 3 => Ok(None),
                answered => answered.map(Some),
            });
            let Some(page) = timely(source, PAGE_TIME, page.boxed()).await? else {
                restarts += 1;
                continue 'anew;
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

/// Tells all there is, unless it is known up to `at`, and every change from then on. Ends never.
pub async fn follow<S: Source>(
    source: S,
    mut at: Option<u64>,
    obstacles: Obstacles,
    mut tell: impl FnMut(News<S::Object>) + Send,
) {
    let mut pause = PAUSES.0;
    loop {
        let failed = match at {
            None => {
                tell(News::Reading);
                match list(&source).await {
                    Ok((objects, version)) => {
                        tell(News::All(objects, version));
                        at = Some(version);
                        None
                    }
                    Err(error) => Some(error),
                }
            }
            Some(_) => {
                let begun = tokio::time::Instant::now();
                match watch(&source, &mut at, &obstacles, &mut tell).await {
                    Ok(()) => {
                        pause = PAUSES.0;
                        if begun.elapsed() < PAUSES.0 {
                            // One that ends at once is not begun again without end.
                            tokio::time::sleep(PAUSES.0).await;
                        }
                        None
                    }
                    Err(error) => Some(error),
                }
            }
        };
        if let Some(error) = failed {
            obstacles.fails(source.what(), error);
            tokio::time::sleep(pause / 2 + random::jitter(pause / 2)).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }
}

/// One watch, to its end. What happened while there was none follows from where the last one ended;
/// where that is forgotten, `at` is `None` afterwards.
async fn watch<S: Source>(
    source: &S,
    at: &mut Option<u64>,
    obstacles: &Obstacles,
    tell: &mut (impl FnMut(News<S::Object>) + Send),
) -> Result<(), String> {
    let what = source.what();
    let params = WatchParams {
        timeout: Some(WATCH),
        label_selector: source.selector().map(Into::into),
        ..WatchParams::default()
    };
    let since = at.unwrap_or_default().to_string();
    let opened = tokio::time::timeout(REQUEST, source.watch(&params, &since)).await;
    let mut events = match opened {
        Ok(Ok(events)) => events,
        Ok(Err(kube::Error::Api(status))) if status.code == 410 => {
            tracing::info!(what, since, "the API server has forgotten what happened since; reading everything anew");
            *at = None;
            return Ok(());
        }
        Ok(Err(error)) => return Err(explain(what, &error)),
        Err(_) => {
            return Err(format!(
                "the API server did not begin to tell changes of {what} within {} s",
                REQUEST.as_secs()
            ));
        }
    };
    obstacles.works(what);
    let end = tokio::time::Instant::now() + Duration::from_secs(WATCH.into()) + GRACE;
    loop {
        let event = match tokio::time::timeout_at(end, events.next()).await {
            Ok(Some(Ok(event))) => event,
            Ok(Some(Err(error))) => return Err(explain(what, &error)),
            Ok(None) => return Ok(()),
            Err(_) => return Err(format!("the API server went silent while it told changes of {what}")),
        };
        let (object, gone) = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
            WatchEvent::Deleted(object) => (object, true),
            WatchEvent::Bookmark(bookmark) => {
                let to = version(Some(&bookmark.metadata.resource_version))?;
                *at = Some(to);
                tell(News::At(to));
                continue;
            }
            WatchEvent::Error(status) if status.code == 410 => {
                tracing::info!(what, "the API server has forgotten what happened since; reading everything anew");
                *at = None;
                return Ok(());
            }
            WatchEvent::Error(status) => return Err(explain(what, &kube::Error::Api(status))),
        };
        *at = Some(S::version(&object)?);
        tell(if gone { News::Gone(object) } else { News::Put(object) });
    }
}

#[cfg(test)]
mod tests;

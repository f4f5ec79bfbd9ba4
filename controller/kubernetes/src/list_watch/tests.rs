use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use kube::core::{ListMeta, Status, TypeMeta};
use serde_json::{Value, json};

use super::*;

/// A fake API server that returns these responses in this order.
#[derive(Clone, Default)]
struct Scripted(Arc<Mutex<Script>>);

#[derive(Default)]
struct Script {
    not_older_than: Option<kube::Result<Option<String>>>,
    pages: VecDeque<kube::Result<ObjectList<Value>>>,
    watches: VecDeque<kube::Result<Vec<kube::Result<WatchEvent<Value>>>>>,
    asked: Vec<ListParams>,
    /// The resourceVersions from which watches were opened.
    since: Vec<String>,
}

impl Scripted {
    fn asked(&self) -> Vec<ListParams> {
        self.0.lock().unwrap().asked.clone()
    }
}

impl ListWatch for Scripted {
    type Object = Value;

    fn what(&self) -> &str {
        "things"
    }

    fn page_size(&self) -> u32 {
        2
    }

    fn not_older_than(&self) -> BoxFuture<'_, kube::Result<Option<String>>> {
        let not_older_than = self.0.lock().unwrap().not_older_than.take();
        async { not_older_than.unwrap_or(Ok(None)) }.boxed()
    }

    fn list_page<'a>(&'a self, params: &'a ListParams) -> BoxFuture<'a, kube::Result<ObjectList<Value>>> {
        let mut script = self.0.lock().unwrap();
        script.asked.push(params.clone());
        let page = script.pages.pop_front().expect("another page");
        async { page }.boxed()
    }

    fn watch<'a>(&'a self, _: &'a WatchParams, since: &'a str) -> BoxFuture<'a, kube::Result<WatchStream<Value>>> {
        let mut script = self.0.lock().unwrap();
        script.since.push(since.to_owned());
        let Some(watch) = script.watches.pop_front() else { return std::future::pending().boxed() };
        async { watch.map(|events| futures_util::stream::iter(events).boxed()) }.boxed()
    }

    fn version(object: &Value) -> Result<u64, String> {
        version(object["version"].as_str())
    }
}

fn page(items: &[&str], version: &str, next: &str) -> kube::Result<ObjectList<Value>> {
    let metadata = ListMeta {
        resource_version: Some(version.into()),
        continue_: (!next.is_empty()).then(|| next.into()),
        ..ListMeta::default()
    };
    let types = TypeMeta { api_version: "v1".into(), kind: "ThingList".into() };
    Ok(ObjectList { types, metadata, items: items.iter().map(|item| json!({"name": item})).collect() })
}

fn failure<T>(code: u16) -> kube::Result<T> {
    Err(kube::Error::Api(Status::failure("no", "No").with_code(code).boxed()))
}

fn gone_mid_way() -> kube::Result<WatchEvent<Value>> {
    Err(kube::Error::Service("the connection was cut".into()))
}

fn bookmark(version: &str) -> kube::Result<WatchEvent<Value>> {
    let text = json!({"type": "BOOKMARK", "object": {"kind": "Thing", "apiVersion": "v1", "metadata": {"resourceVersion": version}}});
    Ok(serde_json::from_value(text).unwrap())
}

fn names(objects: &[Value]) -> String {
    objects.iter().map(|object| object["name"].as_str().unwrap()).collect()
}

/// Returns the first `count` events as text.
async fn delivered(source: &Scripted, at: Option<u64>, count: usize) -> Vec<String> {
    let (sender, mut events) = tokio::sync::mpsc::unbounded_channel();
    let following = list_and_watch(source.clone(), at, ApiFailures::default(), move |event| {
        let event = match event {
            ListWatchEvent::ListStarted => "reading".to_owned(),
            ListWatchEvent::Listed(objects, at) => format!("all {} at {at}", names(&objects)),
            ListWatchEvent::Applied(object) => format!("put {}", names(&[object])),
            ListWatchEvent::Deleted(object) => format!("gone {}", names(&[object])),
            ListWatchEvent::Bookmark(at) => format!("at {at}"),
        };
        sender.send(event).unwrap();
    });
    let receiving = async {
        let mut delivered = Vec::new();
        while delivered.len() < count {
            delivered.push(events.recv().await.unwrap());
        }
        delivered
    };
    tokio::select! {
        () = following => unreachable!("it never ends"),
        delivered = receiving => delivered,
    }
}

#[tokio::test]
async fn a_list_from_the_watch_cache_is_one_piece_and_no_older() {
    let source = Scripted::default();
    source.0.lock().unwrap().not_older_than = Some(Ok(Some("7".into())));
    source.0.lock().unwrap().pages = [page(&["a", "b", "c"], "9", "")].into();
    let (objects, at) = list(&source).await.unwrap();
    assert_eq!((names(&objects).as_str(), at), ("abc", 9));
    let asked = &source.asked()[0];
    assert_eq!((asked.limit, asked.resource_version.as_deref()), (None, Some("7")));
    assert_eq!(asked.version_match, Some(VersionMatch::NotOlderThan));
}

#[tokio::test]
async fn if_the_watch_cache_cannot_answer_the_list_is_read_by_pages() {
    type NotOlderThan = kube::Result<Option<String>>;
    let cut = || kube::Error::Service("the connection was cut".into());
    let oldest_accepted: [(NotOlderThan, Option<kube::Result<ObjectList<Value>>>); 5] = [
        (Ok(None), None),
        (failure(403), None),
        (Err(cut()), None),
        (Ok(Some("7".into())), Some(failure(504))),
        (Ok(Some("7".into())), Some(Err(cut()))),
    ];
    for (not_older_than, refused) in oldest_accepted {
        let source = Scripted::default();
        let pages = [page(&["a", "b"], "9", "more"), page(&["c"], "9", "")];
        source.0.lock().unwrap().not_older_than = Some(not_older_than);
        source.0.lock().unwrap().pages = refused.into_iter().chain(pages).collect();
        let (objects, at) = list(&source).await.unwrap();
        assert_eq!((names(&objects).as_str(), at), ("abc", 9));
        let asked = source.asked();
        let (first, second) = (&asked[asked.len() - 2], &asked[asked.len() - 1]);
        assert_eq!((first.limit, &first.resource_version, &first.continue_token), (Some(2), &None, &None));
        assert_eq!(second.continue_token.as_deref(), Some("more"));
    }
}

#[tokio::test]
async fn a_list_with_compacted_pages_is_started_again() {
    let source = Scripted::default();
    let pages = [page(&["a", "b"], "9", "more"), failure(410), page(&["b", "c"], "12", "more"), page(&["d"], "12", "")];
    source.0.lock().unwrap().pages = pages.into();
    let (objects, at) = list(&source).await.unwrap();
    assert_eq!((names(&objects).as_str(), at), ("bcd", 12), "nothing of the first attempt");
}

#[tokio::test]
async fn half_a_list_gives_no_event() {
    let source = Scripted::default();
    let pages = [page(&["a", "b"], "9", "more"), failure(500), page(&["a", "b"], "10", "more"), page(&["c"], "10", "")];
    source.0.lock().unwrap().pages = pages.into();
    assert_eq!(delivered(&source, None, 3).await, ["reading", "reading", "all abc at 10"]);
}

#[tokio::test]
async fn a_broken_watch_continues_at_the_last_bookmark_and_reports_no_deletion() {
    let put = |name: &str, version: &str| Ok(WatchEvent::Modified(json!({"name": name, "version": version})));
    let source = Scripted::default();
    source.0.lock().unwrap().watches = [
        Ok(vec![put("a", "11"), bookmark("20"), gone_mid_way()]),
        failure(403),
        Ok(vec![Ok(WatchEvent::Deleted(json!({"name": "b", "version": "21"})))]),
    ]
    .into();
    assert_eq!(delivered(&source, Some(10), 3).await, ["put a", "at 20", "gone b"]);
    assert_eq!(source.0.lock().unwrap().since, ["10", "20", "20"]);
    assert!(source.asked().is_empty(), "nothing is read again");
}

#[tokio::test]
async fn after_a_compacted_version_everything_is_read_again() {
    let source = Scripted::default();
    {
        let mut script = source.0.lock().unwrap();
        script.watches =
            [failure(410), Ok(vec![Ok(WatchEvent::Error(Status::failure("old", "Expired").with_code(410).boxed()))])]
                .into();
        script.pages = [page(&["a"], "30", ""), page(&["b"], "40", "")].into();
    }
    let delivered = delivered(&source, Some(10), 4).await;
    assert_eq!(delivered, ["reading", "all a at 30", "reading", "all b at 40"]);
}

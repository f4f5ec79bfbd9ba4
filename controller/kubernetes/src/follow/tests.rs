use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use kube::core::{ListMeta, Status, TypeMeta};
use serde_json::{Value, json};

use super::*;

/// An API server that answers what it is told to, in this order.
#[derive(Clone, Default)]
struct Scripted(Arc<Mutex<Script>>);

#[derive(Default)]
struct Script {
    floor: Option<kube::Result<Option<String>>>,
    pages: VecDeque<kube::Result<ObjectList<Value>>>,
    watches: VecDeque<kube::Result<Vec<kube::Result<WatchEvent<Value>>>>>,
    asked: Vec<ListParams>,
    /// From where it was watched.
    since: Vec<String>,
}

impl Scripted {
    fn asked(&self) -> Vec<ListParams> {
        self.0.lock().unwrap().asked.clone()
    }
}

impl Source for Scripted {
    type Object = Value;

    fn what(&self) -> &str {
        "things"
    }

    fn page_size(&self) -> u32 {
        2
    }

    fn floor(&self) -> BoxFuture<'_, kube::Result<Option<String>>> {
        let floor = self.0.lock().unwrap().floor.take();
        async { floor.unwrap_or(Ok(None)) }.boxed()
    }

    fn page<'a>(&'a self, params: &'a ListParams) -> BoxFuture<'a, kube::Result<ObjectList<Value>>> {
        let mut script = self.0.lock().unwrap();
        script.asked.push(params.clone());
        let page = script.pages.pop_front().expect("another page");
        async { page }.boxed()
    }

    fn watch<'a>(&'a self, _: &'a WatchParams, since: &'a str) -> BoxFuture<'a, kube::Result<Events<Value>>> {
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

/// What is told until there is nothing more to tell.
async fn told(source: &Scripted, at: Option<u64>, count: usize) -> Vec<String> {
    let (tell, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let following = follow(source.clone(), at, Obstacles::default(), move |news| {
        let news = match news {
            News::Reading => "reading".to_owned(),
            News::All(objects, at) => format!("all {} at {at}", names(&objects)),
            News::Put(object) => format!("put {}", names(&[object])),
            News::Gone(object) => format!("gone {}", names(&[object])),
            News::At(at) => format!("at {at}"),
        };
        tell.send(news).unwrap();
    });
    let hearing = async {
        let mut told = Vec::new();
        while told.len() < count {
            told.push(heard.recv().await.unwrap());
        }
        told
    };
    tokio::select! {
        () = following => unreachable!("it never ends"),
        told = hearing => told,
    }
}

#[tokio::test]
async fn a_list_with_a_floor_is_one_piece_and_no_older() {
    let source = Scripted::default();
    source.0.lock().unwrap().floor = Some(Ok(Some("7".into())));
    source.0.lock().unwrap().pages = [page(&["a", "b", "c"], "9", "")].into();
    let (objects, at) = list(&source).await.unwrap();
    assert_eq!((names(&objects).as_str(), at), ("abc", 9));
    let asked = &source.asked()[0];
    assert_eq!((asked.limit, asked.resource_version.as_deref()), (None, Some("7")));
    assert_eq!(asked.version_match, Some(VersionMatch::NotOlderThan));
}

#[tokio::test]
async fn whatever_fails_on_the_way_to_memory_the_list_is_read_by_pages() {
    type Floor = kube::Result<Option<String>>;
    let cut = || kube::Error::Service("the connection was cut".into());
    let floors: [(Floor, Option<kube::Result<ObjectList<Value>>>); 5] = [
        (Ok(None), None),
        (failure(403), None),
        (Err(cut()), None),
        (Ok(Some("7".into())), Some(failure(504))),
        (Ok(Some("7".into())), Some(Err(cut()))),
    ];
    for (floor, refused) in floors {
        let source = Scripted::default();
        let pages = [page(&["a", "b"], "9", "more"), page(&["c"], "9", "")];
        source.0.lock().unwrap().floor = Some(floor);
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
async fn a_list_of_which_pages_are_forgotten_is_begun_anew() {
    let source = Scripted::default();
    let pages = [page(&["a", "b"], "9", "more"), failure(410), page(&["b", "c"], "12", "more"), page(&["d"], "12", "")];
    source.0.lock().unwrap().pages = pages.into();
    let (objects, at) = list(&source).await.unwrap();
    assert_eq!((names(&objects).as_str(), at), ("bcd", 12), "nothing of the first attempt");
}

#[tokio::test]
async fn half_a_list_tells_nothing() {
    let source = Scripted::default();
    let pages = [page(&["a", "b"], "9", "more"), failure(500), page(&["a", "b"], "10", "more"), page(&["c"], "10", "")];
    source.0.lock().unwrap().pages = pages.into();
    assert_eq!(told(&source, None, 3).await, ["reading", "reading", "all abc at 10"]);
}

#[tokio::test]
async fn a_watch_that_is_cut_goes_on_from_the_last_bookmark_and_tells_nothing_gone() {
    let put = |name: &str, version: &str| Ok(WatchEvent::Modified(json!({"name": name, "version": version})));
    let source = Scripted::default();
    source.0.lock().unwrap().watches = [
        Ok(vec![put("a", "11"), bookmark("20"), gone_mid_way()]),
        failure(403),
        Ok(vec![Ok(WatchEvent::Deleted(json!({"name": "b", "version": "21"})))]),
    ]
    .into();
    assert_eq!(told(&source, Some(10), 3).await, ["put a", "at 20", "gone b"]);
    assert_eq!(source.0.lock().unwrap().since, ["10", "20", "20"]);
    assert!(source.asked().is_empty(), "nothing is read anew");
}

#[tokio::test]
async fn after_what_is_forgotten_everything_is_read_anew() {
    let source = Scripted::default();
    {
        let mut script = source.0.lock().unwrap();
        script.watches =
            [failure(410), Ok(vec![Ok(WatchEvent::Error(Status::failure("old", "Expired").with_code(410).boxed()))])]
                .into();
        script.pages = [page(&["a"], "30", ""), page(&["b"], "40", "")].into();
    }
    let told = told(&source, Some(10), 4).await;
    assert_eq!(told, ["reading", "all a at 30", "reading", "all b at 40"]);
}

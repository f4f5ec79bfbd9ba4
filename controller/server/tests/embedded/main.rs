//! Runs the tests for every store on the embedded store.

#[path = "../behaviour/mod.rs"]
#[allow(dead_code, reason = "some of it is for stores that replicas share")]
mod behaviour;
#[path = "../api/harness.rs"]
#[allow(dead_code, reason = "some of it is for other tests")]
mod harness;
mod history;
#[path = "../model/mod.rs"]
mod model;
#[path = "../api/process.rs"]
#[allow(dead_code, reason = "some of it is for other tests")]
mod process;

use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use edge_controller_domain::store::Store;
use edge_controller_domain::store::embedded::Embedded;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

/// A directory with a store file, which one process can open at a time.
struct Directory {
    directory: tempfile::TempDir,
    last: Mutex<Weak<dyn Store>>,
}

impl behaviour::StoreFixture for Directory {
    fn open(&self) -> BoxFuture<'_, Arc<dyn Store>> {
        async {
            // A registry closes its store a moment after its last use.
            let store: Arc<dyn Store> = tokio::time::timeout(Duration::from_secs(30), async {
                loop {
                    if let Some(store) = self.last.lock().unwrap().upgrade() {
                        return store;
                    }
                    match Embedded::open(self.directory.path()) {
                        Ok(store) => return Arc::new(store),
                        Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                    }
                }
            })
            .await
            .expect("the store is closed by its last user");
            *self.last.lock().unwrap() = Arc::downgrade(&store);
            store
        }
        .boxed()
    }
}

macro_rules! on_a_directory {
    ($($behaviour:ident),* $(,)?) => {
        $(
            #[tokio::test]
            async fn $behaviour() {
                let directory = tempfile::tempdir().unwrap();
                let last: Weak<dyn Store> = Weak::<Embedded>::new();
                behaviour::$behaviour(&Directory { directory, last: Mutex::new(last) }).await;
            }
        )*
    };
}

behaviour::all!(on_a_directory);

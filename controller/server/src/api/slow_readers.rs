//! Closes the connections of readers that do not take the lines of their view streams.
//!
//! The HTTP server asks a stream for its next line when the reader has room for it. One task looks
//! at all streams once a second, because a task or a timer for each of ten thousand streams would
//! need memory that is never used.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use edge_types::NodeName;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::request_span;
use super::single_view::SLOWEST_READER;

/// Interval at which the streams are checked.
const CHECK_PERIOD: Duration = Duration::from_secs(1);

/// The open view streams. Clones share them.
#[derive(Clone, Default)]
pub(super) struct SlowReaders(Arc<Mutex<Streams>>);

#[derive(Default)]
struct Streams {
    /// One entry for each open stream. The API limits the streams of each node.
    open: HashMap<u64, Arc<StreamProgress>>,
    opened: u64,
    /// Whether the task that checks the streams runs.
    checked: bool,
}

/// The progress of one stream. It is watched until this value is dropped.
pub(super) struct WatchedStream {
    readers: SlowReaders,
    number: u64,
    progress: Arc<StreamProgress>,
}

struct StreamProgress {
    /// When the last line was handed to the HTTP server; `None` if the server waits for a line.
    handed_over: Mutex<Option<Instant>>,
    node: NodeName,
    connection: CancellationToken,
    cut_off: AtomicBool,
}

impl SlowReaders {
    /// Begins to watch a stream of a node. If the reader does not take a line within
    /// [`SLOWEST_READER`], the connection is cancelled.
    pub(super) fn watch(&self, node: &NodeName, connection: &CancellationToken) -> WatchedStream {
        let progress = Arc::new(StreamProgress {
            handed_over: Mutex::default(),
            node: node.clone(),
            connection: connection.clone(),
            cut_off: AtomicBool::new(false),
        });
        let mut streams = self.streams();
        streams.opened += 1;
        let number = streams.opened;
        streams.open.insert(number, progress.clone());
        if !std::mem::replace(&mut streams.checked, true) {
            tokio::spawn(self.clone().check());
        }
        WatchedStream { readers: self.clone(), number, progress }
    }

    /// Checks the streams until none is open.
    async fn check(self) {
        loop {
            tokio::time::sleep(CHECK_PERIOD).await;
            let mut streams = self.streams();
            if streams.open.is_empty() {
                streams.checked = false;
                return;
            }
            for stream in streams.open.values() {
                stream.check();
            }
        }
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StreamProgress {
    fn check(&self) {
        let slow = self.handed_over().is_some_and(|at| at.elapsed() >= SLOWEST_READER);
        if slow && !self.cut_off.swap(true, Ordering::Relaxed) {
            request_span::of_stream(&self.node).in_scope(|| {
                let (node, seconds) = (&self.node, SLOWEST_READER.as_secs());
                tracing::warn!(%node, "cut off: it did not read its view for {seconds} s");
            });
            self.connection.cancel();
        }
    }

    fn handed_over(&self) -> MutexGuard<'_, Option<Instant>> {
        self.handed_over.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WatchedStream {
    /// Records that a line is handed to the HTTP server.
    pub(super) fn hand_over(&self) {
        *self.progress.handed_over() = Some(Instant::now());
    }

    /// Records that the HTTP server waits for the next line.
    pub(super) fn waits(&self) {
        *self.progress.handed_over() = None;
    }

    /// Returns whether the connection was closed because the reader was too slow.
    pub(super) fn is_cut_off(&self) -> bool {
        self.progress.cut_off.load(Ordering::Relaxed)
    }
}

impl Drop for WatchedStream {
    fn drop(&mut self) {
        self.readers.streams().open.remove(&self.number);
    }
}

//! The TCP connections that nodes open for their relayed pairs. The task that accepts connections
//! delivers each to the pair whose token it begins with.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use edge_ike::wire::RelayToken;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// Number of connections that wait for a pair's task. A further one is closed; the node connects
/// again.
const WAITING: usize = 2;

/// Where the connections for each token go. Clones share it. There are at most two entries for each
/// open pair.
#[derive(Debug, Clone, Default)]
pub struct AwaitedStreams(Arc<Mutex<BTreeMap<RelayToken, mpsc::Sender<std::net::TcpStream>>>>);

impl AwaitedStreams {
    /// Delivers a connection that begins with this token. Returns `false` if no open pair has the
    /// token; then the connection is closed.
    pub fn deliver(&self, token: &RelayToken, stream: TcpStream) -> bool {
        let to = self.table().get(token).cloned();
        // The pair's task registers it with its own runtime, so that this one no longer wakes for
        // it.
        to.zip(stream.into_std().ok()).is_some_and(|(to, stream)| to.try_send(stream).is_ok())
    }

    /// Lets connections with this token in, until the result is dropped.
    pub(super) fn expect(&self, token: RelayToken) -> StreamsOfEnd {
        let (to, streams) = mpsc::channel(WAITING);
        self.table().insert(token, to);
        StreamsOfEnd { awaited: self.clone(), token, streams }
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<RelayToken, mpsc::Sender<std::net::TcpStream>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The connections for one end of a pair.
#[derive(Debug)]
pub(super) struct StreamsOfEnd {
    awaited: AwaitedStreams,
    token: RelayToken,
    streams: mpsc::Receiver<std::net::TcpStream>,
}

impl StreamsOfEnd {
    /// Waits for the next connection. This method is cancel safe.
    pub(super) async fn next(&mut self) -> std::net::TcpStream {
        match self.streams.recv().await {
            Some(stream) => stream,
            // The table has the sender as long as this value exists.
            None => std::future::pending().await,
        }
    }
}

impl Drop for StreamsOfEnd {
    fn drop(&mut self) {
        self.awaited.table().remove(&self.token);
    }
}

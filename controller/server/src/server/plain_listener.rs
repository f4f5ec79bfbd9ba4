//! Listens for plain HTTP, which serves health and metrics, and the page. The listener for health
//! and metrics closes after the other listeners, so that a server that stops can still report its
//! state.
//!
//! Clients need no certificate. So connections have a short lifetime, and if all are in use, the
//! oldest connection of the source with the most connections is closed for a new one (it is
//! displaced). A probe is answered within a millisecond.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use edge_controller_domain::source_shares::{Share, SourceShares};
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::connections::{self, OpenConnections};
use crate::api::caller::CallerIdentity;

/// Maximum number of connections, enough for a few probes and scrapers or a few browsers.
const CONNECTIONS: usize = 64;
/// Maximum number of displaced connections that are not closed yet.
const DISPLACED: usize = 8;
/// Time limit for the head of a request, also of the next one on the same connection.
const HEAD: Duration = Duration::from_secs(5);
/// Maximum lifetime of a connection. This limits how long a scraper that does not read its response
/// keeps the metrics in memory.
const LIFETIME: Duration = Duration::from_secs(30);
/// Maximum size of a request's head in bytes, which is the minimum of hyper, and maximum number of
/// headers; a browser sends twenty.
const LONGEST_HEAD: usize = 8 * 1024;
const HEADERS: usize = 64;

/// The connections of all listeners for one purpose.
pub(super) struct PlainConnections {
    shares: Mutex<SourceShares>,
    /// Permits for open sockets, which belong to connections and to displaced connections that are
    /// not closed yet. While all permits are in use, new connections wait in the listener's queue.
    /// Without this limit, a burst would open files faster than displaced connections close them.
    sockets: Arc<Semaphore>,
}

impl PlainConnections {
    pub(super) fn new() -> Arc<Self> {
        let sockets = Arc::new(Semaphore::new(CONNECTIONS + DISPLACED));
        Arc::new(Self { shares: Mutex::default(), sockets })
    }

    /// Gives a new connection its share. The token is cancelled when the connection must be closed
    /// for another one.
    fn enter(&self, from: IpAddr, now: Instant) -> (Share, CancellationToken) {
        let mut shares = self.shares();
        if shares.total() >= CONNECTIONS {
            let displaced = shares.displace_for(from, 1, Duration::ZERO, now);
            tracing::debug!(?displaced, "too many connections of plain HTTP");
        }
        shares.enter(from, 1, now)
    }

    fn shares(&self) -> MutexGuard<'_, SourceShares> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Accepts connections until the server stops.
pub(super) async fn serve(listener: TcpListener, router: Router, limits: Arc<PlainConnections>, open: OpenConnections) {
    loop {
        let accept = async {
            let socket = limits.sockets.clone().acquire_owned().await.map_err(io::Error::other)?;
            let (stream, from) = listener.accept().await?;
            Ok::<_, io::Error>((socket, stream, from.ip().to_canonical()))
        };
        let accepted = tokio::select! {
            () = open.stopping.cancelled() => return,
            accepted = accept => accepted,
        };
        match accepted {
            Ok((socket, stream, from)) => {
                let (router, stopping, limits) = (router.clone(), open.stopping.clone(), limits.clone());
                let (share, displaced) = limits.enter(from, Instant::now());
                open.tasks.spawn(async move {
                    tokio::select! {
                        () = displaced.cancelled() => {}
                        _ = tokio::time::timeout(LIFETIME, serve_connection(stream, from, router, stopping)) => {}
                    }
                    limits.shares().leave(share);
                    drop(socket);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection of plain HTTP");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Serves one connection until it ends or the server stops. When the server stops, an open request
/// is finished first.
async fn serve_connection(stream: TcpStream, from: IpAddr, router: Router, stopping: CancellationToken) {
    let caller = connections::caller(CallerIdentity::Anonymous, Some(from));
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(caller.clone());
        let router = router.clone();
        async move { Ok::<_, Infallible>(router.oneshot(request).await.unwrap_or_else(|never| match never {})) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(LONGEST_HEAD).max_headers(HEADERS);
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    let mut asked_to_stop = false;
    loop {
        tokio::select! {
            _ = connection.as_mut() => return,
            () = stopping.cancelled(), if !asked_to_stop => {
                asked_to_stop = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpSocket;
    use tokio_util::task::TaskTracker;

    /// On a runtime with one thread, no displaced connection closes while the listener accepts
    /// connections.
    #[tokio::test]
    async fn a_burst_of_connections_opens_no_more_files_than_are_kept_for_them() {
        const BURST: usize = 4 * CONNECTIONS;
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(BURST as u32).unwrap();
        let address = listener.local_addr().unwrap();
        let mut clients = Vec::new();
        for _ in 0..BURST {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        let open = OpenConnections { stopping: CancellationToken::new(), tasks: TaskTracker::new() };
        let serving = tokio::spawn(serve(listener, Router::new(), PlainConnections::new(), open.clone()));
        let mut most = 0;
        while clients.len() > CONNECTIONS {
            tokio::task::yield_now().await;
            most = most.max(open.tasks.len());
            clients.retain(|client| !matches!(client.try_read(&mut [0]), Ok(0)));
        }
        assert!(most <= CONNECTIONS + DISPLACED, "{most} connections were open at once");
        open.stopping.cancel();
        serving.await.unwrap();
    }
}

//! The listener for health and metrics. It closes after the other listeners, so that a server that
//! stops can say so there.
//!
//! Clients need no certificate. So connections are short, and if all are in use, a new one
//! displaces the oldest of the source with the most: a probe is answered within a millisecond.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use edge_controller_domain::fair_shares::FairShares;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::connections::{self, Open};
use crate::api::caller::Identity;

/// Largest number of connections: a few probes and scrapers.
const CONNECTIONS: usize = 64;
/// Longest time for the head of a request, also of the next one on the same connection.
const HEAD: Duration = Duration::from_secs(5);
/// Longest life of a connection, so that a scraper that does not read its metrics holds them no
/// longer.
const LIFETIME: Duration = Duration::from_secs(30);
/// Largest head of a request in bytes, the least that hyper allows, and the largest number of
/// headers; a browser sends twenty.
const LONGEST_HEAD: usize = 8 * 1024;
const HEADERS: usize = 64;

/// Accepts connections until the server stops.
pub(super) async fn serve(listener: TcpListener, router: Router, open: Open) {
    let limits = Arc::new(Mutex::new(FairShares::default()));
    loop {
        let accepted = tokio::select! {
            () = open.stopping.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => {
                let (router, stopping, limits, from) =
                    (router.clone(), open.stopping.clone(), limits.clone(), from.ip().to_canonical());
                let share = |limits: &Mutex<FairShares>| {
                    let (mut limits, now) = (limits.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
                    if limits.total() >= CONNECTIONS {
                        let displaced = limits.displace_for(from, 1, Duration::ZERO, now);
                        tracing::debug!(?displaced, "too many connections for health and metrics");
                    }
                    limits.enter(from, 1, now)
                };
                let (share, displaced) = share(&limits);
                open.tasks.spawn(async move {
                    tokio::select! {
                        () = displaced.cancelled() => {}
                        _ = tokio::time::timeout(LIFETIME, answer(stream, from, router, stopping)) => {}
                    }
                    limits.lock().unwrap_or_else(PoisonError::into_inner).leave(share);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection for health and metrics");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Serves one connection until it ends or the server stops: then an open request is finished.
async fn answer(stream: TcpStream, from: IpAddr, router: Router, stopping: CancellationToken) {
    let caller = connections::caller(Identity::Nobody, Some(from));
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

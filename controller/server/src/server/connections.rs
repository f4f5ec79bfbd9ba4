//! Serves HTTP/2 and HTTP/1.1 on connections within limits. Connections that are slow, silent or in
//! excess of the limits are closed. A node's connection may leave HTTP for its view stream.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::{self, Builder};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::connection_limits::{CONNECTIONS, ConnectionLimits};
use super::handshake::{self, Accepted, SILENCE};
use super::tls::Tls;
use super::view_connection;
use crate::api::caller::{Caller, CallerIdentity};
use crate::api::view_upgrade::{UpgradedView, ViewUpgrade, is_asked_for};
use crate::logs;

/// Time limit of a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time limit for the head of a request.
const HEAD: Duration = Duration::from_secs(10);
/// Maximum lifetime of a connection that has shown no node's certificate.
const STRANGER_LIFETIME: Duration = Duration::from_secs(60);
/// Time for which a connection without an open request stays open when the server stops, so that
/// the peer can read its last response and close the connection. Without this limit, a peer that is
/// gone would keep the connection open until the kernel detects the loss.
const IDLE_SHUTDOWN: Duration = Duration::from_secs(1);

/// Limits on the buffers and the work for one connection.
#[derive(Debug)]
pub(super) struct ConnectionBounds {
    /// Maximum number of concurrent requests on HTTP/2.
    streams: u32,
    /// Maximum size of all headers of a request, in bytes: on HTTP/2 as counted in RFC 9113 section
    /// 6.5.2, on HTTP/1.1 with the request line and at least 8 KiB, the minimum of hyper.
    head: u32,
    /// Maximum number of bytes of a body that may arrive before they are read, for each stream and
    /// for the connection. (A connection has at least 64 KiB at first: RFC 9113 section 6.9.2.)
    window: (u32, u32),
    /// Maximum number of response bytes that wait to be sent, for each stream.
    response: usize,
    /// Maximum number of requests in total; `None` for no limit.
    requests: Option<u32>,
}

/// Limits for nodes and the operator.
pub(super) static KNOWN: ConnectionBounds = ConnectionBounds {
    streams: 16,
    head: 16 * 1024,
    window: (64 * 1024, 256 * 1024),
    response: 400 * 1024,
    requests: None,
};
/// Limits for peers without a certificate of a registered node, whose only useful request is to
/// join.
static STRANGER: ConnectionBounds = ConnectionBounds {
    streams: 4,
    head: 4 * 1024,
    window: (16 * 1024, 64 * 1024 - 1),
    response: 16 * 1024,
    requests: Some(100),
};

/// The connections that a listener has accepted.
#[derive(Clone)]
pub(super) struct OpenConnections {
    /// Cancelled to end the connections after their open requests.
    pub(super) stopping: CancellationToken,
    /// The tasks that serve the connections.
    pub(super) tasks: TaskTracker,
}

/// Raises the limit of open files to the number that the connections need, as far as the system
/// allows, because the default limit is intended for other programs. Returns the number of files
/// that may be open.
pub(super) fn raise_file_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(u64::MAX).min(2 * CONNECTIONS as u64);
    let mut files = limit.current.unwrap_or(u64::MAX);
    if files < wanted {
        match setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit }) {
            Ok(()) => files = wanted,
            Err(error) => tracing::warn!(%error, "the limit of open files stays at {files}"),
        }
    }
    if files < CONNECTIONS as u64 {
        tracing::warn!("at most {files} files may be open, and fewer nodes connected: raise the limit (LimitNOFILE=)");
    }
    files
}

/// Accepts nodes' connections until `closing`.
pub(super) async fn serve_nodes(
    listener: TcpListener,
    tls: Tls,
    router: Router,
    limits: Arc<ConnectionLimits>,
    closing: CancellationToken,
    open: OpenConnections,
) {
    loop {
        let accepted = tokio::select! {
            () = closing.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Probably no descriptor is free: accepting again at once would be a busy loop.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some((mut permit, displaced)) = limits.admit(from.ip(), Instant::now()) else {
            if logs::may_log_stranger() {
                tracing::warn!(%from, "refused: too many connections");
            }
            continue;
        };
        let (tls, router, stopping) = (tls.clone(), router.clone(), open.stopping.clone());
        open.tasks.spawn(async move {
            // This future and those below are boxed, so that ten thousand tasks do not keep memory
            // that they need only for a short time.
            let accepted = handshake::accept(stream, tls, from.ip().to_canonical());
            let handshake = Box::pin(tokio::time::timeout(HANDSHAKE, accepted));
            let handshake = tokio::select! {
                () = stopping.cancelled() => return,
                () = displaced.cancelled() => return,
                handshake = handshake => handshake,
            };
            match handshake {
                Ok(Ok(Accepted { stream, caller, certificate })) => {
                    let connection = caller.connection.clone();
                    if let Some(certificate) = certificate {
                        permit.identify(&certificate, &connection);
                        drop((displaced, certificate));
                        let served = serve(stream, caller.clone(), &KNOWN, router.clone(), stopping);
                        let upgraded = Box::pin(served).await;
                        if let Some(upgraded) = upgraded {
                            Box::pin(view_connection::serve(upgraded, caller, router)).await;
                        }
                    } else {
                        let served = serve(stream, caller, &STRANGER, router, stopping);
                        let served = Box::pin(tokio::time::timeout(STRANGER_LIFETIME, served));
                        tokio::select! {
                            _ = served => {}
                            () = displaced.cancelled() => {}
                        }
                        connection.cancel();
                    }
                }
                _ if !logs::may_log_stranger() => {}
                Ok(Err(error)) => tracing::info!(%from, "TLS handshake failed: {error}"),
                Err(_) => tracing::info!(%from, "TLS handshake not done within {} s", HANDSHAKE.as_secs()),
            }
            drop(permit);
        });
    }
}

/// Makes the [`Caller`] for a new connection.
pub(super) fn caller(identity: CallerIdentity, address: Option<IpAddr>) -> Caller {
    Caller { identity, address, connection: CancellationToken::new() }
}

/// Configures HTTP with these limits.
fn http(bounds: &ConnectionBounds) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    let head = usize::try_from(bounds.head).unwrap_or(usize::MAX).max(8 * 1024);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(head);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(SILENCE / 2)
        .keep_alive_timeout(SILENCE / 2)
        .max_concurrent_streams(bounds.streams)
        .initial_stream_window_size(bounds.window.0)
        .initial_connection_window_size(bounds.window.1)
        .max_send_buf_size(bounds.response)
        .max_header_list_size(bounds.head);
    builder
}

static HTTP_FOR_KNOWN: LazyLock<Builder<TokioExecutor>> = LazyLock::new(|| http(&KNOWN));
static HTTP_FOR_STRANGERS: LazyLock<Builder<TokioExecutor>> = LazyLock::new(|| http(&STRANGER));

/// A connection that has left HTTP.
pub(super) struct UpgradedConnection<S> {
    pub(super) stream: S,
    /// Bytes that the peer has sent after its request.
    pub(super) received: Bytes,
    pub(super) view: UpgradedView,
}

/// The upgrade of a connection, until hyper lets go of the connection.
type PendingUpgrade = Arc<Mutex<Option<(OnUpgrade, UpgradedView)>>>;

/// Serves one connection until it ends or is closed, or the server stops. When the server stops,
/// open requests are finished first. Returns the connection if it has left HTTP. Only a registered
/// node's connection does.
pub(super) fn serve<S>(
    stream: S,
    caller: Caller,
    bounds: &'static ConnectionBounds,
    router: Router,
    stopping: CancellationToken,
) -> impl Future<Output = Option<UpgradedConnection<S>>> + Send
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let http = if bounds.requests.is_none() { &*HTTP_FOR_KNOWN } else { &*HTTP_FOR_STRANGERS };
    let (cut, asked) = (caller.connection.clone(), AtomicU32::new(0));
    let requests = TaskTracker::new();
    requests.close();
    let open = requests.clone();
    let pending = PendingUpgrade::default();
    let upgraded = pending.clone();
    let may_upgrade = bounds.requests.is_none() && matches!(caller.identity, CallerIdentity::Node(_));
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        let too_many = bounds.requests.is_some_and(|most| asked.fetch_add(1, Ordering::Relaxed) >= most);
        if too_many {
            caller.connection.cancel();
        }
        request.extensions_mut().insert(caller.clone());
        let may_be_asked = request.version() == Version::HTTP_11 && request.method() == Method::GET;
        let asked = may_upgrade && may_be_asked && is_asked_for(request.headers());
        let upgrade = asked.then(|| (hyper::upgrade::on(&mut request), ViewUpgrade::default()));
        if let Some((_, view)) = &upgrade {
            request.extensions_mut().insert(view.clone());
        }
        let (router, open, pending) = (router.clone(), open.token(), pending.clone());
        Box::pin(async move {
            let Ok(response) = router.oneshot(request).await;
            if let Some((connection, view)) = upgrade
                && response.status() == StatusCode::SWITCHING_PROTOCOLS
            {
                let view = view.take().map(|view| (connection, view));
                *pending.lock().unwrap_or_else(PoisonError::into_inner) = view;
            }
            // The request counts as open until the last part of its response is sent.
            let response = response.map(|body| {
                body.map_frame(move |frame| {
                    let _ = &open;
                    frame
                })
            });
            Ok::<_, Infallible>(response)
        })
    });
    let mut connection = Box::pin(http.serve_connection_with_upgrades(TokioIo::new(stream), service));
    async move {
        let mut asked_to_stop = false;
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!("connection ended: {error}");
                    }
                    break;
                }
                () = cut.cancelled() => return None,
                () = stopping.cancelled(), if !asked_to_stop => {
                    asked_to_stop = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = idle_for(&requests, IDLE_SHUTDOWN), if asked_to_stop => return None,
            }
        }
        drop(connection);
        let (connection, view) = upgraded.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let parts = auto::upgrade::downcast::<TokioIo<S>>(connection.await.ok()?).ok()?;
        // A part of hyper's buffer would keep the whole buffer in memory.
        let received = Bytes::copy_from_slice(&parts.read_buf);
        Some(UpgradedConnection { stream: parts.io.into_inner(), received, view })
    }
}

/// Returns when no request has been open for this time.
async fn idle_for(requests: &TaskTracker, time: Duration) {
    loop {
        requests.wait().await;
        tokio::time::sleep(time).await;
        if requests.is_empty() {
            return;
        }
    }
}

//! Serving HTTP/2 and HTTP/1.1 on connections, within bounds: whoever is slow, silent or one too
//! many is cut off.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use axum::Router;
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::handshake::{self, Accepted, SILENCE};
use super::places::{CONNECTIONS, Places};
use super::tls::Tls;
use crate::api::caller::{Caller, Identity};
use crate::logs;

/// Time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time for the head of a request.
const HEAD: Duration = Duration::from_secs(10);
/// Life of a connection that has shown no node's certificate.
const STRANGER_LIFETIME: Duration = Duration::from_secs(60);
/// Time in which a connection without a request takes the last of its answers and goes, when the
/// server stops. Who is gone without a word would keep it open until the kernel notices.
const FAREWELL: Duration = Duration::from_secs(1);

/// What one connection may make us keep, and ask of us.
#[derive(Debug)]
pub(super) struct Bounds {
    /// Requests at once, on HTTP/2.
    streams: u32,
    /// Octets of all headers of a request: on HTTP/2 as they are counted in RFC 9113 section 6.5.2,
    /// on HTTP/1.1 with the request line, and 8 KiB at least, which hyper wants.
    head: u32,
    /// Octets of a body that may arrive before they are read, for each stream and for the
    /// connection. (A connection cannot have less than 64 KiB at first: RFC 9113 section 6.9.2.)
    window: (u32, u32),
    /// Octets of answers that wait to be sent, for each stream.
    answer: usize,
    /// Requests in all.
    requests: Option<u32>,
}

/// For nodes and the operator.
pub(super) static KNOWN: Bounds =
    Bounds { streams: 16, head: 16 * 1024, window: (64 * 1024, 256 * 1024), answer: 400 * 1024, requests: None };
/// For who has shown no certificate of a registered node, and has one thing to ask: to join.
static STRANGER: Bounds =
    Bounds { streams: 4, head: 4 * 1024, window: (16 * 1024, 64 * 1024 - 1), answer: 16 * 1024, requests: Some(100) };

/// Connections that a listener has accepted.
#[derive(Clone)]
pub(super) struct Open {
    /// Ends them, when their requests are finished.
    pub(super) stopping: CancellationToken,
    /// What runs for them.
    pub(super) tasks: TaskTracker,
}

/// Lets this process have as many connections as the system allows: the limit that a shell gives is
/// meant for others. Returns how many files may be open then.
pub(super) fn make_room() -> u64 {
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

/// Accepts nodes until it is to close.
pub(super) async fn serve_nodes(
    listener: TcpListener,
    tls: Tls,
    router: Router,
    places: Arc<Places>,
    closing: CancellationToken,
    open: Open,
) {
    loop {
        let accepted = tokio::select! {
            () = closing.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: accepting again at once would spin.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some((mut place, displaced)) = places.take(from.ip(), Instant::now()) else {
            if logs::may_tell_of_stranger() {
                tracing::warn!(%from, "refused: too many connections");
            }
            continue;
        };
        let (tls, router, stopping) = (tls.clone(), router.clone(), open.stopping.clone());
        open.tasks.spawn(async move {
            // Boxed, here and below: ten thousand of these tasks are not to have room for what only
            // some moments need.
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
                        place.is_of(&certificate, &connection);
                        drop((displaced, certificate));
                        serve(stream, caller, &KNOWN, router, stopping).await;
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
                _ if !logs::may_tell_of_stranger() => {}
                Ok(Err(error)) => tracing::info!(%from, "TLS handshake failed: {error}"),
                Err(_) => tracing::info!(%from, "TLS handshake not done within {} s", HANDSHAKE.as_secs()),
            }
            drop(place);
        });
    }
}

/// Who calls on a new connection.
pub(super) fn caller(identity: Identity, address: Option<IpAddr>) -> Caller {
    Caller { identity, address, connection: CancellationToken::new() }
}

/// How HTTP is spoken.
fn http(bounds: &Bounds) -> Builder<TokioExecutor> {
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
        .max_send_buf_size(bounds.answer)
        .max_header_list_size(bounds.head);
    builder
}

static TO_KNOWN: LazyLock<Builder<TokioExecutor>> = LazyLock::new(|| http(&KNOWN));
static TO_STRANGERS: LazyLock<Builder<TokioExecutor>> = LazyLock::new(|| http(&STRANGER));

/// Serves one connection until it ends, is cut, or the server stops: then open requests are
/// finished.
pub(super) fn serve<S>(
    stream: S,
    caller: Caller,
    bounds: &'static Bounds,
    router: Router,
    stopping: CancellationToken,
) -> impl Future<Output = ()> + Send
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let http = if bounds.requests.is_none() { &*TO_KNOWN } else { &*TO_STRANGERS };
    let (cut, asked) = (caller.connection.clone(), AtomicU32::new(0));
    let requests = TaskTracker::new();
    requests.close();
    let open = requests.clone();
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        let too_many = bounds.requests.is_some_and(|most| asked.fetch_add(1, Ordering::Relaxed) >= most);
        if too_many {
            caller.connection.cancel();
        }
        request.extensions_mut().insert(caller.clone());
        let (router, open) = (router.clone(), open.token());
        Box::pin(async move {
            let Ok(response) = router.oneshot(request).await;
            // Open until the last of the answer is handed over.
            let response = response.map(|body| {
                body.map_frame(move |frame| {
                    let _ = &open;
                    frame
                })
            });
            Ok::<_, Infallible>(response)
        })
    });
    let mut connection = Box::pin(http.serve_connection(TokioIo::new(stream), service));
    async move {
        let mut asked_to_stop = false;
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!("connection ended: {error}");
                    }
                    return;
                }
                () = cut.cancelled() => return,
                () = stopping.cancelled(), if !asked_to_stop => {
                    asked_to_stop = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = none_for(&requests, FAREWELL), if asked_to_stop => return,
            }
        }
    }
}

/// Returns when none of these requests has been open for so long.
async fn none_for(requests: &TaskTracker, time: Duration) {
    loop {
        requests.wait().await;
        tokio::time::sleep(time).await;
        if requests.is_empty() {
            return;
        }
    }
}

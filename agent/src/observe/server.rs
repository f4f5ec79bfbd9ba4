//! The HTTP listeners. Clients need no credentials, so the number of connections and their lifetime
//! are limited.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use edge_types::exposition::Exposition;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tracing::Instrument;

use super::observer::Observer;
use super::{metrics, probes};

/// Maximum number of connections of a listener, enough for a few probes and scrapers. If there are
/// more, the oldest one is closed, so that silent connections do not block a probe.
const CONNECTIONS: usize = 16;
/// Maximum lifetime of a connection.
const LIFETIME: Duration = Duration::from_secs(30);
/// Timeout for the head of a request.
const HEAD: Duration = Duration::from_secs(5);
/// Maximum size of a request's head in octets, which is the minimum that hyper allows, and maximum
/// number of headers.
const LONGEST_HEAD: usize = 8 * 1024;
const HEADERS: usize = 64;
/// Delay after accepting a connection failed, for example because too many files are open.
const PAUSE: Duration = Duration::from_millis(100);

/// Delay before the next attempt to listen on an address.
const RETRY: Duration = Duration::from_secs(2);

const TEXT: &str = "text/plain; charset=utf-8";

/// Serves each address. An address that cannot be opened is tried again, because it may not exist
/// yet, and the tunnels must not wait for it.
pub(super) async fn serve(addresses: Vec<SocketAddr>, observer: Arc<Observer>) {
    let mut tasks = JoinSet::new();
    for address in addresses {
        let observer = observer.clone();
        let serve_one = async move { accept(open(address).await, observer).await };
        tasks.spawn(serve_one.in_current_span());
    }
    while tasks.join_next().await.is_some() {}
}

async fn open(address: SocketAddr) -> TcpListener {
    let mut failed = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) if !failed => {
                tracing::error!(%error, "[observe] listen: cannot listen on {address}; retrying every {RETRY:?}");
                failed = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn accept(listener: TcpListener, observer: Arc<Observer>) {
    let mut connections = JoinSet::new();
    let mut oldest_first: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => oldest_first.retain(|connection| !connection.is_finished()),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    if oldest_first.len() >= CONNECTIONS && let Some(oldest) = oldest_first.pop_front() {
                        oldest.abort();
                    }
                    oldest_first.push_back(connections.spawn(serve_connection(stream, observer.clone())));
                }
                Err(error) => {
                    tracing::debug!(%error, "[observe]: no connection");
                    tokio::time::sleep(PAUSE).await;
                }
            },
        }
    }
}

async fn serve_connection(stream: TcpStream, observer: Arc<Observer>) {
    let service = service_fn(move |request| {
        let observer = observer.clone();
        async move { Ok::<_, Infallible>(respond(&request, &observer).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(LONGEST_HEAD).max_headers(HEADERS);
    // Errors are ignored because the client causes them: it closed the connection, or did not send
    // HTTP.
    let _ = tokio::time::timeout(LIFETIME, http.serve_connection(TokioIo::new(stream), service)).await;
}

async fn respond(request: &Request<Incoming>, observer: &Observer) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET and HEAD only\n".into());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/healthz" => probe(probes::healthz(observer).await),
        "/readyz" => probe(probes::readyz(observer).await),
        "/metrics" => match metrics::scrape(observer).await {
            Ok(text) => {
                let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
                let format = Exposition::accepted(accept);
                response(StatusCode::OK, format.media_type(), format.write(text))
            }
            Err(problem) => response(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{problem}\n")),
        },
        _ => response(StatusCode::NOT_FOUND, TEXT, "here are /healthz, /readyz and /metrics\n".into()),
    }
}

fn probe(outcome: Result<String, String>) -> Response<Full<Bytes>> {
    match outcome {
        Ok(text) => response(StatusCode::OK, TEXT, text),
        Err(text) => response(StatusCode::SERVICE_UNAVAILABLE, TEXT, text),
    }
}

fn response(status: StatusCode, media_type: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

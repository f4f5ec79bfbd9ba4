//! Serves the operator's page, which shows the data of `status` in a browser. The page is read-only
//! and uses plain HTTP on a separate loopback listener.
//!
//! - `data`: makes the data for the page.
//! - `assets`: the page itself, with one HTML, one CSS, one script and one icon file, which refer
//!   to no other sites.
//!
//! Anyone who reaches the listener can read the page itself: it contains no data about the network.
//! Access to the data requires the credential of a session ([`PageSessions`]), which only the
//! operator can open. The browser sends the credential in the header Authorization and not in a
//! cookie, so that no other site's page can use it.

mod data;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use edge_controller_domain::page_sessions::PageSessions;
use edge_types::api::{PROBLEM_MEDIA_TYPE, Problem};
use hyper::body::Bytes;
use ring::digest::{SHA256, digest};
use tokio::sync::Mutex;

use crate::api::Overview;
use crate::logs;
use data::PageData;

/// Path of the page on its listener.
pub(crate) const PATH: &str = "/ui/";

/// Time for which the data, once read, is served to all readers, so that many readers cost no more
/// than one.
const SHARED_FOR: Duration = Duration::from_secs(1);

/// Header with the controller's time, in seconds since 1970-01-01 UTC. The time is not part of the
/// data, which would otherwise change every second.
const TIME: HeaderName = HeaderName::from_static("edge-controller-time");

/// The Content-Security-Policy: the resources that the page may load and the pages that may embed
/// it. The page's script makes no HTML from text.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
     require-trusted-types-for 'script'; trusted-types 'none'";

/// Headers of every response.
const HEADERS: [(HeaderName, HeaderValue); 6] = [
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_SECURITY_POLICY)),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
];

#[derive(Clone)]
struct Page {
    overview: Overview,
    sessions: PageSessions,
    /// The data as it was last read.
    latest: Arc<Mutex<Option<Reading>>>,
}

#[derive(Clone)]
struct Reading {
    read_at: Instant,
    json: Bytes,
    /// A strong entity tag (RFC 9110 section 8.8.3).
    tag: HeaderValue,
}

/// Makes the router for the page.
pub(crate) fn router(overview: Overview, sessions: PageSessions) -> Router {
    Router::new()
        .route("/", get(async || Redirect::to(PATH)))
        .route(PATH, get(async || asset("text/html; charset=utf-8", include_str!("assets/page.html"))))
        .route("/ui/page.css", get(async || asset("text/css; charset=utf-8", include_str!("assets/page.css"))))
        .route("/ui/page.js", get(async || asset("text/javascript; charset=utf-8", include_str!("assets/page.js"))))
        .route("/ui/icon.svg", get(async || asset("image/svg+xml", include_str!("assets/icon.svg"))))
        .route("/ui/data", get(data))
        .fallback(async || (StatusCode::NOT_FOUND, "the page is at /ui/\n"))
        .layer(axum::middleware::from_fn(add_headers))
        .with_state(Page { overview, sessions, latest: Arc::default() })
}

fn asset(media: &'static str, text: &'static str) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, media)], text)
}

async fn add_headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response.headers_mut().extend(HEADERS);
    response
}

/// Serves the data to readers with a session. Returns 304 if the reader already has the data.
async fn data(State(page): State<Page>, headers: HeaderMap) -> Response {
    let now = page.overview.now();
    if !credential(&headers).is_some_and(|credential| page.sessions.admits(credential, now)) {
        if logs::may_log_stranger() {
            tracing::info!("refused: the page's data, to a caller without a session");
        }
        return unauthorized();
    }
    let reading = match page.read().await {
        Ok(reading) => reading,
        Err(error) => {
            tracing::error!("cannot write the page's data: {error}");
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
    };
    let known = headers.get_all(header::IF_NONE_MATCH).iter().any(|tag| *tag == reading.tag);
    let about = [(header::ETAG, reading.tag), (TIME, now.into())];
    if known {
        return (StatusCode::NOT_MODIFIED, about).into_response();
    }
    (about, [(header::CONTENT_TYPE, "application/json")], reading.json).into_response()
}

/// Returns the credential in a request (RFC 6750 section 2.1).
fn credential(headers: &HeaderMap) -> Option<&str> {
    let (scheme, credential) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("Bearer").then_some(credential)
}

fn unauthorized() -> Response {
    let problem = Problem {
        kind: "/problems/page-session-required".into(),
        title: "A session of the page is required".into(),
        status: 401,
        detail: "the session has ended, or there was none; `edge-controller page` opens one".into(),
    };
    // Serialising a struct of strings never fails.
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    let headers = [(header::WWW_AUTHENTICATE, "Bearer"), (header::CONTENT_TYPE, PROBLEM_MEDIA_TYPE)];
    (StatusCode::UNAUTHORIZED, headers, body).into_response()
}

impl Page {
    /// Returns the data, which may be as old as [`SHARED_FOR`].
    async fn read(&self) -> serde_json::Result<Reading> {
        let mut latest = self.latest.lock().await;
        if let Some(reading) = latest.as_ref().filter(|reading| reading.read_at.elapsed() < SHARED_FOR) {
            return Ok(reading.clone());
        }
        let json = serde_json::to_vec(&PageData::read(&self.overview).await)?;
        let hash = digest(&SHA256, &json);
        let tag = format!("\"{}\"", edge_controller_domain::ca::hex(hash.as_ref()));
        let tag = HeaderValue::from_str(&tag).map_err(<serde_json::Error as serde::ser::Error>::custom)?;
        Ok(latest.insert(Reading { read_at: Instant::now(), json: json.into(), tag }).clone())
    }
}

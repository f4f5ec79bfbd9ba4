//! Connections to the controller, and requests on them. `controller_choice` chooses the controller.
//!
//! All requests but those of the view share one HTTP/2 connection. It is opened when a request
//! needs it, and closed when it is idle. The view has a connection of its own, which begins with
//! HTTP/1.1 and can leave HTTP (`view_connection`). If the controller does not upgrade it, the view
//! is followed on the HTTP/2 connection.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use edge_types::api::{PROBLEM_MEDIA_TYPE, Problem};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, DATE, HOST, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode, Uri};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tracing::debug;
use zeroize::Zeroizing;

use super::controller_choice::ControllerChoice;
use super::error::ControllerError;
use super::guard_bypass::GuardBypass;
use super::http_connection::{Connection, PING_INTERVAL, http1_connection, http2_connection};
use super::http_error::{hyper_error, io_error, is_other_protocol, tls_error};
use crate::clock::CertificateClock;

/// Timeout for the TCP and TLS handshakes together, for each address of a controller.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Timeout of a request, up to the response's headers. Reading the response's body has a timeout of
/// the same length.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Time after the last request after which the shared connection is closed.
const IDLE: Duration = Duration::from_secs(10);
/// Maximum size of a response body that is read as a whole, in bytes.
const MAX_RESPONSE: usize = 4 * 1024 * 1024;

/// Whether a change of this node's identity closes the connection to the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reconnect {
    /// No: the certificate is the same. If a thousand nodes receive new trust anchors, they must
    /// not all reconnect at once.
    No,
    /// Yes: the next connection presents the new certificate.
    Yes,
}

/// Sends requests to the first of several controllers that accepts a connection.
#[derive(Debug)]
pub(super) struct HttpClient {
    clock: Arc<CertificateClock>,
    bypass: Arc<GuardBypass>,
    tls: Mutex<Arc<ClientConfig>>,
    /// Locked while connecting, so that two simultaneous requests open one connection.
    active: Arc<tokio::sync::Mutex<Active>>,
}

#[derive(Debug)]
struct Active {
    /// The open connection that requests share.
    connection: Option<Connection>,
    choice: ControllerChoice,
}

/// The version of HTTP with which a connection begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HttpVersion {
    Http1,
    Http2,
}

impl HttpClient {
    /// Creates a client for the controllers at `urls`, without connecting. Fails if one of the URLs
    /// is not an `https://` URL with a host.
    pub(super) fn new(
        urls: &[String],
        tls: ClientConfig,
        clock: Arc<CertificateClock>,
        bypass: Arc<GuardBypass>,
    ) -> Result<Self, ControllerError> {
        let active = Active { connection: None, choice: ControllerChoice::new(urls)? };
        let active = Arc::new(tokio::sync::Mutex::new(active));
        Ok(Self { clock, bypass, tls: Mutex::new(Arc::new(tls)), active })
    }

    /// Returns the clock that learns the controller's time from its responses.
    pub(super) fn clock(&self) -> Arc<CertificateClock> {
        self.clock.clone()
    }

    /// Uses `tls` for new connections from now on.
    pub(super) async fn use_tls(&self, tls: ClientConfig, reconnect: Reconnect) {
        *self.tls.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(tls);
        if reconnect == Reconnect::Yes {
            self.disconnect().await;
        }
    }

    /// Stops using the current connection, because it is dead or authenticates with an old
    /// certificate.
    pub(super) async fn disconnect(&self) {
        self.active.lock().await.connection = None;
    }

    /// Makes the next connection go to the controller after `url`, because the controller at `url`
    /// failed or shuts down. If only one controller is configured, the next connection goes to the
    /// same one.
    pub(super) async fn try_next_after(&self, url: &Uri) {
        let mut active = self.active.lock().await;
        active.connection.take_if(|connection| connection.url == *url);
        active.choice.failed(url);
    }

    /// Returns the open connection that requests share, or opens one.
    pub(super) async fn connection(&self) -> Result<Connection, ControllerError> {
        let mut active = self.active.lock().await;
        if let Some(connection) = active.connection.as_ref().filter(|connection| !connection.is_closed()) {
            connection.uses.fetch_add(1, Ordering::Relaxed);
            return Ok(connection.clone());
        }
        if let Some(broken) = active.connection.take() {
            active.choice.failed(&broken.url);
        }
        let new = self.open(&mut active, HttpVersion::Http2).await?;
        Ok(active.connection.insert(new).clone())
    }

    /// Opens a connection for the view, with HTTP/1.1. Where the controller does not speak that,
    /// returns the HTTP/2 connection that requests share.
    pub(super) async fn view_connection(&self) -> Result<Connection, ControllerError> {
        let mut active = self.active.lock().await;
        let new = self.open(&mut active, HttpVersion::Http1).await?;
        if new.is_http2() {
            active.connection = Some(new.clone());
        }
        Ok(new)
    }

    /// Opens a connection to the first controller that accepts one.
    async fn open(&self, active: &mut Active, version: HttpVersion) -> Result<Connection, ControllerError> {
        let mut failure = None;
        let urls = active.choice.in_order();
        for url in &urls {
            match self.connect(url, version).await {
                Ok(new) => {
                    active.choice.connected(url);
                    debug!(%url, local = %new.local, "connected to the controller");
                    return Ok(new);
                }
                Err(error) => {
                    if urls.len() > 1 {
                        debug!(%error, "trying the next controller");
                    }
                    // An error that the operator must resolve takes precedence over a temporary
                    // error.
                    if failure.as_ref().is_none_or(ControllerError::is_temporary) {
                        failure = Some(error);
                    }
                }
            }
        }
        Err(failure.unwrap_or_else(|| ControllerError::Unacceptable("[controller]: urls is empty".into())))
    }

    /// Closes the shared connection when no request has used it for a while, and no stream uses it.
    fn close_when_idle(&self, connection: &Connection) {
        // A client that is dropped closes its connection at once.
        let (active, used) = (Arc::downgrade(&self.active), connection.uses.load(Ordering::Relaxed));
        let this = Arc::downgrade(&connection.uses);
        tokio::spawn(async move {
            sleep(IDLE).await;
            let Some(active) = active.upgrade() else { return };
            active.lock().await.connection.take_if(|connection| {
                let is_this = this.ptr_eq(&Arc::downgrade(&connection.uses));
                let unused = connection.uses.load(Ordering::Relaxed) == used;
                // One that is broken stays: the next request then tries another controller.
                is_this && unused && !connection.is_closed() && Arc::strong_count(&connection.uses) == 1
            });
        });
    }

    async fn connect(&self, url: &Uri, version: HttpVersion) -> Result<Connection, ControllerError> {
        let unreachable = |why: String| ControllerError::Unreachable { url: url.to_string(), why };
        let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = url.port_u16().unwrap_or(443);
        let name = ServerName::try_from(host.clone())
            .map_err(|_| unreachable(format!("{host:?} is neither a DNS name nor an address")))?;
        let addresses: Vec<SocketAddr> = timeout(CONNECT_TIMEOUT, tokio::net::lookup_host((host.as_str(), port)))
            .await
            .map_err(|_| unreachable(format!("looking up {host:?} takes too long")))?
            .map_err(|error| unreachable(format!("looking up {host:?}: {error}")))?
            .collect();
        self.bypass.record_lookup(&host, &addresses);
        let mut failure = unreachable(format!("{host:?} has no address"));
        for address in addresses {
            let error = match timeout(CONNECT_TIMEOUT, self.connect_to(url, address, name.clone(), version)).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => error,
                Err(_) => unreachable(format!("{address} did not answer within {CONNECT_TIMEOUT:?}")),
            };
            // An error that the operator must resolve takes precedence over a temporary error.
            if failure.is_temporary() {
                failure = error;
            }
        }
        Err(failure)
    }

    async fn connect_to(
        &self,
        url: &Uri,
        address: SocketAddr,
        name: ServerName<'static>,
        version: HttpVersion,
    ) -> Result<Connection, ControllerError> {
        let failed = |error: io::Error| {
            tls_error(url, &error).unwrap_or_else(|| ControllerError::Unreachable {
                url: url.to_string(),
                why: format!("{address}: {error}"),
            })
        };
        let tls_failed = |error| match failed(error) {
            // With TLS 1.3 a controller judges this node's certificate after the handshake. An
            // alert during it is not authenticated, so it says nothing about the certificate.
            ControllerError::CertificateRefused { url, alert } => {
                ControllerError::Unreachable { url, why: format!("TLS: {alert:?} during the handshake") }
            }
            error => error,
        };
        if version == HttpVersion::Http1 {
            let (local, tcp) = self.connect_tcp(address).await.map_err(failed)?;
            match self.secure(tcp, name.clone(), b"http/1.1").await {
                Ok(stream) => return http1_connection(url, local, stream).await,
                Err(error) if is_other_protocol(&error) => {
                    debug!(%url, "the controller does not speak HTTP/1.1; the view is followed by HTTP/2");
                }
                Err(error) => return Err(tls_failed(error)),
            }
        }
        let (local, tcp) = self.connect_tcp(address).await.map_err(failed)?;
        http2_connection(url, local, self.secure(tcp, name, b"h2").await.map_err(tls_failed)?).await
    }

    /// Opens a TCP connection. Returns it with this node's address on it.
    async fn connect_tcp(&self, address: SocketAddr) -> io::Result<(IpAddr, TcpStream)> {
        let tcp = self.bypass.connect(address).await?;
        tcp.set_nodelay(true)?;
        // If data stays unacknowledged for this long, the uplink counts as lost.
        let user_timeout = u32::try_from((2 * PING_INTERVAL).as_millis()).unwrap_or(u32::MAX);
        rustix::net::sockopt::set_tcp_user_timeout(&tcp, user_timeout)?;
        Ok((tcp.local_addr()?.ip(), tcp))
    }

    /// Performs the TLS handshake, and offers one protocol (ALPN).
    async fn secure(
        &self,
        tcp: TcpStream,
        name: ServerName<'static>,
        protocol: &[u8],
    ) -> io::Result<TlsStream<TcpStream>> {
        let mut tls = self.tls.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Arc::make_mut(&mut tls).alpn_protocols = vec![protocol.to_vec()];
        TlsConnector::from(tls).connect(name, tcp).await
    }

    /// Sends a request and reads the whole response.
    pub(super) async fn call<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<A, ControllerError> {
        let connection = self.connection().await?;
        let result = self.call_on(&connection, method, path, body).await;
        self.close_when_idle(&connection);
        result
    }

    /// Sends a request as [`Self::call`] does, on the given connection.
    pub(super) async fn call_on<A: DeserializeOwned>(
        &self,
        connection: &Connection,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<A, ControllerError> {
        let response =
            self.send(connection, method, path, Some(serde_json::to_vec(body).unwrap_or_default()), None).await?;
        let bytes = read_whole(connection, response).await?;
        // An empty body deserialises as `()`.
        let bytes: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
        serde_json::from_slice(bytes).map_err(|error| ControllerError::UnexpectedResponse {
            url: connection.url.to_string(),
            received: format!("{} bytes ({error})", bytes.len()),
            expected: std::any::type_name::<A>().rsplit("::").next().unwrap_or("JSON"),
        })
    }

    /// Sends a GET request and returns the response's body, which has not been read yet.
    pub(super) async fn stream(&self, connection: &Connection, path: &str) -> Result<Incoming, ControllerError> {
        Ok(self.send(connection, Method::GET, path, None, None).await?.into_body())
    }

    /// Sends a GET request that asks for this protocol instead of HTTP (RFC 9110 7.8). Returns the
    /// connection after it has left HTTP; `None` if the other end does not do that, although it has
    /// nothing against the request itself.
    pub(super) async fn upgrade(
        &self,
        connection: &Connection,
        path: &str,
        protocol: &'static str,
    ) -> Result<Option<Upgraded>, ControllerError> {
        if connection.is_http2() {
            return Ok(None);
        }
        let response = match self.send(connection, Method::GET, path, None, Some(protocol)).await {
            Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => response,
            // An unexpected response is not one of a controller.
            Ok(_) | Err(ControllerError::UnexpectedResponse { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        match timeout(REQUEST_TIMEOUT, hyper::upgrade::on(response)).await {
            Ok(upgraded) => upgraded.map(Some).map_err(|error| hyper_error(&connection.url, &error)),
            Err(_) => Err(io_error(&connection.url, &io::ErrorKind::TimedOut.into())),
        }
    }

    async fn send(
        &self,
        connection: &Connection,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        upgrade: Option<&'static str>,
    ) -> Result<Response<Incoming>, ControllerError> {
        let body = Zeroizing::new(body.unwrap_or_default());
        let url = &connection.url;
        let authority = url.authority().map_or("", |authority| authority.as_str());
        let mut request = Request::builder().method(method).header(CONTENT_TYPE, "application/json");
        let mut uri = Uri::builder().path_and_query(path);
        if connection.is_http2() {
            uri = uri.scheme("https").authority(authority);
        } else {
            request = request.header(HOST, authority);
        }
        if let Some(protocol) = upgrade {
            request = request.header(CONNECTION, "upgrade").header(UPGRADE, protocol);
        }
        let body = Full::new(Bytes::copy_from_slice(&body));
        let request = uri.build().and_then(|uri| request.uri(uri).body(body));
        let request = request.map_err(|error| ControllerError::Unacceptable(format!("{path}: {error}")))?;
        let response = match timeout(REQUEST_TIMEOUT, connection.send(request)).await {
            Ok(response) => response?,
            Err(_) => {
                self.disconnect().await;
                return Err(ControllerError::Unreachable {
                    url: url.to_string(),
                    why: format!("no response to {path} within {REQUEST_TIMEOUT:?}"),
                });
            }
        };
        if let Some(date) = response.headers().get(DATE).and_then(|date| date.to_str().ok()).and_then(http_date) {
            self.clock.controller_said(date);
        }
        let switches = upgrade.is_some() && response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if response.status().is_success() || switches {
            return Ok(response);
        }
        let status = response.status();
        let is_problem = response
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(PROBLEM_MEDIA_TYPE.as_bytes()));
        let bytes = read_whole(connection, response).await?;
        match serde_json::from_slice::<Problem>(&bytes) {
            Ok(problem) if is_problem => Err(ControllerError::Problem(problem)),
            _ => Err(ControllerError::UnexpectedResponse {
                url: url.to_string(),
                received: format!("{status} to {path}"),
                expected: "a problem document",
            }),
        }
    }
}

async fn read_whole(connection: &Connection, response: Response<Incoming>) -> Result<Bytes, ControllerError> {
    let why = match timeout(REQUEST_TIMEOUT, Limited::new(response.into_body(), MAX_RESPONSE).collect()).await {
        Ok(Ok(body)) => return Ok(body.to_bytes()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("the response did not end within {REQUEST_TIMEOUT:?}"),
    };
    Err(ControllerError::Unreachable { url: connection.url.to_string(), why })
}

/// Reads an IMF-fixdate (RFC 9110 5.6.7), e.g. `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(text: &str) -> Option<u64> {
    let format = time::macros::format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    let time = time::PrimitiveDateTime::parse(text, format).ok()?;
    u64::try_from(time.assume_utc().unix_timestamp()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_controllers_date_is_read() {
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(http_date("yesterday"), None);
    }
}

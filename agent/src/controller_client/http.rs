//! One HTTP/2 connection to the controller, which all requests share. It is opened when a request
//! needs it, and opened again after it breaks. `controller_choice` chooses the controller.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use edge_types::api::{PROBLEM_MEDIA_TYPE, Problem};
use edge_types::error::with_causes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, DATE};
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::{AlertDescription, CertificateError, ClientConfig};
use rustls_pki_types::ServerName;
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tracing::{Instrument, debug, warn};
use zeroize::Zeroizing;

use super::controller_choice::ControllerChoice;
use super::error::ControllerError;
use super::guard_bypass::GuardBypass;
use super::tls::CertificateRejected;
use crate::clock::CertificateClock;

/// Timeout for the TCP and TLS handshakes together, for each address of a controller.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Timeout of a request, up to the response's headers. Reading the response's body has a timeout of
/// the same length.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Time without traffic after which an HTTP/2 PING is sent. If it is not acknowledged within the
/// same time, the connection is closed.
const PING_INTERVAL: Duration = Duration::from_secs(5);
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
    active: tokio::sync::Mutex<Active>,
}

#[derive(Debug)]
struct Active {
    /// The open connection.
    connection: Option<Connection>,
    choice: ControllerChoice,
}

/// An open connection.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    /// The controller's URL.
    pub(super) url: Uri,
    /// This node's address on the TCP connection.
    pub(super) local: IpAddr,
    sender: SendRequest<Full<Bytes>>,
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
        Ok(Self { clock, bypass, tls: Mutex::new(Arc::new(tls)), active: tokio::sync::Mutex::new(active) })
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

    /// Returns the open connection, or opens one.
    pub(super) async fn connection(&self) -> Result<Connection, ControllerError> {
        let mut active = self.active.lock().await;
        if let Some(connection) = active.connection.as_ref().filter(|connection| !connection.sender.is_closed()) {
            return Ok(connection.clone());
        }
        if let Some(broken) = active.connection.take() {
            active.choice.failed(&broken.url);
        }
        let mut failure = None;
        let urls = active.choice.in_order();
        for url in &urls {
            match self.connect(url).await {
                Ok(new) => {
                    active.choice.connected(url);
                    debug!(%url, local = %new.local, "connected to the controller");
                    return Ok(active.connection.insert(new).clone());
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

    async fn connect(&self, url: &Uri) -> Result<Connection, ControllerError> {
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
            let error = match timeout(CONNECT_TIMEOUT, self.connect_to(url, address, name.clone())).await {
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
    ) -> Result<Connection, ControllerError> {
        let failed = |error: io::Error| {
            tls_error(url, &error).unwrap_or_else(|| ControllerError::Unreachable {
                url: url.to_string(),
                why: format!("{address}: {error}"),
            })
        };
        let tcp = self.bypass.connect(address).await.map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        // If data stays unacknowledged for this long, the uplink counts as lost.
        let user_timeout = u32::try_from((2 * PING_INTERVAL).as_millis()).unwrap_or(u32::MAX);
        rustix::net::sockopt::set_tcp_user_timeout(&tcp, user_timeout).map_err(|error| failed(error.into()))?;
        let local = tcp.local_addr().map_err(failed)?.ip();
        let tls = self.tls.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // With TLS 1.3 a controller judges this node's certificate after the handshake. An alert
        // during it is not authenticated, so it says nothing about the certificate.
        let stream = TlsConnector::from(tls).connect(name, tcp).await.map_err(|error| match failed(error) {
            ControllerError::CertificateRefused { url, alert } => {
                ControllerError::Unreachable { url, why: format!("TLS: {alert:?} during the handshake") }
            }
            error => error,
        })?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_INTERVAL)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| hyper_error(url, &error))?;
        // Completes when the last sender and stream are dropped, or when the connection breaks;
        // pending requests then fail with the error.
        let until_it_ends = async move {
            if let Err(error) = connection.await {
                debug!(error = with_causes(&error), "connection to the controller ended");
            }
        };
        tokio::spawn(until_it_ends.in_current_span());
        Ok(Connection { url: url.clone(), local, sender })
    }

    /// Sends a request and reads the whole response.
    pub(super) async fn call<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<A, ControllerError> {
        let connection = self.connection().await?;
        self.call_on(&connection, method, path, body).await
    }

    /// Sends a request as [`Self::call`] does, on the given connection.
    pub(super) async fn call_on<A: DeserializeOwned>(
        &self,
        connection: &Connection,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<A, ControllerError> {
        let response = self.send(connection, method, path, Some(serde_json::to_vec(body).unwrap_or_default())).await?;
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
        Ok(self.send(connection, Method::GET, path, None).await?.into_body())
    }

    async fn send(
        &self,
        connection: &Connection,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Response<Incoming>, ControllerError> {
        let body = Zeroizing::new(body.unwrap_or_default());
        let url = &connection.url;
        let uri = Uri::builder()
            .scheme("https")
            .authority(url.authority().map_or("", |authority| authority.as_str()))
            .path_and_query(path)
            .build();
        let request = uri.and_then(|uri| {
            Request::builder()
                .method(method)
                .uri(uri)
                .header(CONTENT_TYPE, "application/json")
                .body(Full::new(Bytes::copy_from_slice(&body)))
        });
        let request = request.map_err(|error| ControllerError::Unacceptable(format!("{path}: {error}")))?;
        let mut sender = connection.sender.clone();
        let response = timeout(REQUEST_TIMEOUT, async {
            sender.ready().await?;
            sender.send_request(request).await
        });
        let response = match response.await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(hyper_error(url, &error)),
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
        if response.status().is_success() {
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

/// Returns the error for a broken connection or stream, with the TLS error if TLS is the cause.
pub(super) fn hyper_error(url: &Uri, error: &hyper::Error) -> ControllerError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if let Some(found) = cause.downcast_ref::<io::Error>().and_then(|io| tls_error(url, io)) {
            return found;
        }
        source = cause.source();
    }
    ControllerError::Unreachable { url: url.to_string(), why: with_causes(error) }
}

/// Returns the error for a failed TLS handshake; `None` if TLS is not the cause.
fn tls_error(url: &Uri, error: &io::Error) -> Option<ControllerError> {
    let tls = tls_cause(error)?;
    let url = url.to_string();
    Some(match tls {
        rustls::Error::InvalidCertificate(CertificateError::Other(other)) => {
            let why = other
                .0
                .downcast_ref::<CertificateRejected>()
                .map_or_else(|| other.to_string(), CertificateRejected::to_string);
            ControllerError::Untrusted { url, why }
        }
        rustls::Error::InvalidCertificate(error) => ControllerError::Untrusted { url, why: error.to_string() },
        rustls::Error::AlertReceived(
            alert @ (AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired),
        ) => ControllerError::CertificateRefused { url, alert: *alert },
        other => {
            warn!(%url, error = %other, "TLS with the controller failed");
            ControllerError::Unreachable { url, why: format!("TLS: {other}") }
        }
    })
}

/// Returns the rustls error inside nested I/O errors.
fn tls_cause(error: &io::Error) -> Option<&rustls::Error> {
    let inner = error.get_ref()?;
    inner.downcast_ref::<rustls::Error>().or_else(|| tls_cause(inner.downcast_ref::<io::Error>()?))
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

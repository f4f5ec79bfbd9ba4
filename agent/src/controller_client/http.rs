//! One HTTP/2 connection to the controller, made when it is needed, used by all, replaced when it
//! breaks.

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
use tracing::{debug, warn};
use zeroize::Zeroizing;

use super::error::CloudError;
use super::guard_bypass::Path;
use super::tls::Distrust;
use crate::clock::WorldClock;

/// For TCP and TLS together, per address of a controller.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// For a request and its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// An HTTP/2 PING is sent after this much silence, and answered within as much, or the connection
/// is dead.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// Largest answer that is read as a whole, bytes.
const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// The way to the controllers.
#[derive(Debug)]
pub(super) struct Client {
    urls: Vec<Uri>,
    clock: Arc<WorldClock>,
    path: Arc<Path>,
    tls: Mutex<Arc<ClientConfig>>,
    /// Held while connecting, so that two who need a connection make one.
    way: tokio::sync::Mutex<Way>,
}

#[derive(Debug, Default)]
struct Way {
    /// The connection in use.
    link: Option<Link>,
    /// Which of `urls` is tried first: the one in use, or after it failed or said goodbye the one
    /// behind it.
    first: usize,
}

/// A connection that lives.
#[derive(Debug, Clone)]
pub(super) struct Link {
    /// Which controller.
    pub(super) url: Uri,
    /// This node's address on it.
    pub(super) local: IpAddr,
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    /// Connects to the first of `urls` that answers, when asked to; later to that one again as long
    /// as it lives.
    pub(super) fn new(
        urls: &[String],
        tls: ClientConfig,
        clock: Arc<WorldClock>,
        path: Arc<Path>,
    ) -> Result<Self, CloudError> {
        let urls = urls
            .iter()
            .map(|text| match text.parse::<Uri>() {
                Ok(uri) if uri.host().is_some() && uri.scheme_str() == Some("https") => Ok(uri),
                _ => Err(CloudError::Unacceptable(format!("[controller]: {text:?} is not a URL https://HOST:PORT"))),
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self { urls, clock, path, tls: Mutex::new(Arc::new(tls)), way: tokio::sync::Mutex::default() })
    }

    /// From now on new connections prove this node's identity by `tls`.
    pub(super) async fn use_tls(&self, tls: ClientConfig, present: super::Connection) {
        *self.tls.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(tls);
        if present == super::Connection::Anew {
            self.reset().await;
        }
    }

    /// Does not use the present connection for new requests: it is known to be dead or outdated.
    pub(super) async fn reset(&self) {
        self.way.lock().await.link = None;
    }

    /// A controller has failed, or ends and has said so: the next connection goes to another one,
    /// if there is another.
    pub(super) async fn leave(&self, url: &Uri) {
        let mut way = self.way.lock().await;
        way.link.take_if(|link| link.url == *url);
        way.first = self.behind(url);
    }

    fn behind(&self, url: &Uri) -> usize {
        self.urls.iter().position(|other| other == url).map_or(0, |index| (index + 1) % self.urls.len())
    }

    /// The present connection, or a new one.
    pub(super) async fn link(&self) -> Result<Link, CloudError> {
        let mut way = self.way.lock().await;
        if let Some(link) = way.link.as_ref().filter(|link| !link.sender.is_closed()) {
            return Ok(link.clone());
        }
        if let Some(broken) = way.link.take() {
            way.first = self.behind(&broken.url);
        }
        let mut failure = None;
        for (index, url) in self.urls.iter().enumerate().cycle().skip(way.first).take(self.urls.len()) {
            match self.connect(url).await {
                Ok(new) => {
                    way.first = index;
                    debug!(%url, local = %new.local, "connected to the controller");
                    return Ok(way.link.insert(new).clone());
                }
                Err(error) => {
                    if self.urls.len() > 1 {
                        debug!(%error, "trying the next controller");
                    }
                    // What needs a person is worth more than one more "connection refused".
                    if failure.as_ref().is_none_or(CloudError::is_temporary) {
                        failure = Some(error);
                    }
                }
            }
        }
        Err(failure.unwrap_or_else(|| CloudError::Unacceptable("[controller]: urls is empty".into())))
    }

    async fn connect(&self, url: &Uri) -> Result<Link, CloudError> {
        let unreachable = |why: String| CloudError::Unreachable { url: url.to_string(), why };
        let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = url.port_u16().unwrap_or(443);
        let name = ServerName::try_from(host.clone())
            .map_err(|_| unreachable(format!("{host:?} is neither a DNS name nor an address")))?;
        let addresses: Vec<SocketAddr> = timeout(CONNECT_TIMEOUT, tokio::net::lookup_host((host.as_str(), port)))
            .await
            .map_err(|_| unreachable(format!("looking up {host:?} takes too long")))?
            .map_err(|error| unreachable(format!("looking up {host:?}: {error}")))?
            .collect();
        self.path.found(&host, &addresses);
        let mut failure = unreachable(format!("{host:?} has no address"));
        for address in addresses {
            let error = match timeout(CONNECT_TIMEOUT, self.connect_to(url, address, name.clone())).await {
                Ok(Ok(link)) => return Ok(link),
                Ok(Err(error)) => error,
                Err(_) => unreachable(format!("{address} did not answer within {CONNECT_TIMEOUT:?}")),
            };
            // As between several controllers: what needs a person is not hidden by one more address
            // that does not answer.
            if failure.is_temporary() {
                failure = error;
            }
        }
        Err(failure)
    }

    async fn connect_to(&self, url: &Uri, address: SocketAddr, name: ServerName<'static>) -> Result<Link, CloudError> {
        let failed = |error: io::Error| {
            tls_error(url, &error)
                .unwrap_or_else(|| CloudError::Unreachable { url: url.to_string(), why: format!("{address}: {error}") })
        };
        let tcp = self.path.connect(address).await.map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        // What was sent and is not acknowledged for so long never will be: the uplink is gone.
        let user_timeout = u32::try_from((2 * PING_INTERVAL).as_millis()).unwrap_or(u32::MAX);
        rustix::net::sockopt::set_tcp_user_timeout(&tcp, user_timeout).map_err(|error| failed(error.into()))?;
        let local = tcp.local_addr().map_err(failed)?.ip();
        let tls = self.tls.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let stream = TlsConnector::from(tls).connect(name, tcp).await.map_err(failed)?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_INTERVAL)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| hyper_error(url, &error))?;
        // Ends when the last request handle and stream are gone, or the connection breaks; who
        // waits on it gets the error.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(error = with_causes(&error), "connection to the controller ended");
            }
        });
        Ok(Link { url: url.clone(), local, sender })
    }

    /// Asks for something and reads the answer as a whole.
    pub(super) async fn call<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<A, CloudError> {
        let link = self.link().await?;
        self.call_on(&link, method, path, body).await
    }

    /// As [`Self::call`], on a connection that the caller holds.
    pub(super) async fn call_on<A: DeserializeOwned>(
        &self,
        link: &Link,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<A, CloudError> {
        let response = self.send(link, method, path, Some(serde_json::to_vec(body).unwrap_or_default())).await?;
        let bytes = read_whole(link, response).await?;
        // An answer without content stands for `()`.
        let bytes: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
        serde_json::from_slice(bytes).map_err(|error| CloudError::Answer {
            url: link.url.to_string(),
            what: format!("{} bytes ({error})", bytes.len()),
            expected: std::any::type_name::<A>().rsplit("::").next().unwrap_or("JSON"),
        })
    }

    /// Asks for a stream.
    pub(super) async fn stream(&self, link: &Link, path: &str) -> Result<Incoming, CloudError> {
        Ok(self.send(link, Method::GET, path, None).await?.into_body())
    }

    async fn send(
        &self,
        link: &Link,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Response<Incoming>, CloudError> {
        let body = Zeroizing::new(body.unwrap_or_default());
        let url = &link.url;
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
        let request = request.map_err(|error| CloudError::Unacceptable(format!("{path}: {error}")))?;
        let mut sender = link.sender.clone();
        let answer = timeout(REQUEST_TIMEOUT, async {
            sender.ready().await?;
            sender.send_request(request).await
        });
        let response = match answer.await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(hyper_error(url, &error)),
            Err(_) => {
                self.reset().await;
                return Err(CloudError::Unreachable {
                    url: url.to_string(),
                    why: format!("no answer to {path} within {REQUEST_TIMEOUT:?}"),
                });
            }
        };
        if let Some(date) = response.headers().get(DATE).and_then(|date| date.to_str().ok()).and_then(http_date) {
            self.clock.raise(date);
        }
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let is_problem = response
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(PROBLEM_MEDIA_TYPE.as_bytes()));
        let bytes = read_whole(link, response).await?;
        match serde_json::from_slice::<Problem>(&bytes) {
            Ok(problem) if is_problem => Err(CloudError::Problem(problem)),
            _ => Err(CloudError::Answer {
                url: url.to_string(),
                what: format!("{status} to {path}"),
                expected: "a problem document",
            }),
        }
    }
}

async fn read_whole(link: &Link, response: Response<Incoming>) -> Result<Bytes, CloudError> {
    let why = match timeout(REQUEST_TIMEOUT, Limited::new(response.into_body(), MAX_ANSWER).collect()).await {
        Ok(Ok(body)) => return Ok(body.to_bytes()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("the answer did not end within {REQUEST_TIMEOUT:?}"),
    };
    Err(CloudError::Unreachable { url: link.url.to_string(), why })
}

/// What a broken connection or stream means.
pub(super) fn hyper_error(url: &Uri, error: &hyper::Error) -> CloudError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if let Some(found) = cause.downcast_ref::<io::Error>().and_then(|io| tls_error(url, io)) {
            return found;
        }
        source = cause.source();
    }
    CloudError::Unreachable { url: url.to_string(), why: with_causes(error) }
}

/// What a TLS failure means; `None` where it is none.
fn tls_error(url: &Uri, error: &io::Error) -> Option<CloudError> {
    let tls = tls_cause(error)?;
    let url = url.to_string();
    Some(match tls {
        rustls::Error::InvalidCertificate(CertificateError::Other(other)) => {
            let why = other.0.downcast_ref::<Distrust>().map_or_else(|| other.to_string(), Distrust::to_string);
            CloudError::Untrusted { url, why }
        }
        rustls::Error::InvalidCertificate(error) => CloudError::Untrusted { url, why: error.to_string() },
        rustls::Error::AlertReceived(
            alert @ (AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired),
        ) => CloudError::CertificateRefused { url, why: format!("{alert:?}") },
        other => {
            warn!(%url, error = %other, "TLS with the controller failed");
            CloudError::Unreachable { url, why: format!("TLS: {other}") }
        }
    })
}

/// rustls' error, however deep I/O errors wrap it.
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

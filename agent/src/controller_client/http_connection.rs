//! A connection to the controller with HTTP/1.1 or HTTP/2.

use std::error::Error as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use edge_types::error::with_causes;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tracing::{Instrument, debug};

use super::error::ControllerError;
use super::http_error::hyper_error;

/// Time without traffic after which a PING is sent. If it is not acknowledged within the same time,
/// the connection is closed.
pub(super) const PING_INTERVAL: Duration = Duration::from_secs(5);
/// Time limit for the reason why a connection ended to become known.
const END_KNOWN: Duration = Duration::from_secs(1);

/// An open connection.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    /// The controller's URL.
    pub(super) url: Uri,
    /// This node's address on the TCP connection.
    pub(super) local: IpAddr,
    sender: Sender,
    /// Number of times that this connection was given out.
    pub(super) uses: Arc<AtomicU64>,
}

#[derive(Debug, Clone)]
enum Sender {
    Http1 {
        sender: Arc<Mutex<http1::SendRequest<Full<Bytes>>>>,
        /// The error with which the connection ended. hyper does not give it to later requests.
        ended: watch::Receiver<Option<Arc<hyper::Error>>>,
    },
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Connection {
    fn new(url: &Uri, local: IpAddr, sender: Sender) -> Self {
        Self { url: url.clone(), local, sender, uses: Arc::default() }
    }

    /// Returns whether requests and streams can share this connection.
    pub(super) fn is_http2(&self) -> bool {
        matches!(self.sender, Sender::Http2(_))
    }

    /// Returns whether the connection has ended.
    pub(super) fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::Http1 { ended, .. } => ended.borrow().is_some(),
            Sender::Http2(sender) => sender.is_closed(),
        }
    }

    /// Sends a request. Returns the response, of which only the head has arrived.
    pub(super) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, ControllerError> {
        let (sent, ended) = match &self.sender {
            Sender::Http2(sender) => {
                let mut sender = sender.clone();
                let send = async {
                    sender.ready().await?;
                    sender.send_request(request).await
                };
                (send.await, None)
            }
            Sender::Http1 { sender, ended } => {
                let mut sender = sender.lock().await;
                let send = async {
                    sender.ready().await?;
                    sender.send_request(request).await
                };
                (send.await, Some(ended.clone()))
            }
        };
        let error = match sent {
            Ok(response) => return Ok(response),
            Err(error) => Arc::new(error),
        };
        let cause = async {
            let mut ended = ended.filter(|_| error.source().is_none())?;
            let known = timeout(END_KNOWN, ended.wait_for(Option::is_some)).await.ok()?.ok()?;
            known.clone()
        };
        Err(hyper_error(&self.url, &cause.await.unwrap_or(error)))
    }
}

/// Begins HTTP/1.1 on a connection.
pub(super) async fn http1_connection(
    url: &Uri,
    local: IpAddr,
    stream: TlsStream<TcpStream>,
) -> Result<Connection, ControllerError> {
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (sender, connection) = handshake.map_err(|error| hyper_error(url, &error))?;
    let (ends, ended) = watch::channel(None);
    // Completes when the sender is dropped, or when the connection breaks or leaves HTTP.
    let until_it_ends = async move {
        if let Err(error) = connection.with_upgrades().await {
            debug!(error = with_causes(&error), "connection to the controller ended");
            ends.send_replace(Some(Arc::new(error)));
        }
    };
    tokio::spawn(until_it_ends.in_current_span());
    let sender = Arc::new(Mutex::new(sender));
    Ok(Connection::new(url, local, Sender::Http1 { sender, ended }))
}

/// Begins HTTP/2 on a connection.
pub(super) async fn http2_connection(
    url: &Uri,
    local: IpAddr,
    stream: TlsStream<TcpStream>,
) -> Result<Connection, ControllerError> {
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_INTERVAL)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| hyper_error(url, &error))?;
    // Completes when the last sender and stream are dropped, or when the connection breaks; pending
    // requests then fail with the error.
    let until_it_ends = async move {
        if let Err(error) = connection.await {
            debug!(error = with_causes(&error), "connection to the controller ended");
        }
    };
    tokio::spawn(until_it_ends.in_current_span());
    Ok(Connection::new(url, local, Sender::Http2(sender)))
}

//! Performs TLS handshakes within limits, so that a stranger (a peer without a node's certificate)
//! cannot fill the controller's buffers.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::tls::Tls;
use crate::api::caller::{Caller, CallerIdentity, NodeCertificate};

/// Time after which a peer that acknowledges nothing counts as gone.
pub(super) const SILENCE: Duration = Duration::from_secs(30);
/// Maximum number of bytes from the peer in a handshake. A node's certificate chain with its cross
/// certificates has less than 6 KiB; rustls would buffer 64 KiB of a message that never ends.
const LONGEST: usize = 16 * 1024;
/// Maximum number of bytes from a stranger, a caller without a certificate, after the handshake. A
/// join takes 4 KiB. The limit also ends streams of frames that are cheap to send but costly to
/// handle (PING, SETTINGS, headers).
const STRANGERS_REQUESTS: usize = 256 * 1024;
/// Maximum number of encrypted bytes that wait for a stranger that does not read them; rustls
/// allows 64 KiB.
const STRANGERS_RESPONSES: usize = 8 * 1024;

/// A connection after its handshake.
pub(super) struct Accepted {
    pub(super) stream: Box<TlsStream<LimitedStream<TcpStream>>>,
    pub(super) caller: Caller,
    /// The certificate of a registered node, if the peer has shown a valid one.
    pub(super) certificate: Option<NodeCertificate>,
}

/// Runs the server's side of the handshake.
pub(super) async fn accept(stream: TcpStream, tls: Tls, address: IpAddr) -> io::Result<Accepted> {
    stream.set_nodelay(true)?;
    let silence = u32::try_from(SILENCE.as_millis()).unwrap_or(u32::MAX);
    rustix::net::sockopt::set_tcp_user_timeout(&stream, silence)?;
    let (config, authorities) = tls.now();
    let mut stream =
        TlsAcceptor::from(config).accept(LimitedStream { inner: stream, remaining: Some(LONGEST) }).await?;
    let (_, session) = stream.get_ref();
    let leaf = session.peer_certificates().and_then(|chain| chain.first());
    let identity = leaf.map_or(CallerIdentity::Anonymous, CallerIdentity::of_certificate);
    // The connection is closed when the authority that issued the certificate is retired.
    let authority = leaf.and_then(|leaf| authorities.issuer_of(leaf));
    let connection = authority.map_or_else(CancellationToken::new, |authority| authority.valid().child_token());
    let caller = Caller { identity, address: Some(address), connection };
    let certificate = match &caller.identity {
        CallerIdentity::Node(certificate) if tls.is_known(&caller).await => Some(certificate.clone()),
        _ => None,
    };
    let (tcp, session) = stream.get_mut();
    if certificate.is_some() {
        tcp.remaining = None;
    } else {
        tcp.remaining = Some(STRANGERS_REQUESTS);
        session.set_buffer_limit(Some(STRANGERS_RESPONSES));
    }
    Ok(Accepted { stream: Box::new(stream), caller, certificate })
}

/// A stream that fails when more bytes are read than remain.
#[derive(Debug)]
pub(super) struct LimitedStream<S> {
    inner: S,
    remaining: Option<usize>,
}

impl<S: AsyncRead + Unpin> AsyncRead for LimitedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        if let Some(remaining) = &mut self.remaining {
            let read = buf.filled().len().saturating_sub(before);
            match remaining.checked_sub(read) {
                Some(rest) => *remaining = rest,
                None => {
                    let why = format!(
                        "the peer sent more than {LONGEST} bytes in its handshake, or {STRANGERS_REQUESTS} without a certificate"
                    );
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, why)));
                }
            }
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for LimitedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

//! TLS handshakes within bounds. A stranger pays for what it sends; it does not fill our buffers.

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
use crate::api::caller::{Caller, Identity, NodeCertificate};

/// A peer that acknowledges nothing for so long is gone.
pub(super) const SILENCE: Duration = Duration::from_secs(30);
/// Octets of the peer's within a handshake. A chain of ours with its cross certificates has less
/// than 6 KiB; rustls would keep 64 KiB of a message that never ends.
const LONGEST: usize = 16 * 1024;
/// Octets of a stranger's in all, handshake aside. To join takes 4 KiB; frames that cost us more
/// than their sender (PING, SETTINGS, headers) end here.
const STRANGERS_REQUESTS: usize = 256 * 1024;
/// Octets of answers that wait, encrypted, for a stranger that does not read them; rustls allows 64
/// KiB.
const STRANGERS_ANSWERS: usize = 8 * 1024;

/// A connection on which the handshake is done.
pub(super) struct Accepted {
    pub(super) stream: Box<TlsStream<Measured<TcpStream>>>,
    pub(super) caller: Caller,
    /// The certificate of a registered node, if one was shown that counts.
    pub(super) certificate: Option<NodeCertificate>,
}

/// Does the server's part of the handshake.
pub(super) async fn accept(stream: TcpStream, tls: Tls, address: IpAddr) -> io::Result<Accepted> {
    stream.set_nodelay(true)?;
    let silence = u32::try_from(SILENCE.as_millis()).unwrap_or(u32::MAX);
    rustix::net::sockopt::set_tcp_user_timeout(&stream, silence)?;
    let (config, authorities) = tls.now();
    let mut stream = TlsAcceptor::from(config).accept(Measured { inner: stream, left: Some(LONGEST) }).await?;
    let (_, session) = stream.get_ref();
    let leaf = session.peer_certificates().and_then(|chain| chain.first());
    let identity = leaf.map_or(Identity::Nobody, Identity::of_certificate);
    // Cancelled when the authority that says so is retired.
    let authority = leaf.and_then(|leaf| authorities.issuer_of(leaf));
    let connection = authority.map_or_else(CancellationToken::new, |authority| authority.valid().child_token());
    let caller = Caller { identity, address: Some(address), connection };
    let certificate = match &caller.identity {
        Identity::Node(certificate) if tls.is_known(&caller).await => Some(certificate.clone()),
        _ => None,
    };
    let (tcp, session) = stream.get_mut();
    if certificate.is_some() {
        tcp.left = None;
    } else {
        tcp.left = Some(STRANGERS_REQUESTS);
        session.set_buffer_limit(Some(STRANGERS_ANSWERS));
    }
    Ok(Accepted { stream: Box::new(stream), caller, certificate })
}

/// A stream that ends with an error when more was read of it than is left.
#[derive(Debug)]
pub(super) struct Measured<S> {
    inner: S,
    left: Option<usize>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Measured<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        if let Some(left) = &mut self.left {
            let read = buf.filled().len().saturating_sub(before);
            match left.checked_sub(read) {
                Some(rest) => *left = rest,
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

impl<S: AsyncWrite + Unpin> AsyncWrite for Measured<S> {
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

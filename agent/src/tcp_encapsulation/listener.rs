//! Accepts TCP connections on a hub.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use edge_ike::Instant;
use edge_xfrm::socket as options;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::mpsc;

use super::accept_rate::Admission;
use super::connections::{ConnectionKind, Connections};
use super::stream::{self, Received, TcpEvent};
use crate::relay::AwaitedStreams;

/// Number of connections that the kernel completes before the agent accepts them.
const BACKLOG: u32 = 256;
/// Time until the next attempt after a connection could not be accepted, for example because the
/// process has too many open files.
const RETRY: Duration = Duration::from_millis(200);

/// Opens the listening sockets, one for each address family. Must be called within a tokio runtime.
///
/// # Errors
/// Returns an error if the port is in use.
pub fn bind(port: u16) -> anyhow::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for any in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
        let socket = match if any.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() } {
            Err(error) if any.is_ipv6() && error.raw_os_error() == Some(libc::EAFNOSUPPORT) => continue,
            socket => socket?,
        };
        if any.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, true)?;
        }
        socket.set_reuseaddr(true)?;
        options::bypass(&socket, any.is_ipv6())?;
        let listen = || {
            socket.bind(SocketAddr::new(any, port))?;
            socket.listen(BACKLOG)
        };
        let listener = listen().with_context(|| {
            format!("TCP port {port} cannot be opened; end the program that has it, or change [tcp] listen_port")
        })?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Accepts connections until the task is aborted. Those to relays go to `relayed`.
pub async fn listen(
    listener: TcpListener,
    connections: Connections,
    relayed: AwaitedStreams,
    now: fn() -> Instant,
    messages: mpsc::Sender<Received>,
    events: mpsc::Sender<TcpEvent>,
) {
    loop {
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "a TCP connection was not accepted");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        match connections.admit(remote, now()) {
            Admission::Accept => {}
            Admission::Refuse => continue,
            Admission::After(wait) => tokio::time::sleep(wait).await,
        }
        let ends = stream::prepare(&stream, stream.local_addr().is_ok_and(|local| local.is_ipv6()))
            .and_then(|()| stream::ends(&stream));
        match ends {
            Ok(ends) => {
                let Some(id) = connections.add(ends, ConnectionKind::Accepted, now()) else {
                    tracing::debug!(remote = %ends.remote, "a TCP connection is refused: there are too many");
                    continue;
                };
                tracing::debug!(?id, remote = %ends.remote, "a TCP connection is accepted");
                let task = stream::accepted(
                    stream,
                    id,
                    connections.clone(),
                    relayed.clone(),
                    messages.clone(),
                    events.clone(),
                );
                connections.set_reader(id, tokio::spawn(task).abort_handle());
            }
            Err(error) => tracing::debug!(%error, "a TCP connection is closed: its options cannot be set"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::TcpStream;

    use super::*;

    /// Accepts connections on loopback, and returns what `stranger` returns, which runs in a thread
    /// with the address to connect to.
    fn with_stranger<T: Send + 'static>(stranger: fn(SocketAddr) -> T) -> (Connections, T) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let connections = Connections::new(4500);
            let (messages, mut received) = mpsc::channel(8);
            let (events, _events) = mpsc::channel(8);
            let now = || Instant::new(Duration::ZERO);
            let listening =
                tokio::spawn(listen(listener, connections.clone(), AwaitedStreams::default(), now, messages, events));
            let found = tokio::task::spawn_blocking(move || stranger(address)).await.unwrap();
            listening.abort();
            assert!(received.try_recv().is_err(), "nothing of a stranger's is a message");
            (connections, found)
        })
    }

    /// Returns once the other end has closed the connection.
    fn wait_closed(mut stream: &TcpStream) {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        match stream.read(&mut [0; 16]) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("the connection should be closed, but there is {other:?}"),
        }
    }

    #[test]
    fn a_stream_with_another_beginning_or_none_is_closed_and_forgotten() {
        let (connections, ()) = with_stranger(|address| {
            for beginning in
                [&b"GET / HTTP/1.1\r\n\r\n"[..], b"IKETCQ", &[0; 6], b"IKE", b"", b"EDGERL", b"EDGERL0123456789abcdef"]
            {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.write_all(beginning).unwrap();
                wait_closed(&stream);
            }
        });
        assert!(connections.is_empty());
    }

    #[test]
    fn of_a_host_that_connects_too_often_the_later_connections_are_closed() {
        with_stranger(|address| {
            let open: Vec<_> = (0..100).map(|_| TcpStream::connect(address).unwrap()).collect();
            // The last sixteen would stay if they were accepted.
            open.iter().skip(64).for_each(wait_closed);
        });
    }

    #[test]
    fn of_many_silent_connections_of_one_host_the_oldest_are_closed() {
        with_stranger(|address| {
            let open: Vec<_> = (0..40).map(|_| TcpStream::connect(address).unwrap()).collect();
            // All but the last sixteen are closed at once, not after the time for the prefix.
            open.iter().take(24).for_each(wait_closed);
        });
    }
}

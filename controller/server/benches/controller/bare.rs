//! Measures TLS alone, with a server that is as simple as possible. The simulated nodes are the
//! same as for the controller. When a member of a community sends a byte, the server sends as many
//! bytes to the community as the controller does.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use edge_controller_domain::ca::{Ca, Files, Term};
use edge_controller_domain::clock::Clock;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc};
use tokio_rustls::TlsAcceptor;

use crate::Size;
use crate::cluster::Cluster;
use crate::nodes;
use crate::program::{Program, free_port};
use crate::streams::Measured;

/// The argument that makes this program run as the bare server.
pub(crate) const WORD: &str = "bare-server";
/// Length in bytes of a line about one peer.
const LINE: usize = 400;

pub(crate) fn start(cluster: &Cluster, core: usize) -> Program {
    let address = free_port();
    let state = cluster.state();
    let arguments = [WORD, state.to_str().expect("a path"), &address.port().to_string()];
    Program::this(cluster, &arguments, address, core)
}

/// Runs the bare server until its process ends.
pub(crate) fn serve(state: &Path, port: u16) -> ! {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let config = TlsAcceptor::from(tls(state).await);
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("a socket");
        let communities: Vec<broadcast::Sender<()>> = (0..256).map(|_| broadcast::channel(16).0).collect();
        let communities = Arc::new(communities);
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            let (config, communities) = (config.clone(), communities.clone());
            tokio::spawn(async move {
                stream.set_nodelay(true)?;
                let mut stream = config.accept(stream).await?;
                let community = &communities[usize::from(stream.read_u8().await?)];
                let mut received = community.subscribe();
                // The server sends a byte to show that the connection is registered.
                stream.write_u8(0).await?;
                stream.flush().await?;
                let mut byte = [0];
                loop {
                    tokio::select! {
                        read = stream.read(&mut byte) => match read? {
                            0 => return Ok::<_, std::io::Error>(()),
                            _ => drop(community.send(())),
                        },
                        _ = received.recv() => {
                            stream.write_all(&[0; LINE]).await?;
                            stream.flush().await?;
                        }
                    }
                }
            });
        }
    })
}

async fn tls(state: &Path) -> Arc<ServerConfig> {
    let now = Clock::system().now();
    let ca = Ca::open(Box::new(Files::new(state, now)), None, now).await.expect("the authority").current();
    let term = Term::days(1, now).expect("a term");
    let (chain, key) = ca.sign_server(&["127.0.0.1".to_owned()], &term).expect("a certificate");
    let mut roots = RootCertStore::empty();
    roots.add(ca.active().certificate().clone()).expect("the authority's certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().expect("roots");
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .expect("key and certificate");
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.send_tls13_tickets = 0;
    Arc::new(config)
}

/// Measures the same values as are measured for the controller.
pub(crate) async fn measure(cluster: &Cluster, size: Size, server: &Program) -> Measured {
    let (arrivals, mut arrived) = mpsc::unbounded_channel();
    let address: SocketAddr = server.address;
    let nodes = nodes::each(cluster, |index, node| {
        let arrivals = arrivals.clone();
        async move {
            let mut stream = nodes::secure(address, cluster.tls(node)).await;
            // The hub gets the lines of the first community.
            let community = index.saturating_sub(1) / size.community;
            stream.write_u8(community as u8).await.expect("a connection");
            stream.flush().await.expect("a connection");
            stream.read_u8().await.expect("a connection");
            let (mut reader, writer) = tokio::io::split(stream);
            tokio::spawn(async move {
                let mut line = [0; LINE];
                while reader.read_exact(&mut line).await.is_ok() {
                    // The measurement may have ended.
                    let _ = arrivals.send(Instant::now());
                }
            });
            writer
        }
    });
    let mut writers = nodes.await;
    let memory = server.memory();
    let mut latencies = Vec::new();
    for change in 0..size.changes {
        let sent = Instant::now();
        let writer = &mut writers[1 + change % size.community];
        writer.write_u8(1).await.expect("a connection");
        writer.flush().await.expect("a connection");
        for _ in 0..=size.community {
            let at = arrived.recv().await.expect("connections are open");
            latencies.push((at - sent).as_secs_f64() * 1e3);
        }
    }
    Measured { memory, latencies }
}

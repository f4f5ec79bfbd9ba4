//! Tests that the agent follows its view on a connection that leaves HTTP, and by HTTP/2 with a
//! controller that does not know that.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use edge_agent::membership::ControllerStatus;
use edge_controller_domain::ca::{Ca, Files, Term};
use edge_controller_domain::clock::Clock;
use edge_types::NodeView;
use edge_types::api::{TunnelCount, ViewEvent};
use futures_util::StreamExt;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::UPGRADE;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::lab::{Controller, ControllerProxy, until};

/// Returns the metrics of the controller.
async fn metrics(controller: &Controller) -> String {
    controller.monitoring_page("/metrics").await
}

/// Returns the number of requests with this method and status to routes that end so.
fn requests(metrics: &str, route: &str, method: &str, status: u16) -> u64 {
    let labels = [format!("{route}\""), format!("method=\"{method}\""), format!("status=\"{status}\"")];
    let series = metrics.lines().filter(|line| line.starts_with("edge_controller_requests_total{"));
    let counted = series.filter(|line| labels.iter().all(|label| line.contains(label)));
    counted.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_at_rest_has_one_connection_which_has_left_http() {
    let controller = Controller::start().await;
    let proxy = ControllerProxy::to(&controller).await;
    let mut node = controller.edge("edge-1").await;
    node.url = proxy.url();
    let (agent, _) = node.start_as_member().await;
    agent.status("the stream", |status| status.connected).await;
    assert_eq!(requests(&metrics(&controller).await, "/view", "GET", 101), 1);
    // The connection of the other requests is closed when it is idle.
    until("one connection", || async { proxy.open_connections() == 1 }).await;
    let before = requests(&metrics(&controller).await, "/v1/nodes/{node}", "PUT", 204);
    agent.node.tunnels.send_replace(Some(TunnelCount { up: 1, wanted: 2, ..TunnelCount::default() }));
    until("the report", || async { controller.nodes().await[0]["tunnels"] == json!({"up": 1, "wanted": 2}) }).await;
    assert_eq!(requests(&metrics(&controller).await, "/v1/nodes/{node}", "PUT", 204), before + 1);
    assert_eq!(proxy.open_connections(), 1, "reports take no other connection");
    agent.end().await;
    until("no connection", || async { proxy.open_connections() == 0 }).await;
}

/// What a controller of an earlier release was asked: the version of HTTP, the method, and whether
/// the request asked for an upgrade.
type Asked = Arc<Mutex<Vec<(Version, Method, bool)>>>;

/// Starts a controller of an earlier release in place of `controller`: it answers requests for the
/// view with a stream, on any version of HTTP, and never leaves HTTP.
async fn earlier_release(controller: &Controller, address: SocketAddr, view: NodeView, protocols: &[&str]) -> Asked {
    let (acceptor, asked) = (tls_of(controller, protocols).await, Asked::default());
    let listener = TcpListener::bind(address).await.unwrap();
    let line =
        format!("{}\n", json!({"type": "view", "epoch": "earlier", "view": serde_json::to_value(view).unwrap()}));
    serde_json::from_str::<ViewEvent>(&line).unwrap();
    let by_all = asked.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, asked, line) = (acceptor.clone(), by_all.clone(), line.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let upgrade = request.headers().contains_key(UPGRADE);
                    asked.lock().unwrap().push((request.version(), request.method().clone(), upgrade));
                    let line = line.clone();
                    async move {
                        let body = if request.method() == Method::GET {
                            let line = Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from(line)));
                            let lines = futures_util::stream::iter([line]);
                            BodyExt::boxed(StreamBody::new(lines.chain(futures_util::stream::pending())))
                        } else {
                            BodyExt::boxed(Full::default())
                        };
                        let mut response = Response::new(body);
                        if request.method() == Method::PUT {
                            *response.status_mut() = StatusCode::NO_CONTENT;
                        }
                        Ok::<_, std::convert::Infallible>(response)
                    }
                });
                let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    asked
}

/// Returns a server's end of TLS with a certificate of `controller`'s authority.
async fn tls_of(controller: &Controller, protocols: &[&str]) -> TlsAcceptor {
    let now = Clock::system().now();
    let state = controller.file("ca.json").parent().unwrap().to_owned();
    let authorities = Ca::open(Box::new(Files::new(&state, now)), None, now).await.unwrap().current();
    let (chain, key) = authorities.sign_server(&["127.0.0.1".to_owned()], &Term::days(1, now).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
    let mut config = builder.with_no_client_auth().with_single_cert(chain, key).unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_controller_that_does_not_upgrade_the_view_is_followed_by_http_2() {
    for protocols in [&["h2", "http/1.1"][..], &["h2"]] {
        let mut controller = Controller::start().await;
        let node = controller.edge("edge-1").await;
        let (agent, joined) = node.start_as_member().await;
        agent.status("the stream", |status| status.connected).await;
        let view = controller.operator("GET", "/v1/nodes/edge-1/view", Value::Null).await;
        let mut view: NodeView = serde_json::from_value(view).unwrap();
        view.version += 1000;
        controller.stop().await;
        agent.status("the loss", |status| !status.connected).await;
        let address = controller.url().trim_start_matches("https://").parse().unwrap();
        let asked = earlier_release(&controller, address, view.clone(), protocols).await;
        agent.status("the stream again", |status: &ControllerStatus| status.connected).await;
        let held = agent.membership("its view", |m| m.view.version == view.version).await;
        assert_eq!(held.view.segments, joined.view.segments);
        let by_http_1 = |(version, ..): &&(Version, Method, bool)| *version == Version::HTTP_11;
        let all = asked.lock().unwrap().clone();
        let expected = if protocols.len() == 2 { vec![Method::PUT, Method::GET] } else { vec![] };
        assert_eq!(all.iter().filter(by_http_1).map(|(_, method, _)| method.clone()).collect::<Vec<_>>(), expected);
        assert!(all.contains(&(Version::HTTP_2, Method::GET, false)), "{all:?}");
        // The stream may be that of another replica than the one to which the first report went.
        let reported = (Version::HTTP_2, Method::PUT, false);
        until("a report", || async { asked.lock().unwrap().contains(&reported) }).await;
        let all = asked.lock().unwrap().clone();
        // Reports go on, on the connection of the stream.
        agent.node.tunnels.send_replace(Some(TunnelCount { up: 1, wanted: 2, ..TunnelCount::default() }));
        until("a report by HTTP/2", || async {
            asked.lock().unwrap().iter().skip(all.len()).any(|last| *last == (Version::HTTP_2, Method::PUT, false))
        })
        .await;
        agent.end().await;
    }
}

/// Starts a controller that closes every connection after the TLS handshake, as one does that does
/// not accept the node's certificate. Returns its URL and the number of connections.
async fn closing_controller(controller: &Controller) -> (String, Arc<AtomicUsize>) {
    let (acceptor, accepted) = (tls_of(controller, &["h2", "http/1.1"]).await, Arc::new(AtomicUsize::new(0)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let counter = accepted.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(acceptor.accept(stream).await);
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    (url, accepted)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_closes_after_the_handshake_keeps_no_node_from_another_controller() {
    let mut controller = Controller::start().await;
    let (closing, accepted) = closing_controller(&controller).await;
    let mut node = controller.edge("edge-1").await;
    node.url = format!("{}\", \"{closing}", controller.url());
    let (agent, _) = node.start_as_member().await;
    agent.status("the stream", |status| status.connected).await;
    controller.stop().await;
    until("the other controller is tried", || async { accepted.load(Ordering::Relaxed) > 0 }).await;
    controller.start_again().await;
    agent.status("the stream again", |status| status.connected).await;
    agent.end().await;
}

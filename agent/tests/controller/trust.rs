//! Tests the authentication of the controller.

use std::sync::Arc;

use edge_agent::membership::NodeCredentials;
use edge_types::Role;
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::lab::{Controller, Node};

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_whose_ca_the_token_does_not_name_never_sees_the_secret() {
    let (ours, other) = (Controller::start().await, Controller::start().await);
    let node = Node::new("edge-1", &other);
    node.put_token(&ours.token(Role::Edge, None).await);
    let agent = node.start();
    let error = agent.error().await;
    assert!(error.contains("not trusted") && error.contains("secret was not sent"), "{error}");
    assert!(other.nodes().await.is_empty());
    node.assert_no_member();
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_under_a_name_that_its_certificate_lacks_is_not_trusted() {
    let controller = Controller::start().await;
    let mut node = controller.edge("edge-1").await;
    node.url = controller.url().replace("127.0.0.1", "localhost");
    let agent = node.start();
    let error = agent.error_with("not trusted").await;
    assert!(error.contains("not for localhost, but for 127.0.0.1") && error.contains("server_names"), "{error}");
    agent.end().await;
    node.assert_no_member();
    assert!(controller.nodes().await.is_empty());
}

/// Starts a server of a cluster member that poses as the controller. It presents the member's
/// certificate and the certificate of the authority that signed it.
async fn impostor(credentials: &NodeCredentials) -> String {
    let chain = credentials.chain.iter().chain(&credentials.trust_anchors);
    let chain = chain.map(|der| CertificateDer::from(der.clone())).collect();
    let key = PrivatePkcs8KeyDer::from(credentials.key.expose().to_vec());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
    let mut config = builder.with_no_client_auth().with_single_cert(chain, key.into()).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            assert!(acceptor.accept(stream).await.is_err(), "somebody believes the impostor");
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_poses_as_the_controller_is_not_trusted() {
    let controller = Controller::start().await;
    let (hostile, stolen) = controller.edge("edge-9").await.start_as_member().await;
    let mut node = controller.edge("edge-1").await;
    let honest = std::mem::replace(&mut node.url, impostor(&stolen.credentials).await);
    let agent = node.start();
    let error = agent.error().await;
    assert!(error.contains("not trusted") && error.contains("it is a node's, not a controller's"), "{error}");
    agent.end().await;
    node.assert_no_member();
    assert_eq!(controller.nodes().await.len(), 1);
    // A node that has joined does not trust the impostor either.
    let fake = std::mem::replace(&mut node.url, honest);
    let (agent, before) = node.start_as_member().await;
    agent.end().await;
    node.url = fake;
    let agent = node.start();
    let error = agent.error().await;
    assert!(error.contains("not trusted") && error.contains("it is a node's, not a controller's"), "{error}");
    assert_eq!(agent.joined().await.view, before.view);
    agent.end().await;
    hostile.end().await;
}

//! Runs a controller for one test, with clients that act as nodes and as the operator.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edge_controller::config::Config;
use edge_controller::server::Server;
use edge_controller_domain::clock::Clock;
use edge_types::JoinToken;
use edge_types::api::ViewEvent;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper::{Method, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Status and JSON body.
pub(crate) type HttpResponse = (u16, Value);

pub(crate) struct Cloud {
    pub(crate) server: Server,
    pub(crate) clock: Clock,
    pub(crate) directory: tempfile::TempDir,
    config: Config,
}

/// A controller that is stopped.
pub(crate) struct Stopped {
    directory: tempfile::TempDir,
    pub(crate) config: Config,
}

impl Stopped {
    /// Starts the controller with this clock. Returns the error if it does not start.
    pub(crate) async fn start(self, clock: Clock) -> Result<Cloud, (Self, String)> {
        match Server::start(self.config.clone(), clock.clone()).await {
            Ok(server) => Ok(Cloud { server, clock, directory: self.directory, config: self.config }),
            Err(error) => Err((self, format!("{error:#}"))),
        }
    }
}

impl Cloud {
    pub(crate) async fn start() -> Self {
        Self::with("cluster_ranges = [\"10.77.0.0/24\", \"fd77::/118\"]").await
    }

    /// Starts a controller with this content of `[segments]` and the tables after it.
    pub(crate) async fn with(segments: &str) -> Self {
        Self::with_state(segments, |_| {}).await
    }

    /// Does the same as [`Self::with`], for a controller that may fail to start.
    pub(crate) async fn try_with(segments: &str) -> anyhow::Result<Self> {
        Self::try_with_state(segments, |_| {}).await
    }

    /// Does the same as [`Self::with`], with a state directory that `fill` fills before the start.
    pub(crate) async fn with_state(segments: &str, fill: impl FnOnce(&Path)) -> Self {
        Self::try_with_state(segments, fill).await.unwrap()
    }

    async fn try_with_state(segments: &str, fill: impl FnOnce(&Path)) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("controller.toml");
        let text = format!(
            "server_names = [\"cloud.test\", \"127.0.0.1\"]\nlisten = [\"127.0.0.1:0\"]\nstate_dir = {:?}\nadmin_socket = {:?}\n\
             heartbeat_seconds = 1\nnetworks = [\"10.244.0.0/16\"]\n[observe]\nlisten = [\"127.0.0.1:0\"]\n[segments]\nquarantine_seconds = 100\n{segments}\n",
            directory.path().join("state"),
            directory.path().join("admin.sock"),
        );
        std::fs::write(&path, text).unwrap();
        let config = Config::load(&path).unwrap();
        fill(&directory.path().join("state"));
        let clock = Clock::system();
        let server = Server::start(config.clone(), clock.clone()).await?;
        Ok(Self { server, clock, directory, config })
    }

    /// Stops the controller and starts it again on the same state.
    pub(crate) async fn restart(self) -> Self {
        let clock = self.clock.clone();
        self.restart_with(clock).await
    }

    /// Restarts the controller with another clock.
    pub(crate) async fn restart_with(self, clock: Clock) -> Self {
        self.server.stop().await;
        let server = Server::start(self.config.clone(), clock.clone()).await.unwrap();
        Self { server, clock, ..self }
    }

    /// Stops the controller, changes the state directory and starts the controller again.
    pub(crate) async fn restart_after(self, meanwhile: impl FnOnce(&Path)) -> Self {
        let (config, clock) = (self.config.clone(), self.clock.clone());
        self.server.stop().await;
        meanwhile(&self.directory.path().join("state"));
        let server = Server::start(config, clock.clone()).await.unwrap();
        Self { server, clock, directory: self.directory, config: self.config }
    }

    /// Stops the controller, changes the state directory and starts the controller again. Returns
    /// the error from the start.
    pub(crate) async fn restart_refused(self, meanwhile: impl FnOnce(&std::path::Path)) -> String {
        self.server.stop().await;
        meanwhile(&self.directory.path().join("state"));
        let started = Server::start(self.config, self.clock).await;
        format!("{:#}", started.err().expect("it must not start"))
    }

    /// Stops the controller.
    pub(crate) async fn stop(self) -> Stopped {
        self.server.stop().await;
        Stopped { directory: self.directory, config: self.config }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.addresses[0]
    }

    fn state(&self, file: &str) -> PathBuf {
        self.directory.path().join("state").join(file)
    }

    /// Returns the certificate of the signing authority.
    pub(crate) fn ca(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.state("ca.crt")).unwrap()
    }

    /// Sends a request as the operator.
    pub(crate) async fn operator(&self, method: Method, path: &str, body: Option<Value>) -> HttpResponse {
        try_operator(&self.directory.path().join("admin.sock"), method, path, body).await.unwrap()
    }

    pub(crate) async fn token(&self, role: &str, node: Option<&str>) -> JoinToken {
        self.token_with(json!({"role": role, "node": node, "ttl_seconds": 3600, "uses": 1})).await
    }

    pub(crate) async fn token_with(&self, request: Value) -> JoinToken {
        let (status, body) = self.operator(Method::POST, "/v1/tokens", Some(request)).await;
        assert_eq!(status, 201, "{body}");
        body["token"].as_str().unwrap().parse().unwrap()
    }

    pub(crate) async fn label(&self, node: &str, value: Option<&str>) {
        let patch = json!({"fabedge/edge-community": value});
        let (status, body) = self.operator(Method::PATCH, &format!("/v1/nodes/{node}/labels"), Some(patch)).await;
        assert_eq!(status, 200, "{body}");
    }

    pub(crate) async fn deregister(&self, node: &str) -> HttpResponse {
        self.operator(Method::DELETE, &format!("/v1/nodes/{node}"), None).await
    }

    /// Joins a node with a new token.
    pub(crate) async fn node(&self, role: &str, name: &str) -> Node {
        let token = self.token(role, None).await;
        let key = KeyPair::generate().unwrap();
        let (status, body) = self.join(&token, name, &request_of(&key)).await;
        assert_eq!(status, 200, "{body}");
        Node::new(self, name, body["certificate"].as_str().unwrap(), &key)
    }

    pub(crate) async fn join(&self, token: &JoinToken, node: &str, csr: &str) -> HttpResponse {
        let body = json!({"token": *token.credential(), "node": node, "csr": csr});
        Connection::open(self, None).await.unwrap().ask(Method::POST, "/v1/join", Some(body)).await
    }
}

/// Returns the status and the whole response of a page for health and metrics.
pub(crate) async fn monitoring_page(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    (response.split(' ').nth(1).unwrap().parse().unwrap(), response)
}

/// Sends a request as the operator to this admin socket. Returns an error if there is no response.
pub(crate) async fn try_operator(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> std::io::Result<HttpResponse> {
    let stream = UnixStream::connect(socket).await?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(std::io::Error::other)?;
    tokio::spawn(connection);
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let request = Request::builder().method(method).uri(path).header("host", "x");
    let request = request.body(Full::new(Bytes::from(body))).unwrap();
    read(sender.send_request(request).await.map_err(std::io::Error::other)?).await
}

/// Opens a stream as the operator. The stream ends when the result is dropped.
pub(crate) async fn watch_as_operator(cloud: &Cloud, path: &str) -> UnixStream {
    let mut stream = UnixStream::connect(cloud.directory.path().join("admin.sock")).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
    let mut begin = [0; 12];
    stream.read_exact(&mut begin).await.unwrap();
    assert_eq!(&begin, b"HTTP/1.1 200");
    stream
}

/// Makes a certificate request as agents do.
pub(crate) fn request_of(key: &KeyPair) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serialize_request(key).unwrap().pem().unwrap()
}

/// Returns the certificate and its intermediates.
pub(crate) fn chain(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().unwrap()
}

/// A node that has joined.
pub(crate) struct Node {
    pub(crate) name: String,
    address: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
    pub(crate) leaf: CertificateDer<'static>,
}

impl Node {
    pub(crate) fn new(cloud: &Cloud, name: &str, certificate: &str, key: &KeyPair) -> Self {
        Self::at(cloud.address(), cloud.ca(), name, chain(certificate), key)
    }

    pub(crate) fn at(
        address: SocketAddr,
        ca: CertificateDer<'static>,
        name: &str,
        chain: Vec<CertificateDer<'static>>,
        key: &KeyPair,
    ) -> Self {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let leaf = chain[0].clone();
        Self { name: name.into(), address, tls: tls(ca, Some((chain, key))), leaf }
    }

    /// Joins a controller in another process.
    pub(crate) async fn join(address: SocketAddr, ca: CertificateDer<'static>, token: &JoinToken, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let body = json!({"token": *token.credential(), "node": name, "csr": request_of(&key)});
        let mut nobody = Connection::over(address, tls(ca.clone(), None)).await.unwrap();
        let (status, body) = nobody.ask(Method::POST, "/v1/join", Some(body)).await;
        assert_eq!(status, 200, "{body}");
        let certificate = body["certificate"].as_str().unwrap();
        Self::at(address, ca, name, chain(certificate), &key)
    }

    /// Switches the node to the controller's new port after a restart.
    pub(crate) fn move_to(&mut self, cloud: &Cloud) {
        self.address = cloud.address();
    }

    /// Switches the node to another controller with the same authority.
    pub(crate) fn move_to_address(&mut self, address: SocketAddr) {
        self.address = address;
    }

    pub(crate) async fn connect(&self) -> std::io::Result<Connection> {
        Connection::over(self.address, self.tls.clone()).await
    }

    /// Renews the certificate for this key, and returns the node with the new one.
    pub(crate) async fn renew(&self, cloud: &Cloud, key: &KeyPair) -> Node {
        let (status, body) = self.ask(Method::POST, "/certificate", Some(json!({"csr": request_of(key)}))).await;
        assert_eq!(status, 200, "{body}");
        Node::new(cloud, &self.name, body["certificate"].as_str().unwrap(), key)
    }

    /// Sends a request to a path below `/v1/nodes/NAME`.
    pub(crate) async fn ask(&self, method: Method, below: &str, body: Option<Value>) -> HttpResponse {
        let path = format!("/v1/nodes/{}{below}", self.name);
        self.connect().await.unwrap().ask(method, &path, body).await
    }

    pub(crate) async fn request_segments(&self, request_id: &str, families: &[&str]) -> HttpResponse {
        self.ask(Method::POST, "/segments", Some(json!({"request_id": request_id, "families": families}))).await
    }

    pub(crate) async fn report(&self, addresses: &[&str], port: u16) -> HttpResponse {
        self.ask(Method::PUT, "", Some(json!({"addresses": addresses, "port": port}))).await
    }

    /// Opens a connection with TLS only, for other versions of HTTP.
    pub(crate) async fn connect_tls(&self) -> TlsStream<TcpStream> {
        let mut tls = (*self.tls).clone();
        tls.alpn_protocols.clear();
        let stream = TcpStream::connect(self.address).await.unwrap();
        TlsConnector::from(Arc::new(tls)).connect(ServerName::try_from("cloud.test").unwrap(), stream).await.unwrap()
    }

    pub(crate) async fn watch(&self) -> Stream {
        self.watch_with("").await
    }

    /// Opens a view stream with further parameters: `&name=value`...
    pub(crate) async fn watch_with(&self, parameters: &str) -> Stream {
        self.watch_on(self.connect().await.unwrap(), parameters).await
    }

    /// Opens a stream as [`Self::watch_with`] does, but the client takes only a few bytes until its
    /// stream is read.
    pub(crate) async fn watch_slowly(&self, parameters: &str) -> Stream {
        self.watch_on(self.connect_slowly().await, parameters).await
    }

    /// Connects as a client that takes only a few bytes of a response until the response is read.
    pub(crate) async fn connect_slowly(&self) -> Connection {
        Connection::with_window(self.address, self.tls.clone(), 256).await.unwrap()
    }

    async fn watch_on(&self, mut connection: Connection, parameters: &str) -> Stream {
        let path = format!("/v1/nodes/{}/view?watch=true{parameters}", self.name);
        let response = connection.send(Method::GET, &path, Full::default()).await.unwrap();
        assert_eq!(response.status(), 200);
        Stream { body: response.into_body(), pending: Vec::new(), _connection: connection }
    }
}

pub(crate) fn tls(
    ca: CertificateDer<'static>,
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// One HTTP/2 connection.
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// The server's certificate chain.
    pub(crate) chain: Vec<CertificateDer<'static>>,
}

impl Connection {
    /// Connects without a certificate to a controller in another process.
    pub(crate) async fn anonymous(address: SocketAddr, ca: CertificateDer<'static>) -> std::io::Result<Self> {
        Self::over(address, tls(ca, None)).await
    }

    /// Connects with the node's certificate, or without one.
    pub(crate) async fn open(cloud: &Cloud, node: Option<&Node>) -> std::io::Result<Self> {
        let tls = node.map_or_else(|| tls(cloud.ca(), None), |node| node.tls.clone());
        Self::over(cloud.address(), tls).await
    }

    async fn over(address: SocketAddr, tls: Arc<rustls::ClientConfig>) -> std::io::Result<Self> {
        Self::with_window(address, tls, None).await
    }

    /// Opens a connection. `window`: bytes of a response that the server may send before they are
    /// read.
    async fn with_window(
        address: SocketAddr,
        tls: Arc<rustls::ClientConfig>,
        window: impl Into<Option<u32>>,
    ) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from("cloud.test").unwrap();
        let stream = TlsConnector::from(tls).connect(name, stream).await?;
        let chain = stream.get_ref().1.peer_certificates().unwrap().iter().map(|c| c.clone().into_owned()).collect();
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(window);
        let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
        tokio::spawn(connection);
        sender.ready().await.map_err(std::io::Error::other)?;
        Ok(Self { sender, chain })
    }

    pub(crate) async fn ask(&mut self, method: Method, path: &str, body: Option<Value>) -> HttpResponse {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        self.ask_raw(method, path, body.into()).await
    }

    pub(crate) async fn ask_raw(&mut self, method: Method, path: &str, body: Bytes) -> HttpResponse {
        read(self.send(method, path, Full::new(body)).await.unwrap()).await.unwrap()
    }

    /// Sends a request. Returns an error if there is no response. In that case the outcome is
    /// unknown.
    pub(crate) async fn try_ask(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> std::io::Result<HttpResponse> {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        read(self.send(method, path, Full::new(body.into())).await?).await
    }

    pub(crate) async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Full<Bytes>,
    ) -> std::io::Result<hyper::Response<Incoming>> {
        let uri = format!("https://cloud.test{path}");
        let request = Request::builder().method(method).uri(uri).header("content-type", "application/json");
        self.sender.send_request(request.body(body).unwrap()).await.map_err(std::io::Error::other)
    }
}

async fn read(response: hyper::Response<Incoming>) -> std::io::Result<HttpResponse> {
    let status = response.status().as_u16();
    let problem = response.headers().get("content-type").is_some_and(|value| value == "application/problem+json");
    assert_eq!(problem, status >= 400, "every error is a problem document, and nothing else is");
    let body = response.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
    if problem {
        assert_eq!(body["status"], status);
    }
    Ok((status, body))
}

/// A view stream.
pub(crate) struct Stream {
    body: Incoming,
    pending: Vec<u8>,
    _connection: Connection,
}

impl Stream {
    /// Returns the next line; `None` when the server has ended the stream.
    pub(crate) async fn line(&mut self) -> Option<ViewEvent> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = self.body.frame().await?.ok()?;
            self.pending.extend_from_slice(&frame.into_data().unwrap());
        }
    }

    /// Returns the next view, without heartbeats.
    pub(crate) async fn view(&mut self) -> edge_types::NodeView {
        loop {
            match self.line().await.expect("the stream goes on") {
                ViewEvent::View { view, .. } => return *view,
                ViewEvent::Change(change) => panic!("a change where whole views were asked for: {change:?}"),
                ViewEvent::Heartbeat { .. } => {}
                ViewEvent::Measure(request) => panic!("a request that was not asked for: {request:?}"),
                ViewEvent::Goodbye { reason } => panic!("goodbye: {reason}"),
            }
        }
    }

    /// Returns the next line that is not a heartbeat.
    pub(crate) async fn news(&mut self) -> ViewEvent {
        loop {
            match self.line().await.expect("the stream goes on") {
                ViewEvent::Heartbeat { .. } => {}
                news => return news,
            }
        }
    }

    /// Returns the next view, which comes with an epoch.
    pub(crate) async fn first(&mut self) -> (edge_types::NodeView, String) {
        match self.news().await {
            ViewEvent::View { epoch: Some(epoch), view } => (*view, epoch),
            other => panic!("expected a whole view with its epoch, got {other:?}"),
        }
    }

    /// Returns the next change.
    pub(crate) async fn change(&mut self) -> edge_types::ViewChange {
        match self.news().await {
            ViewEvent::Change(change) => change,
            other => panic!("expected a change, got {other:?}"),
        }
    }

    /// Reads until the server ends the stream.
    pub(crate) async fn ended(mut self) {
        while self.line().await.is_some() {}
    }
}

/// Returns the status and the kind from a problem document, without the kind's URL prefix.
pub(crate) fn kind(response: &HttpResponse) -> (u16, &str) {
    (response.0, response.1["type"].as_str().unwrap_or("no problem").trim_start_matches("/problems/"))
}

/// Returns the detail of a problem document.
pub(crate) fn detail(response: &HttpResponse) -> &str {
    response.1["detail"].as_str().unwrap_or_default()
}

//! Runs a controller, and nodes that connect to it. All functions wait for events. The timeout
//! [`HANG`] only ends a test that hangs.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use edge_agent::clock::CertificateClock;
use edge_agent::config::Config;
use edge_agent::controller_client::{ControllerClient, ControllerError};
use edge_agent::membership::{ControllerStatus, Membership, NodeChannels, channels};
use edge_agent::plugin_server;
use edge_agent::state_dir::{StateDir, StateDirError};
use edge_agent::underlay::Underlay;
use edge_controller::server::Server;
use edge_controller_domain::clock::Clock;
use edge_types::agent_protocol::{AgentRequest, AgentResponse, Stock};
use edge_types::api::{Family, TokenCreated, TokenRequest};
use edge_types::frame;
use edge_types::shared_files::SegmentsFile;
use edge_types::{JoinToken, Role};
use interop_tests::wait;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

/// Timeout after which a test fails.
const HANG: Duration = Duration::from_secs(60);

/// Waits for an event. Panics if it does not occur within [`HANG`].
pub(crate) async fn soon<T>(what: &str, event: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANG, event).await.unwrap_or_else(|_| panic!("{what} does not happen"))
}

/// A controller with its own directory.
pub(crate) struct Controller {
    directory: TempDir,
    pub(crate) clock: Clock,
    address: SocketAddr,
    ranges: &'static str,
    /// The cloud's networks, which hubs front.
    networks: &'static str,
    server: Option<Server>,
}

impl Controller {
    /// Starts a controller with ranges that contain many segments.
    pub(crate) async fn start() -> Self {
        Self::with_ranges("\"10.77.0.0/16\", \"fd77::/48\"").await
    }

    pub(crate) async fn with_ranges(ranges: &'static str) -> Self {
        Self::with(ranges, "").await
    }

    /// Starts a controller with these networks as the cloud's networks.
    pub(crate) async fn with_networks(networks: &'static str) -> Self {
        Self::with("\"10.77.0.0/16\", \"fd77::/48\"", networks).await
    }

    async fn with(ranges: &'static str, networks: &'static str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address = "127.0.0.1:0".parse().unwrap();
        let mut controller = Self { directory, clock: Clock::system(), address, ranges, networks, server: None };
        controller.start_again().await;
        controller
    }

    /// Restarts the controller with other ranges.
    pub(crate) async fn change_ranges(&mut self, ranges: &'static str) {
        self.stop().await;
        self.ranges = ranges;
        self.start_again().await;
    }

    /// Starts the controller again with the same port and directory.
    pub(crate) async fn start_again(&mut self) {
        let path = self.directory.path().join("controller.toml");
        let text = format!(
            "server_names = [\"127.0.0.1\"]\nlisten = [\"{}\"]\nstate_dir = {:?}\nadmin_socket = {:?}\nheartbeat_seconds = 1\nnetworks = [{}]\n\
             [observe]\nlisten = [\"127.0.0.1:0\"]\n[segments]\ncluster_ranges = [{}]\nquarantine_seconds = 60\n",
            self.address,
            self.directory.path().join("state"),
            self.admin_socket(),
            self.networks,
            self.ranges,
        );
        std::fs::write(&path, text).unwrap();
        let config = edge_controller::config::Config::load(&path).unwrap();
        // The store may still be open, since a stopped server closes it only when its last
        // connection is closed.
        let server = soon("the start of the controller", async {
            loop {
                match Server::start(config.clone(), self.clock.clone()).await {
                    Ok(server) => return server,
                    Err(error) if error.to_string().contains("Cannot acquire lock") => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Err(error) => panic!("{error:#}"),
                }
            }
        })
        .await;
        self.address = server.addresses[0];
        self.server = Some(server);
    }

    /// Starts another controller with the same authority and database rows, as a replica of this
    /// one.
    pub(crate) async fn replica(&self) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (self.directory.path().join("state"), directory.path().join("state"));
        std::fs::create_dir(&to).unwrap();
        for file in std::fs::read_dir(from).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
        let address = "127.0.0.1:0".parse().unwrap();
        let (clock, ranges, networks) = (self.clock.clone(), self.ranges, self.networks);
        let mut replica = Self { directory, clock, address, ranges, networks, server: None };
        replica.start_again().await;
        replica
    }

    pub(crate) async fn stop(&mut self) {
        self.server.take().expect("it runs").stop().await;
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Returns the path of a file in the controller's state directory.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join("state").join(name)
    }

    fn admin_socket(&self) -> PathBuf {
        self.directory.path().join("admin.sock")
    }

    /// Sends one request over the admin socket, as the operator's commands do.
    pub(crate) async fn operator(&self, method: &str, path: &str, body: Value) -> Value {
        let mut stream = UnixStream::connect(self.admin_socket()).await.unwrap();
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: c\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 2"), "{method} {path}: {answer}");
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        if body.is_empty() { Value::Null } else { serde_json::from_str(body).unwrap() }
    }

    /// Posts a request whose response consists of lines, and returns the lines.
    pub(crate) fn operator_lines(&self, path: &str, body: Value) -> impl Future<Output = Vec<Value>> + use<> {
        let (socket, body) = (self.admin_socket(), body.to_string());
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: c\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        async move {
            let mut stream = UnixStream::connect(socket).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 2"), "{answer}");
            // The sizes of the HTTP chunks are in separate lines.
            let lines = answer.lines().filter(|line| line.starts_with('{'));
            lines.map(|line| serde_json::from_str(line).unwrap()).collect()
        }
    }

    pub(crate) async fn token(&self, role: Role, node: Option<&str>) -> String {
        let node = node.map(|name| name.parse().unwrap());
        let request = TokenRequest { role, node, ttl_seconds: 3600, uses: 1 };
        let created = self.operator("POST", "/v1/tokens", serde_json::to_value(request).unwrap()).await;
        serde_json::from_value::<TokenCreated>(created).unwrap().token
    }

    /// Creates a node with a token for this role in its token file.
    pub(crate) async fn invite(&self, name: &'static str, role: Role) -> Node {
        let node = Node::new(name, self);
        node.put_token(&self.token(role, None).await);
        node
    }

    /// Creates a node with a token for an edge.
    pub(crate) async fn edge(&self, name: &'static str) -> Node {
        self.invite(name, Role::Edge).await
    }

    /// Returns a page for health and metrics.
    pub(crate) async fn monitoring_page(&self, path: &str) -> String {
        let address = self.server.as_ref().expect("it runs").observe[0];
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: c\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    pub(crate) async fn nodes(&self) -> Vec<Value> {
        self.operator("GET", "/v1/nodes", Value::Null).await.as_array().unwrap().clone()
    }

    /// Returns the segments that the ledger lists for a node.
    pub(crate) async fn ledger(&self, node: &str) -> Vec<Value> {
        let nodes = self.nodes().await;
        let node = nodes.iter().find(|row| row["name"] == node);
        node.map_or(Vec::new(), |row| row["segments"].as_array().unwrap().clone())
    }
}

/// A TCP proxy to a controller, which can be closed and opened again. To agents, it appears as
/// another controller with the same store.
pub(crate) struct ControllerProxy {
    address: SocketAddr,
    controller: SocketAddr,
    task: tokio::task::JoinHandle<()>,
    open: Arc<AtomicUsize>,
}

impl ControllerProxy {
    pub(crate) async fn to(controller: &Controller) -> Self {
        Self::between("127.0.0.1:0".parse().unwrap(), controller.address).await
    }

    async fn between(address: SocketAddr, controller: SocketAddr) -> Self {
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let open = Arc::new(AtomicUsize::new(0));
        let count = open.clone();
        let task = tokio::spawn(async move {
            // The connections are closed when this task ends.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (mut from, _) = listener.accept().await.unwrap();
                let count = count.clone();
                count.fetch_add(1, Ordering::Relaxed);
                connections.spawn(async move {
                    let mut to = tokio::net::TcpStream::connect(controller).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
                    count.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Self { address, controller, task, open }
    }

    /// Returns the number of connections that are open.
    pub(crate) fn open_connections(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Closes all connections, and accepts no further connections.
    pub(crate) async fn close(&self) {
        self.task.abort();
        until("the end of the proxy", || async { self.task.is_finished() }).await;
    }

    /// Opens the proxy again on the same port.
    pub(crate) async fn open(self) -> Self {
        Self::between(self.address, self.controller).await
    }
}

/// A node's disk and configuration, which exist independently of a running agent.
pub(crate) struct Node {
    directory: TempDir,
    pub(crate) name: &'static str,
    pub(crate) url: String,
    pub(crate) spare: u32,
    pub(crate) extra: &'static str,
    /// The configuration line with the file of the join credential.
    pub(crate) credential: &'static str,
    /// Further configuration lines for `[controller]`.
    pub(crate) controller_extra: &'static str,
    /// The host's underlay when the agent starts.
    pub(crate) underlay: Underlay,
}

impl Node {
    pub(crate) fn new(name: &'static str, controller: &Controller) -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            name,
            url: controller.url(),
            spare: 0,
            extra: "",
            credential: "token_file = \"token\"",
            controller_extra: "",
            underlay: Underlay::default(),
        }
    }

    pub(crate) fn token_file(&self) -> PathBuf {
        self.directory.path().join("token")
    }

    pub(crate) fn put_token(&self, token: &str) {
        std::fs::write(self.token_file(), format!("{token}\n")).unwrap();
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.state().join(name)
    }

    pub(crate) fn segments(&self) -> SegmentsFile {
        serde_json::from_slice(&std::fs::read(self.file("segments.json")).unwrap()).unwrap()
    }

    /// Asserts that this node's disk contains none of the files that only a member has.
    pub(crate) fn assert_no_member(&self) {
        for file in ["identity.json", "view.json", "segments.json", "application.json"] {
            assert!(!exists(self.file(file)), "{file} was left behind");
        }
    }

    /// Starts the agent and waits until it is a member with its first segments, one of each family.
    pub(crate) async fn start_as_member(&self) -> (Agent, Membership) {
        let agent = self.start();
        let membership = agent.membership("segments of both families", |m| m.view.segments.len() == 2).await;
        (agent, membership)
    }

    /// Starts the controller client and the plugin server, as `edge-agent run` does.
    pub(crate) fn start(&self) -> Agent {
        self.try_start(Arc::new(CertificateClock::default())).unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) fn try_start(&self, clock: Arc<CertificateClock>) -> Result<Agent, ControllerError> {
        let text = format!(
            "name = \"{}\"\nstate_dir = {:?}\nrun_dir = {:?}\n{}\n[controller]\nurls = [\"{}\"]\n{}\nspare = {}\nrollover_spread = \"1ms\"\n{}\n",
            self.name,
            self.state(),
            self.directory.path().join("run"),
            self.extra,
            self.url,
            self.credential,
            self.spare,
            self.controller_extra,
        );
        let path = self.directory.path().join("agent.toml");
        std::fs::write(&path, text).unwrap();
        let config = Arc::new(Config::load(&path).unwrap());
        let stop = CancellationToken::new();
        let (controller_channels, node_side) = channels(config.clone(), clock, stop.clone());
        node_side.uplink.send_modify(|uplink| uplink.underlay = self.underlay.clone());
        let state = Arc::new(open(&config.state_dir)?);
        let controller = ControllerClient::load(controller_channels, state)?;
        let tasks = vec![
            tokio::spawn(controller.clone().run()),
            tokio::spawn({
                let controller = controller.clone();
                async move { plugin_server::run(controller).await.unwrap() }
            }),
        ];
        Ok(Agent { node: node_side, socket: config.plugin_socket(), controller, stop, tasks })
    }
}

/// Opens the state directory, after waiting until the previous agent has closed it. Unlike a killed
/// process, the agent's threads take a moment to end.
fn open(path: &Path) -> Result<StateDir, StateDirError> {
    wait::expect("the agent before to let go of its state directory", HANG, || match StateDir::open(path) {
        Err(StateDirError::Running { .. }) => None,
        outcome => Some(outcome),
    })
}

/// A running agent: its controller client and plugin server.
pub(crate) struct Agent {
    pub(crate) node: NodeChannels,
    pub(crate) socket: PathBuf,
    pub(crate) controller: Arc<ControllerClient>,
    stop: CancellationToken,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Agent {
    /// Kills the agent, as `kill -9` does: nothing is sent, flushed or cleaned up.
    pub(crate) async fn kill(self) {
        for task in self.tasks {
            task.abort();
            let _ = task.await;
        }
    }

    /// Ends the agent, as SIGTERM does.
    pub(crate) async fn end(self) {
        self.stop.cancel();
        for task in self.tasks {
            soon("the end of the agent", task).await.unwrap();
        }
    }

    pub(crate) async fn membership(&self, what: &str, is: impl Fn(&Membership) -> bool) -> Membership {
        let mut receiver = self.node.membership.clone();
        let found = soon(what, receiver.wait_for(|membership| membership.as_ref().is_some_and(&is))).await.unwrap();
        found.clone().unwrap()
    }

    pub(crate) async fn joined(&self) -> Membership {
        self.membership("joining", |_| true).await
    }

    pub(crate) async fn status(&self, what: &str, is: impl Fn(&ControllerStatus) -> bool) -> ControllerStatus {
        let mut receiver = self.node.controller_status.clone();
        soon(what, receiver.wait_for(|status| is(status))).await.unwrap().clone()
    }

    /// Returns the first error that `status` shows.
    pub(crate) async fn error(&self) -> String {
        self.status("an error", |status| status.last_error.is_some()).await.last_error.unwrap()
    }

    pub(crate) async fn error_with(&self, words: &str) -> String {
        let has = |status: &ControllerStatus| status.last_error.as_ref().is_some_and(|error| error.contains(words));
        self.status(&format!("an error with {words:?}"), has).await.last_error.unwrap()
    }

    /// Sends a request, as the plugin does.
    pub(crate) fn ask(&self, request: AgentRequest) -> tokio::task::JoinHandle<AgentResponse> {
        let socket = self.socket.clone();
        tokio::task::spawn_blocking(move || {
            let connect = || std::os::unix::net::UnixStream::connect(&socket).ok();
            let mut stream = wait::expect("the agent to listen on its socket", HANG, connect);
            frame::write(&mut stream, &request).unwrap();
            frame::read(&mut stream).unwrap()
        })
    }

    pub(crate) async fn ask_and_wait(&self, request: AgentRequest) -> AgentResponse {
        soon("the agent's response", self.ask(request)).await.unwrap()
    }
}

/// Returns the counts that the plugin reports when pods have `leased` addresses from the segments
/// in `file`.
pub(crate) fn stock(file: &SegmentsFile, family: Family, leased: u64) -> Stock {
    Stock { family, free: edge_agent::state_dir::segments_file::capacity(file, family) - leased, leased }
}

pub(crate) fn parsed(token: &str) -> JoinToken {
    token.parse().unwrap()
}

pub(crate) fn exists(path: impl AsRef<Path>) -> bool {
    path.as_ref().exists()
}

/// Calls `check` until it returns `true`.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    soon(what, async {
        while !check().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

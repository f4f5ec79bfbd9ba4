//! Tests that a node that follows its view at one replica and continues at another misses no change
//! and receives no older view.

use std::path::{Path, PathBuf};
use std::time::Duration;

use edge_controller_kubernetes::ca_secret;
use edge_types::api::ViewEvent;
use edge_types::{JoinToken, NodeView};
use hyper::Method;
use interop_tests::kube::Subject;
use interop_tests::kube::suite::Test;
use interop_tests::suite;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};

use crate::behaviour::until;
use crate::cluster::{CONTROLLER, Cluster, NAMESPACE, PLANE, clean, controller, run};
use crate::harness::{Node, Stream, monitoring_page, try_operator};
use crate::process::Program;

pub(crate) const TESTS: &[Test] = &[
    ("a_node_goes_on_at_another_replica_when_its_own_is_killed_or_stops_and_misses_nothing", goes_on),
    ("replicas_of_two_releases_serve_one_cluster_and_lead_in_turn_and_a_node_misses_nothing", two_releases),
    ("a_replica_that_is_behind_tells_a_node_nothing_older_than_it_has", behind),
];

struct Replica {
    program: Program,
    ca: CertificateDer<'static>,
}

impl Replica {
    async fn start(cluster: &Cluster, kubeconfig: &Path) -> Self {
        Self::start_program(cluster, kubeconfig, present()).await
    }

    async fn start_program(cluster: &Cluster, kubeconfig: &Path, executable: PathBuf) -> Self {
        let mut program = Program::with(&format!(
            "cluster_ranges = [\"10.77.0.0/20\", \"fd77::/112\"]\n[kubernetes]\nkubeconfig = {kubeconfig:?}\nlease_seconds = 3\n"
        ));
        program.executable = executable;
        program.start();
        let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), NAMESPACE);
        let certificates = secrets.get(ca_secret::NAME).await.unwrap().data.unwrap().remove("ca.crt").unwrap();
        Self { program, ca: CertificateDer::from_pem_slice(&certificates.0).unwrap() }
    }

    async fn operator(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let socket = self.program.path("run/admin.sock");
        let (status, body) = try_operator(&socket, method, path, body).await.unwrap();
        assert!(status < 300, "{path}: {status} {body}");
        body
    }

    /// Joins a node at this replica.
    async fn node(&self, name: &str) -> Node {
        let request = json!({"role": "edge", "ttl_seconds": 3600, "uses": 1});
        let token = self.operator(Method::POST, "/v1/tokens", Some(request)).await;
        let token: JoinToken = token["token"].as_str().unwrap().parse().unwrap();
        Node::join(self.program.addresses[0], self.ca.clone(), &token, name).await
    }

    async fn community(&self, members: &[&str]) {
        self.operator(Method::PUT, "/v1/communities/alpha", Some(json!({"members": members}))).await;
    }

    /// Waits until this replica has the lease.
    async fn leads(&self) {
        until("a replica to lead", async || {
            let (_, page) = monitoring_page(self.program.addresses[1], "/metrics").await;
            page.lines().any(|line| line == "edge_controller_leader 1").then_some(())
        })
        .await;
    }

    async fn knows(&self, name: &str) {
        until("a replica to know a node", async || {
            let nodes = self.operator(Method::GET, "/v1/nodes", None).await;
            nodes.as_array().unwrap().iter().any(|node| node["name"] == name).then_some(())
        })
        .await;
    }
}

/// A client that follows a view as an agent does.
struct Follower {
    view: NodeView,
    epoch: String,
    stream: Stream,
    /// Whether the node has received nothing since it moved to this replica.
    arrived: bool,
}

/// A received line.
#[derive(Debug, PartialEq, Eq)]
enum ReceivedEvent {
    News,
    Heartbeat,
    Goodbye,
    End,
}

impl Follower {
    async fn begin(node: &Node) -> Self {
        let mut stream = node.watch_with("&changes=true").await;
        let (view, epoch) = stream.first().await;
        Self { view, epoch, stream, arrived: false }
    }

    /// Continues at another replica with its present view.
    async fn go_on(&mut self, node: &mut Node, replica: &Replica) {
        node.move_to_address(replica.program.addresses[0]);
        let parameters = format!("&changes=true&from={}&epoch={}", self.view.version, self.epoch);
        self.stream = node.watch_with(&parameters).await;
        self.arrived = true;
    }

    /// Reads the next line, and asserts that it is nothing older and that a change applies to the
    /// present view.
    async fn hear(&mut self) -> ReceivedEvent {
        let line = tokio::time::timeout(Duration::from_secs(60), self.stream.line()).await.expect("a line within 60 s");
        match line {
            None => ReceivedEvent::End,
            Some(ViewEvent::Goodbye { .. }) => ReceivedEvent::Goodbye,
            Some(ViewEvent::Measure(request)) => panic!("a request that was not asked for: {request:?}"),
            Some(ViewEvent::Heartbeat { version }) => {
                assert!(version == self.view.version || self.arrived && version == 0, "{version}");
                ReceivedEvent::Heartbeat
            }
            Some(ViewEvent::View { epoch, view }) => {
                assert!(view.version >= self.view.version, "{} after {}", view.version, self.view.version);
                (self.view, self.epoch, self.arrived) = (*view, epoch.unwrap(), false);
                ReceivedEvent::News
            }
            Some(ViewEvent::Change(change)) => {
                assert!(!self.arrived, "no replica knows what another one remembers");
                assert!(change.version > self.view.version, "{} after {}", change.version, self.view.version);
                let view = self.view.clone();
                self.view = change.apply_to(view).expect("a difference to what was told before");
                ReceivedEvent::News
            }
        }
    }

    /// Reads until it sees a peer. After a move the first line is a whole view; changes follow.
    async fn sees(&mut self, peer: &str) {
        while !self.view.peers.iter().any(|known| known.name.as_str() == peer) {
            assert!(matches!(self.hear().await, ReceivedEvent::News | ReceivedEvent::Heartbeat), "the stream ends");
        }
    }

    /// Reads until the stream ends. Returns the last line.
    async fn last(&mut self) -> ReceivedEvent {
        let mut last = ReceivedEvent::End;
        loop {
            match self.hear().await {
                ReceivedEvent::End => return last,
                heard => last = heard,
            }
        }
    }

    /// Asserts that the node's view is complete.
    async fn has_all(&mut self, node: &Node) {
        until("it to have what there is", async || {
            let (status, body) = node.ask(Method::GET, "/view", None).await;
            assert_eq!(status, 200, "{body}");
            let now: NodeView = serde_json::from_value(body).unwrap();
            // A version may rise without a change of this view.
            let same = NodeView { version: self.view.version, ..now.clone() } == self.view;
            if !same {
                self.hear().await;
            }
            same.then_some(())
        })
        .await;
    }
}

fn present() -> PathBuf {
    env!("CARGO_BIN_EXE_edge-controller").into()
}

fn goes_on() {
    goes_on_between([present(), present()]);
}

fn two_releases() {
    let older = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/older/edge-controller");
    if !older.is_file() {
        suite::skip("target/older has no programs of an earlier release: run `make older`");
    }
    goes_on_between([older.clone(), present()]);
    goes_on_between([present(), older]);
}

/// Runs a replica of each program. A node goes on at the other replica when its own is killed, and
/// when it stops.
fn goes_on_between(programs: [PathBuf; 2]) {
    run(async {
        let cluster = clean().await;
        let [one, other] = programs.map(|program| Replica::start_program(&cluster, &CONTROLLER, program));
        let mut one = one.await;
        one.leads().await;
        let mut other = other.await;
        let mut node = one.node("a").await;
        other.knows("a").await;
        let mut follower = Follower::begin(&node).await;
        let all = ["a", "p0", "p1", "p2", "p3", "p4"];
        other.community(&all).await;
        for peer in ["p0", "p1"] {
            other.node(peer).await;
            follower.sees(peer).await;
        }
        // The replica is killed when it may or may not have sent the last change.
        other.node("p2").await;
        one.program.kill();
        follower.last().await;
        follower.go_on(&mut node, &other).await;
        assert!(!follower.view.peers.iter().any(|peer| peer.name.as_str() == "p3"));
        other.node("p3").await;
        follower.sees("p2").await;
        follower.sees("p3").await;
        follower.has_all(&node).await;
        other.leads().await;
        let held = other.operator(Method::GET, "/v1/segments", None).await;
        // The replica starts again, while the other one stops and sends its nodes away.
        one.program.start();
        one.knows("p3").await;
        assert_eq!(one.operator(Method::GET, "/v1/segments", None).await, held);
        let stopping = tokio::task::spawn_blocking(move || {
            assert_eq!(other.program.stop(), Some(0));
        });
        one.node("p4").await;
        assert_eq!(follower.last().await, ReceivedEvent::Goodbye);
        follower.go_on(&mut node, &one).await;
        follower.sees("p4").await;
        follower.has_all(&node).await;
        stopping.await.unwrap();
        one.leads().await;
        assert_eq!(follower.view.peers.len(), 5);
    });
}

fn behind() {
    run(async {
        let cluster = clean().await;
        let one = Replica::start(&cluster, &CONTROLLER).await;
        let late = Replica::start(&cluster, &controller("late")).await;
        let mut node = one.node("a").await;
        late.knows("a").await;
        // The replica receives nothing any more; open watches would continue.
        PLANE.revoke("late-custom").unwrap();
        PLANE.revoke("late-core").unwrap();
        PLANE.wait_right(Subject::User("late"), "watch", "edgenodes.edge-cni.io", false).unwrap();
        PLANE.restart_api_server().unwrap();
        let mut follower = Follower::begin(&node).await;
        until("the API server to be reached again", async || {
            let socket = one.program.path("run/admin.sock");
            let members = Some(json!({"members": ["a", "new"]}));
            let (status, _) = try_operator(&socket, Method::PUT, "/v1/communities/alpha", members).await.unwrap();
            (status == 204).then_some(())
        })
        .await;
        one.node("new").await;
        follower.sees("new").await;
        let had = follower.view.version;
        follower.go_on(&mut node, &late).await;
        for _ in 0..2 {
            assert_eq!(follower.hear().await, ReceivedEvent::Heartbeat, "{:?}", follower.view);
        }
        assert!(late.operator(Method::GET, "/v1/nodes", None).await.as_array().unwrap().len() == 1, "it is behind");
        controller("late");
        while follower.hear().await == ReceivedEvent::Heartbeat {}
        assert!(follower.view.version >= had);
        follower.sees("new").await;
        follower.has_all(&node).await;
    });
}

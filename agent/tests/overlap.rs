//! Tests a node whose LAN or resolver lies within the cluster ranges. The program runs with a real
//! controller and real XFRM policies, in separate namespaces.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use edge_controller::server::Server;
use edge_controller_domain::clock::Clock;
use interop_tests::netns::{
    KilledOnDrop, add_far_host, enter, is_in_namespaces, is_root_or_skips, passes_in_namespaces, run,
};
use interop_tests::wait;
use serde_json::Value;

/// Timeout after which a test fails.
const HANG: Duration = Duration::from_secs(60);
/// Another server on the gateway.
const ON_THE_GATEWAY: &str = "192.168.1.1:8053";

#[test]
fn a_node_that_joins_where_the_ranges_hold_its_lan_keeps_gateway_and_controller_and_says_why() {
    if !is_root_or_skips() {
        return;
    }
    passes_in_namespaces("a_node_in_the_clusters_range");
}

#[test]
fn a_view_whose_ranges_hold_a_resolver_is_refused_unless_the_operator_lists_it() {
    if !is_root_or_skips() {
        return;
    }
    passes_in_namespaces("a_resolver_in_the_clusters_range");
}

/// Creates the node's network, starts the controller and another server in the other namespace, and
/// writes a token for the node. Both servers end with the process.
fn start_controller(directory: &Path, range: &str) {
    add_far_host();
    for line in [
        "ip addr add 192.168.1.10/24 dev uplink",
        "ip -n far addr add 192.168.1.1/24 dev far",
        "ip -n far addr add 203.0.113.1/32 dev lo",
        "ip route add default via 192.168.1.1",
    ] {
        run(line);
    }
    let text = format!(
        "server_names = [\"203.0.113.1\"]\nlisten = [\"203.0.113.1:8443\"]\nstate_dir = {:?}\nadmin_socket = {:?}\n[observe]\nlisten = []\n\
         [segments]\ncluster_ranges = [{range:?}]\n",
        directory.join("controller"),
        directory.join("controller.sock"),
    );
    let path = directory.join("controller.toml");
    fs::write(&path, text).unwrap();
    let (ready, started) = mpsc::channel();
    std::thread::spawn(move || {
        enter(Path::new("/run/netns/far"));
        let _somebody = TcpListener::bind(ON_THE_GATEWAY).unwrap();
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let config = edge_controller::config::Config::load(&path).unwrap();
            let _server = Server::start(config, Clock::system()).await.unwrap();
            ready.send(()).unwrap();
            std::future::pending::<()>().await;
        });
    });
    started.recv_timeout(HANG).unwrap();
    let token = operator(directory, "POST", "/v1/tokens", r#"{"role":"edge","ttl_seconds":3600,"uses":1}"#);
    fs::write(directory.join("token"), token["token"].as_str().unwrap()).unwrap();
}

/// A running agent.
struct Agent<'a> {
    directory: &'a Path,
    _process: KilledOnDrop,
}

impl<'a> Agent<'a> {
    fn start(directory: &'a Path, keys: &str) -> Self {
        let text = format!(
            "name = \"edge-1\"\nstate_dir = {:?}\nrun_dir = {:?}\nhold_sockets = false\n{keys}\n[cni]\nconf_dir = {2:?}\nbin_dir = {2:?}\n\
             [controller]\nurls = [\"https://203.0.113.1:8443\"]\ntoken_file = \"token\"\n",
            directory.join("state"),
            directory.join("run"),
            directory.join("cni"),
        );
        fs::write(directory.join("agent.toml"), text).unwrap();
        let mut command = Self::command(directory, "run");
        Self { directory, _process: KilledOnDrop(command.stdout(Stdio::null()).spawn().unwrap()) }
    }

    fn command(directory: &Path, name: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edge-agent"));
        command.args([name, "--config"]).arg(directory.join("agent.toml"));
        command
    }

    /// Returns the controller part of `status`, as soon as it satisfies the condition.
    fn status<T>(&self, what: &str, condition: impl Fn(&Value) -> Option<T>) -> T {
        wait::expect(what, HANG, || {
            let status = Self::command(self.directory, "status").arg("--json").output().unwrap();
            condition(&serde_json::from_slice::<Value>(&status.stdout).ok()?["cloud"])
        })
    }

    fn refusal(&self) -> String {
        self.status("the refusal", |cloud| cloud["refused_view"].as_str().map(str::to_owned))
    }
}

fn operator(directory: &Path, method: &str, path: &str, body: &str) -> Value {
    let mut stream = UnixStream::connect(directory.join("controller.sock")).unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: c\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 2"), "{answer}");
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

fn reaches(address: &str) -> bool {
    TcpStream::connect_timeout(&address.parse::<SocketAddr>().unwrap(), Duration::from_secs(5)).is_ok()
}

#[test]
#[ignore = "runs in a namespace, started by the test before"]
fn a_node_in_the_clusters_range() {
    if !is_in_namespaces() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    start_controller(directory, "192.168.0.0/16");
    let agent = Agent::start(directory, "");
    let why = agent.refusal();
    assert!(why.contains("cluster range 192.168.0.0/16 holds this node's own address 192.168.1.10"), "{why}");
    let nodes = wait::expect("the operator's sight of it", HANG, || {
        let nodes = operator(directory, "GET", "/v1/nodes", "");
        nodes[0]["refused_view"].as_str().map(str::to_owned)
    });
    assert_eq!(nodes, why);
    assert!(reaches(ON_THE_GATEWAY) && reaches("203.0.113.1:8443"));
    let routes = Command::new("ip").args(["route"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&routes.stdout).contains("ecni-guard"), "nothing was installed");
}

#[test]
#[ignore = "runs in a namespace, started by the test before"]
fn a_resolver_in_the_clusters_range() {
    if !is_in_namespaces() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    start_controller(directory, "10.77.0.0/16");
    // Another resolver outside of the range and a search list like that of a pod make no
    // difference.
    let text = "search svc.cluster.local\nnameserver 192.0.2.53\nnameserver 10.77.0.53\n";
    fs::write(directory.join("resolv.conf"), text).unwrap();
    run(&format!("mount --bind {} /etc/resolv.conf", directory.join("resolv.conf").display()));
    let agent = Agent::start(directory, "");
    let why = agent.refusal();
    for words in ["cluster range 10.77.0.0/16 holds its name server 10.77.0.53", "resolvers_behind_tunnels"] {
        assert!(why.contains(words), "{why}");
    }
    assert!(!directory.join("state/segments.json").exists() && !directory.join("state/view.json").exists());
    drop(agent);
    let agent = Agent::start(directory, "resolvers_behind_tunnels = [\"192.0.2.53\"]");
    // The versions of the views may differ.
    let reason = |why: &str| why.split_once(" is refused").unwrap().1.to_owned();
    assert_eq!(reason(&agent.refusal()), reason(&why), "the key excepts other addresses alone");
    drop(agent);
    let agent = Agent::start(directory, "resolvers_behind_tunnels = [\"10.77.0.53\"]");
    agent.status("the view", |cloud| (cloud["connected"] == true && cloud["refused_view"].is_null()).then_some(()));
    wait::expect("the view on disk", HANG, || directory.join("state/view.json").exists().then_some(()));
}

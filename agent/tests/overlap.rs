//! A node whose LAN lies within the cluster's ranges. Tests the program with a real controller and
//! real XFRM policies, in namespaces of their own.

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

/// Ends a test that hangs.
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

/// Starts the controller and another server in the other namespace. They end with the process.
fn start_controller(directory: &Path) {
    let text = format!(
        "server_names = [\"203.0.113.1\"]\nlisten = [\"203.0.113.1:8443\"]\nstate_dir = {:?}\nadmin_socket = {:?}\n[observe]\nlisten = []\n\
         [segments]\ncluster_ranges = [\"192.168.0.0/16\"]\n",
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
    add_far_host();
    for line in [
        "ip addr add 192.168.1.10/24 dev uplink",
        "ip -n far addr add 192.168.1.1/24 dev far",
        "ip -n far addr add 203.0.113.1/32 dev lo",
        "ip route add default via 192.168.1.1",
    ] {
        run(line);
    }
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    start_controller(directory);
    let token = operator(directory, "POST", "/v1/tokens", r#"{"role":"edge","ttl_seconds":3600,"uses":1}"#);
    fs::write(directory.join("token"), token["token"].as_str().unwrap()).unwrap();
    let file = directory.join("agent.toml");
    let text = format!(
        "name = \"edge-1\"\nstate_dir = {:?}\nrun_dir = {:?}\nhold_sockets = false\n[cni]\nconf_dir = {2:?}\nbin_dir = {2:?}\n[controller]\nurls = [\"https://203.0.113.1:8443\"]\n\
         token_file = \"token\"\n",
        directory.join("state"),
        directory.join("run"),
        directory.join("cni"),
    );
    fs::write(&file, text).unwrap();
    let program = env!("CARGO_BIN_EXE_edge-agent");
    let agent = Command::new(program).args(["run", "--config"]).arg(&file).stdout(Stdio::null()).spawn();
    let _agent = KilledOnDrop(agent.unwrap());
    let why = wait::expect("the refusal", HANG, || {
        let status = Command::new(program).args(["status", "--json", "--config"]).arg(&file).output().unwrap();
        let status: Value = serde_json::from_slice(&status.stdout).ok()?;
        status["cloud"]["refused_view"].as_str().map(str::to_owned)
    });
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

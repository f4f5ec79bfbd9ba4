//! Tests which events a filter selects from the agent's log. The program runs in a separate
//! namespace, with two static peers that do not answer.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use interop_tests::netns::{KilledOnDrop, UnnamedNamespace, is_root_or_skips, succeed};

/// Timeout after which a test fails.
const HANG: Duration = Duration::from_secs(60);

fn peer(name: &str, remote: &str, network: &str) -> String {
    format!(
        "[[peer]]\nname = \"{name}\"\nremote = \"{remote}\"\nlocal_id = \"edge-1\"\nremote_id = \"{name}\"\npsk = \"correct horse battery staple\"\n\
         local_subnets = [\"10.1.0.0/24\"]\nremote_subnets = [\"{network}\"]\n"
    )
}

fn configure(directory: &Path) -> PathBuf {
    let file = directory.join("agent.toml");
    let text = format!(
        "name = \"edge-1\"\nstate_dir = {:?}\nrun_dir = {:?}\nhold_sockets = false\n[timing]\nretransmit = \"50ms\"\ntransmissions = 2\nretry = \"100ms\"\nretry_max = \"200ms\"\n{}{}",
        directory.join("state"),
        directory.join("run"),
        peer("edge-2", "192.0.2.2", "10.2.0.0/24"),
        peer("edge-20", "192.0.2.20", "10.20.0.0/24"),
    );
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    file
}

/// Creates a namespace whose uplink reaches no other host.
fn namespace() -> UnnamedNamespace {
    let namespace = UnnamedNamespace::new();
    for line in [
        "link set lo up",
        "link add eth0 type veth peer name other",
        "address add 192.0.2.1/24 dev eth0",
        "link set eth0 up",
        "link set other up",
    ] {
        succeed(namespace.command("ip").args(line.split(' ')));
    }
    namespace
}

#[test]
fn a_filter_for_one_peer_shows_more_of_it_than_of_another_peer() {
    if !is_root_or_skips() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (namespace, file) = (namespace(), configure(directory.path()));
    let mut agent = namespace.command(env!("CARGO_BIN_EXE_edge-agent"));
    agent
        .args(["run", "--config"])
        .arg(file)
        .env("EDGE_AGENT_LOG", "info,[peer{peer=edge-2}]=debug")
        .stderr(Stdio::piped());
    let mut child = agent.spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let _running = KilledOnDrop(child);
    let (to, log) = mpsc::channel();
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(to.send(line))));
    let of = |line: &str, level: &str, peer: &str| {
        line.contains(&format!(" {level} node{{node=edge-1}}:peer{{peer={peer}}}: "))
    };
    // The endpoint logs a failure at level debug. Then the agent logs a warning.
    let (mut details, mut warning_of_other) = (false, false);
    while !(details && warning_of_other) {
        let line = log.recv_timeout(HANG).expect("the agent logs the failures of both peers");
        details |= of(&line, "DEBUG", "edge-2");
        warning_of_other |= of(&line, "WARN", "edge-20");
        assert!(!of(&line, "DEBUG", "edge-20"), "{line}");
    }
}

#[test]
fn a_log_of_json_has_one_object_a_line_with_the_names_of_node_and_peer() {
    if !is_root_or_skips() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (namespace, file) = (namespace(), configure(directory.path()));
    let mut agent = namespace.command(env!("CARGO_BIN_EXE_edge-agent"));
    agent.args(["run", "--log-json", "--config"]).arg(file).stderr(Stdio::piped());
    let mut child = agent.spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let _running = KilledOnDrop(child);
    let is_failure = |object: &serde_json::Value| object["level"] == "WARN" && object["spans"][1]["peer"] == "edge-2";
    let failure = lines.map(|line| serde_json::from_str(&line).unwrap()).find(is_failure).unwrap();
    assert_eq!(failure["spans"][0]["node"], "edge-1");
    assert!(failure["fields"]["message"].as_str().is_some_and(|message| message.contains("edge-2")), "{failure}");
}

#[test]
fn a_network_at_both_ends_of_a_tunnel_is_a_warning_when_the_agent_starts() {
    if !is_root_or_skips() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (namespace, file) = (namespace(), configure(directory.path()));
    let text = fs::read_to_string(&file).unwrap().replace("10.20.0.0/24", "10.1.0.0/24");
    fs::write(&file, text).unwrap();
    let mut agent = namespace.command(env!("CARGO_BIN_EXE_edge-agent"));
    agent.args(["run", "--config"]).arg(file).stderr(Stdio::piped());
    let mut child = agent.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let _running = KilledOnDrop(child);
    let warning = lines.find(|line| line.contains(" WARN ")).expect("the agent logs a warning");
    for words in ["edge-20", "local_subnets 10.1.0.0/24 and remote_subnets 10.1.0.0/24 are the same network"] {
        assert!(warning.contains(words), "{warning}");
    }
}

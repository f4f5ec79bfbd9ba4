//! Tests that `edge-agent diagnose` names the fault between two real agents, which are in separate
//! namespaces, joined by a cable.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use interop_tests::netns::{KilledOnDrop, UnnamedNamespace, is_root_or_skips};
use interop_tests::wait;

/// Time limit for a test that hangs.
const HANG: Duration = Duration::from_secs(120);
const SECRET: &str = "correct horse battery staple";

/// A node with one static peer: the other end of its cable.
struct Node {
    namespace: UnnamedNamespace,
    directory: tempfile::TempDir,
    name: &'static str,
}

impl Node {
    fn new(name: &'static str) -> Self {
        Self { namespace: UnnamedNamespace::new(), directory: tempfile::tempdir().unwrap(), name }
    }

    fn ip(&self, words: &str) {
        let status = self.namespace.command("ip").args(words.split(' ')).status().unwrap();
        assert!(status.success(), "ip {words}");
    }

    fn nft(&self, rules: &str) {
        assert!(self.namespace.command("nft").arg(rules).status().unwrap().success(), "nft {rules}");
    }

    /// Writes the configuration: the peer's address and further keys of the peer.
    fn configure(&self, remote: &str, secret: &str, more: &str) {
        let (here, there) = if self.name == "earth" { (1, 2) } else { (2, 1) };
        let other = if self.name == "earth" { "moon" } else { "earth" };
        let text = format!(
            "state_dir = {:?}\nrun_dir = {:?}\nhold_sockets = false\n[[peer]]\nname = \"{other}\"\nremote = \"{remote}\"\n\
             local_id = \"{}.example\"\nremote_id = \"{other}.example\"\npsk = \"{secret}\"\n\
             local_subnets = [\"10.{here}.0.0/24\"]\nremote_subnets = [\"10.{there}.0.0/24\"]\n{more}",
            self.directory.path().join("state"),
            self.directory.path().join("run"),
            self.name,
        );
        let file = self.directory.path().join("agent.toml");
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn agent(&self, words: &[&str]) -> Command {
        let mut command = self.namespace.command(env!("CARGO_BIN_EXE_edge-agent"));
        command.args(words).arg("--config").arg(self.directory.path().join("agent.toml"));
        command
    }

    fn start(&self) -> KilledOnDrop {
        KilledOnDrop(self.agent(&["run"]).stderr(Stdio::null()).spawn().unwrap())
    }

    /// Returns the last line of the diagnosis, and the exit code.
    fn conclusion(&self, about: &[&str]) -> (String, Option<i32>) {
        let output = self.agent(&[&["diagnose"], about].concat()).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (text.lines().last().unwrap_or_default().to_owned(), output.status.code())
    }

    /// Waits until the diagnosis ends with these words.
    fn concludes(&self, expected: &str) {
        let mut last = String::new();
        let found = wait::until(expected, HANG, || {
            last = self.conclusion(&[]).0;
            Ok(last.contains(expected).then_some(()))
        });
        found.unwrap_or_else(|error| panic!("{error}; the last conclusion: {last}"));
    }
}

/// Makes two nodes, joined by a cable: earth is 192.0.2.1, moon is 192.0.2.2.
fn joined() -> (Node, Node) {
    let (earth, moon) = (Node::new("earth"), Node::new("moon"));
    earth.ip(&format!("link add cable type veth peer name cable netns {}", moon.namespace.pid()));
    for (node, address) in [(&earth, "192.0.2.1/24"), (&moon, "192.0.2.2/24")] {
        node.ip("link set lo up");
        node.ip(&format!("addr add {address} dev cable"));
        node.ip("link set cable up");
    }
    (earth, moon)
}

#[test]
fn what_keeps_two_agents_apart_is_named() {
    if !is_root_or_skips() {
        return;
    }
    let (earth, moon) = joined();
    earth.configure("192.0.2.2", SECRET, "");
    moon.configure("192.0.2.1", "another", "");
    let (conclusion, code) = earth.conclusion(&[]);
    assert!(
        conclusion.starts_with("What is wrong: agent: ") && conclusion.contains("no agent answers"),
        "{conclusion}"
    );
    assert_eq!(code, Some(1));

    let _agent = earth.start();
    earth.concludes("no IKE daemon runs at 192.0.2.2:500");
    let other = moon.start();
    earth.concludes("moon: the tunnel is not up");
    earth.concludes("pre-shared key");
    moon.nft("table inet t { chain c { type filter hook input priority 0; udp dport 4500 drop; }; }");
    earth.concludes("192.0.2.2 answers at UDP port 500 alone: open port 4500 too");
    moon.nft("table inet t { chain c { udp dport 500 drop; }; }");
    earth.concludes("nothing answers at 192.0.2.2:500 192.0.2.2:4500: UDP ports 500 and 4500 must be open");
    earth.ip("link set cable down");
    earth.concludes("this host has no route to any peer, such as moon at 192.0.2.2");
    earth.ip("link set cable up");
    earth.concludes("nothing answers at 192.0.2.2:500");
    drop(other);

    let (unknown, code) = earth.conclusion(&["sun"]);
    assert_eq!((unknown.as_str(), code), ("", Some(1)), "neither a peer nor an address");
    let (outside, code) = earth.conclusion(&["8.8.8.8"]);
    assert!(outside.contains("8.8.8.8 is in no network of the cluster"), "{outside}");
    assert_eq!(code, Some(0));
    let json = earth.agent(&["diagnose", "10.2.0.9", "--json"]).output().unwrap().stdout;
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert!(json["conclusion"].as_str().unwrap().starts_with("What is wrong: moon: "), "{json}");
    assert!(!json.to_string().contains("horse"), "no secret");
}

#[test]
fn what_two_agents_do_not_agree_on_is_named() {
    if !is_root_or_skips() {
        return;
    }
    for (more, expected) in [
        ("ike_proposals = [\"chacha20poly1305-prfsha256-x25519\"]\n", "proposal"),
        ("esp_proposals = [\"chacha20poly1305\"]\n", "proposal"),
    ] {
        let (earth, moon) = joined();
        earth.configure("192.0.2.2", SECRET, more);
        moon.configure("192.0.2.1", SECRET, &more.replace("chacha20poly1305", "aes256gcm16"));
        let _agents = (earth.start(), moon.start());
        earth.concludes(expected);
    }
}

//! Two nodes for the diagnosis: each with its own namespace, configuration and agent.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use interop_tests::netns::{KilledOnDrop, UnnamedNamespace};
use interop_tests::wait;

/// Timeout after which a test fails.
pub(crate) const HANG: Duration = Duration::from_secs(120);
pub(crate) const SECRET: &str = "correct horse battery staple";

/// A node with one static peer at the other end of its veth pair.
pub(crate) struct Node {
    pub(crate) namespace: UnnamedNamespace,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) name: &'static str,
}

impl Node {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { namespace: UnnamedNamespace::new(), directory: tempfile::tempdir().unwrap(), name }
    }

    pub(crate) fn ip(&self, words: &str) {
        let status = self.namespace.command("ip").args(words.split(' ')).status().unwrap();
        assert!(status.success(), "ip {words}");
    }

    pub(crate) fn nft(&self, rules: &str) {
        assert!(self.namespace.command("nft").arg(rules).status().unwrap().success(), "nft {rules}");
    }

    /// Writes the configuration with the peer's address and further keys for the peer.
    pub(crate) fn configure(&self, remote: &str, secret: &str, more: &str) {
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

    /// Replaces a part of the configuration.
    pub(crate) fn reconfigure(&self, from: &str, to: &str) {
        let file = self.path("agent.toml");
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(&file, text.replace(from, to)).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file that only its owner may read.
    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub(crate) fn agent(&self, words: &[&str]) -> Command {
        let mut command = self.namespace.command(env!("CARGO_BIN_EXE_edge-agent"));
        command.args(words).arg("--config").arg(self.directory.path().join("agent.toml"));
        command
    }

    pub(crate) fn start(&self) -> KilledOnDrop {
        let log = fs::File::create(self.log()).unwrap();
        KilledOnDrop(self.agent(&["run"]).stderr(log).spawn().unwrap())
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// Waits until the agent has logged `count` times that a capture has ended because its command
    /// has closed the connection.
    pub(crate) fn ends_captures(&self, count: usize) {
        wait::expect("the end of a capture", HANG, || {
            let log = fs::read_to_string(self.log()).unwrap();
            (log.matches("the capture of IKE messages ends").count() == count).then_some(())
        });
    }

    /// Returns the last line of the diagnosis and the exit code.
    pub(crate) fn conclusion(&self, about: &[&str]) -> (String, Option<i32>) {
        let output = self.agent(&[&["diagnose"], about].concat()).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (text.lines().last().unwrap_or_default().to_owned(), output.status.code())
    }

    /// Waits until the last line of the diagnosis has these words.
    pub(crate) fn concludes(&self, expected: &str) {
        self.concludes_with(&[expected]);
    }

    /// Waits until the last line of the diagnosis has all of these words.
    pub(crate) fn concludes_with(&self, expected: &[&str]) {
        let found = wait::until(&expected.join(", "), HANG, || {
            let (last, _) = self.conclusion(&[]);
            anyhow::ensure!(expected.iter().all(|words| last.contains(words)), "the last conclusion: {last}");
            Ok(())
        });
        found.unwrap_or_else(|error| panic!("{error}"));
    }
}

/// Creates two nodes that are connected by a veth pair. earth has 192.0.2.1 and 2001:db8::1, moon
/// has 192.0.2.2 and 2001:db8::2.
pub(crate) fn joined() -> (Node, Node) {
    let (earth, moon) = (Node::new("earth"), Node::new("moon"));
    earth.ip(&format!("link add cable type veth peer name cable netns {}", moon.namespace.pid()));
    for (node, address, ipv6) in [(&earth, "192.0.2.1/24", "2001:db8::1/64"), (&moon, "192.0.2.2/24", "2001:db8::2/64")]
    {
        node.ip("link set lo up");
        node.ip(&format!("addr add {address} dev cable"));
        node.ip(&format!("addr add {ipv6} dev cable nodad"));
        node.ip("link set cable up");
    }
    (earth, moon)
}

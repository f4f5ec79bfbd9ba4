//! Runs the scenario's side: starts the process with the peers and sends it requests.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use super::protocol::{PeerSet, Progress, Request};
use crate::topology::Node;

/// A running process with peers. It ends when this handle is dropped.
pub struct IkePeers {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    set: PeerSet,
}

impl IkePeers {
    /// Starts the process on `node`, gives the node the peers' addresses, and opens the peers'
    /// sockets. The process's log is `NODE.ike-peers.log`.
    ///
    /// # Errors
    /// Returns an error if the node has such a process already, or the process ends.
    pub fn start(node: &Node, set: &PeerSet) -> Result<Self> {
        // One route makes all addresses in the network the node's own.
        node.sh(&format!("ip route replace local {} dev lo", PeerSet::addresses()))?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(node.out().join(format!("{}.ike-peers.log", node.name())))?;
        let mut child = node
            .command(std::env::current_exe()?)
            .args(["guest", "ike-peers"])
            .arg(serde_json::to_string(set)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting the IKE peers on {}", node.name()))?;
        let stdin = child.stdin.take().context("no standard input")?;
        let stdout = BufReader::new(child.stdout.take().context("no standard output")?);
        let mut peers = Self { child, stdin, stdout, set: set.clone() };
        peers.progress()?;
        Ok(peers)
    }

    /// Sets up a tunnel between each peer and the responder, and waits until all are up.
    ///
    /// # Errors
    /// Returns an error if the process ends. Attempts that fail are repeated, and counted in the
    /// result.
    pub fn up(&mut self) -> Result<Progress> {
        self.ask(Request::Up)
    }

    /// Rekeys the CHILD_SA of each peer, and waits until all are rekeyed.
    ///
    /// # Errors
    /// Returns an error if the process ends, or a peer has no CHILD_SA.
    pub fn rekey(&mut self) -> Result<Progress> {
        self.ask(Request::Rekey)
    }

    /// Returns the present state of the peers.
    ///
    /// # Errors
    /// Returns an error if the process has ended.
    pub fn report(&mut self) -> Result<Progress> {
        self.ask(Request::Report)
    }

    fn ask(&mut self, request: Request) -> Result<Progress> {
        let mut line = serde_json::to_vec(&request)?;
        line.push(b'\n');
        self.stdin.write_all(&line).context("the process of the IKE peers has ended; see its log")?;
        let progress = self.progress()?;
        if request != Request::Report {
            let count = self.set.count;
            ensure!(progress.up == count, "{} of {count} peers are up: {progress:?}", progress.up);
        }
        Ok(progress)
    }

    fn progress(&mut self) -> Result<Progress> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        if line.is_empty() {
            bail!("the process of the IKE peers ended ({}); see its log", self.child.wait()?);
        }
        serde_json::from_str(&line).with_context(|| format!("no progress report: {line}"))
    }
}

impl Drop for IkePeers {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

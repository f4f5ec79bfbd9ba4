//! Runs the controller's program as an operator does.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

pub(crate) struct Program {
    directory: tempfile::TempDir,
    /// The program that runs: the present one, unless a test replaces it.
    pub(crate) executable: PathBuf,
    pub(crate) server: Option<Child>,
    /// Limit of open files; `None` for the default.
    pub(crate) files: Option<u32>,
    /// Addresses for nodes, and for health and metrics.
    pub(crate) addresses: [SocketAddr; 2],
    /// The log lines of all runs, each from the time when the server began to serve.
    said: Arc<Mutex<Vec<String>>>,
    /// The thread that reads the log of the present or the last run.
    listener: Option<JoinHandle<()>>,
}

impl Program {
    pub(crate) fn new() -> Self {
        Self::with("cluster_ranges = [\"10.77.0.0/16\"]\n")
    }

    /// Configures this content of `[segments]`, and the tables after it.
    pub(crate) fn with(segments: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = format!(
            "server_names = [\"localhost\", \"cloud.test\"]\nlisten = [\"127.0.0.1:0\"]\nstate_dir = {:?}\nadmin_socket = {:?}\n\
             heartbeat_seconds = 1\n[observe]\nlisten = [\"127.0.0.1:0\"]\n[segments]\n{segments}",
            directory.path().join("state"),
            directory.path().join("run/admin.sock"),
        );
        std::fs::write(directory.path().join("c.toml"), config).unwrap();
        Self {
            directory,
            executable: env!("CARGO_BIN_EXE_edge-controller").into(),
            server: None,
            files: None,
            addresses: ["127.0.0.1:0".parse().unwrap(); 2],
            said: Arc::default(),
            listener: None,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.executable);
        command.args(args).env("EDGE_CONTROLLER_SOCKET", self.path("run/admin.sock")).env_remove("RUST_LOG");
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let output = self.run(&[args, &["--json"]].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Starts the server and waits until it serves.
    pub(crate) fn start(&mut self) {
        self.serves().unwrap_or_else(|said| panic!("{said}"));
    }

    /// Starts the server, which must exit with 3 before it serves. Returns its log.
    pub(crate) fn does_not_start(&mut self) -> String {
        self.serves().expect_err("it serves")
    }

    /// Starts the server. Returns its log if it exited with 3 instead of serving.
    pub(crate) fn serves(&mut self) -> Result<(), String> {
        let config = self.path("c.toml");
        let mut command = self.command(&["run", "--config", config.to_str().unwrap()]);
        if let Some(files) = self.files {
            let mut limited = Command::new("sh");
            limited.args(["-c", &format!("ulimit -n {files} && exec \"$0\" \"$@\"")]);
            limited.arg(command.get_program()).args(command.get_args()).env_remove("RUST_LOG");
            command = limited;
        }
        let mut server = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(server.stderr.take().unwrap()).lines();
        let mut said = String::new();
        let serving = lines.by_ref().map_while(Result::ok).any(|line| {
            said.push_str(&line);
            line.contains("serving")
        });
        if !serving {
            assert_eq!(server.wait().unwrap().code(), Some(3), "{said}");
            return Err(said);
        }
        self.addresses = ["addresses=[", "observe=["].map(|field| {
            let (address, _) = said.split_once(field).unwrap().1.split_once(']').unwrap();
            address.parse().unwrap_or_else(|_| panic!("{said}"))
        });
        // The log must be read. Otherwise the server blocks when the pipe is full.
        let said = self.said.clone();
        self.listener = Some(std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| said.lock().unwrap().push(line));
        }));
        self.server = Some(server);
        Ok(())
    }

    /// Starts the server and kills it after this time, in any state.
    pub(crate) fn start_and_kill(&self, after: Duration) {
        let config = self.path("c.toml");
        let mut server =
            self.command(&["run", "--config", config.to_str().unwrap()]).stderr(Stdio::null()).spawn().unwrap();
        #[expect(clippy::disallowed_methods, reason = "it chooses the moment of a kill")]
        std::thread::sleep(after);
        server.kill().unwrap();
        server.wait().unwrap();
    }

    /// Stops the server as an operator does, and waits. Returns its exit code.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        let mut server = self.server.take().unwrap();
        kill_process(Pid::from_child(&server), Signal::TERM).unwrap();
        server.wait().unwrap().code()
    }

    /// Returns the log lines of all runs, each from the start of service to the end.
    pub(crate) fn log(&mut self) -> String {
        self.listener.take().unwrap().join().unwrap();
        self.said.lock().unwrap().iter().fold(String::new(), |log, line| log + line + "\n")
    }

    /// Returns the last lines of the log.
    pub(crate) fn last_words(&self, count: usize) -> String {
        let said = self.said.lock().unwrap();
        said[said.len().saturating_sub(count)..].join("\n")
    }

    pub(crate) fn kill(&mut self) {
        let mut server = self.server.take().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.server.is_some() {
            self.kill();
        }
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn exists(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}

//! Runs the measured programs as an operator does.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::cluster::Cluster;

/// Time limit for a program that hangs.
const HANG: Duration = Duration::from_secs(120);

/// A running program.
pub(crate) struct Program {
    child: Child,
    /// Address at which nodes are served.
    pub(crate) address: SocketAddr,
    /// Time from the start of the program until it was ready.
    pub(crate) took: Duration,
}

impl Program {
    /// Starts the controller on one core or on all, and returns when it is ready.
    pub(crate) fn controller(cluster: &Cluster, core: Option<usize>) -> Self {
        let [address, observe] = [free_port(), free_port()];
        let config = format!(
            "server_names = [\"127.0.0.1\"]\nlisten = [\"{address}\"]\nstate_dir = {:?}\nadmin_socket = {:?}\n\
             [observe]\nlisten = [\"{observe}\"]\n\
             [segments]\ncluster_ranges = [\"10.0.0.0/8\", \"fd77::/48\"]\nmax_per_node = 1000000\n{}",
            cluster.state(),
            cluster.path("admin.sock"),
            cluster.config,
        );
        let path = cluster.path("controller.toml");
        std::fs::write(&path, config).expect("a configuration");
        let mut command = Command::new(env!("CARGO_BIN_EXE_edge-controller"));
        command.arg("run").arg("--config").arg(path).envs(unit_environment());
        Self::start(cluster, command, address, core, || {
            let Ok(mut stream) = TcpStream::connect(observe) else { return false };
            let mut response = String::new();
            let asked = stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            asked.and_then(|()| stream.read_to_string(&mut response)).is_ok() && response.starts_with("HTTP/1.1 200")
        })
    }

    /// Starts this program again with other arguments, and returns when `address` is served.
    pub(crate) fn this(cluster: &Cluster, arguments: &[&str], address: SocketAddr, core: usize) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(arguments);
        Self::start(cluster, command, address, Some(core), || TcpStream::connect(address).is_ok())
    }

    fn start(
        cluster: &Cluster,
        mut command: Command,
        address: SocketAddr,
        core: Option<usize>,
        mut ready: impl FnMut() -> bool,
    ) -> Self {
        let log = std::fs::File::create(cluster.path("log")).expect("a log");
        command.env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let started = Instant::now();
        // A child has the affinity of the thread that starts it.
        let spawn = move || {
            core.into_iter().for_each(stay_on);
            command.spawn().expect("the program starts")
        };
        let mut child = std::thread::spawn(spawn).join().expect("the program starts");
        while !ready() {
            if let Some(status) = child.try_wait().expect("a child") {
                panic!("it ended with {status}: {}", std::fs::read_to_string(cluster.path("log")).unwrap_or_default());
            }
            assert!(started.elapsed() < HANG, "it does not get ready");
            #[expect(clippy::disallowed_methods, reason = "the time to readiness is measured to the millisecond")]
            std::thread::sleep(Duration::from_millis(1));
        }
        Self { child, address, took: started.elapsed() }
    }

    /// Returns the resident memory now and its maximum so far, in MiB.
    pub(crate) fn memory(&self) -> (f64, f64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("a child's status");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kibibytes: f64 = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok()).expect(name);
            kibibytes / 1024.0
        };
        (field("VmRSS:"), field("VmHWM:"))
    }

    /// Stops the program as an operator does.
    pub(crate) fn stop(mut self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).expect("a signal");
        self.child.wait().expect("its end");
    }

    /// Kills the program, as a power cut would.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("a signal");
        self.child.wait().expect("its end");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // The program may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the environment that the systemd unit gives the controller. A variable in this process's
/// environment takes precedence, so that other values can be tried.
fn unit_environment() -> Vec<(&'static str, &'static str)> {
    let unit = include_str!("../../../../deploy/systemd/edge-controller.service");
    let assignments = unit.lines().filter_map(|line| line.strip_prefix("Environment="));
    let named: Vec<_> = assignments.filter_map(|assignment| assignment.split_once('=')).collect();
    assert!(!named.is_empty(), "the unit sets nothing");
    named.into_iter().filter(|(name, _)| std::env::var_os(name).is_none()).collect()
}

/// Returns a core for the measured program, and a different core, if there is one, for the
/// measuring program.
pub(crate) fn cores() -> [usize; 2] {
    let allowed = sched_getaffinity(None).expect("an affinity");
    let allowed: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
    [allowed[0], allowed[allowed.len() - 1]]
}

/// Pins this thread to a core.
pub(crate) fn stay_on(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).expect("an affinity");
}

pub(crate) fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port")
}

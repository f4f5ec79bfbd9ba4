//! A machine with systemd: a copy of this machine's system in namespaces of its own.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use interop_tests::netns::KilledOnDrop;
use interop_tests::wait;

use crate::programs::{output, workspace};

/// Timeout for each step, long enough for a busy machine.
const TIMEOUT: Duration = Duration::from_secs(180);
const INIT: &str = "/lib/systemd/systemd";

/// A running machine. It ends with this value.
pub(crate) struct Machine {
    pub(crate) name: &'static str,
    /// The process ID of systemd.
    pid: u32,
    log: PathBuf,
    process: Option<KilledOnDrop>,
    cgroup: PathBuf,
}

/// Returns the reason why no such machine can be started here; `None` if one can.
pub(crate) fn unavailable() -> Option<String> {
    if !Path::new(INIT).exists() {
        return Some(format!("{INIT} (systemd) is not installed"));
    }
    cgroup2().is_none().then(|| "no cgroup2 file system is mounted".into())
}

/// Returns where cgroup2 is mounted.
fn cgroup2() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (at, kind) = (words.next()?, words.next()?);
        (kind == "cgroup2").then(|| at.into())
    })
}

impl Machine {
    /// Boots a machine with this host name. `packages` are the Debian packages, and the files for
    /// the machine itself go into `directory`.
    pub(crate) fn boot(name: &'static str, packages: &Path, directory: &Path) -> Self {
        assert!(rustix::process::geteuid().is_root(), "run it as root: it needs namespaces and mounts");
        let cgroup = cgroup2().expect("cgroup2").join(format!("edge-cni-{name}-{}", std::process::id()));
        fs::create_dir(&cgroup).unwrap();
        let log = directory.join(format!("{name}.log"));
        let to_log = fs::File::create(&log).unwrap();
        // All processes end with `unshare`.
        let script = "echo $$ >\"$1/cgroup.procs\" && shift && exec unshare --mount --net --pid --uts --ipc --cgroup --fork \
                      --kill-child --propagation private sh \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(&cgroup).arg(workspace("interop-tests/tests/deploy/machine.sh"));
        command.arg(name).arg(packages).env("TMPDIR", directory).stdin(Stdio::null()).process_group(0);
        let child = command.stdout(to_log.try_clone().unwrap()).stderr(to_log).spawn().unwrap();
        let unshare = child.id();
        let mut machine = Self { name, pid: 0, log, process: Some(KilledOnDrop(child)), cgroup };
        machine.pid = wait::until("the machine's first process", TIMEOUT, || {
            let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"))?;
            children.split_whitespace().next().context("none yet")?.parse::<u32>().context("a process ID")
        })
        .unwrap();
        wait::until("systemd to have booted", TIMEOUT, || {
            let state = machine.output("test -d /packages && systemctl is-system-running", "");
            let state = String::from_utf8_lossy(&state.stdout).trim().to_owned();
            anyhow::ensure!(["running", "degraded"].contains(&state.as_str()), "{state}: {}", machine.log());
            Ok(())
        })
        .unwrap();
        machine
    }

    /// Connects two machines by a cable with an address at each end.
    pub(crate) fn connect(&self, other: &Self, addresses: [&str; 2]) {
        let in_network = |machine: &Self, words: &str| {
            let mut command = Command::new("nsenter");
            command.args(["--target", &machine.pid.to_string(), "--net", "ip"]).args(words.split(' '));
            output(&mut command).unwrap_or_else(|why| panic!("ip {words}: {why}"));
        };
        in_network(self, &format!("link add cable type veth peer name cable netns {}", other.pid));
        for (machine, address) in [self, other].into_iter().zip(addresses) {
            for words in ["link set lo up", &format!("address add {address} dev cable"), "link set cable up"] {
                in_network(machine, words);
            }
        }
    }

    /// Runs a line of shell in the directory of the packages, with this text as its input.
    pub(crate) fn output(&self, line: &str, input: &str) -> Output {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid.to_string(), "--mount", "--net", "--pid", "--uts", "--ipc", "--cgroup"]);
        let script = "cd /packages && printf %s \"$2\" | sh -euc \"$1\"";
        command.args(["--root", "--wd", "sh", "-c", script, "sh", line, input]);
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        command.env_clear().envs([("PATH", path), ("LC_ALL", "C"), ("DEBIAN_FRONTEND", "noninteractive")]);
        command.output().unwrap()
    }

    /// Runs a line as [`Self::output`] does, and returns what it prints. Fails unless it succeeds.
    pub(crate) fn try_run(&self, line: &str) -> anyhow::Result<String> {
        let output = self.output(line, "");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (printed, said) = (text(&output.stdout), text(&output.stderr));
        anyhow::ensure!(output.status.success(), "{}: {line}: {printed}{said}", self.name);
        Ok(printed)
    }

    /// Runs a line, which must succeed.
    pub(crate) fn run(&self, line: &str) -> String {
        self.try_run(line).unwrap_or_else(|why| panic!("{why}\n{}", self.journal()))
    }

    /// Runs a line until it succeeds: a person would wait for the service that it needs.
    pub(crate) fn run_when_ready(&self, line: &str) -> String {
        wait::until(line, TIMEOUT, || self.try_run(line)).unwrap_or_else(|why| panic!("{why}\n{}", self.journal()))
    }

    pub(crate) fn write(&self, path: &str, text: &str, mode: &str) {
        let output = self.output(&format!("mkdir -p \"$(dirname {path})\"; cat >{path}; chmod {mode} {path}"), text);
        assert!(output.status.success(), "{path}: {output:?}");
    }

    /// Returns what the machine's services have said.
    fn journal(&self) -> String {
        let said = self.output("journalctl --no-pager --lines 60", "");
        format!("{}{}", String::from_utf8_lossy(&said.stdout), self.log())
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.process.take());
        // systemd has made further cgroups below. They can be removed when they have no processes.
        let removed = wait::until("the machine's processes to end", TIMEOUT, || {
            let mut command = Command::new("find");
            command.arg(&self.cgroup).args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"]);
            output(&mut command).map_err(anyhow::Error::msg)?;
            anyhow::ensure!(!self.cgroup.exists(), "{} is there", self.cgroup.display());
            Ok(())
        });
        if let Err(error) = removed {
            eprintln!("{error:#}");
        }
    }
}

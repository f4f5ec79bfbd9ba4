//! The programs that are compared, and their calls.

#![allow(unsafe_code, reason = "wait4(2), which says what one child used, has no safe form")]
#![allow(clippy::zombie_processes, reason = "wait4(2) waits for them")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crc::{CRC_32_ISO_HDLC, Crc};
use interop_tests::netns::{self, succeed};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::floor;

pub(crate) const OURS: &str = "edge-cni";
pub(crate) const STOCK: &str = "bridge+host-local";
pub(crate) const FLOOR: &str = "floor";

/// The directories in which distributions and Kubernetes install bridge and host-local.
const PLUGINS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

static HOSTS: AtomicU32 = AtomicU32::new(0);

/// Time for which the memory use of a call is observed. The call takes a fraction of this time.
const LOOK: Duration = Duration::from_secs(1);

/// A program that attaches pods.
pub(crate) struct Program {
    pub(crate) name: &'static str,
    path: PathBuf,
    arguments: &'static [&'static str],
}

/// The resources that a call used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// Elapsed time in milliseconds.
    pub(crate) wall: f64,
    /// CPU time in milliseconds, including the programs that the call started.
    pub(crate) cpu: f64,
}

/// The resources that simultaneous calls used.
pub(crate) struct Burst {
    /// Time until the last call ended, in milliseconds.
    pub(crate) wall: f64,
    /// Peak memory of all calls together, KiB, if cgroups report it.
    pub(crate) memory: Option<f64>,
}

impl Program {
    /// Returns a static program that does nothing, which is the baseline for the start of a
    /// program. `None` if `EMPTY_PROGRAM` is not set.
    pub(crate) fn empty() -> Option<Self> {
        let path = std::env::var_os("EMPTY_PROGRAM").map(PathBuf::from)?;
        Some(Self { name: FLOOR, path, arguments: &[] })
    }

    /// Returns the plugin, the baseline, and bridge with host-local if they are installed.
    pub(crate) fn all() -> Vec<Self> {
        let ours = std::env::var_os("EDGE_CNI").map_or_else(|| env!("CARGO_BIN_EXE_edge-cni").into(), PathBuf::from);
        let directories = std::env::var_os("CNI_PLUGINS").map(PathBuf::from).into_iter();
        let stock = directories
            .chain(PLUGINS.map(PathBuf::from))
            .map(|directory| directory.join("bridge"))
            .find(|path| path.exists());
        if stock.is_none() {
            println!("{STOCK} is not measured: neither CNI_PLUGINS nor {} has it", PLUGINS.join(" nor "));
        }
        let mut programs = vec![
            Self { name: OURS, path: std::path::absolute(ours).expect("a path"), arguments: &[] },
            Self { name: FLOOR, path: std::env::current_exe().expect("this program"), arguments: &[floor::ARGUMENT] },
        ];
        programs.extend(stock.map(|path| Self {
            name: STOCK,
            path: std::path::absolute(path).expect("a path"),
            arguments: &[],
        }));
        programs
    }

    /// Returns the size of the program, in KiB.
    pub(crate) fn size(&self) -> f64 {
        let size = |path: &Path| std::fs::metadata(path).expect("the program is there").len() as f64 / 1024.0;
        // The bridge plugin runs host-local, so the size of host-local is included.
        let host_local = self.path.with_file_name("host-local");
        size(&self.path) + if self.name == STOCK { size(&host_local) } else { 0.0 }
    }
}

/// Returns the median time from the start to the answer to VERSION of each program, milliseconds.
/// The programs take turns.
pub(crate) fn starts(programs: &[&Program], times: usize) -> Vec<f64> {
    let mut walls = vec![Vec::new(); programs.len()];
    let mut order: Vec<usize> = (0..programs.len()).collect();
    let mut random = fastrand::Rng::with_seed(0);
    for _ in 0..times {
        random.shuffle(&mut order);
        for number in &order {
            let mut command = Command::new(&programs[*number].path);
            command.args(programs[*number].arguments).env("CNI_COMMAND", "VERSION");
            walls[*number].push(run(command, br#"{"cniVersion":"1.0.0"}"#).0.wall);
        }
    }
    walls.iter_mut().for_each(|walls| walls.sort_by(f64::total_cmp));
    walls.iter().map(|walls| walls[times / 2]).collect()
}

/// The file system of a host's state directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// The file system for temporary files, which is usually on a disk.
    Disk,
    /// A tmpfs, which has nothing to flush.
    Memory,
}

/// A host in a network namespace, with pods to attach.
pub(crate) struct Host<'a> {
    pub(crate) program: &'a Program,
    netns: String,
    state: TempDir,
    /// Whether a tmpfs is mounted at `state`.
    in_memory: bool,
    pods: Vec<String>,
    results: Vec<Value>,
}

impl<'a> Host<'a> {
    /// Creates a host. It has this many leases of other pods, which are not attached. `state` is
    /// the file system of its state directory.
    pub(crate) fn new(program: &'a Program, leases: usize, pods: usize, state: State) -> Self {
        let number = HOSTS.fetch_add(1, Ordering::Relaxed);
        let unique = format!("cni-bench-{}-{number}", std::process::id());
        let netns = format!("{unique}-host");
        netns::add(&netns);
        succeed(Command::new("ip").args(["-n", &netns, "link", "set", "lo", "up"]));
        let pods: Vec<String> = (0..pods).map(|number| format!("{unique}-{number}")).collect();
        pods.iter().for_each(|pod| netns::add(pod));
        let in_memory = state == State::Memory;
        let state = tempfile::tempdir().expect("a temporary directory");
        if in_memory {
            succeed(Command::new("mount").args(["-t", "tmpfs", "-o", "mode=0700", "tmpfs"]).arg(state.path()));
        }
        match program.name {
            OURS => write_leases(state.path(), leases),
            STOCK => write_host_local(state.path(), leases),
            _ => floor::prepare(&netns),
        }
        Self { program, netns, state, in_memory, pods, results: Vec::new() }
    }

    pub(crate) fn add(&mut self, pod: usize) -> Usage {
        let (usage, output) = run(self.command("ADD", pod), self.config(None).to_string().as_bytes());
        self.results.push(serde_json::from_slice(&output).unwrap_or_default());
        usage
    }

    /// Runs CHECK. `None` for the baseline, which has no CHECK.
    pub(crate) fn check(&self, pod: usize) -> Option<Usage> {
        let result = self.results.get(pod).filter(|_| self.program.name != FLOOR)?;
        Some(run(self.command("CHECK", pod), self.config(Some(result)).to_string().as_bytes()).0)
    }

    pub(crate) fn del(&self, pod: usize) -> Usage {
        run(self.command("DEL", pod), self.config(None).to_string().as_bytes()).0
    }

    fn command(&self, verb: &str, pod: usize) -> Command {
        let mut command = Command::new(&self.program.path);
        command.args(self.program.arguments);
        self.variables(&mut command, verb, pod);
        command
    }

    fn variables(&self, command: &mut Command, verb: &str, pod: usize) {
        netns::enter(&Path::new("/run/netns").join(&self.netns));
        let directory = self.program.path.parent().expect("a directory");
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &self.pods[pod])
            .env("CNI_NETNS", Path::new("/run/netns").join(&self.pods[pod]))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", directory);
    }

    fn config(&self, previous: Option<&Value>) -> Value {
        let directory = self.state.path();
        let mut config = if self.program.name == STOCK {
            let range = |subnet: &str| json!([{ "subnet": subnet }]);
            json!({
                "cniVersion": "1.0.0", "name": "pods", "type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true,
                "ipam": {"type": "host-local", "dataDir": directory, "ranges": [range("10.77.0.0/16"), range("fd77::/64")]},
            })
        } else {
            json!({
                "cniVersion": "1.0.0", "name": "pods", "type": "edge-cni", "bridge": "ecni0", "stateDir": directory,
                "agentSocket": directory.join("agent.sock"), "clusterRanges": ["10.77.0.0/16", "fd77::/48"],
                "segments": ["10.77.0.0/16", "fd77::/64"],
            })
        };
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        config
    }
}

impl Drop for Host<'_> {
    fn drop(&mut self) {
        self.pods.iter().for_each(|pod| netns::delete(pod));
        netns::delete(&self.netns);
        if self.in_memory {
            succeed(Command::new("umount").arg(self.state.path()));
        }
    }
}

/// Runs a call, which must succeed. Returns its usage and its standard output.
fn run(mut command: Command, input: &[u8]) -> (Usage, Vec<u8>) {
    let begin = Instant::now();
    let mut child = spawn(&mut command, input);
    let mut output = Vec::new();
    let mut stdout = child.stdout.take().expect("a pipe");
    std::io::Read::read_to_end(&mut stdout, &mut output).expect("its output");
    let (status, used) = wait(&child);
    let wall = begin.elapsed().as_secs_f64() * 1e3;
    assert!(status == 0, "{command:?}: {}", String::from_utf8_lossy(&output));
    let milliseconds = |time: libc::timeval| time.tv_sec as f64 * 1e3 + time.tv_usec as f64 / 1e3;
    (Usage { wall, cpu: milliseconds(used.ru_utime) + milliseconds(used.ru_stime) }, output)
}

fn spawn(command: &mut Command, input: &[u8]) -> Child {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
    // The program may end before it reads its input.
    let _ = child.stdin.take().expect("a pipe").write_all(input);
    child
}

/// Waits for a child. Returns its status, and the usage of the child and its own children.
fn wait(child: &Child) -> (i32, libc::rusage) {
    let mut status = 0;
    // SAFETY: rusage is plain data, for which all-zero is a valid value.
    let mut used: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers point to values that outlive the call.
    let waited = unsafe { libc::wait4(child.id() as libc::pid_t, &raw mut status, 0, &raw mut used) };
    assert!(waited > 0, "wait4: {}", std::io::Error::last_os_error());
    (status, used)
}

/// Returns the peak memory of an ADD (`VmHWM`), in KiB. The output goes to a full pipe, so that the
/// program blocks at its end while its memory use is read.
pub(crate) fn memory(program: &Program) -> f64 {
    let mut host = Host::new(program, 0, 2, State::Disk);
    host.add(0);
    let (mut reader, mut writer) = std::io::pipe().expect("a pipe");
    rustix::io::ioctl_fionbio(&writer, true).expect("it does not block");
    while writer.write(&[0; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).expect("it blocks");
    let mut command = host.command("ADD", 1);
    command.stdin(Stdio::piped()).stdout(writer).stderr(Stdio::null());
    let mut child = command.spawn().expect("it starts");
    child.stdin.take().expect("a pipe").write_all(host.config(None).to_string().as_bytes()).expect("it reads");
    // Closes the copy of the pipe that `command` holds.
    drop(command);
    let status = || std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let mut peak = 0.0;
    let begin = Instant::now();
    while begin.elapsed() < LOOK {
        let text = status();
        let kib = text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
        peak = f64::max(peak, kib.unwrap_or(0.0));
    }
    std::io::copy(&mut reader, &mut std::io::sink()).expect("its output");
    assert_eq!(wait(&child).0, 0, "ADD by {}", program.name);
    peak
}

/// Attaches this many pods simultaneously.
pub(crate) fn burst(program: &Program, leases: usize, pods: usize) -> Burst {
    let mut host = Host::new(program, leases, pods + 1, State::Disk);
    host.add(0);
    let group = Group::enter();
    let begin = Instant::now();
    let children: Vec<Child> =
        (1..=pods).map(|pod| spawn(&mut host.command("ADD", pod), host.config(None).to_string().as_bytes())).collect();
    for mut child in children {
        std::io::copy(&mut child.stdout.take().expect("a pipe"), &mut std::io::sink()).expect("its output");
        assert_eq!(wait(&child).0, 0, "{} with {pods} at once", program.name);
    }
    Burst { wall: begin.elapsed().as_secs_f64() * 1e3, memory: group.and_then(|group| group.most()) }
}

/// A memory cgroup, of version 1 or 2, with this process and its children.
struct Group {
    directory: PathBuf,
    parent: PathBuf,
}

impl Group {
    /// Enters a new cgroup. `None` if this machine has no such cgroups, or if this process may not
    /// use them.
    fn enter() -> Option<Self> {
        let parent = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"]
            .map(PathBuf::from)
            .into_iter()
            .find(|path| path.join("cgroup.procs").exists())?;
        let directory = parent.join(format!("edge-cni-bench-{}", std::process::id()));
        std::fs::create_dir(&directory).ok()?;
        let group = Self { directory, parent };
        std::fs::write(group.directory.join("cgroup.procs"), std::process::id().to_string()).ok()?;
        Some(group)
    }

    /// Returns the peak memory, in KiB.
    fn most(&self) -> Option<f64> {
        let read = |file: &str| std::fs::read_to_string(self.directory.join(file)).ok();
        let bytes = read("memory.max_usage_in_bytes").or_else(|| read("memory.peak"))?;
        Some(bytes.trim().parse::<f64>().ok()? / 1024.0)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::write(self.parent.join("cgroup.procs"), std::process::id().to_string());
        let _ = std::fs::remove_dir(&self.directory);
    }
}

/// Writes a journal with leases of pods that are not attached.
fn write_leases(directory: &Path, count: usize) {
    if count == 0 {
        return;
    }
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot ID");
    let boot = boot.trim();
    let crc32 = Crc::<u32>::new(&CRC_32_ISO_HDLC);
    let (mut text, mut chain) = (String::new(), crc32.digest());
    let mut push = |entry: String| {
        chain.update(entry.as_bytes());
        text += &format!("{:08x} {entry}\n", chain.clone().finalize());
    };
    push(format!("edge-cni-leases 1 1 {boot}"));
    for number in 0..count {
        let (third, fourth) = (number / 250, number % 250 + 2);
        push(format!("+ {number:064x} eth0 pods default/web-{number} 10.77.{third}.{fourth} fd77::{:x}", number + 2));
    }
    let chain = chain.finalize();
    std::fs::write(directory.join("leases.mark"), format!("{:020} {:020} {chain:08x} {boot}\n", 1, text.len()))
        .expect("the mark");
    std::fs::write(directory.join("leases"), text).expect("the journal");
}

/// Writes host-local's files for the same number of leases.
fn write_host_local(directory: &Path, count: usize) {
    let network = directory.join("pods");
    std::fs::create_dir_all(&network).expect("host-local's directory");
    for number in 0..count {
        let (third, fourth) = (number / 250, number % 250 + 2);
        let (content, name) = (format!("{number:064x}\r\neth0"), format!("fd77::{:x}", number + 2));
        std::fs::write(network.join(format!("10.77.{third}.{fourth}")), &content).expect("a lease");
        std::fs::write(network.join(name), content).expect("a lease");
    }
}

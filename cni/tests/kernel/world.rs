//! The node of a test: a network namespace for the host and one for each pod, a state directory,
//! and the plugin, which the tests run as a runtime does.

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use interop_tests::netns::{self, succeed};
use interop_tests::wait;
use serde_json::{Value, json};
use tempfile::TempDir;

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Timeout after which a test fails.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The host's forwarding settings, for IPv4 and IPv6.
const FORWARDING: [&str; 2] = ["ipv4/ip_forward", "ipv6/conf/all/forwarding"];

pub(crate) struct World {
    pub(crate) host: String,
    pub(crate) folder: TempDir,
    /// The plugin's configuration, which each test changes as needed.
    pub(crate) config: RefCell<Value>,
    namespaces: RefCell<Vec<String>>,
    pods: Cell<u32>,
}

/// A container, with its network namespace.
#[derive(Clone)]
pub(crate) struct Pod {
    pub(crate) netns: String,
    pub(crate) id: String,
}

/// The plugin's output and exit status.
#[derive(Debug)]
pub(crate) struct PluginOutput {
    pub(crate) ok: bool,
    pub(crate) json: Value,
    /// The text on standard error.
    pub(crate) said: String,
}

impl World {
    /// Creates a host without a network, with segments from the configuration.
    pub(crate) fn new(segments: &[&str]) -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let host = format!("cni-{}-{number}", std::process::id());
        let folder = tempfile::tempdir().unwrap();
        let config = json!({
            "cniVersion": "1.0.0",
            "name": "pods",
            "type": "edge-cni",
            "bridge": "ecni0",
            "stateDir": folder.path().join("state"),
            "agentSocket": folder.path().join("agent.sock"),
            "clusterRanges": ["10.77.0.0/16", "fd77::/48"],
            "segments": segments,
        });
        let config = RefCell::new(config);
        let world = Self { host, folder, config, namespaces: RefCell::default(), pods: Cell::new(0) };
        world.add_namespace(&world.host);
        world.ip("link set lo up");
        world
    }

    fn add_namespace(&self, name: &str) {
        netns::add(name);
        self.namespaces.borrow_mut().push(name.to_owned());
    }

    /// Creates the network namespace of a container.
    pub(crate) fn pod(&self) -> Pod {
        let number = self.pods.replace(self.pods.get() + 1);
        let netns = format!("{}-p{number}", self.host);
        self.add_namespace(&netns);
        Pod { netns, id: format!("container{number}") }
    }

    /// Removes the container's namespace without a DEL, as if the runtime had been killed.
    pub(crate) fn destroy(&self, pod: &Pod) {
        succeed(Command::new("ip").args(["netns", "del", &pod.netns]));
        self.namespaces.borrow_mut().retain(|name| *name != pod.netns);
    }

    pub(crate) fn state(&self, file: &str) -> PathBuf {
        self.folder.path().join("state").join(file)
    }

    pub(crate) fn set(&self, key: &str, value: Value) {
        self.config.borrow_mut()[key] = value;
    }

    /// Runs `ip` on the host.
    pub(crate) fn ip(&self, arguments: &str) -> String {
        ip(&self.host, arguments)
    }

    /// Turns forwarding on the host on or off, for both families.
    pub(crate) fn forward(&self, on: bool) {
        for name in FORWARDING {
            let setting = format!("net.{}={}", name.replace('/', "."), u8::from(on));
            succeed(Command::new("ip").args(["netns", "exec", &self.host, "sysctl", "-qw", &setting]));
        }
    }

    /// Returns whether the host forwards IPv4 and IPv6, as the kernel shows it.
    pub(crate) fn forwards(&self) -> [String; 2] {
        FORWARDING.map(|name| sysctl(&self.host, name))
    }

    /// Starts the plugin on the host with these variables and this standard input.
    pub(crate) fn start(&self, variables: &[(&str, &str)], input: &[u8]) -> Child {
        self.start_program(Path::new(env!("CARGO_BIN_EXE_edge-cni")), variables, input)
    }

    /// Does the same as [`World::start`], for another plugin.
    pub(crate) fn start_program(&self, program: &Path, variables: &[(&str, &str)], input: &[u8]) -> Child {
        start_in(&self.host, program, variables, input)
    }

    pub(crate) fn start_verb(&self, verb: &str, pod: &Pod) -> Child {
        let netns = path(pod);
        let arguments = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-{}", pod.id);
        let variables = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", &pod.id),
            ("CNI_NETNS", &netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
            ("CNI_ARGS", &arguments),
        ];
        self.start(&variables, self.config.borrow().to_string().as_bytes())
    }

    pub(crate) fn run(&self, variables: &[(&str, &str)], input: &str) -> PluginOutput {
        answer(self.start(variables, input.as_bytes()))
    }

    pub(crate) fn verb(&self, verb: &str, pod: &Pod) -> PluginOutput {
        answer(self.start_verb(verb, pod))
    }

    /// Runs ADD, which must succeed. Returns the addresses.
    pub(crate) fn add(&self, pod: &Pod) -> Vec<String> {
        let answer = self.verb("ADD", pod);
        assert!(answer.ok, "ADD of {} failed: {}", pod.id, answer.json);
        addresses(&answer.json)
    }

    /// Runs DEL, which must succeed without output.
    pub(crate) fn del(&self, pod: &Pod) {
        let answer = self.verb("DEL", pod);
        assert!(answer.ok && answer.json == Value::Null, "DEL of {}: {}", pod.id, answer.json);
    }

    /// Runs ADD, which must fail with this code, name the pod in its message, and leave nothing
    /// behind. Returns the message.
    pub(crate) fn add_fails(&self, pod: &Pod, code: u64) -> String {
        let before = (self.ports(), self.leased());
        let answer = self.verb("ADD", pod);
        assert!(!answer.ok, "ADD of {} succeeded: {}", pod.id, answer.json);
        assert_eq!(answer.json["code"], code, "{}", answer.json);
        let message = answer.json["msg"].as_str().unwrap().to_owned();
        assert!(message.contains(&format!("default/web-{}", pod.id)), "{message}");
        assert_eq!(before, (self.ports(), self.leased()), "something was left behind");
        message
    }

    /// Returns the names of the pods' ports.
    pub(crate) fn ports(&self) -> Vec<String> {
        let all = self.ip("-br link show type veth");
        all.lines().filter_map(|line| line.split(['@', ' ']).next()).map(str::to_owned).collect()
    }

    /// Returns the containers that have a lease, according to the journal's lines.
    pub(crate) fn leased(&self) -> Vec<String> {
        held(&std::fs::read_to_string(self.state("leases")).unwrap_or_default())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for name in self.namespaces.borrow().iter() {
            netns::delete(name);
        }
    }
}

/// Returns the containers that have a lease in a journal.
pub(crate) fn held(journal: &str) -> Vec<String> {
    let mut held = Vec::new();
    for line in journal.lines() {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        match words.get(1..4) {
            Some([verb, container, ifname]) if verb == "+" => held.push((container.clone(), ifname.clone())),
            Some([verb, container, ifname]) if verb == "-" => {
                held.retain(|(other, name)| (other, name) != (container, ifname));
            }
            _ => {}
        }
    }
    held.into_iter().map(|(container, _)| container).collect()
}

/// Starts a plugin in a namespace with these variables and this standard input.
pub(crate) fn start_in(netns: &str, program: &Path, variables: &[(&str, &str)], input: &[u8]) -> Child {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", netns]).arg(program).envs(variables.iter().copied());
    start_with(command, input)
}

/// Starts a program with this standard input.
pub(crate) fn start_with(mut command: Command, input: &[u8]) -> Child {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The error is ignored, since the plugin may end before it reads its input.
    let _ = child.stdin.take().unwrap().write_all(input);
    child
}

/// Returns the value of `CNI_NETNS` for a container.
pub(crate) fn path(pod: &Pod) -> String {
    format!("/run/netns/{}", pod.netns)
}

/// Waits for the plugin to end.
pub(crate) fn answer(child: Child) -> PluginOutput {
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = String::from_utf8(stdout).unwrap();
    let json = match text.trim() {
        "" => Value::Null,
        text => serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text:?}")),
    };
    PluginOutput { ok: status.success(), json, said: String::from_utf8(stderr).unwrap() }
}

/// Returns the addresses of a result, without prefix lengths.
pub(crate) fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().unwrap();
    ips.iter().map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().to_owned()).collect()
}

/// Runs `ip` in a namespace.
pub(crate) fn ip(netns: &str, arguments: &str) -> String {
    succeed(Command::new("ip").args(["-n", netns]).args(arguments.split_whitespace()))
}

/// Runs `tc` in a namespace.
pub(crate) fn tc(netns: &str, arguments: &str) -> String {
    succeed(Command::new("tc").args(["-n", netns]).args(arguments.split_whitespace()))
}

/// Returns whether an address answers a ping from a namespace.
pub(crate) fn pings(netns: &str, address: &str) -> bool {
    // On a busy machine, the first ping may take longer than its 2 s.
    (0..3).any(|_| {
        let ping = ["netns", "exec", netns, "ping", "-n", "-q", "-c", "1", "-W", "2", address];
        let answered = Command::new("ip").args(ping).output().unwrap().status.success();
        if !answered {
            eprintln!("no answer of {address} within 2 s");
        }
        answered
    })
}

/// Reads a file of /proc/sys/net in a namespace.
pub(crate) fn sysctl(netns: &str, name: &str) -> String {
    let path = format!("/proc/sys/net/{name}");
    succeed(Command::new("ip").args(["netns", "exec", netns, "cat", &path])).trim().to_owned()
}

/// Waits until the condition is true.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    wait::expect(what, TIMEOUT, || condition().then_some(()));
}

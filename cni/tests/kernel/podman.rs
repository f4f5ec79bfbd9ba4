//! Tests the plugin with podman 4 and its CNI backend (`network_backend = "cni"`). Containers use a
//! directory as their root file system, so that no image is needed.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use interop_tests::suite::Test;
use interop_tests::wait;
use serde_json::{Value, json};

use crate::runtime_host::{self, Disk, PATIENCE, RuntimeHost};

pub(crate) const TESTS: &[Test] = &[
    ("podmans_containers_have_one_or_two_networks_and_leave_nothing", containers_have_one_or_two_networks),
    ("podmans_containers_get_the_addresses_that_are_requested_or_an_error", requested_addresses),
];

const FIRST: &[&str] = &["10.77.3.0/24", "fd77:0:0:3::/120"];
const SECOND: &[&str] = &["10.78.0.0/24", "fd78::/120"];

/// Returns the reason why the tests cannot run on this machine. `None` if they can.
pub(crate) fn unavailable() -> Option<String> {
    let programs = [("podman", "podman"), ("conmon", "conmon"), ("runc", "runc")];
    runtime_host::unavailable(&programs).or_else(|| {
        let disk = Disk::new();
        let host = RuntimeHost::boot(&disk, FIRST);
        let backend = Podman::new(&host).output(&["info", "--format", "{{.Host.NetworkBackend}}"]);
        let found = String::from_utf8_lossy(&backend.stdout).trim().to_owned();
        (found != "cni").then(|| {
            let why = String::from_utf8_lossy(&backend.stderr);
            format!("this podman has no backend for CNI (podman 5 has none): {found} {}", why.trim())
        })
    })
}

/// A host with podman and the networks `pods` and `second`.
struct Podman<'a> {
    host: &'a RuntimeHost<'a>,
}

impl<'a> Podman<'a> {
    fn new(host: &'a RuntimeHost<'a>) -> Self {
        let disk = host.disk;
        let mut network = host.world.config.borrow().clone();
        disk.write_list("10-pods.conflist", &network);
        for (key, value) in [("name", json!("second")), ("bridge", json!("ecni1")), ("segments", json!(SECOND))] {
            network[key] = value;
        }
        disk.write_list("20-second.conflist", &network);
        let config = format!(
            r#"[network]
network_backend = "cni"
cni_plugin_dirs = ["{}"]
network_config_dir = "{}"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[containers]
apparmor_profile = "unconfined"
"#,
            disk.path("bin").display(),
            disk.path("net.d").display(),
        );
        fs::write(disk.path("containers.conf"), config).unwrap();
        Self { host }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let own = ["--root", "/var/lib/podman", "--runroot", "/run/podman", "--tmpdir", "/run/podman-tmp"];
        let mut command = self.host.command("podman");
        command.env("CONTAINERS_CONF", self.host.disk.path("containers.conf"));
        command.args(own).args(["--storage-driver", "vfs"]).args(arguments);
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn succeeds(&self, arguments: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.output(arguments);
        assert!(status.success(), "podman {arguments:?}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap().trim().to_owned()
    }

    /// Starts a container that sleeps.
    fn run(&self, name: &str, options: &[&str]) -> Output {
        let (cgroup, rootfs) = (format!("/{}", self.host.cgroup), self.host.disk.rootfs());
        let always = ["run", "-d", "--name", name, "--cap-add", "NET_RAW", "--cgroup-parent", &cgroup];
        let container = ["--rootfs", rootfs.to_str().unwrap(), "sleep", "1000000"];
        self.output(&[&always, options, &container].concat())
    }

    /// Starts a container, which must succeed. Returns its ID.
    fn runs(&self, name: &str, options: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.run(name, options);
        assert!(status.success(), "{name}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap().trim().to_owned()
    }

    /// Returns the addresses of a container in a network, and its MAC address, as podman shows
    /// them.
    fn addresses(&self, name: &str, network: &str) -> [String; 3] {
        let shown: Value = serde_json::from_str(&self.succeeds(&["inspect", name])).unwrap();
        let network = &shown[0]["NetworkSettings"]["Networks"][network];
        ["IPAddress", "GlobalIPv6Address", "MacAddress"].map(|key| network[key].as_str().unwrap_or_default().to_owned())
    }

    /// Returns the interfaces with addresses in a container, as the kernel shows them.
    fn shown(&self, name: &str) -> String {
        self.succeeds(&["exec", name, "ip", "addr"])
    }

    fn pings(&self, name: &str, address: &str) {
        wait::expect(&format!("an answer of {address} to {name}"), PATIENCE, || {
            let ping = ["exec", name, "ping", "-q", "-c", "1", "-W", "5", address];
            self.output(&ping).status.success().then_some(())
        });
    }

    /// Removes all containers, and checks that they have left nothing behind.
    fn remove_all(&self) {
        self.succeeds(&["rm", "-f", "-t", "0", "-a"]);
        let host = self.host;
        assert_eq!((host.leased(), host.world.ports(), host.namespaces()), (vec![], vec![], vec![]));
        let results = host.disk.path("var-lib/cni/results");
        assert_eq!(files(&results), 0, "results are left in {}", results.display());
    }
}

fn files(directory: &Path) -> usize {
    fs::read_dir(directory).map_or(0, Iterator::count)
}

fn containers_have_one_or_two_networks() {
    let disk = Disk::new();
    let host = RuntimeHost::boot(&disk, FIRST);
    let podman = Podman::new(&host);
    let one = podman.runs("one", &["--network", "pods"]);
    let both = podman.runs("both", &["--network", "pods,second"]);
    assert_eq!(host.leased(), [one.clone(), both.clone(), both.clone()]);
    let [v4, v6, _] = podman.addresses("one", "pods");
    for address in [&v4, &v6, "10.77.3.1", "10.78.0.1"] {
        podman.pings("both", address);
    }
    let [second_v4, second_v6, _] = podman.addresses("both", "second");
    let shown = podman.shown("both");
    assert!(second_v4.starts_with("10.78.0.") && shown.contains(&second_v4) && shown.contains(&second_v6), "{shown}");
    let routes = podman.succeeds(&["exec", "both", "ip", "route"]);
    assert_eq!(routes.matches("default via ").count(), 1, "{routes}");
    // Networks are connected and disconnected while a container runs.
    podman.succeeds(&["network", "disconnect", "second", "both"]);
    assert!(!podman.shown("both").contains(&second_v4));
    podman.succeeds(&["network", "connect", "second", "one"]);
    assert_eq!(host.leased(), [one.clone(), both, one]);
    let [_, connected, _] = podman.addresses("one", "second");
    assert!(podman.shown("one").contains(&connected));
    podman.pings("both", &v6);
    podman.remove_all();
}

fn requested_addresses() {
    let disk = Disk::new();
    let host = RuntimeHost::boot(&disk, FIRST);
    let podman = Podman::new(&host);
    let mac = "02:12:34:56:78:9a";
    podman.runs("fixed", &["--network", &format!("pods:ip=10.77.3.77,mac={mac}")]);
    podman.runs("six", &["--network", "pods", "--ip6", "fd77:0:0:3::99"]);
    let has_them = || {
        let [v4, _, shown] = podman.addresses("fixed", "pods");
        assert_eq!([v4.as_str(), shown.as_str()], ["10.77.3.77", mac]);
        assert!(podman.shown("fixed").contains(mac));
        assert_eq!(podman.addresses("six", "pods")[1], "fd77:0:0:3::99");
        podman.pings("six", "10.77.3.77");
    };
    has_them();
    // Requests the address of another container, and an address outside of the network's segments.
    for (ip, named) in [("10.77.3.77", "leased"), ("10.99.0.1", "10.77.3.0/24")] {
        let before = (host.leased(), host.world.ports());
        let refused = podman.run("refused", &["--network", "pods", "--ip", ip]);
        let why = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && why.contains(ip) && why.contains(named), "{why}");
        podman.succeeds(&["rm", "-f", "refused"]);
        assert_eq!(before, (host.leased(), host.world.ports()));
    }
    podman.succeeds(&["restart", "-t", "0", "fixed"]);
    has_them();
    podman.remove_all();
}

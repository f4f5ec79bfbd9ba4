//! Tests the plugin with containerd, which is called through CRI as by a kubelet. `crictl` is the
//! CRI client.
//!
//! Each test runs with the installed containerd, and with 1.7 and 2.1 if this machine has built
//! them. containerd 1.x calls neither STATUS nor GC. containerd 2.x calls both.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use interop_tests::built_once::{BuiltOnce, CONTAINERD_1_7, CONTAINERD_2_1};
use interop_tests::netns::succeed;
use interop_tests::oci_image;
use interop_tests::suite::Test;
use interop_tests::{executables, wait};
use serde_json::{Value, json};

use crate::cnitool::{INSTALLED, find, plugin};
use crate::runtime_host::{self, Disk, PATIENCE, RuntimeHost};

pub(crate) const TESTS: &[Test] = &[
    ("containerds_pods_reach_each_other_and_outlive_its_restart_and_kill", || {
        pods_outlive_containerd(Release::Installed)
    }),
    ("pods_that_come_while_containerd_is_killed_share_no_address_and_leave_nothing", || {
        pods_come_during_a_kill(Release::Installed);
    }),
    ("containerds_pods_come_again_after_a_reboot", || pods_come_again_after_a_reboot(Release::Installed)),
];

pub(crate) const TESTS_1_7: &[Test] = &[
    ("containerd_1_7s_pods_reach_each_other_and_outlive_its_restart_and_kill", || {
        pods_outlive_containerd(Release::Built(&CONTAINERD_1_7));
    }),
    ("pods_that_come_while_containerd_1_7_is_killed_share_no_address_and_leave_nothing", || {
        pods_come_during_a_kill(Release::Built(&CONTAINERD_1_7));
    }),
    ("containerd_1_7s_pods_come_again_after_a_reboot", || {
        pods_come_again_after_a_reboot(Release::Built(&CONTAINERD_1_7));
    }),
];

pub(crate) const TESTS_2_1: &[Test] = &[
    ("containerd_2_1s_pods_reach_each_other_and_outlive_its_restart_and_kill", || {
        pods_outlive_containerd(Release::Built(&CONTAINERD_2_1));
    }),
    ("pods_that_come_while_containerd_2_1_is_killed_share_no_address_and_leave_nothing", || {
        pods_come_during_a_kill(Release::Built(&CONTAINERD_2_1));
    }),
    ("containerd_2_1s_pods_come_again_after_a_reboot", || {
        pods_come_again_after_a_reboot(Release::Built(&CONTAINERD_2_1));
    }),
];

/// A release of containerd.
#[derive(Clone, Copy)]
pub(crate) enum Release {
    /// The one on `PATH`.
    Installed,
    /// One that this machine has built.
    Built(&'static BuiltOnce),
}

impl Release {
    /// Returns `PATH` for this release's programs. containerd finds its shim there.
    fn search_path(self) -> String {
        let path = executables::search_path();
        match self {
            Self::Installed => path,
            Self::Built(programs) => format!("{}:{path}", programs.built().expect("containerd").display()),
        }
    }
}

const DUAL: &[&str] = &["10.77.3.0/24", "fd77:0:0:3::/120"];

fn crictl() -> Option<PathBuf> {
    find("crictl", &[INSTALLED, "/usr/local/bin", "/usr/bin"])
}

/// Returns the reason why the tests cannot run on this machine. `None` if they can.
pub(crate) fn unavailable() -> Option<String> {
    if crictl().is_none() {
        return Some(format!("`crictl` is in no directory of CNI_PATH, nor in {INSTALLED}; run `.ci/install test`"));
    }
    if plugin("loopback").is_none() {
        return Some("the plugin `loopback` (containernetworking-plugins) is not installed".into());
    }
    runtime_host::unavailable(&[("containerd", "containerd"), ("ctr", "containerd"), ("runc", "runc")])
}

/// Returns the reason why the tests with containerd 1.7 cannot run on this machine.
pub(crate) fn unavailable_1_7() -> Option<String> {
    unavailable().or_else(|| CONTAINERD_1_7.missing())
}

/// Returns the reason why the tests with containerd 2.1 cannot run on this machine.
pub(crate) fn unavailable_2_1() -> Option<String> {
    unavailable().or_else(|| CONTAINERD_2_1.missing())
}

/// A running containerd. It ends together with its host. Its pods continue to run without it.
pub(crate) struct Containerd<'a> {
    host: &'a RuntimeHost<'a>,
    process: Child,
}

impl<'a> Containerd<'a> {
    /// Starts containerd, and waits until it can start pods.
    pub(crate) fn start(host: &'a RuntimeHost<'a>, release: Release) -> Self {
        let disk = host.disk;
        let path = |name: &str| disk.path(name).to_str().unwrap().to_owned();
        disk.write_list("10-pods.conflist", &host.world.config.borrow());
        let config = format!(
            r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
disable_apparmor = true
restrict_oom_score_adj = true
sandbox_image = "{}"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{}"
conf_dir = "{}"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
"#,
            oci_image::NAME,
            path("bin"),
            path("net.d"),
        );
        fs::write(path("containerd.toml"), config).unwrap();
        let endpoint = "unix:///run/containerd/containerd.sock";
        let crictl = json!({"runtime-endpoint": endpoint, "image-endpoint": endpoint, "timeout": PATIENCE.as_secs()});
        fs::write(path("crictl.yaml"), crictl.to_string()).unwrap();
        let script = r#"echo $$ >"$1" && exec containerd --config "$2" >>"$3" 2>&1"#;
        let process = host
            .command("sh")
            .args(["-c", script, "sh", &path("containerd.pid"), &path("containerd.toml"), &path("containerd.log")])
            .env("PATH", release.search_path())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let this = Self { host, process };
        wait::until("containerd", PATIENCE, || {
            let output = this.crictl(&["info"]).output()?;
            let info: Value = serde_json::from_slice(&output.stdout)?;
            let conditions = info["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let ready = |kind: &str| conditions.iter().any(|one| one["type"] == kind && one["status"] == true);
            match ready("RuntimeReady") && ready("NetworkReady") {
                true => Ok(()),
                false => Err(std::io::Error::other(info["status"].to_string()).into()),
            }
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", this.log()));
        if let Release::Built(programs) = release {
            let version = this.run_crictl(&["version"]);
            let running = version.lines().find_map(|line| line.strip_prefix("RuntimeVersion:")).unwrap_or_default();
            let wanted = format!("{}.", programs.minor_release());
            assert!(running.trim().trim_start_matches('v').starts_with(&wanted), "not {wanted}: {version}");
        }
        if !disk.path("image.tar").exists() {
            let archive = oci_image::write(&disk.rootfs(), &disk.path(""));
            let mut import = this.host.command("ctr");
            import.args(["-n", "k8s.io", "images", "import"]).arg(archive).env("PATH", release.search_path());
            this.succeeds(&mut import);
        }
        this
    }

    /// Ends containerd with a signal. Its pods continue to run.
    fn end(mut self, signal: &str) {
        let pid = fs::read_to_string(self.host.disk.path("containerd.pid")).unwrap();
        self.succeeds(self.host.command("kill").args(["-s", signal, pid.trim()]));
        wait::expect("the end of containerd", PATIENCE, || self.process.try_wait().unwrap());
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.host.disk.path("containerd.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn succeeds(&self, command: &mut Command) -> String {
        let Output { status, stdout, stderr } = command.output().unwrap();
        assert!(status.success(), "{command:?}: {}\n{}", String::from_utf8_lossy(&stderr), self.log());
        String::from_utf8(stdout).unwrap()
    }

    fn crictl(&self, arguments: &[&str]) -> Command {
        let mut command = self.host.command(crictl().unwrap());
        command.arg("--config").arg(self.host.disk.path("crictl.yaml")).args(arguments);
        command
    }

    pub(crate) fn run_crictl(&self, arguments: &[&str]) -> String {
        self.succeeds(&mut self.crictl(arguments)).trim().to_owned()
    }

    /// Writes the file with a pod's configuration. `attempt` is the number of the attempt to start
    /// the pod, as a kubelet counts it.
    fn pod_file(&self, name: &str, attempt: u32) -> String {
        let file = self.host.disk.path(&format!("{name}-{attempt}.json"));
        let pod = json!({
            "metadata": {"name": name, "namespace": "default", "uid": name, "attempt": attempt},
            "linux": {"cgroup_parent": format!("/{}", self.host.cgroup)},
        });
        fs::write(&file, pod.to_string()).unwrap();
        file.to_str().unwrap().to_owned()
    }

    /// Starts a pod with a container that sleeps.
    fn run_pod(&self, name: &str, attempt: u32) -> CriPod {
        let pod_file = self.pod_file(name, attempt);
        let id = self.run_crictl(&["runp", &pod_file]);
        let file = self.host.disk.path("container.json");
        let container =
            json!({"metadata": {"name": "main", "attempt": attempt}, "image": {"image": oci_image::NAME}, "linux": {}});
        fs::write(&file, container.to_string()).unwrap();
        let container = self.run_crictl(&["create", &id, file.to_str().unwrap(), &pod_file]);
        self.run_crictl(&["start", &container]);
        CriPod { addresses: self.addresses(&id), id, container }
    }

    /// Returns a pod's addresses, as CRI reports them.
    pub(crate) fn addresses(&self, id: &str) -> Vec<String> {
        let pod: Value = serde_json::from_str(&self.run_crictl(&["inspectp", "-o", "json", id])).unwrap();
        let network = &pod["status"]["network"];
        let others = network["additionalIps"].as_array().into_iter().flatten().map(|other| &other["ip"]);
        [&network["ip"]].into_iter().chain(others).map(|ip| ip.as_str().unwrap().to_owned()).collect()
    }

    fn ready_pods(&self) -> BTreeSet<String> {
        let listed = self.run_crictl(&["pods", "-q", "--no-trunc", "--state", "ready"]);
        listed.lines().map(str::to_owned).collect()
    }

    /// Waits until an address answers a ping from a pod.
    fn pings(&self, from: &CriPod, address: &str) {
        wait::expect(&format!("an answer of {address} to {:?}", from.addresses), PATIENCE, || {
            let ping = ["exec", "-s", &from.container, "ping", "-q", "-c", "1", "-W", "5", address];
            self.crictl(&ping).output().unwrap().status.success().then_some(())
        });
    }

    fn remove(&self, id: &str) {
        self.run_crictl(&["rmp", "-f", id]);
    }

    /// Removes all pods. Returns the network namespaces that containerd has left behind.
    fn remove_all(&self) -> Vec<String> {
        self.run_crictl(&["pods", "-q", "--no-trunc"]).lines().for_each(|id| self.remove(id));
        self.host.namespaces()
    }
}

/// A pod with a container.
struct CriPod {
    id: String,
    container: String,
    addresses: Vec<String>,
}

fn reach_each_other(containerd: &Containerd<'_>, one: &CriPod, two: &CriPod) {
    for (from, to) in [(one, two), (two, one)] {
        to.addresses.iter().for_each(|address| containerd.pings(from, address));
    }
}

fn nothing_is_left(host: &RuntimeHost<'_>) {
    assert_eq!(host.leased(), [""; 0]);
    assert_eq!(host.world.ports(), [""; 0]);
}

fn pods_outlive_containerd(release: Release) {
    let disk = Disk::new();
    let host = RuntimeHost::boot(&disk, DUAL);
    let mut containerd = Containerd::start(&host, release);
    let (one, two) = (containerd.run_pod("one", 0), containerd.run_pod("two", 0));
    assert_eq!([&one.addresses[..], &two.addresses[..]].map(<[String]>::len), [2, 2], "both families");
    reach_each_other(&containerd, &one, &two);
    let mut others: Vec<CriPod> = Vec::new();
    for (name, signal) in [("three", "TERM"), ("four", "KILL")] {
        containerd.end(signal);
        one.addresses.iter().chain(&two.addresses).for_each(|address| host.reaches(address));
        containerd = Containerd::start(&host, release);
        let expected = [&one, &two].into_iter().chain(&others).map(|pod| pod.id.clone()).collect();
        assert_eq!(containerd.ready_pods(), expected, "after SIG{signal}");
        assert_eq!(containerd.addresses(&one.id), one.addresses);
        let new = containerd.run_pod(name, 0);
        reach_each_other(&containerd, &one, &new);
        others.push(new);
    }
    let given: BTreeSet<&String> = [&one, &two].into_iter().chain(&others).flat_map(|pod| &pod.addresses).collect();
    assert_eq!(given.len(), 8, "{given:?}");
    containerd.remove(&two.id);
    let leased = host.leased();
    assert!(!leased.contains(&two.id) && leased.len() == 3 && host.world.ports().len() == 3, "{leased:?}");
    reach_each_other(&containerd, &one, &others[1]);
    assert_eq!(containerd.remove_all(), [""; 0]);
    nothing_is_left(&host);
}

fn pods_come_during_a_kill(release: Release) {
    let disk = Disk::new();
    let host = RuntimeHost::boot(&disk, DUAL);
    let containerd = Containerd::start(&host, release);
    let stays = containerd.run_pod("stays", 0);
    let names = ["one", "two", "three", "four"];
    let come: Vec<Child> = names
        .iter()
        .map(|name| {
            let mut run = containerd.crictl(&["runp", &containerd.pod_file(name, 0)]);
            run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    // All pods have a namespace, so their ADDs have begun or are about to begin. An earlier kill
    // may leave a directory of the snapshotter behind, with which this containerd can no longer
    // start any pod.
    wait::expect("the namespaces of all pods", PATIENCE, || (host.namespaces().len() > names.len()).then_some(()));
    containerd.end("KILL");
    for mut child in come {
        child.wait().unwrap();
    }
    let containerd = Containerd::start(&host, release);
    let mut pods: Vec<CriPod> = names.iter().map(|name| containerd.run_pod(name, 1)).collect();
    pods.push(stays);
    let given: BTreeSet<&String> = pods.iter().flat_map(|pod| &pod.addresses).collect();
    assert_eq!(given.len(), 2 * pods.len(), "{given:?}");
    pods.windows(2).for_each(|pair| reach_each_other(&containerd, &pair[0], &pair[1]));
    let forgotten = containerd.remove_all();
    let leased = host.leased();
    assert!(pods.iter().all(|pod| !leased.contains(&pod.id)), "leases outlive the DELs of their pods: {leased:?}");
    // containerd may have lost track of a namespace that it had just created. A reboot would remove
    // it.
    for namespace in forgotten {
        succeed(host.command("ip").args(["netns", "del", &namespace]));
    }
    // The leases of these pods end in the same way as with the agent.
    wait::expect("the end of all leases", PATIENCE, || {
        host.reclaim();
        host.leased().is_empty().then_some(())
    });
    nothing_is_left(&host);
}

fn pods_come_again_after_a_reboot(release: Release) {
    let disk = Disk::new();
    let before = {
        let host = RuntimeHost::boot(&disk, DUAL);
        let containerd = Containerd::start(&host, release);
        ["one", "two"].map(|name| containerd.run_pod(name, 0))
    };
    let host = RuntimeHost::boot(&disk, DUAL);
    let containerd = Containerd::start(&host, release);
    assert_eq!(containerd.ready_pods(), BTreeSet::new());
    // A kubelet creates the pods again, and removes the former pods later.
    let again = ["one", "two", "three"].map(|name| containerd.run_pod(name, 1));
    let given: BTreeSet<&String> = again.iter().flat_map(|pod| &pod.addresses).collect();
    assert_eq!(given.len(), 6, "{given:?}");
    before.iter().for_each(|pod| containerd.remove(&pod.id));
    assert_eq!(host.leased().into_iter().collect::<BTreeSet<_>>(), again.iter().map(|pod| pod.id.clone()).collect());
    again.windows(2).for_each(|pair| reach_each_other(&containerd, &pair[0], &pair[1]));
    assert_eq!(containerd.remove_all(), [""; 0]);
    nothing_is_left(&host);
}

//! Tests the plugin with KubeEdge's edgecore, the kubelet on edge nodes. edgecore runs on a machine
//! without a connection to the cloud, with static pods, and with its Node object in its database.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use interop_tests::built_once::EDGECORE;
use interop_tests::edgecore::{self, Cloud};
use interop_tests::netns::succeed;
use interop_tests::suite::Test;
use interop_tests::{executables, wait};

use crate::containerd::{self, Containerd, Release};
use crate::runtime_host::{Disk, PATIENCE, RuntimeHost};

pub(crate) const TESTS: &[Test] = &[
    ("edgecores_pods_outlive_its_kill_and_go_with_their_manifest", pods_outlive_edgecore),
    ("edgecores_pods_come_again_after_a_reboot_without_the_cloud", pods_come_again_after_a_reboot),
];

pub(crate) const DUAL: &[&str] = &["10.77.3.0/24", "fd77:0:0:3::/120"];
pub(crate) const NODE: &str = "edge-1";

/// Returns the reason why the tests cannot run on this machine. `None` if they can.
pub(crate) fn unavailable() -> Option<String> {
    if executables::find("sqlite3").is_none() {
        return Some("`sqlite3` is not installed; run `.ci/install test`".into());
    }
    containerd::unavailable().or_else(|| EDGECORE.missing())
}

/// A running edgecore process. It ends together with its host, or when this value is dropped.
pub(crate) struct Edgecore<'a> {
    host: &'a RuntimeHost<'a>,
    process: Child,
}

impl<'a> Edgecore<'a> {
    /// Starts edgecore. All files that it writes are on the host's disk. The kernel settings that a
    /// kubelet changes are replaced with files of this test.
    pub(crate) fn start(host: &'a RuntimeHost<'a>, cloud: Cloud<'_>) -> Self {
        let path = |name: &str| host.disk.path(name).to_str().unwrap().to_owned();
        ["manifests", "sysctls", "edgecore"].iter().for_each(|name| fs::create_dir_all(path(name)).unwrap());
        let directory = host.disk.path("").to_str().unwrap().trim_end_matches('/').to_owned();
        let config = edgecore::configuration(&edgecore::Settings {
            node: NODE,
            directory: &directory,
            cgroup: &host.cgroup,
            cloud,
            cluster_dns: &[],
        });
        fs::write(path("edgecore.yaml"), config.to_string()).unwrap();
        let script = r#"
            echo $$ >"$1/edgecore.pid"
            for setting in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops \
                    kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
                file="$1/sysctls/$(basename $setting)"
                [ -e "$file" ] || cat "/proc/sys/$setting" >"$file"
                mountpoint -q "/proc/sys/$setting" || mount --bind "$file" "/proc/sys/$setting"
            done
            exec "$2" --config "$1/edgecore.yaml" >>"$1/edgecore.log" 2>&1"#;
        let process = host
            .command("sh")
            .args(["-ec", script, "sh", &path("")])
            .arg(EDGECORE.built().expect("edgecore").join("edgecore"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let this = Self { host, process };
        if matches!(cloud, Cloud::Never) {
            this.write_node();
        }
        this
    }

    /// Writes the Node object into the database, as cloudcore does when the edge registers. Without
    /// this object, edgecore exits after half a minute.
    fn write_node(&self) {
        let sql = edgecore::node_rows(NODE);
        wait::until("the table `meta`", PATIENCE, || {
            let database = self.host.disk.path("edgecore/edgecore.db");
            let output = Command::new("sqlite3").args(["-cmd", ".timeout 5000"]).arg(database).arg(&sql).output()?;
            match output.status.success() {
                true => Ok(()),
                false => Err(std::io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()).into()),
            }
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", self.log()));
    }

    pub(crate) fn log(&self) -> String {
        let log = fs::read_to_string(self.host.disk.path("edgecore.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    pub(crate) fn kill(mut self) {
        let pid = fs::read_to_string(self.host.disk.path("edgecore.pid")).unwrap();
        succeed(self.host.command("kill").args(["-s", "KILL", pid.trim()]));
        wait::expect("the end of edgecore", PATIENCE, || self.process.try_wait().unwrap());
    }

    fn manifest(&self, pod: &str) -> PathBuf {
        self.host.disk.path("manifests").join(format!("{pod}.json"))
    }

    /// Writes a static pod's manifest.
    fn declare(&self, pod: &str) {
        fs::write(self.manifest(pod), edgecore::pod(pod).to_string()).unwrap();
    }

    /// Waits until a static pod runs. Returns its ID and its addresses.
    fn until_static_runs(&self, containerd: &Containerd<'_>, pod: &str) -> (String, Vec<String>) {
        self.until_running(containerd, &format!("{pod}-{NODE}"))
    }

    /// Waits until the pod runs. Returns its ID and its addresses.
    pub(crate) fn until_running(&self, containerd: &Containerd<'_>, name: &str) -> (String, Vec<String>) {
        let running = wait::until(&format!("pod {name}"), PATIENCE, || {
            let listed = containerd.run_crictl(&["pods", "-q", "--no-trunc", "--state", "ready", "--name", name]);
            let Some(id) = listed.lines().next() else { return Err(anyhow::anyhow!("it is not there")) };
            let containers = containerd.run_crictl(&["ps", "-q", "--state", "running", "--pod", id]);
            anyhow::ensure!(!containers.is_empty(), "it has no running container");
            Ok((id.to_owned(), containerd.addresses(id)))
        });
        running.unwrap_or_else(|error| panic!("{error:#}\n{}", self.log()))
    }
}

impl Drop for Edgecore<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn pods_outlive_edgecore() {
    let disk = Disk::new();
    let host = RuntimeHost::boot(&disk, DUAL);
    let containerd = Containerd::start(&host, Release::Installed);
    let edgecore = Edgecore::start(&host, Cloud::Never);
    edgecore.declare("one");
    let one = edgecore.until_static_runs(&containerd, "one");
    assert_eq!(one.1.len(), 2, "both families: {one:?}");
    one.1.iter().for_each(|address| host.reaches(address));
    assert_eq!(host.leased(), std::slice::from_ref(&one.0));

    edgecore.kill();
    one.1.iter().for_each(|address| host.reaches(address));
    let edgecore = Edgecore::start(&host, Cloud::Never);
    edgecore.declare("two");
    let two = edgecore.until_static_runs(&containerd, "two");
    assert_eq!(edgecore.until_static_runs(&containerd, "one"), one, "it is the pod from before");
    one.1.iter().chain(&two.1).for_each(|address| host.reaches(address));

    fs::remove_file(edgecore.manifest("one")).unwrap();
    wait::until("the end of the pod's lease", PATIENCE, || {
        let leased = host.leased();
        anyhow::ensure!(leased == [two.0.clone()], "{leased:?}\n{}", edgecore.log());
        Ok(())
    })
    .unwrap();
    two.1.iter().for_each(|address| host.reaches(address));
}

fn pods_come_again_after_a_reboot() {
    let disk = Disk::new();
    let before = {
        let host = RuntimeHost::boot(&disk, DUAL);
        let containerd = Containerd::start(&host, Release::Installed);
        let edgecore = Edgecore::start(&host, Cloud::Never);
        ["one", "two"].map(|pod| {
            edgecore.declare(pod);
            edgecore.until_static_runs(&containerd, pod)
        })
    };
    let host = RuntimeHost::boot(&disk, DUAL);
    let containerd = Containerd::start(&host, Release::Installed);
    let edgecore = Edgecore::start(&host, Cloud::Never);
    let again = ["one", "two"].map(|pod| edgecore.until_static_runs(&containerd, pod));
    assert!(again[0].0 != before[0].0 && again[1].0 != before[1].0, "{before:?} {again:?}");
    let addresses = again.iter().flat_map(|pod| &pod.1);
    assert_eq!(addresses.clone().collect::<std::collections::BTreeSet<_>>().len(), 4, "{again:?}");
    addresses.for_each(|address| host.reaches(address));
}

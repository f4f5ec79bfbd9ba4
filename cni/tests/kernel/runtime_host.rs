//! A host for a container runtime: a node's network namespace with its own processes, `/run`,
//! `/var/lib` and boot ID. All its processes end together with it.

use std::ffi::OsStr;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use interop_tests::netns::{self, succeed};
use interop_tests::{executables, oci_image, wait};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cnitool::plugin;
use crate::world::World;

/// Timeout for an event on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

static BOOTS: AtomicU32 = AtomicU32::new(0);

/// The data that outlives a host: `/var/lib`, the plugin's state, configurations, and the root file
/// system of containers.
pub(crate) struct Disk(TempDir);

impl Disk {
    pub(crate) fn new() -> Self {
        let disk = Self(tempfile::tempdir().unwrap());
        ["var-lib", "bin", "net.d", "rootfs/bin"].iter().for_each(|name| fs::create_dir_all(disk.path(name)).unwrap());
        ["proc", "sys", "dev", "etc", "tmp"].iter().for_each(|name| fs::create_dir(disk.rootfs().join(name)).unwrap());
        symlink(env!("CARGO_BIN_EXE_edge-cni"), disk.path("bin/edge-cni")).unwrap();
        if let Some(file) = plugin("loopback") {
            symlink(file, disk.path("bin/loopback")).unwrap();
        }
        if let Some(busybox) = executables::find("busybox") {
            fs::copy(busybox, disk.rootfs().join("bin/busybox")).unwrap();
        }
        oci_image::PROGRAMS.iter().for_each(|name| symlink("busybox", disk.rootfs().join("bin").join(name)).unwrap());
        disk
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Returns a root file system with `sh`, `sleep`, `ping` and `ip`.
    pub(crate) fn rootfs(&self) -> PathBuf {
        self.path("rootfs")
    }

    /// Writes the configuration list of a network, as `edge-agent install-cni` does.
    pub(crate) fn write_list(&self, file: &str, plugin: &Value) {
        let mut own = plugin.clone();
        own["stateDir"] = json!(self.path("state"));
        let name = own["name"].take();
        own.as_object_mut().unwrap().retain(|key, _| !["name", "cniVersion"].contains(&key.as_str()));
        let list = json!({
            "cniVersion": "1.0.0",
            "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
            "name": name,
            "plugins": [own],
        });
        fs::write(self.path("net.d").join(file), list.to_string()).unwrap();
    }
}

/// Returns the reason why no runtime can run on this machine. `None` if it can. `programs` are the
/// programs that a runtime needs, with their packages.
pub(crate) fn unavailable(programs: &[(&str, &str)]) -> Option<String> {
    let needed = [programs, &[("busybox", "busybox-static")]].concat();
    for (program, package) in needed {
        if executables::find(program).is_none() {
            return Some(format!("`{program}` ({package}) is not installed; run `.ci/install test`"));
        }
    }
    netns::unavailable().or_else(|| {
        let disk = Disk::new();
        let runs = Command::new("chroot").arg(disk.rootfs()).arg("/bin/true").output();
        (!runs.is_ok_and(|output| output.status.success()))
            .then(|| "`busybox` is not static (busybox-static), so that it runs in no container".into())
    })
}

/// A host from boot to power-off.
pub(crate) struct RuntimeHost<'a> {
    pub(crate) world: World,
    pub(crate) disk: &'a Disk,
    /// The parent cgroup of the containers.
    pub(crate) cgroup: String,
    /// `unshare`, which waits for the first process of the host. That process ends when its
    /// standard input is closed, and all other processes of the host end with it.
    first: Child,
}

impl<'a> RuntimeHost<'a> {
    pub(crate) fn boot(disk: &'a Disk, segments: &[&str]) -> Self {
        let world = World::new(segments);
        world.set("stateDir", json!(disk.path("state")));
        let number = BOOTS.fetch_add(1, Ordering::Relaxed);
        let boot_id = world.folder.path().join("boot_id");
        fs::write(&boot_id, format!("boot-{number}\n")).unwrap();
        // podman keeps its locks in /dev/shm. `cat` ends with the test in any case. The shell reaps
        // orphaned processes of the runtimes.
        let script = r#"
            mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /dev/shm && mount --bind "$1" /var/lib &&
            mount --bind "$2" /proc/sys/kernel/random/boot_id && exec 3<&0 &&
            { cat <&3 >/dev/null & echo up; wait; }"#;
        let mut first = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", world.host))
            .args(["unshare", "--pid", "--fork", "--kill-child", "--mount", "--propagation", "private"])
            .args(["--mount-proc", "sh", "-c", script, "sh"])
            .args([disk.path("var-lib"), boot_id])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut up = [0; 3];
        first.stdout.as_mut().unwrap().read_exact(&mut up).expect("the host's namespaces cannot be made");
        let cgroup = format!("edge-cni-{}-{number}", std::process::id());
        Self { world, disk, cgroup, first }
    }

    /// Creates a command that runs a program on this host.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let own = format!("/proc/{}/ns", self.first.id());
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--mount={own}/mnt"))
            .arg(format!("--pid={own}/pid_for_children"))
            .arg(format!("--net=/run/netns/{}", self.world.host))
            .arg("--")
            .arg(program);
        command
    }

    /// Returns the containers that have a lease.
    pub(crate) fn leased(&self) -> Vec<String> {
        crate::world::held(&fs::read_to_string(self.disk.path("state/leases")).unwrap_or_default())
    }

    /// Ends the leases of pods that disappeared without a DEL, as the agent does.
    pub(crate) fn reclaim(&self) {
        let file = self.disk.path("plugin.json");
        fs::write(&file, self.world.config.borrow().to_string()).unwrap();
        succeed(self.command(env!("CARGO_BIN_EXE_edge-cni")).args(["reclaim", "--grace", "0"]).arg(file));
    }

    /// Returns the names of the network namespaces that runtimes created.
    pub(crate) fn namespaces(&self) -> Vec<String> {
        let listed = self.command("ls").arg("/run/netns").output().unwrap();
        String::from_utf8(listed.stdout).unwrap().split_whitespace().map(str::to_owned).collect()
    }

    /// Waits until an address answers a ping from the host.
    pub(crate) fn reaches(&self, address: &str) {
        wait::expect(&format!("an answer of {address}"), PATIENCE, || {
            let ping = self.command("ping").args(["-n", "-q", "-c", "1", "-W", "5", address]).output().unwrap();
            ping.status.success().then_some(())
        });
    }
}

impl Drop for RuntimeHost<'_> {
    fn drop(&mut self) {
        drop(self.first.stdin.take());
        let _ = self.first.wait();
        // A cgroup cannot be removed until its last process has ended.
        let _ = wait::until("the end of the containers' cgroups", PATIENCE, || {
            cgroups(&self.cgroup).iter().try_for_each(|path| remove_cgroup(path)).map_err(Into::into)
        });
    }
}

/// Returns a cgroup's directories in all hierarchies.
fn cgroups(name: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    hierarchies.chain([root.to_owned()]).map(|path| path.join(name)).filter(|path| path.is_dir()).collect()
}

fn remove_cgroup(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)?.flatten() {
        // The names of controllers may be symbolic links to the same hierarchy.
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

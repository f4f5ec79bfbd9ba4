//! Tests in containerd that the programs in the image run as in the manifests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use interop_tests::suite::Test;
use interop_tests::{executables, wait};

use crate::programs::{built, output, workspace};

pub(crate) const TESTS: &[Test] = &[("agent_and_controller_run_from_the_image_on_a_root_that_is_read_only", run)];

/// Time limit for a container's program.
const TIMEOUT: Duration = Duration::from_secs(180);

const IMAGE: &str = "registry.example.org/edge-cni:test";

/// Returns the reason why no container can run on this machine; `None` if one can.
pub(crate) fn unavailable() -> Option<String> {
    let missing: Vec<&str> =
        ["containerd", "ctr", "runc"].into_iter().filter(|program| executables::find(program).is_none()).collect();
    (!missing.is_empty()).then(|| format!("{} missing: apt-get install containerd", missing.join(" and ")))
}

/// Writes the image with this workspace's programs.
fn image(directory: &Path, name: &str) -> PathBuf {
    let [programs, _, _] = ["edge-agent", "edge-controller", "edge-cni"].map(built);
    let file = directory.join(name);
    let mut command = Command::new(workspace("deploy/image"));
    command
        .arg("--programs")
        .arg(programs.parent().expect("a directory"))
        .arg("--output")
        .arg(&file)
        .args(["--name", IMAGE]);
    output(&mut command).unwrap();
    file
}

/// A separate containerd, without CRI. It ends with the test.
struct Containerd {
    process: Child,
    directory: tempfile::TempDir,
}

impl Containerd {
    fn start() -> Self {
        assert!(rustix::process::geteuid().is_root(), "run it as root: containers need namespaces and mounts");
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let text = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n",
            at("root"),
            at("state"),
            at("socket")
        );
        fs::write(at("config.toml"), text).unwrap();
        let log = fs::File::create(at("log")).unwrap();
        let mut command = Command::new("containerd");
        command.arg("--config").arg(at("config.toml")).stdin(Stdio::null());
        let process =
            command.stdout(log.try_clone().unwrap()).stderr(log).spawn().expect("containerd, from .ci/install");
        let containerd = Self { process, directory };
        wait::until("containerd to answer", TIMEOUT, || containerd.ctr(&["version"])).unwrap();
        containerd
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.directory.path().join("socket")).args(arguments).stdin(Stdio::null());
        command
    }

    fn ctr(&self, arguments: &[&str]) -> anyhow::Result<String> {
        output(&mut self.command(arguments)).map_err(anyhow::Error::msg)
    }

    /// Starts a container from the image. The same paths are writable as in the manifests.
    fn run(&self, name: &str, more: &[&str], argv: &[&str]) -> Running<'_> {
        let writable = ["type=tmpfs,dst=/var/lib,options=rw", "type=tmpfs,dst=/run,options=rw"];
        let mut command = self.command(&["run", "--rm", "--read-only", "--snapshotter", "native"]);
        command.args(writable.iter().flat_map(|mount| ["--mount", mount])).args(more).args([IMAGE, name]).args(argv);
        let log = self.directory.path().join(name);
        let file = fs::File::create(&log).unwrap();
        let process = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        Running { containerd: self, name: name.to_owned(), process, log }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Running<'a> {
    containerd: &'a Containerd,
    name: String,
    process: Child,
    log: PathBuf,
}

impl Running<'_> {
    /// Waits until a command in the container answers with a text.
    fn answers(&self, text: &str, argv: &[&str]) {
        let mut attempt = 0;
        wait::until(&format!("{argv:?} in {} to say {text:?}", self.name), TIMEOUT, || {
            attempt += 1;
            let id = format!("exec-{attempt}");
            let said = self.containerd.ctr(&[&["task", "exec", "--exec-id", &id, &self.name], argv].concat());
            let log = || fs::read_to_string(&self.log).unwrap_or_default();
            let said = said.map_err(|error| error.context(log()))?;
            anyhow::ensure!(said.contains(text), "it says {said:?}; its log: {}", log());
            Ok(())
        })
        .unwrap();
    }

    /// Ends the program as the kubelet does. Returns the program's output.
    fn end(mut self) -> String {
        self.containerd.ctr(&["task", "kill", "--signal", "SIGTERM", &self.name]).unwrap();
        let status = self.process.wait().unwrap();
        let log = fs::read_to_string(&self.log).unwrap();
        assert!(status.success(), "{} ended with {status}: {log}", self.name);
        log
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // The shim outlives containerd.
        let _ = self.containerd.ctr(&["task", "kill", "--signal", "SIGKILL", &self.name]);
        let _ = self.process.wait();
    }
}

fn run() {
    let containerd = Containerd::start();
    let file = image(containerd.directory.path(), "edge-cni.tar");
    let again = image(containerd.directory.path(), "again.tar");
    assert!(fs::read(&file).unwrap() == fs::read(&again).unwrap(), "the same programs give other bytes");
    fs::remove_file(again).unwrap();
    let file = file.to_str().expect("a path in UTF-8");
    containerd.ctr(&["images", "import", "--snapshotter", "native", file]).unwrap();
    let listed = containerd.ctr(&["images", "list", "--quiet"]).unwrap();
    assert_eq!(listed.trim(), IMAGE);

    let arguments = ["run", "--server-names", "controller.example", "--segments-cluster-ranges", "10.77.0.0/16"];
    let controller = containerd.run("controller", &[], &[&["edge-controller"][..], &arguments].concat());
    controller.answers("CONNECTED", &["edge-controller", "node", "list"]);
    // Runs the plugin, and nft with its libraries.
    controller.answers("edge-cni", &["edge-cni", "--version"]);
    controller.answers("nftables v", &["nft", "--version"]);
    assert!(controller.end().contains("stopped"));

    let folder = containerd.directory.path().join("etc");
    fs::create_dir(&folder).unwrap();
    let text = "role = \"edge\"\n[controller]\nurls = [\"https://192.0.2.1:8443\"]\n";
    fs::write(folder.join("agent.toml"), text).unwrap();
    let mount = format!("type=bind,src={},dst=/etc/edge-cni,options=rbind:ro", folder.display());
    let arguments = ["edge-agent", "run", "--config", "/etc/edge-cni/agent.toml"];
    let agent = containerd.run("agent", &["--privileged", "--mount", &mount], &arguments);
    agent.answers("not connected", &["edge-agent", "status", "--config", "/etc/edge-cni/agent.toml"]);
    assert!(agent.end().contains("tunnels stay in the kernel"));
}

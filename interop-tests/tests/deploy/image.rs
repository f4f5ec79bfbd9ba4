//! Tests in containerd, which is called through CRI as by a kubelet, that the programs in the image
//! run in pods as in the manifests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use interop_tests::netns::succeed;
use interop_tests::suite::Test;
use interop_tests::{executables, oci_image, wait};
use serde_json::{Value, json};

use crate::helm::{objects, template};
use crate::page::Page;
use crate::programs::{built, output, workspace};

pub(crate) const TESTS: &[Test] = &[("agent_and_controller_run_from_the_image_on_a_root_that_is_read_only", run)];

/// Time limit for a container's program.
const TIMEOUT: Duration = Duration::from_secs(180);

/// The image as the chart names it by default.
const IMAGE: &str = concat!("edge-cni:", env!("CARGO_PKG_VERSION"));

/// Returns the reason why no container can run on this machine; `None` if one can.
pub(crate) fn unavailable() -> Option<String> {
    let missing: Vec<&str> = ["containerd", "ctr", "runc", "busybox"]
        .into_iter()
        .filter(|program| executables::find(program).is_none())
        .chain((!crictl().is_file()).then_some("crictl"))
        .collect();
    (!missing.is_empty()).then(|| format!("{} missing: run `.ci/install test`", missing.join(" and ")))
}

/// Returns the path of the client of CRI that `.ci/install test` builds.
fn crictl() -> PathBuf {
    workspace("target/cni-plugins/crictl")
}

/// Returns the directory of the programs for the image: that of the static ones that `make image`
/// builds if `EDGE_IMAGE_PROGRAMS` names it, as `make image-test` does, otherwise that of the
/// programs that are built with this test.
fn programs() -> PathBuf {
    if let Some(directory) = std::env::var_os("EDGE_IMAGE_PROGRAMS") {
        return directory.into();
    }
    let [programs, _, _] = ["edge-agent", "edge-controller", "edge-cni"].map(built);
    programs.parent().expect("a directory").to_owned()
}

/// Writes the image into the directory, where `make image` writes it into the workspace.
fn image(directory: &Path) -> PathBuf {
    let file = directory.join("target/image/edge-cni.tar");
    let mut command = Command::new(workspace("deploy/image"));
    command.arg("--programs").arg(programs()).arg("--output").arg(&file);
    output(&mut command).unwrap();
    file
}

/// A separate containerd in a network namespace of its own. It ends with the test, and its pods
/// too.
struct Containerd {
    process: Child,
    directory: tempfile::TempDir,
    /// The parent cgroup of the containers.
    cgroup: String,
}

impl Containerd {
    fn start() -> Self {
        assert!(rustix::process::geteuid().is_root(), "run it as root: containers need namespaces and mounts");
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        // The pods use containerd's network namespace, as pods with `hostNetwork` do.
        let config = format!(
            r#"version = 2
root = {:?}
state = {:?}
[grpc]
address = {:?}
[plugins."io.containerd.grpc.v1.cri"]
disable_apparmor = true
disable_tcp_service = true
restrict_oom_score_adj = true
sandbox_image = "{}"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
"#,
            at("root"),
            at("state"),
            at("socket"),
            oci_image::NAME,
        );
        fs::write(at("config.toml"), config).unwrap();
        let endpoint = format!("unix://{}", at("socket").display());
        let client = json!({"runtime-endpoint": endpoint, "image-endpoint": endpoint, "timeout": TIMEOUT.as_secs()});
        fs::write(at("crictl.yaml"), client.to_string()).unwrap();
        let log = fs::File::create(at("log")).unwrap();
        let script = r#"ip link set lo up && exec containerd --config "$1""#;
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", script, "sh"]).arg(at("config.toml")).stdin(Stdio::null());
        let process =
            command.stdout(log.try_clone().unwrap()).stderr(log).spawn().expect("containerd, from .ci/install");
        let cgroup = format!("/edge-cni-image-{}", std::process::id());
        let containerd = Self { process, directory, cgroup };
        wait::until("containerd to answer", TIMEOUT, || containerd.crictl(&["version"])).unwrap();
        containerd
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().expect("a path in UTF-8").to_owned()
    }

    fn import(&self, archive: &Path) {
        let mut command = Command::new("ctr");
        command.args(["--address", &self.path("socket"), "--namespace", "k8s.io"]);
        output(command.args(["images", "import", "--snapshotter", "native"]).arg(archive)).unwrap();
    }

    /// Imports the image by the command of `docs/install/kubernetes.md`, as it is written.
    fn import_as_written(&self) {
        let page = Page::read("docs/install/kubernetes.md");
        let commands = page.commands("1. The image", 0);
        let line = commands.iter().find(|line| line.starts_with("ctr ")).expect("the command that imports it");
        let mut command = Command::new("sh");
        command.args(["-c", line]).current_dir(self.directory.path());
        command.env("CONTAINERD_ADDRESS", self.path("socket")).env("CONTAINERD_SNAPSHOTTER", "native");
        output(&mut command).unwrap();
    }

    fn crictl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(crictl());
        command.args(["--config", &self.path("crictl.yaml")]).args(arguments).stdin(Stdio::null());
        Ok(output(&mut command).map_err(anyhow::Error::msg)?.trim().to_owned())
    }

    fn write(&self, name: &str, value: &Value) -> String {
        let path = self.path(name);
        fs::write(&path, value.to_string()).unwrap();
        path
    }

    /// Starts a pod with a container from the image. The same paths are writable as in the
    /// manifests. `mounts` has further directories, which are read-only: the path on this machine,
    /// and the path in the container.
    fn run(&self, name: &str, privileged: bool, mounts: &[(&Path, &str)], argv: &[&str]) -> Running<'_> {
        let mut all = Vec::new();
        for writable in ["/var/lib", "/run"] {
            let directory = self.path(&format!("{name}{writable}"));
            fs::create_dir_all(&directory).unwrap();
            all.push(json!({"host_path": directory, "container_path": writable}));
        }
        for (here, there) in mounts {
            all.push(json!({"host_path": here, "container_path": there, "readonly": true}));
        }
        let security = json!({"privileged": privileged, "readonly_rootfs": true});
        self.start_pod(name, &json!({"security_context": security}), &all, argv)
    }

    /// Starts a pod with a container from the image that has these settings and mounts.
    fn start_pod(&self, name: &str, linux: &Value, mounts: &[Value], argv: &[&str]) -> Running<'_> {
        const NODE: u8 = 2;
        let namespaces = json!({"network": NODE});
        let mut linux = linux.clone();
        linux["security_context"]["namespace_options"] = namespaces.clone();
        let privileged = linux["security_context"]["privileged"] == true;
        let pod = json!({
            "metadata": {"name": name, "namespace": "edge-cni", "uid": name, "attempt": 0},
            "log_directory": self.path("logs"),
            "linux": {
                "cgroup_parent": self.cgroup,
                "security_context": {"namespace_options": namespaces, "privileged": privileged},
            },
        });
        let pod_file = self.write(&format!("{name}-pod.json"), &pod);
        let container = json!({
            "metadata": {"name": "main", "attempt": 0},
            "image": {"image": IMAGE},
            "command": argv,
            "mounts": mounts,
            "log_path": format!("{name}.log"),
            "linux": linux,
        });
        let container_file = self.write(&format!("{name}-container.json"), &container);
        let pod = self.crictl(&["runp", &pod_file]).unwrap();
        let container = self.crictl(&["create", &pod, &container_file, &pod_file]).unwrap();
        self.crictl(&["start", &container]).unwrap();
        Running {
            containerd: self,
            name: name.to_owned(),
            container,
            log: PathBuf::from(self.path("logs")).join(format!("{name}.log")),
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // The shims outlive containerd.
        if let Err(error) = self.crictl(&["rmp", "--force", "--all"]) {
            eprintln!("the pods of the image's test are left: {error:#}");
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
        // runc leaves the parent cgroup, in each hierarchy of version 1.
        let name = self.cgroup.trim_start_matches('/');
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        for directory in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]) {
            let _ = fs::remove_dir(directory.join(name));
        }
    }
}

struct Running<'a> {
    containerd: &'a Containerd,
    name: String,
    container: String,
    log: PathBuf,
}

impl Running<'_> {
    /// Waits until a command in the container answers with a text.
    fn answers(&self, text: &str, argv: &[&str]) {
        wait::until(&format!("{argv:?} in {} to say {text:?}", self.name), TIMEOUT, || {
            let said = self.containerd.crictl(&[&["exec", "--sync", &self.container], argv].concat());
            let log = || fs::read_to_string(&self.log).unwrap_or_default();
            let said = said.map_err(|error| error.context(log()))?;
            anyhow::ensure!(said.contains(text), "it says {said:?}; its log: {}", log());
            Ok(())
        })
        .unwrap();
    }

    /// Kills the program and all processes of its container, and waits until they have ended.
    fn kill(&self) {
        self.containerd.crictl(&["stop", "--timeout", "0", &self.container]).unwrap();
    }

    /// Ends the program as the kubelet does. Returns the program's output.
    fn end(self) -> String {
        self.containerd.crictl(&["stop", "--timeout", "60", &self.container]).unwrap();
        let state = self.containerd.crictl(&["inspect", "-o", "json", &self.container]).unwrap();
        let state: Value = serde_json::from_str(&state).unwrap();
        let log = fs::read_to_string(&self.log).unwrap();
        assert_eq!(state["status"]["exitCode"].as_i64().unwrap_or(0), 0, "{}: {}: {log}", self.name, state["status"]);
        assert_eq!(state["status"]["reason"], "Completed", "{}: {log}", self.name);
        log
    }
}

/// Writes the image of the pods' sandboxes.
fn sandbox_image(directory: &Path) -> PathBuf {
    let rootfs = directory.join("sandbox");
    fs::create_dir_all(rootfs.join("bin")).unwrap();
    let busybox = executables::find("busybox").expect("busybox-static");
    succeed(Command::new("cp").arg(busybox).arg(rootfs.join("bin/sleep")));
    oci_image::write(&rootfs, &directory.join("sandbox-image"))
}

fn run() {
    let containerd = Containerd::start();
    let folder = containerd.directory.path();
    let file = image(folder);
    let again = tempfile::tempdir_in(folder).unwrap();
    assert!(fs::read(&file).unwrap() == fs::read(image(again.path())).unwrap(), "the same programs give other bytes");
    drop(again);
    containerd.import_as_written();
    containerd.import(&sandbox_image(folder));
    let listed = containerd.crictl(&["inspecti", "-o", "json", IMAGE]).unwrap();
    assert!(listed.contains(&format!("docker.io/library/{IMAGE}")), "{listed}");

    let arguments = ["run", "--server-names", "controller.example", "--segments-cluster-ranges", "10.77.0.0/16"];
    let controller = containerd.run("controller", false, &[], &[&["edge-controller"][..], &arguments].concat());
    controller.answers("CONNECTED", &["edge-controller", "node", "list"]);
    // Runs the plugin, and nft with its libraries.
    controller.answers("edge-cni", &["edge-cni", "--version"]);
    controller.answers("nftables v", &["nft", "--version"]);
    assert!(controller.end().contains("stopped"));

    let etc = folder.join("etc");
    fs::create_dir(&etc).unwrap();
    let text = "role = \"edge\"\n[controller]\nurls = [\"https://192.0.2.1:8443\"]\n";
    fs::write(etc.join("agent.toml"), text).unwrap();
    let arguments = ["edge-agent", "run", "--config", "/etc/edge-cni/agent.toml"];
    let status = ["edge-agent", "status", "--config", "/etc/edge-cni/agent.toml"];
    let holder = hold_sockets(&containerd);
    let agent = containerd.run("agent", true, &[(&etc, "/etc/edge-cni")], &arguments);
    agent.answers("not connected", &status);
    agent.answers("UDP sockets stay open while the agent restarts: edge-agent hold-sockets", &status);
    agent.kill();
    // The pod of the next agent has the same directories of the host.
    let next = json!({"security_context": {"privileged": true, "readonly_rootfs": true}});
    let mounts = [
        json!({"host_path": containerd.path("agent/var/lib"), "container_path": "/var/lib"}),
        json!({"host_path": containerd.path("agent/run"), "container_path": "/run"}),
        json!({"host_path": etc, "container_path": "/etc/edge-cni", "readonly": true}),
    ];
    let agent = containerd.start_pod("next", &next, &mounts, &arguments);
    agent.answers("UDP sockets stay open", &status);
    let said = agent.end();
    assert!(said.contains("tunnels stay in the kernel"), "{said}");
    assert!(said.contains("took over the sockets from the holder"), "{said}");
    holder.kill();
}

/// Starts the holder of the agent's sockets as the chart has it: with its command, without
/// privileges, and with its limit of memory.
fn hold_sockets(containerd: &Containerd) -> Running<'_> {
    let objects = objects(&template(&[]).unwrap());
    let is_holder = |object: &&Value| object["kind"] == "DaemonSet" && object["metadata"]["name"] == "socket-holder";
    let container =
        &objects.iter().find(is_holder).expect("the DaemonSet")["spec"]["template"]["spec"]["containers"][0];
    let security = &container["securityContext"];
    assert_eq!((&security["runAsUser"], &security["seccompProfile"]["type"]), (&json!(0), &json!("RuntimeDefault")));
    let limit = container["resources"]["limits"]["memory"].as_str().expect("a limit");
    let mebibytes: u64 = limit.strip_suffix("Mi").expect("a number of Mi").parse().unwrap();
    let linux = json!({
        "resources": {"memory_limit_in_bytes": mebibytes << 20},
        "security_context": {
            "run_as_user": {"value": 0},
            "capabilities": {"drop_capabilities": security["capabilities"]["drop"]},
            "no_new_privs": security["allowPrivilegeEscalation"] == false,
            "readonly_rootfs": security["readOnlyRootFilesystem"],
            "seccomp": {"profile_type": 0},
            "selinux_options": security["seLinuxOptions"],
        },
    });
    // The agent's container has the directory above.
    let directory = container["volumeMounts"][0]["mountPath"].as_str().expect("a path");
    let of_host = containerd.path(&format!("agent{directory}"));
    fs::create_dir_all(&of_host).unwrap();
    let mounts = [json!({"host_path": of_host, "container_path": directory})];
    let command: Vec<&str> =
        container["command"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    containerd.start_pod("holder", &linux, &mounts, &command)
}

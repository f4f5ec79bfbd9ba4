//! Follows the pages about Kubernetes, KubeEdge and k3s (`docs/install`) as they are written: each
//! command runs unchanged, against a real API server, with the values of the page. No controller
//! manager runs, so the test does what it would do: it reports DaemonSets as rolled out, and
//! finalizes a deleted namespace. Nor do pods run: a command of the controller's pod gets a
//! controller with the pod's configuration.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;
use edge_types::JoinToken;
use interop_tests::kube::{self, ControlPlane};
use interop_tests::netns::KilledOnDrop;
use interop_tests::suite::Test;
use interop_tests::wait;
use serde_json::{Value, json};

use crate::helm::helm;
use crate::page::Page;
use crate::programs::{built, output, workspace};

pub(crate) const TESTS: &[Test] = &[("the_pages_about_clusters_are_followed_as_written", followed)];

const NAMESPACE: &str = "edge-cni";

/// The commands that do not run in this test. `image` runs them: the first builds all programs, the
/// second needs containerd.
const NOT_RUN: &[&str] = &["make image", "ctr --namespace k8s.io images import"];

/// A script that makes a k3s edge with a segment, and runs a command there. `$1`: a directory with
/// the page's configuration and the two programs. `$2`: the command.
const K3S_EDGE: &str = r#"
set -eu
for directory in /etc /var/lib /opt /run; do mount -t tmpfs node "$directory"; done
mkdir -p /etc/edge-cni /var/lib/edge-cni /run/bin
mount --bind /usr/bin /run/bin
export PATH=/usr/bin:/run/bin
mount -t tmpfs bin /usr/bin
cp "$1/agent.toml" /etc/edge-cni
cp "$1/edge-agent" "$1/edge-cni" /usr/bin
echo '{"version": 1, "source": "agent", "segments": ["10.77.0.0/26"], "cluster_ranges": ["10.77.0.0/16"]}' \
    >/var/lib/edge-cni/segments.json
: >/var/lib/edge-cni/lock
chmod 600 /var/lib/edge-cni/segments.json
eval "$2" >&2
find /etc/cni /opt /var/lib/rancher -type f 2>/dev/null || true
"#;

/// A directory like that of the repository, with the programs of an administrator on the path.
pub(crate) struct Shell {
    plane: ControlPlane,
    pub(crate) directory: tempfile::TempDir,
}

impl Shell {
    pub(crate) fn new(name: &str) -> Self {
        let (plane, directory) = (ControlPlane::start(name).unwrap(), tempfile::tempdir().unwrap());
        symlink(fs::canonicalize(workspace("deploy")).unwrap(), directory.path().join("deploy")).unwrap();
        let bin = directory.path().join("bin");
        fs::create_dir(&bin).unwrap();
        let programs = [
            ("kubectl", kube::ensure().unwrap().kubectl),
            ("helm", PathBuf::from(helm().get_program())),
            ("edge-controller", built("edge-controller")),
        ];
        for (name, program) in programs {
            symlink(fs::canonicalize(program).unwrap(), bin.join(name)).unwrap();
        }
        Self { plane, directory }
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-euc", line]).current_dir(self.directory.path()).stdin(Stdio::null());
        let path = format!("{}/bin:/usr/bin:/bin", self.directory.path().display());
        command.env("PATH", path).env("KUBECONFIG", self.plane.kubeconfig()).env("HOME", self.directory.path());
        command
    }

    pub(crate) fn run(&self, line: &str) -> String {
        output(&mut self.command(line)).unwrap_or_else(|why| panic!("{line}: {why}"))
    }

    /// Runs a command of the controller's pod beside a controller with the pod's configuration.
    fn run_in_controller(&self, line: &str) -> String {
        let config =
            r"kubectl --namespace edge-cni get configmap edge-controller --output=jsonpath='{.data.controller\.toml}'";
        let path = |name: &str| self.directory.path().join(name);
        fs::write(path("controller.toml"), self.run(config)).unwrap();
        let socket = path("admin.sock");
        let mut command = Command::new(built("edge-controller"));
        command.args([
            "run",
            "--listen=127.0.0.1:0",
            "--observe-listen=127.0.0.1:0",
            "--page-listen=127.0.0.1:0",
            "--config",
        ]);
        command.arg(path("controller.toml")).arg(format!("--state-dir={}", path("state").display()));
        command.arg(format!("--admin-socket={}", socket.display()));
        command.arg(format!("--kubernetes-kubeconfig={}", self.plane.kubeconfig().display()));
        let log = fs::File::create(path("controller.log")).unwrap();
        let _running = KilledOnDrop(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap());
        wait::for_event("the controller", || {
            let mut asked = Command::new(built("edge-controller"));
            let answer = output(asked.args(["node", "list", "--socket"]).arg(&socket)).map_err(anyhow::Error::msg);
            answer.with_context(|| fs::read_to_string(path("controller.log")).unwrap_or_default())
        })
        .unwrap();
        let mut command = self.command(line);
        output(command.env("EDGE_CONTROLLER_SOCKET", &socket)).unwrap_or_else(|why| panic!("{line}: {why}"))
    }

    /// Makes the Node objects that the commands name.
    fn make_nodes(&self, commands: &[String]) {
        let named = commands.iter().filter_map(|line| line.split("label node ").nth(1)?.split(' ').next());
        for name in named.collect::<BTreeSet<_>>() {
            let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
            self.plane.apply_text(&node.to_string()).unwrap();
        }
    }

    /// Runs a command that waits for the controller manager, and does that program's part.
    fn run_for_controllers(&self, line: &str, part: impl Fn() -> anyhow::Result<()>) {
        let mut child = self.command(line).spawn().unwrap();
        wait::for_event(line, || {
            part()?;
            let status = child.try_wait()?.context("it waits")?;
            assert!(status.success(), "{line}: {status}");
            Ok(())
        })
        .unwrap();
    }

    /// Reports a DaemonSet as rolled out to all of its nodes.
    fn roll_out(&self, name: &str) -> anyhow::Result<()> {
        let read = self.plane.kubectl(&["--namespace", NAMESPACE, "get", name, "--output=json"])?;
        let object: Value = serde_json::from_str(&read)?;
        let status = json!({"status": {
            "observedGeneration": object["metadata"]["generation"], "desiredNumberScheduled": 1, "currentNumberScheduled": 1,
            "numberMisscheduled": 0, "numberReady": 1, "numberAvailable": 1, "updatedNumberScheduled": 1,
        }});
        let (patch, status) = ("--type=merge", status.to_string());
        let arguments = ["--namespace", NAMESPACE, "patch", name, "--subresource=status", patch, "--patch", &status];
        self.plane.kubectl(&arguments).map(drop)
    }

    /// Ends a deleted namespace, whose objects are gone.
    fn finalize(&self) -> anyhow::Result<()> {
        let Ok(read) = self.plane.kubectl(&["get", "namespace", NAMESPACE, "--output=json"]) else { return Ok(()) };
        let mut object: Value = serde_json::from_str(&read)?;
        if object["metadata"]["deletionTimestamp"].is_null() {
            return Ok(());
        }
        object["spec"]["finalizers"] = json!([]);
        let file = self.directory.path().join("namespace.json");
        fs::write(&file, object.to_string())?;
        let path = format!("/api/v1/namespaces/{NAMESPACE}/finalize");
        let file = file.to_str().context("a path in UTF-8")?;
        self.plane.kubectl(&["replace", "--raw", &path, "--filename", file]).map(drop)
    }
}

/// Returns the blocks of code of a page, each with its language.
fn blocks(page: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(workspace("docs/install").join(page)).unwrap();
    let blocks = text.split("\n```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'));
    blocks.map(|(language, text)| (language.to_owned(), text.to_owned())).collect()
}

pub(crate) fn write_values(page: &str, directory: &Path) {
    let values = blocks(page).into_iter().find(|(language, text)| language == "yaml" && text.contains("segments:"));
    fs::write(directory.join("values.yaml"), values.expect("a file of values").1).unwrap();
}

/// Runs a command of a page. A command of a program that this test does not know does not run.
fn follow(shell: &Shell, page: &Page, line: &str) {
    if let Some(daemon_set) = line.split(" rollout status ").nth(1) {
        shell.run_for_controllers(line, || shell.roll_out(daemon_set));
    } else if line.starts_with("kubectl delete namespace ") {
        shell.run_for_controllers(line, || shell.finalize());
    } else if line.starts_with("kubectl ") || line.starts_with("helm ") {
        shell.run(line);
    } else if line.starts_with("edge-controller token create ") {
        let token: JoinToken = shell.run_in_controller(line).parse().unwrap_or_else(|error| panic!("{line}: {error}"));
        let node = token.node.map(|name| name.to_string()).unwrap_or_default();
        assert!(line.contains(&format!("--role {} --node {node}", token.role)), "{line} gave one for {node:?}");
    } else if line.starts_with("edge-agent install-cni ") {
        install_on_k3s(page, line);
    } else {
        return;
    }
    page.has_run(line);
}

/// Runs a command on a k3s edge that has the configuration of the page. The plugin and the conflist
/// must be in k3s' directories, and nothing in those of other runtimes.
fn install_on_k3s(page: &Page, line: &str) {
    let files = page.blocks("An edge without the chart", "toml");
    let [config] = files[..] else { panic!("one configuration: {files:?}") };
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("agent.toml"), config).unwrap();
    for program in ["edge-agent", "edge-cni"] {
        symlink(built(program), directory.path().join(program)).unwrap();
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "--propagation", "private", "sh", "-c", K3S_EDGE, "sh"]);
    let made = output(command.arg(directory.path()).arg(line)).unwrap_or_else(|why| panic!("{line}: {why}"));
    let mut made: Vec<&str> = made.lines().collect();
    made.sort_unstable();
    let k3s = "/var/lib/rancher/k3s";
    assert_eq!(made, [format!("{k3s}/agent/etc/cni/net.d/10-edge-cni.conflist"), format!("{k3s}/data/cni/edge-cni")]);
}

fn followed() {
    let shell = Shell::new("pages");
    let page = Page::read("docs/install/kubernetes.md");
    let of_kubernetes = page.all_commands();
    shell.make_nodes(&of_kubernetes);
    write_values("kubernetes.md", shell.directory.path());
    for line in &of_kubernetes {
        follow(&shell, &page, line);
        if line.starts_with("helm install ") {
            let made = shell.run("kubectl --namespace edge-cni get daemonset,deployment --output=name");
            for name in ["edge-agent", "hub-agent", "cloud-agent", "socket-holder", "edge-controller"] {
                assert!(made.contains(&format!("/{name}\n")), "{name}: {made}");
            }
        }
        if line.starts_with("helm uninstall ") {
            assert_eq!(shell.run("kubectl --namespace edge-cni get daemonset,deployment --output=name"), "");
        }
    }
    // The page ends with the installation without Helm.
    let made = shell.run("kubectl --namespace edge-cni get daemonset,deployment --output=name");
    assert_eq!(made.lines().count(), 5, "{made}");
    assert!(of_kubernetes.len() >= 15, "{of_kubernetes:?}");
    page.all_have_run_except(NOT_RUN);

    // The other pages begin where this one has made the namespace.
    let namespace =
        of_kubernetes.iter().filter(|line| line.contains(" namespace edge-cni") && !line.contains(" delete "));
    let namespace: Vec<&String> = namespace.collect();
    for name in ["k3s.md", "kubeedge.md"] {
        let page = Page::read(&format!("docs/install/{name}"));
        let shell = Shell::new(name.trim_end_matches(".md"));
        namespace.iter().for_each(|line| drop(shell.run(line)));
        write_values(name, shell.directory.path());
        let commands = page.all_commands();
        assert!(commands.len() >= 2, "{name}: {commands:?}");
        shell.make_nodes(&commands);
        commands.iter().for_each(|line| follow(&shell, &page, line));
        page.all_have_run_except(&[]);
        let made = shell.run("kubectl --namespace edge-cni get daemonset/edge-agent --output=json");
        let directory = "/var/lib/rancher/k3s/agent/etc/cni/net.d";
        assert_eq!(made.contains(directory), name == "k3s.md", "{name}: the runtime's directory");
    }
}

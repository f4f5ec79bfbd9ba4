//! Follows the pages about Kubernetes, KubeEdge and k3s (`docs/install`) as they are written: each
//! command of `kubectl` and `helm` runs unchanged, against a real API server, with the values of
//! the page. No controller manager runs, so the test does what it would do: it reports DaemonSets
//! as rolled out, and finalizes a deleted namespace.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;
use interop_tests::kube::{self, ControlPlane};
use interop_tests::suite::Test;
use interop_tests::wait;
use serde_json::{Value, json};

use crate::helm::helm;
use crate::programs::{output, workspace};

pub(crate) const TESTS: &[Test] = &[("the_pages_about_clusters_are_followed_as_written", followed)];

const NAMESPACE: &str = "edge-cni";

/// A directory like that of the repository, with the two programs on the path.
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
        let programs = [("kubectl", kube::ensure().unwrap().kubectl), ("helm", PathBuf::from(helm().get_program()))];
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

/// Returns the commands of `kubectl` and `helm` of a page.
fn commands(page: &str) -> Vec<String> {
    let shell = blocks(page).into_iter().filter(|(language, _)| language == "sh");
    let lines = shell.flat_map(|(_, text)| text.lines().map(str::to_owned).collect::<Vec<_>>());
    lines.filter(|line| line.starts_with("kubectl ") || line.starts_with("helm ")).collect()
}

pub(crate) fn write_values(page: &str, directory: &Path) {
    let values = blocks(page).into_iter().find(|(language, text)| language == "yaml" && text.contains("segments:"));
    fs::write(directory.join("values.yaml"), values.expect("a file of values").1).unwrap();
}

fn follow(shell: &Shell, line: &str) {
    if let Some(daemon_set) = line.split(" rollout status ").nth(1) {
        shell.run_for_controllers(line, || shell.roll_out(daemon_set));
    } else if line.starts_with("kubectl delete namespace ") {
        shell.run_for_controllers(line, || shell.finalize());
    } else {
        shell.run(line);
    }
}

fn followed() {
    let shell = Shell::new("pages");
    let of_kubernetes = commands("kubernetes.md");
    shell.make_nodes(&of_kubernetes);
    write_values("kubernetes.md", shell.directory.path());
    for line in &of_kubernetes {
        follow(&shell, line);
        if line.starts_with("helm install ") {
            let made = shell.run("kubectl --namespace edge-cni get daemonset,deployment --output=name");
            for name in ["edge-agent", "hub-agent", "cloud-agent", "edge-controller"] {
                assert!(made.contains(&format!("/{name}\n")), "{name}: {made}");
            }
        }
        if line.starts_with("helm uninstall ") {
            assert_eq!(shell.run("kubectl --namespace edge-cni get daemonset,deployment --output=name"), "");
        }
    }
    // The page ends with the installation without Helm.
    let made = shell.run("kubectl --namespace edge-cni get daemonset,deployment --output=name");
    assert_eq!(made.lines().count(), 4, "{made}");
    assert!(of_kubernetes.len() >= 15, "{of_kubernetes:?}");

    // The other pages begin where this one has made the namespace.
    let namespace =
        of_kubernetes.iter().filter(|line| line.contains(" namespace edge-cni") && !line.contains(" delete "));
    let namespace: Vec<&String> = namespace.collect();
    for page in ["k3s.md", "kubeedge.md"] {
        let shell = Shell::new(page.trim_end_matches(".md"));
        namespace.iter().for_each(|line| drop(shell.run(line)));
        write_values(page, shell.directory.path());
        let commands = commands(page);
        assert!(!commands.is_empty(), "{page}");
        shell.make_nodes(&commands);
        commands.iter().for_each(|line| follow(&shell, line));
        let made = shell.run("kubectl --namespace edge-cni get daemonset/edge-agent --output=json");
        let directory = "/var/lib/rancher/k3s/agent/etc/cni/net.d";
        assert_eq!(made.contains(directory), page == "k3s.md", "{page}: the runtime's directory");
    }
}

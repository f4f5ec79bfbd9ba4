//! Runs the chart's cleanup of a node as the cleanup pod does, after an agent has run on the node.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::ensure;
use interop_tests::demo::{HOST_STATE, compare_host};
use interop_tests::netns::KilledOnDrop;
use interop_tests::suite::Test;
use interop_tests::wait;
use serde_json::Value;

use crate::helm::{objects, template};
use crate::pair::{controller_file, operator, write};
use crate::programs::{built, output};

pub(crate) const TESTS: &[Test] =
    &[("the_cleanup_leaves_a_node_as_it_was_before_the_agent_and_finds_nothing_when_it_runs_again", cleans)];

/// A script that makes the node: separate directories and a network, with a mount point for each
/// volume of the pod. `$1`: the mount points.
const NODE: &str = r#"
set -eu
for directory in /etc /var/lib /run /opt; do mount -t tmpfs node "$directory"; done
for directory in $1 /etc/edge-cni /run/edge-cni-join; do mkdir -p "$directory"; done
for directory in $1; do mount -t tmpfs volume "$directory"; done
ip link set lo up
# No link-local addresses, which come a moment after the start.
ip link add uplink type veth peer name wire
for device in uplink wire; do echo 1 >/proc/sys/net/ipv6/conf/$device/addr_gen_mode; done
ip link set wire up
ip address add 192.0.2.1/24 dev uplink
ip link set uplink up
ip route add default via 192.0.2.254
# The first rule with ct loads the kernel's connection tracking, which adds sysctls to every network.
nft 'add table inet first; add chain inet first c; add rule inet first c ct state new; delete table inet first'
echo up
exec cat
"#;

/// Path of the join token on the node, as the chart mounts it.
const TOKEN: &str = "/run/edge-cni-join/token";

/// A node with its own mounts and network.
struct Node {
    process: KilledOnDrop,
}

impl Node {
    fn start(volumes: &str) -> Self {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--net", "--propagation", "private", "sh", "-c", NODE, "sh", volumes]);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut process = KilledOnDrop(child);
        let mut said = [0; 3];
        process.0.stdout.as_mut().expect("a pipe").read_exact(&mut said).unwrap();
        Self { process }
    }

    /// Makes a command on the node. `nsenter` becomes the program, which a signal reaches.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.process.0.id().to_string(), "--mount", "--net"]).arg(program);
        command.stdin(Stdio::null());
        command
    }

    fn sh(&self, script: &str) -> String {
        output(self.command(Path::new("sh")).args(["-c", script])).unwrap_or_else(|why| panic!("{script}: {why}"))
    }

    fn write(&self, path: &str, text: &str) {
        let written = self
            .command(Path::new("sh"))
            .args(["-c", "umask 077; printf %s \"$1\" >\"$2\"", "sh", text, path])
            .status();
        assert!(written.unwrap().success(), "{path}");
    }

    fn start_program(&self, program: &str, config: &Path, log: &Path) -> KilledOnDrop {
        let mut command = self.command(&built(program));
        command.args(["run", "--config"]).arg(config).env("EDGE_AGENT_NAME", "edge-1");
        KilledOnDrop(command.stdout(Stdio::null()).stderr(fs::File::create(log).unwrap()).spawn().unwrap())
    }
}

/// Lets an agent of the chart join and install itself, and stops it. Returns the state of the node
/// that it leaves.
fn install(node: &Node, directory: &Path) -> String {
    let log = directory.join("agent.log");
    write(&directory.join("controller.toml"), &controller_file(directory));
    let controller =
        node.start_program("edge-controller", &directory.join("controller.toml"), &directory.join("controller.log"));
    let create = ["token", "create", "--role", "edge", "--ttl", "1h"];
    let token = wait::for_event("a token", || {
        output(operator(&built("edge-controller"), directory).args(create)).map_err(anyhow::Error::msg)
    });
    node.write(TOKEN, token.unwrap().trim());
    let agent = built("edge-agent");
    let install = |more: &[&str]| {
        let mut command = node.command(&agent);
        output(command.args(["install-cni", "--config", "/etc/edge-cni/agent.toml"]).args(more)).unwrap()
    };
    install(&["--plugin", built("edge-cni").to_str().expect("a path in UTF-8"), "--plugin-only"]);
    let mut running = node.start_program("edge-agent", Path::new("/etc/edge-cni/agent.toml"), &log);
    // It waits for the first segment.
    install(&[]);
    wait::for_event("the agent to have programmed the node", || {
        let state = node.sh(HOST_STATE);
        for part in
            ["ecni0:", "ecni-guard", "table inet edge-cni", "src 10.77.0.0/16", "10-edge-cni.conflist", "segments.json"]
        {
            ensure!(state.contains(part), "{part} is missing: {}", fs::read_to_string(&log)?);
        }
        Ok(())
    })
    .unwrap();
    output(Command::new("kill").arg(running.0.id().to_string())).unwrap();
    assert!(running.0.wait().unwrap().success());
    drop(controller);
    node.sh(HOST_STATE)
}

/// Returns the commands of the pod's containers, and the mount points of its volumes.
fn commands_and_volumes(cleanup: &Value) -> (Vec<Vec<&str>>, Vec<&str>) {
    let containers = cleanup["spec"]["template"]["spec"]["initContainers"].as_array().unwrap();
    let commands = containers.iter().map(|container| {
        container["command"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect::<Vec<_>>()
    });
    let mounts = containers.iter().flat_map(|container| container["volumeMounts"].as_array().unwrap());
    let paths = mounts.map(|mount| mount["mountPath"].as_str().unwrap()).filter(|path| *path != "/etc/edge-cni");
    let mut volumes: Vec<&str> = paths.collect();
    volumes.sort_unstable();
    volumes.dedup();
    (commands.collect(), volumes)
}

fn cleans() {
    let values = ["--set=edge.join=tokenFile", "--set=edge.controllerUrls={https://127.0.0.1:8443}"];
    let rendered = objects(&template(&[&values[..], &["--set=cleanup.enabled=true"]].concat()).unwrap());
    let named = |kind: &str, name: &str| {
        let is = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == name;
        rendered.iter().find(is).unwrap_or_else(|| panic!("no {kind} {name}"))
    };
    let config = |name: &str| named("ConfigMap", name)["data"]["agent.toml"].as_str().unwrap();
    let (commands, volumes) = commands_and_volumes(named("DaemonSet", "edge-cni-cleanup"));
    assert!(volumes.len() >= 4, "{volumes:?}");
    let volumes = volumes.join(" ");
    let directory = tempfile::tempdir().unwrap();

    let node = Node::start(&volumes);
    node.write("/etc/edge-cni/agent.toml", config("edge-agent"));
    let before = node.sh(HOST_STATE);
    let installed = install(&node, directory.path());
    let (_, ours) = compare_host(&before, &installed);
    for part in ["net.ipv4.ip_forward = 1", "dev ecni0", "table bridge edge-cni", "edge-cni"] {
        assert!(ours.iter().any(|line| line.contains(part)), "the agent left no {part}: {ours:#?}");
    }
    let files = || node.sh(&format!("find {volumes} -mindepth 1"));
    assert!(files().lines().count() >= 4, "{}", files());

    // The pod has its own configuration, and its agent stands for that of the image.
    node.write("/etc/edge-cni/agent.toml", config("edge-cni-cleanup"));
    let clean = || {
        let run = |words: &Vec<&str>| {
            assert_eq!(words[0], "edge-agent");
            output(node.command(&built("edge-agent")).args(&words[1..])).unwrap()
        };
        commands.iter().map(run).collect::<String>()
    };
    clean();
    assert_eq!(files(), "");
    let after = node.sh(HOST_STATE);
    let (gone, left) = compare_host(&before, &after);
    assert!(gone.is_empty() && left.is_empty(), "gone is {gone:#?}, left is {left:#?}");
    assert_eq!(clean(), "nothing of edge-cni was on this host\n");
}

//! Runs the chart's cleanup of a node as the cleanup pod does.

use std::fs;
use std::process::Command;

use interop_tests::suite::Test;
use serde_json::Value;

use crate::helm::{objects, template};
use crate::programs::{built, output};

pub(crate) const TESTS: &[Test] =
    &[("the_cleanup_leaves_nothing_of_edge_cni_on_a_node_and_finds_nothing_when_it_runs_again", cleans)];

/// A script that runs the commands in separate directories, with a mount point for each volume, as
/// in the pod. `$1`: a directory with the configuration. `$2`: the agent's program. `$3`: the mount
/// points. The other arguments: the commands, one word each, with `;` between them.
const SCRIPT: &str = r#"
set -eu
config=$1 agent=$2 volumes=$3
shift 3
mount -t tmpfs input /mnt
cp "$config"/* /mnt
for directory in /etc /var/lib /run /opt; do mount -t tmpfs node "$directory"; done
for directory in $volumes; do mkdir -p "$directory"; mount -t tmpfs volume "$directory"; done
mkdir -p /etc/edge-cni
cp /mnt/agent.toml /etc/edge-cni
# The program's name in the image.
mkdir /run/image
cp "$agent" /run/image/edge-agent
PATH=/run/image:$PATH
# What a node keeps whose agent has joined.
cp /mnt/segments.json /mnt/identity.json /var/lib/edge-cni
chmod 600 /var/lib/edge-cni/*
edge-agent install-cni --config /etc/edge-cni/agent.toml --plugin "$agent" --plugin-only
echo '{}' >/etc/cni/net.d/10-edge-cni.conflist
echo before: $(find $volumes -type f | wc -l)
clean() {
    command=""
    for word; do
        if [ "$word" = ";" ]; then $command; command=""; else command="$command $word"; fi
    done
}
clean "$@"
echo left: $(find $volumes -mindepth 1 | wc -l)
clean "$@"
"#;

fn cleans() {
    let objects = objects(&template(&["--set=cleanup.enabled=true"]).unwrap());
    let named = |kind: &str| {
        let is = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == "edge-cni-cleanup";
        objects.iter().find(is).unwrap_or_else(|| panic!("no {kind} edge-cni-cleanup"))
    };
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    file("agent.toml", named("ConfigMap")["data"]["agent.toml"].as_str().unwrap());
    file(
        "segments.json",
        r#"{"version": 1, "source": "agent", "segments": ["10.77.0.0/26"], "cluster_ranges": ["10.77.0.0/16"]}"#,
    );
    file("identity.json", "{}");
    let containers = named("DaemonSet")["spec"]["template"]["spec"]["initContainers"].as_array().unwrap();
    let mut words = Vec::new();
    let mut volumes = Vec::new();
    for container in containers {
        words.extend(container["command"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()));
        words.push(";");
        for volume in container["volumeMounts"].as_array().unwrap() {
            let path = volume["mountPath"].as_str().unwrap();
            if path != "/etc/edge-cni" && !volumes.contains(&path) {
                volumes.push(path);
            }
        }
    }
    assert!(volumes.len() >= 4, "{volumes:?}");
    // The real agent also takes the place of the plugin, which is only copied and removed.
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "--propagation", "private", "sh", "-c", SCRIPT, "sh"]);
    command.arg(directory.path()).arg(built("edge-agent")).arg(volumes.join(" ")).args(words);
    let said = output(&mut command).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines.contains(&"before: 4"), "{said}");
    assert!(lines.contains(&"left: 0"), "{said}");
    assert_eq!(lines.last(), Some(&"nothing of edge-cni was on this host"), "{said}");
}

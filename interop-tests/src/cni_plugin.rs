//! Runs `edge-cni` on a host of the lab, exactly as a container runtime does.

use std::fs::File;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::scenario::Lab;
use crate::topology::{Node, Pod};

/// Path of the network configuration list that `edge-agent install-cni` writes and a runtime reads.
pub(crate) const CONFLIST: &str = "/etc/cni/net.d/10-edge-cni.conflist";

/// The plugin's exit status and output.
pub(crate) struct PluginOutput {
    /// Whether the plugin's exit status was 0.
    pub(crate) ok: bool,
    /// The plugin's result or error, as JSON.
    pub(crate) body: Value,
}

/// Makes the network configuration that a runtime derives from the installed list: the first
/// plugin's, with the list's name and version.
fn network_configuration(node: &Node) -> Result<Value> {
    let list: Value = serde_json::from_str(&node.read(CONFLIST)?)?;
    let mut plugin = list["plugins"][0].clone();
    plugin["name"] = list["name"].clone();
    plugin["cniVersion"] = json!("1.0.0");
    Ok(plugin)
}

/// Runs the plugin.
///
/// # Errors
/// Returns an error if the plugin cannot be run or its output is not JSON.
pub(crate) fn call(lab: &Lab, node: &Node, verb: &str, container_id: &str, netns: &str) -> Result<PluginOutput> {
    let stdin = node.out().join(format!("{}.cni-stdin.json", node.name()));
    std::fs::write(&stdin, network_configuration(node)?.to_string())?;
    let out = node.output(
        node.command(lab.program("edge-cni")?)
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", container_id)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/opt/cni/bin")
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=demo;K8S_POD_NAME={container_id}"))
            .stdin(Stdio::from(File::open(stdin)?)),
    )?;
    let text = String::from_utf8_lossy(&out.stdout);
    let body = if text.trim().is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&text).with_context(|| format!("{verb} answered {text:?}"))?
    };
    Ok(PluginOutput { ok: out.status.success(), body })
}

/// Makes a pod's namespace and runs ADD. Also returns the plugin's result.
///
/// # Errors
/// Returns an error if ADD fails.
pub(crate) fn add(lab: &Lab, node: &Node, name: &str) -> Result<(Pod, Value)> {
    let pod = node.pod(name)?;
    let answer = call(lab, node, "ADD", &container_id(node, name), pod.netns())?;
    ensure!(answer.ok, "ADD of {name} on {} failed: {}", node.name(), answer.body);
    Ok((pod, answer.body))
}

/// Returns the container ID of a pod that [`add`] makes.
pub(crate) fn container_id(node: &Node, name: &str) -> String {
    format!("{name}-{}", node.name())
}

//! Attaches pods by running `edge-cni` exactly as a container runtime does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::world::{CLUSTER_RANGES, World};
use crate::cni_plugin::{self, CONFLIST, PluginOutput};
use crate::topology::{Namespaces, Pod};

/// Time limit for an answer through an idle tunnel on a loaded machine.
pub(super) const ANSWER: Duration = Duration::from_millis(700);

/// A pod with the addresses that ADD gave it.
pub(super) struct DemoPod {
    /// The node on which the pod runs.
    pub(super) node: String,
    /// The pod's network namespace.
    pub(super) pod: Pod,
    /// The pod's container ID.
    pub(super) container_id: String,
    /// IPv4 address; `None` if the pod has no IPv4 address.
    pub(super) v4: Option<Ipv4Addr>,
    /// IPv6 address; `None` if the pod has no IPv6 address.
    pub(super) v6: Option<Ipv6Addr>,
}

impl DemoPod {
    /// Returns the pod's addresses, IPv4 first.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        self.v4.map(IpAddr::from).into_iter().chain(self.v6.map(IpAddr::from)).collect()
    }
}

impl World<'_> {
    /// Writes a network configuration list as an operator does where no agent has run.
    ///
    /// # Errors
    /// Returns an error if the list cannot be written.
    pub(super) fn write_early_conflist(&self, node: &str, segments: &[&str]) -> Result<()> {
        let list = json!({
            "cniVersion": "1.0.0",
            "name": "edge-cni",
            "plugins": [{
                "type": "edge-cni",
                "bridge": "ecni0",
                "stateDir": "/var/lib/edge-cni",
                "agentSocket": "/run/edge-cni/agent.sock",
                "clusterRanges": CLUSTER_RANGES,
                "segments": segments,
            }],
        });
        self.node(node).write(CONFLIST, &list.to_string())
    }

    /// Runs the plugin.
    ///
    /// # Errors
    /// Returns an error if the plugin cannot be run or its output is not JSON.
    pub(super) fn cni(&self, node: &str, verb: &str, container_id: &str, netns: &str) -> Result<PluginOutput> {
        cni_plugin::call(self.lab, self.node(node), verb, container_id, netns)
    }

    /// Makes a pod's namespace and runs ADD.
    ///
    /// # Errors
    /// Returns an error if ADD fails.
    pub(super) fn add_pod(&self, node: &str, name: &str) -> Result<DemoPod> {
        self.add_pod_with_result(node, name).map(|(pod, _)| pod)
    }

    /// Adds a pod as [`Self::add_pod`] does. Also returns the plugin's result, which the next
    /// plugin of a list receives.
    ///
    /// # Errors
    /// Returns the same errors as [`Self::add_pod`].
    pub(super) fn add_pod_with_result(&self, node: &str, name: &str) -> Result<(DemoPod, Value)> {
        let (pod, result) = cni_plugin::add(self.lab, self.node(node), name)?;
        let container_id = cni_plugin::container_id(self.node(node), name);
        let mut made = DemoPod { node: node.to_owned(), pod, container_id, v4: None, v6: None };
        for entry in result["ips"].as_array().into_iter().flatten() {
            let address = entry["address"].as_str().context("an address without text")?;
            match address.split('/').next().unwrap_or(address).parse()? {
                IpAddr::V4(v4) => made.v4 = Some(v4),
                IpAddr::V6(v6) => made.v6 = Some(v6),
            }
        }
        ensure!(!made.addresses().is_empty(), "ADD of {name} on {node} gave no address: {result}");
        Ok((made, result))
    }

    /// Runs DEL and removes the namespace.
    ///
    /// # Errors
    /// Returns an error if DEL fails.
    pub(super) fn delete_pod(&self, pod: DemoPod) -> Result<()> {
        let answer = self.cni(&pod.node, "DEL", &pod.container_id, pod.pod.netns())?;
        ensure!(answer.ok, "DEL of {} failed: {}", pod.container_id, answer.body);
        let node = self.node(&pod.node);
        node.run(node.command("ip").args(["netns", "del", pod.pod.netns().rsplit('/').next().unwrap_or_default()]))?;
        Ok(())
    }
}

/// Checks that `to` answers a ping from `from`.
///
/// # Errors
/// Returns an error if `to` does not answer.
pub(super) fn reaches(from: &Namespaces, to: IpAddr) -> Result<()> {
    ensure!(from.reaches(&to.to_string(), ANSWER)?, "{to} does not answer {}", from.name());
    Ok(())
}

/// Sends several pings between all pairs at the same time. Returns the pairs whose pings were
/// answered.
///
/// # Errors
/// Returns an error if ping cannot be run.
pub(super) fn answered(pairs: &[(&Namespaces, IpAddr)]) -> Result<Vec<String>> {
    std::thread::scope(|scope| {
        let tries: Vec<_> = pairs
            .iter()
            .map(|&(from, to)| {
                scope.spawn(move || -> Result<Option<String>> {
                    let to_text = to.to_string();
                    let out = from.output(from.command("ping").args([
                        "-n",
                        "-q",
                        "-c",
                        "3",
                        "-i",
                        "0.1",
                        "-W",
                        "0.5",
                        to_text.as_str(),
                    ]))?;
                    Ok((out.status.code() == Some(0)).then(|| format!("{} from {}", to, from.name())))
                })
            })
            .collect();
        let mut answered = Vec::new();
        for one in tries {
            if let Some(pair) = one.join().map_err(|_| anyhow::anyhow!("a ping's thread panicked"))?? {
                answered.push(pair);
            }
        }
        Ok(answered)
    })
}

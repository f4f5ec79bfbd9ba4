//! `edge-cni up` makes what a node needs before its first pod, without a pod. The agent runs it
//! after a reboot, so that the node's own packets to remote pods can have the bridge's address as
//! their source.

use std::collections::BTreeSet;
use std::path::Path;

use edge_types::shared_files::SegmentsFile;
use serde_json::{Map, Value, json};

use crate::config::{Config, parse_object};
use crate::error::{Code, Context, Error, Result};
use crate::ipam::{LockedLeases, StateDir};
use crate::net::link::Links;
use crate::net::veth;
use crate::node_setup;
use crate::{forward_filter, obstacles, pod_filter, segment};

/// Where the agent writes the network configuration list.
pub(crate) const DEFAULT_CONFLIST: &str = "/etc/cni/net.d/10-edge-cni.conflist";

/// Most pods that one message names.
const NAMED_PODS: usize = 20;

/// Makes bridge and guard as the configuration in this file says. The file holds one plugin's
/// configuration, or a list of plugins with ours in it.
pub(crate) fn up(path: &Path) -> Result<Value> {
    let config = config_of(path)?;
    let state_dir = StateDir::create(&config, veth::count_attached)?;
    let ledger = state_dir.lock()?;
    let mut links = Links::open()?;
    // First, so that pods cannot pose as others even if the rest fails.
    let restored = pod_filter::restore(&config, &ledger, &mut links);
    let segments = ledger.segments(&config)?.ok_or_else(|| {
        Error::new(
            Code::TryAgainLater,
            "this node has no segment yet, so that the bridge has no address; start edge-agent, or add `segments` to the configuration",
        )
    })?;
    let stock = ledger.stock(&segments.segments);
    let larger_mtu = pods_with_larger_mtu(&config, &segments, &ledger, &mut links)?;
    drop(ledger);
    node_setup::ensure(&mut links, &config, &segments)?;
    forward_filter::recreate(&mut links, &config, &segments)?;
    restored?;
    let gateways: Vec<String> = segments.segments.iter().map(|segment| segment::gateway(segment).to_string()).collect();
    let obstacles = obstacles::find(&mut links, &config, Some(&segments))?;
    let obstacles: Vec<String> = obstacles.into_iter().map(|obstacle| obstacle.message).chain(larger_mtu).collect();
    Ok(json!({ "bridge": config.bridge, "addresses": gateways, "stock": stock, "obstacles": obstacles }))
}

/// Names the attached pods with a larger MTU than the node has for pods now. Only a new start
/// changes it: if the host's end alone had the smaller one, it would drop the pod's packets without
/// a word.
fn pods_with_larger_mtu(
    config: &Config,
    segments: &SegmentsFile,
    ledger: &LockedLeases,
    links: &mut Links,
) -> Result<Option<String>> {
    let Some(mtu) = config.pod_mtu(segments) else { return Ok(None) };
    let larger: BTreeSet<String> =
        links.all()?.into_iter().filter(|link| link.kind == "veth" && link.mtu > mtu).map(|link| link.name).collect();
    let concerned = ledger
        .leases()
        .filter(|(attachment, lease)| lease.network == config.name && larger.contains(&veth::host_name(attachment)));
    let names: Vec<String> =
        concerned.map(|(attachment, lease)| lease.pod.clone().unwrap_or_else(|| attachment.to_string())).collect();
    if names.is_empty() {
        return Ok(None);
    }
    let more = names.len().saturating_sub(NAMED_PODS);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Ok(Some(format!(
        "pods now have an MTU of {mtu} bytes, and these have a larger one, so that their large packets may be lost; delete them, so that they start \
         again: {}{more}",
        names.into_iter().take(NAMED_PODS).collect::<Vec<_>>().join(", ")
    )))
}

/// Keeps hosts outside from the attached pods, as the configuration in this file says, even while
/// the agent's table does so. `edge-agent down` runs it before it removes that table. `table` in
/// the result says whether the table was needed and made.
pub(crate) fn ingress(path: &Path) -> Result<Value> {
    let config = config_of(path)?;
    let segments = StateDir::create(&config, veth::count_attached)?.lock()?.segments(&config)?.ok_or_else(|| {
        Error::new(
            Code::TryAgainLater,
            "this node has no segment, so that it is not known which sources may reach pods; start edge-agent, or add `segments` to the configuration",
        )
    })?;
    let made = forward_filter::recreate_beside_agents(&mut Links::open()?, &config, &segments)?;
    Ok(json!({ "table": made }))
}

/// Our plugin's configuration in this file, which holds a list or one plugin's configuration.
pub(crate) fn config_of(path: &Path) -> Result<Config> {
    let text = std::fs::read(path).context("read", path)?;
    let config =
        plugin_of(parse_object(&text)?).and_then(Config::from_object).map_err(|error| error.about(path.display()))?;
    config.report_unknown_keys();
    Ok(config)
}

/// The configuration of our plugin. From a list it takes our entry and gives it the list's name and
/// version, as a runtime does.
fn plugin_of(mut json: Map<String, Value>) -> Result<Map<String, Value>> {
    let Some(plugins) = json.remove("plugins") else { return Ok(json) };
    let ours = plugins
        .as_array()
        .and_then(|plugins| plugins.iter().find(|plugin| plugin["type"] == "edge-cni"))
        .and_then(Value::as_object)
        .ok_or_else(|| Error::new(Code::InvalidConfig, "the list has no plugin of type edge-cni"))?;
    let mut plugin = ours.clone();
    for key in ["name", "cniVersion"] {
        if let Some(value) = json.remove(key) {
            plugin.insert(key.into(), value);
        }
    }
    Ok(plugin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_entry_is_found_in_a_list_and_takes_its_name_and_version() {
        let list = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "other"}, {"type": "edge-cni", "bridge": "b0"}]});
        let plugin = plugin_of(list.as_object().unwrap().clone()).unwrap();
        assert_eq!(
            Value::Object(plugin),
            json!({"cniVersion": "1.0.0", "name": "pods", "type": "edge-cni", "bridge": "b0"})
        );
        let foreign = json!({"plugins": [{"type": "bridge"}]});
        assert_eq!(plugin_of(foreign.as_object().unwrap().clone()).unwrap_err().code, Code::InvalidConfig);
    }
}

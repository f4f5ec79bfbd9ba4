//! `edge-cni up` sets up a node as an ADD does for the first pod, but without a pod. The agent runs
//! it after a reboot, so that the node's own packets to remote pods can have the bridge's address
//! as their source. The agent also runs it after another program has removed the bridge, to attach
//! the pods again.

use std::path::Path;

use edge_types::api::Family;
use edge_types::shared_files::SegmentsFile;
use serde_json::{Value, json};

use crate::config::Config;
use crate::config_file;
use crate::error::{Code, Error, Result};
use crate::ipam::{LockedLeases, StateDir};
use crate::net::link::{Link, Links, PortSettings};
use crate::net::sysctl::InterfaceSettings;
use crate::net::{bridge, sysctl, veth};
use crate::node_setup;
use crate::sort::SortedSet;
use crate::{forward_filter, obstacles, pod_filter, segment};

/// Maximum number of pods that one message names.
const NAMED_PODS: usize = 20;

/// Creates the bridge and the guard for the configuration in this file. The file contains the
/// configuration of this plugin, or a list of plugins that includes it.
pub(crate) fn up(path: &Path) -> Result<Value> {
    let config = config_file::read(path)?;
    let state_dir = StateDir::create(&config, bridge::count_attached)?;
    let leases = state_dir.lock()?;
    let mut links = Links::open()?;
    // The filter comes first, so that pods cannot use addresses of other pods even if the rest
    // fails.
    let restored = pod_filter::restore(&config, &leases, &mut links);
    let segments = leases.segments(&config)?.ok_or_else(|| {
        Error::new(
            Code::TryAgainLater,
            "this node has no segment yet, so that the bridge has no address; start edge-agent, or add `segments` to the configuration",
        )
    })?;
    let stock = leases.stock(&segments.segments)?;
    let larger_mtu = pods_with_larger_mtu(&config, &segments, &leases, &mut links)?;
    drop(leases);
    let bridge = node_setup::ensure(&mut links, &config, &segments)?;
    let attached = attach_detached_pods(&config, &state_dir.lock()?, &mut links, &bridge)?;
    if !attached.is_empty() {
        // The bridge is set up again, since a port may have a smaller MTU than the new bridge.
        node_setup::ensure(&mut links, &config, &segments)?;
        announce_gateways(&mut links, &bridge)?;
    }
    forward_filter::recreate(&mut links, &config, &segments)?;
    restored?;
    let gateways: Vec<String> = segments.segments.iter().map(|segment| segment::gateway(segment).to_string()).collect();
    let obstacles = obstacles::find(&mut links, &config, Some(&segments))?;
    let obstacles: Vec<String> = obstacles.into_iter().map(|obstacle| obstacle.message).chain(larger_mtu).collect();
    Ok(
        json!({ "bridge": config.bridge, "addresses": gateways, "stock": stock, "obstacles": obstacles, "attached": attached }),
    )
}

/// Attaches the host ends of this network's pods to the bridge again if they are not ports of a
/// bridge, because another program removed the bridge or detached them. Returns their names.
fn attach_detached_pods(
    config: &Config,
    leases: &LockedLeases,
    links: &mut Links,
    bridge: &Link,
) -> Result<Vec<String>> {
    let mut detached: Vec<Link> =
        links.all()?.into_iter().filter(|link| link.kind == "veth" && link.master.is_none()).collect();
    // Usually, no pod is detached, so that the leases need not be read.
    if detached.is_empty() {
        return Ok(Vec::new());
    }
    let of_network = leases.all()?.filter(|(_, lease)| lease.network == config.name);
    let pods: SortedSet<String> = of_network.map(|(attachment, _)| veth::host_name(&attachment)).collect();
    detached.retain(|link| pods.contains(&link.name));
    let settings = PortSettings { hairpin: config.hairpin_mode, isolated: config.port_isolation };
    for link in &detached {
        links.make_port(link, bridge)?;
        links.bring_port_up(link, &link.alias, settings)?;
    }
    Ok(detached.into_iter().map(|link| link.name).collect())
}

/// Announces the bridge's MAC address to the pods. The address differs from that of the former
/// bridge if the plugin now runs in a container with another machine ID.
fn announce_gateways(links: &mut Links, bridge: &Link) -> Result<()> {
    sysctl::announce_addresses(
        &InterfaceSettings::open(&bridge.name, Family::V4)?,
        &InterfaceSettings::open(&bridge.name, Family::V6)?,
    )?;
    links.set_mac(bridge, bridge.mac)
}

/// Returns a message with the names of the attached pods whose MTU is larger than the node's
/// current MTU for pods. `None` if there are none. Only a restart of a pod changes its MTU. If only
/// the host end had the smaller MTU, it would silently drop the pod's packets.
fn pods_with_larger_mtu(
    config: &Config,
    segments: &SegmentsFile,
    leases: &LockedLeases,
    links: &mut Links,
) -> Result<Option<String>> {
    let Some(mtu) = config.pod_mtu(segments) else { return Ok(None) };
    let larger = links.all()?.into_iter().filter(|link| link.kind == "veth" && link.mtu > mtu);
    let larger: SortedSet<String> = larger.map(|link| link.name).collect();
    let concerned = leases
        .all()?
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

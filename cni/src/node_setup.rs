//! Sets up a node before its first pod: the bridge, the table that blocks outside hosts from
//! reaching pods, and the guard that prevents pods' packets from leaving in clear.

use std::net::IpAddr;

use edge_types::IpNetwork;
use edge_types::api::Family;
use edge_types::forwarding::FORWARDING_FILE;
use edge_types::network::contains;
use edge_types::shared_files::SegmentsFile;
use edge_xfrm::guard::{self, GuardConfig};

use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::ipam::StateDir;
use crate::net::link::{Link, Links};
use crate::net::{bridge, sysctl, uplink};
use crate::{cluster_ranges, forward_filter, obstacles, segment};

/// Creates the missing parts of the bridge, the table and the guard. An error makes the ADD fail,
/// since no pod is attached without them.
pub(crate) fn ensure(links: &mut Links, config: &Config, segments: &SegmentsFile) -> Result<Link> {
    cluster_ranges::refuse_cutting_off_this_host(links, config, Some(segments))?;
    let cluster_ranges = cluster_ranges::all(config, Some(segments));
    if let Some(sentence) = obstacles::without_ipv6(cluster_ranges.iter().any(|range| range.is_ipv6())) {
        eprintln!("edge-cni: {sentence}");
    }
    let families = segment::families(&segments.segments);
    let turned_on = [Family::V4, Family::V6].map(|family| families.contains(&family) && !sysctl::forwards(family));
    let forwarded = turned_on == [false; 2];
    if !forwarded {
        record(config, turned_on)?;
    }
    let mtu = config.pod_mtu(segments);
    let bridge = bridge::ensure(links, &config.bridge, &config.state_dir, mtu, &segments.segments, |network| {
        Ok(cluster_ranges.iter().any(|range| contains(range, network)) && !is_in_use(config, segments, network)?)
    })?;
    if forwarded || config.forward_others {
        forward_filter::ensure(links, config, segments)?;
    } else {
        // The rules depend on the record of forwarding, and must be in place before this host
        // forwards.
        forward_filter::recreate(links, config, segments)?;
    }
    forward(links, config, turned_on)?;
    guard::install(&guard_config(config, segments)?).map_err(|error| {
        Error::new(
            Code::Guard,
            format!("the guard that keeps pods' packets from leaving in clear cannot be put up, and no pod is attached without it: {error}"),
        )
    })?;
    Ok(bridge)
}

fn guard_config(config: &Config, segments: &SegmentsFile) -> Result<GuardConfig> {
    let cluster_ranges = cluster_ranges::all(config, Some(segments));
    // Other nodes accept only addresses of the cluster's segments. Therefore the node's own packets
    // must not have an address of an additional network as their source.
    let known = |segment: &&IpNetwork| cluster_ranges.iter().any(|range| contains(range, segment));
    let known: Vec<&IpNetwork> = match StateDir::has_own_segments(config)? {
        true => Vec::new(),
        false => segments.segments.iter().filter(known).collect(),
    };
    let first = |family| known.iter().find(|segment| Family::of(segment) == family).copied();
    let bridge_addresses = segment::families(&segments.segments).into_iter().filter_map(first);
    Ok(GuardConfig {
        bridge_addresses: bridge_addresses.map(segment::gateway).collect(),
        sources: Vec::new(),
        segments: segments.segments.clone(),
        networks: segments.networks.clone(),
        cluster_ranges,
    })
}

/// Describes the parts of the guard, or of the table that controls forwarding, that are missing or
/// changed. `None` if both are in place. Changes nothing.
pub(crate) fn missing(config: &Config, segments: &SegmentsFile) -> Result<Option<String>> {
    let defects = guard::check(&guard_config(config, segments)?).map_err(|error| {
        Error::new(
            Code::Guard,
            format!("the guard that keeps pods' packets from leaving in clear cannot be read: {error}"),
        )
    })?;
    match defects.first() {
        Some(defect) => {
            Ok(Some(format!("the guard that keeps pods' packets from leaving in clear has a gap: {defect}")))
        }
        None => forward_filter::missing(config, segments),
    }
}

/// Returns whether the gateway of a network must stay, although the network is none of `segments`:
/// a pod has an address in it, or it is a segment that was granted after `segments` were read.
fn is_in_use(config: &Config, segments: &SegmentsFile, network: &IpNetwork) -> Result<bool> {
    let Some(state_dir) = StateDir::existing(config) else { return Ok(false) };
    let leases = state_dir.lock()?;
    if leases.segments(config)?.is_some_and(|now| !bridge::is_outdated(network, &now.segments)) {
        return Ok(true);
    }
    let in_no_segment = |address: IpAddr| !segments.segments.iter().any(|segment| segment.contains(address));
    let mut leased = leases.all()?.flat_map(|(_, lease)| lease.addresses);
    Ok(leased.any(|address| network.contains(address) && in_no_segment(address)))
}

/// Turns forwarding on for IPv4, IPv6 or both.
fn forward(links: &mut Links, config: &Config, [ipv4, ipv6]: [bool; 2]) -> Result<()> {
    if ipv4 {
        sysctl::forward_ipv4()?;
    }
    if ipv6 {
        let mut forwarding = forward_filter::forwarding(config);
        sysctl::forward_ipv6(&uplink::names(links)?, |uplink| {
            // An error is ignored: without the record, `edge-agent down` leaves the setting as it
            // is.
            let _ = forwarding.note_accept_ra(uplink);
        })?;
    }
    Ok(())
}

/// Records that forwarding was off until now. The agent and the plugin read the record, and prevent
/// this host from becoming a router between its other networks.
fn record(config: &Config, turned_on: [bool; 2]) -> Result<()> {
    forward_filter::forwarding(config).note(turned_on).map_err(|error| {
        let (state_dir, run_dir) = (config.state_dir.display(), config.run_dir().display());
        Error::new(
            Code::Io,
            format!(
                "forwarding is off on this host, and before it is turned on for pods {FORWARDING_FILE} must say so, or this host becomes a router between \
                 its own networks; it can be written neither to {state_dir} nor to {run_dir}: make room there, or mount them writable: {error}"
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_of_a_segment_that_was_granted_meanwhile_stays() {
        let directory = tempfile::tempdir().unwrap();
        let config = |segments: &[&str]| {
            let text = serde_json::json!({
                "cniVersion": "1.0.0", "name": "pods", "stateDir": directory.path(), "segments": segments,
                "clusterRanges": ["10.0.0.0/8"],
            });
            Config::from_object(text.as_object().unwrap().clone()).unwrap()
        };
        let both = config(&["10.77.1.0/26", "10.77.2.0/26"]);
        let leases = StateDir::create(&both, |_, _| Ok(0)).unwrap().lock().unwrap();
        let file = leases.segments(&both).unwrap().unwrap();
        drop(leases);
        assert_eq!(file.segments.len(), 2);
        let before = SegmentsFile { segments: file.segments[..1].to_vec(), ..file };
        let is_in_use = |gateway: &str| is_in_use(&both, &before, &gateway.parse().unwrap()).unwrap();
        assert!(is_in_use("10.77.2.1/26"));
        assert!(!is_in_use("10.77.2.1/24"), "the prefix length has changed");
        assert!(!is_in_use("10.77.3.1/26"));
    }
}

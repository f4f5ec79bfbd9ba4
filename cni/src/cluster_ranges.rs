//! Refuses cluster ranges that would cut this host off. The guard blocks packets to and from these
//! ranges in clear, so they must not contain this host's own addresses, its gateways or its
//! resolvers.

use std::net::IpAddr;
use std::path::Path;

use edge_types::IpNetwork;
use edge_types::shared_files::{SegmentsFile, SegmentsSource};
use edge_xfrm::guard::{self, Defect, GuardConfig};

use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::net::bridge;
use crate::net::link::Links;

/// Files with the resolvers. If the first file names systemd-resolved, the second file contains the
/// resolvers that systemd-resolved uses.
const RESOLVERS: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// Returns all cluster ranges, both from the agent's segments file and from the configuration.
pub(crate) fn all(config: &Config, segments: Option<&SegmentsFile>) -> Vec<IpNetwork> {
    let mut ranges = segments.map(|segments| segments.cluster_ranges.clone()).unwrap_or_default();
    for range in &config.cluster_ranges {
        if !ranges.contains(range) {
            ranges.push(*range);
        }
    }
    ranges
}

/// Refuses ranges that contain addresses that this host needs, before anything is installed. If a
/// range is already guarded, a refusal would be of no use, and any neighbour that sends router
/// advertisements or DHCP leases could block this node. In that case the conflict is only reported,
/// and pods are attached.
pub(crate) fn refuse_cutting_off_this_host(
    links: &mut Links,
    config: &Config,
    segments: Option<&SegmentsFile>,
) -> Result<()> {
    let ranges = all(config, segments);
    if ranges.is_empty() {
        return Ok(());
    }
    let mut guarded = Vec::new();
    for conflict in conflicts(links, config, &ranges, segments)? {
        let AddressConflict { range, what, .. } = &conflict;
        if guarded.contains(range) {
            continue;
        }
        // Ranges from the agent are not checked again, because the agent has checked them. After a
        // reboot, a neighbour's advertisement may arrive before the guard is in place.
        let agents =
            segments.is_some_and(|file| file.source == SegmentsSource::Agent && file.cluster_ranges.contains(range));
        if !agents && !is_guarded(*range) {
            return Err(refused(&conflict));
        }
        eprintln!(
            "edge-cni: the cluster's range {range} holds {what}. This range is guarded already, so pods are attached all the same, but nothing \
             reaches this host by it; if a router advertisement or a DHCP lease brought it, look for who sent that on this host's network"
        );
        guarded.push(*range);
    }
    Ok(())
}

/// A range that contains an address that this host needs.
struct AddressConflict {
    range: IpNetwork,
    what: String,
    /// The address, if it belongs to a resolver. The operator can exempt resolvers.
    resolver: Option<IpAddr>,
}

/// Finds all addresses within the ranges that this host needs. Networks that a hub fronts are
/// exempt, as in the guard.
fn conflicts(
    links: &mut Links,
    config: &Config,
    ranges: &[IpNetwork],
    segments: Option<&SegmentsFile>,
) -> Result<Vec<AddressConflict>> {
    let fronted = segments.map(|segments| segments.networks.as_slice()).unwrap_or_default();
    let held = |address: IpAddr| {
        let exempt = is_local(address) || fronted.iter().any(|network| network.contains(address));
        ranges.iter().find(|range| !exempt && range.contains(address)).copied()
    };
    let mut conflicts = Vec::new();
    let own = links.find(&config.bridge)?.map(|bridge| bridge.index);
    let addresses = links.all_addresses()?.into_iter().filter(|(index, _)| Some(*index) != own);
    let addresses: Vec<_> = addresses.filter_map(|(index, address)| Some((index, address, held(address)?))).collect();
    // A node with many pods has many links, so the links are read only if necessary.
    let present = if addresses.is_empty() { Vec::new() } else { links.all()? };
    for (index, address, range) in addresses {
        // The plugin's own bridges are left out, since they have gateway addresses within the
        // ranges.
        if let Some(link) = present.iter().find(|link| link.index == index && !bridge::is_ours(link)) {
            let what = format!("this host's own address {address} on {}", link.name);
            conflicts.push(AddressConflict { range, what, resolver: None });
        }
    }
    for gateway in links.default_routes()?.iter().filter_map(|route| route.gateway) {
        let what = format!("this host's gateway {gateway}");
        conflicts.extend(held(gateway).map(|range| AddressConflict { range, what, resolver: None }));
    }
    for path in RESOLVERS {
        let text = std::fs::read_to_string(Path::new(path)).unwrap_or_default();
        for resolver in resolvers(&text).filter(|resolver| !is_listed(config, *resolver)) {
            let what = format!("this host's resolver {resolver} ({path})");
            conflicts.extend(held(resolver).map(|range| AddressConflict { range, what, resolver: Some(resolver) }));
        }
    }
    Ok(conflicts)
}

/// Returns whether the operator has stated that this host reaches the resolver through the tunnels.
fn is_listed(config: &Config, resolver: IpAddr) -> bool {
    config.resolvers_behind_tunnels.iter().any(|listed| listed.to_canonical() == resolver.to_canonical())
}

/// Returns whether the guard of a range is installed. A part of it is enough, since it shows that
/// the guard was installed before and another program has removed the rest.
fn is_guarded(range: IpNetwork) -> bool {
    let guard = GuardConfig { cluster_ranges: vec![range], ..GuardConfig::default() };
    let wanted = guard::policies(&guard).map(|policies| policies.len() + 1);
    let missing = guard::check(&guard).map(|defects| {
        // A changed policy counts as installed. A policy differs if a segment is the whole range.
        let missing = |defect: &&Defect| matches!(defect, Defect::Missing(_) | Defect::Occupied(..) | Defect::Route(_));
        defects.iter().filter(missing).count()
    });
    // If the guard cannot be read, it counts as not installed.
    matches!((missing, wanted), (Ok(missing), Ok(wanted)) if missing < wanted)
}

fn refused(AddressConflict { range, what, resolver }: &AddressConflict) -> Error {
    let unless = resolver.map_or_else(String::new, |resolver| {
        format!(
            "; or, if the resolver is reached through the tunnels, list it: \"resolversBehindTunnels\": [\"{resolver}\"] \
             (resolvers_behind_tunnels of the agent)"
        )
    });
    Error::new(
        Code::InvalidConfig,
        format!(
            "the cluster's range {range} holds {what}: the guard would cut this host off from it. Nothing was installed; choose cluster ranges (clusterRanges, \
             or cluster_ranges of the controller) that no node's own network overlaps, or move this host{unless}"
        ),
    )
}

fn is_local(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    link_local || address.is_loopback() || address.is_unspecified()
}

/// Returns the addresses in the `nameserver` lines of resolv.conf(5).
fn resolvers(text: &str) -> impl Iterator<Item = IpAddr> + '_ {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        address.split('%').next()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_as_resolv_conf_says() {
        let text = "# nameserver 192.0.2.9\nsearch x\nnameserver 192.0.2.1\n nameserver  fe80::1%eth0 \nnameserver\nnameserver nonsense\nnameserver 127.0.0.53\n";
        let found: Vec<String> = resolvers(text).map(|address| address.to_string()).collect();
        assert_eq!(found, ["192.0.2.1", "fe80::1", "127.0.0.53"]);
        assert!(is_local("127.0.0.53".parse().unwrap()) && is_local("fe80::1".parse().unwrap()));
    }
}

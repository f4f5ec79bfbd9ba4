//! Whether the cluster's ranges would cut this host off: the guard lets nothing to or from them in clear, so they must not hold this host's own
//! addresses, its gateways or its resolvers.

use std::net::IpAddr;
use std::path::Path;

use edge_types::IpNetwork;
use edge_types::store::SegmentsFile;

use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::net::bridge;
use crate::net::link::Links;

/// The second has the real resolvers where the first names systemd-resolved's.
const RESOLVERS: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// All ranges: of the agent and of the configuration.
pub(crate) fn of_cluster(config: &Config, segments: Option<&SegmentsFile>) -> Vec<IpNetwork> {
    let mut ranges = segments.map(|segments| segments.cluster_ranges.clone()).unwrap_or_default();
    for range in &config.cluster_ranges {
        if !ranges.contains(range) {
            ranges.push(*range);
        }
    }
    ranges
}

/// Refuses ranges that hold what this host needs, before anything is installed. What a hub fronts is exempt from the guard.
pub(crate) fn refuse_own(links: &mut Links, config: &Config, segments: Option<&SegmentsFile>) -> Result<()> {
    let ranges = of_cluster(config, segments);
    if ranges.is_empty() {
        return Ok(());
    }
    let fronted = segments.map(|segments| segments.networks.as_slice()).unwrap_or_default();
    let held = |address: IpAddr| {
        let exempt = is_local(address) || fronted.iter().any(|network| network.contains(address));
        ranges.iter().find(|range| !exempt && range.contains(address)).copied()
    };
    let own = links.find(&config.bridge)?.map(|bridge| bridge.index);
    for (index, address) in links.all_addresses()? {
        let Some(range) = held(address).filter(|_| Some(index) != own) else { continue };
        // Another bridge of ours has its gateways, too. Links are many where pods are, so they are asked for here only.
        if let Some(link) = links.all()?.iter().find(|link| link.index == index && !bridge::is_ours(link)) {
            return Err(refused(range, &format!("this host's own address {address} on {}", link.name)));
        }
    }
    for gateway in links.default_routes()?.iter().filter_map(|route| route.gateway) {
        if let Some(range) = held(gateway) {
            return Err(refused(range, &format!("this host's gateway {gateway}")));
        }
    }
    for path in RESOLVERS {
        let text = std::fs::read_to_string(Path::new(path)).unwrap_or_default();
        for resolver in resolvers(&text) {
            if let Some(range) = held(resolver) {
                return Err(refused(range, &format!("this host's resolver {resolver} ({path})")));
            }
        }
    }
    Ok(())
}

fn refused(range: IpNetwork, what: &str) -> Error {
    Error::new(
        Code::InvalidConfig,
        format!(
            "the cluster's range {range} holds {what}: the guard would cut this host off from it. Nothing was installed; choose cluster ranges (clusterRanges, \
             or cluster_ranges of the controller) that no node's own network overlaps, or move this host"
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

/// `nameserver` lines of resolv.conf(5).
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

//! Finds networks that are configured for a static peer but that no CHILD_SA carries although the
//! peer is up. This happens if the peer has narrowed the selectors, or refuses a child.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use edge_ike::AddressAssignment;
use edge_ike::endpoint::{PeerStatus, Phase};
use edge_types::network::contains;
use ipnetwork::IpNetwork;

use crate::desired::{DesiredTunnel, Origin};
use crate::status::NotCarried;

/// Selectors of a CHILD_SA: those of this node and those of the peer.
type Selectors<'a> = (&'a [IpNetwork], &'a [IpNetwork]);

/// Returns the pairs of configured networks that no CHILD_SA carries as a whole. Empty for peers in
/// the view.
pub(super) fn not_carried(tunnel: &DesiredTunnel, status: &PeerStatus) -> Vec<NotCarried> {
    // An internal address takes the place of configured networks.
    let assigned = tunnel.peer.address_assignment != AddressAssignment::Off;
    if tunnel.origin != Origin::Configuration || status.phase != Phase::Up || assigned {
        return vec![];
    }
    let mut missing = Vec::new();
    for child in tunnel.peer.children() {
        let of_child = status.children.iter().map(|one| &one.sa).filter(|sa| sa.purpose.child == child.name);
        let sas: Vec<Selectors<'_>> =
            of_child.map(|sa| (sa.local_selectors.as_slice(), sa.remote_selectors.as_slice())).collect();
        for local in &child.local {
            for remote in child.remote.iter().filter(|remote| remote.is_ipv4() == local.is_ipv4()) {
                if !is_carried(*local, *remote, &sas) {
                    missing.push(NotCarried { child: child.name.to_string(), local: *local, remote: *remote });
                }
            }
        }
    }
    missing
}

/// Returns whether CHILD_SAs carry packets between all hosts in two networks. A peer may distribute
/// the networks of one side over several CHILD_SAs, or split a network into several networks.
fn is_carried(local: IpNetwork, remote: IpNetwork, sas: &[Selectors<'_>]) -> bool {
    let remotes: Vec<IpNetwork> =
        sas.iter().filter(|(ours, _)| is_within(local, ours)).flat_map(|(_, theirs)| *theirs).copied().collect();
    let locals: Vec<IpNetwork> =
        sas.iter().filter(|(_, theirs)| is_within(remote, theirs)).flat_map(|(ours, _)| *ours).copied().collect();
    is_within(remote, &remotes) || is_within(local, &locals)
}

/// Returns whether each address of a network is in one of `networks`.
fn is_within(network: IpNetwork, networks: &[IpNetwork]) -> bool {
    if networks.iter().any(|wide| contains(wide, &network)) {
        return true;
    }
    // Only networks within this one can contain a part of it, so the recursion ends quickly.
    let inside: Vec<IpNetwork> = networks.iter().copied().filter(|narrow| contains(&network, narrow)).collect();
    !inside.is_empty() && halves(network).is_some_and(|halves| halves.iter().all(|half| is_within(*half, &inside)))
}

/// Returns the two halves of a network; `None` if it is a single address.
fn halves(network: IpNetwork) -> Option<[IpNetwork; 2]> {
    let prefix = network.prefix().checked_add(1)?;
    let second: IpAddr = match network.network() {
        IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits() | (1 << 32_u8.checked_sub(prefix)?)).into(),
        IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits() | (1 << 128_u8.checked_sub(prefix)?)).into(),
    };
    Some([IpNetwork::new(network.network(), prefix).ok()?, IpNetwork::new(second, prefix).ok()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(texts: &[&str]) -> Vec<IpNetwork> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn carried(local: &str, remote: &str, sas: &[(&[&str], &[&str])]) -> bool {
        let owned: Vec<_> = sas.iter().map(|(local, remote)| (networks(local), networks(remote))).collect();
        let sas: Vec<Selectors<'_>> = owned.iter().map(|(local, remote)| (&local[..], &remote[..])).collect();
        is_carried(local.parse().unwrap(), remote.parse().unwrap(), &sas)
    }

    #[test]
    fn what_a_peer_has_narrowed_away_is_not_carried() {
        assert!(carried("10.1.0.0/16", "10.2.0.0/16", &[(&["10.1.0.0/16"], &["10.0.0.0/8"])]));
        assert!(!carried("10.1.0.0/16", "10.2.0.0/16", &[(&["10.1.0.0/16"], &["10.2.0.0/17"])]));
        assert!(!carried("10.1.0.0/16", "10.2.0.0/16", &[(&["10.1.4.0/24"], &["10.2.0.0/16"])]));
        assert!(!carried("fd01::/64", "fd02::/64", &[(&["10.1.0.0/16"], &["10.2.0.0/16"])]));
        assert!(!carried("10.1.0.0/16", "10.2.0.0/16", &[]));
    }

    #[test]
    fn a_network_that_the_peer_writes_as_several_is_carried() {
        assert!(carried("10.1.0.0/16", "10.2.0.0/16", &[(&["10.1.128.0/17", "10.1.0.0/17"], &["10.2.0.0/16"])]));
        assert!(carried(
            "fd01::/64",
            "fd02::/63",
            &[(&["fd01::/64"], &["fd02::/64"]), (&["::/0"], &["fd02:0:0:1::/64"])]
        ));
        let quarters = &["10.2.0.0/18", "10.2.64.0/18", "10.2.128.0/18"];
        assert!(!carried("10.1.0.0/16", "10.2.0.0/16", &[(&["10.1.0.0/16"], quarters)]));
        // Two of the four pairs of halves are carried, so the whole networks are not.
        let pairs: &[(&[&str], &[&str])] =
            &[(&["10.1.0.0/17"], &["10.2.0.0/17"]), (&["10.1.128.0/17"], &["10.2.128.0/17"])];
        assert!(!carried("10.1.0.0/16", "10.2.0.0/16", pairs));
    }

    #[test]
    fn whole_families_and_single_addresses_have_halves_or_none() {
        assert!(carried("0.0.0.0/0", "10.0.0.1/32", &[(&["0.0.0.0/1", "128.0.0.0/1"], &["10.0.0.1/32"])]));
        assert!(carried("::/0", "::1/128", &[(&["::/1", "8000::/1"], &["::1/128"])]));
        assert_eq!(halves("10.0.0.1/32".parse().unwrap()), None);
        assert_eq!(halves("::1/128".parse().unwrap()), None);
    }
}

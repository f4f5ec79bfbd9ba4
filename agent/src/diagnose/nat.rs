//! Finds the kind of NAT in front of this node, from what the hubs see of its packets.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::check::{Level, Report};
use crate::status::{NatMapping, PeerReport, Status};

/// Maximum number of hubs that a finding names.
const MAX_NAMED: usize = 4;

/// How the NAT in front of one of this node's addresses maps it (RFC 4787 section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// All hubs see the address itself.
    None,
    /// One hub sees another address, so it is not known whether others would see the same.
    OneHub(SocketAddr),
    /// All hubs, at several addresses, see the same other address: endpoint-independent mapping.
    EndpointIndependent(SocketAddr),
    /// Hubs see different addresses: address-dependent, or address and port-dependent mapping.
    AddressDependent,
    /// Some hubs see the address itself, and the others the same other address.
    OnSomePaths(SocketAddr),
}

/// Reports the kind of NAT for each address of this node from which it talks to hubs.
pub(super) fn judge(report: &mut Report, status: &Status) {
    let mut of_address: BTreeMap<SocketAddr, Vec<(&PeerReport, NatMapping)>> = BTreeMap::new();
    for peer in &status.peers {
        if let Some(mapping) = peer.mapping {
            of_address.entry(mapping.local).or_default().push((peer, mapping));
        }
    }
    if of_address.is_empty() {
        report.add(Level::Ok, "NAT", "not known: no hub has said from where this node's packets come");
    }
    for (local, hubs) in of_address {
        let (level, what) = finding(local, &hubs, status);
        report.add(level, "NAT", what);
    }
}

fn kind(local: SocketAddr, seen: &[NatMapping]) -> Kind {
    let mut mapped: Vec<SocketAddr> = seen.iter().map(|mapping| mapping.mapped).collect();
    mapped.sort_unstable();
    mapped.dedup();
    match mapped.as_slice() {
        [] => Kind::None,
        [only] if *only == local => Kind::None,
        [only] if seen.len() == 1 => Kind::OneHub(*only),
        [only] => Kind::EndpointIndependent(*only),
        [one, other] if *one == local => Kind::OnSomePaths(*other),
        [one, other] if *other == local => Kind::OnSomePaths(*one),
        _ => Kind::AddressDependent,
    }
}

fn finding(local: SocketAddr, hubs: &[(&PeerReport, NatMapping)], status: &Status) -> (Level, String) {
    let seen: Vec<NatMapping> = hubs.iter().map(|(_, mapping)| *mapping).collect();
    let names: Vec<&str> = hubs.iter().take(MAX_NAMED).map(|(hub, _)| hub.name.as_str()).collect();
    let names = names.join(", ");
    match kind(local, &seen) {
        Kind::None => (Level::Ok, format!("none in front of {local}, as {names} says")),
        Kind::OneHub(mapped) => (
            Level::Ok,
            format!(
                "{local} becomes {mapped} towards {names}; a second hub would say whether the NAT does the same towards all (which peers \
                 need to reach this node directly)"
            ),
        ),
        Kind::EndpointIndependent(mapped) => (
            Level::Ok,
            format!(
                "endpoint-independent: {local} becomes {mapped} towards each of {names} (RFC 4787 section 4.1), and peers reach this node there"
            ),
        ),
        Kind::OnSomePaths(mapped) => (
            Level::Ok,
            format!(
                "on some paths: {local} becomes {mapped} towards some of {names}, and stays the same towards the others"
            ),
        ),
        Kind::AddressDependent => {
            let each: Vec<String> = hubs
                .iter()
                .take(MAX_NAMED)
                .map(|(hub, mapping)| format!("{} towards {}", mapping.mapped, hub.name))
                .collect();
            let what = format!(
                "address-dependent: {local} becomes {} (RFC 4787 section 4.1), so two nodes behind such NATs reach each other only by a \
                 hub's relay; to avoid that, let the NAT keep one port for UDP {}",
                each.join(", "),
                local.port()
            );
            // It may be the reason why a tunnel is not up.
            let tries = |peer: &PeerReport| peer.origin == "view" && ["connecting", "waiting"].contains(&&*peer.phase);
            (if status.peers.iter().any(tries) { Level::Warning } else { Level::Ok }, what)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_nat_is_what_the_hubs_see() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let own = at("192.168.1.10:4500");
        let (one, other, third) = (at("203.0.113.7:61000"), at("203.0.113.7:61001"), at("203.0.113.7:61002"));
        for (mapped, expected) in [
            (vec![own], Kind::None),
            (vec![own, own], Kind::None),
            (vec![one], Kind::OneHub(one)),
            (vec![one, one], Kind::EndpointIndependent(one)),
            (vec![one, other], Kind::AddressDependent),
            (vec![one, other, third], Kind::AddressDependent),
            (vec![own, one, other], Kind::AddressDependent),
            (vec![own, one], Kind::OnSomePaths(one)),
            (vec![other, own, other], Kind::OnSomePaths(other)),
        ] {
            let seen: Vec<NatMapping> = mapped.iter().map(|&mapped| NatMapping { local: own, mapped }).collect();
            assert_eq!(kind(own, &seen), expected, "{mapped:?}");
        }
    }
}

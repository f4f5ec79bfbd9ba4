//! Finds the addresses to which requests are sent, or the reason why nothing can be sent.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::config::PeerSection;
use crate::diagnose::Target;
use crate::status::{PeerReport, PolicyEntry, Status};

/// ICMP and ICMPv6 (IANA's protocol numbers).
const ICMP: [u8; 2] = [1, 58];

/// An address to which requests are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Destination {
    /// The peer to which the tunnel leads.
    pub(super) peer: String,
    /// The address behind the peer.
    pub(super) address: IpAddr,
    /// This node's address, from which packets may enter the tunnel.
    pub(super) source: IpAddr,
}

/// Finds the destinations for a peer (one address of each family) or for an address.
///
/// # Errors
/// If no request can be sent to the peer or the address.
pub(super) fn find(about: &str, status: &Status, static_peers: &[PeerSection]) -> Result<Vec<Destination>, String> {
    match Target::find(about, status, static_peers).map_err(|why| format!("{why}{}", without_view(status)))? {
        Target::Peer(peer) => of_peer(status, usable(status, &peer)?),
        Target::PeerAddress { address, peer, .. } => {
            let peer = usable(status, &peer)?;
            carries_icmp(peer, address)?;
            Ok(vec![Destination { peer: peer.name.clone(), address, source: source(status, peer, address)? }])
        }
        Target::Local(address) => {
            Err(format!("{address} is an address of this node or of its pods: no tunnel leads there"))
        }
        Target::Blocked { address, range } => Err(format!(
            "{address} is in {range}, of which everything must go through a tunnel, and no tunnel of this node leads to \
             it: no node has a segment with it, or this node shares no community with the one that has it{}",
            without_view(status)
        )),
        Target::Outside(address) => {
            Err(format!("{address} is in no network to which a tunnel of this node leads{}", without_view(status)))
        }
    }
}

/// Returns the most likely reason for a failure on a node that is not a member yet; empty on
/// members.
fn without_view(status: &Status) -> &'static str {
    if status.controller.is_some() && status.view_version.is_none() {
        "; this node has no view of the controller, so it is not a member yet: see `edge-agent status`"
    } else {
        ""
    }
}

/// Returns the peer if packets to it can use a tunnel or set one up. Otherwise returns the reason
/// as an error.
fn usable<'a>(status: &'a Status, name: &str) -> Result<&'a PeerReport, String> {
    let peer = status.peers.iter().find(|peer| peer.name == name);
    let peer =
        peer.ok_or_else(|| format!("{name}: the running agent has no such peer; has it read its file again?"))?;
    if ["up", "on-demand"].contains(&peer.phase.as_str()) {
        return Ok(peer);
    }
    let why = peer.last_error.as_deref().unwrap_or("no attempt has failed yet");
    Err(format!("{name}: there is no tunnel ({}): {why}; `edge-agent diagnose {name}` says what to do", peer.phase))
}

fn of_peer(status: &Status, peer: &PeerReport) -> Result<Vec<Destination>, String> {
    let policies: Vec<&PolicyEntry> = outbound(status, peer).collect();
    if policies.is_empty() {
        return Err(format!("{}: it has no segment and no network, so nothing is sent to it", peer.name));
    }
    let networks = policies.iter().map(|policy| policy.destination);
    let answering: Vec<IpAddr> = [IpNetwork::is_ipv4, IpNetwork::is_ipv6]
        .iter()
        .filter_map(|of_family| {
            networks.clone().filter(of_family).filter_map(|network| answering(status, network)).min()
        })
        .collect();
    if answering.is_empty() {
        let named: Vec<String> = networks.map(|network| network.to_string()).collect();
        return Err(format!(
            "{}: which address answers in {} is not known; name one, as in `edge-agent ping ADDRESS`",
            peer.name,
            named.join(", ")
        ));
    }
    let found = answering.into_iter().map(|address| -> Result<Destination, String> {
        carries_icmp(peer, address)?;
        Ok(Destination { peer: peer.name.clone(), address, source: source(status, peer, address)? })
    });
    // A host that has an address in only one family sends requests in that family.
    let (found, failed): (Vec<_>, Vec<_>) = found.partition(Result::is_ok);
    match failed.into_iter().next() {
        Some(Err(why)) if found.is_empty() => Err(why),
        _ => Ok(found.into_iter().flatten().collect()),
    }
}

/// Returns the policies that send packets from this host to the peer.
fn outbound<'a>(status: &'a Status, peer: &'a PeerReport) -> impl Iterator<Item = &'a PolicyEntry> {
    let is_of_peer =
        move |reqid: u32| peer.reqid == Some(reqid) || peer.child_sas.iter().any(|child| child.reqid == Some(reqid));
    status.policies.iter().filter(move |policy| {
        policy.direction == "out" && policy.template.as_ref().is_some_and(|template| is_of_peer(template.reqid))
    })
}

/// Returns an address within `network` that certainly belongs to a host. In a segment, this is the
/// address of the peer's bridge, which is the segment's first address. Segments are the networks
/// within the ranges that the guard blocks. In other networks, no address is known, unless the
/// network consists of a single address.
fn answering(status: &Status, network: IpNetwork) -> Option<IpAddr> {
    if network.prefix() == if network.is_ipv4() { 32 } else { 128 } {
        return Some(network.ip());
    }
    let mut ranges = status.policies.iter().filter(|policy| policy.direction == "out" && policy.action == "block");
    if !ranges.any(|range| range.destination.contains(network.network())) {
        return None;
    }
    match network.network() {
        IpAddr::V4(first) => Some(IpAddr::V4(first.to_bits().checked_add(1)?.into())),
        IpAddr::V6(first) => Some(IpAddr::V6(first.to_bits().checked_add(1)?.into())),
    }
}

/// Returns an address of this host that the policies accept as the source of packets into the
/// tunnel.
fn source(status: &Status, peer: &PeerReport, to: IpAddr) -> Result<IpAddr, String> {
    let networks: Vec<IpNetwork> =
        outbound(status, peer).filter(|policy| policy.destination.contains(to)).map(|policy| policy.source).collect();
    let mut own = status.host.bridge_addresses.iter().chain(&status.host.local_addresses);
    own.find(|own| networks.iter().any(|network| network.contains(**own))).copied().ok_or_else(|| {
        let networks: Vec<String> = networks.iter().map(ToString::to_string).collect();
        let what = if networks.is_empty() {
            "of a network that may use the tunnel".into()
        } else {
            format!("in {}", networks.join(", "))
        };
        format!(
            "{}: this host has no address {what}, so only pods can reach {to}; `edge-cni up` makes the bridge, whose \
             address would do",
            peer.name
        )
    })
}

fn carries_icmp(peer: &PeerReport, to: IpAddr) -> Result<(), String> {
    let holds = |networks: &[IpNetwork]| networks.iter().any(|network| network.contains(to));
    let mut protocols =
        peer.child_sas.iter().filter(|child| holds(&child.remote_selectors)).map(|child| child.protocol).peekable();
    match protocols.peek().copied() {
        Some(first) if !protocols.any(|protocol| protocol == 0 || ICMP.contains(&protocol)) => {
            Err(format!("{}: its CHILD_SA to {to} carries IP protocol {first} alone, and no ICMP", peer.name))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::ControllerStatus;

    /// Builds the status of a node whose bridge has the addresses 10.77.0.1 and fd77::1. The peers'
    /// segments are in 10.77.0.0/16 and fd77::/16.
    fn status() -> Status {
        let policy = |source: &str, destination: &str, reqid: Option<u32>| {
            serde_json::json!({
                "direction": "out", "source": source, "destination": destination,
                "priority": if reqid.is_some() { 1 } else { 9 },
                "action": if reqid.is_some() { "allow" } else { "block" },
                "template": { "reqid": reqid.unwrap_or(99), "source": null, "destination": null },
            })
        };
        let peer = |name: &str, reqid: u32, phase: &str, error: Option<&str>| {
            serde_json::json!({
                "name": name, "origin": "view", "phase": phase, "reqid": reqid, "endpoints": [], "ike_sas": [],
                "child_sas": [], "last_error": error,
            })
        };
        serde_json::from_value(serde_json::json!({
            "version": "1", "pid": 1, "node": "edge-1", "role": "edge", "view_version": 7, "cloud": null,
            "peers": [
                peer("edge-2", 2, "up", None),
                peer("edge-3", 3, "waiting", Some("moon says AUTHENTICATION_FAILED")),
                peer("edge-4", 4, "up", None),
                peer("hub", 5, "on-demand", None),
            ],
            "states": [],
            "policies": [
                policy("10.77.0.0/26", "10.77.1.0/26", Some(2)),
                policy("fd77::/120", "fd77::100/120", Some(2)),
                policy("10.77.0.0/26", "10.77.3.0/26", Some(3)),
                policy("10.77.0.0/26", "10.244.0.0/16", Some(5)),
                policy("10.77.0.0/26", "192.0.2.9/32", Some(5)),
                policy("0.0.0.0/0", "10.77.0.0/16", None),
                policy("::/0", "fd77::/16", None),
            ],
            "host": {
                "local_addresses": ["192.168.1.5", "10.77.0.1"], "bridge_addresses": ["10.77.0.1", "fd77::1"],
                "pod_mtu": 1400, "routes": [], "firewall": true,
            },
            "journal": [],
        }))
        .unwrap()
    }

    fn asked(about: &str, status: &Status) -> Result<Vec<(String, String)>, String> {
        let found = find(about, status, &[])?;
        Ok(found.iter().map(|found| (found.address.to_string(), found.source.to_string())).collect())
    }

    #[test]
    fn of_a_peer_the_bridge_is_asked_in_each_family() {
        let expected = [("10.77.1.1", "10.77.0.1"), ("fd77::101", "fd77::1")];
        let expected = expected.map(|(address, source)| (address.to_owned(), source.to_owned()));
        assert_eq!(asked("edge-2", &status()).unwrap(), expected);
        assert_eq!(asked("10.77.1.9", &status()).unwrap(), [("10.77.1.9".to_owned(), "10.77.0.1".to_owned())]);
        // Of a hub's networks, only a network with a single address is certainly a host.
        assert_eq!(asked("hub", &status()).unwrap(), [("192.0.2.9".to_owned(), "10.77.0.1".to_owned())]);
    }

    #[test]
    fn what_keeps_a_packet_from_being_sent_is_named() {
        let mut status = status();
        for (about, expected) in [
            ("edge-3", "edge-3: there is no tunnel (waiting): moon says AUTHENTICATION_FAILED"),
            ("10.77.3.9", "edge-3: there is no tunnel"),
            ("edge-4", "edge-4: it has no segment"),
            ("10.77.0.1", "this node"),
            ("10.77.9.9", "shares no community"),
            ("fd77::9:9", "shares no community"),
            ("8.8.8.8", "8.8.8.8 is in no network"),
            ("edge-9", "neither a peer nor an address"),
        ] {
            let why = asked(about, &status).unwrap_err();
            assert!(why.contains(expected) && !why.contains("not a member"), "{about}: {why}");
        }
        status.policies.retain(|policy| policy.destination.to_string() != "192.0.2.9/32");
        assert!(asked("hub", &status).unwrap_err().contains("name one"));
        status.host.bridge_addresses.clear();
        status.host.local_addresses.clear();
        let why = asked("edge-2", &status).unwrap_err();
        assert!(why.contains("this host has no address in 10.77.0.0/26"), "{why}");
        status.view_version = None;
        status.controller = Some(ControllerStatus::default());
        assert!(asked("edge-9", &status).unwrap_err().contains("not a member"));
    }

    #[test]
    fn a_child_sa_for_another_protocol_takes_no_ping() {
        let mut status = status();
        let child = serde_json::json!({
            "inbound_spi": "0x00000001", "outbound_spi": "0x00000002", "cipher": "aes256gcm16", "esn": true,
            "encapsulated": true, "local": "192.0.2.1:4500", "remote": "192.0.2.2:4500", "protocol": 6,
            "local_selectors": ["10.77.0.0/26"], "remote_selectors": ["10.77.1.0/26"], "usage": "in-use",
            "since": "2026-01-01T00:00:00Z", "received": null, "sent": null,
        });
        status.peers[0].child_sas = vec![serde_json::from_value(child).unwrap()];
        assert!(asked("10.77.1.9", &status).unwrap_err().contains("IP protocol 6 alone"));
        status.peers[0].child_sas[0].protocol = 1;
        assert!(asked("10.77.1.9", &status).is_ok());
    }
}

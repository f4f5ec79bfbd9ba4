//! Checks whether this host has routes to its peers. The host's network manager maintains the
//! routes through uplinks. If they are missing, the agent only reports this.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use super::Obstacle;
use crate::desired::Desired;

/// Maximum number of peers that are checked. A few are enough, because a host without routes has no
/// route to any peer.
const MAX_PEERS: usize = 32;
/// Maximum number of peers that are looked at to find hubs and peers with an address, so that a hub
/// with ten thousand edges does not look at all of them.
const MAX_LOOKED_AT: usize = 1024;

/// Returns an obstacle if the kernel has no route to any of the peers.
pub(super) fn obstacle(desired: &Desired) -> Option<Obstacle> {
    none_reached(desired, has_route)
}

fn none_reached(desired: &Desired, has_route: impl Fn(IpAddr) -> bool) -> Option<Obstacle> {
    let looked_at = desired.tunnels.iter().take(MAX_LOOKED_AT);
    let mut tunnels: Vec<_> = looked_at.filter(|(_, tunnel)| !tunnel.peer.remotes.is_empty()).collect();
    tunnels.sort_by_key(|(_, tunnel)| !tunnel.hub);
    let (name, first) = tunnels.first()?;
    let mut addresses = tunnels.iter().take(MAX_PEERS).flat_map(|(_, tunnel)| &tunnel.peer.remotes);
    if addresses.any(|address| has_route(address.ip())) {
        return None;
    }
    let address = first.peer.remotes.first()?.ip();
    Some(Obstacle {
        what: format!(
            "this host has no route to any peer, such as {name} at {address}: its uplink is down, or another program deleted the routes"
        ),
        command: "ip route; then have the host's network manager make its routes again, e.g. systemctl restart systemd-networkd"
            .into(),
    })
}

/// Returns whether the kernel has a route to an address. Connects a UDP socket, which sends
/// nothing, so that routing rules and additional routing tables are taken into account.
fn has_route(address: IpAddr) -> bool {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let connected = UdpSocket::bind(SocketAddr::new(any, 0)).and_then(|socket| socket.connect((address, 500)));
    !matches!(
        connected.map_err(|error| error.kind()),
        Err(ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable | ErrorKind::AddrNotAvailable)
    )
}

#[cfg(test)]
mod tests {
    use edge_types::Role;

    use super::*;
    use crate::desired::tests::{config, membership, peer};

    #[test]
    fn a_host_without_a_route_to_any_peer_says_so_and_names_the_hub() {
        let peers = vec![
            peer("alpha", Role::Edge, "192.0.2.7:500", &["10.77.2.0/26"], &[]),
            peer("hub-1", Role::Hub, "198.51.100.11:500", &[], &["10.244.0.0/16"]),
        ];
        let membership = membership(Role::Edge, &["10.77.1.0/26"], &[], peers);
        let desired = Desired::compute(&config(""), &[], Some(&membership));
        let obstacle = none_reached(&desired, |_| false).unwrap();
        assert!(obstacle.what.contains("hub-1 at 198.51.100.11"), "{obstacle:?}");
        let reached: IpAddr = "192.0.2.7".parse().unwrap();
        assert_eq!(none_reached(&desired, |address| address == reached), None);
        assert_eq!(none_reached(&Desired::default(), |_| false), None);
        assert!(has_route(Ipv4Addr::LOCALHOST.into()));
    }
}

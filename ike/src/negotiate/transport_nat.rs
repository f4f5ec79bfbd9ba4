//! Transport mode through a NAT (RFC 7296 2.23.1). The ends see different addresses, so each one
//! replaces the addresses of the peer's traffic selectors with those of the IKE SA as it sees them.
//! The response has the addresses of the request again.

use std::net::IpAddr;

use super::mode::Ends;
use crate::config::Mode;
use crate::wire::TrafficSelector;

/// The traffic selectors of a message, with the addresses of the IKE SA as we see them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Substituted {
    /// The selectors of our side.
    pub(crate) local: Vec<TrafficSelector>,
    /// The selectors of the peer's side.
    pub(crate) remote: Vec<TrafficSelector>,
    /// The addresses as the peer sees them.
    pub(crate) seen_by_peer: SeenByPeer,
}

/// Our address and the peer's address in the peer's traffic selectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SeenByPeer {
    local: IpAddr,
    remote: IpAddr,
}

/// Replaces the addresses of the peer's selectors, if the CHILD_SA is in transport mode and there
/// is a NAT. Returns `None` if nothing is to be replaced, or if a side has more than one address.
pub(crate) fn substitute(
    mode: Mode,
    ends: Ends,
    local: &[TrafficSelector],
    remote: &[TrafficSelector],
) -> Option<Substituted> {
    if mode == Mode::Tunnel || !ends.nat || mutation!("transport_addresses_not_substituted") {
        return None;
    }
    //= RFC 7296 2.23.1 MUST 1: one address each
    let seen_by_peer = SeenByPeer { local: sole_address(local)?, remote: sole_address(remote)? };
    let same_family = |one: IpAddr, other: IpAddr| one.is_ipv4() == other.is_ipv4();
    let families_fit = same_family(seen_by_peer.local, ends.local) && same_family(seen_by_peer.remote, ends.remote);
    families_fit.then(|| Substituted {
        local: with_address(local, ends.local),
        remote: with_address(remote, ends.remote),
        seen_by_peer,
    })
}

impl SeenByPeer {
    /// Returns selectors of our side with the address as the peer sees it, for the response.
    pub(crate) fn local(self, selectors: Vec<TrafficSelector>) -> Vec<TrafficSelector> {
        self.undo(selectors, self.local)
    }

    /// Does the same as [`Self::local`] for the peer's side.
    pub(crate) fn remote(self, selectors: Vec<TrafficSelector>) -> Vec<TrafficSelector> {
        self.undo(selectors, self.remote)
    }

    //= RFC 7296 2.23.1 REQUIRED 6: the response has the addresses of the request
    fn undo(self, selectors: Vec<TrafficSelector>, address: IpAddr) -> Vec<TrafficSelector> {
        if mutation!("transport_addresses_not_undone") { selectors } else { with_address(&selectors, address) }
    }
}

fn sole_address(selectors: &[TrafficSelector]) -> Option<IpAddr> {
    let first = selectors.first()?.start;
    selectors.iter().all(|selector| (selector.start, selector.end) == (first, first)).then_some(first)
}

fn with_address(selectors: &[TrafficSelector], address: IpAddr) -> Vec<TrafficSelector> {
    selectors.iter().map(|selector| TrafficSelector { start: address, end: address, ..*selector }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selectors(networks: &[&str]) -> Vec<TrafficSelector> {
        networks.iter().map(|text| text.parse::<ipnetwork::IpNetwork>().unwrap().into()).collect()
    }

    fn ends(nat: bool) -> Ends {
        Ends { local: "10.0.0.1".parse().unwrap(), remote: "203.0.113.9".parse().unwrap(), nat }
    }

    #[test]
    fn addresses_that_the_peer_sees_are_replaced_by_those_that_we_see_and_back() {
        let mut remote = selectors(&["192.168.0.7", "192.168.0.7"]);
        (remote[0].protocol, remote[0].start_port, remote[0].end_port) = (17, 1701, 1701);
        let local = selectors(&["198.51.100.1"]);
        let substituted = substitute(Mode::Transport, ends(true), &local, &remote).unwrap();
        assert_eq!(substituted.local, selectors(&["10.0.0.1"]));
        assert_eq!(substituted.remote[1], selectors(&["203.0.113.9"])[0]);
        assert_eq!((substituted.remote[0].protocol, substituted.remote[0].start_port), (17, 1701));
        let seen = substituted.seen_by_peer;
        assert_eq!((seen.local(substituted.local), seen.remote(substituted.remote)), (local, remote));
    }

    #[test]
    fn nothing_is_replaced_without_a_nat_in_tunnel_mode_or_where_a_side_has_several_addresses() {
        let (local, remote) = (selectors(&["198.51.100.1"]), selectors(&["192.168.0.7"]));
        assert_eq!(substitute(Mode::Transport, ends(false), &local, &remote), None);
        assert_eq!(substitute(Mode::Tunnel, ends(true), &local, &remote), None);
        for several in [&["192.168.0.0/24"][..], &["192.168.0.7", "192.168.0.8"], &["2001:db8::7"], &[]] {
            assert_eq!(substitute(Mode::Transport, ends(true), &local, &selectors(several)), None, "{several:?}");
        }
    }
}

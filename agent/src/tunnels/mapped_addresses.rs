//! This node's mapped addresses: the addresses and ports from which its datagrams come to the hubs,
//! as the hubs say. Peers reach a node there whose NAT changes ports and maps all destinations
//! alike.

use std::net::SocketAddr;

use super::driver::Driver;
use crate::tcp_encapsulation::is_tcp;

/// Returns this node's mapped addresses, at most one of each family; `None` until a hub has
/// reported one. `hubs` has our address and the mapped address on the path to each hub that has
/// reported one. `before` is the result of the last call.
///
/// A mapped address that is our own says that there is no NAT. Different ones say that the NAT maps
/// each destination differently, so that no peer reaches us at any of them. While no hub says
/// anything, the node may only be cut off for a moment, so nothing changes.
fn mapped_addresses(hubs: &[(SocketAddr, SocketAddr)], before: Option<&[SocketAddr]>) -> Option<Vec<SocketAddr>> {
    if hubs.is_empty() {
        return before.map(<[_]>::to_vec);
    }
    let of_family = |ipv4: bool| {
        let mut said = hubs.iter().filter(|(_, mapped)| mapped.is_ipv4() == ipv4);
        let (local, first) = said.next()?;
        let same = said.all(|(_, mapped)| mapped == first);
        (same && local != first).then_some(*first)
    };
    Some([true, false].into_iter().filter_map(of_family).collect())
}

impl Driver {
    /// Publishes the mapped addresses if they have changed. Only hubs are believed: another node
    /// could make peers send to any address.
    pub(super) fn publish_mapped_addresses(&mut self) {
        if !std::mem::take(&mut self.mapped_changed) {
            return;
        }
        let of_hubs = self.endpoint.ike_addresses().filter_map(|(name, local, remote)| {
            // What a hub sees of a TCP connection or another source port is of no use to peers.
            let usual = !is_tcp(local) && self.other_ports.ports.real(local, remote) == local;
            let hub = usual && self.desired.tunnels.get(name).is_some_and(|tunnel| tunnel.hub);
            Some((local, hub.then(|| self.endpoint.mapped_address(name)).flatten()?))
        });
        let hubs: Vec<(SocketAddr, SocketAddr)> = of_hubs.collect();
        self.mapped.send_if_modified(|published| {
            let now = mapped_addresses(&hubs, published.as_deref());
            let changed = *published != now;
            if changed {
                tracing::info!(mapped = ?now.as_deref().unwrap_or_default(), "the addresses from which hubs see this node have changed");
            }
            *published = now;
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_address_counts_if_all_hubs_say_the_same_and_it_is_not_our_own() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (own, own6) = (at("192.168.1.10:4500"), at("[2001:db8::1]:4500"));
        let (one, other) = (at("203.0.113.7:61000"), at("203.0.113.7:61001"));
        let mapped6 = at("[2001:db8:9::7]:61000");
        for (hubs, expected) in [
            (vec![(own, one)], vec![one]),
            (vec![(own, one), (own, one)], vec![one]),
            (vec![(own, one), (own, other)], vec![]),
            (vec![(own, own)], vec![]),
            (vec![(own, own), (own, one)], vec![]),
            (vec![(own6, own6), (own, one)], vec![one]),
            (vec![(own6, mapped6), (own, one)], vec![one, mapped6]),
            (vec![(own6, mapped6)], vec![mapped6]),
        ] {
            assert_eq!(mapped_addresses(&hubs, Some(&[other])), Some(expected), "{hubs:?}");
        }
        assert_eq!(mapped_addresses(&[], Some(&[one])), Some(vec![one]), "the node is cut off for a moment");
        assert_eq!(mapped_addresses(&[], None), None, "the agent has just started");
    }
}

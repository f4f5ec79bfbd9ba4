//! Adds up the traffic of each peer over all its SAs. The kernel counts for each SA, and a rekey
//! replaces the SA.

use std::collections::{BTreeMap, HashMap};

use crate::status::{Counters, PeerReport};

/// The traffic of each peer since the agent began to count. Peers that no longer exist are dropped.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    peers: BTreeMap<String, PeerTraffic>,
}

/// The traffic of a peer. Packets that an SA carried between the last reading and its deletion are
/// missing.
#[derive(Debug, Default)]
pub(super) struct PeerTraffic {
    /// Traffic from the peer.
    pub(super) received: Direction,
    /// Traffic to the peer.
    pub(super) sent: Direction,
}

/// The traffic in one direction.
#[derive(Debug, Default)]
pub(super) struct Direction {
    pub(super) packets: u64,
    pub(super) bytes: u64,
    /// The counters of each SA at the last reading, by SPI.
    last: HashMap<String, Counters>,
}

impl Traffic {
    /// Adds the increase of the SAs' counters since the last call.
    pub(super) fn add(&mut self, peers: &[PeerReport]) {
        let mut before = std::mem::take(&mut self.peers);
        for peer in peers {
            let mut traffic = before.remove(&peer.name).unwrap_or_default();
            let children = &peer.child_sas;
            traffic.received.add(children.iter().filter_map(|child| Some((&*child.inbound_spi, child.received?))));
            traffic.sent.add(children.iter().filter_map(|child| Some((&*child.outbound_spi, child.sent?))));
            self.peers.insert(peer.name.clone(), traffic);
        }
    }

    /// Returns the peers with their traffic, in the order of their names.
    pub(super) fn peers(&self) -> impl Iterator<Item = (&str, &PeerTraffic)> {
        self.peers.iter().map(|(name, traffic)| (name.as_str(), traffic))
    }
}

impl Direction {
    fn add<'a>(&mut self, sas: impl Iterator<Item = (&'a str, Counters)>) {
        let before = std::mem::take(&mut self.last);
        for (spi, now) in sas {
            // If a counter has decreased, another SA has the same SPI now.
            let last = before.get(spi).filter(|last| last.packets <= now.packets && last.bytes <= now.bytes);
            let (packets, bytes) = last.map_or((0, 0), |last| (last.packets, last.bytes));
            self.packets = self.packets.saturating_add(now.packets - packets);
            self.bytes = self.bytes.saturating_add(now.bytes - bytes);
            self.last.insert(spi.to_owned(), now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(direction: &mut Direction, sas: &[(&str, u64)]) -> (u64, u64) {
        let counters = |packets| Counters { packets, bytes: packets * 100 };
        direction.add(sas.iter().map(|(spi, packets)| (*spi, counters(*packets))));
        (direction.packets, direction.bytes)
    }

    #[test]
    fn traffic_only_grows_while_sas_are_replaced() {
        let mut direction = Direction::default();
        assert_eq!(add(&mut direction, &[("a", 5)]), (5, 500));
        assert_eq!(add(&mut direction, &[("a", 7)]), (7, 700));
        // After a rekey, both SAs carry traffic for a while. Then the old SA is deleted.
        assert_eq!(add(&mut direction, &[("a", 8), ("b", 2)]), (10, 1000));
        assert_eq!(add(&mut direction, &[("b", 4)]), (12, 1200));
        assert_eq!(direction.last.len(), 1);
        // The counters of `b` have decreased, so it is another SA with the same SPI. In the end,
        // there are no SAs.
        assert_eq!(add(&mut direction, &[("b", 1)]), (13, 1300));
        assert_eq!(add(&mut direction, &[]), (13, 1300));
    }
}

//! The networks behind the peers in a view.

use std::sync::Arc;

use edge_types::SharedList;
use edge_types::network::contains;
use ipnetwork::IpNetwork;

/// Networks behind peers. A hub has one for each of ten thousand edges, so copies share them, and
/// whoever looks for a few of them need not look at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RemoteNetworks {
    /// All networks, ordered.
    all: SharedList<IpNetwork>,
    /// Those that are not within a cluster range: the cloud's networks, which hubs front.
    outside: Arc<Vec<IpNetwork>>,
}

impl RemoteNetworks {
    /// Returns these networks, each once. `ranges` are the cluster ranges.
    #[must_use]
    pub fn new(mut networks: Vec<IpNetwork>, ranges: &[IpNetwork]) -> Self {
        networks.sort();
        networks.dedup();
        let outside = networks.iter().filter(|network| !is_within(network, ranges)).copied().collect();
        Self { all: networks.into(), outside: Arc::new(outside) }
    }

    /// Returns all networks, ordered, each once.
    #[must_use]
    pub fn all(&self) -> &SharedList<IpNetwork> {
        &self.all
    }

    /// Returns the networks that are not within a cluster range, ordered.
    #[must_use]
    pub fn outside_of_ranges(&self) -> &[IpNetwork] {
        &self.outside
    }

    /// Removes networks that are within a cluster range, then adds others that are. The cost
    /// depends only on their number.
    pub(super) fn change_inside<'a>(
        &mut self,
        gone: impl Iterator<Item = &'a IpNetwork>,
        new: impl Iterator<Item = &'a IpNetwork>,
    ) {
        for network in gone {
            self.all.remove(network);
        }
        for network in new {
            self.all.insert(*network);
        }
    }
}

/// Returns whether a network is within one of these ranges.
pub(super) fn is_within(network: &IpNetwork, ranges: &[IpNetwork]) -> bool {
    ranges.iter().any(|range| contains(range, network))
}

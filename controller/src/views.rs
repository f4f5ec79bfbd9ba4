//! Computes what one node may know and do.

use edge_types::{Endpoint, EndpointSource, NodeName, NodeView, Peer, Role};

use crate::config::Config;
use crate::state::{NodeRecord, State};

/// What every view takes from the configuration and the CA.
#[derive(Debug, Clone)]
pub struct Common {
    config: Config,
    trust_anchors: Vec<String>,
}

impl Common {
    /// From the configuration and the CA's certificates, PEM.
    pub fn new(config: Config, trust_anchors: Vec<String>) -> Self {
        Self { config, trust_anchors }
    }

    /// The view of a registered node.
    pub fn view(&self, state: &State, node: &NodeName, version: u64) -> Option<NodeView> {
        let record = state.node(node)?;
        let peers = state.peers_of(record).into_iter().filter_map(|peer| state.node(peer));
        Some(NodeView {
            version,
            node: node.clone(),
            role: record.role,
            communities: state.communities_of(record),
            cluster_ranges: self.config.segments.cluster_ranges.clone(),
            segments: segments(state, node),
            networks: self.networks(record),
            peers: peers.map(|peer| self.peer(state, peer)).collect(),
            trust_anchors: self.trust_anchors.clone(),
            segment_prefix: self.config.segment_policy().prefix,
        })
    }

    /// Where a node may be found, likeliest first: what the operator says, what it says, where it was seen.
    pub fn endpoints(&self, node: &NodeRecord) -> Vec<Endpoint> {
        let configured = self.config.hub.get(&node.name).filter(|_| node.role == Role::Hub);
        let configured = configured.into_iter().flat_map(|hub| &hub.endpoints);
        let mut endpoints: Vec<Endpoint> =
            configured.map(|address| Endpoint { address: *address, source: EndpointSource::Configured }).collect();
        for endpoint in node.endpoints() {
            if !endpoints.iter().any(|known| known.address == endpoint.address) {
                endpoints.push(endpoint);
            }
        }
        endpoints
    }

    fn peer(&self, state: &State, peer: &NodeRecord) -> Peer {
        Peer {
            name: peer.name.clone(),
            role: peer.role,
            endpoints: self.endpoints(peer),
            segments: segments(state, &peer.name),
            networks: self.networks(peer),
        }
    }

    fn networks(&self, node: &NodeRecord) -> Vec<edge_types::IpNetwork> {
        if node.role == Role::Hub { self.config.networks_of(&node.name).to_vec() } else { Vec::new() }
    }
}

/// Segments that a node holds, oldest grant first.
pub fn segments(state: &State, node: &NodeName) -> Vec<edge_types::IpNetwork> {
    state.ledger().held_by(node).into_iter().map(|row| row.network).collect()
}

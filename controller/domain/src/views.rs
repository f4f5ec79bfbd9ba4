//! Computes what one node may know and do.

use std::sync::Arc;

use edge_types::view::SegmentPrefix;
use edge_types::{AddressSource, NodeAddress, NodeName, NodeView, Peer, Role, ViewChange};

use crate::ca::Ca;
use crate::endpoints::{self, is_reachable};
use crate::networks::ClusterNetworks;
use crate::registry::{PeerJson, StateGuard};
use crate::state::{NodeRecord, State, ViewDelta};

/// What every view takes from the configuration and the authorities.
#[derive(Clone)]
pub struct Common {
    networks: ClusterNetworks,
    segment_prefix: SegmentPrefix,
    ca: Arc<Ca>,
}

impl Common {
    /// From the configuration and the authorities.
    pub fn new(networks: ClusterNetworks, segment_prefix: SegmentPrefix, ca: Arc<Ca>) -> Self {
        Self { networks, segment_prefix, ca }
    }

    /// The view of a registered node.
    pub fn view(&self, state: &State, node: &NodeName, version: u64) -> Option<NodeView> {
        self.whole(state, node, version, |peer| Some(self.peer(state, peer)))
    }

    /// The same as it is told.
    pub fn told(&self, view: &StateGuard<'_>, node: &NodeName) -> Option<NodeView<PeerJson>> {
        self.whole(view.state(), node, view.revision(), |peer| self.told_peer(view, peer))
    }

    /// What changed of a registered node's view since version `from`, as far as
    /// touched.
    pub fn change(
        &self,
        view: &StateGuard<'_>,
        node: &NodeName,
        from: u64,
        delta: &ViewDelta,
    ) -> Option<ViewChange<PeerJson>> {
        let state = view.state();
        let record = state.node(node)?;
        let mut change = ViewChange { from, version: view.revision(), own: None, put: Vec::new(), gone: Vec::new() };
        if delta.own {
            change.own = Some(Box::new(self.own(state, record, change.version)));
        }
        for name in &delta.peers {
            match state.node(name).filter(|peer| state.is_peer(record, peer)) {
                Some(peer) => change.put.push(self.told_peer(view, peer)?),
                None => change.gone.push(name.clone()),
            }
        }
        Some(change)
    }

    fn whole<P>(
        &self,
        state: &State,
        node: &NodeName,
        version: u64,
        peer: impl Fn(&NodeRecord) -> Option<P>,
    ) -> Option<NodeView<P>> {
        let record = state.node(node)?;
        let peers = state.peers_of(record).into_iter().filter_map(|name| state.node(name));
        Some(NodeView { peers: peers.map(peer).collect::<Option<_>>()?, ..self.own(state, record, version) })
    }

    /// A view but for its peers.
    fn own<P>(&self, state: &State, record: &NodeRecord, version: u64) -> NodeView<P> {
        NodeView {
            version,
            node: record.name.clone(),
            role: record.role,
            communities: state.communities_of(record),
            cluster_ranges: self.networks.ranges.clone(),
            segments: segments(state, &record.name),
            networks: self.fronted(record),
            peers: Vec::new(),
            trust_anchors: self.ca.current().anchors(),
            segment_prefix: self.segment_prefix,
        }
    }

    fn told_peer(&self, view: &StateGuard<'_>, peer: &NodeRecord) -> Option<PeerJson> {
        view.peer(&peer.name, || self.peer(view.state(), peer))
    }

    /// Where a node may be found, likeliest first: what the operator says, what it says, where it
    /// was seen.
    pub fn endpoints(&self, node: &NodeRecord) -> Vec<NodeAddress> {
        let configured = self.networks.hubs.get(&node.name).filter(|_| node.role == Role::Hub);
        let configured = configured.into_iter().flat_map(|hub| &hub.endpoints);
        let mut endpoints: Vec<NodeAddress> =
            configured.map(|address| NodeAddress { address: *address, source: AddressSource::Configured }).collect();
        for endpoint in self.said(node) {
            if !endpoints.iter().any(|known| known.address == endpoint.address) {
                endpoints.push(endpoint);
            }
        }
        endpoints
    }

    /// Where it may be found by its own word and its Node's, as far as that is passed on; where it
    /// was seen is among it.
    fn said(&self, node: &NodeRecord) -> Vec<NodeAddress> {
        let reachable =
            |endpoint: &NodeAddress| is_reachable(&endpoint.address.ip(), self.networks.tunnelled(node.role));
        let mut said: Vec<NodeAddress> = node.endpoints().into_iter().filter(reachable).collect();
        if said.len() > endpoints::MOST {
            let seen = said.last().cloned().filter(|last| last.source == AddressSource::Observed);
            said.truncate(endpoints::MOST - usize::from(seen.is_some()));
            said.extend(seen);
        }
        said
    }

    fn peer(&self, state: &State, peer: &NodeRecord) -> Peer {
        Peer {
            name: peer.name.clone(),
            role: peer.role,
            endpoints: self.endpoints(peer),
            segments: segments(state, &peer.name),
            networks: self.fronted(peer),
            certificates_from: peer.certificates_from,
        }
    }

    fn fronted(&self, node: &NodeRecord) -> Vec<edge_types::IpNetwork> {
        if node.role == Role::Hub { self.networks.fronted_by(&node.name).to_vec() } else { Vec::new() }
    }
}

/// Segments that a node holds, oldest grant first.
pub fn segments(state: &State, node: &NodeName) -> Vec<edge_types::IpNetwork> {
    state.ledger().held_by(node).into_iter().map(|row| row.network).collect()
}

#[cfg(test)]
mod tests;

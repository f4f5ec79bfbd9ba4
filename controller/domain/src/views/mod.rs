//! Builds views. A view describes a node and its peers to that node.
//!
//! - `pod_networks`: decides which networks of their own pods hubs front.
//! - `unreached_from`: the edges to which a cloud node must not route through a hub.
//! - `view_change`: builds the message about a changed part of a view.

mod pod_networks;
mod unreached_from;
mod view_change;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use edge_types::view::SegmentPrefix;
use edge_types::{AddressSource, NodeAddress, NodeName, NodeView, Peer, Role, SharedList};

use crate::ca::Ca;
use crate::clock::Seconds;
use crate::networks::ClusterNetworks;
use crate::node_addresses::{self, is_reachable};
use crate::registry::{PeerJson, StateGuard};
use crate::state::{NodeRecord, State};

/// A builder of views from the state, the configuration and the authorities.
#[derive(Clone)]
pub struct ViewBuilder {
    networks: ClusterNetworks,
    segment_prefix: SegmentPrefix,
    certificate_grace: Seconds,
    ca: Arc<Ca>,
}

impl ViewBuilder {
    /// Makes a builder for this configuration and these authorities. `certificate_grace` is the
    /// time for which a node's certificate is accepted after its end.
    pub fn new(
        networks: ClusterNetworks,
        segment_prefix: SegmentPrefix,
        certificate_grace: Seconds,
        ca: Arc<Ca>,
    ) -> Self {
        Self { networks, segment_prefix, certificate_grace, ca }
    }

    /// Returns the view of a registered node; `None` if the node is not registered.
    pub fn view(&self, state: &State, node: &NodeName, version: u64) -> Option<NodeView> {
        self.build(state, node, version, |viewer, peer| Some(self.peer(state, viewer, peer).into()))
    }

    /// Returns the view of a registered node with its peers as JSON, which all views share. `None`
    /// if the node is not registered.
    pub fn view_json(&self, state: &StateGuard<'_>, node: &NodeName) -> Option<NodeView<PeerJson>> {
        self.build(state, node, state.revision(), |viewer, peer| self.peer_json(state, viewer, peer))
    }

    fn build<P>(
        &self,
        state: &State,
        node: &NodeName,
        version: u64,
        peer: impl Fn(&NodeRecord, &NodeRecord) -> Option<P>,
    ) -> Option<NodeView<P>> {
        let record = state.node(node)?;
        let peers = state.peers_of(record).into_iter().filter_map(|name| state.node(name));
        let peers = SharedList::unordered(peers.map(|other| peer(record, other)).collect::<Option<_>>()?);
        Some(NodeView { peers, ..self.own_part(state, record, version) })
    }

    /// Returns a view without its peers.
    fn own_part<P>(&self, state: &State, record: &NodeRecord, version: u64) -> NodeView<P> {
        NodeView {
            version,
            node: record.name.clone(),
            role: record.role,
            communities: state.communities_of(record),
            cluster_ranges: self.networks.ranges.clone(),
            segments: segments(state, &record.name),
            networks: self.fronted(state, record),
            peers: SharedList::default(),
            trust_anchors: self.ca.current().anchors(),
            segment_prefix: self.segment_prefix,
            certificate_grace_seconds: u64::try_from(self.certificate_grace).unwrap_or(0),
            unreached_from: unreached_from::of_viewer(state, record, &self.networks.ranges),
        }
    }

    fn peer_json(&self, state: &StateGuard<'_>, viewer: &NodeRecord, peer: &NodeRecord) -> Option<PeerJson> {
        let for_members = state.is_possible_member(viewer) && !state.on_demand_in(peer).is_empty();
        state.peer(&peer.name, for_members, || self.peer(state, viewer, peer))
    }

    /// Returns the addresses of a node that its peers get, the most likely first: those that the
    /// operator configures, those that the node or its Node object reports, then the address at
    /// which the controller saw the node.
    pub fn endpoints(&self, node: &NodeRecord) -> Vec<NodeAddress> {
        let configured = self.networks.hubs.get(&node.name).filter(|_| node.role == Role::Hub);
        let configured = configured.into_iter().flat_map(|hub| &hub.endpoints);
        let mut endpoints: Vec<NodeAddress> =
            configured.map(|address| NodeAddress { address: *address, source: AddressSource::Configured }).collect();
        for endpoint in self.record_addresses(node) {
            if !endpoints.iter().any(|known| known.address == endpoint.address) {
                endpoints.push(endpoint);
            }
        }
        endpoints
    }

    /// Returns the addresses from the node's record that a peer can use, at most
    /// [`node_addresses::MOST`]. The address at which the controller saw the node is always among
    /// them.
    fn record_addresses(&self, node: &NodeRecord) -> Vec<NodeAddress> {
        let reachable =
            |endpoint: &NodeAddress| is_reachable(&endpoint.address.ip(), self.networks.tunnelled(node.role));
        let mut addresses: Vec<NodeAddress> = node.endpoints().into_iter().filter(reachable).collect();
        if addresses.len() > node_addresses::MOST {
            let seen = addresses.last().cloned().filter(|last| last.source == AddressSource::Observed);
            addresses.truncate(node_addresses::MOST - usize::from(seen.is_some()));
            addresses.extend(seen);
        }
        addresses
    }

    /// Returns a node as a viewer sees it. Of its communities' decisions about tunnels, only nodes
    /// see something that may be members.
    fn peer(&self, state: &State, viewer: &NodeRecord, peer: &NodeRecord) -> Peer {
        let endpoints = self.endpoints(peer);
        let reachable = |address: &&SocketAddr| is_reachable(&address.ip(), self.networks.tunnelled(peer.role));
        let known = |address: &SocketAddr| endpoints.iter().any(|endpoint| endpoint.address == *address);
        let mapped = peer.mapped.iter().filter(reachable).filter(|address| !known(address)).copied().collect();
        Peer {
            name: peer.name.clone(),
            role: peer.role,
            endpoints,
            mapped,
            segments: segments(state, &peer.name),
            networks: self.fronted(state, peer),
            certificates_from: peer.certificates_from,
            tcp_port: peer.tcp_port.filter(|_| peer.role == Role::Hub),
            on_demand_in: if state.is_possible_member(viewer) { state.on_demand_in(peer) } else { BTreeMap::new() },
        }
    }

    /// Returns the cloud networks that a hub fronts, those of its own pods last; none for a node of
    /// another role.
    fn fronted(&self, state: &State, node: &NodeRecord) -> Vec<edge_types::IpNetwork> {
        if node.role != Role::Hub {
            return Vec::new();
        }
        let mut fronted = self.networks.fronted_by(&node.name).to_vec();
        fronted.extend(pod_networks::own_pod_networks(&self.networks, state, node));
        fronted
    }
}

/// Returns the segments that a node holds, the oldest grant first.
pub fn segments(state: &State, node: &NodeName) -> Vec<edge_types::IpNetwork> {
    state.ledger().held_by(node).into_iter().map(|row| row.network).collect()
}

#[cfg(test)]
mod tests;

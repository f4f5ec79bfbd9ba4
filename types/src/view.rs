//! What the controller tells a node: itself, and whom it may talk to; at first as a whole, then
//! what changes of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::name::{Communities, NodeName};

/// What a node is for. Given by the join token, held by the certificate, never claimed by the
/// node's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// An edge node: tunnels to the hubs and to the members of its communities.
    Edge,
    /// The cloud's end of the tunnels; fronts the cloud's networks.
    Hub,
    /// Another cloud node: no tunnels, routes the edges' segments to the hub.
    Cloud,
}

impl Role {
    /// The word used in tokens, certificates and configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Edge => "edge",
            Role::Hub => "hub",
            Role::Cloud => "cloud",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "edge" => Ok(Role::Edge),
            "hub" => Ok(Role::Hub),
            "cloud" => Ok(Role::Cloud),
            other => Err(format!("role {other:?} is none of edge, hub, cloud")),
        }
    }
}

/// One node's view. Complete in itself: a newer version replaces an older one as a whole. (The
/// controller, which tells many nodes of the same peer, has another `P`.)
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeView<P = Peer> {
    /// Rises with every change that concerns this node; survives the controller's restart.
    pub version: u64,
    /// Whose view this is.
    pub node: NodeName,
    /// This node's role.
    pub role: Role,
    /// Communities that this node belongs to.
    #[serde(default)]
    pub communities: Communities,
    /// All ranges from which segments are cut, in the whole cluster. Nothing to or from them may
    /// ever travel in clear.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub cluster_ranges: Vec<IpNetwork>,
    /// Segments of this node; pods here have addresses from them alone.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub segments: Vec<IpNetwork>,
    /// On a hub: the cloud's networks (pods and services of the cloud's own CNI) that it fronts.
    /// Elsewhere empty.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub networks: Vec<IpNetwork>,
    /// Whom this node may talk to: on an edge the hubs and the other members of its communities; on
    /// a hub all edges; on a cloud node the hubs, to route to, not to negotiate with. By name.
    pub peers: Vec<P>,
    /// Trust anchors for peers' and the controller's certificates, PEM. Several while the CA rolls
    /// over: the first one is of the authority that signs now, and a node whose certificate is of
    /// another one renews it soon.
    pub trust_anchors: Vec<String>,
    /// Addresses of one segment, as a prefix length per family, so that the agent can judge what
    /// "one spare segment" is.
    #[serde(default)]
    pub segment_prefix: SegmentPrefix,
}

/// What changed of a view from one version to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ViewChange<P = Peer> {
    /// The version to which this is the difference.
    pub from: u64,
    /// The version that it makes of it.
    pub version: u64,
    /// The new version but for its peers, where anything of that changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub own: Option<Box<NodeView<P>>>,
    /// Peers that came or are seen differently.
    #[serde(default = "Vec::<P>::new", skip_serializing_if = "Vec::is_empty")]
    pub put: Vec<P>,
    /// Peers that are none any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<NodeName>,
}

impl ViewChange {
    /// The new version of a view; `None` if this is not the difference to the version that `view`
    /// has.
    pub fn apply_to(self, view: NodeView) -> Option<NodeView> {
        if view.version != self.from {
            return None;
        }
        let mut view = view;
        let mut peers: BTreeMap<NodeName, Peer> =
            std::mem::take(&mut view.peers).into_iter().map(|peer| (peer.name.clone(), peer)).collect();
        for name in &self.gone {
            peers.remove(name);
        }
        peers.extend(self.put.into_iter().map(|peer| (peer.name.clone(), peer)));
        let own = self.own.map_or(view, |own| *own);
        Some(NodeView { version: self.version, peers: peers.into_values().collect(), ..own })
    }
}

/// Prefix lengths with which segments are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SegmentPrefix {
    /// IPv4 prefix length.
    pub v4: u8,
    /// IPv6 prefix length.
    pub v6: u8,
}

impl Default for SegmentPrefix {
    fn default() -> Self {
        Self { v4: 26, v6: 120 }
    }
}

/// A node that this one may talk to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Peer {
    /// Its name; also its IKE identity (ID_FQDN) and the dNSName of its certificate.
    pub name: NodeName,
    /// Its role, which its certificate must show too.
    pub role: Role,
    /// Where it may be found, likeliest first.
    pub endpoints: Vec<Endpoint>,
    /// Segments of its pods.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub segments: Vec<IpNetwork>,
    /// On a hub: the cloud's networks that it fronts.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub networks: Vec<IpNetwork>,
    /// Certificates of it that begin before this are revoked (seconds since 1970-01-01 UTC): its
    /// name has joined anew since, with another key.
    #[serde(default)]
    pub certificates_from: i64,
}

/// A transport address of a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Endpoint {
    /// Address and UDP port on which the node speaks IKE and ESP in UDP (4500 unless configured
    /// otherwise).
    pub address: SocketAddr,
    /// Who says so.
    pub source: EndpointSource,
}

/// How an [`Endpoint`] became known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum EndpointSource {
    /// The operator set it.
    Configured,
    /// The node reported an address of its own interfaces.
    Reported,
    /// The address from which the controller saw the node come (behind a NAT, the NAT's).
    Observed,
}

impl<P> NodeView<P> {
    /// What peers may reach here: our segments and, on a hub, the cloud's networks.
    pub fn local_networks(&self) -> impl Iterator<Item = IpNetwork> + '_ {
        self.segments.iter().chain(&self.networks).copied()
    }
}

impl Peer {
    /// What may be reached at this peer, and all that it may claim as source.
    pub fn remote_networks(&self) -> impl Iterator<Item = IpNetwork> + '_ {
        self.segments.iter().chain(&self.networks).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str, port: u16) -> Peer {
        let address = SocketAddr::from(([192, 0, 2, 1], port));
        let endpoints = vec![Endpoint { address, source: EndpointSource::Reported }];
        Peer {
            name: name.parse().unwrap(),
            role: Role::Edge,
            endpoints,
            segments: vec![],
            networks: vec![],
            certificates_from: 0,
        }
    }

    fn view(version: u64, peers: Vec<Peer>) -> NodeView {
        NodeView {
            version,
            node: "edge-1".parse().unwrap(),
            role: Role::Edge,
            communities: Communities::new(),
            cluster_ranges: vec!["10.77.0.0/16".parse().unwrap()],
            segments: vec![],
            networks: vec![],
            peers,
            trust_anchors: vec![],
            segment_prefix: SegmentPrefix::default(),
        }
    }

    #[test]
    fn a_change_puts_and_removes_peers_and_leaves_the_rest() {
        let old = view(4, vec![peer("a", 1), peer("c", 1), peer("d", 1)]);
        let gone = vec!["c".parse().unwrap(), "x".parse().unwrap()];
        let change = ViewChange { from: 4, version: 9, own: None, put: vec![peer("b", 1), peer("d", 2)], gone };
        let new = change.apply_to(old.clone()).unwrap();
        assert_eq!(new, view(9, vec![peer("a", 1), peer("b", 1), peer("d", 2)]));
        let mut own = view(10, vec![]);
        own.segments = vec!["10.77.0.0/26".parse().unwrap()];
        let change = ViewChange { from: 9, version: 10, own: Some(Box::new(own.clone())), put: vec![], gone: vec![] };
        assert_eq!(change.apply_to(new.clone()).unwrap(), NodeView { peers: new.peers, ..own });
    }

    #[test]
    fn a_change_of_another_version_is_not_applied() {
        let change = ViewChange { from: 4, version: 9, own: None, put: vec![], gone: vec![] };
        assert_eq!(change.clone().apply_to(view(5, vec![])), None);
        assert_eq!(change.apply_to(view(3, vec![])), None);
    }
}

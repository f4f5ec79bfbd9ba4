//! A node's view: the node itself, and the peers with which it may communicate. The controller
//! sends it once as a whole, and then only changes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::name::{Communities, Community, NodeName};
use crate::shared_list::{Keyed, SharedList};

/// The role of a node. The join token grants it, and the certificate contains it. A node's
/// configuration cannot claim it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// An edge node. It has tunnels to the hubs and to the members of its communities.
    Edge,
    /// The cloud's end of the tunnels. It fronts the cloud's networks.
    Hub,
    /// Another cloud node. It has no tunnels and routes the edges' segments to the hub.
    Cloud,
}

impl Role {
    /// Returns the word for this role in tokens, certificates and configuration.
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

/// One node's view. It is complete: a newer version replaces an older one as a whole. Versions
/// share peers that stay the same, so these compare quickly. The controller uses another type `P`
/// for peers, since it sends the same peer to many nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(bound(deserialize = "P: Deserialize<'de> + Keyed"))]
pub struct NodeView<P = SharedPeer> {
    /// Version of the view. It increases with every change that concerns this node, even across
    /// restarts of the controller.
    pub version: u64,
    /// The node that this view is for.
    pub node: NodeName,
    /// This node's role.
    pub role: Role,
    /// Communities that this node belongs to.
    #[serde(default)]
    pub communities: Communities,
    /// All ranges from which segments are cut, in the whole cluster. No packet to or from them may
    /// travel in clear.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub cluster_ranges: Vec<IpNetwork>,
    /// Segments of this node. Pods on this node have addresses only from these segments.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub segments: Vec<IpNetwork>,
    /// On a hub: the cloud's networks that the hub fronts (pods and services of the cloud's own
    /// CNI). Empty on other nodes.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub networks: Vec<IpNetwork>,
    /// The nodes with which this one may communicate, sorted by name. On an edge: the hubs and the
    /// other members of its communities. On a hub: all edges. On a cloud node: the hubs, to which
    /// it routes; it has no tunnels.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<P>"))]
    pub peers: SharedList<P>,
    /// Trust anchors for the certificates of peers and controller, PEM. There are several during a
    /// rollover of the CA. The first one belongs to the authority that signs now. A node with a
    /// certificate of another authority renews it soon.
    pub trust_anchors: Vec<String>,
    /// Size of one segment, as a prefix length for each family. The agent computes the size of a
    /// spare segment from it.
    #[serde(default)]
    pub segment_prefix: SegmentPrefix,
    /// Time for which the certificates of this node and of its peers are accepted after their end,
    /// seconds. With 0, not at all.
    #[serde(default)]
    pub certificate_grace_seconds: u64,
    /// On a cloud node: for each hub, the segments of edges that have no tunnel to it, but one to
    /// another hub. If a hub has too many such edges for a list, it has the cluster's ranges
    /// instead. Hubs without such edges are absent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[cfg_attr(feature = "schema", schemars(with = "BTreeMap<String, Vec<String>>"))]
    pub unreached_from: BTreeMap<NodeName, Vec<IpNetwork>>,
}

/// The changes from one version of a view to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(bound(deserialize = "P: Deserialize<'de> + Keyed"))]
pub struct ViewChange<P = SharedPeer> {
    /// The version to which the changes apply.
    pub from: u64,
    /// The version of the view after the changes.
    pub version: u64,
    /// The new version without its peers, if anything but peers changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub own: Option<Box<NodeView<P>>>,
    /// New or changed peers.
    #[serde(default = "Vec::<P>::new", skip_serializing_if = "Vec::is_empty")]
    pub put: Vec<P>,
    /// Nodes that are no longer peers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<NodeName>,
}

impl ViewChange {
    /// Returns the new version of a view, or `None` if the changes apply to a version other than
    /// that of `view`. A few changes cost the same whatever the number of peers is.
    pub fn apply_to(self, view: NodeView) -> Option<NodeView> {
        if view.version != self.from {
            return None;
        }
        let mut view = view;
        let mut peers = std::mem::take(&mut view.peers);
        for name in &self.gone {
            peers.remove(name);
        }
        for peer in self.put {
            peers.insert(peer);
        }
        let own = self.own.map_or(view, |own| *own);
        Some(NodeView { version: self.version, peers, ..own })
    }
}

/// Prefix lengths of segments.
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

/// A node with which this one may communicate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Peer {
    /// The peer's name, which is also its IKE identity (ID_FQDN) and the dNSName in its
    /// certificate.
    pub name: NodeName,
    /// The peer's role, which its certificate must also contain.
    pub role: Role,
    /// The peer's addresses, the most likely first.
    pub endpoints: Vec<NodeAddress>,
    /// Addresses and UDP ports from which the peer's datagrams come to a hub, at most
    /// [`MOST_MAPPED`](crate::api::MOST_MAPPED). Behind a NAT that changes ports and maps all
    /// destinations alike, the peer is reached there. A key of its own, since releases before it
    /// refuse a view with an unknown `source` among `endpoints`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mapped: Vec<SocketAddr>,
    /// Segments of the peer's pods.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub segments: Vec<IpNetwork>,
    /// On a hub: the cloud's networks that the hub fronts.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub networks: Vec<IpNetwork>,
    /// Certificates of the peer whose notBefore is earlier are revoked, since a node with its name
    /// has joined again with another key. Seconds since 1970-01-01 UTC.
    #[serde(default)]
    pub certificates_from: i64,
    /// On a hub: the TCP port on which it takes IKE and ESP from edges whose network blocks UDP
    /// (RFC 9329), at the IP addresses of its `endpoints`. Absent if it takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_port: Option<u16>,
    /// The peer's communities for which the operator has decided when tunnels are set up: true if
    /// by the first packet, false if at once. Other communities are absent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub on_demand_in: BTreeMap<Community, bool>,
}

/// When the tunnels between the members of a community are set up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum CommunityTunnels {
    /// Each member decides by the number of members (`[on_demand] eager` of its agent).
    #[default]
    Auto,
    /// At once, whatever the number of members is.
    Eager,
    /// By the first packet.
    OnDemand,
}

impl CommunityTunnels {
    /// Returns whether the operator has not decided.
    pub fn is_auto(&self) -> bool {
        *self == Self::Auto
    }

    /// Returns whether tunnels wait for a packet; `None` if each member decides.
    pub fn on_demand(self) -> Option<bool> {
        match self {
            Self::Auto => None,
            Self::Eager => Some(false),
            Self::OnDemand => Some(true),
        }
    }

    /// Returns the word for this value in commands, resources and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Eager => "eager",
            Self::OnDemand => "on-demand",
        }
    }
}

impl std::fmt::Display for CommunityTunnels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for CommunityTunnels {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let words = [Self::Auto, Self::Eager, Self::OnDemand];
        let word = words.into_iter().find(|word| word.as_str() == text);
        word.ok_or_else(|| format!("{text:?} is none of auto, eager, on-demand"))
    }
}

/// A transport address of a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "Endpoint"))]
pub struct NodeAddress {
    /// Address and UDP port on which the node uses IKE and ESP in UDP (4500 unless configured
    /// otherwise).
    pub address: SocketAddr,
    /// How the address became known.
    pub source: AddressSource,
}

/// How a node's address became known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "EndpointSource"))]
#[serde(rename_all = "lowercase")]
pub enum AddressSource {
    /// The operator set it.
    Configured,
    /// The node reported an address of its own interfaces.
    Reported,
    /// The address from which the node connects to the controller (behind a NAT, the NAT's).
    Observed,
}

/// A peer that several versions of a view share. Two references to the same peer in memory are
/// equal without a comparison of their content. Comparing views therefore takes time only for the
/// peers that changed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "Peer")]
pub struct SharedPeer(Arc<Peer>);

impl SharedPeer {
    /// Returns whether both references point to the same peer in memory.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Keyed for SharedPeer {
    type Key = NodeName;

    fn key(&self) -> &NodeName {
        &self.name
    }
}

impl From<Peer> for SharedPeer {
    fn from(peer: Peer) -> Self {
        Self(Arc::new(peer))
    }
}

impl Deref for SharedPeer {
    type Target = Peer;

    fn deref(&self) -> &Peer {
        &self.0
    }
}

impl Serialize for SharedPeer {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (**self).serialize(serializer)
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for SharedPeer {
    fn inline_schema() -> bool {
        Peer::inline_schema()
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        Peer::schema_name()
    }

    fn schema_id() -> std::borrow::Cow<'static, str> {
        Peer::schema_id()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        Peer::json_schema(generator)
    }
}

impl<P> NodeView<P> {
    /// Returns the networks that peers may reach on this node: our segments and, on a hub, the
    /// cloud's networks.
    pub fn local_networks(&self) -> impl Iterator<Item = IpNetwork> + '_ {
        self.segments.iter().chain(&self.networks).copied()
    }
}

impl Peer {
    /// Returns the networks that are reachable through this peer. Its packets may come only from
    /// them.
    pub fn remote_networks(&self) -> impl Iterator<Item = IpNetwork> + '_ {
        self.segments.iter().chain(&self.networks).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str, port: u16) -> SharedPeer {
        let address = SocketAddr::from(([192, 0, 2, 1], port));
        let endpoints = vec![NodeAddress { address, source: AddressSource::Reported }];
        let peer = Peer {
            name: name.parse().unwrap(),
            role: Role::Edge,
            endpoints,
            segments: vec![],
            networks: vec![],
            mapped: vec![],
            certificates_from: 0,
            tcp_port: None,
            on_demand_in: Default::default(),
        };
        peer.into()
    }

    fn view(version: u64, peers: Vec<SharedPeer>) -> NodeView {
        NodeView {
            version,
            node: "edge-1".parse().unwrap(),
            role: Role::Edge,
            communities: Communities::new(),
            cluster_ranges: vec!["10.77.0.0/16".parse().unwrap()],
            segments: vec![],
            networks: vec![],
            peers: peers.into(),
            trust_anchors: vec![],
            segment_prefix: SegmentPrefix::default(),
            certificate_grace_seconds: 0,
            unreached_from: BTreeMap::new(),
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
    fn a_list_in_another_order_is_sorted_by_the_first_change_of_a_peer() {
        let odd = view(4, vec![peer("c", 1), peer("a", 1), peer("c", 2)]);
        let change = ViewChange { from: 4, version: 5, own: None, put: vec![peer("b", 1)], gone: vec![] };
        assert_eq!(change.apply_to(odd).unwrap().peers, [peer("a", 1), peer("b", 1), peer("c", 2)]);
    }

    #[test]
    fn what_a_change_does_not_name_is_shared_with_the_version_before() {
        let old = view(4, (0..10_000).map(|number| peer(&format!("n-{number:05}"), 1)).collect());
        let change = ViewChange {
            from: 4,
            version: 5,
            own: None,
            put: vec![peer("n-00700", 2)],
            gone: vec!["n-09000".parse().unwrap()],
        };
        let new = change.apply_to(old.clone()).unwrap();
        let shared = |peer: &&SharedPeer| old.peers.iter().any(|before| before.is_same(peer));
        let others: Vec<&SharedPeer> = new.peers.iter().filter(|peer| peer.endpoints[0].address.port() == 1).collect();
        assert_eq!((new.peers.len(), others.len()), (9999, 9998));
        assert_eq!((old.peers.parts(), new.peers.shared_parts(&old.peers)), (105, 103));
        assert!(others.iter().step_by(97).all(shared));
        // A peer that is parsed again is equal, but not the same one in memory.
        let text = serde_json::to_string(&new).unwrap();
        let read: NodeView = serde_json::from_str(&text).unwrap();
        assert!(read == new && !read.peers[0].is_same(&new.peers[0]));
    }

    #[test]
    fn a_change_of_another_version_is_not_applied() {
        let change = ViewChange { from: 4, version: 9, own: None, put: vec![], gone: vec![] };
        assert_eq!(change.clone().apply_to(view(5, vec![])), None);
        assert_eq!(change.apply_to(view(3, vec![])), None);
    }
}

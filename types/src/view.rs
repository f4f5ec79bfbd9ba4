//! What the controller tells a node: itself, and whom it may talk to.

use std::net::SocketAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::name::{Communities, NodeName};

/// What a node is for. Given by the join token, held by the certificate, never claimed by the node's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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

/// One node's view. Complete in itself: a newer version replaces an older one as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Rises with every change that concerns this node; survives the controller's restart.
    pub version: u64,
    /// Whose view this is.
    pub node: NodeName,
    /// This node's role.
    pub role: Role,
    /// Communities that this node belongs to.
    #[serde(default)]
    pub communities: Communities,
    /// All ranges from which segments are cut, in the whole cluster. Nothing to or from them may ever travel in clear.
    pub cluster_ranges: Vec<IpNetwork>,
    /// Segments of this node; pods here have addresses from them alone.
    pub segments: Vec<IpNetwork>,
    /// On a hub: the cloud's networks (pods and services of the cloud's own CNI) that it fronts. Elsewhere empty.
    #[serde(default)]
    pub networks: Vec<IpNetwork>,
    /// Whom this node may talk to: on an edge the hubs and the other members of its communities; on a hub all edges; on a
    /// cloud node the hubs, to route to, not to negotiate with.
    pub peers: Vec<Peer>,
    /// Trust anchors for peers' and the controller's certificates, PEM. Several while the CA rolls over.
    pub trust_anchors: Vec<String>,
    /// Addresses of one segment, as a prefix length per family, so that the agent can judge what "one spare segment" is.
    #[serde(default)]
    pub segment_prefix: SegmentPrefix,
}

/// Prefix lengths with which segments are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
pub struct Peer {
    /// Its name; also its IKE identity (ID_FQDN) and the dNSName of its certificate.
    pub name: NodeName,
    /// Its role, which its certificate must show too.
    pub role: Role,
    /// Where it may be found, likeliest first.
    pub endpoints: Vec<Endpoint>,
    /// Segments of its pods.
    pub segments: Vec<IpNetwork>,
    /// On a hub: the cloud's networks that it fronts.
    #[serde(default)]
    pub networks: Vec<IpNetwork>,
}

/// A transport address of a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// Address and UDP port on which the node speaks IKE and ESP in UDP (4500 unless configured otherwise).
    pub address: SocketAddr,
    /// Who says so.
    pub source: EndpointSource,
}

/// How an [`Endpoint`] became known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointSource {
    /// The operator set it.
    Configured,
    /// The node reported an address of its own interfaces.
    Reported,
    /// The address from which the controller saw the node come (behind a NAT, the NAT's).
    Observed,
}

impl NodeView {
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

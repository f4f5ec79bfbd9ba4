//! The rows that the store keeps and the changes to rows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use edge_types::name::{NameError, communities_of_labels};
use edge_types::{AddressSource, Communities, Community, CommunityTunnels, IpNetwork, NodeAddress, NodeName, Role};
use serde::{Deserialize, Serialize};

use crate::clock::Seconds;
use crate::segments::SegmentRecord;

/// Maximum number of edges that a hub may lack one by one. If there are more, cloud nodes route all
/// packets through another hub. Each edge is a route on each cloud node, and the list is part of
/// each cloud node's view.
pub const MOST_UNREACHED_EDGES: usize = 64;
/// Maximum number of edges that are recorded for one hub. It is twice [`MOST_UNREACHED_EDGES`], so
/// that cloud nodes return to routes to single edges only when many of them reach the hub again,
/// and not for one that comes and goes.
pub const MOST_RECORDED_EDGES: usize = 2 * MOST_UNREACHED_EDGES;

/// The row of a registered node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Name of the node, the key of the row.
    pub name: NodeName,
    /// The node's role, from the token with which it joined.
    pub role: Role,
    /// Labels that the operator set.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Communities that these labels name.
    #[serde(default)]
    pub communities: Communities,
    /// Data from its Kubernetes Node object; `None` until a Node of this name was seen.
    #[serde(default)]
    pub object: Option<NodeObject>,
    /// Addresses that the node reported, the most likely first.
    #[serde(default)]
    pub reported: Vec<IpAddr>,
    /// The node's UDP port for IKE; 0 before its first report.
    #[serde(default)]
    pub port: u16,
    /// Source address of the node's last report, as the controller saw it.
    #[serde(default)]
    pub observed: Option<IpAddr>,
    /// Addresses and ports from which the node's datagrams come to the hubs, as the node reported.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mapped: Vec<SocketAddr>,
    /// TCP port on which the node takes IKE and ESP, as it reported. Only that of a hub counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_port: Option<u16>,
    /// The hubs to which an edge has no tunnel, while it has one to another hub, as it reported.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unreached_hubs: BTreeSet<NodeName>,
    /// Certificates that the controller accepts from the node: the newest one, and the one with
    /// which the node requested it.
    #[serde(default)]
    pub certificates: Vec<Certificate>,
    /// `notBefore` of the certificate from the node's last join. Peers refuse certificates with an
    /// earlier `notBefore`.
    #[serde(default)]
    pub certificates_from: Seconds,
    /// Time at which the node was registered, seconds since 1970-01-01 UTC.
    pub joined_at: Seconds,
    /// Id of the join token of the last join; `None` if the node joined without one, or if an
    /// earlier release wrote the row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join_token: Option<String>,
    /// Time of the restore after which the node reported its segments; `None` if the node has not
    /// reported since a restore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reported_since_restore: Option<Seconds>,
}

/// Data that the controller takes from a Kubernetes Node object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NodeObject {
    /// `metadata.uid`. A Node with another UID under the same name is another node.
    pub uid: String,
    /// `status.nodeInfo.machineID`. A Node with another UID but the same machine ID is the same
    /// machine. Empty if unknown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub machine_id: String,
    /// Communities that the Node's labels name. These communities apply only if node labels are
    /// trusted.
    #[serde(default)]
    pub communities: Communities,
    /// Communities that a restricted label names. No kubelet can set that label, so these
    /// communities always apply.
    #[serde(default)]
    pub restricted_communities: Communities,
    /// Addresses at which the node can be reached from other networks, as given in the annotation.
    #[serde(default)]
    pub public_addresses: Vec<PublicAddress>,
    /// Networks of the pods on the node (`spec.podCIDRs`), at most one for each family. Read only
    /// for hubs; [`crate::views::ViewBuilder`] decides which of them count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pod_networks: Vec<IpNetwork>,
}

/// An address that the operator sets for a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PublicAddress {
    /// IPv4 or IPv6 address.
    pub ip: IpAddr,
    /// UDP port; `None` means the node's own port.
    #[serde(default)]
    pub port: Option<u16>,
}

impl std::fmt::Display for PublicAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.ip, port).fmt(f),
            None => self.ip.fmt(f),
        }
    }
}

impl std::str::FromStr for PublicAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let at = |ip: IpAddr, port| Ok(Self { ip: ip.to_canonical(), port });
        match (text.parse::<IpAddr>(), text.parse::<SocketAddr>()) {
            (Ok(ip), _) => at(ip, None),
            (_, Ok(address)) if address.port() != 0 => at(address.ip(), Some(address.port())),
            _ => Err(format!("{text:?} is neither ADDRESS, IPV4:PORT nor [IPV6]:PORT")),
        }
    }
}

/// A community whose members the operator lists, in addition to those that labels make members.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CommunityRecord {
    /// Name of the community, the key of the row.
    pub name: Community,
    /// The members of the community. They need not be registered yet.
    #[serde(default)]
    pub members: BTreeSet<NodeName>,
    /// When tunnels between all members are set up, also between those that labels make members.
    #[serde(default, skip_serializing_if = "CommunityTunnels::is_auto")]
    pub tunnels: CommunityTunnels,
}

impl CommunityRecord {
    /// Makes the record of a community whose members decide when tunnels are set up.
    pub fn new(name: Community, members: BTreeSet<NodeName>) -> Self {
        Self { name, members, tunnels: CommunityTunnels::Auto }
    }
}

/// A certificate that the controller accepts from a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Certificate {
    /// Serial number, hexadecimal.
    pub serial: String,
    /// SHA-256 of the certificate's key (DER SubjectPublicKeyInfo), hexadecimal.
    pub key: String,
    /// `notAfter`, seconds since 1970-01-01 UTC.
    pub not_after: Seconds,
    /// `notBefore`; 0 if an earlier release did not record it.
    #[serde(default)]
    pub not_before: Seconds,
    /// SHA-256 of the issuer's key, hexadecimal; empty if an earlier release did not record it.
    #[serde(default)]
    pub issuer: String,
    /// Whether the node has used this certificate. If so, the previous certificate is not needed
    /// any more.
    #[serde(default)]
    pub used: bool,
}

/// A join token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Public name of the token, in lists and messages.
    pub id: String,
    /// SHA-256 of the token's secret, hexadecimal. The secret has 256 random bits, so it cannot be
    /// guessed from a plain hash.
    pub secret_hash: String,
    /// Role of the nodes that join with this token.
    pub role: Role,
    /// The only node that may join with this token; `None` if any node may.
    #[serde(default)]
    pub node: Option<NodeName>,
    /// Number of nodes that may still join with this token; joins in `redemptions` are not
    /// subtracted. The store calls it `uses`, because earlier releases enforce the limit under this
    /// name.
    #[serde(rename = "uses")]
    pub uses_left: u32,
    /// Number of nodes that could join with this token when it was created. 0 if an earlier release
    /// wrote the row: in that case `uses_left` counts.
    #[serde(default)]
    pub created_uses: u32,
    /// Time at which the token was created, seconds since 1970-01-01 UTC.
    pub created_at: Seconds,
    /// Time from which the token is refused.
    pub expires_at: Seconds,
    /// SHA-256 of the key of the authority that the token pins, hexadecimal; empty if an earlier
    /// release did not record it.
    #[serde(default)]
    pub authority: String,
    /// Joins that an earlier release wrote. The row of the node now names the token of its join
    /// ([`NodeRecord::join_token`]), so that this row does not grow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub redemptions: Vec<Redemption>,
}

impl TokenRecord {
    /// Returns how many nodes may join with this token in total.
    pub fn uses(&self) -> u32 {
        if self.created_uses == 0 { self.uses_left } else { self.created_uses }
    }

    /// Returns how many times the token was used.
    pub fn used(&self) -> u32 {
        let noted = u32::try_from(self.redemptions.len()).unwrap_or(u32::MAX);
        self.uses().saturating_sub(self.uses_left).saturating_add(noted)
    }

    /// Sets how many times the token was used. The joins that an earlier release wrote are not
    /// kept.
    pub fn set_used(&mut self, used: u32) {
        self.created_uses = self.uses();
        self.uses_left = self.created_uses.saturating_sub(used);
        self.redemptions = Vec::new();
    }
}

/// One join with a token, in rows of earlier releases.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Redemption {
    /// The node that joined.
    pub node: NodeName,
    /// The node's key, as [`Certificate::key`]. A node that did not receive the response repeats
    /// its request with the same key. The repetition does not count as another use.
    pub key: String,
}

/// Everything that the store holds.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// All registered nodes.
    pub nodes: Vec<NodeRecord>,
    /// All join tokens.
    pub tokens: Vec<TokenRecord>,
    /// All segments, held and released.
    pub segments: Vec<SegmentRecord>,
    /// Communities with listed members.
    pub communities: Vec<CommunityRecord>,
    /// Number of the last commit, from which the versions of views are derived.
    pub revision: u64,
    /// The latest time that the store has recorded.
    pub time: Seconds,
}

/// A change of one row.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[expect(clippy::large_enum_variant, reason = "changes are few at a time, and most are of nodes")]
pub enum Change {
    /// Writes a node.
    PutNode(NodeRecord),
    /// Removes a node.
    DeleteNode(NodeName),
    /// Writes a token.
    PutToken(TokenRecord),
    /// Removes a token.
    DeleteToken(String),
    /// Grants a segment. The store refuses it if another node holds the segment.
    GrantSegment(SegmentRecord),
    /// Writes the row of a segment.
    PutSegment(SegmentRecord),
    /// Removes the row of a segment.
    DeleteSegment(IpNetwork),
    /// Writes the listed members of a community.
    PutCommunity(CommunityRecord),
    /// Removes the list of a community. Labels may still name it.
    DeleteCommunity(Community),
}

/// Identifier of the row that a [`Change`] writes or removes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RowKey {
    /// The name of a node.
    Node(NodeName),
    /// The id of a token.
    Token(String),
    /// The network of a segment.
    Segment(IpNetwork),
    /// The name of a community.
    Community(Community),
}

impl std::fmt::Display for RowKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RowKey::Node(name) => write!(f, "node {name}"),
            RowKey::Token(id) => write!(f, "token {id}"),
            RowKey::Segment(network) => write!(f, "segment {network}"),
            RowKey::Community(name) => write!(f, "community {name}"),
        }
    }
}

impl Change {
    /// Returns the segment that the change grants; `None` if it grants none.
    pub fn granted(&self) -> Option<IpNetwork> {
        match self {
            Change::GrantSegment(row) => Some(row.network),
            _ => None,
        }
    }

    /// Returns the row that the change writes or removes.
    pub fn key(&self) -> RowKey {
        match self {
            Change::PutNode(node) => RowKey::Node(node.name.clone()),
            Change::DeleteNode(name) => RowKey::Node(name.clone()),
            Change::PutToken(token) => RowKey::Token(token.id.clone()),
            Change::DeleteToken(id) => RowKey::Token(id.clone()),
            Change::GrantSegment(row) | Change::PutSegment(row) => RowKey::Segment(row.network),
            Change::DeleteSegment(network) => RowKey::Segment(*network),
            Change::PutCommunity(community) => RowKey::Community(community.name.clone()),
            Change::DeleteCommunity(name) => RowKey::Community(name.clone()),
        }
    }
}

impl NodeRecord {
    /// Returns the time until which the node's latest certificate is accepted: `grace` seconds
    /// after its end. `None` if the node has no certificate.
    pub fn accepted_until(&self, grace: Seconds) -> Option<Seconds> {
        self.certificates.iter().map(|certificate| certificate.not_after.saturating_add(grace)).max()
    }

    /// Makes the record of a node that has just joined.
    pub fn new(name: NodeName, role: Role, joined_at: Seconds) -> Self {
        Self {
            name,
            role,
            labels: BTreeMap::new(),
            communities: Communities::new(),
            object: None,
            reported: Vec::new(),
            port: 0,
            observed: None,
            mapped: Vec::new(),
            tcp_port: None,
            unreached_hubs: BTreeSet::new(),
            certificates: Vec::new(),
            certificates_from: 0,
            joined_at,
            join_token: None,
            reported_since_restore: None,
        }
    }

    /// Sets the labels, and the communities that the labels name.
    pub fn set_labels(&mut self, labels: BTreeMap<String, String>) -> Result<(), NameError> {
        self.communities = communities_of_labels(labels.iter().map(|(k, v)| (k.as_str(), v.as_str())))?;
        self.labels = labels;
        Ok(())
    }

    /// Returns whether the views of peers show this node in the same way as `other`.
    pub fn looks_like(&self, other: &Self) -> bool {
        self.role == other.role
            && self.certificates_from == other.certificates_from
            && self.endpoints() == other.endpoints()
            && self.mapped == other.mapped
            && self.tcp_port == other.tcp_port
            && self.pod_networks() == other.pod_networks()
    }

    /// Returns the networks of the pods on a hub, as its Node object names them. Empty for a node
    /// of another role, whatever its Node object says.
    pub fn pod_networks(&self) -> &[IpNetwork] {
        let object = self.object.as_ref().filter(|_| self.role == Role::Hub);
        object.map_or(&[], |object| &object.pod_networks)
    }

    /// Returns the hubs through which an edge is not reached. Empty for a node of another role.
    pub fn unreached_hubs(&self) -> impl Iterator<Item = &NodeName> {
        self.unreached_hubs.iter().filter(|_| self.role == Role::Edge)
    }

    /// Keeps the networks of the pods on a hub that `before` has, if this record has none and
    /// belongs to the same Node object. Nobody can remove them from a Node, so the record was
    /// written by a replica of an earlier release, or the API server dropped them, because the
    /// definition (CRD) is that of an earlier release.
    pub(crate) fn keep_pod_networks(&mut self, before: &Self) {
        if self.role != Role::Hub {
            return;
        }
        if let (Some(now), Some(before)) = (&mut self.object, &before.object)
            && now.uid == before.uid
            && now.pod_networks.is_empty()
        {
            now.pod_networks.clone_from(&before.pod_networks);
        }
    }

    /// Returns the order in which hubs have the networks of their pods, lowest first: the hub that
    /// joined first, and of hubs that joined in the same second the first by name.
    pub fn seniority(&self) -> (Seconds, &NodeName) {
        (self.joined_at, &self.name)
    }

    /// Returns whether this is one of the node's addresses: reported, observed or set by the
    /// operator.
    pub fn is_at(&self, address: &IpAddr) -> bool {
        let public = self.object.iter().flat_map(|object| &object.public_addresses).map(|at| &at.ip);
        self.reported.iter().chain(&self.observed).chain(public).any(|ip| ip == address)
    }

    /// Returns the addresses at which peers may find the node: those that the operator sets, those
    /// that the node reported, then the address at which the controller saw the node. Empty before
    /// the node's first report, because the node's port is unknown.
    pub fn endpoints(&self) -> Vec<NodeAddress> {
        if self.port == 0 {
            return Vec::new();
        }
        let public = self.object.iter().flat_map(|object| &object.public_addresses);
        let public = public.map(|at| (SocketAddr::new(at.ip, at.port.unwrap_or(self.port)), AddressSource::Configured));
        let at = |source| move |ip: &IpAddr| (SocketAddr::new(*ip, self.port), source);
        let all = public
            .chain(self.reported.iter().map(at(AddressSource::Reported)))
            .chain(self.observed.iter().map(at(AddressSource::Observed)));
        let mut endpoints: Vec<NodeAddress> = Vec::new();
        for (address, source) in all {
            if !endpoints.iter().any(|known| known.address == address) {
                endpoints.push(NodeAddress { address, source });
            }
        }
        endpoints
    }
}

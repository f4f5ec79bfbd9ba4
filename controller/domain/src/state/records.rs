//! The rows that the store keeps, and how they change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use edge_types::name::{NameError, communities_of_labels};
use edge_types::{Communities, Community, Endpoint, EndpointSource, IpNetwork, NodeName, Role};
use serde::{Deserialize, Serialize};

use crate::clock::Seconds;
use crate::segments::Row;

/// A registered node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its name.
    pub name: NodeName,
    /// Its role, from the token with which it joined.
    pub role: Role,
    /// Labels that the operator set.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Communities that follow from the labels.
    #[serde(default)]
    pub communities: Communities,
    /// What Kubernetes says of the node of this name; `None` until it was seen there.
    #[serde(default)]
    pub object: Option<NodeObject>,
    /// Addresses that it reported, likeliest first.
    #[serde(default)]
    pub reported: Vec<IpAddr>,
    /// Its UDP port.
    #[serde(default)]
    pub port: u16,
    /// The address from which its last report came.
    #[serde(default)]
    pub observed: Option<IpAddr>,
    /// Certificates with which it may call: the newest, and the one with which that was asked for.
    #[serde(default)]
    pub certificates: Vec<Certificate>,
    /// Beginning of the first certificate that it got when it joined last: peers refuse those that
    /// begin earlier.
    #[serde(default)]
    pub certificates_from: Seconds,
    /// When it was registered.
    pub joined_at: Seconds,
    /// Time of the latest restore after which it has reported which segments it uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reported_since_restore: Option<Seconds>,
}

/// What the controller takes from a Kubernetes Node object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NodeObject {
    /// `metadata.uid`: another one under the same name is another node.
    pub uid: String,
    /// `status.nodeInfo.machineID`: a Node of another UID with the same one is the same machine.
    /// Empty where it is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub machine_id: String,
    /// Communities that its labels name, as far as those count.
    #[serde(default)]
    pub communities: Communities,
    /// Communities that a label names which no kubelet sets: they always count.
    #[serde(default)]
    pub restricted_communities: Communities,
    /// Addresses at which it is reached from outside, from its annotation.
    #[serde(default)]
    pub public_addresses: Vec<PublicAddress>,
}

/// An address that the operator gives for a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PublicAddress {
    /// The address.
    pub ip: IpAddr,
    /// The UDP port; the node's own where none is given.
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

/// A community whose members the operator lists, independent of labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CommunityRecord {
    /// Its name.
    pub name: Community,
    /// Nodes that belong to it; they need not be registered yet.
    #[serde(default)]
    pub members: BTreeSet<NodeName>,
}

/// An accepted certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Certificate {
    /// Serial number, hexadecimal.
    pub serial: String,
    /// SHA-256 of its key (DER SubjectPublicKeyInfo), hexadecimal.
    pub key: String,
    /// Its end.
    pub not_after: Seconds,
    /// Its beginning; 0 where an earlier release did not note it.
    #[serde(default)]
    pub not_before: Seconds,
    /// Hash of its issuer's key, hexadecimal; empty where an earlier release did not note it.
    #[serde(default)]
    pub issuer: String,
    /// The node has called with it: the one before it is not needed any more.
    #[serde(default)]
    pub used: bool,
}

/// A join token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Names it in lists.
    pub id: String,
    /// SHA-256 of its secret, hexadecimal. The secret has 256 random bits, so a plain hash cannot
    /// be searched.
    pub secret_hash: String,
    /// Role of the nodes that join with it.
    pub role: Role,
    /// The only name that may join with it.
    #[serde(default)]
    pub node: Option<NodeName>,
    /// How many nodes may join with it.
    pub uses: u32,
    /// When it was made.
    pub created_at: Seconds,
    /// From when on it is refused.
    pub expires_at: Seconds,
    /// Hash of the authority's key that it pins, hexadecimal; empty where an earlier release did
    /// not note it.
    #[serde(default)]
    pub authority: String,
    /// Who joined with it.
    #[serde(default)]
    pub redemptions: Vec<Redemption>,
}

/// One use of a token.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Redemption {
    /// The node that joined.
    pub node: NodeName,
    /// Its key, as [`Certificate::key`]: whose answer got lost asks again with the same key, and
    /// that is not another use.
    pub key: String,
}

/// Everything that the store holds.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Nodes.
    pub nodes: Vec<NodeRecord>,
    /// Tokens.
    pub tokens: Vec<TokenRecord>,
    /// Segments.
    pub segments: Vec<Row>,
    /// Communities with listed members.
    pub communities: Vec<CommunityRecord>,
    /// Number of the last commit; the versions of views come from it.
    pub revision: u64,
    /// Latest time that was ever seen.
    pub time: Seconds,
}

/// One change of one row.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Change {
    /// Writes a node.
    PutNode(NodeRecord),
    /// Removes a node.
    DeleteNode(NodeName),
    /// Writes a token.
    PutToken(TokenRecord),
    /// Removes a token.
    DeleteToken(String),
    /// Grants a segment: the store refuses it if another holds it.
    ClaimSegment(Row),
    /// Writes a segment's row.
    PutSegment(Row),
    /// Removes a segment's row.
    DeleteSegment(IpNetwork),
    /// Writes a community's members.
    PutCommunity(CommunityRecord),
    /// Removes a community; labels may still name it.
    DeleteCommunity(Community),
}

/// Which row a [`Change`] is of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A node's.
    Node(NodeName),
    /// A token's.
    Token(String),
    /// A segment's.
    Segment(IpNetwork),
    /// A community's.
    Community(Community),
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Key::Node(name) => write!(f, "node {name}"),
            Key::Token(id) => write!(f, "token {id}"),
            Key::Segment(network) => write!(f, "segment {network}"),
            Key::Community(name) => write!(f, "community {name}"),
        }
    }
}

impl Change {
    /// The segment that it grants.
    pub fn claimed(&self) -> Option<IpNetwork> {
        match self {
            Change::ClaimSegment(row) => Some(row.network),
            _ => None,
        }
    }

    /// The row that it changes.
    pub fn key(&self) -> Key {
        match self {
            Change::PutNode(node) => Key::Node(node.name.clone()),
            Change::DeleteNode(name) => Key::Node(name.clone()),
            Change::PutToken(token) => Key::Token(token.id.clone()),
            Change::DeleteToken(id) => Key::Token(id.clone()),
            Change::ClaimSegment(row) | Change::PutSegment(row) => Key::Segment(row.network),
            Change::DeleteSegment(network) => Key::Segment(*network),
            Change::PutCommunity(community) => Key::Community(community.name.clone()),
            Change::DeleteCommunity(name) => Key::Community(name.clone()),
        }
    }
}

impl NodeRecord {
    /// A node that has just joined.
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
            certificates: Vec::new(),
            certificates_from: 0,
            joined_at,
            reported_since_restore: None,
        }
    }

    /// Sets the labels and what follows from them.
    pub fn set_labels(&mut self, labels: BTreeMap<String, String>) -> Result<(), NameError> {
        self.communities = communities_of_labels(labels.iter().map(|(k, v)| (k.as_str(), v.as_str())))?;
        self.labels = labels;
        Ok(())
    }

    /// Whether its peers see it as they see `other`.
    pub fn looks_like(&self, other: &Self) -> bool {
        self.role == other.role
            && self.certificates_from == other.certificates_from
            && self.endpoints() == other.endpoints()
    }

    /// Whether it says of itself that it is at this address, or was seen there.
    pub fn is_at(&self, address: &IpAddr) -> bool {
        let public = self.object.iter().flat_map(|object| &object.public_addresses).map(|at| &at.ip);
        self.reported.iter().chain(&self.observed).chain(public).any(|ip| ip == address)
    }

    /// Where it may be found: what the operator says, what it reported, then where it was seen.
    /// Nothing before its first report, since its port is not known.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        if self.port == 0 {
            return Vec::new();
        }
        let public = self.object.iter().flat_map(|object| &object.public_addresses);
        let public =
            public.map(|at| (SocketAddr::new(at.ip, at.port.unwrap_or(self.port)), EndpointSource::Configured));
        let at = |source| move |ip: &IpAddr| (SocketAddr::new(*ip, self.port), source);
        let all = public
            .chain(self.reported.iter().map(at(EndpointSource::Reported)))
            .chain(self.observed.iter().map(at(EndpointSource::Observed)));
        let mut endpoints: Vec<Endpoint> = Vec::new();
        for (address, source) in all {
            if !endpoints.iter().any(|known| known.address == address) {
                endpoints.push(Endpoint { address, source });
            }
        }
        endpoints
    }
}

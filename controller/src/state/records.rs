//! The rows that the store keeps, and how they change.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use edge_types::name::{NameError, communities_of_labels};
use edge_types::{Communities, Endpoint, EndpointSource, IpNetwork, NodeName, Role};
use serde::{Deserialize, Serialize};

use crate::clock::Seconds;
use crate::segments::Row;

/// A registered node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// When it was registered.
    pub joined_at: Seconds,
}

/// An accepted certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Serial number, hexadecimal.
    pub serial: String,
    /// SHA-256 of its key (DER SubjectPublicKeyInfo), hexadecimal.
    pub key: String,
    /// Its end.
    pub not_after: Seconds,
}

/// A join token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Names it in lists.
    pub id: String,
    /// SHA-256 of its secret, hexadecimal. The secret has 256 random bits, so a plain hash cannot be searched.
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
    /// Who joined with it.
    #[serde(default)]
    pub redemptions: Vec<Redemption>,
}

/// One use of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redemption {
    /// The node that joined.
    pub node: NodeName,
    /// Its key, as [`Certificate::key`]: whose answer got lost asks again with the same key, and that is not another use.
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
    /// Number of the last commit; the versions of views come from it.
    pub revision: u64,
    /// Latest time that was ever seen.
    pub time: Seconds,
}

/// One change of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
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
}

impl NodeRecord {
    /// A node that has just joined.
    pub fn new(name: NodeName, role: Role, joined_at: Seconds) -> Self {
        Self {
            name,
            role,
            labels: BTreeMap::new(),
            communities: Communities::new(),
            reported: Vec::new(),
            port: 0,
            observed: None,
            certificates: Vec::new(),
            joined_at,
        }
    }

    /// Sets the labels and what follows from them.
    pub fn set_labels(&mut self, labels: BTreeMap<String, String>) -> Result<(), NameError> {
        self.communities = communities_of_labels(labels.iter().map(|(k, v)| (k.as_str(), v.as_str())))?;
        self.labels = labels;
        Ok(())
    }

    /// Where it may be found: what it reported, then where it was seen.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        let at = |ip: &IpAddr, source| Endpoint { address: SocketAddr::new(*ip, self.port), source };
        let mut endpoints: Vec<Endpoint> = self.reported.iter().map(|ip| at(ip, EndpointSource::Reported)).collect();
        if let Some(ip) = self.observed.filter(|ip| !self.reported.contains(ip)) {
            endpoints.push(at(&ip, EndpointSource::Observed));
        }
        endpoints
    }
}

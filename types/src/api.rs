//! Bodies of the controller's HTTP API. Errors are RFC 9457 problem documents ([`Problem`]).

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::name::{Communities, NodeName};
use crate::view::{NodeView, Role, SharedPeer, ViewChange};

/// Media type of [`Problem`].
pub const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";

/// `POST /v1/join`: a node's first request, over TLS that is authenticated by the CA's hash in the
/// token.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct JoinRequest {
    /// [`crate::JoinToken::credential`]: the token's id and secret. Empty if
    /// `service_account_token` is set.
    #[serde(default)]
    pub token: String,
    /// Instead of a join token: a Kubernetes service account token that is bound to the node's own
    /// pod, for the audience `edge-cni`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account_token: Option<String>,
    /// The name that the node asks for.
    pub node: NodeName,
    /// PKCS#10 request, PEM, self-signed with a key that was made on the node.
    pub csr: String,
}

impl std::fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinRequest").field("token", &"<secret>").field("node", &self.node).finish_non_exhaustive()
    }
}

/// Response to a join and to a renewal.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CertificateResponse {
    /// The node's name in the certificate.
    pub node: NodeName,
    /// The node's role in the certificate.
    pub role: Role,
    /// The node's certificate and any intermediates, PEM, leaf first.
    pub certificate: String,
    /// Trust anchors, PEM. The first one belongs to the authority that signs now.
    pub trust_anchors: Vec<String>,
}

/// `POST /v1/nodes/{node}/certificate`: renewal, over mutual TLS with the present certificate.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "CertificateRequest"))]
pub struct RenewalRequest {
    /// PKCS#10 request, PEM.
    pub csr: String,
}

/// `PUT /v1/nodes/{node}`: what a node reports about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeReport {
    /// Addresses of the node's uplinks, likeliest first. The controller passes on the first few
    /// that a peer may use, and adds the one from which the report came.
    pub addresses: Vec<IpAddr>,
    /// UDP port of the node's IKE and ESP in UDP.
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub port: u16,
    /// Its tunnels, for the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnels: Option<TunnelCount>,
    /// Why the latest view is not in force on the node, if it is not. For example, it would cut the
    /// node off from its own network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_view: Option<String>,
    /// Segments that it uses, according to its disk; empty if it uses none. The controller grants
    /// them to no other node, even if a restored backup does not know them. Absent if the node
    /// cannot read its disk: then this report does not count as one of its segments. Earlier agents
    /// leave it out as well if they use none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<Vec<String>>"))]
    pub segments: Option<Vec<IpNetwork>>,
    /// Release of the node's agent, at most [`LONGEST_VERSION`] characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Obstacles that prevent the pods' packets from arriving, one sentence each. The controller
    /// keeps the first [`MOST_OBSTACLES`], each cut to [`LONGEST_OBSTACLE`] characters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub obstacles: Vec<String>,
}

/// Maximum length of an agent's version in [`NodeReport`], characters.
pub const LONGEST_VERSION: usize = 64;
/// Maximum number of obstacles in [`NodeReport`]. The controller drops further ones.
pub const MOST_OBSTACLES: usize = 8;
/// Maximum length of an obstacle in [`NodeReport`], characters. Longer ones are cut.
pub const LONGEST_OBSTACLE: usize = 300;

/// The state of a node's tunnels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TunnelCount {
    /// How many are up.
    pub up: u32,
    /// How many there should be.
    pub wanted: u32,
}

/// `POST /v1/nodes/{node}/segments`: a request for one segment of each family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SegmentRequest {
    /// The node chooses it and keeps it on disk until it has the response. A retry with the same id
    /// gets the same segments.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 128)))]
    pub request_id: String,
    /// Families wanted.
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    pub families: Vec<Family>,
    /// Whether it may have been sent before, so that a controller may have granted it already.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub repeated: bool,
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Family {
    /// IPv4.
    #[serde(rename = "ipv4")]
    V4,
    /// IPv6.
    #[serde(rename = "ipv6")]
    V6,
}

impl Family {
    /// The family of a network.
    pub fn of(network: &IpNetwork) -> Self {
        if network.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

/// Answer to [`SegmentRequest`] and to `GET /v1/nodes/{node}/segments`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SegmentResponse {
    /// On POST the segments granted by this request; on GET all that the node holds.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub segments: Vec<IpNetwork>,
}

/// Time without a line on the view stream after which a node treats the connection as lost and
/// connects again, seconds. Heartbeats come more often.
pub const VIEW_SILENCE_SECONDS: u64 = 20;

/// One line of the stream `GET /v1/nodes/{node}/view?watch=true` (NDJSON). Without `watch` the
/// response is one [`NodeView`].
///
/// With `changes=true` a whole view comes at most once, and then only changes; otherwise every line
/// is a whole view. With `from=VERSION` no older view comes. If the `epoch` that came with that
/// version is given too, only what changed since comes, if the controller remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum ViewEvent<P = SharedPeer> {
    /// The whole view.
    View {
        /// Identifies the run of the controller that remembers changes from now on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        epoch: Option<String>,
        /// The view.
        view: Box<NodeView<P>>,
    },
    /// The changes since the last line that was not a heartbeat, or since `from`.
    Change(ViewChange<P>),
    /// Nothing has changed, and the connection works. Sent every few seconds.
    Heartbeat {
        /// Version of the view that was sent last on this stream; 0 if none was.
        version: u64,
    },
    /// The last line of a stream that ends because its controller stops. A node that understands it
    /// connects to another controller at once; for other nodes the stream has ended.
    Goodbye {
        /// The reason, for logs.
        reason: String,
    },
}

/// A row of `GET /v1/nodes`, for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeInfo {
    /// Its name.
    pub name: NodeName,
    /// Its role.
    pub role: Role,
    /// All labels that the operator or Kubernetes has set.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Communities that follow from the labels.
    pub communities: Communities,
    /// Segments that it holds.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub segments: Vec<IpNetwork>,
    /// Addresses that it reported, and the one from which it was seen.
    pub endpoints: Vec<crate::view::NodeAddress>,
    /// Whether its view stream is open now, at this controller or at another replica.
    pub connected: bool,
    /// The replica to which it is connected, if several share a store and it is not this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<String>,
    /// Its tunnels, as it last reported them.
    #[serde(default)]
    pub tunnels: Option<TunnelCount>,
    /// What it reports to hold and does not hold, in words.
    #[serde(default)]
    pub conflicts: Vec<String>,
    /// Whether its Node object in Kubernetes is gone together with so many others that this is not
    /// believed. Only the operator can deregister it then.
    #[serde(default)]
    pub missing: bool,
    /// Why its view is not in force on the node, as it last reported to this controller. Other
    /// replicas have it among the obstacles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_view: Option<String>,
    /// Release of its agent, as it last reported it.
    #[serde(default)]
    pub version: Option<String>,
    /// What keeps its pods' packets from arriving, as it last reported it.
    #[serde(default)]
    pub obstacles: Vec<String>,
    /// When a controller last had a connection of it, seconds since 1970-01-01 UTC: now while it is
    /// connected. Absent if that is not known: the controller was restarted since, or the node
    /// never connected.
    #[serde(default)]
    pub last_seen: Option<i64>,
    /// notAfter of its certificate, seconds since 1970-01-01 UTC.
    pub certificate_not_after: i64,
    /// Whether less than a third of the validity of its certificate is left. Nodes renew at half of
    /// it.
    #[serde(default)]
    pub certificate_ends_soon: bool,
}

/// Response to `GET /v1/status`, for the operator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ControllerStatus {
    /// Release of this controller.
    pub version: String,
    /// The time of the controller, seconds since 1970-01-01 UTC.
    pub time: i64,
    /// All registered nodes. What other replicas know of them may be some seconds old.
    pub nodes: Vec<NodeInfo>,
    /// All communities.
    pub communities: Vec<CommunityInfo>,
    /// The ranges of segments.
    pub ranges: Vec<RangeUsage>,
    /// notAfter of the certificate of the authority that signs, seconds since 1970-01-01 UTC.
    pub authority_not_after: i64,
    /// What the operator should look at besides the nodes, in words.
    pub problems: Vec<String>,
}

/// How much of a range is granted. Numbers beyond the largest one of 64 bits are that one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RangeUsage {
    /// The range.
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub range: IpNetwork,
    /// Prefix length of the segments that are granted from it.
    pub prefix: u8,
    /// How many such segments fit into it.
    pub segments: u64,
    /// How many of them can be granted now.
    pub free: u64,
    /// Segments in it that nodes hold.
    pub held: u64,
    /// Segments in it that were released and are in quarantine.
    pub quarantined: u64,
}

/// `PATCH /v1/nodes/{node}/labels`, for the operator: a JSON merge patch (RFC 7396); `null` removes
/// a label.
pub type LabelsPatch = std::collections::BTreeMap<String, Option<String>>;

/// `POST /v1/tokens`, for the operator. Unknown keys are refused: a misspelt limit would not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// Role of the nodes that join with it.
    pub role: Role,
    /// The only name that may join with it. This may also be the name of a registered node.
    #[serde(default)]
    pub node: Option<NodeName>,
    /// Seconds until it expires.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 31_622_400)))]
    pub ttl_seconds: u64,
    /// How many nodes may join with it.
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub uses: u32,
}

/// Response to [`TokenRequest`]. The token is shown only here.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TokenCreated {
    /// The text of the token ([`crate::token`]).
    pub token: String,
    /// What the controller stores.
    #[serde(flatten)]
    pub info: TokenInfo,
}

impl std::fmt::Debug for TokenCreated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenCreated").field("token", &"<secret>").field("info", &self.info).finish()
    }
}

/// A row of `GET /v1/tokens`, for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TokenInfo {
    /// Its identifier.
    pub id: String,
    /// Role of the nodes that join with it.
    pub role: Role,
    /// The only name that may join with it.
    pub node: Option<NodeName>,
    /// How many nodes may join with it.
    pub uses: u32,
    /// How many nodes joined with it.
    #[serde(default)]
    pub used: u32,
    /// The nodes that joined with it, as far as they are registered and have not joined again with
    /// another one.
    pub used_by: Vec<NodeName>,
    /// When it was made, seconds since 1970-01-01 UTC.
    pub created_at: i64,
    /// When it expires, seconds since 1970-01-01 UTC.
    pub expires_at: i64,
}

/// A row of `GET /v1/segments`, for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SegmentInfo {
    /// The segment.
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub segment: IpNetwork,
    /// The node that holds it, or held it last.
    pub node: NodeName,
    /// Whether it is held, in quarantine, or free to be granted again.
    pub state: SegmentState,
    /// When it was granted, seconds since 1970-01-01 UTC.
    pub granted_at: i64,
    /// When it was released, seconds since 1970-01-01 UTC.
    #[serde(default)]
    pub released_at: Option<i64>,
    /// End of its quarantine, seconds since 1970-01-01 UTC.
    pub quarantined_until: Option<i64>,
    /// The nodes that held it before, the latest first. The oldest are forgotten.
    #[serde(default)]
    pub past: Vec<SegmentHolding>,
}

/// A former grant of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SegmentHolding {
    /// The node that held it.
    pub node: NodeName,
    /// When it was granted, seconds since 1970-01-01 UTC.
    pub granted_at: i64,
    /// When it was released, seconds since 1970-01-01 UTC.
    pub released_at: i64,
}

/// The state of a segment that was granted at least once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum SegmentState {
    /// A node holds it.
    Held,
    /// Released, and not granted until its quarantine is over.
    Quarantined,
    /// Released, and next to be granted.
    Free,
}

/// `PUT /v1/communities/{name}`, for the operator: the members of the community besides the nodes
/// whose labels name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CommunityMembers {
    /// Nodes; they need not be registered yet. One that is named twice counts once.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<NodeName>"))]
    pub members: std::collections::BTreeSet<NodeName>,
}

/// A row of `GET /v1/communities`, for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CommunityInfo {
    /// Its name.
    pub name: crate::name::Community,
    /// Its members.
    pub members: Vec<NodeName>,
}

/// A row of `GET /v1/ca`, and the answer to `POST /v1/ca/rollover` and `DELETE /v1/ca/{id}`, for
/// the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AuthorityInfo {
    /// SHA-256 of its DER SubjectPublicKeyInfo, hexadecimal. It identifies the authority, and join
    /// tokens pin it.
    pub id: String,
    /// The subject of its certificate.
    pub subject: String,
    /// Whether it signs, is trusted, or neither.
    pub state: AuthorityState,
    /// When it started to sign, seconds since 1970-01-01 UTC.
    pub created_at: i64,
    /// When it was retired, seconds since 1970-01-01 UTC.
    pub retired_at: Option<i64>,
    /// notAfter of its certificate, seconds since 1970-01-01 UTC.
    pub not_after: i64,
    /// Of an authority that is trusted and does not sign: registered nodes that would be lost
    /// without it. Each has a valid certificate of this authority and has used none of another one.
    pub needed_by: Vec<NodeName>,
    /// Of such an authority: join tokens that may still be used and pin it.
    pub pinned_by: Vec<String>,
    /// Its certificate, PEM.
    pub certificate: String,
}

/// What an authority is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum AuthorityState {
    /// It signs.
    Active,
    /// It does not sign, but its certificates are accepted.
    Trusted,
    /// It is neither used nor trusted.
    Retired,
}

/// Answer to `POST /v1/reload`, for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ReloadResponse {
    /// Keys of the configuration that have changed and are now in force.
    pub changed: Vec<String>,
}

/// RFC 9457 problem document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[error("{title}: {detail}")]
pub struct Problem {
    /// What kind of problem, as a URI reference, e.g. `/problems/token-expired`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in words; the same for every occurrence.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// About this occurrence: what was expected, what came, what to do.
    pub detail: String,
}

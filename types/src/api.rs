//! Bodies of the controller's HTTP API. Errors are RFC 9457 problem documents ([`Problem`]).

use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::connectivity::MeasurementRequest;
use crate::name::{Communities, NodeName};
use crate::traffic::TunnelTraffic;
use crate::view::{CommunityTunnels, NodeView, Role, SharedPeer, ViewChange};

/// Media type of [`Problem`].
pub const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";

/// `POST /v1/join`: a node's first request, over TLS that the CA's hash in the token authenticates.
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
    /// The name that the node requests.
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
    /// Addresses of the node's uplinks, the most likely first. The controller passes the first few
    /// that a peer may use on to the peers, and adds the address from which the report came.
    pub addresses: Vec<IpAddr>,
    /// UDP port of the node's IKE and ESP in UDP.
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub port: u16,
    /// The node's tunnels, for the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnels: Option<TunnelCount>,
    /// The traffic of the node's tunnels, for the operator. Absent before the first count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<TunnelTraffic>,
    /// The reason why the latest view is not in force on the node, if it is not: for example, it
    /// would cut the node off from its own network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_view: Option<String>,
    /// Segments that the node uses, according to its disk. Empty if it uses none. The controller
    /// grants them to no other node, even if they are missing from a restored backup. Absent if the
    /// node cannot read its disk: in that case the report says nothing about segments. Earlier
    /// agents also leave it out if they use none.
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
    /// Addresses and UDP ports from which the node's datagrams come to the hubs, as the hubs say.
    /// The controller passes the first [`MOST_MAPPED`] that a peer may use to the peers. `None`
    /// until a hub has said something: what was reported before stays. An agent that restarts thus
    /// changes no peer's view.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<Vec<String>>"))]
    pub mapped: Option<Vec<SocketAddr>>,
    /// On a hub: the TCP port on which it takes IKE and ESP (RFC 9329). The controller passes it to
    /// the peers. Absent if the hub takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub tcp_port: Option<u16>,
    /// On an edge: the hubs to which it has no tunnel, while it has one to another hub. The
    /// controller keeps the first [`MOST_UNREACHED_HUBS`] that are registered, and tells the cloud
    /// nodes, so that they route to the edge's pods through another hub. `None` while the node does
    /// not know it: what was reported before stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreached_hubs: Option<Vec<NodeName>>,
}

/// Maximum number of hubs in [`NodeReport::unreached_hubs`]. The controller drops further hubs.
pub const MOST_UNREACHED_HUBS: usize = 8;
/// Maximum number of mapped addresses in [`NodeReport`], one of each family. The controller drops
/// further addresses.
pub const MOST_MAPPED: usize = 2;
/// Maximum length of an agent's version in [`NodeReport`], characters.
pub const LONGEST_VERSION: usize = 64;
/// Maximum number of obstacles in [`NodeReport`]. The controller drops further obstacles.
pub const MOST_OBSTACLES: usize = 8;
/// Maximum length of an obstacle in [`NodeReport`], characters. Longer texts are cut.
pub const LONGEST_OBSTACLE: usize = 300;

/// Maximum number of peers in [`TunnelCount::down`]. The controller drops further ones.
pub const MOST_DOWN: usize = 8;

/// The state of a node's tunnels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TunnelCount {
    /// Number of tunnels that are up.
    pub up: u32,
    /// Number of tunnels that should be up.
    pub wanted: u32,
    /// The first of the peers to which a tunnel should be up and is not, in the order of their
    /// names, at most [`MOST_DOWN`]. Earlier agents name none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub down: Vec<NodeName>,
}

/// `POST /v1/nodes/{node}/segments`: a request for one segment of each family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SegmentRequest {
    /// An identifier that the node chooses and keeps on disk until it has the response. A retry
    /// with the same id gets the same segments.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 128)))]
    pub request_id: String,
    /// Families for which a segment is requested.
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    pub families: Vec<Family>,
    /// Whether the request may have been sent before, so that a controller may have granted it
    /// already.
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
    /// Returns the family of a network.
    pub fn of(network: &IpNetwork) -> Self {
        if network.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

/// Answer to [`SegmentRequest`] and to `GET /v1/nodes/{node}/segments`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SegmentResponse {
    /// On POST the segments that this request granted; on GET all segments that the node holds.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub segments: Vec<IpNetwork>,
}

/// Time without a line on the view stream after which a node treats the connection as lost and
/// connects again, seconds. Heartbeats come more often.
pub const VIEW_SILENCE_SECONDS: u64 = 20;

/// One line of the stream `GET /v1/nodes/{node}/view?watch=true` (NDJSON). Without `watch` the
/// response is one [`NodeView`].
///
/// With `changes=true` a whole view is sent at most once, and then only changes; otherwise every
/// line is a whole view. With `from=VERSION` no older view is sent. If the `epoch` of that version
/// is given too, only the changes since that version are sent, if the controller remembers them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "lowercase", bound(deserialize = "P: Deserialize<'de> + crate::shared_list::Keyed"))]
pub enum ViewEvent<P = SharedPeer> {
    /// The whole view.
    View {
        /// Identifies the run of the controller that remembers changes from this view on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        epoch: Option<String>,
        /// The view.
        view: Box<NodeView<P>>,
    },
    /// The changes since the last line that was not a heartbeat, or since `from`.
    Change(ViewChange<P>),
    /// Nothing has changed, and the connection works. Sent every few seconds.
    Heartbeat {
        /// Version of the view that was last sent on this stream; 0 if none was.
        version: u64,
    },
    /// The node is asked to measure paths to other nodes. Sent only with `measures=true`.
    Measure(MeasurementRequest),
    /// The last line of a stream that ends because the controller stops. A node that understands it
    /// connects to another controller at once; other nodes see only the end of the stream.
    Goodbye {
        /// The reason, for logs.
        reason: String,
    },
}

/// A row of `GET /v1/nodes`, for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeInfo {
    /// The node's name.
    pub name: NodeName,
    /// The node's role.
    pub role: Role,
    /// All labels that the operator or Kubernetes has set.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Communities derived from the labels.
    pub communities: Communities,
    /// Segments that the node holds.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub segments: Vec<IpNetwork>,
    /// Addresses that the node reported, and the address from which it connects.
    pub endpoints: Vec<crate::view::NodeAddress>,
    /// Whether the node's view stream is open now, at this controller or at another replica.
    pub connected: bool,
    /// The replica to which the node is connected, if several share a store and it is not this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<String>,
    /// The node's tunnels, as last reported.
    #[serde(default)]
    pub tunnels: Option<TunnelCount>,
    /// The traffic of the node's tunnels, as last reported to this controller. Absent while the
    /// node is connected to another replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<TunnelTraffic>,
    /// Conflicts, in words: segments that the node reports as its own but does not hold.
    #[serde(default)]
    pub conflicts: Vec<String>,
    /// Whether the node's Node object in Kubernetes is gone together with so many others that the
    /// controller does not act on it. In that case only the operator can deregister the node.
    #[serde(default)]
    pub missing: bool,
    /// The reason why the view is not in force on the node, as last reported to this controller.
    /// Other replicas show it among the obstacles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_view: Option<String>,
    /// Release of the node's agent, as last reported.
    #[serde(default)]
    pub version: Option<String>,
    /// Obstacles that prevent the pods' packets from arriving, as last reported.
    #[serde(default)]
    pub obstacles: Vec<String>,
    /// Hubs that the node, an edge, does not reach while it reaches another one, as last reported.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreached_hubs: Vec<NodeName>,
    /// When the node was last connected to a controller, seconds since 1970-01-01 UTC. While it is
    /// connected, this is the present time. Absent if it is not known, because the controller was
    /// restarted since, or because the node never connected.
    #[serde(default)]
    pub last_seen: Option<i64>,
    /// notAfter of the node's certificate, seconds since 1970-01-01 UTC.
    pub certificate_not_after: i64,
    /// Whether less than a third of the certificate's validity is left. Nodes renew after half of
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
    /// The controller's clock, seconds since 1970-01-01 UTC.
    pub time: i64,
    /// All registered nodes. Data from other replicas may be some seconds old.
    pub nodes: Vec<NodeInfo>,
    /// All communities.
    pub communities: Vec<CommunityInfo>,
    /// The ranges of segments.
    pub ranges: Vec<RangeUsage>,
    /// notAfter of the certificate of the authority that signs, seconds since 1970-01-01 UTC.
    pub authority_not_after: i64,
    /// Problems other than those of nodes that the operator should look at, in words.
    pub problems: Vec<String>,
}

/// The use of a range. Numbers that exceed 64 bits are given as the largest 64-bit number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RangeUsage {
    /// The range.
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub range: IpNetwork,
    /// Prefix length of the segments that are granted from it.
    pub prefix: u8,
    /// Number of such segments that fit into the range.
    pub segments: u64,
    /// Number of segments that can be granted now.
    pub free: u64,
    /// Number of segments that nodes hold.
    pub held: u64,
    /// Number of segments that were released and are in quarantine.
    pub quarantined: u64,
}

/// `PATCH /v1/nodes/{node}/labels`, for the operator: a JSON merge patch (RFC 7396); `null` removes
/// a label.
pub type LabelsPatch = std::collections::BTreeMap<String, Option<String>>;

/// `POST /v1/tokens`, for the operator. Unknown keys are refused: a misspelt limit would have no
/// effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// Role of the nodes that join with the token.
    pub role: Role,
    /// The only name that may join with the token. This may also be the name of a registered node.
    #[serde(default)]
    pub node: Option<NodeName>,
    /// Seconds until the token expires.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 31_622_400)))]
    pub ttl_seconds: u64,
    /// Number of nodes that may join with the token.
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
    /// The token's identifier.
    pub id: String,
    /// Role of the nodes that join with the token.
    pub role: Role,
    /// The only name that may join with the token.
    pub node: Option<NodeName>,
    /// Number of nodes that may join with the token.
    pub uses: u32,
    /// Number of nodes that joined with the token.
    #[serde(default)]
    pub used: u32,
    /// The nodes that joined with the token, if they are registered and have not joined again with
    /// another one.
    pub used_by: Vec<NodeName>,
    /// When the token was made, seconds since 1970-01-01 UTC.
    pub created_at: i64,
    /// When the token expires, seconds since 1970-01-01 UTC.
    pub expires_at: i64,
}

/// A row of `GET /v1/segments`, for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SegmentInfo {
    /// The segment.
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub segment: IpNetwork,
    /// The node that holds the segment, or held it last.
    pub node: NodeName,
    /// Whether the segment is held, in quarantine, or free to be granted again.
    pub state: SegmentState,
    /// When it was granted, seconds since 1970-01-01 UTC.
    pub granted_at: i64,
    /// When it was released, seconds since 1970-01-01 UTC.
    #[serde(default)]
    pub released_at: Option<i64>,
    /// End of the quarantine, seconds since 1970-01-01 UTC.
    pub quarantined_until: Option<i64>,
    /// The nodes that held the segment before, the latest first. The oldest ones are not kept.
    #[serde(default)]
    pub past: Vec<SegmentHolding>,
}

/// A former grant of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SegmentHolding {
    /// The node that held the segment.
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
    /// Released, and not granted until the quarantine ends.
    Quarantined,
    /// Released, and next to be granted.
    Free,
}

/// `PUT /v1/communities/{name}`, for the operator: the members of the community in addition to the
/// nodes whose labels name it, and when tunnels between all members are set up. At least one of the
/// two must be given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CommunityMembers {
    /// The nodes. They need not be registered yet. A node that is named twice counts once. If
    /// absent, the list stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<Vec<NodeName>>"))]
    pub members: Option<std::collections::BTreeSet<NodeName>>,
    /// When tunnels between members are set up. If absent, this stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnels: Option<CommunityTunnels>,
}

/// A row of `GET /v1/communities`, for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CommunityInfo {
    /// The community's name.
    pub name: crate::name::Community,
    /// The registered nodes that a label or a list makes members.
    pub members: Vec<NodeName>,
    /// Nodes that the operator listed and that are not registered. They are members as soon as they
    /// join as edges.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_registered: Vec<NodeName>,
    /// The nodes that the operator listed, registered or not. A controller of an older release does
    /// not say it.
    #[serde(default)]
    pub listed: Option<Vec<NodeName>>,
    /// When tunnels between members are set up.
    #[serde(default)]
    pub tunnels: CommunityTunnels,
}

/// A row of `GET /v1/ca`, and the answer to `POST /v1/ca/rollover` and `DELETE /v1/ca/{id}`, for
/// the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AuthorityInfo {
    /// SHA-256 of the authority's DER SubjectPublicKeyInfo, hexadecimal. It identifies the
    /// authority, and join tokens pin it.
    pub id: String,
    /// The subject of the authority's certificate.
    pub subject: String,
    /// Whether the authority signs, is trusted, or neither.
    pub state: AuthorityState,
    /// When the authority started to sign, seconds since 1970-01-01 UTC.
    pub created_at: i64,
    /// When the authority was retired, seconds since 1970-01-01 UTC.
    pub retired_at: Option<i64>,
    /// notAfter of the authority's certificate, seconds since 1970-01-01 UTC.
    pub not_after: i64,
    /// For an authority that is trusted and does not sign: registered nodes that would be lost
    /// without it. Each has a valid certificate of this authority and has not used one of another
    /// authority.
    pub needed_by: Vec<NodeName>,
    /// For such an authority: join tokens that pin it and may still be used.
    pub pinned_by: Vec<String>,
    /// The authority's certificate, PEM.
    pub certificate: String,
}

/// The use of an authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum AuthorityState {
    /// The authority signs.
    Active,
    /// The authority does not sign, but its certificates are accepted.
    Trusted,
    /// The authority is neither used nor trusted.
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
    /// The kind of problem as a URI reference, for example `/problems/token-expired`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in words; the same for every occurrence.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// Details of this occurrence: what was expected, what arrived, and what to do.
    pub detail: String,
}

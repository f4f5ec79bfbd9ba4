//! Bodies of the controller's HTTP API. Errors are RFC 9457 problem documents ([`Problem`]).

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::name::{Communities, NodeName};
use crate::view::{NodeView, Peer, Role, ViewChange};

/// Media type of [`Problem`].
pub const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";

/// `POST /v1/join`: a node's first words, over TLS that is authenticated by the CA's hash in the
/// token.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct JoinRequest {
    /// [`crate::JoinToken::credential`]: the token's id and secret. Empty where the next field is
    /// there.
    #[serde(default)]
    pub token: String,
    /// In place of a join token: a Kubernetes service account token, bound to the node's own pod,
    /// for the audience `edge-cni`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account_token: Option<String>,
    /// The name under which the node wants to be known.
    pub node: NodeName,
    /// PKCS#10 request, PEM, self-signed with the key that was made on the node.
    pub csr: String,
}

impl std::fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinRequest").field("token", &"<secret>").field("node", &self.node).finish_non_exhaustive()
    }
}

/// Answer to [`JoinRequest`] and to [`CertificateRequest`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CertificateResponse {
    /// The node's name as the certificate holds it.
    pub node: NodeName,
    /// The role as the certificate holds it.
    pub role: Role,
    /// The node's certificate and any intermediates, PEM, leaf first.
    pub certificate: String,
    /// Trust anchors, PEM; the first one is of the authority that signs now.
    pub trust_anchors: Vec<String>,
}

/// `POST /v1/nodes/{node}/certificate`: renewal, over mutual TLS with the present certificate.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CertificateRequest {
    /// PKCS#10 request, PEM.
    pub csr: String,
}

/// `PUT /v1/nodes/{node}`: what a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeReport {
    /// Addresses of the node's uplinks, likeliest first. The controller passes the first few on
    /// that a peer may use, and adds the one from which the report came.
    pub addresses: Vec<IpAddr>,
    /// UDP port of the node's IKE and ESP in UDP.
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub port: u16,
    /// Its tunnels, for people who look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnels: Option<TunnelCount>,
    /// Why the latest view is not in force on the node, if it is not: it would cut the node off
    /// from its own network, for example.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_view: Option<String>,
    /// Segments that it uses, as far as its disk says. The controller grants them to nobody else,
    /// also where a restored backup does not know them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub segments: Vec<IpNetwork>,
}

/// How a node's tunnels are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TunnelCount {
    /// How many are up.
    pub up: u32,
    /// How many there should be.
    pub wanted: u32,
}

/// `POST /v1/nodes/{node}/segments`: an application for one segment a family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SegmentRequest {
    /// Chosen by the node, kept on disk until answered: a retry with the same id gets the same
    /// segments.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 128)))]
    pub request_id: String,
    /// Families wanted.
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    pub families: Vec<Family>,
    /// It may have been sent before, and be granted already, by whichever controller.
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
    /// On POST those granted by this request; on GET all that the node holds.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub segments: Vec<IpNetwork>,
}

/// Without a line on the view stream for so long a node takes the controller for gone and connects
/// anew, seconds. Heartbeats come well within.
pub const VIEW_SILENCE_SECONDS: u64 = 20;

/// One line of the stream `GET /v1/nodes/{node}/view?watch=true` (NDJSON). Without `watch` the
/// answer is one [`NodeView`].
///
/// With `changes=true` a whole view comes at most once, then what changes of it; without, whole
/// views alone. With `from=VERSION` no view comes that is older than this, and with the `epoch`
/// that came with it as well, only what changed since, if the controller remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum ViewEvent<P = Peer> {
    /// The view as it now is.
    View {
        /// Names the run of the controller that remembers from now on what changed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        epoch: Option<String>,
        /// The view.
        view: Box<NodeView<P>>,
    },
    /// What changed since the last line that was not a heartbeat, or since `from`.
    Change(ViewChange<P>),
    /// Nothing has changed; the connection lives. Sent every few seconds.
    Heartbeat {
        /// Version of the view that was told last on this stream; 0 if none was.
        version: u64,
    },
    /// The last line of a stream that ends because its controller does. Whoever understands it goes
    /// on at another controller at once; for others the stream has ended.
    Goodbye {
        /// Why, for logs.
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
    /// All labels that the operator or Kubernetes set.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Communities that follow from them.
    pub communities: Communities,
    /// Segments it holds.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub segments: Vec<IpNetwork>,
    /// Addresses it reported and the one it was seen at.
    pub endpoints: Vec<crate::view::Endpoint>,
    /// Whether a view stream of it is open now.
    pub connected: bool,
    /// Its tunnels, as it last reported them to this controller.
    #[serde(default)]
    pub tunnels: Option<TunnelCount>,
    /// What it says it holds and does not, in words.
    #[serde(default)]
    pub conflicts: Vec<String>,
    /// Its Node object in Kubernetes is gone, with so many others that it was not believed: to be
    /// deregistered by the operator alone.
    #[serde(default)]
    pub missing: bool,
    /// Why its view is not in force there, as it last reported to this controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_view: Option<String>,
    /// End of its certificate, seconds since 1970-01-01 UTC.
    pub certificate_not_after: i64,
}

/// `PATCH /v1/nodes/{node}/labels`, for the operator: a JSON merge patch (RFC 7396); `null` removes
/// a label.
pub type LabelsPatch = std::collections::BTreeMap<String, Option<String>>;

/// `POST /v1/tokens`, for the operator. Unknown keys are refused: a misspelt bound would not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// Role of the nodes that join with it.
    pub role: Role,
    /// The only name that may join with it; this name may then also be one that is registered
    /// already.
    #[serde(default)]
    pub node: Option<NodeName>,
    /// Seconds until it is refused.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 31_622_400)))]
    pub ttl_seconds: u64,
    /// How many nodes may join with it.
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub uses: u32,
}

/// Answer to [`TokenRequest`]: the only time that the token is shown.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TokenCreated {
    /// The token's text ([`crate::token`]).
    pub token: String,
    /// What is kept of it.
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
    /// Names it.
    pub id: String,
    /// Role of the nodes that join with it.
    pub role: Role,
    /// The only name that may join with it.
    pub node: Option<NodeName>,
    /// How many nodes may join with it.
    pub uses: u32,
    /// Nodes that joined with it.
    pub used_by: Vec<NodeName>,
    /// When it was made, seconds since 1970-01-01 UTC.
    pub created_at: i64,
    /// From when on it is refused, seconds since 1970-01-01 UTC.
    pub expires_at: i64,
}

/// A row of `GET /v1/segments`, for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SegmentInfo {
    /// The segment.
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub segment: IpNetwork,
    /// Who holds it, or held it last.
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
    /// Who held it before, the latest first; the oldest are forgotten.
    #[serde(default)]
    pub past: Vec<SegmentHolding>,
}

/// A grant of the past.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SegmentHolding {
    /// Who held it.
    pub node: NodeName,
    /// When it was granted, seconds since 1970-01-01 UTC.
    pub granted_at: i64,
    /// When it was released, seconds since 1970-01-01 UTC.
    pub released_at: i64,
}

/// What may be done with a segment that has a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum SegmentState {
    /// A node holds it.
    Held,
    /// Released, and given to nobody until its quarantine is over.
    Quarantined,
    /// Released, and next to be granted.
    Free,
}

/// `PUT /v1/communities/{name}`, for the operator: who belongs to the community besides those whose
/// labels say so.
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
    /// SHA-256 of its DER SubjectPublicKeyInfo, hexadecimal: its name here, and what join tokens
    /// pin.
    pub id: String,
    /// The subject of its certificate.
    pub subject: String,
    /// Whether it signs, is trusted, or neither.
    pub state: AuthorityState,
    /// Since when it signs or signed, seconds since 1970-01-01 UTC.
    pub created_at: i64,
    /// Since when it is retired, seconds since 1970-01-01 UTC.
    pub retired_at: Option<i64>,
    /// End of its certificate, seconds since 1970-01-01 UTC.
    pub not_after: i64,
    /// Where it is trusted and does not sign: registered nodes that would be lost without it, for
    /// they have a valid certificate of it and have not used one of another.
    pub needed_by: Vec<NodeName>,
    /// As before: join tokens that may still be used and pin it.
    pub pinned_by: Vec<String>,
    /// Its certificate, PEM.
    pub certificate: String,
}

/// What an authority is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum AuthorityState {
    /// It signs.
    Active,
    /// What it signed is valid.
    Trusted,
    /// Neither.
    Retired,
}

/// Answer to `POST /v1/reload`, for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ReloadResponse {
    /// Keys of the configuration that have changed, and are in force.
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
    /// This occurrence: what was expected, what came, what to do.
    pub detail: String,
}

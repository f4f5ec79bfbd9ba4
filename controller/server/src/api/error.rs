//! The API's errors, and the problem document (RFC 9457) for each.

use edge_controller_domain::ca::CaError;
use edge_controller_domain::ca::request::CsrError;
use edge_controller_domain::connectivity::UnknownName;
use edge_controller_domain::node_certificates::CertificateError;
use edge_controller_domain::random::NoRandomness;
use edge_controller_domain::request_limits::TooOften;
use edge_controller_domain::segments::GrantsPaused;
use edge_controller_domain::state::{JoinError, SegmentError};
use edge_controller_domain::store::StoreError;
use edge_controller_domain::tokens::TokenError;
use edge_controller_kubernetes::service_account::ReviewError;
use edge_types::NodeName;
use edge_types::api::Problem;
use edge_types::name::NameError;

use crate::live_config::ReloadError;

/// Seconds within which nodes that can reach the controller usually connect and report.
const REPORTS_WITHIN: u32 = 10;

/// The reason why a request is refused. A refused request has changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The body is not JSON.
    #[error("the body is not JSON: {0}")]
    BadJson(String),
    /// The body is JSON, but has an unexpected shape or an invalid value.
    #[error("{0}")]
    BadValue(String),
    /// The body is larger than this many bytes.
    #[error("the body is larger than the {0} bytes that this request may have")]
    TooLarge(usize),
    /// The body did not arrive within this number of seconds.
    #[error("the body did not arrive within {0} seconds")]
    TooSlow(u64),
    /// The memory budget for bodies from callers without a certificate is used up, and this body
    /// was dropped to make room for another one.
    #[error("too many requests without a certificate arrive at this moment; try again in a few seconds")]
    Crowded,
    /// The header Content-Type does not declare JSON.
    #[error("the content type is {0:?}; expected application/json")]
    MediaType(String),
    /// The path is not part of the API.
    #[error("there is nothing at {0}; the API is described in docs/controller.md")]
    NoSuchPath(String),
    /// The path is part of the API, but not with this method.
    #[error("{method} is not possible at {path}; the header Allow says what is")]
    Method {
        /// The method of the request.
        method: String,
        /// Path of the request.
        path: String,
    },
    /// The request needs a client certificate.
    #[error(
        "this needs a node's certificate; join first (POST /v1/join with a token), then present the certificate in TLS"
    )]
    NoCertificate,
    /// The certificate is from our CA but does not belong to a node.
    #[error("the certificate does not name a node: {0}")]
    NotANode(String),
    /// The certificate belongs to another node.
    #[error("the certificate is of node {caller}, which may not act for {node}")]
    ForeignNode {
        /// The node that the certificate names.
        caller: NodeName,
        /// The node that the path names.
        node: NodeName,
    },
    /// The node was deregistered.
    #[error(
        "node {0} is not registered: it was deregistered, and its certificate is refused; to bring it back, join with a new token"
    )]
    Deregistered(NodeName),
    /// The node is registered with another certificate.
    #[error(
        "node {0} is registered with another certificate: this one was replaced, by a renewal or by a new join under the same name; \
         if the machine lost its certificate, join with a token bound to its name (edge-controller token create --node {0})"
    )]
    Superseded(NodeName),
    /// The certificate has expired. Within the grace it can only be renewed.
    #[error(
        "the certificate of node {0} has expired; it can only be renewed, for grace_days after its end; after that, join again with a token \
         bound to its name"
    )]
    CertificateExpired(NodeName),
    /// The route is only for the operator.
    #[error("this is for the operator, by the controller's admin socket")]
    OperatorOnly,
    /// The route is only for nodes.
    #[error("this is for the node itself, over TLS with its certificate")]
    NodeOnly,
    /// No node of this name is registered.
    #[error("no node {0} is registered; `edge-controller node list` shows those that are")]
    NoSuchNode(NodeName),
    /// The community has no listed members.
    #[error("community {0} has no member list; its members come from labels, so change the labels")]
    NoSuchCommunity(edge_types::Community),
    /// No join token has this id.
    #[error("there is no token {0:?}; `edge-controller token list` shows those that are")]
    NoSuchToken(String),
    /// The join token cannot be created, or does not admit the node.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The service account token does not admit the node.
    #[error("the service account token is refused: {0}")]
    ServiceAccount(String),
    /// The API server did not review the service account token.
    #[error("the API server did not review the service account token: {0}")]
    TokenReview(String),
    /// The node may not join under this name.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The certificate request (PKCS #10) is refused.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The certificate authorities failed or refused the change.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// Nodes or join tokens still need the authority.
    #[error(
        "authority {authority} is still needed by {}; wait until they have renewed (a connected node does so within minutes), or retire it with \
         --force: each of them must then join with a new token", by.join(", ")
    )]
    AuthorityNeeded {
        /// Hash of the authority's key.
        authority: String,
        /// The nodes and join tokens, in words.
        by: Vec<String>,
    },
    /// The node gets no segment.
    #[error(transparent)]
    Segment(SegmentError),
    /// The node reads too many views, or streams of its view, at once.
    #[error(
        "node {node} already reads its view {most} times, the most that it may at once; end those that are not read"
    )]
    TooManyStreams {
        /// Name of the node.
        node: NodeName,
        /// Maximum number at once.
        most: usize,
    },
    /// The node makes more requests than it may.
    #[error(transparent)]
    TooOften(#[from] TooOften),
    /// The labels of this node are set on its Node object.
    #[error(
        "node {0} has a Node object in Kubernetes, and its labels are set there: kubectl label node {0} KEY=VALUE (or list it in a Community); \
         those that were set by command can only be removed (KEY-)"
    )]
    LabelledElsewhere(NodeName),
    /// The labels of this node would be set on its Node object, but such labels do not count.
    #[error(
        "node {node} has a Node object in Kubernetes, and labels of Node objects do not count ({why}): list it in a Community; those that were set \
         by command can only be removed (KEY-)"
    )]
    LabelsNotTrusted {
        /// Name of the node.
        node: NodeName,
        /// The reason why such labels do not count.
        why: String,
    },
    /// A label contains an invalid name of a community.
    #[error(transparent)]
    Label(#[from] NameError),
    /// Another check of connectivity runs.
    #[error("another check of connectivity runs at this controller; wait until it has ended, or stop its command")]
    CheckRunning,
    /// No check waits for this measurement report.
    #[error("nobody waits for this report; the request that it answers was of another node, or took too long")]
    NoSuchMeasurement,
    /// The check of connectivity names something that does not exist.
    #[error(transparent)]
    UnknownName(#[from] UnknownName),
    /// The page is not served.
    #[error(
        "this controller does not serve the page: set listen = [\"127.0.0.1:9645\"] under [page] in its configuration, and restart it"
    )]
    PageNotServed,
    /// The operating system provides no random numbers.
    #[error(transparent)]
    Random(#[from] NoRandomness),
    /// The configuration was read again but not put in force.
    #[error("{0}")]
    Reload(String),
    /// The store could not be read or written. Nothing was changed.
    #[error("{0}; nothing was changed, try again")]
    Store(String),
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        // The title of the problem document already says that the store failed.
        match error {
            StoreError::Failed(why) => ApiError::Store(why),
            error => ApiError::Store(error.to_string()),
        }
    }
}

impl From<SegmentError> for ApiError {
    fn from(error: SegmentError) -> Self {
        match error {
            SegmentError::NotRegistered(node) => ApiError::Deregistered(node),
            other => ApiError::Segment(other),
        }
    }
}

impl From<GrantsPaused> for ApiError {
    fn from(paused: GrantsPaused) -> Self {
        ApiError::Segment(paused.into())
    }
}

impl From<CertificateError> for ApiError {
    fn from(error: CertificateError) -> Self {
        match error {
            CertificateError::Concurrent(_) => ApiError::Store(error.to_string()),
            CertificateError::Superseded(node) => ApiError::Superseded(node),
        }
    }
}

impl From<ReloadError> for ApiError {
    fn from(error: ReloadError) -> Self {
        match error {
            ReloadError::Refused(_) => ApiError::Reload(error.to_string()),
            ReloadError::Store(error) => error.into(),
        }
    }
}

impl From<ReviewError> for ApiError {
    fn from(error: ReviewError) -> Self {
        match error {
            ReviewError::Refused(why) => ApiError::ServiceAccount(why),
            ReviewError::Failed(why) => ApiError::TokenReview(why),
        }
    }
}

impl ApiError {
    /// Returns the HTTP status, the kind's name below `/problems/`, and its title.
    fn kind(&self) -> (u16, &'static str, &'static str) {
        match self {
            ApiError::BadJson(_) => (400, "bad-json", "The body is not JSON"),
            ApiError::BadValue(_) => (422, "bad-value", "The body cannot be understood"),
            ApiError::TooLarge(_) => (413, "body-too-large", "The body is too large"),
            ApiError::TooSlow(_) => (408, "body-too-slow", "The body did not arrive in time"),
            ApiError::Crowded => (503, "crowded", "Too many requests arrive"),
            ApiError::MediaType(_) => (415, "media-type", "The body is not declared as JSON"),
            ApiError::NoSuchPath(_) => (404, "no-such-path", "There is nothing here"),
            ApiError::Method { .. } => (405, "method-not-allowed", "The method is not possible here"),
            ApiError::NoCertificate => (401, "certificate-required", "A node's certificate is required"),
            ApiError::NotANode(_) => (403, "not-a-node", "The certificate does not name a node"),
            ApiError::ForeignNode { .. } => (403, "foreign-node", "The certificate is of another node"),
            ApiError::Deregistered(_) => (403, "node-deregistered", "The node is not registered"),
            ApiError::Superseded(_) => (403, "certificate-superseded", "The certificate was replaced"),
            ApiError::CertificateExpired(_) => (403, "certificate-expired", "The certificate has expired"),
            ApiError::OperatorOnly => (403, "operator-only", "Only the operator may do this"),
            ApiError::NodeOnly => (403, "node-only", "Only the node itself may do this"),
            ApiError::NoSuchNode(_) => (404, "no-such-node", "The node is not registered"),
            ApiError::NoSuchCommunity(_) => (404, "no-such-community", "The community has no listed members"),
            ApiError::NoSuchToken(_) => (404, "no-such-token", "There is no such token"),
            ApiError::Token(TokenError::Invalid(_)) => (422, "bad-value", "The body cannot be understood"),
            ApiError::Token(TokenError::Unknown) => (403, "token-unknown", "The join token is not known"),
            ApiError::ServiceAccount(_) => (403, "service-account-refused", "The service account token is refused"),
            ApiError::TokenReview(_) => (503, "token-review-failed", "The service account token cannot be reviewed"),
            ApiError::Token(TokenError::Expired { .. }) => (403, "token-expired", "The join token has expired"),
            ApiError::Token(TokenError::Used { .. }) => (409, "token-used", "The join token is used up"),
            ApiError::Token(TokenError::OfAnother { .. }) => {
                (403, "token-of-another", "The join token is for another node")
            }
            ApiError::Token(TokenError::Random(_)) => (500, "internal", "The controller has a defect"),
            ApiError::Join(JoinError::NameTaken(_)) => (409, "name-taken", "The name belongs to another node"),
            ApiError::Join(JoinError::Reserved(_)) => (409, "name-taken", "The name belongs to no node"),
            ApiError::Join(JoinError::RoleChange { .. }) => {
                (409, "role-change", "The node is registered with another role")
            }
            ApiError::Csr(_) => (422, "bad-certificate-request", "The certificate request is refused"),
            ApiError::Ca(CaError::NoSuch(_)) => (404, "no-such-authority", "There is no such authority"),
            ApiError::Ca(CaError::Active(_)) => (409, "authority-active", "The authority is the one that signs"),
            ApiError::Ca(CaError::TooMany) => (409, "too-many-authorities", "Too many authorities are trusted"),
            ApiError::Ca(CaError::SameOperatorCa(_) | CaError::FormerOperatorCa(_)) => {
                (409, "authority-not-new", "The given authority is not a new one")
            }
            ApiError::Ca(CaError::Conflict) => (503, "store-failed", "The store failed"),
            ApiError::Ca(_) => (500, "authority-failed", "The authorities failed"),
            ApiError::AuthorityNeeded { .. } => (409, "authority-needed", "The authority is still needed"),
            ApiError::Segment(error) => match error {
                SegmentError::NotRegistered(_) => (403, "node-deregistered", "The node is not registered"),
                SegmentError::Exhausted(_) => (409, "range-exhausted", "No segment is left"),
                SegmentError::GrantsPaused(_) => (503, "segments-withheld", "Segments are not granted yet"),
                SegmentError::TooMany { .. } => (409, "too-many-segments", "The node holds as many segments as it may"),
                SegmentError::NoSuchFamily(_) => (409, "no-such-family", "There is no range of this family"),
                SegmentError::RequestIdReused(_) => {
                    (409, "request-id-reused", "The request id was used for something else")
                }
            },
            ApiError::TooManyStreams { .. } => (429, "too-many-streams", "The node has too many streams"),
            ApiError::TooOften(_) => (429, "too-often", "The node asks too often"),
            ApiError::LabelledElsewhere(_) | ApiError::LabelsNotTrusted { .. } => {
                (409, "labelled-elsewhere", "The node is labelled in Kubernetes")
            }
            ApiError::Label(_) => (422, "bad-label", "The label cannot be used"),
            ApiError::CheckRunning => (409, "check-running", "Another check runs"),
            ApiError::NoSuchMeasurement => (404, "no-such-measurement", "Nobody waits for this report"),
            ApiError::UnknownName(UnknownName::Node(_)) => (404, "no-such-node", "The node is not registered"),
            ApiError::UnknownName(UnknownName::CloudNode(_) | UnknownName::OneNode(_)) => {
                (422, "bad-value", "The body cannot be understood")
            }
            ApiError::UnknownName(UnknownName::Community(_)) => {
                (404, "no-such-community", "The community has no members")
            }
            ApiError::PageNotServed => (409, "page-not-served", "The page is not served"),
            ApiError::Random(_) => (500, "internal", "The controller has a defect"),
            ApiError::Reload(_) => (409, "reload-refused", "The configuration is not put in force"),
            ApiError::Store(_) => (503, "store-failed", "The store failed"),
        }
    }

    /// Returns the kind's name, as it appears below `/problems/`.
    pub fn name(&self) -> &'static str {
        self.kind().1
    }

    /// Returns the seconds after which the caller may try again; `None` if waiting changes nothing,
    /// or the time is not known.
    pub fn retry_after(&self) -> Option<u32> {
        match self {
            ApiError::Segment(SegmentError::GrantsPaused(_)) => Some(REPORTS_WITHIN),
            ApiError::TooOften(refused) => Some(refused.seconds),
            _ => None,
        }
    }

    /// Returns the error as a problem document.
    pub fn problem(&self) -> Problem {
        let (status, kind, title) = self.kind();
        Problem { kind: format!("/problems/{kind}"), title: title.into(), status, detail: self.to_string() }
    }
}

//! The table of operations: paths, handlers, and what goes in and out. A new path is a new entry
//! here, and nothing else.

use axum::http::Method;
use axum::routing::{MethodRouter, delete, get, patch, post, put};
use edge_types::NodeView;
use edge_types::api::{
    AuthorityInfo, CertificateRequest, CertificateResponse, CommunityInfo, CommunityMembers, JoinRequest, LabelsPatch,
    NodeInfo, NodeReport, ReloadResponse, SegmentInfo, SegmentRequest, SegmentResponse, TokenCreated, TokenInfo,
    TokenRequest, ViewEvent,
};
use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::state::ApiState;
use super::{backup, ca, join, nodes, openapi, operator, segments, view};

/// One method of one path.
pub(super) struct Operation {
    pub(super) method: Method,
    pub(super) path: &'static str,
    pub(super) handler: MethodRouter<ApiState>,
    pub(super) name: &'static str,
    pub(super) summary: &'static str,
    pub(super) by: By,
    pub(super) query: Option<MakeSchema>,
    pub(super) takes: Option<MakeSchema>,
    pub(super) status: u16,
    /// Media types and their schemas; none where the answer is empty.
    pub(super) gives: Vec<(&'static str, Option<MakeSchema>)>,
    /// Statuses of refusals beside those that follow from the rest.
    pub(super) refused: &'static [u16],
}

/// Who may.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Anyone,
    /// The node that the path names.
    Node,
    /// That one, or the operator; any node where the path names none.
    NodeOrOperator,
    Operator,
}

pub(super) type MakeSchema = fn(&mut SchemaGenerator) -> Schema;

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// Inline: for parameters, of which each property stands for itself.
fn inline<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    T::json_schema(generator)
}

const JSON: &str = "application/json";
const NDJSON: &str = "application/x-ndjson";

impl Operation {
    fn new(method: Method, path: &'static str, name: &'static str, handler: MethodRouter<ApiState>) -> Self {
        Self {
            method,
            path,
            handler,
            name,
            summary: "",
            by: By::Operator,
            query: None,
            takes: None,
            status: 200,
            gives: Vec::new(),
            refused: &[],
        }
    }

    fn get(path: &'static str, name: &'static str, handler: MethodRouter<ApiState>) -> Self {
        Self::new(Method::GET, path, name, handler)
    }

    fn post(path: &'static str, name: &'static str, handler: MethodRouter<ApiState>) -> Self {
        Self::new(Method::POST, path, name, handler)
    }

    fn delete(path: &'static str, name: &'static str, handler: MethodRouter<ApiState>) -> Self {
        Self::new(Method::DELETE, path, name, handler)
    }

    fn summary(self, summary: &'static str) -> Self {
        Self { summary, ..self }
    }

    fn by(self, by: By) -> Self {
        Self { by, ..self }
    }

    fn query<T: JsonSchema>(self) -> Self {
        Self { query: Some(inline::<T>), ..self }
    }

    fn takes<T: JsonSchema>(self) -> Self {
        Self { takes: Some(schema::<T>), ..self }
    }

    fn gives<T: JsonSchema>(self) -> Self {
        self.gives_as::<T>(JSON)
    }

    fn gives_as<T: JsonSchema>(mut self, media: &'static str) -> Self {
        self.gives.push((media, Some(schema::<T>)));
        self
    }

    fn gives_lines(mut self) -> Self {
        self.gives.push((NDJSON, None));
        self
    }

    fn status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    fn refused(self, refused: &'static [u16]) -> Self {
        Self { refused, ..self }
    }
}

/// All of them.
pub(super) fn all() -> Vec<Operation> {
    vec![
        Operation::post("/v1/join", "join", post(join::join))
            .summary("Join with a token: a certificate for a key that was made on the node.")
            .by(By::Anyone)
            .takes::<JoinRequest>()
            .gives::<CertificateResponse>()
            .refused(&[403, 409]),
        Operation::post("/v1/nodes/{node}/certificate", "renew", post(join::renew))
            .summary("Renew the certificate with which this request comes.")
            .by(By::Node)
            .takes::<CertificateRequest>()
            .gives::<CertificateResponse>()
            .refused(&[409]),
        Operation::new(Method::PUT, "/v1/nodes/{node}", "report", put(nodes::report))
            .summary("Say where the node is found.")
            .by(By::Node)
            .takes::<NodeReport>()
            .status(204),
        Operation::get("/v1/nodes/{node}/segments", "nodeSegments", get(segments::list))
            .summary("All segments that the node holds.")
            .by(By::NodeOrOperator)
            .gives::<SegmentResponse>(),
        Operation::post("/v1/nodes/{node}/segments", "applyForSegments", post(segments::apply))
            .summary("Apply for one more segment of each family; all or none.")
            .by(By::Node)
            .takes::<SegmentRequest>()
            .gives::<SegmentResponse>()
            .refused(&[409]),
        Operation::get("/v1/nodes/{node}/view", "view", get(view::view))
            .summary("The node and whom it may talk to: once, or as a stream of lines.")
            .by(By::NodeOrOperator)
            .query::<view::Parameters>()
            .gives::<NodeView>()
            .gives_as::<ViewEvent>(NDJSON)
            .refused(&[429]),
        Operation::get("/v1/nodes", "nodes", get(operator::nodes))
            .summary("All registered nodes.")
            .gives::<Vec<NodeInfo>>(),
        Operation::delete("/v1/nodes/{node}", "deregister", delete(operator::deregister))
            .summary("Take a node out of the network; the segments that it held.")
            .gives::<Vec<SegmentInfo>>(),
        Operation::new(Method::PATCH, "/v1/nodes/{node}/labels", "label", patch(operator::label))
            .summary("Set labels, or remove them with null (RFC 7396).")
            .takes::<LabelsPatch>()
            .gives::<NodeInfo>(),
        Operation::get("/v1/segments", "segments", get(operator::segments))
            .summary("All segments that were ever granted.")
            .gives::<Vec<SegmentInfo>>(),
        Operation::get("/v1/communities", "communities", get(operator::communities))
            .summary("All communities with their members.")
            .gives::<Vec<CommunityInfo>>(),
        Operation::new(Method::PUT, "/v1/communities/{name}", "setCommunity", put(operator::set_community))
            .summary("List who belongs to a community besides those whose labels say so.")
            .takes::<CommunityMembers>()
            .status(204),
        Operation::delete("/v1/communities/{name}", "deleteCommunity", delete(operator::delete_community))
            .summary("Remove a community's list; labels may still name it.")
            .status(204),
        Operation::get("/v1/ca", "authorities", get(ca::list))
            .summary("All certificate authorities.")
            .gives::<Vec<AuthorityInfo>>(),
        Operation::post("/v1/ca/rollover", "rollover", post(ca::rollover))
            .summary("Change over to a new certificate authority.")
            .status(201)
            .gives::<AuthorityInfo>()
            .refused(&[409]),
        Operation::delete("/v1/ca/{id}", "retire", delete(ca::retire))
            .summary("Trust an authority no more.")
            .query::<ca::Parameters>()
            .gives::<AuthorityInfo>()
            .refused(&[409]),
        Operation::get("/v1/tokens", "tokens", get(operator::tokens))
            .summary("All join tokens, without their secrets.")
            .gives::<Vec<TokenInfo>>(),
        Operation::post("/v1/tokens", "createToken", post(operator::create_token))
            .summary("Make a join token: the only answer that holds it.")
            .takes::<TokenRequest>()
            .status(201)
            .gives::<TokenCreated>(),
        Operation::delete("/v1/tokens/{id}", "deleteToken", delete(operator::delete_token))
            .summary("Let nobody join with a token any more.")
            .status(204),
        Operation::get("/v1/backup", "backup", get(backup::backup))
            .summary("Everything that is kept, private keys included, as an archive.")
            .gives_lines(),
        Operation::post("/v1/reload", "reload", post(operator::reload))
            .summary("Read the configuration again.")
            .gives::<ReloadResponse>()
            .refused(&[409]),
        Operation::get("/v1/openapi.json", "openapi", get(openapi::serve))
            .summary("This document.")
            .by(By::NodeOrOperator)
            .gives::<serde_json::Value>(),
    ]
}

//! The table of routes: paths, handlers, and what goes in and out. A new route is a new entry here,
//! and nothing else.

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
use super::{archive, ca, join, openapi, operator, report, segments, view};

/// One method of one path.
pub(super) struct Route {
    pub(super) method: Method,
    pub(super) path: &'static str,
    pub(super) handler: MethodRouter<ApiState>,
    pub(super) operation_id: &'static str,
    pub(super) summary: &'static str,
    pub(super) access: Access,
    pub(super) query: Option<MakeSchema>,
    pub(super) request: Option<MakeSchema>,
    pub(super) status: u16,
    /// Media types of the response and their schemas; empty if the response has no body.
    pub(super) responses: Vec<(&'static str, Option<MakeSchema>)>,
    /// Statuses of errors beside those that follow from the other fields.
    pub(super) errors: &'static [u16],
}

/// Who may use a route.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Anyone,
    /// The node that the path names.
    Node,
    /// That node, or the operator. If the path names no node: any node, or the operator.
    NodeOrOperator,
    Operator,
}

pub(super) type MakeSchema = fn(&mut SchemaGenerator) -> Schema;

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// For parameters: each property becomes a parameter of its own.
fn inline<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    T::json_schema(generator)
}

const JSON: &str = "application/json";
const NDJSON: &str = "application/x-ndjson";

impl Route {
    fn new(method: Method, path: &'static str, operation_id: &'static str, handler: MethodRouter<ApiState>) -> Self {
        Self {
            method,
            path,
            handler,
            operation_id,
            summary: "",
            access: Access::Operator,
            query: None,
            request: None,
            status: 200,
            responses: Vec::new(),
            errors: &[],
        }
    }

    fn get(path: &'static str, operation_id: &'static str, handler: MethodRouter<ApiState>) -> Self {
        Self::new(Method::GET, path, operation_id, handler)
    }

    fn post(path: &'static str, operation_id: &'static str, handler: MethodRouter<ApiState>) -> Self {
        Self::new(Method::POST, path, operation_id, handler)
    }

    fn delete(path: &'static str, operation_id: &'static str, handler: MethodRouter<ApiState>) -> Self {
        Self::new(Method::DELETE, path, operation_id, handler)
    }

    fn summary(self, summary: &'static str) -> Self {
        Self { summary, ..self }
    }

    fn access(self, access: Access) -> Self {
        Self { access, ..self }
    }

    fn query<T: JsonSchema>(self) -> Self {
        Self { query: Some(inline::<T>), ..self }
    }

    fn request<T: JsonSchema>(self) -> Self {
        Self { request: Some(schema::<T>), ..self }
    }

    fn response<T: JsonSchema>(self) -> Self {
        self.response_as::<T>(JSON)
    }

    fn response_as<T: JsonSchema>(mut self, media: &'static str) -> Self {
        self.responses.push((media, Some(schema::<T>)));
        self
    }

    fn response_lines(mut self) -> Self {
        self.responses.push((NDJSON, None));
        self
    }

    fn status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    fn errors(self, errors: &'static [u16]) -> Self {
        Self { errors, ..self }
    }
}

/// The table.
pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::post("/v1/join", "join", post(join::join))
            .summary("Join with a token: a certificate for a key that was made on the node.")
            .access(Access::Anyone)
            .request::<JoinRequest>()
            .response::<CertificateResponse>()
            .errors(&[403, 409]),
        Route::post("/v1/nodes/{node}/certificate", "renew", post(join::renew))
            .summary("Renew the certificate with which this request comes.")
            .access(Access::Node)
            .request::<CertificateRequest>()
            .response::<CertificateResponse>()
            .errors(&[409]),
        Route::new(Method::PUT, "/v1/nodes/{node}", "report", put(report::report))
            .summary("Say where the node is found.")
            .access(Access::Node)
            .request::<NodeReport>()
            .status(204),
        Route::get("/v1/nodes/{node}/segments", "nodeSegments", get(segments::list))
            .summary("All segments that the node holds.")
            .access(Access::NodeOrOperator)
            .response::<SegmentResponse>(),
        Route::post("/v1/nodes/{node}/segments", "applyForSegments", post(segments::request))
            .summary("Apply for one more segment of each family; all or none.")
            .access(Access::Node)
            .request::<SegmentRequest>()
            .response::<SegmentResponse>()
            .errors(&[409]),
        Route::get("/v1/nodes/{node}/view", "view", get(view::view))
            .summary("The node and whom it may talk to: once, or as a stream of lines.")
            .access(Access::NodeOrOperator)
            .query::<view::Parameters>()
            .response::<NodeView>()
            .response_as::<ViewEvent>(NDJSON)
            .errors(&[429]),
        Route::get("/v1/nodes", "nodes", get(operator::nodes))
            .summary("All registered nodes.")
            .response::<Vec<NodeInfo>>(),
        Route::delete("/v1/nodes/{node}", "deregister", delete(operator::deregister))
            .summary("Take a node out of the network; the segments that it held.")
            .response::<Vec<SegmentInfo>>(),
        Route::new(Method::PATCH, "/v1/nodes/{node}/labels", "label", patch(operator::label))
            .summary("Set labels, or remove them with null (RFC 7396).")
            .request::<LabelsPatch>()
            .response::<NodeInfo>(),
        Route::get("/v1/segments", "segments", get(operator::segments))
            .summary("All segments that were ever granted.")
            .response::<Vec<SegmentInfo>>(),
        Route::get("/v1/communities", "communities", get(operator::communities))
            .summary("All communities with their members.")
            .response::<Vec<CommunityInfo>>(),
        Route::new(Method::PUT, "/v1/communities/{name}", "setCommunity", put(operator::set_community))
            .summary("List who belongs to a community besides those whose labels say so.")
            .request::<CommunityMembers>()
            .status(204),
        Route::delete("/v1/communities/{name}", "deleteCommunity", delete(operator::delete_community))
            .summary("Remove a community's list; labels may still name it.")
            .status(204),
        Route::get("/v1/ca", "authorities", get(ca::list))
            .summary("All certificate authorities.")
            .response::<Vec<AuthorityInfo>>(),
        Route::post("/v1/ca/rollover", "rollover", post(ca::rollover))
            .summary("Change over to a new certificate authority.")
            .status(201)
            .response::<AuthorityInfo>()
            .errors(&[409]),
        Route::delete("/v1/ca/{id}", "retire", delete(ca::retire))
            .summary("Trust an authority no more.")
            .query::<ca::Parameters>()
            .response::<AuthorityInfo>()
            .errors(&[409]),
        Route::get("/v1/tokens", "tokens", get(operator::tokens))
            .summary("All join tokens, without their secrets.")
            .response::<Vec<TokenInfo>>(),
        Route::post("/v1/tokens", "createToken", post(operator::create_token))
            .summary("Make a join token: the only response that holds it.")
            .request::<TokenRequest>()
            .status(201)
            .response::<TokenCreated>(),
        Route::delete("/v1/tokens/{id}", "deleteToken", delete(operator::delete_token))
            .summary("Let nobody join with a token any more.")
            .status(204),
        Route::get("/v1/backup", "backup", get(archive::download))
            .summary("Everything that is kept, private keys included, as an archive.")
            .response_lines(),
        Route::post("/v1/reload", "reload", post(operator::reload))
            .summary("Read the configuration again.")
            .response::<ReloadResponse>()
            .errors(&[409]),
        Route::get("/v1/openapi.json", "openapi", get(openapi::serve))
            .summary("This document.")
            .access(Access::NodeOrOperator)
            .response::<serde_json::Value>(),
    ]
}

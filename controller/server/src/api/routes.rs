//! The table of routes, with paths, handlers, inputs and outputs. A new route only needs a new
//! entry here.

use std::sync::LazyLock;

use axum::http::{Method, header};
use axum::response::IntoResponse;
use axum::routing::{delete, get, patch, post, put};
use edge_types::NodeView;
use edge_types::api::{
    AuthorityInfo, CertificateResponse, CommunityInfo, CommunityMembers, ControllerStatus, JoinRequest, LabelsPatch,
    NodeInfo, NodeReport, ReloadResponse, RenewalRequest, SegmentInfo, SegmentRequest, SegmentResponse, TokenCreated,
    TokenInfo, TokenRequest, ViewEvent,
};
use edge_types::connectivity::{ConnectivityEvent, ConnectivityRequest, MeasurementReport};
use edge_types::page::PageSession;
use hyper::body::Bytes;
use serde_json::Value;

use super::route::{Access, NDJSON, Route};
use super::{archive, ca, connectivity, join, openapi, operator, page_sessions, report, segments, status, view};

/// The OpenAPI document as JSON, made once and shared by all responses.
static OPENAPI: LazyLock<Bytes> = LazyLock::new(|| openapi_document().to_string().into());

/// Returns the OpenAPI document of all routes.
pub fn openapi_document() -> Value {
    openapi::document(routes())
}

/// Serves the document to nodes and the operator only. A response is 300 times as large as its
/// request, so unauthenticated callers could keep the controller busy with encrypting responses.
async fn serve_openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI.clone())
}

/// Returns all routes below `/v1`.
pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::post("/v1/join", "join", post(join::join))
            .summary("Join with a token. The response has a certificate for the node's key.")
            .access(Access::Anyone)
            .request::<JoinRequest>()
            .response::<CertificateResponse>()
            .errors(&[403, 409, 429]),
        Route::post("/v1/nodes/{node}/certificate", "renew", post(join::renew))
            .summary("Renew the certificate with which this request comes, until the grace after its end is over.")
            .access(Access::NodeWithGrace)
            .request::<RenewalRequest>()
            .response::<CertificateResponse>()
            .errors(&[409, 429]),
        Route::new(Method::PUT, "/v1/nodes/{node}", "report", put(report::report))
            .summary("Report the node's addresses, tunnels and segments.")
            .access(Access::Node)
            .request::<NodeReport>()
            .status(204),
        Route::get("/v1/nodes/{node}/segments", "nodeSegments", get(segments::list))
            .summary("All segments that the node holds.")
            .access(Access::NodeOrOperator)
            .response::<SegmentResponse>(),
        Route::post("/v1/nodes/{node}/segments", "applyForSegments", post(segments::request))
            .summary("Request one more segment of each family; all or none.")
            .access(Access::Node)
            .request::<SegmentRequest>()
            .response::<SegmentResponse>()
            .errors(&[409, 429]),
        Route::get("/v1/nodes/{node}/view", "view", get(view::view))
            .summary("The node and the peers that it may talk to: once, or as a stream of lines. For a node on HTTP/1.1 with `Upgrade: edge-view`, the stream comes in frames (101).")
            .access(Access::NodeOrOperator)
            .query::<view::Parameters>()
            .response::<NodeView>()
            .response_as::<ViewEvent>(NDJSON)
            .errors(&[429]),
        Route::post("/v1/nodes/{node}/measurements", "reportMeasurement", post(connectivity::report))
            .summary("Report what the node measured, after a line of the type `measure` on its stream.")
            .access(Access::Node)
            .request::<MeasurementReport>()
            .status(204),
        Route::post("/v1/connectivity", "checkConnectivity", post(connectivity::check))
            .summary("Check whether nodes reach each other, as lines: a plan, the results, and an end.")
            .request::<ConnectivityRequest>()
            .response_as::<ConnectivityEvent>(NDJSON)
            .errors(&[404, 409]),
        Route::get("/v1/status", "status", get(status::status))
            .summary("Nodes, communities, ranges, and what the operator should look at.")
            .response::<ControllerStatus>(),
        Route::get("/v1/nodes", "nodes", get(operator::nodes))
            .summary("All registered nodes.")
            .response::<Vec<NodeInfo>>(),
        Route::delete("/v1/nodes/{node}", "deregister", delete(operator::deregister))
            .summary("Deregister a node. The response has the segments that it held.")
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
            .summary("List the members of a community, in addition to those that have its label, or decide when its tunnels are set up.")
            .request::<CommunityMembers>()
            .status(204),
        Route::delete("/v1/communities/{name}", "deleteCommunity", delete(operator::delete_community))
            .summary("Remove a community's list, and what was decided about its tunnels. Nodes with its label stay members.")
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
            .summary("Stop trusting an authority.")
            .query::<ca::Parameters>()
            .response::<AuthorityInfo>()
            .errors(&[409]),
        Route::get("/v1/tokens", "tokens", get(operator::tokens))
            .summary("All join tokens, without their secrets.")
            .response::<Vec<TokenInfo>>(),
        Route::post("/v1/tokens", "createToken", post(operator::create_token))
            .summary("Make a join token. Only this response contains it.")
            .request::<TokenRequest>()
            .status(201)
            .response::<TokenCreated>(),
        Route::delete("/v1/tokens/{id}", "deleteToken", delete(operator::delete_token))
            .summary("Delete a token: no node can join with it any more.")
            .status(204),
        Route::post("/v1/page-sessions", "openPageSession", post(page_sessions::open))
            .summary("Open a session of the page. Only this response contains its credential.")
            .status(201)
            .response::<PageSession>()
            .errors(&[409]),
        Route::delete("/v1/page-sessions", "endPageSessions", delete(page_sessions::end_all))
            .summary("End all sessions of the page.")
            .status(204),
        Route::get("/v1/backup", "backup", get(archive::download))
            .summary("Everything that is kept, private keys included, as an archive.")
            .response_lines(),
        Route::post("/v1/reload", "reload", post(operator::reload))
            .summary("Read the configuration again.")
            .response::<ReloadResponse>()
            .errors(&[409]),
        Route::get("/v1/openapi.json", "openapi", get(serve_openapi))
            .summary("This document.")
            .access(Access::NodeOrOperator)
            .response::<Value>(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `EDGE_UPDATE=1 cargo test -p edge-controller --lib openapi` updates the document.
    #[test]
    fn the_committed_openapi_document_is_the_one_that_the_types_make() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        let made = format!("{}\n", serde_json::to_string_pretty(&openapi_document()).unwrap());
        if std::env::var_os("EDGE_UPDATE").is_some() {
            std::fs::write(path, &made).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            committed == made,
            "docs/openapi.json is not up to date; EDGE_UPDATE=1 cargo test -p edge-controller openapi"
        );
    }

    #[test]
    fn every_reference_of_the_openapi_document_leads_somewhere() {
        fn walk(value: &Value, document: &Value) {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(to)) = map.get("$ref") {
                        assert!(document.pointer(to.trim_start_matches('#')).is_some(), "{to}");
                    }
                    map.values().for_each(|value| walk(value, document));
                }
                Value::Array(all) => all.iter().for_each(|value| walk(value, document)),
                _ => {}
            }
        }
        let document = openapi_document();
        walk(&document, &document);
    }
}

//! Describes the API as an OpenAPI 3.1 document, made from the table of routes and from the Rust
//! types.

use std::collections::{BTreeMap, BTreeSet};

use axum::http::StatusCode;
use edge_types::api::{PROBLEM_MEDIA_TYPE, Problem};
use edge_types::{Community, NodeName};
use schemars::SchemaGenerator;
use schemars::generate::{Contract, SchemaSettings};
use serde_json::{Map, Value, json};

use super::route::{Access, Route};

/// Makes the document for these routes.
pub(super) fn document(routes: Vec<Route>) -> Value {
    let settings = |contract| {
        let settings = SchemaSettings::draft2020_12().with(|settings| {
            settings.contract = contract;
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        });
        settings.into_generator()
    };
    let (mut request_schemas, mut response_schemas) = (settings(Contract::Deserialize), settings(Contract::Serialize));
    let problem = response_schemas.subschema_for::<Problem>();
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for route in routes {
        let method = route.method.as_str().to_lowercase();
        let described = describe(&route, &mut request_schemas, &mut response_schemas);
        paths.entry(route.path).or_default().insert(method, described);
    }
    let mut schemas = request_schemas.take_definitions(true);
    schemas.extend(response_schemas.take_definitions(true));
    schemas.values_mut().for_each(without_links);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "edge-controller",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "Nodes speak TLS 1.3 with their certificate; the operator speaks by the admin socket. Every error is an RFC 9457 problem \
                document. Unknown keys are ignored in what nodes send and refused in what the operator sends.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {
                "Problem": {
                    "description": "Refused; nothing of the request was carried out.",
                    "content": {PROBLEM_MEDIA_TYPE: {"schema": problem}},
                },
            },
            "securitySchemes": {
                "node": {"type": "mutualTLS", "description": "The certificate with which the node joined."},
                "operator": {
                    "type": "mutualTLS",
                    "description": "Whoever may open the admin socket; there is no certificate for it.",
                },
            },
        },
    })
}

/// Replaces rustdoc links with their visible text.
fn without_links(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(text)) = map.get_mut("description") {
                *text = text.replace("[`", "`").replace("`]", "`").replace("crate::", "");
            }
            map.values_mut().for_each(without_links);
        }
        Value::Array(all) => all.iter_mut().for_each(without_links),
        _ => {}
    }
}

fn describe(route: &Route, request_schemas: &mut SchemaGenerator, response_schemas: &mut SchemaGenerator) -> Value {
    let mut described = json!({
        "operationId": route.operation_id,
        "summary": route.summary,
        "security": match route.access {
            Access::Anyone => json!([]),
            Access::Node | Access::NodeWithGrace => json!([{"node": []}]),
            Access::NodeOrOperator => json!([{"node": []}, {"operator": []}]),
            Access::Operator => json!([{"operator": []}]),
        },
    });
    let mut parameters = Vec::new();
    for part in route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
        let schema = match part {
            "node" => request_schemas.subschema_for::<NodeName>().to_value(),
            "name" => request_schemas.subschema_for::<Community>().to_value(),
            _ => json!({"type": "string", "pattern": "^[A-Za-z0-9_-]+$"}),
        };
        parameters.push(json!({"name": part, "in": "path", "required": true, "schema": schema}));
    }
    let has_parameters = !parameters.is_empty() || route.query.is_some();
    if let Some(make) = route.query {
        let query = make(request_schemas).to_value();
        for (name, schema) in query["properties"].as_object().into_iter().flatten() {
            let mut schema = schema.clone();
            let description = schema.as_object_mut().and_then(|schema| schema.remove("description"));
            parameters.push(json!({"name": name, "in": "query", "description": description, "schema": schema}));
        }
    }
    if !parameters.is_empty() {
        described["parameters"] = parameters.into();
    }
    if let Some(make) = route.request {
        described["requestBody"] =
            json!({"required": true, "content": {"application/json": {"schema": make(request_schemas)}}});
    }
    let mut response = json!({"description": reason(route.status)});
    for (media, make) in &route.responses {
        response["content"][media] = make.map_or_else(|| json!({}), |make| json!({"schema": make(response_schemas)}));
    }
    let mut responses = Map::from_iter([(route.status.to_string(), response)]);
    for status in error_statuses(route, has_parameters) {
        let problem = json!({"$ref": "#/components/responses/Problem"});
        responses.insert(status.to_string(), problem);
    }
    described["responses"] = responses.into();
    described
}

/// Returns the statuses of errors that a route may return.
fn error_statuses(route: &Route, has_parameters: bool) -> BTreeSet<u16> {
    let mut statuses: BTreeSet<u16> = route.errors.iter().copied().collect();
    if route.access != Access::Anyone {
        statuses.extend([401, 403]);
    }
    if route.path.contains('{') {
        statuses.insert(404);
    }
    if has_parameters {
        statuses.insert(422);
    }
    if route.request.is_some() {
        statuses.extend([400, 408, 413, 415, 422]);
    }
    statuses.extend([500, 503]);
    statuses
}

fn reason(status: u16) -> &'static str {
    StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Done")
}

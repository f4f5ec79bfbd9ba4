//! A route: a method and path, with the handler, the input and the output.

use axum::http::Method;
use axum::routing::MethodRouter;
use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::state::ApiState;

/// One method on one path.
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
    /// HTTP statuses of errors, apart from those that follow from the other fields.
    pub(super) errors: &'static [u16],
}

/// The callers that may use a route.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Anyone,
    /// Only the node that the path names.
    Node,
    /// Does the same as `Node`, but accepts the node's certificate for the configured grace after
    /// its end. Only for renewing the certificate.
    NodeWithGrace,
    /// The node that the path names, or the operator. If the path names no node, any node or the
    /// operator.
    NodeOrOperator,
    Operator,
}

pub(super) type MakeSchema = fn(&mut SchemaGenerator) -> Schema;

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// Makes a schema for parameters: each property becomes a separate parameter.
fn inline<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    T::json_schema(generator)
}

const JSON: &str = "application/json";
pub(super) const NDJSON: &str = "application/x-ndjson";

impl Route {
    pub(super) fn new(
        method: Method,
        path: &'static str,
        operation_id: &'static str,
        handler: MethodRouter<ApiState>,
    ) -> Self {
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

    pub(super) fn get(path: &'static str, operation_id: &'static str, handler: MethodRouter<ApiState>) -> Self {
        Self::new(Method::GET, path, operation_id, handler)
    }

    pub(super) fn post(path: &'static str, operation_id: &'static str, handler: MethodRouter<ApiState>) -> Self {
        Self::new(Method::POST, path, operation_id, handler)
    }

    pub(super) fn delete(path: &'static str, operation_id: &'static str, handler: MethodRouter<ApiState>) -> Self {
        Self::new(Method::DELETE, path, operation_id, handler)
    }

    pub(super) fn summary(self, summary: &'static str) -> Self {
        Self { summary, ..self }
    }

    pub(super) fn access(self, access: Access) -> Self {
        Self { access, ..self }
    }

    pub(super) fn query<T: JsonSchema>(self) -> Self {
        Self { query: Some(inline::<T>), ..self }
    }

    pub(super) fn request<T: JsonSchema>(self) -> Self {
        Self { request: Some(schema::<T>), ..self }
    }

    pub(super) fn response<T: JsonSchema>(self) -> Self {
        self.response_as::<T>(JSON)
    }

    pub(super) fn response_as<T: JsonSchema>(mut self, media: &'static str) -> Self {
        self.responses.push((media, Some(schema::<T>)));
        self
    }

    pub(super) fn response_lines(mut self) -> Self {
        self.responses.push((NDJSON, None));
        self
    }

    pub(super) fn status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    pub(super) fn errors(self, errors: &'static [u16]) -> Self {
        Self { errors, ..self }
    }
}

//! The custom resources: what a row looks like as an object, for the API server and for whoever
//! reads it with kubectl.
//!
//! - [`Segment`], [`EdgeNode`], [`Community`]: the kinds. Their plurals are the ones that
//!   Kubernetes guesses for itself and end neither in "ss" nor in "status": proxies that guess
//!   resource names (KubeEdge's) guess right.
//! - [`token`]: join tokens, which are Secrets.
//! - [`Moment`]: a time, as Kubernetes writes it.
//!
//! Every record stands in one `spec`, written whole by one request that the API server refuses if
//! the object has changed meanwhile. What is only for eyes stands in `status`, which is written by
//! itself, never read back, and cannot be mixed up with the record: requests to the object leave
//! its status as it is, and the other way round.

#[allow(
    unreachable_pub,
    clippy::duplicated_attributes,
    reason = "the derive repeats the type, and takes several columns"
)]
mod community;
#[allow(
    unreachable_pub,
    clippy::duplicated_attributes,
    reason = "the derive repeats the type, and takes several columns"
)]
mod edge_node;
mod moment;
#[allow(
    unreachable_pub,
    clippy::duplicated_attributes,
    reason = "the derive repeats the type, and takes several columns"
)]
mod segment;
pub mod token;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{CustomResourceDefinition, JSONSchemaProps};
use kube::CustomResourceExt;

pub use community::object_name as community_object_name;
pub use community::{Community, CommunitySpec, CommunityStatus};
pub use edge_node::{EdgeNode, EdgeNodeSpec, EdgeNodeStatus, TunnelsStatus};
pub use moment::Moment;
pub use segment::{Segment, SegmentSpec, network_of, object_name};

/// API group of the custom resources, and prefix of our labels and annotations.
pub const GROUP: &str = "edge-cni.io";

/// The definitions of all kinds, each with the name of its file below `deploy/crds`.
pub fn definitions() -> [(&'static str, CustomResourceDefinition); 3] {
    [
        ("segments.yaml", short_names(Segment::crd())),
        ("edgenodes.yaml", EdgeNode::crd()),
        ("communities.yaml", short_names(Community::crd())),
    ]
}

/// Bounds the names of objects.
fn short_names(mut definition: CustomResourceDefinition) -> CustomResourceDefinition {
    let name = JSONSchemaProps { type_: Some("string".into()), max_length: Some(63), ..JSONSchemaProps::default() };
    let metadata = JSONSchemaProps {
        type_: Some("object".into()),
        properties: Some([("name".to_owned(), name)].into()),
        ..JSONSchemaProps::default()
    };
    for version in &mut definition.spec.versions {
        let schema = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut());
        if let Some(properties) = schema.and_then(|schema| schema.properties.as_mut()) {
            properties.insert("metadata".into(), metadata.clone());
        }
    }
    definition
}

/// A definition as a manifest.
pub fn manifest(definition: &CustomResourceDefinition) -> anyhow::Result<String> {
    Ok(serde_saphyr::to_string(definition)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Set to write the manifests anew.
    const REGENERATE: &str = "EDGE_UPDATE";

    #[test]
    fn the_manifests_in_deploy_are_those_of_the_types() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/crds");
        for (file, definition) in definitions() {
            let (path, text) = (folder.join(file), manifest(&definition).unwrap());
            if std::env::var_os(REGENERATE).is_some() {
                std::fs::write(&path, &text).unwrap();
            }
            let committed = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                committed == text,
                "{} is not what the types say; run {REGENERATE}=1 cargo test -p edge-controller-kubernetes --lib manifests",
                path.display()
            );
        }
    }

    #[test]
    fn plurals_are_those_that_are_guessed_from_the_kinds() {
        for (_, definition) in definitions() {
            let names = definition.spec.names;
            let singular = names.kind.to_lowercase();
            let guessed = match singular.strip_suffix('y') {
                Some(stem) => format!("{stem}ies"),
                None => format!("{singular}s"),
            };
            assert_eq!(names.plural, guessed);
            assert_eq!(names.singular.unwrap_or_default(), singular);
        }
    }
}

//! The custom resources: the form of rows as objects, for the API server and for people who read
//! the objects with kubectl.
//!
//! - [`Segment`], [`EdgeNode`], [`Community`]: the custom resources. Their plurals are those that
//!   Kubernetes derives from the kind, and do not end in "ss" or "status". So proxies that derive
//!   resource names, such as KubeEdge's, derive them correctly.
//! - [`token`]: join tokens, which are Secrets.
//! - [`Timestamp`]: a time in RFC 3339 format.
//! - [`kinds`]: maps rows to objects and back; [`raw_object`]: an object as the API server sends
//!   it.
//!
//! Every record is the `spec` of one object. One request writes the whole `spec`, and the API
//! server refuses the request if the object has changed in the meantime. `status` is only for
//! people: it is written separately and never read back as data. Requests for the object leave its
//! status unchanged, and requests for the status leave the object unchanged.

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
#[allow(
    unreachable_pub,
    clippy::duplicated_attributes,
    reason = "the derive repeats the type, and takes several columns"
)]
mod segment;
mod timestamp;
pub mod token;

pub(crate) mod kinds;
pub(crate) mod raw_object;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{CustomResourceDefinition, JSONSchemaProps};
use kube::CustomResourceExt;

pub use community::object_name as community_object_name;
pub use community::{Community, CommunitySpec, CommunityStatus};
pub use edge_node::{EdgeNode, EdgeNodeSpec, EdgeNodeStatus, ObstaclesStatus, TunnelsStatus};
pub use segment::{Segment, SegmentSpec, network_of, object_name};
pub use timestamp::Timestamp;

/// API group of the custom resources, and prefix of the project's labels and annotations.
pub const GROUP: &str = "edge-cni.io";

/// Returns the definitions (CRDs) of all kinds, each with its file name in `deploy/crds`.
pub fn definitions() -> [(&'static str, CustomResourceDefinition); 3] {
    [
        ("segments.yaml", short_names(Segment::crd())),
        ("edgenodes.yaml", EdgeNode::crd()),
        ("communities.yaml", short_names(Community::crd())),
    ]
}

/// Limits the names of objects to 63 characters.
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

/// Returns a definition as a YAML manifest.
pub fn manifest(definition: &CustomResourceDefinition) -> anyhow::Result<String> {
    Ok(serde_saphyr::to_string(definition)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Environment variable that makes the test write the manifests.
    const REGENERATE: &str = "EDGE_UPDATE";

    #[test]
    fn the_manifests_in_deploy_are_those_of_the_types() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/crds");
        for (file, definition) in definitions() {
            let (path, text) = (directory.join(file), manifest(&definition).unwrap());
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
    fn plurals_are_the_ones_that_kubernetes_derives_from_the_kinds() {
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

//! Decodes an object as the API server sends it, reduced to the parts that rows and writes need.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::core::DynamicObject;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

/// An object without the parts that are never needed; the managed fields alone make up half of the
/// data.
#[derive(Clone, Deserialize)]
pub(crate) struct RawObject<S> {
    #[serde(default)]
    pub(crate) metadata: Metadata,
    /// Spec of a custom resource.
    #[serde(default = "absent")]
    pub(crate) spec: Option<S>,
    /// Data of a Secret.
    #[serde(default)]
    pub(crate) data: Value,
}

/// Returns the default for `spec`. `#[serde(default)]` would require that `S` has a default.
fn absent<S>() -> Option<S> {
    None
}

/// A spec that is not decoded yet, so that an error in one spec affects only that object and not
/// the whole list.
pub(crate) trait Spec {
    fn read<T: DeserializeOwned>(self) -> serde_json::Result<T>;
}

impl Spec for Value {
    fn read<T: DeserializeOwned>(self) -> serde_json::Result<T> {
        serde_json::from_value(self)
    }
}

impl Spec for &RawValue {
    fn read<T: DeserializeOwned>(self) -> serde_json::Result<T> {
        serde_json::from_str(self.get())
    }
}

/// The metadata that rows and writes need.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Metadata {
    pub(crate) name: Option<String>,
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
    pub(crate) labels: Option<BTreeMap<String, String>>,
    pub(crate) annotations: Option<BTreeMap<String, String>>,
    pub(crate) finalizers: Option<Vec<String>>,
    pub(crate) owner_references: Option<Vec<OwnerReference>>,
}

impl From<DynamicObject> for RawObject<Value> {
    fn from(object: DynamicObject) -> Self {
        let DynamicObject { metadata, mut data, .. } = object;
        let ObjectMeta { name, uid, resource_version, labels, annotations, finalizers, owner_references, .. } =
            metadata;
        let metadata = Metadata { name, uid, resource_version, labels, annotations, finalizers, owner_references };
        let mut take = |field| data.get_mut(field).map(Value::take);
        Self { metadata, spec: take("spec"), data: take("data").unwrap_or_default() }
    }
}

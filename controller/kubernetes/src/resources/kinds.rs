//! Maps rows to Kubernetes objects and back.

use edge_controller_domain::clock::Seconds;
use edge_controller_domain::segments::SegmentRecord;
use edge_controller_domain::state::{Change, RESERVED_NAME, RowKey};
use edge_types::NodeName;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{ApiResource, DynamicObject};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::raw_object::{Metadata, RawObject, Spec};
use super::{Community, CommunitySpec, EdgeNode, EdgeNodeSpec, Segment, SegmentSpec, token};
use crate::client::version;

/// The kinds of Kubernetes objects, one for each type of row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Node,
    Segment,
    Community,
    Token,
}

/// Kind and name of an object.
pub(crate) type ObjectKey = (Kind, String);

/// Label selector for join tokens among other Secrets.
pub(crate) const TOKENS: &str = "edge-cni.io/kind=join-token";

/// Annotation of an object that a replica is about to delete. It shows the other replicas that the
/// deletion is the controller's own.
pub(crate) const DELETING: &str = "edge-cni.io/deleting";

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Node, Self::Segment, Self::Community, Self::Token];
    /// Kinds that exist only while their definition (CRD) exists.
    pub(crate) const CUSTOM: [Self; 3] = [Self::Node, Self::Segment, Self::Community];

    /// Returns plural and group: `segments.edge-cni.io`.
    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::Node => "edgenodes.edge-cni.io",
            Self::Segment => "segments.edge-cni.io",
            Self::Community => "communities.edge-cni.io",
            Self::Token => "secrets",
        }
    }

    /// Returns the object that holds the row of this key.
    pub(crate) fn object_key(key: &RowKey) -> ObjectKey {
        match key {
            RowKey::Node(name) => (Self::Node, name.to_string()),
            RowKey::Segment(network) => (Self::Segment, super::object_name(network)),
            RowKey::Community(name) => (Self::Community, name.as_str().to_ascii_lowercase()),
            RowKey::Token(id) => (Self::Token, token::object_name(id)),
        }
    }

    pub(crate) fn selector(self) -> Option<&'static str> {
        (self == Self::Token).then_some(TOKENS)
    }
}

/// The API endpoint of each kind.
#[derive(Clone)]
pub(crate) struct Apis {
    all: [Api<DynamicObject>; 4],
}

impl Apis {
    pub(crate) fn new(client: &Client, namespace: &str) -> Self {
        Self {
            all: Kind::ALL.map(|kind| match kind {
                Kind::Token => Api::namespaced_with(client.clone(), namespace, &resource(kind)),
                _ => Api::all_with(client.clone(), &resource(kind)),
            }),
        }
    }

    pub(crate) fn of(&self, kind: Kind) -> &Api<DynamicObject> {
        &self.all[kind as usize]
    }
}

fn resource(kind: Kind) -> ApiResource {
    fn erase<K: Resource<DynamicType = ()>>() -> ApiResource {
        ApiResource::erase::<K>(&())
    }
    match kind {
        Kind::Node => erase::<EdgeNode>(),
        Kind::Segment => erase::<Segment>(),
        Kind::Community => erase::<Community>(),
        Kind::Token => erase::<Secret>(),
    }
}

/// Metadata that other programs or people may have added to an object. The controller's writes keep
/// it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct ForeignMetadata(Option<Box<ObjectMeta>>);

impl ForeignMetadata {
    fn of(metadata: Metadata) -> Self {
        let Metadata { labels, annotations, finalizers, owner_references, .. } = metadata;
        let labels = labels.map(|mut labels| {
            labels.remove(token::KIND_LABEL);
            labels
        });
        // A write shows that the object is to stay, so the mark for deletion is removed.
        let annotations = annotations.map(|mut annotations| {
            annotations.remove(DELETING);
            annotations
        });
        let kept = ObjectMeta {
            labels: labels.filter(|labels| !labels.is_empty()),
            annotations: annotations.filter(|annotations| !annotations.is_empty()),
            finalizers: finalizers.filter(|finalizers| !finalizers.is_empty()),
            owner_references: owner_references.filter(|owners| !owners.is_empty()),
            ..ObjectMeta::default()
        };
        Self((kept != ObjectMeta::default()).then(|| Box::new(kept)))
    }
}

/// An object as the API server sent it.
#[derive(Debug, Clone)]
pub(crate) struct StoredObject {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) version: u64,
    /// The change that writes the row, or the reason why the object cannot be read.
    pub(crate) row: Result<Change, String>,
    pub(crate) foreign: ForeignMetadata,
    /// Whether a replica has marked the object for deletion.
    pub(crate) deleting: bool,
}

impl StoredObject {
    /// Reads an object; a row that cannot be read is kept as an error.
    ///
    /// # Errors
    /// Returns an error if the name, the UID or the version is missing. The API server always sends
    /// all three.
    pub(crate) fn of<S: Spec>(kind: Kind, object: RawObject<S>) -> Result<Self, String> {
        let RawObject { metadata, spec, data } = object;
        let (Some(name), Some(uid)) = (metadata.name.clone(), metadata.uid.clone()) else {
            return Err(format!("an object of {} has no name or uid", kind.what()));
        };
        let version = version(metadata.resource_version.as_deref())?;
        let row = decode(kind, &name, spec, &data);
        let annotations = metadata.annotations.as_ref();
        let deleting = annotations.is_some_and(|annotations| annotations.contains_key(DELETING));
        Ok(Self { name, uid, version, row, foreign: ForeignMetadata::of(metadata), deleting })
    }
}

fn decode<S: Spec>(kind: Kind, name: &str, spec: Option<S>, data: &Value) -> Result<Change, String> {
    fn read<T: DeserializeOwned>(spec: Option<impl Spec>) -> Result<T, String> {
        spec.ok_or("spec is missing")?.read().map_err(|e| format!("spec: {e}"))
    }
    Ok(match kind {
        Kind::Node => Change::PutNode(read::<EdgeNodeSpec>(spec)?.record(name)?),
        Kind::Segment => Change::PutSegment(read::<SegmentSpec>(spec)?.row(name)?),
        Kind::Community => Change::PutCommunity(read::<CommunitySpec>(spec)?.record(name)?),
        Kind::Token => Change::PutToken(token::record(name, data)?),
    })
}

/// Returns the row that blocks a segment with an unreadable object.
pub(crate) fn blocked(name: &str) -> Option<Change> {
    let network = super::network_of(name)?;
    let node: NodeName = RESERVED_NAME.parse().ok()?;
    Some(Change::PutSegment(SegmentRecord::new(network, node, String::new(), 0, None)))
}

/// Returns whether this row blocks a segment with an unreadable object.
pub(crate) fn is_blocked(row: &SegmentRecord) -> bool {
    row.node.as_str() == RESERVED_NAME
}

/// Returns the object that a change writes; `None` if the change deletes one.
pub(crate) fn encode(change: &Change, foreign: &ForeignMetadata) -> Result<Option<DynamicObject>, String> {
    let (kind, name) = Kind::object_key(&change.key());
    let spec = |spec: Result<Value, serde_json::Error>| spec.map(|spec| json!({"spec": spec}));
    let data = match change {
        Change::PutNode(record) => spec(serde_json::to_value(EdgeNodeSpec::of(record))),
        Change::GrantSegment(row) | Change::PutSegment(row) => spec(serde_json::to_value(SegmentSpec::of(row))),
        Change::PutCommunity(record) => spec(serde_json::to_value(CommunitySpec::of(record).1)),
        Change::PutToken(record) => token::content(record),
        Change::DeleteNode(_) | Change::DeleteSegment(_) | Change::DeleteCommunity(_) | Change::DeleteToken(_) => {
            return Ok(None);
        }
    };
    let data = data.map_err(|e| format!("{} cannot be written: {e}", change.key()))?;
    let mut object = DynamicObject::new(&name, &resource(kind)).data(data);
    if let Some(kept) = &foreign.0 {
        object.metadata = ObjectMeta { name: Some(name), ..(**kept).clone() };
    }
    if kind == Kind::Token {
        let labels = object.metadata.labels.get_or_insert_default();
        labels.insert(token::KIND_LABEL.into(), token::KIND.into());
    }
    Ok(Some(object))
}

/// Returns the latest time in a row, in seconds since the epoch; 0 if the row has none.
pub(crate) fn time_of(change: &Change) -> Seconds {
    match change {
        Change::PutNode(record) => record.joined_at,
        Change::GrantSegment(row) | Change::PutSegment(row) => row.granted_at.max(row.released_at.unwrap_or(0)),
        Change::PutToken(record) => record.created_at,
        _ => 0,
    }
}

//! Which rows are which objects.

use edge_controller_domain::clock::Seconds;
use edge_controller_domain::segments::Row;
use edge_controller_domain::state::{Change, Key};
use edge_types::NodeName;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{ApiResource, DynamicObject};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::source::{Metadata, Object, Spec};
use crate::client::version;
use crate::resources::{self, Community, CommunitySpec, EdgeNode, EdgeNodeSpec, Segment, SegmentSpec, token};

/// A kind of object, and with it of row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    Node,
    Segment,
    Community,
    Token,
}

/// Which object.
pub(super) type Place = (Kind, String);

/// Label by which tokens are told from other Secrets.
pub(super) const TOKENS: &str = "edge-cni.io/kind=join-token";

/// Annotation of an object that a replica is about to delete. The others know by it that the
/// deletion is the controller's own.
pub(super) const DELETING: &str = "edge-cni.io/deleting";

/// A segment whose object cannot be read is held by nobody that there is, and given to nobody.
const UNREADABLE: &str = "unreadable.invalid";

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Node, Self::Segment, Self::Community, Self::Token];
    /// Those that exist only as long as their definition (CRD) does.
    pub(super) const CUSTOM: [Self; 3] = [Self::Node, Self::Segment, Self::Community];

    /// Plural and group.
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Node => "edgenodes.edge-cni.io",
            Self::Segment => "segments.edge-cni.io",
            Self::Community => "communities.edge-cni.io",
            Self::Token => "secrets",
        }
    }

    /// The object that a row is in.
    pub(super) fn place(key: &Key) -> Place {
        match key {
            Key::Node(name) => (Self::Node, name.to_string()),
            Key::Segment(network) => (Self::Segment, resources::object_name(network)),
            Key::Community(name) => (Self::Community, name.as_str().to_ascii_lowercase()),
            Key::Token(id) => (Self::Token, token::object_name(id)),
        }
    }

    pub(super) fn selector(self) -> Option<&'static str> {
        (self == Self::Token).then_some(TOKENS)
    }
}

/// Where the objects of every kind are.
#[derive(Clone)]
pub(super) struct Apis {
    all: [Api<DynamicObject>; 4],
}

impl Apis {
    pub(super) fn new(client: &Client, namespace: &str) -> Self {
        Self {
            all: Kind::ALL.map(|kind| match kind {
                Kind::Token => Api::namespaced_with(client.clone(), namespace, &resource(kind)),
                _ => Api::all_with(client.clone(), &resource(kind)),
            }),
        }
    }

    pub(super) fn of(&self, kind: Kind) -> &Api<DynamicObject> {
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

/// What others may have added to an object, and what a write of ours keeps.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Foreign(Option<Box<ObjectMeta>>);

impl Foreign {
    fn of(metadata: Metadata) -> Self {
        let Metadata { labels, annotations, finalizers, owner_references, .. } = metadata;
        let labels = labels.map(|mut labels| {
            labels.remove(token::KIND_LABEL);
            labels
        });
        // Whoever writes the object keeps it.
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

/// An object as it came.
#[derive(Debug, Clone)]
pub(super) struct Observed {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) version: u64,
    /// The row, as the change that writes it; or why it cannot be read.
    pub(super) row: Result<Change, String>,
    pub(super) foreign: Foreign,
    /// A replica has marked it for its own deletion.
    pub(super) deleting: bool,
}

impl Observed {
    /// Reads an object.
    ///
    /// # Errors
    /// Where the API server does not tell its name, uid and version, as it always does.
    pub(super) fn of<S: Spec>(kind: Kind, object: Object<S>) -> Result<Self, String> {
        let Object { metadata, spec, data } = object;
        let (Some(name), Some(uid)) = (metadata.name.clone(), metadata.uid.clone()) else {
            return Err(format!("an object of {} has no name or uid", kind.what()));
        };
        let version = version(metadata.resource_version.as_deref())?;
        let row = decode(kind, &name, spec, &data);
        let annotations = metadata.annotations.as_ref();
        let deleting = annotations.is_some_and(|annotations| annotations.contains_key(DELETING));
        Ok(Self { name, uid, version, row, foreign: Foreign::of(metadata), deleting })
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

/// Stands for a segment whose object cannot be read.
pub(super) fn blocked(name: &str) -> Option<Change> {
    let network = resources::network_of(name)?;
    let node: NodeName = UNREADABLE.parse().ok()?;
    Some(Change::PutSegment(Row::new(network, node, String::new(), 0, None)))
}

/// Whether this stands for a segment whose object cannot be read.
pub fn is_blocked(row: &Row) -> bool {
    row.node.as_str() == UNREADABLE
}

/// The object that a change writes; `None` where it deletes one.
pub(super) fn encode(change: &Change, foreign: &Foreign) -> Result<Option<DynamicObject>, String> {
    let (kind, name) = Kind::place(&change.key());
    let spec = |spec: Result<Value, serde_json::Error>| spec.map(|spec| json!({"spec": spec}));
    let data = match change {
        Change::PutNode(record) => spec(serde_json::to_value(EdgeNodeSpec::of(record))),
        Change::ClaimSegment(row) | Change::PutSegment(row) => spec(serde_json::to_value(SegmentSpec::of(row))),
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

/// The latest time that a row knows of.
pub(super) fn time_of(change: &Change) -> Seconds {
    match change {
        Change::PutNode(record) => record.joined_at,
        Change::ClaimSegment(row) | Change::PutSegment(row) => row.granted_at.max(row.released_at.unwrap_or(0)),
        Change::PutToken(record) => record.created_at,
        _ => 0,
    }
}

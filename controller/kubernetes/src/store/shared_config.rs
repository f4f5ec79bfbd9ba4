//! Keeps the configuration on which all replicas must agree in one ConfigMap: the segment sizes in
//! force (those in which segments are granted) and the layout of all objects.
//!
//! A release does not start or write if a later layout has been in use, because it would drop
//! unknown fields from every object that it writes.
//!
//! Two segments of the same size are either equal or do not overlap, and of two equal segments the
//! API server accepts only one. Segments of different sizes may overlap. So only one pair of sizes
//! is in force at any time: the pair in the ConfigMap. A replica writes its sizes there when it
//! starts, and lists the segments after that. A replica that has created grants reads the ConfigMap
//! before it announces them, and rolls them back if other sizes are in force.
//!
//! As an example, X creates grants of one size and Y starts with another. If X reads after Y
//! writes, X reads Y's sizes and rolls its grants back. If X reads before Y writes, X's grants
//! exist before Y lists the segments, and Y grants around them. In both cases no grant of Y
//! overlaps one that X has announced.

use std::collections::BTreeMap;

use edge_controller_domain::clock::Seconds;
use edge_controller_domain::store::{Note, StoreError};
use edge_types::view::SegmentPrefix;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};

use super::definitions::Uids;
use super::single_flight::SingleFlight;
use crate::client::{REQUEST, explain, version};

/// The layout of the objects that this release writes.
const LAYOUT: u32 = 1;

/// Name of the ConfigMap.
const NAME: &str = "edge-cni-controller";
const VERSION: &str = "layout";
const V4: &str = "v4-prefix";
const V6: &str = "v6-prefix";
const TIME: &str = "time";
/// Lower bound: all revisions are higher than this value.
const OFFSET: &str = "revision-offset";
/// A counter that is increased to get a new resourceVersion.
const TOUCHED: &str = "touched";
/// Prefix of the keys that hold the UIDs of the definitions (CRDs) with which the objects exist.
const DEFINITION: &str = "definition.";
/// Number of attempts for a write that conflicts with those of other replicas.
const ATTEMPTS: u32 = 20;

pub(super) struct SharedConfig {
    api: Api<ConfigMap>,
    ours: SegmentPrefix,
    in_force: SingleFlight<InForce>,
    layout: SingleFlight<Result<(), StoreError>>,
}

/// The values that earlier runs have stored.
pub(super) struct StoredConfig {
    /// The latest time that was stored, seconds since the epoch.
    pub(super) time: Seconds,
    /// Lower bound: all revisions are higher than this value.
    pub(super) offset: u64,
}

/// Whether this replica's segment sizes are in force. The inner error contains the reason why they
/// are not; the outer error contains the reason why that is unknown.
type InForce = Result<Result<(), String>, StoreError>;

impl SharedConfig {
    pub(super) fn new(client: &Client, namespace: &str, ours: SegmentPrefix) -> Self {
        Self {
            api: Api::namespaced(client.clone(), namespace),
            ours,
            in_force: SingleFlight::default(),
            layout: SingleFlight::default(),
        }
    }

    /// Reads the values that earlier runs have stored, without putting any value in force.
    pub(super) async fn noted(&self) -> Result<StoredConfig, StoreError> {
        let data = self.get().await?.unwrap_or_default().data.unwrap_or_default();
        check_layout(&data).map_err(StoreError::Failed)?;
        Ok(StoredConfig { time: time(&data), offset: offset(&data) })
    }

    /// Puts this replica's segment sizes and layout in force. Returns the values that earlier runs
    /// have stored.
    pub(super) async fn put_in_force(&self) -> Result<StoredConfig, StoreError> {
        let (v4, v6) = (self.ours.v4.to_string(), self.ours.v6.to_string());
        let (before, _) = self
            .write(|data| {
                let before = sizes(data);
                data.insert(V4.into(), v4.clone());
                data.insert(V6.into(), v6.clone());
                data.insert(VERSION.into(), LAYOUT.to_string());
                (before, StoredConfig { time: time(data), offset: offset(data) })
            })
            .await?;
        let ((before_v4, before_v6), noted) = before;
        let changed = |before: Option<&str>, now: &str| before.is_some_and(|before| before != now);
        if changed(before_v4.as_deref(), &v4) || changed(before_v6.as_deref(), &v6) {
            tracing::warn!(v4, v6, "the sizes of segments change; replicas with other sizes grant none from now on");
        }
        Ok(noted)
    }

    /// Stores the definitions under which the objects in the latest list exist.
    ///
    /// # Errors
    /// Returns an error if other definitions are stored. In that case objects were deleted with
    /// those definitions, so the list is not complete.
    pub(super) async fn note_definitions(&self, definitions: &Uids) -> Result<(), StoreError> {
        let others = |data: &BTreeMap<String, String>| {
            let other = definitions.iter().find(|(kind, uid)| {
                data.get(&format!("{DEFINITION}{}", kind.what())).is_some_and(|noted| noted != *uid)
            });
            other.map(|(kind, _)| kind.what())
        };
        let data = self.get().await?.unwrap_or_default().data.unwrap_or_default();
        if let Some(what) = others(&data) {
            return Err(StoreError::Failed(format!(
                "the definition {what} (CRD) was deleted and made again, and its objects were deleted with it: replicas that run are writing them again; \
                 where none runs, import a backup (edge-controller import), or, to begin a new cluster that every node joins \
                 again, delete the ConfigMap {NAME}"
            )));
        }
        match noted(&data, definitions) {
            true => Ok(()),
            false => self.store_definitions(definitions).await,
        }
    }

    /// Stores that all objects were created again under these definitions.
    pub(super) async fn store_definitions(&self, definitions: &Uids) -> Result<(), StoreError> {
        let edit = |data: &mut BTreeMap<String, String>| {
            for (kind, uid) in definitions {
                data.insert(format!("{DEFINITION}{}", kind.what()), uid.clone());
            }
        };
        self.write(edit).await.map(drop)
    }

    /// Deletes the stored definitions, because the objects come from a backup.
    pub(super) async fn forget_definitions(&self) -> Result<(), StoreError> {
        let data = self.get().await?.unwrap_or_default().data.unwrap_or_default();
        if data.keys().any(|key| key.starts_with(DEFINITION)) {
            self.write(|data| data.retain(|key, _| !key.starts_with(DEFINITION))).await?;
        }
        Ok(())
    }

    /// Reads a note; `None` if it is not set.
    pub(super) async fn note(&self, note: Note) -> Result<Option<String>, StoreError> {
        let data = self.get().await?.unwrap_or_default().data.unwrap_or_default();
        Ok(data.get(note.key()).cloned())
    }

    /// Writes a note.
    pub(super) async fn set_note(&self, note: Note, text: &str) -> Result<(), StoreError> {
        self.write(|data| drop(data.insert(note.key().into(), text.into()))).await.map(drop)
    }

    /// Makes all revisions higher than `revision`. Returns the offset that is in force.
    pub(super) async fn begin_above(&self, revision: u64) -> Result<u64, StoreError> {
        let (offset, _) = self
            .write(|data| {
                let offset = offset(data).max(revision);
                data.insert(OFFSET.into(), offset.to_string());
                offset
            })
            .await?;
        Ok(offset)
    }

    /// Gets a new resourceVersion, which is later than all earlier ones, and stores the time.
    pub(super) async fn advance_version(&self, now: Seconds) -> Result<u64, StoreError> {
        let (_, version) = self
            .write(|data| {
                let now = now.max(time(data));
                data.insert(TIME.into(), now.to_string());
                let count = data.get(TOUCHED).and_then(|count| count.parse::<u64>().ok()).unwrap_or(0);
                data.insert(TOUCHED.into(), count.wrapping_add(1).to_string());
            })
            .await?;
        Ok(version)
    }

    /// Sets the stored time, also to an earlier one.
    pub(super) async fn replace_time(&self, now: Seconds) -> Result<(), StoreError> {
        self.write(|data| drop(data.insert(TIME.into(), now.to_string()))).await.map(drop)
    }

    /// Fails if a later release has been in use. The read starts after this call. Concurrent calls
    /// share one read.
    pub(super) async fn understood_since_now(&self) -> Result<(), StoreError> {
        self.layout.run(async || self.noted().await.map(drop)).await
    }

    /// Returns whether our sizes are in force. The read starts after this call. Concurrent calls
    /// share one read.
    pub(super) async fn in_force_since_now(&self) -> InForce {
        self.in_force.run(async || self.in_force().await).await
    }

    /// Returns whether our sizes are in force.
    pub(super) async fn in_force(&self) -> InForce {
        let map = self.get().await?.unwrap_or_default();
        let data = map.data.unwrap_or_default();
        if let Err(why) = check_layout(&data) {
            return Ok(Err(why));
        }
        let (v4, v6) = sizes(&data);
        let ours = (self.ours.v4.to_string(), self.ours.v6.to_string());
        if v4.as_ref() == Some(&ours.0) && v6.as_ref() == Some(&ours.1) {
            return Ok(Ok(()));
        }
        let show = |size: Option<String>| size.unwrap_or_else(|| "?".into());
        Ok(Err(format!(
            "segments of /{} and /{} are in force (ConfigMap {NAME}), and this replica has v4_prefix = {} and v6_prefix = {}: give all \
             replicas the same, and restart those with the right sizes last",
            show(v4),
            show(v6),
            ours.0,
            ours.1
        )))
    }

    async fn get(&self) -> Result<Option<ConfigMap>, StoreError> {
        with_timeout(self.api.get_opt(NAME)).await
    }

    async fn write<T>(&self, edit: impl Fn(&mut BTreeMap<String, String>) -> T) -> Result<(T, u64), StoreError> {
        for _ in 0..ATTEMPTS {
            let found = self.get().await?;
            let there = found.is_some();
            let mut map = found.unwrap_or_else(|| ConfigMap {
                metadata: ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() },
                ..ConfigMap::default()
            });
            let data = map.data.get_or_insert_default();
            check_layout(data).map_err(StoreError::Failed)?;
            let result = edit(data);
            let post = PostParams::default();
            // The write is over the version that was read, or creates a new object.
            let written = if there {
                tokio::time::timeout(REQUEST, self.api.replace(NAME, &post, &map)).await
            } else {
                tokio::time::timeout(REQUEST, self.api.create(&post, &map)).await
            };
            match written {
                Ok(Ok(map)) => {
                    let at = version(map.metadata.resource_version.as_deref()).map_err(StoreError::Failed)?;
                    return Ok((result, at));
                }
                Ok(Err(kube::Error::Api(status))) if status.code == 409 => {
                    tokio::time::sleep(edge_controller_domain::random::jitter(std::time::Duration::from_millis(50)))
                        .await;
                }
                Ok(Err(error)) => return Err(StoreError::Failed(explain("configmaps", &error))),
                Err(_) => return Err(silent()),
            }
        }
        Err(StoreError::Failed(format!("every write of the ConfigMap {NAME} conflicted with another replica's")))
    }
}

async fn with_timeout<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, StoreError> {
    match tokio::time::timeout(REQUEST, request).await {
        Ok(response) => response.map_err(|error| StoreError::Failed(explain("configmaps", &error))),
        Err(_) => Err(silent()),
    }
}

fn silent() -> StoreError {
    StoreError::Failed(format!("the API server did not answer about configmaps within {} s", REQUEST.as_secs()))
}

/// Refuses the layout of a later release.
fn check_layout(data: &BTreeMap<String, String>) -> Result<(), String> {
    match data.get(VERSION).map(|layout| layout.parse::<u32>()) {
        None => Ok(()),
        Some(Ok(layout)) if layout <= LAYOUT => Ok(()),
        Some(_) => Err(format!(
            "the objects are of layout {:?} (ConfigMap {NAME}), and this release writes {LAYOUT}: use the release that wrote them, or import into an \
             empty cluster what it exports",
            data.get(VERSION).map_or("", String::as_str)
        )),
    }
}

fn noted(data: &BTreeMap<String, String>, definitions: &Uids) -> bool {
    definitions.iter().all(|(kind, uid)| data.get(&format!("{DEFINITION}{}", kind.what())) == Some(uid))
}

fn sizes(data: &BTreeMap<String, String>) -> (Option<String>, Option<String>) {
    (data.get(V4).cloned(), data.get(V6).cloned())
}

fn offset(data: &BTreeMap<String, String>) -> u64 {
    data.get(OFFSET).and_then(|offset| offset.parse().ok()).unwrap_or(0)
}

fn time(data: &BTreeMap<String, String>) -> Seconds {
    data.get(TIME).and_then(|time| time.parse().ok()).unwrap_or(0)
}

//! Decides for the whole cluster whether labels of Node objects put nodes into communities
//! (`trust_node_labels`); `node_trust` applies the decision to each Node. A kubelet can label its
//! own Node, so these labels count only if the project's admission policy prevents kubelets from
//! setting them. The policy is watched, because it may be added or removed at any time.
//!
//! If the policy disappears, no member loses its community. A community from a label stays as long
//! as the Node has the label, but no community is added.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use kube::api::{ListParams, WatchParams};
use kube::core::ObjectList;
use kube::{Api, Client, Resource, ResourceExt};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use super::admission_policy::{self, MANIFEST, NAME};
use super::client::{ApiFailures, version};
use super::events::{EventRecorder, Regarding};
use super::list_watch::{ListWatch, ListWatchEvent, WatchStream, list_and_watch};

/// A label that puts an edge into communities. Kubelets cannot set it, so the label always applies.
pub const RESTRICTED_COMMUNITY_LABEL: &str = "node-restriction.kubernetes.io/edge-community";

/// Number of policies or bindings on one page of a list.
const PAGE: u32 = 500;
/// Interval at which failures of the API server are checked until the first lists have been read.
const LOOK: Duration = Duration::from_secs(1);

/// The value of `trust_node_labels`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Written", into = "Written")]
#[schemars(with = "String")]
pub enum TrustNodeLabels {
    /// Labels are used while the policy is in force.
    #[default]
    Auto,
    /// Labels always count, also those that kubelets set.
    Always,
    /// Labels never count.
    Never,
}

/// The value of `trust_node_labels` in the configuration. Files may also have a boolean, which was
/// the only form in the past.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Boolean(bool),
    Text(String),
}

impl TryFrom<Written> for TrustNodeLabels {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Boolean(true) => Ok(Self::Always),
            Written::Boolean(false) => Ok(Self::Never),
            Written::Text(text) => match text.trim() {
                "auto" => Ok(Self::Auto),
                "true" => Ok(Self::Always),
                "false" => Ok(Self::Never),
                _ => Err(format!("{text:?} is neither \"auto\", true nor false")),
            },
        }
    }
}

impl From<TrustNodeLabels> for Written {
    fn from(trust: TrustNodeLabels) -> Self {
        match trust {
            TrustNodeLabels::Auto => Self::Text("auto".into()),
            TrustNodeLabels::Always => Self::Boolean(true),
            TrustNodeLabels::Never => Self::Boolean(false),
        }
    }
}

/// The present effect of the community labels of Node objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelEffect {
    /// A label puts its node into the communities that it names.
    Count,
    /// The labels add no community. A community that a label gave before stays while the Node has
    /// the label.
    Keep,
    /// The labels are ignored.
    Ignore,
}

/// The effect of community labels, with the reason for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelTrust {
    /// The effect of community labels.
    pub effect: LabelEffect,
    /// The reason, for people.
    pub why: String,
    /// Whether the state of the policy is known.
    pub known: bool,
}

impl LabelTrust {
    /// Returns the effect before the first answer of the API server.
    pub fn at_start(trust: TrustNodeLabels) -> Self {
        let (effect, why, known) = match trust {
            TrustNodeLabels::Always => {
                (LabelEffect::Count, "trust_node_labels = true: also those that a kubelet sets".into(), true)
            }
            TrustNodeLabels::Never => (LabelEffect::Ignore, "trust_node_labels = false".into(), true),
            TrustNodeLabels::Auto => (LabelEffect::Keep, "the API server was not asked yet".into(), false),
        };
        Self { effect, why, known }
    }

    fn of(policy_check: Result<(), String>) -> Self {
        match policy_check {
            Ok(()) => {
                let why = format!("ValidatingAdmissionPolicy {NAME} keeps kubelets from them");
                Self { effect: LabelEffect::Count, why, known: true }
            }
            Err(why) => Self {
                effect: LabelEffect::Keep,
                why: format!(
                    "ValidatingAdmissionPolicy {NAME}: {why}; to let labels count run kubectl apply -f {MANIFEST}, or set trust_node_labels"
                ),
                known: true,
            },
        }
    }

    fn unknown(why: String) -> Self {
        Self { effect: LabelEffect::Keep, why, known: false }
    }
}

impl std::fmt::Display for LabelTrust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let why = &self.why;
        let others = format!("Community resources and the label {RESTRICTED_COMMUNITY_LABEL} do");
        match self.effect {
            LabelEffect::Count => write!(f, "community labels of Node objects count ({why})"),
            LabelEffect::Keep => write!(
                f,
                "community labels of Node objects add no member ({why}); what they gave before goes on to hold; {others} count"
            ),
            LabelEffect::Ignore => write!(f, "community labels of Node objects do not count ({why}); {others}"),
        }
    }
}

/// A watch of the policy and its bindings.
pub struct LabelWatch {
    client: Client,
    trust: watch::Sender<LabelTrust>,
    events: EventRecorder,
}

impl LabelWatch {
    /// Makes a watch that reports to `trust`.
    pub fn new(client: &Client, trust: watch::Sender<LabelTrust>, events: EventRecorder) -> Self {
        Self { client: client.clone(), trust, events }
    }

    /// Watches the objects and reports changes. Never returns.
    pub async fn run(self) {
        // Nodes are served without this watch, so its failures do not affect readiness.
        let api_failures = ApiFailures::default();
        let (policy_sender, mut policies) = mpsc::unbounded_channel();
        let (binding_sender, mut bindings) = mpsc::unbounded_channel();
        let all = WholeObjects::<ValidatingAdmissionPolicy>(
            Api::all(self.client.clone()),
            "validatingadmissionpolicies.admissionregistration.k8s.io",
        );
        // When the server ends, the receiver is closed.
        let watched_policies =
            list_and_watch(all, None, api_failures.clone(), move |event| drop(policy_sender.send(event)));
        let all = WholeObjects::<ValidatingAdmissionPolicyBinding>(
            Api::all(self.client.clone()),
            "validatingadmissionpolicybindings.admissionregistration.k8s.io",
        );
        let watched_bindings =
            list_and_watch(all, None, api_failures.clone(), move |event| drop(binding_sender.send(event)));
        tokio::pin!(watched_policies, watched_bindings);
        let mut policy = KnownObjects::new(|policy: &ValidatingAdmissionPolicy| policy.name_any() == NAME);
        let mut bound =
            KnownObjects::new(|binding: &ValidatingAdmissionPolicyBinding| binding.spec.policy_name == NAME);
        loop {
            let asked = policy.listed && bound.listed;
            tokio::select! {
                () = watched_policies.as_mut() => {}
                () = watched_bindings.as_mut() => {}
                Some(event) = policies.recv() => policy.apply(event),
                Some(event) = bindings.recv() => bound.apply(event),
                () = tokio::time::sleep(LOOK), if !asked => {}
            }
            if policy.listed && bound.listed {
                let bindings: Vec<_> = bound.objects.values().collect();
                self.report(LabelTrust::of(admission_policy::check(policy.objects.get(NAME), &bindings)));
            } else if let Some(why) = api_failures.all_reasons() {
                self.report(LabelTrust::unknown(why));
            }
        }
    }

    fn report(&self, now: LabelTrust) {
        let changed = self.trust.send_if_modified(|before| {
            let changed = *before != now;
            before.clone_from(&now);
            changed
        });
        if !changed {
            return;
        }
        if now.effect == LabelEffect::Count {
            tracing::info!("{now}");
            self.events.normal(Regarding::LabelPolicy, NAME, "NodeLabelsCount", now.to_string());
        } else {
            tracing::warn!("{now}");
            self.events.warning(Regarding::LabelPolicy, NAME, "NodeLabelsDoNotCount", now.to_string());
        }
    }
}

/// Logs the configured value if nothing needs to be watched.
pub fn log_forced(trust: &LabelTrust) {
    match trust.effect {
        LabelEffect::Count => tracing::warn!("{trust}"),
        LabelEffect::Keep | LabelEffect::Ignore => tracing::info!("{trust}"),
    }
}

/// The objects of one kind that affect the decision.
struct KnownObjects<K> {
    objects: BTreeMap<String, K>,
    listed: bool,
    matters: fn(&K) -> bool,
}

impl<K: Resource> KnownObjects<K> {
    fn new(matters: fn(&K) -> bool) -> Self {
        Self { objects: BTreeMap::new(), listed: false, matters }
    }

    fn apply(&mut self, event: ListWatchEvent<K>) {
        match event {
            ListWatchEvent::ListStarted | ListWatchEvent::Bookmark(_) => {}
            ListWatchEvent::Listed(objects, _) => {
                self.objects.clear();
                objects.into_iter().for_each(|object| self.put(object));
                self.listed = true;
            }
            ListWatchEvent::Applied(object) => self.put(object),
            ListWatchEvent::Deleted(object) => drop(self.objects.remove(&object.name_any())),
        }
    }

    fn put(&mut self, object: K) {
        let name = object.name_any();
        match (self.matters)(&object) {
            true => drop(self.objects.insert(name, object)),
            // The object may have affected the decision before this event.
            false => drop(self.objects.remove(&name)),
        }
    }
}

/// A source that lists and watches whole objects. The second field is the plural of the kind.
struct WholeObjects<K>(Api<K>, &'static str);

impl<K> ListWatch for WholeObjects<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    type Object = K;

    fn what(&self) -> &str {
        self.1
    }

    fn page_size(&self) -> u32 {
        PAGE
    }

    fn list_page<'a>(&'a self, params: &'a ListParams) -> BoxFuture<'a, kube::Result<ObjectList<K>>> {
        self.0.list(params).boxed()
    }

    fn watch<'a>(&'a self, params: &'a WatchParams, since: &'a str) -> BoxFuture<'a, kube::Result<WatchStream<K>>> {
        async move { Ok(self.0.watch(params, since).await?.boxed()) }.boxed()
    }

    fn version(object: &K) -> Result<u64, String> {
        version(object.meta().resource_version.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_auto_or_a_boolean_in_files_variables_and_flags() {
        #[derive(Deserialize, Serialize)]
        struct File {
            trust: TrustNodeLabels,
        }
        for (text, trust) in [
            ("\"auto\"", TrustNodeLabels::Auto),
            ("true", TrustNodeLabels::Always),
            ("\"true\"", TrustNodeLabels::Always),
            ("false", TrustNodeLabels::Never),
            ("\"false\"", TrustNodeLabels::Never),
        ] {
            let read: File = toml::from_str(&format!("trust = {text}")).unwrap();
            assert_eq!(read.trust, trust);
            let again: File = toml::from_str(&toml::to_string(&read).unwrap()).unwrap();
            assert_eq!(again.trust, trust);
        }
        for bad in ["\"yes\"", "1", "[]"] {
            assert!(toml::from_str::<File>(&format!("trust = {bad}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_policy_that_disappears_adds_and_removes_no_member() {
        let gone = LabelTrust::of(Err("it is not there".into()));
        assert_eq!(gone.effect, LabelEffect::Keep);
        let said = gone.to_string();
        for part in ["it is not there", MANIFEST, RESTRICTED_COMMUNITY_LABEL, "goes on to hold"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert_eq!(LabelTrust::of(Ok(())).effect, LabelEffect::Count);
        assert_eq!(LabelTrust::at_start(TrustNodeLabels::Auto).effect, LabelEffect::Keep);
        assert_eq!(LabelTrust::at_start(TrustNodeLabels::Never).effect, LabelEffect::Ignore);
    }
}

//! Checks which rights the controller's account lacks before the rights are needed. Otherwise a
//! missing right to create segments would be noticed only when the first node joins.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::authorization::v1::{ResourceRule, SelfSubjectRulesReview, SelfSubjectRulesReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};

use super::client::{ApiFailures, REQUEST};
use super::nodes::CLUSTER;

/// Interval at which the rights are read.
const PERIOD: Duration = Duration::from_secs(30);
/// Manifest that grants the rights.
const MANIFEST: &str = "deploy/kubernetes/10-rbac.yaml";
/// Name of the failure that lists the missing rights.
const WHAT: &str = "rights";

/// Required rights to objects of one resource.
struct Right {
    group: &'static str,
    resource: &'static str,
    /// The only object for which the right is needed; `None` for all objects.
    name: Option<&'static str>,
    verbs: &'static [&'static str],
    needed_for: Need,
}

/// The uses of Kubernetes for which the controller is configured.
#[derive(Debug, Clone, Copy)]
pub struct Uses {
    /// Whether the store is at the API server.
    pub store: bool,
    /// Whether nodes may join by service account.
    pub service_accounts: bool,
    /// Whether the admission policy is read to decide if community labels apply.
    pub label_policy: bool,
}

/// The functions of the controller that need a right.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    /// Any controller that is connected to Kubernetes.
    Nodes,
    /// The store at the API server.
    Store,
    /// Joins by service account.
    ServiceAccounts,
    /// Reading the admission policy that decides whether community labels count.
    Labels,
}

const fn right(
    needed_for: Need,
    group: &'static str,
    resource: &'static str,
    name: Option<&'static str>,
    verbs: &'static [&'static str],
) -> Right {
    Right { group, resource, name, verbs, needed_for }
}

const OURS: &str = "edge-cni.io";
const EXTENSIONS: &str = "apiextensions.k8s.io";
const ADMISSION: &str = "admissionregistration.k8s.io";
const DEFINITION: &str = "customresourcedefinitions";
const ALL: &[&str] = &["get", "list", "watch", "create", "update", "delete"];

const RIGHTS: &[Right] = &[
    right(Need::Nodes, "", "nodes", None, &["get", "list", "watch"]),
    right(Need::Nodes, "", "namespaces", Some("kube-system"), &["get"]),
    right(Need::Nodes, "events.k8s.io", "events", None, &["create"]),
    right(Need::Store, OURS, "segments", None, ALL),
    right(Need::Store, OURS, "edgenodes", None, ALL),
    right(Need::Store, OURS, "communities", None, ALL),
    right(Need::Store, OURS, "edgenodes/status", None, &["patch"]),
    right(Need::Store, OURS, "communities/status", None, &["patch"]),
    right(Need::Store, EXTENSIONS, DEFINITION, Some("segments.edge-cni.io"), &["get"]),
    right(Need::Store, EXTENSIONS, DEFINITION, Some("edgenodes.edge-cni.io"), &["get"]),
    right(Need::Store, EXTENSIONS, DEFINITION, Some("communities.edge-cni.io"), &["get"]),
    right(Need::Store, "", "secrets", None, ALL),
    right(Need::Store, "", "configmaps", None, &["create"]),
    right(Need::Store, "", "configmaps", Some("edge-cni-controller"), &["get", "update"]),
    right(Need::Store, "", "configmaps", Some("edge-cni-trust"), &["get", "update"]),
    right(Need::Store, "coordination.k8s.io", "leases", None, &["get", "list", "create", "update", "delete"]),
    right(Need::ServiceAccounts, "authentication.k8s.io", "tokenreviews", None, &["create"]),
    right(Need::Labels, ADMISSION, "validatingadmissionpolicies", None, &["get", "list", "watch"]),
    right(Need::Labels, ADMISSION, "validatingadmissionpolicybindings", None, &["list", "watch"]),
];

/// A periodic check of the account's rights.
pub struct OwnRights {
    api: Api<SelfSubjectRulesReview>,
    namespace: String,
    needs: Vec<Need>,
    api_failures: ApiFailures,
}

impl OwnRights {
    /// Makes a check of the rights that these `uses` need. The store is in `namespace`.
    pub fn new(client: &Client, namespace: &str, uses: Uses, api_failures: ApiFailures) -> Self {
        let wanted = [
            (Need::Nodes, true),
            (Need::Store, uses.store),
            (Need::ServiceAccounts, uses.service_accounts),
            (Need::Labels, uses.label_policy),
        ];
        let needs = wanted.into_iter().filter(|(_, wanted)| *wanted).map(|(need, _)| need).collect();
        Self { api: Api::all(client.clone()), namespace: namespace.into(), needs, api_failures }
    }

    /// Checks the rights periodically. Never returns. If the API server does not answer, other
    /// requests report the failure.
    pub async fn run(self) {
        let mut period = tokio::time::interval(PERIOD);
        period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            period.tick().await;
            let review = SelfSubjectRulesReview {
                spec: SelfSubjectRulesReviewSpec { namespace: Some(self.namespace.clone()) },
                ..SelfSubjectRulesReview::default()
            };
            let asked = tokio::time::timeout(REQUEST, self.api.create(&PostParams::default(), &review)).await;
            let Ok(Ok(SelfSubjectRulesReview { status: Some(status), .. })) = asked else { continue };
            // Some authorizers, such as webhooks, cannot list their rules.
            if status.incomplete {
                self.api_failures.clear(WHAT);
                continue;
            }
            let (texts, resources) = missing(&status.resource_rules, &self.needs);
            self.api_failures.note_lacking(&resources);
            match texts.as_slice() {
                [] => self.api_failures.clear(WHAT),
                texts => {
                    let texts = texts.join(", ");
                    let why = format!("the controller's account may not {texts}: run kubectl apply -f {MANIFEST}");
                    self.api_failures.record_minor(WHAT, why);
                }
            }
        }
    }
}

/// Returns the rights that the rules lack, in words, and the names of the failures that follow from
/// them. Most failures are named after the resource, such as `leases.GROUP`.
fn missing(rules: &[ResourceRule], needs: &[Need]) -> (Vec<String>, BTreeSet<String>) {
    let mut resources = BTreeSet::new();
    let mut texts = Vec::new();
    for right in RIGHTS.iter().filter(|right| needs.contains(&right.needed_for)) {
        let lacking: Vec<&str> =
            right.verbs.iter().copied().filter(|verb| !rules.iter().any(|rule| gives(rule, right, verb))).collect();
        if lacking.is_empty() {
            continue;
        }
        let of = if right.group.is_empty() { String::new() } else { format!(".{}", right.group) };
        let resource = format!("{}{of}", right.resource);
        let name = right.name.map(|name| format!(" {name}")).unwrap_or_default();
        texts.push(format!("{} {resource}{name}", lacking.join("/")));
        resources.insert(resource);
        // These failures are not named after their resource.
        match (right.resource, right.name) {
            ("namespaces", _) => drop(resources.insert(CLUSTER.into())),
            (DEFINITION, Some(kind)) => drop(resources.insert(format!("the definition {kind}"))),
            _ => {}
        }
    }
    (texts, resources)
}

fn gives(rule: &ResourceRule, right: &Right, verb: &str) -> bool {
    let has = |values: Option<&Vec<String>>, wanted: &str| {
        values.is_some_and(|values| values.iter().any(|value| value == "*" || value == wanted))
    };
    let subresource = right.resource.split_once('/').map(|(_, sub)| format!("*/{sub}"));
    let names = rule.resource_names.as_ref().filter(|names| !names.is_empty());
    has(Some(&rule.verbs), verb)
        && has(rule.api_groups.as_ref(), right.group)
        && (has(rule.resources.as_ref(), right.resource)
            || subresource.is_some_and(|sub| has(rule.resources.as_ref(), &sub)))
        && names.is_none_or(|names| right.name.is_some_and(|wanted| names.iter().any(|name| name == wanted)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::rbac::v1::PolicyRule;

    const EVERYTHING: &[Need] = &[Need::Nodes, Need::Store, Need::ServiceAccounts, Need::Labels];

    /// Returns the rules of the roles that the manifest gives to the controller's account.
    fn shipped() -> Vec<ResourceRule> {
        #[derive(serde::Deserialize)]
        struct Role {
            #[serde(default)]
            rules: Vec<PolicyRule>,
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/kubernetes/10-rbac.yaml");
        let text = std::fs::read_to_string(path).unwrap();
        let roles = text.split("\n---\n").map(|document| serde_saphyr::from_str::<Role>(document).unwrap());
        let rules = roles.flat_map(|role| role.rules).map(|rule| ResourceRule {
            api_groups: rule.api_groups,
            resource_names: rule.resource_names,
            resources: rule.resources,
            verbs: rule.verbs,
        });
        rules.collect()
    }

    #[test]
    fn the_shipped_rights_are_enough_and_each_that_is_taken_away_is_named() {
        let rules = shipped();
        assert_eq!(missing(&rules, EVERYTHING).0, [""; 0]);
        assert_eq!(missing(&[], &[Need::Nodes]).0.len(), 3);
        let failures = missing(&[], EVERYTHING).1;
        assert!(failures.contains(CLUSTER) && failures.contains("the definition segments.edge-cni.io"), "{failures:?}");
        let mut taken = 0;
        for (index, rule) in rules.iter().enumerate() {
            for verb in &rule.verbs {
                let mut less = rules.clone();
                less[index].verbs.retain(|kept| kept != verb);
                let (texts, resources) = missing(&less, EVERYTHING);
                let of = &rule.resources.as_ref().unwrap()[0];
                let named = texts.iter().any(|text| text.starts_with(verb.as_str()) && text.contains(of.as_str()));
                assert!(named && resources.iter().any(|resource| resource.starts_with(of)), "{verb} {of}: {texts:?}");
                taken += 1;
            }
        }
        assert!(taken > 30, "{taken}");
    }

    #[test]
    fn wildcards_count_and_a_rule_for_one_name_gives_no_right_to_all() {
        let rule = |group: &str, resource: &str, names: &[&str]| ResourceRule {
            api_groups: Some(vec![group.into()]),
            resource_names: Some(names.iter().map(|name| (*name).to_owned()).collect()),
            resources: Some(vec![resource.into()]),
            verbs: vec!["*".into()],
        };
        assert_eq!(missing(&[rule("*", "*", &[])], EVERYTHING).0, [""; 0]);
        let status = right(Need::Store, OURS, "edgenodes/status", None, &["patch"]);
        assert!(gives(&rule(OURS, "*/status", &[]), &status, "patch"));
        assert!(!gives(&rule(OURS, "edgenodes", &[]), &status, "patch"));
        let leases = right(Need::Store, "coordination.k8s.io", "leases", None, &["get"]);
        assert!(!gives(&rule("coordination.k8s.io", "leases", &["one"]), &leases, "get"));
        assert!(!gives(&rule("", "leases", &[]), &leases, "get"));
    }
}

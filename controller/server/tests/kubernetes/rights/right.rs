//! The rights of the shipped roles, with the steps of a [`Tour`](super::tour::Tour) that fail
//! without them.

use std::fmt;

use k8s_openapi::api::rbac::v1::PolicyRule;
use serde_json::Value;

/// One verb on one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Right {
    /// Given by the ClusterRole, not by the Role.
    pub(super) everywhere: bool,
    pub(super) group: String,
    /// With the subresource: `edgenodes/status`.
    pub(super) resource: String,
    pub(super) name: Option<String>,
    pub(super) verb: String,
}

impl fmt::Display for Right {
    /// As the controller names it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        self.name.iter().try_for_each(|name| write!(f, " {name}"))
    }
}

impl Right {
    pub(super) fn all(rules: &[PolicyRule], everywhere: bool) -> Vec<Self> {
        let mut rights = Vec::new();
        for rule in rules {
            let names = rule.resource_names.clone().unwrap_or_default();
            let names: Vec<_> = if names.is_empty() { vec![None] } else { names.into_iter().map(Some).collect() };
            for group in rule.api_groups.iter().flatten() {
                for resource in rule.resources.iter().flatten() {
                    for name in &names {
                        rights.extend(rule.verbs.iter().map(|verb| Self {
                            everywhere,
                            group: group.clone(),
                            resource: resource.clone(),
                            name: name.clone(),
                            verb: verb.clone(),
                        }));
                    }
                }
            }
        }
        rights
    }

    pub(super) fn rule(&self) -> PolicyRule {
        PolicyRule {
            api_groups: Some(vec![self.group.clone()]),
            resources: Some(vec![self.resource.clone()]),
            resource_names: self.name.clone().map(|name| vec![name]),
            verbs: vec![self.verb.clone()],
            non_resource_urls: None,
        }
    }

    /// What cannot succeed without it. Everything else must.
    pub(super) fn breaks(&self) -> &'static [&'static str] {
        match (self.resource.as_str(), self.verb.as_str()) {
            // Without these a replica does not start: it would not know what there is.
            ("segments" | "edgenodes" | "communities" | "secrets", "list") => &["start"],
            ("customresourcedefinitions", _) => &["start"],
            // A replica starts only if it can compare its segment sizes with those of the others.
            ("configmaps", "get" | "update") if self.name.as_deref() == Some("edge-cni-controller") => &["start"],
            // Node objects are not trusted before it is known which cluster answers.
            ("namespaces", _) => &["node object"],
            ("nodes", "list" | "watch") => &["node object"],
            ("nodes", "get") => &["node object", "service account"],
            ("tokenreviews", _) => &["service account"],
            ("validatingadmissionpolicies" | "validatingadmissionpolicybindings", "list" | "watch") => &["labels"],
            ("events", _) => &["event"],
            ("segments", "create") => &["join", "segments", "segment row", "event", "deregister"],
            ("segments", "update") => &["segment row", "deregister"],
            ("segments", "get" | "delete") => &["segment row"],
            ("edgenodes", "create") => &["join", "deregister"],
            ("edgenodes", "update") => &["deregister", "service account", "node object"],
            ("edgenodes", "get" | "delete") => &["deregister"],
            ("edgenodes/status", _) => &["status"],
            ("communities", "create") => &["community", "community's members", "community's end"],
            ("communities", "update") => &["community's members"],
            ("communities", "delete") => &["community's end"],
            ("communities", "watch") => &["community by kubectl", "community's status"],
            ("communities/status", _) => &["community's status"],
            ("secrets", "create") => &["token", "join", "token's end", "deregister"],
            ("secrets", "update") => &["join", "deregister"],
            ("secrets", "delete") => &["token's end"],
            ("configmaps", _) if self.name.as_deref() != Some("edge-cni-controller") => &["trust"],
            ("leases", "get" | "create" | "update") => &["leader", "status", "community's status", "trust"],
            _ => &[],
        }
    }

    /// Returns the resource without subresource. Leases and ConfigMaps are one family: a replica
    /// decides by the leases of the others whether it must write the shared ConfigMap.
    pub(super) fn family(&self) -> &str {
        match self.resource.split('/').next().unwrap_or_default() {
            "leases" => "configmaps",
            resource => resource,
        }
    }

    /// Returns whether a replica makes the request only when it stops.
    pub(super) fn is_asked_at_the_stop(&self) -> bool {
        self.resource == "leases" && self.verb == "delete"
    }

    /// The changes that conflict with another's write need it; others do not.
    pub(super) fn is_for_conflicts(&self) -> bool {
        self.verb == "get" && matches!(self.resource.as_str(), "secrets" | "communities")
    }

    /// Whether a request in the audit log is one that this right allows.
    pub(super) fn covers(&self, request: &Value) -> bool {
        let object = &request["objectRef"];
        let text = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
        let resource = match text("subresource").as_str() {
            "" => text("resource"),
            subresource => format!("{}/{subresource}", text("resource")),
        };
        request["verb"] == *self.verb
            && text("apiGroup") == self.group
            && resource == self.resource
            && self.name.as_ref().is_none_or(|wanted| text("name") == *wanted)
    }
}

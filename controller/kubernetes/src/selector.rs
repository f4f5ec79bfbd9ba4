//! Evaluates label selectors in the syntax of `kubectl get --selector`. The controller evaluates
//! the selectors itself, because it also watches Nodes that are not edges.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Label with the role of a Node. A kubelet cannot set it: the NodeRestriction admission plugin
/// prevents kubelets from setting labels with this prefix, and so does the project's own policy
/// (`deploy/kubernetes/15-node-labels.yaml`).
pub const ROLE_LABEL: &str = "node-restriction.kubernetes.io/edge-cni-role";

/// A selector of Nodes that meet all requirements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeSelector {
    text: String,
    requirements: Vec<Requirement>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    Exists(String),
    Lacks(String),
    In(String, BTreeSet<String>),
    NotIn(String, BTreeSet<String>),
}

impl NodeSelector {
    /// Returns the default selector for edges.
    pub fn edges() -> Self {
        let key = String::from("node-role.kubernetes.io/edge");
        Self { text: key.clone(), requirements: vec![Requirement::Exists(key)] }
    }

    /// Returns the default selector for hubs.
    pub fn hubs() -> Self {
        Self::with_role("hub")
    }

    /// Returns the default selector for other cloud nodes.
    pub fn clouds() -> Self {
        Self::with_role("cloud")
    }

    fn with_role(role: &str) -> Self {
        let requirement = Requirement::In(ROLE_LABEL.into(), BTreeSet::from([role.to_owned()]));
        Self { text: format!("{ROLE_LABEL}={role}"), requirements: vec![requirement] }
    }

    /// Returns the selector as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns whether a Node with these labels is selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.requirements.iter().all(|requirement| match requirement {
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::Lacks(key) => !labels.contains_key(key),
            Requirement::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Requirement::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
        })
    }
}

impl From<NodeSelector> for String {
    fn from(selector: NodeSelector) -> Self {
        selector.text
    }
}

impl TryFrom<String> for NodeSelector {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mut requirements = Vec::new();
        let (mut from, mut depth) = (0, 0u32);
        for (at, c) in text.char_indices() {
            match c {
                '(' => depth += 1,
                ')' => depth = depth.saturating_sub(1),
                ',' if depth == 0 => {
                    requirements.push(requirement(&text[from..at])?);
                    from = at + 1;
                }
                _ => {}
            }
        }
        if !text[from..].trim().is_empty() || !requirements.is_empty() {
            requirements.push(requirement(&text[from..])?);
        }
        Ok(Self { text, requirements })
    }
}

fn requirement(text: &str) -> Result<Requirement, String> {
    let text = text.trim();
    let key = |key: &str| {
        let key = key.trim();
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        match !key.is_empty() && key.chars().all(good) {
            true => Ok(key.to_owned()),
            false => {
                Err(format!("{text:?} is not KEY, !KEY, KEY=VALUE, KEY!=VALUE, KEY in (VALUES) or KEY notin (VALUES)"))
            }
        }
    };
    let set = |values: &str| -> Option<BTreeSet<String>> {
        let inside = values.trim().strip_prefix('(')?.strip_suffix(')')?;
        Some(inside.split(',').map(|value| value.trim().to_owned()).collect())
    };
    let one = |value: &str| BTreeSet::from([value.trim().to_owned()]);
    if let Some((name, value)) = text.split_once("!=") {
        return Ok(Requirement::NotIn(key(name)?, one(value)));
    }
    if let Some((name, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return Ok(Requirement::In(key(name)?, one(value)));
    }
    if let Some((name, values)) = text.split_once(" notin ").and_then(|(name, values)| Some((name, set(values)?))) {
        return Ok(Requirement::NotIn(key(name)?, values));
    }
    if let Some((name, values)) = text.split_once(" in ").and_then(|(name, values)| Some((name, set(values)?))) {
        return Ok(Requirement::In(key(name)?, values));
    }
    match text.strip_prefix('!') {
        Some(name) => key(name).map(Requirement::Lacks),
        None => key(text).map(Requirement::Exists),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_read_and_judged_as_kubectl_does() {
        let labels: BTreeMap<String, String> =
            [("zone", "a"), ("node-role.kubernetes.io/edge", "")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let matches = |text: &str| NodeSelector::try_from(text.to_owned()).unwrap().matches(&labels);
        for yes in
            ["", "zone", "!site", "zone=a", "zone == a", "zone!=b", "site!=x", "zone in (b, a)", "zone notin (b),zone"]
        {
            assert!(matches(yes), "{yes}");
        }
        for no in ["site", "!zone", "zone=b", "zone!=a", "zone in (b,c)", "zone notin (a)", "zone=a,site"] {
            assert!(!matches(no), "{no}");
        }
        assert!(NodeSelector::edges().matches(&labels));
        for selector in [NodeSelector::edges(), NodeSelector::hubs(), NodeSelector::clouds()] {
            assert_eq!(NodeSelector::try_from(selector.as_str().to_owned()).unwrap(), selector);
        }
        for odd in ["a b", "=x", "zone,", "zone in a", "(", "ü"] {
            NodeSelector::try_from(odd.to_owned()).unwrap_err();
        }
    }
}

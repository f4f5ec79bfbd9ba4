//! Names of nodes and communities, as Kubernetes allows them.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Node label that carries a node's communities.
pub const COMMUNITY_LABEL: &str = "fabedge/edge-community";
/// Alias of [`COMMUNITY_LABEL`]. If a node has both labels, the union of their communities applies.
pub const COMMUNITY_LABEL_ALIAS: &str = "bocloud.com/edge-community";

/// The reason why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A node name must be a DNS-1123 subdomain.
    #[error(
        "node name {0:?} is not a DNS-1123 subdomain: use 1 to 253 characters of a-z, 0-9, '-' and '.', \
         each part beginning and ending with a letter or digit and at most 63 long"
    )]
    Node(String),
    /// A community name must be a label value without `_`, which separates several communities.
    #[error(
        "community {0:?} is not a name: use 1 to 63 characters of A-Z, a-z, 0-9, '-' and '.', \
         beginning and ending with a letter or digit ('_' separates several communities in one label)"
    )]
    Community(String),
}

/// Name of a node: a DNS-1123 subdomain, as Kubernetes requires of a Node object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

impl NodeName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for NodeName {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "NodeName".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "A DNS-1123 subdomain.",
            "maxLength": 253,
            "pattern": r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$",
        })
    }
}

impl FromStr for NodeName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for NodeName {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        let label = |part: &str| {
            let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
            part.len() <= 63
                && edge(part.chars().next())
                && edge(part.chars().next_back())
                && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        };
        if text.len() <= 253 && text.split('.').all(label) { Ok(Self(text)) } else { Err(NameError::Node(text)) }
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> String {
        name.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Name of one community.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Community(String);

impl Community {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Community {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Community".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "A community's name.",
            "pattern": r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?$",
        })
    }
}

impl FromStr for Community {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for Community {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        let good = text.len() <= 63
            && edge(text.chars().next())
            && edge(text.chars().next_back())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.');
        if good { Ok(Self(text)) } else { Err(NameError::Community(text)) }
    }
}

impl From<Community> for String {
    fn from(name: Community) -> String {
        name.0
    }
}

impl fmt::Display for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The communities of one node.
pub type Communities = BTreeSet<Community>;

/// Parses a label value: communities separated by `_`. An empty value contains no community.
pub fn communities_of_label(value: &str) -> Result<Communities, NameError> {
    value.split('_').filter(|part| !part.is_empty()).map(str::parse).collect()
}

/// Parses the community labels of a node. If it has both, the union of their communities applies.
pub fn communities_of_labels<'a>(
    labels: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<Communities, NameError> {
    let mut all = Communities::new();
    for (key, value) in labels {
        if key == COMMUNITY_LABEL || key == COMMUNITY_LABEL_ALIAS {
            all.extend(communities_of_label(value)?);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_are_dns_subdomains() {
        for good in ["a", "edge-1", "edge.site-1.example", "0"] {
            assert_eq!(good.parse::<NodeName>().unwrap().as_str(), good);
        }
        let long = "a".repeat(254);
        for bad in ["", "-a", "a-", "A", "a..b", "a_b", "a b", "ü", "../x", "a\n", long.as_str()] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_label_value_holds_several_communities_and_the_alias_joins_in() {
        let both = communities_of_labels([
            (COMMUNITY_LABEL, "alpha_beta"),
            (COMMUNITY_LABEL_ALIAS, "beta_gamma"),
            ("unrelated", "delta"),
        ])
        .unwrap();
        assert_eq!(both.iter().map(Community::as_str).collect::<Vec<_>>(), ["alpha", "beta", "gamma"]);
        assert!(communities_of_label("").unwrap().is_empty());
        assert!(communities_of_label("a/b").is_err());
    }
}

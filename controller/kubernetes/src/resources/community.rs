//! The custom resource `Community`: nodes that may reach each other, listed by the operator.

use edge_controller_domain::state::CommunityRecord;
use edge_types::CommunityTunnels;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Members of a community that the operator lists.
#[derive(CustomResource, KubeSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "edge-cni.io",
    version = "v1alpha1",
    kind = "Community",
    singular = "community",
    plural = "communities",
    shortname = "ecom",
    category = "edge-cni",
    status = "CommunityStatus",
    doc = "Edge nodes that may reach each other, besides those that labels put into the community of the same name.",
    printcolumn(name = "Members", type_ = "string", json_path = ".spec.members"),
    printcolumn(name = "Tunnels", type_ = "string", json_path = ".spec.tunnels"),
    printcolumn(name = "Listed", type_ = "integer", json_path = ".status.listed"),
    printcolumn(name = "Registered", type_ = "integer", json_path = ".status.registered"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$')")
        .message("a community's name is 1 to 63 characters of a-z, 0-9, '-' and '.', beginning and ending with a letter or digit"),
    validation = Rule::new("!has(self.spec.name) || self.spec.name.lowerAscii() == self.metadata.name")
        .message("spec.name may differ from metadata.name only by capital letters")
)]
#[serde(rename_all = "camelCase")]
pub struct CommunitySpec {
    /// Names of the nodes that belong to the community. They need not be registered yet.
    #[serde(default)]
    #[schemars(
        length(max = 10000),
        inner(
            length(max = 253),
            regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$")
        )
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub members: Vec<String>,
    /// The community's name. Required only if it has capital letters. (Default: the object's name.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub name: Option<String>,
    /// When tunnels between members are set up, also between those that labels make members: "auto"
    /// (by the number of members), "eager" (at once) or "on-demand" (by the first packet).
    #[serde(default)]
    pub tunnels: Tunnels,
}

/// When tunnels between members are set up.
#[derive(JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tunnels {
    /// Each member decides by the number of members.
    #[default]
    Auto,
    /// At once, whatever the number of members is.
    Eager,
    /// By the first packet.
    OnDemand,
}

/// How many of the listed nodes are registered.
#[derive(JsonSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CommunityStatus {
    /// Number of nodes in the spec's list of members.
    pub listed: i32,
    /// Number of listed nodes that are registered edges.
    pub registered: i32,
    /// Names of listed nodes that are not registered edges, at most 20.
    pub missing: Vec<String>,
    /// Condition `Complete`: whether all listed nodes are registered edges.
    pub conditions: Vec<Condition>,
}

impl CommunitySpec {
    /// Returns the object's name and spec for a record.
    pub fn of(record: &CommunityRecord) -> (String, Self) {
        let CommunityRecord { name, members, tunnels } = record;
        let object = object_name(name);
        let spelt = (object != name.as_str()).then(|| name.to_string());
        let tunnels = match tunnels {
            CommunityTunnels::Auto => Tunnels::Auto,
            CommunityTunnels::Eager => Tunnels::Eager,
            CommunityTunnels::OnDemand => Tunnels::OnDemand,
        };
        (object, Self { members: members.iter().map(ToString::to_string).collect(), name: spelt, tunnels })
    }

    /// Reads the record of the object with this name.
    ///
    /// # Errors
    /// Returns an error that names the wrong field and the reason.
    pub fn record(&self, object: &str) -> Result<CommunityRecord, String> {
        let name = self.name.as_deref().unwrap_or(object);
        if name.to_ascii_lowercase() != object {
            return Err(format!("spec.name {name:?} is not {object:?} with other capital letters"));
        }
        let member = |name: &String| name.parse().map_err(|e: edge_types::NameError| format!("spec.members: {e}"));
        Ok(CommunityRecord {
            name: name.parse().map_err(|e: edge_types::NameError| format!("its name: {e}"))?,
            members: self.members.iter().map(member).collect::<Result<_, _>>()?,
            tunnels: match self.tunnels {
                Tunnels::Auto => CommunityTunnels::Auto,
                Tunnels::Eager => CommunityTunnels::Eager,
                Tunnels::OnDemand => CommunityTunnels::OnDemand,
            },
        })
    }
}

/// Returns the name of a community's object. Object names have no capital letters, so two
/// communities that differ only in capital letters cannot both exist.
pub fn object_name(name: &edge_types::Community) -> String {
    name.as_str().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_from_its_object_as_it_was() {
        for (name, object, tunnels) in [
            ("alpha", "alpha", CommunityTunnels::Auto),
            ("Alpha.1", "alpha.1", CommunityTunnels::Eager),
            ("beta", "beta", CommunityTunnels::OnDemand),
        ] {
            let members = ["a", "b.example"].map(|name| name.parse().unwrap()).into();
            let record = CommunityRecord { name: name.parse().unwrap(), members, tunnels };
            let (given, spec) = CommunitySpec::of(&record);
            assert_eq!(given, object);
            assert_eq!(spec.record(object).unwrap(), record);
            let spec: CommunitySpec = serde_json::from_value(serde_json::to_value(spec).unwrap()).unwrap();
            assert_eq!(spec.record(object).unwrap(), record);
        }
        // An object of an earlier release says nothing about tunnels.
        let earlier: CommunitySpec = serde_json::from_value(serde_json::json!({"members": []})).unwrap();
        assert_eq!(earlier.record("alpha").unwrap().tunnels, CommunityTunnels::Auto);
        let spec = CommunitySpec { members: vec!["A b".into()], ..CommunitySpec::default() };
        assert!(spec.record("alpha").unwrap_err().contains("spec.members"));
        let spec = CommunitySpec { name: Some("beta".into()), ..CommunitySpec::default() };
        assert!(spec.record("alpha").is_err());
    }
}

//! The service accounts whose tokens let nodes join.

use edge_types::{NodeName, Role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[kubernetes.join]`: the service account of each role.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JoinAccounts {
    /// Service account of the edges' agents.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub edge: Option<ServiceAccount>,
    /// Service account of the hubs' agents.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub hub: Option<ServiceAccount>,
    /// Service account of the agents on other cloud nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub cloud: Option<ServiceAccount>,
}

impl JoinAccounts {
    /// Returns the role for a user name at the API server.
    pub(super) fn role_of(&self, username: &str) -> Option<Role> {
        let all = [(&self.edge, Role::Edge), (&self.hub, Role::Hub), (&self.cloud, Role::Cloud)];
        all.into_iter()
            .find(|(account, _)| account.as_ref().is_some_and(|account| account.username() == username))
            .map(|(_, role)| role)
    }

    /// Checks that no account is configured for two roles.
    ///
    /// # Errors
    /// Returns an error if an account is configured for two roles.
    pub fn check(&self) -> Result<(), String> {
        let mut all: Vec<&ServiceAccount> = [&self.edge, &self.hub, &self.cloud].into_iter().flatten().collect();
        let count = all.len();
        all.sort();
        all.dedup();
        if all.len() < count {
            return Err("two roles have the same service account; an account stands for one".into());
        }
        Ok(())
    }
}

/// A service account, `NAMESPACE:NAME`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceAccount {
    namespace: String,
    name: String,
}

impl ServiceAccount {
    /// Returns the user name of the account at the API server.
    fn username(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.name)
    }
}

impl From<ServiceAccount> for String {
    fn from(account: ServiceAccount) -> Self {
        format!("{}:{}", account.namespace, account.name)
    }
}

impl TryFrom<String> for ServiceAccount {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let is_name = |part: &str| part.parse::<NodeName>().is_ok();
        match text.split_once(':').filter(|(namespace, name)| is_name(namespace) && is_name(name)) {
            Some((namespace, name)) => Ok(Self { namespace: namespace.into(), name: name.into() }),
            None => Err(format!("{text:?} is not NAMESPACE:NAME of a service account")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_names_in_namespaces_and_each_stands_for_one_role() {
        for bad in ["edge = \"agent\"", "edge = \"a:b:c\"", "edge = \":x\"", "edges = \"a:b\""] {
            assert!(toml::from_str::<JoinAccounts>(bad).is_err(), "{bad}");
        }
        let twice: JoinAccounts = toml::from_str("edge = \"a:b\"\nhub = \"a:b\"").unwrap();
        assert!(twice.check().unwrap_err().contains("same service account"));
        let two: JoinAccounts = toml::from_str("edge = \"a:b\"\nhub = \"a:c\"").unwrap();
        two.check().unwrap();
    }
}

//! A pod's route, in the format of the configuration and of results.

use std::net::IpAddr;

use edge_types::IpNetwork;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::version::Version;

/// Maximum number of routes in the key `routes`.
pub(crate) const MAX_ROUTES: usize = 64;

/// A route, in the format of the CNI specification's results and of the key `routes`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PodRoute {
    #[serde(rename = "dst")]
    pub(crate) destination: IpNetwork,
    /// The gateway. Without it, a route from the key `routes` uses the bridge's address.
    #[serde(rename = "gw", default)]
    pub(crate) gateway: Option<IpAddr>,
    /// The MTU, bytes.
    #[serde(default)]
    pub(crate) mtu: Option<u32>,
    /// TCP maximum segment size to advertise, bytes.
    #[serde(default)]
    pub(crate) advmss: Option<u32>,
    /// The metric; a lower one is preferred.
    #[serde(default)]
    pub(crate) priority: Option<u32>,
    /// The routing table; `None` for the main table.
    #[serde(default)]
    pub(crate) table: Option<u32>,
    /// The scope, `RT_SCOPE_*`; `None` for 0 (universe).
    #[serde(default)]
    pub(crate) scope: Option<u8>,
}

impl PodRoute {
    /// Creates a route through a gateway, with the kernel's defaults.
    pub(crate) fn to(destination: IpNetwork, gateway: IpAddr) -> Self {
        let gateway = Some(gateway);
        Self { destination, gateway, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }

    /// Returns whether the route is a default route of the main table.
    pub(crate) fn is_default(&self) -> bool {
        self.destination.prefix() == 0 && self.table.is_none()
    }

    /// Checks a route from the key `routes`. The error describes the defect.
    pub(crate) fn check(&self) -> Result<(), String> {
        let destination = &self.destination;
        if self.gateway.is_some_and(|gateway| gateway.is_ipv4() != destination.is_ipv4()) {
            return Err(format!("the gateway of the route to {destination} is of another family"));
        }
        if self.table == Some(0) {
            return Err(format!(
                "the route to {destination} has the table 0; expected another number, or leave it out"
            ));
        }
        Ok(())
    }

    /// Formats the route for the result. Before CNI 1.1.0, only the gateway and the destination
    /// exist.
    pub(crate) fn to_json(&self, version: Version) -> Value {
        let mut value = json!({ "dst": self.destination.to_string() });
        if let Some(gateway) = self.gateway {
            value["gw"] = gateway.to_string().into();
        }
        let later = [
            ("mtu", self.mtu),
            ("advmss", self.advmss),
            ("priority", self.priority),
            ("table", self.table),
            ("scope", self.scope.map(u32::from)),
        ];
        for (key, number) in later {
            if let Some(number) = number.filter(|_| version >= Version::V1_1_0) {
                value[key] = number.into();
            }
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_older_versions_do_not_know_is_left_out_of_the_result() {
        let route: PodRoute = serde_json::from_value(json!({"dst": "192.0.2.0/24", "mtu": 1300})).unwrap();
        assert_eq!(route.to_json(Version::V1_0_0), json!({"dst": "192.0.2.0/24"}));
        assert_eq!(route.to_json(Version::V1_1_0), json!({"dst": "192.0.2.0/24", "mtu": 1300}));
    }
}

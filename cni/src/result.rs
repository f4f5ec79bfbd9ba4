//! The result of ADD (CNI specification, "ADD Success"), in the format of the version in the
//! configuration.

use serde_json::{Value, json};

use crate::mac::{self, Mac};
use crate::pod_route::PodRoute;
use crate::segment::PodAddress;
use crate::version::Version;

/// An interface, with the data that the result contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) mac: Mac,
    pub(crate) mtu: u32,
}

/// The outcome of an ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AddResult {
    pub(crate) bridge: Interface,
    /// The host end of the veth pair.
    pub(crate) host: Interface,
    /// The pod end of the veth pair.
    pub(crate) pod: Interface,
    /// `CNI_NETNS`.
    pub(crate) sandbox: String,
    pub(crate) addresses: Vec<PodAddress>,
    /// The routes that were added in the pod.
    pub(crate) routes: Vec<PodRoute>,
}

impl AddResult {
    /// Returns the result as JSON.
    pub(crate) fn to_json(&self, version: Version, dns: Option<&Value>) -> Value {
        let dns = dns.cloned().unwrap_or_else(|| json!({}));
        if version < Version::V0_3_0 {
            return self.by_family(version, dns);
        }
        let interface = |interface: &Interface, sandbox: Option<&str>| {
            let mut value = json!({ "name": interface.name, "mac": mac::text(interface.mac) });
            if let Some(sandbox) = sandbox {
                value["sandbox"] = sandbox.into();
            }
            if version >= Version::V1_1_0 {
                value["mtu"] = interface.mtu.into();
            }
            value
        };
        let ips: Vec<Value> = self
            .addresses
            .iter()
            .map(|assigned| {
                let mut value = json!({
                    "address": format!("{}/{}", assigned.address, assigned.segment.prefix()),
                    "gateway": assigned.gateway().to_string(),
                    // The index of the pod end in `interfaces`.
                    "interface": 2,
                });
                if version < Version::V1_0_0 {
                    value["version"] = if assigned.address.is_ipv4() { "4" } else { "6" }.into();
                }
                value
            })
            .collect();
        let routes: Vec<Value> = self.routes.iter().map(|route| route.to_json(version)).collect();
        json!({
            "cniVersion": version.as_str(),
            "interfaces": [
                interface(&self.bridge, None),
                interface(&self.host, None),
                interface(&self.pod, Some(&self.sandbox)),
            ],
            "ips": ips,
            "routes": routes,
            "dns": dns,
        })
    }

    /// Returns the result in the format of CNI 0.1.0 and 0.2.0: one address of each family, with
    /// its routes, and no interfaces.
    fn by_family(&self, version: Version, dns: Value) -> Value {
        let mut result = json!({ "cniVersion": version.as_str(), "dns": dns });
        for (key, ipv4) in [("ip4", true), ("ip6", false)] {
            let Some(assigned) = self.addresses.iter().find(|assigned| assigned.address.is_ipv4() == ipv4) else {
                continue;
            };
            let routes = self.routes.iter().filter(|route| route.destination.is_ipv4() == ipv4);
            result[key] = json!({
                "ip": format!("{}/{}", assigned.address, assigned.segment.prefix()),
                "gateway": assigned.gateway().to_string(),
                "routes": routes.map(|route| route.to_json(version)).collect::<Vec<_>>(),
            });
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attached() -> AddResult {
        let interface = |name: &str, last| Interface { name: name.into(), mac: [2, 0, 0, 0, 0, last], mtu: 1400 };
        AddResult {
            bridge: interface("ecni0", 1),
            host: interface("ecnih", 2),
            pod: interface("eth0", 3),
            sandbox: "/run/netns/x".into(),
            addresses: [("10.77.0.2", "10.77.0.0/26"), ("fd77::2", "fd77::/120")]
                .map(|(address, segment)| PodAddress {
                    address: address.parse().unwrap(),
                    segment: segment.parse().unwrap(),
                })
                .to_vec(),
            routes: ["0.0.0.0/0", "::/0"]
                .map(|destination| serde_json::from_value(json!({ "dst": destination, "gw": "fd77::1" })).unwrap())
                .to_vec(),
        }
    }

    #[test]
    fn before_1_0_0_every_address_names_its_family_and_later_none_does() {
        for version in Version::ALL {
            let json = attached().to_json(version, None);
            assert_eq!(json["cniVersion"], version.as_str());
            if version < Version::V0_3_0 {
                continue;
            }
            assert_eq!(json["ips"][0].get("version").is_some(), version < Version::V1_0_0);
            assert_eq!(json["interfaces"][2].get("mtu").is_some(), version >= Version::V1_1_0);
        }
        assert_eq!(attached().to_json(Version::V0_3_1, None)["ips"][1]["version"], "6");
    }

    #[test]
    fn before_0_3_0_each_family_has_its_address_and_routes() {
        let mut attached = attached();
        attached.addresses.remove(0);
        let expected = json!({
            "cniVersion": "0.2.0",
            "ip6": {"ip": "fd77::2/120", "gateway": "fd77::1", "routes": [{"dst": "::/0", "gw": "fd77::1"}]},
            "dns": {},
        });
        assert_eq!(attached.to_json(Version::V0_2_0, None), expected);
    }

    #[test]
    fn addresses_point_at_the_pods_interface_and_routes_at_the_gateway() {
        let json = attached().to_json(Version::V1_1_0, Some(&json!({"nameservers":["10.0.0.10"]})));
        assert_eq!(json["ips"][0], json!({"address":"10.77.0.2/26","gateway":"10.77.0.1","interface":2}));
        assert_eq!(json["routes"][1], json!({"dst":"::/0","gw":"fd77::1"}));
        assert_eq!(json["interfaces"][2]["sandbox"], "/run/netns/x");
        assert_eq!(json["interfaces"][2]["mac"], "02:00:00:00:00:03");
        assert_eq!(json["dns"]["nameservers"][0], "10.0.0.10");
    }
}

//! The addresses that a runtime requests for a pod: `IP` and `MAC` in `CNI_ARGS`, and `ips` and
//! `mac` in `runtimeConfig` and `args.cni` (CNI's CONVENTIONS.md).

use std::net::IpAddr;

use edge_types::IpNetwork;
use serde_json::{Map, Value};

use crate::mac::{self, Mac};

/// The requested addresses, without duplicates. A pod gets no other address of the same family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RequestedAddresses {
    /// The IP addresses, at most one of each family.
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) mac: Option<Mac>,
}

impl RequestedAddresses {
    /// Reads `ips` and `mac` of `runtimeConfig` and `args.cni`. The error describes the defect.
    pub(crate) fn of_config(json: &Map<String, Value>) -> Result<Self, String> {
        let mut requested = Self::default();
        let args = json.get("args").and_then(|args| args.get("cni"));
        for (place, value) in [("runtimeConfig", json.get("runtimeConfig")), ("args.cni", args)] {
            let key = |key| value.and_then(|value| value.get(key)).filter(|value| !value.is_null());
            let in_place = |why: String| format!("{place}: {why}");
            if let Some(ips) = key("ips") {
                let ips = ips.as_array().ok_or_else(|| format!("{place} has ips {ips}; expected a list"))?;
                for ip in ips {
                    let text = ip.as_str().ok_or_else(|| format!("{place} has the ip {ip}; expected a text"))?;
                    requested.add_address(text).map_err(in_place)?;
                }
            }
            if let Some(mac) = key("mac") {
                let text = mac.as_str().ok_or_else(|| format!("{place} has mac {mac}; expected a text"))?;
                requested.add_mac(text).map_err(in_place)?;
            }
        }
        Ok(requested)
    }

    /// Adds an address, with or without a prefix length. The prefix length is ignored; the
    /// segment's prefix length applies.
    pub(crate) fn add_address(&mut self, text: &str) -> Result<(), String> {
        let network: Result<IpNetwork, _> = text.trim().parse();
        let address = network.map_err(|_| format!("{text:?} is not an IP address"))?.ip();
        match self.addresses.iter().find(|other| other.is_ipv4() == address.is_ipv4()) {
            Some(other) if *other != address => {
                Err(format!("{other} and {address} are requested, but a pod has one address of each family"))
            }
            Some(_) => Ok(()),
            None => {
                self.addresses.push(address);
                Ok(())
            }
        }
    }

    /// Adds a MAC address. An empty text requests no address.
    pub(crate) fn add_mac(&mut self, text: &str) -> Result<(), String> {
        if text.is_empty() {
            return Ok(());
        }
        let mac = mac::parse(text).ok_or_else(|| {
            format!("{text:?} is not a MAC address for a pod; expected a unicast address such as 02:00:00:00:00:01")
        })?;
        match self.mac.replace(mac) {
            Some(other) if other != mac => {
                Err(format!("{} and {} are requested, but a pod has one MAC address", mac::text(other), mac::text(mac)))
            }
            _ => Ok(()),
        }
    }

    /// Combines two requests. Fails if they request different addresses.
    pub(crate) fn and(mut self, other: &Self) -> Result<Self, String> {
        other.addresses.iter().try_for_each(|address| self.add_address(&address.to_string()))?;
        other.mac.iter().try_for_each(|mac| self.add_mac(&mac::text(*mac)))?;
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(value: Value) -> Result<RequestedAddresses, String> {
        RequestedAddresses::of_config(value.as_object().unwrap())
    }

    #[test]
    fn all_places_are_read_and_must_agree() {
        let requested = of(json!({
            "runtimeConfig": {"ips": ["10.77.0.9/24", "fd77::9"], "mac": "02-00-00-00-00-0A"},
            "args": {"cni": {"ips": ["10.77.0.9"], "mac": "02:00:00:00:00:0a"}},
        }))
        .unwrap();
        assert_eq!(requested.addresses, ["10.77.0.9", "fd77::9"].map(|text| text.parse::<IpAddr>().unwrap()));
        assert_eq!(requested.mac, Some([2, 0, 0, 0, 0, 10]));
        let nothing =
            json!({"runtimeConfig": {"ips": [], "mac": "", "portMappings": []}, "args": {"cni": {"ips": null}}});
        assert_eq!(of(nothing), Ok(RequestedAddresses::default()));
        let mut other = RequestedAddresses::default();
        other.add_address("10.77.0.8").unwrap();
        let error = requested.and(&other).unwrap_err();
        assert!(error.contains("10.77.0.9") && error.contains("10.77.0.8"), "{error}");
    }

    #[test]
    fn what_is_no_address_is_named() {
        for (value, named) in [
            (json!({"runtimeConfig": {"ips": "10.77.0.9"}}), "runtimeConfig"),
            (json!({"runtimeConfig": {"ips": ["10.77.0"]}}), "10.77.0"),
            (json!({"args": {"cni": {"ips": [7]}}}), "args.cni"),
            (json!({"args": {"cni": {"ips": ["10.77.0.9", "10.77.0.8"]}}}), "10.77.0.8"),
            (json!({"runtimeConfig": {"mac": "01:00:00:00:00:01"}}), "01:00:00:00:00:01"),
            (json!({"runtimeConfig": {"mac": "00:00:00:00:00:00"}}), "00:00:00:00:00:00"),
            (json!({"runtimeConfig": {"mac": "2:0:0:0:0:1"}}), "2:0:0:0:0:1"),
            (json!({"runtimeConfig": {"mac": 7}}), "7"),
        ] {
            let error = of(value.clone()).unwrap_err();
            assert!(error.contains(named), "{value}: {error}");
        }
    }
}

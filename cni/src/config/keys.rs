//! The keys that a configuration may have: the plugin's own keys, keys from the specification and
//! from runtimes, and keys of the bridge plugin. A key of a later specification must not prevent
//! pods from starting, but a misspelling of one of the plugin's keys must not be ignored.

use serde_json::{Map, Value};

use crate::error::{Code, Error, Result};

/// The plugin's own keys.
pub(super) const OWN_KEYS: [&str; 21] = [
    "bridge",
    "stateDir",
    "agentSocket",
    "clusterRanges",
    "segments",
    "mtu",
    "lowWater",
    "dns",
    "unfilteredPods",
    "lanToPods",
    "serviceRanges",
    "forwardOthers",
    "resolversBehindTunnels",
    "isGateway",
    "isDefaultGateway",
    "routes",
    "hairpinMode",
    "portIsolation",
    "enabledad",
    "resolvConf",
    "reserved",
];

/// Keys that the specification or the runtime defines. These keys are for other programs, or are
/// read elsewhere.
const RUNTIME_KEYS: [&str; 13] = [
    "cniVersion",
    "cniVersions",
    "name",
    "type",
    "capabilities",
    "runtimeConfig",
    "args",
    "prevResult",
    "disableCheck",
    "disableGC",
    "loadOnlyInlinedPlugins",
    "cni.dev/valid-attachments",
    "cni.dev/attachments",
];

/// Keys of the bridge plugin that request something that this plugin always does, or that only
/// affect how the bridge plugin does something. Their values do not matter.
const WITHOUT_EFFECT: [&str; 3] = ["forceAddress", "ipMasqBackend", "preserveDefaultVlan"];

/// Keys of the bridge plugin that are refused if their value requests something, each with the
/// reason.
const REFUSED: [(&str, &str); 7] = [
    (
        "ipam",
        "edge-cni leases addresses from the node's segments itself, since tunnels and policies are made for these. Other nodes would not accept packets \
         with addresses of another ipam plugin",
    ),
    (
        "ipMasq",
        "the agent masquerades what leaves the cluster ([firewall] masquerade), and packets within the cluster must keep their source. Without an agent, \
         use a rule of the host's firewall",
    ),
    (
        "vlan",
        "the bridge's filter drops VLAN tags, and pods of one node share one bridge. Use another network with a `bridge` of its own",
    ),
    (
        "vlanTrunk",
        "the bridge's filter drops VLAN tags, and pods of one node share one bridge. Use another network with a `bridge` of its own",
    ),
    ("promiscMode", "it is for hairpin packets, for which edge-cni sets `hairpinMode`"),
    (
        "disableContainerInterface",
        "a pod whose interface stays down has no use of its addresses. Leave the pod without a network instead",
    ),
    (
        "uplinkInterface",
        "the host's own network card must not be a port of the pods' bridge: pods reach other nodes through tunnels",
    ),
];

/// Refuses keys with a meaning that the plugin does not support, and keys that resemble one of the
/// plugin's keys. Returns all other unknown keys, which have no effect.
pub(super) fn unknown_keys(json: &Map<String, Value>) -> Result<Vec<String>> {
    let mut unknown = Vec::new();
    for (key, value) in json {
        if OWN_KEYS.contains(&key.as_str())
            || RUNTIME_KEYS.contains(&key.as_str())
            || WITHOUT_EFFECT.contains(&key.as_str())
        {
            continue;
        }
        if let Some((_, reason)) = REFUSED.iter().find(|(refused, _)| refused == key) {
            if asks_for_nothing(value) {
                continue;
            }
            return Err(unsupported(format!(
                "the configuration's key {key:?} with value {value} is not supported: {reason}; remove it"
            )));
        }
        if key == "macspoofchk" {
            if *value == Value::Bool(false) {
                return Err(unsupported(format!(
                    "the configuration's key {key:?} with value {value} is not supported: name the pods that may send with other addresses in `unfilteredPods`"
                )));
            }
            continue;
        }
        if let Some(own) = OWN_KEYS.iter().find(|own| looks_like(key, own)) {
            return Err(unsupported(format!(
                "the configuration's key {key:?} with value {value} is not known; if {own:?} is meant, write it so, else remove it"
            )));
        }
        unknown.push(key.clone());
    }
    Ok(unknown)
}

fn unsupported(message: String) -> Error {
    Error::new(Code::UnsupportedField, message)
}

/// Returns whether a value of a key of the bridge plugin leaves the feature off.
fn asks_for_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_u64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(true) => false,
    }
}

/// Returns whether a key is probably a misspelling of one of the plugin's keys. It differs in case
/// or separators, or in one letter that is added, missing or wrong.
fn looks_like(key: &str, own: &str) -> bool {
    let letters = |text: &str| -> Vec<char> {
        text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).take(64).collect()
    };
    let (key, own) = (letters(key), letters(own));
    let same_beginning = key.iter().zip(&own).take_while(|(one, other)| one == other).count();
    let (key, own) = (key.get(same_beginning..).unwrap_or_default(), own.get(same_beginning..).unwrap_or_default());
    let rest = |letters: &[char]| letters.get(1..).unwrap_or_default().to_vec();
    // `mtu` and `dns` are too short to distinguish a misspelling from another key.
    let long = same_beginning + own.len() > 3;
    key == own
        || long
            && (rest(key) == own || key == rest(own) || !key.is_empty() && !own.is_empty() && rest(key) == rest(own))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn judged(key: &str, value: Value) -> Result<Vec<String>> {
        unknown_keys(&Map::from_iter([(key.to_owned(), value)]))
    }

    #[test]
    fn keys_of_the_bridge_plugin_are_refused_with_a_reason_if_they_ask_for_something() {
        for (key, value) in [
            ("ipam", json!({"type": "host-local"})),
            ("ipMasq", json!(true)),
            ("vlan", json!(5)),
            ("vlanTrunk", json!([{"id": 5}])),
            ("promiscMode", json!(true)),
            ("macspoofchk", json!(false)),
            ("disableContainerInterface", json!(true)),
        ] {
            let error = judged(key, value.clone()).unwrap_err();
            assert_eq!(error.code, Code::UnsupportedField);
            assert!(error.message.contains(key) && error.message.contains(&value.to_string()), "{error}");
        }
        for (key, value) in [
            ("ipam", json!({})),
            ("ipMasq", json!(false)),
            ("vlan", json!(0)),
            ("vlanTrunk", json!([])),
            ("promiscMode", json!(false)),
            ("macspoofchk", json!(true)),
            ("forceAddress", json!(true)),
        ] {
            assert!(judged(key, value).unwrap().is_empty(), "{key}");
        }
    }

    #[test]
    fn a_misspelt_key_of_ours_is_refused_and_one_of_a_later_specification_is_not() {
        for (key, meant) in [
            ("Bridge", "bridge"),
            ("state_dir", "stateDir"),
            ("segment", "segments"),
            ("lanToPod", "lanToPods"),
            ("clusterRangees", "clusterRanges"),
            ("MTU", "mtu"),
        ] {
            let error = judged(key, json!(1)).unwrap_err();
            assert!(error.message.contains(key) && error.message.contains(meant), "{error}");
        }
        for key in ["cni.dev/later", "deviceID", "", "ntu", "dn", "ünbekannt", "segmentation"] {
            assert_eq!(judged(key, json!(1)).unwrap(), [key]);
        }
    }
}

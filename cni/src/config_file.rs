//! Reads a configuration file, which contains a list of plugins or one plugin's configuration.

use std::path::Path;

use serde_json::{Map, Value};

use crate::config::{Config, parse_object};
use crate::error::{Code, Context, Error, Result};

/// The file to which the agent writes the network configuration list.
pub(crate) const DEFAULT_CONFLIST: &str = "/etc/cni/net.d/10-edge-cni.conflist";

/// Reads the configuration of this plugin from a file, which contains a list or one plugin's
/// configuration.
pub(crate) fn read(path: &Path) -> Result<Config> {
    let text = std::fs::read(path).context("read", path)?;
    let config = plugin_of(parse_object(&text)?)
        .and_then(Config::from_object)
        .map_err(|error| error.with_subject(path.display()))?;
    config.report_unknown_keys();
    Ok(config)
}

/// Returns the configuration of this plugin. From a list, takes the plugin's entry and adds the
/// list's name and version, as a runtime does.
fn plugin_of(mut json: Map<String, Value>) -> Result<Map<String, Value>> {
    let Some(plugins) = json.remove("plugins") else { return Ok(json) };
    let ours = plugins
        .as_array()
        .and_then(|plugins| plugins.iter().find(|plugin| plugin["type"] == "edge-cni"))
        .and_then(Value::as_object)
        .ok_or_else(|| Error::new(Code::InvalidConfig, "the list has no plugin of type edge-cni"))?;
    let mut plugin = ours.clone();
    for key in ["name", "cniVersion"] {
        if let Some(value) = json.remove(key) {
            plugin.insert(key.into(), value);
        }
    }
    Ok(plugin)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn our_entry_is_found_in_a_list_and_takes_its_name_and_version() {
        let list = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "other"}, {"type": "edge-cni", "bridge": "b0"}]});
        let plugin = plugin_of(list.as_object().unwrap().clone()).unwrap();
        assert_eq!(
            Value::Object(plugin),
            json!({"cniVersion": "1.0.0", "name": "pods", "type": "edge-cni", "bridge": "b0"})
        );
        let foreign = json!({"plugins": [{"type": "bridge"}]});
        assert_eq!(plugin_of(foreign.as_object().unwrap().clone()).unwrap_err().code, Code::InvalidConfig);
    }
}

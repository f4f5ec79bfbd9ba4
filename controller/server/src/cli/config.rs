//! Prints the configuration with the source of each value.

use serde_json::{Value, json};

use super::table::{print, print_line};
use crate::config::LoadedConfig;

/// Returns all values as JSON. No value is a secret: private keys are in files, and the
/// configuration has only their paths.
pub(super) fn values(loaded: &LoadedConfig) -> Value {
    let all = loaded.values().map(|(key, value, origin)| {
        json!({"key": key.path, "value": value, "from": origin.to_string(), "env": key.env, "flag": key.flag})
    });
    all.collect()
}

/// Prints the values to standard output, and the warnings about them to standard error.
pub(super) fn show(loaded: &LoadedConfig, as_json: bool) -> anyhow::Result<()> {
    for warning in loaded.config.warnings() {
        eprintln!("warning: {warning}");
    }
    if as_json {
        return print_line(serde_json::to_string_pretty(&values(loaded))?);
    }
    let row = |(key, value, origin): (&crate::config::ConfigKey, toml::Value, crate::config::Origin)| {
        [key.path.clone(), value.to_string(), origin.to_string()]
    };
    print(["KEY", "VALUE", "FROM"], loaded.values().map(row))
}

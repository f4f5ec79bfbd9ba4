//! Prints the configuration, and where each value comes from.

use serde_json::json;

use super::table::{print, print_line};
use crate::config::LoadedConfig;

pub(super) fn show(loaded: &LoadedConfig, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        let all: Vec<_> = loaded
            .values()
            .map(|(key, value, origin)| {
                json!({"key": key.path, "value": value, "from": origin.to_string(), "env": key.env, "flag": key.flag})
            })
            .collect();
        return print_line(serde_json::to_string_pretty(&all)?);
    }
    let row = |(key, value, origin): (&crate::config::ConfigKey, toml::Value, crate::config::Origin)| {
        [key.path.clone(), value.to_string(), origin.to_string()]
    };
    print(["KEY", "VALUE", "FROM"], loaded.values().map(row))
}

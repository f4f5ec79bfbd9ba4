//! The table of configuration keys. It is made from the schema of [`Config`], so that flags,
//! environment variables and the file always have the same keys.

use std::sync::OnceLock;

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::file::Config;

/// Prefix of every environment variable.
pub(super) const ENV_PREFIX: &str = "EDGE_CONTROLLER_";

/// A key of the configuration.
#[derive(Debug)]
pub struct ConfigKey {
    /// Path of the key in the file, with dots: `segments.cluster_ranges`.
    pub path: String,
    /// The environment variable that sets the key: `EDGE_CONTROLLER_SEGMENTS_CLUSTER_RANGES`.
    pub env: String,
    /// The flag that sets the key, without leading dashes.
    pub flag: String,
    /// Description for `--help`, from the schema.
    pub help: String,
    /// Whether the key must be set.
    pub required: bool,
    /// Whether the value may change while the server runs, and the effect of a change.
    pub reload: Reload,
    pub(super) kind: Kind,
}

/// The effect of changing a key's value while the server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    /// The reload is refused: the server must be restarted.
    Never,
    /// The change applies from the next request on.
    Quiet,
    /// The change applies at once, and every node gets a new view.
    Views,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    List,
    Table,
    Number,
    Boolean,
    Text,
}

/// Returns all keys, by name.
pub fn keys() -> &'static [ConfigKey] {
    static KEYS: OnceLock<Vec<ConfigKey>> = OnceLock::new();
    KEYS.get_or_init(|| {
        let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
        let schema = settings.into_generator().into_root_schema_for::<Config>();
        let mut keys = Vec::new();
        walk("", schema.as_value(), &mut keys);
        keys
    })
}

fn walk(above: &str, schema: &Value, keys: &mut Vec<ConfigKey>) {
    let required = |name: &String| schema["required"].as_array().is_some_and(|all| all.iter().any(|key| key == name));
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        let path = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
        if schema["properties"].is_object() {
            walk(&path, schema, keys);
            continue;
        }
        let kinds = schema["type"].as_array().map_or_else(|| vec![&schema["type"]], |all| all.iter().collect());
        let kind = match kinds.into_iter().filter_map(Value::as_str).find(|kind| *kind != "null") {
            Some("array") => Kind::List,
            Some("object") => Kind::Table,
            Some("integer") => Kind::Number,
            Some("boolean") => Kind::Boolean,
            _ => Kind::Text,
        };
        let reload = match schema["x-reload"].as_str() {
            Some("quiet") => Reload::Quiet,
            Some("views") => Reload::Views,
            _ => Reload::Never,
        };
        keys.push(ConfigKey {
            env: format!("{ENV_PREFIX}{}", path.replace('.', "_").to_uppercase()),
            flag: path.replace(['.', '_'], "-"),
            help: schema["description"].as_str().unwrap_or_default().replace('\n', " "),
            required: required(name),
            reload,
            kind,
            path,
        });
    }
}

impl ConfigKey {
    /// Returns the form of a value in a flag or variable.
    pub fn form(&self) -> &'static str {
        match self.kind {
            Kind::List => "A,B,...",
            Kind::Table => "TOML",
            Kind::Number => "N",
            Kind::Boolean => "true|false",
            Kind::Text => "TEXT",
        }
    }

    /// Reads the text of a flag or variable.
    pub(super) fn parse(&self, text: &str) -> Result<toml::Value, String> {
        let toml = || {
            let table: toml::Table = format!("value = {text}").parse().map_err(|e| format!("not TOML: {e}"))?;
            table.get("value").cloned().ok_or_else(|| "not one TOML value".to_owned())
        };
        match self.kind {
            Kind::Table => toml(),
            Kind::List if text.trim_start().starts_with('[') => toml(),
            Kind::List => {
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                Ok(toml::Value::Array(parts.map(|part| part.into()).collect()))
            }
            Kind::Number => match text.trim().parse::<i64>() {
                Ok(number) => Ok(number.into()),
                Err(_) => Err(format!("{text:?} is no whole number")),
            },
            Kind::Boolean => match text.trim() {
                "true" => Ok(true.into()),
                "false" => Ok(false.into()),
                _ => Err(format!("{text:?} is neither true nor false")),
            },
            Kind::Text => Ok(text.into()),
        }
    }

    /// Returns the key's value in a table.
    pub(crate) fn get<'a>(&self, table: &'a toml::Table) -> Option<&'a toml::Value> {
        let mut parts = self.path.split('.');
        let first = table.get(parts.next()?)?;
        parts.try_fold(first, |value, part| value.get(part))
    }

    /// Sets the key's value in a table.
    pub(super) fn set(&self, table: &mut toml::Table, value: toml::Value) {
        let mut parts: Vec<&str> = self.path.split('.').collect();
        let Some(last) = parts.pop() else { return };
        let mut at = table;
        for part in parts {
            let below = at.entry(part).or_insert_with(|| toml::Table::new().into());
            let toml::Value::Table(below) = below else { return };
            at = below;
        }
        at.insert(last.into(), value);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn the_table_is_the_structs_and_every_key_says_what_it_is() {
        let find = |path: &str| keys().iter().find(|key| key.path == path).unwrap();
        let ranges = find("segments.cluster_ranges");
        assert_eq!(ranges.env, "EDGE_CONTROLLER_SEGMENTS_CLUSTER_RANGES");
        assert_eq!((ranges.flag.as_str(), ranges.required), ("segments-cluster-ranges", true));
        assert_eq!((ranges.kind, ranges.reload), (Kind::List, Reload::Views));
        assert_eq!((find("hub").kind, find("heartbeat_seconds").kind), (Kind::Table, Kind::Number));
        assert_eq!(find("certificates.ca_key").kind, Kind::Text);
        assert_eq!(find("listen").reload, Reload::Never);
        for key in keys() {
            assert!(!key.help.is_empty(), "{}", key.path);
        }
    }

    /// Adds the paths of a table's values. A table that is one key itself, such as `hub`, counts as
    /// that key.
    fn paths(above: &str, table: &toml::Table, found: &mut BTreeMap<String, toml::Value>) {
        for (name, value) in table {
            let path = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
            let is_key = keys().iter().any(|key| key.path == path);
            match value {
                toml::Value::Table(below) if !is_key => paths(&path, below, found),
                value => drop(found.insert(path, value.clone())),
            }
        }
    }

    fn documented_example() -> &'static str {
        let document = include_str!("../../../../docs/configuration.md");
        let section = document.split("## edge-controller").nth(1).unwrap().split("\n## ").next().unwrap();
        section.split("```toml\n").nth(1).unwrap().split("```").next().unwrap()
    }

    #[test]
    fn every_key_of_the_table_is_in_the_documented_example_and_no_other_is_there() {
        let mut documented = BTreeMap::new();
        paths("", &documented_example().parse().unwrap(), &mut documented);
        let all: BTreeSet<&str> = keys().iter().map(|key| key.path.as_str()).collect();
        assert_eq!(documented.keys().map(String::as_str).collect::<BTreeSet<_>>(), all);
        // The keys of each hub are not keys of the table.
        let schema = schemars::schema_for!(super::super::file::Hub);
        let of_hub: BTreeSet<&String> = schema.as_value()["properties"].as_object().unwrap().keys().collect();
        let hubs = documented["hub"].as_table().unwrap();
        assert_eq!(hubs.len(), 1);
        for hub in hubs.values() {
            assert_eq!(hub.as_table().unwrap().keys().collect::<BTreeSet<_>>(), of_hub);
        }
    }

    #[test]
    fn the_documented_example_has_the_defaults_where_no_comment_says_otherwise() {
        let smallest = "server_names = [\"cloud\"]\n[segments]\ncluster_ranges = [\"10.77.0.0/16\"]\n[kubernetes]\n";
        let defaults = toml::Table::try_from(toml::from_str::<Config>(smallest).unwrap()).unwrap();
        // A comment is about all keys up to the next comment, blank line or table.
        let (mut table, mut comment, mut below_key) = (String::new(), String::new(), false);
        let (mut all_differ, mut compared) = (false, 0);
        for line in documented_example().lines() {
            if line.starts_with('#') {
                if std::mem::take(&mut below_key) {
                    comment.clear();
                }
                comment.push_str(line);
            } else if let Some((name, value)) = line.split_once(" = ") {
                let path = format!("{table}{name}");
                if !all_differ && !comment.contains("efault") {
                    let key = keys().iter().find(|key| key.path == path).unwrap();
                    let default = key.get(&defaults).unwrap_or_else(|| panic!("{path} has no default"));
                    let value: toml::Table = format!("value = {value}").parse().unwrap();
                    assert_eq!(value["value"], *default, "{path}");
                    compared += 1;
                }
                below_key = true;
            } else {
                if let Some(header) = line.strip_prefix('[') {
                    table = format!("{}.", header.trim_end_matches(']'));
                    all_differ = comment.contains("(Default: none.)");
                }
                comment.clear();
                below_key = false;
            }
        }
        assert!(compared > 15, "{compared}");
    }
}

//! Reads the configuration. Flags take precedence over the environment, the environment over the
//! file, and the file over the defaults.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use serde::Deserialize;

use super::error::ConfigError;
use super::file::Config;
use super::keys::{ConfigKey, ENV_PREFIX, keys};

/// Variables with the controller's prefix that set no key.
const OTHERS: [&str; 2] = ["EDGE_CONTROLLER_SOCKET", "EDGE_CONTROLLER_CONFIG"];

/// The configuration file and the command line flags. The environment is read when the
/// configuration is loaded.
#[derive(Debug, Clone, Default)]
pub struct ConfigSources {
    file: Option<PathBuf>,
    flags: Vec<(&'static ConfigKey, String)>,
}

/// The source of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The value is the key's default.
    Default,
    /// The configuration file with this path sets the value.
    File(PathBuf),
    /// The environment variable of this name sets the value.
    Environment(String),
    /// The flag of this name, without dashes, sets the value.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path) => path.display().fmt(f),
            Origin::Environment(name) => f.write_str(name),
            Origin::Flag(name) => write!(f, "--{name}"),
        }
    }
}

/// A configuration that was read and checked.
#[derive(Debug)]
pub struct LoadedConfig {
    /// The values of all keys.
    pub config: Config,
    /// The sources of values that are not defaults, by path of the key.
    origins: BTreeMap<String, Origin>,
}

impl LoadedConfig {
    /// Returns every key with its value and its source. Keys without a value are left out.
    pub fn values(&self) -> impl Iterator<Item = (&'static ConfigKey, toml::Value, Origin)> {
        // Serialising a configuration that was read never fails.
        let table = toml::Table::try_from(&self.config).unwrap_or_default();
        keys().iter().filter_map(move |key| {
            let origin = self.origins.get(&key.path).cloned().unwrap_or(Origin::Default);
            Some((key, key.get(&table)?.clone(), origin))
        })
    }
}

impl ConfigSources {
    /// Makes sources of this file and the environment, without flags.
    pub fn file(path: PathBuf) -> Self {
        Self { file: Some(path), flags: Vec::new() }
    }

    /// Reads the sources, merges them by precedence and checks the result.
    pub fn load(&self) -> Result<LoadedConfig, ConfigError> {
        let ours = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            let name = name.to_str().filter(|name| name.starts_with(ENV_PREFIX))?.to_owned();
            Some((name, value.to_string_lossy().into_owned()))
        };
        self.load_with(std::env::vars_os().filter_map(ours).collect())
    }

    /// Loads the configuration from the sources, with this environment.
    pub(super) fn load_with(&self, environment: BTreeMap<String, String>) -> Result<LoadedConfig, ConfigError> {
        let (mut table, mut origins) = (toml::Table::new(), BTreeMap::new());
        let file = self.file.clone().or_else(|| environment.get("EDGE_CONTROLLER_CONFIG").map(PathBuf::from));
        if let Some(path) = file {
            table = read(&path)?;
            let set = keys().iter().filter(|key| key.get(&table).is_some());
            origins.extend(set.map(|key| (key.path.clone(), Origin::File(path.clone()))));
        }
        for name in environment.keys() {
            let known = OTHERS.contains(&name.as_str()) || keys().iter().any(|key| key.env == *name);
            if !known && !is_service_link(name) {
                return Err(ConfigError::Variable(name.clone()));
            }
        }
        let variables = keys()
            .iter()
            .filter_map(|key| Some((key, environment.get(&key.env)?, Origin::Environment(key.env.clone()))));
        let flags = self.flags.iter().map(|(key, text)| (*key, text, Origin::Flag(key.flag.clone())));
        for (key, text, origin) in variables.chain(flags) {
            let wrong = |why: String| ConfigError::Value { origin: origin.to_string(), key: key.path.clone(), why };
            key.set(&mut table, key.parse(text).map_err(wrong)?);
            // Each value is checked at once, so that an error names the value's source.
            if let Err(error) = Config::deserialize(table.clone())
                && !is_missing(&error)
            {
                return Err(wrong(error.message().to_owned()));
            }
            origins.insert(key.path.clone(), origin);
        }
        if let Some(key) = keys().iter().find(|key| key.required && key.get(&table).is_none()) {
            return Err(ConfigError::Missing { key: key.path.clone(), env: key.env.clone(), flag: key.flag.clone() });
        }
        let wrong = |key: &str, why: String| {
            let whole = keys().iter().find(|known| known.path == key);
            let key = whole.or_else(|| keys().iter().find(|known| known.path.rsplit('.').next() == Some(key)));
            let path = key.map_or("configuration", |key| &key.path);
            let origin = origins.get(path).cloned().unwrap_or(Origin::Default);
            ConfigError::Value { origin: origin.to_string(), key: path.into(), why }
        };
        let config = Config::deserialize(table).map_err(|error| wrong("", error.message().to_owned()))?;
        config.check().map_err(|(key, why)| wrong(key, why))?;
        Ok(LoadedConfig { config, origins })
    }
}

/// Reads a file as a table. The values in the file are checked here, where their lines are known;
/// missing keys may come from another source.
fn read(path: &PathBuf) -> Result<toml::Table, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Read { path: path.clone(), error })?;
    let syntax = |error| ConfigError::Syntax { path: path.clone(), error: Box::new(error) };
    match toml::from_str::<Config>(&text) {
        Err(error) if !is_missing(&error) => return Err(syntax(error)),
        _ => {}
    }
    text.parse().map_err(syntax)
}

fn is_missing(error: &toml::de::Error) -> bool {
    error.message().starts_with("missing field")
}

/// Returns whether Kubernetes sets this variable for a Service. Kubernetes sets such variables for
/// every Service of the namespace, and a Service may have the name of this program.
fn is_service_link(name: &str) -> bool {
    let port = |rest: &str| rest.is_empty() || rest.starts_with('_');
    name.ends_with("_SERVICE_HOST")
        || name.split_once("_SERVICE_PORT").is_some_and(|(_, rest)| port(rest))
        || name.ends_with("_PORT")
        || name.split_once("_PORT_").is_some_and(|(_, rest)| rest.starts_with(|c: char| c.is_ascii_digit()))
}

impl Args for ConfigSources {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new("config").long("config").value_name("FILE").value_parser(clap::value_parser!(PathBuf));
        let help = "The configuration file (TOML); may be left out if environment and flags say enough [env: EDGE_CONTROLLER_CONFIG]";
        let command = command.arg(file.help(help));
        keys().iter().fold(command, |command, key| {
            let arg = Arg::new(key.flag.as_str()).long(key.flag.as_str()).value_name(key.form());
            command
                .arg(arg.help(format!("{} [env: {}]", key.help, key.env)).help_heading("Configuration, over the file"))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ConfigSources {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let flag = |key: &'static ConfigKey| Some((key, matches.get_one::<String>(&key.flag)?.clone()));
        let flags = keys().iter().filter_map(flag).collect();
        Ok(Self { file: matches.get_one::<PathBuf>("config").cloned(), flags })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Config {
    /// Reads and checks a file, with the environment of the test.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Ok(ConfigSources::file(path.into()).load()?.config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "server_names = [\"cloud\"]\nheartbeat_seconds = 3\n[segments]\ncluster_ranges = [\"10.77.0.0/16\"]\nv4_prefix = 27\n";

    fn load(file: Option<&str>, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<LoadedConfig, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.toml");
        std::fs::write(&path, file.unwrap_or_default()).unwrap();
        let flag =
            |(path, text): &(&str, &str)| (keys().iter().find(|key| key.path == *path).unwrap(), (*text).to_owned());
        let sources = ConfigSources { file: file.map(|_| path), flags: flags.iter().map(flag).collect() };
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        sources.load_with(environment.collect()).map_err(|error| error.to_string())
    }

    fn origin(loaded: &LoadedConfig, path: &str) -> String {
        loaded.values().find(|(key, ..)| key.path == path).unwrap().2.to_string()
    }

    #[test]
    fn flags_go_over_the_environment_and_that_over_the_file() {
        let environment = [
            ("EDGE_CONTROLLER_HEARTBEAT_SECONDS", "4"),
            ("EDGE_CONTROLLER_SEGMENTS_CLUSTER_RANGES", "10.78.0.0/16, fd78::/64"),
            ("EDGE_CONTROLLER_SOCKET", "/run/x"),
        ];
        let loaded = load(Some(FILE), &environment, &[("heartbeat_seconds", "2")]).unwrap();
        assert_eq!((loaded.config.heartbeat_seconds, loaded.config.segments.v4_prefix), (2, 27));
        assert_eq!(loaded.config.segments.cluster_ranges.len(), 2);
        assert_eq!(origin(&loaded, "heartbeat_seconds"), "--heartbeat-seconds");
        assert_eq!(origin(&loaded, "segments.cluster_ranges"), "EDGE_CONTROLLER_SEGMENTS_CLUSTER_RANGES");
        assert!(origin(&loaded, "server_names").ends_with("c.toml"));
        assert_eq!(origin(&loaded, "listen"), "default");
    }

    #[test]
    fn without_a_file_environment_and_flags_do() {
        let environment = [
            ("EDGE_CONTROLLER_SERVER_NAMES", "a.example"),
            ("EDGE_CONTROLLER_HUB", "{cloud-1 = {endpoints = [\"203.0.113.10:4500\"]}}"),
        ];
        let loaded = load(None, &environment, &[("segments.cluster_ranges", "10.77.0.0/16")]).unwrap();
        assert_eq!(loaded.config.hub.len(), 1);
        let error = load(None, &environment, &[]).unwrap_err();
        for way in ["segments.cluster_ranges", "EDGE_CONTROLLER_SEGMENTS_CLUSTER_RANGES", "--segments-cluster-ranges"] {
            assert!(error.contains(way), "{error}");
        }
    }

    #[test]
    fn variables_that_set_nothing_are_refused_and_kubernetes_own_are_not_ours() {
        let error = load(Some(FILE), &[("EDGE_CONTROLLER_LISTN", "x")], &[]).unwrap_err();
        assert!(error.contains("EDGE_CONTROLLER_LISTN"), "{error}");
        let links =
            ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_NODES", "PORT", "PORT_8443_TCP", "PORT_8443_TCP_ADDR"];
        for link in links {
            load(Some(FILE), &[(&format!("EDGE_CONTROLLER_{link}"), "10.96.0.7")], &[]).unwrap();
            load(Some(FILE), &[(&format!("EDGE_CONTROLLER_METRICS_{link}"), "10.96.0.7")], &[]).unwrap();
        }
    }

    #[test]
    fn a_wrong_value_is_refused_with_whoever_brought_it() {
        for (name, value, says) in [
            ("EDGE_CONTROLLER_HEARTBEAT_SECONDS", "soon", "no whole number"),
            ("EDGE_CONTROLLER_HEARTBEAT_SECONDS", "99", "not within"),
            ("EDGE_CONTROLLER_LISTEN", "everywhere", "socket address"),
            ("EDGE_CONTROLLER_HUB", "{", "not TOML"),
        ] {
            let error = load(Some(FILE), &[(name, value)], &[]).unwrap_err();
            assert!(error.contains(name) && error.contains(says), "{error}");
        }
        let page = format!("{FILE}[page]\nlisten = [\"192.0.2.1:9645\"]\n");
        let error = load(Some(&page), &[], &[]).unwrap_err();
        assert!(error.contains("c.toml: page.listen: "), "{error}");
        let error = load(Some(FILE), &[], &[("segments.v4_prefix", "8")]).unwrap_err();
        assert!(error.contains("--segments-v4-prefix") && error.contains("does not fit"), "{error}");
        let error = load(Some("heartbeat_seconds = \"x\"\n"), &[], &[]).unwrap_err();
        assert!(error.contains("c.toml") && error.contains("line 1"), "{error}");
    }
}

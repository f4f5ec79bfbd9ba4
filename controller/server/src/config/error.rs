//! The reasons why a configuration cannot be used.

use std::path::PathBuf;

/// The reason why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {error}")]
    Read {
        /// Path of the configuration file.
        path: PathBuf,
        /// The system's error.
        error: std::io::Error,
    },
    /// The file is not TOML, or has an unexpected structure.
    #[error("{path}: {error}")]
    Syntax {
        /// Path of the configuration file.
        path: PathBuf,
        /// Line and column, and the error at that place.
        error: Box<toml::de::Error>,
    },
    /// A value is invalid.
    #[error("{origin}: {key}: {why}")]
    Value {
        /// The source of the value.
        origin: String,
        /// The key of the value.
        key: String,
        /// The error, and the expected value.
        why: String,
    },
    /// A key without a default is not set by any source.
    #[error("{key} is not set; set it in the file (--config), with {env} or with --{flag}")]
    Missing {
        /// Path of the key with dots: `segments.cluster_ranges`.
        key: String,
        /// The environment variable that sets the key.
        env: String,
        /// The flag that sets the key, without leading dashes.
        flag: String,
    },
    /// An environment variable has the controller's prefix but sets no key.
    #[error(
        "the environment variable {0} does not correspond to any configuration key; `edge-controller run --help` lists all"
    )]
    Variable(String),
}

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
    /// The file is not TOML of this shape.
    #[error("{path}: {error}")]
    Syntax {
        /// Path of the configuration file.
        path: PathBuf,
        /// Line, column and what is wrong there.
        error: Box<toml::de::Error>,
    },
    /// A value is invalid.
    #[error("{origin}: {key}: {why}")]
    Value {
        /// The source of the value.
        origin: String,
        /// The key that holds it.
        key: String,
        /// The error, and the expected value.
        why: String,
    },
    /// A key without default is set nowhere.
    #[error("{key} is set nowhere; set it in the file (--config), as {env}, or by --{flag}")]
    Missing {
        /// Path of the key with dots: `segments.cluster_ranges`.
        key: String,
        /// The environment variable that sets it.
        env: String,
        /// The flag that sets it, without the dashes before it.
        flag: String,
    },
    /// An environment variable has our prefix but sets no key.
    #[error("the environment variable {0} sets nothing that is known; `edge-controller run --help` lists all")]
    Variable(String),
}

//! Why a configuration cannot be used.

use std::path::PathBuf;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML of this shape.
    #[error("{path}: {source}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A value makes no sense.
    #[error("{origin}: {key}: {why}")]
    Value {
        /// Where it came from.
        origin: String,
        /// The key that holds it.
        key: String,
        /// What is wrong and what is expected.
        why: String,
    },
    /// A key without default is set nowhere.
    #[error("{key} is set nowhere; set it in the file (--config), as {env}, or by --{flag}")]
    Missing {
        /// The key.
        key: String,
        /// Its environment variable.
        env: String,
        /// Its flag.
        flag: String,
    },
    /// A variable that looks like ours and is not.
    #[error("the environment variable {0} sets nothing that is known; `edge-controller run --help` lists all")]
    Variable(String),
}

//! The configuration of `edge-controller run`. Unknown keys are refused. The full example stands in
//! `docs/configuration.md`.
//!
//! - [`Config`]: all keys, and the checks of their values.
//! - [`keys()`]: the table of keys that follows from it.
//! - [`ConfigSources`]: file, environment and flags.
//! - [`ConfigError`]: the reasons why a configuration cannot be used.

mod error;
mod file;
mod keys;
mod sources;

#[cfg(test)]
mod tests;

pub use error::ConfigError;
pub use file::{ADMIN_SOCKET, Certificates, Config, Hub, Kubernetes, Observe, PORT, Segments};
pub use keys::{ConfigKey, Reload, keys};
pub use sources::{ConfigSources, LoadedConfig, Origin};

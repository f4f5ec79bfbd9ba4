//! The configuration of `edge-controller run`. Unknown keys are refused. `docs/configuration.md`
//! has a full example.
//!
//! - [`Config`]: all keys with their defaults and the checks of their values.
//! - [`keys()`]: the table of keys, made from the schema of [`Config`].
//! - [`ConfigSources`]: the file, the environment and the flags from which the configuration is
//!   read.
//! - [`ConfigError`]: the reasons why a configuration cannot be used.

mod error;
mod file;
mod keys;
mod listeners;
mod sources;
mod warnings;

#[cfg(test)]
mod tests;

pub use error::ConfigError;
pub use file::{ADMIN_SOCKET, Certificates, Config, Hub, Kubernetes, Observe, PORT, Segments};
pub use keys::{ConfigKey, Reload, keys};
pub use sources::{ConfigSources, LoadedConfig, Origin};

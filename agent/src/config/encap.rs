//! The key `encap`: whether ESP is encapsulated in UDP.

use serde::Deserialize;

/// The key `encap`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encap {
    /// Always in UDP, because firewalls that accept IKE and drop ESP are common.
    #[default]
    Force,
    /// Only if a NAT is detected.
    Auto,
}

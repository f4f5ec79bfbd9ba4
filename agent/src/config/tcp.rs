//! `[tcp]`: IKE and ESP in TCP, for networks that block UDP.

use serde::Deserialize;

/// The table `[tcp]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TcpSection {
    /// On an edge: whether it connects to hubs by TCP if they cannot be reached by UDP.
    pub fallback: bool,
    /// On a hub: the TCP port on which it listens for edges. None: it does not listen.
    pub listen_port: Option<u16>,
}

impl Default for TcpSection {
    fn default() -> Self {
        Self { fallback: true, listen_port: None }
    }
}

impl TcpSection {
    /// Checks the port.
    pub(super) fn check(&self) -> Result<(), String> {
        match self.listen_port {
            Some(0) => {
                Err("[tcp]: listen_port is 0; expected 1 to 65535, such as 4500, or no key: then nothing listens"
                    .into())
            }
            _ => Ok(()),
        }
    }
}

//! The address or host name of a static peer.

use std::net::{IpAddr, SocketAddr};

/// The address or name of a peer, with an optional port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// The address or host name.
    pub host: RemoteHost,
    /// The port, if it is not 500.
    pub port: Option<u16>,
}

/// The address of a peer, or a name that is resolved while the agent runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RemoteHost {
    /// An address.
    Address(IpAddr),
    /// A host name.
    Name(String),
}

impl RemoteHost {
    /// Returns one form of an address: an IPv4 address is not mapped to IPv6.
    pub(super) fn canonical(&self) -> Self {
        match self {
            Self::Address(address) => Self::Address(address.to_canonical()),
            Self::Name(name) => Self::Name(name.clone()),
        }
    }

    /// Returns the host name; `None` if this is an address.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Address(_) => None,
            Self::Name(name) => Some(name),
        }
    }
}

impl Remote {
    /// Returns the address; `None` if this is a host name.
    pub fn address(&self) -> Option<IpAddr> {
        match self.host {
            RemoteHost::Address(address) => Some(address),
            RemoteHost::Name(_) => None,
        }
    }

    /// Returns the port; 500 if none is given (RFC 7296 2).
    pub fn port_or_default(&self) -> u16 {
        self.port.unwrap_or(500)
    }

    /// Parses an address or a host name, with or without a port.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self { host: RemoteHost::Address(address), port: None });
        }
        if let Some(socket) = text.parse::<SocketAddr>().ok().filter(|socket| socket.port() != 0) {
            return Ok(Self { host: RemoteHost::Address(socket.ip()), port: Some(socket.port()) });
        }
        let (name, port) = match text.split_once(':') {
            Some((name, port)) => (name, port.parse().ok().filter(|port| *port != 0).map(Some)),
            None => (text, Some(None)),
        };
        match port {
            Some(port) if is_host_name(name) => Ok(Self { host: RemoteHost::Name(name.to_ascii_lowercase()), port }),
            _ => Err(format!(
                "{text:?} is neither an address nor a host name: write 192.0.2.1, 192.0.2.1:4500, 2001:db8::1, [2001:db8::1]:4500, \
                 moon.example or moon.example:4500"
            )),
        }
    }
}

/// Returns whether a text is a host name: labels of letters, digits and hyphens (RFC 1123 2.1), and
/// not an address. Underscores are accepted as well, since resolvers accept them.
fn is_host_name(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
    };
    let last_is_number = text.rsplit('.').next().is_some_and(|last| last.chars().all(|c| c.is_ascii_digit()));
    text.len() <= 253 && text.split('.').all(label) && !last_is_number
}

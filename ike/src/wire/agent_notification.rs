//! Notifications for private use (RFC 7296 3.10.1) between agents of ours: the address from which a
//! node's datagrams come, relays, and hubs that end. An end accepts them only if the other end has
//! sent [`VENDOR_ID`], since other implementations may use the same numbers for something else
//! (3.12).

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::notify::Notify;
use super::numbers::NotifyType;

/// The vendor ID by which an agent of ours announces in IKE_AUTH that it understands these
/// notifications. Another format would get another text.
pub const VENDOR_ID: &[u8] = b"edge-cni agent notifications 1";

/// Maximum length of a node's name in a notification, in octets. A notification with a longer name
/// is neither sent nor accepted.
pub const MAX_NODE_NAME: usize = 253;

/// A notification between agents of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentNotification {
    /// MAPPED_ADDRESS: the address and port from which the receiver's datagrams come to the sender.
    /// Data: 4 or 16 octets of address, 2 of port, which is never 0.
    MappedAddress(SocketAddr),
    /// RELAY_REQUEST. To a hub: the sender requests a relay between itself and this node. From a
    /// hub: this node requests a relay between itself and the receiver. Data: the name.
    RelayRequest {
        /// The other node.
        node: String,
    },
    /// RELAY_OPENED, from a hub: the hub relays datagrams that arrive at this UDP port to the node.
    /// Data: 2 octets of port, the name.
    RelayOpened {
        /// The other node.
        node: String,
        /// The hub's UDP port, never 0.
        port: u16,
    },
    /// RELAY_TCP_OPENED, from a hub that the receiver reaches by TCP: the hub relays to the node
    /// what arrives in another TCP connection, which begins with this token. Data: 16 octets of
    /// token, the name. An agent that does not know it ignores it.
    RelayTcpOpened {
        /// The other node.
        node: String,
        /// What the connection must begin with.
        token: RelayToken,
    },
    /// RELAY_REFUSED, from a hub: it does not relay to this node. Data: 2 octets of reason, the
    /// name.
    RelayRefused {
        /// The other node.
        node: String,
        /// The reason.
        reason: RelayRefusal,
    },
    /// HUB_LEAVING, from a hub: its agent ends in a few seconds, so the receiver should send
    /// through another hub. Data: none; octets that a later release adds are ignored.
    HubLeaving,
}

/// What a TCP connection for one pair of relayed nodes begins with, so that the hub knows for which
/// pair it is: 16 random octets. Whoever knows them can take the place of the node in the relay, so
/// they are not shown.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RelayToken([u8; Self::LEN]);

impl RelayToken {
    /// Number of octets.
    pub const LEN: usize = 16;

    /// The token with these octets.
    pub fn new(octets: [u8; Self::LEN]) -> Self {
        Self(octets)
    }

    /// The octets, as they are sent.
    pub fn octets(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl fmt::Debug for RelayToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RelayToken(..)")
    }
}

/// The reason why a hub does not relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RelayRefusal {
    /// The hub's configuration switches relays off (1).
    SwitchedOff,
    /// The other node is unknown to the hub or not connected, or its agent cannot use a relay (2).
    NotReachable,
    /// The asking node has as many relays as one node may have (3).
    NodeLimit,
    /// The hub has as many relays as it may have (4).
    HubLimit,
    /// The hub cannot open UDP ports (5).
    NoPort,
    /// The asking node asks more often than the hub allows (6).
    TooOften,
    /// A reason that this release does not know, with its number.
    Unknown(u16),
}

impl From<RelayRefusal> for u16 {
    fn from(reason: RelayRefusal) -> Self {
        match reason {
            RelayRefusal::SwitchedOff => 1,
            RelayRefusal::NotReachable => 2,
            RelayRefusal::NodeLimit => 3,
            RelayRefusal::HubLimit => 4,
            RelayRefusal::NoPort => 5,
            RelayRefusal::TooOften => 6,
            RelayRefusal::Unknown(number) => number,
        }
    }
}

impl From<u16> for RelayRefusal {
    fn from(number: u16) -> Self {
        match number {
            1 => Self::SwitchedOff,
            2 => Self::NotReachable,
            3 => Self::NodeLimit,
            4 => Self::HubLimit,
            5 => Self::NoPort,
            6 => Self::TooOften,
            other => Self::Unknown(other),
        }
    }
}

impl fmt::Display for RelayRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SwitchedOff => f.write_str("relays are switched off there"),
            Self::NotReachable => f.write_str("the other node is not connected there, or cannot use a relay"),
            Self::NodeLimit => f.write_str("this node has as many relays there as one node may have"),
            Self::HubLimit => f.write_str("it has as many relays as it may have"),
            Self::NoPort => f.write_str("it cannot open UDP ports"),
            Self::TooOften => f.write_str("this node asks it for relays more often than it allows"),
            Self::Unknown(number) => write!(f, "reason {number}, which a later release may know"),
        }
    }
}

impl AgentNotification {
    /// Returns whether the notification can be sent: a port is not 0, and a node's name has 1 to
    /// [`MAX_NODE_NAME`] octets.
    pub(crate) fn is_valid(&self) -> bool {
        match self {
            Self::MappedAddress(address) => address.port() != 0,
            Self::HubLeaving => true,
            Self::RelayOpened { port: 0, .. } => false,
            Self::RelayRequest { node }
            | Self::RelayOpened { node, .. }
            | Self::RelayTcpOpened { node, .. }
            | Self::RelayRefused { node, .. } => (1..=MAX_NODE_NAME).contains(&node.len()),
        }
    }

    /// Makes the payload's contents.
    pub fn to_notify(&self) -> Notify {
        let numbered = |number: u16, node: &str| [&number.to_be_bytes(), node.as_bytes()].concat();
        match self {
            Self::MappedAddress(address) => {
                let ip = match address.ip().to_canonical() {
                    IpAddr::V4(ip) => ip.octets().to_vec(),
                    IpAddr::V6(ip) => ip.octets().to_vec(),
                };
                let data = [ip.as_slice(), &address.port().to_be_bytes()].concat();
                Notify::with_data(NotifyType::MappedAddress, data)
            }
            Self::RelayRequest { node } => Notify::with_data(NotifyType::RelayRequest, node.as_bytes().to_vec()),
            Self::RelayOpened { node, port } => Notify::with_data(NotifyType::RelayOpened, numbered(*port, node)),
            Self::RelayTcpOpened { node, token } => {
                Notify::with_data(NotifyType::RelayTcpOpened, [token.octets(), node.as_bytes()].concat())
            }
            Self::RelayRefused { node, reason } => {
                Notify::with_data(NotifyType::RelayRefused, numbered((*reason).into(), node))
            }
            Self::HubLeaving => Notify::with_data(NotifyType::HubLeaving, vec![]),
        }
    }

    /// Reads a notification. `None`: it is another one, or its data is malformed, in which case it
    /// is ignored like one of an unknown type.
    pub fn of(notify: &Notify) -> Option<Self> {
        let numbered = || -> Option<(u16, String)> {
            let (number, node) = notify.data.split_first_chunk::<2>()?;
            Some((u16::from_be_bytes(*number), name(node)?))
        };
        let read = match notify.kind {
            NotifyType::MappedAddress => {
                let (ip, port) = notify.data.split_last_chunk::<2>()?;
                let v4 = <[u8; 4]>::try_from(ip).map(IpAddr::from);
                let ip = v4.or_else(|_| <[u8; 16]>::try_from(ip).map(IpAddr::from)).ok()?;
                Self::MappedAddress(SocketAddr::new(ip.to_canonical(), u16::from_be_bytes(*port)))
            }
            NotifyType::RelayRequest => Self::RelayRequest { node: name(&notify.data)? },
            NotifyType::RelayOpened => {
                let (port, node) = numbered()?;
                Self::RelayOpened { node, port }
            }
            NotifyType::RelayTcpOpened => {
                let (token, node) = notify.data.split_first_chunk::<{ RelayToken::LEN }>()?;
                Self::RelayTcpOpened { node: name(node)?, token: RelayToken::new(*token) }
            }
            NotifyType::RelayRefused => {
                let (reason, node) = numbered()?;
                Self::RelayRefused { node, reason: reason.into() }
            }
            NotifyType::HubLeaving => Self::HubLeaving,
            _ => return None,
        };
        Some(read).filter(Self::is_valid)
    }
}

fn name(octets: &[u8]) -> Option<String> {
    String::from_utf8(octets.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<AgentNotification> {
        let node = "edge-1.example".to_owned();
        let mut all = vec![
            AgentNotification::MappedAddress("203.0.113.7:61000".parse().unwrap()),
            AgentNotification::MappedAddress("[2001:db8::7]:4500".parse().unwrap()),
            AgentNotification::RelayRequest { node: node.clone() },
            AgentNotification::RelayOpened { node: node.clone(), port: 45_000 },
            AgentNotification::RelayTcpOpened { node: node.clone(), token: RelayToken::new([7; 16]) },
            AgentNotification::HubLeaving,
        ];
        all.extend((0..8).map(|reason| AgentNotification::RelayRefused { node: node.clone(), reason: reason.into() }));
        all
    }

    #[test]
    fn a_notification_between_agents_is_read_as_it_was_written() {
        for notification in all() {
            assert_eq!(AgentNotification::of(&notification.to_notify()), Some(notification));
        }
    }

    #[test]
    fn a_notification_with_malformed_data_is_ignored() {
        let bad = |kind, data: &[u8]| AgentNotification::of(&Notify::with_data(kind, data.to_vec()));
        for length in [0, 1, 2, 3, 5, 7, 17, 19, 100] {
            assert_eq!(bad(NotifyType::MappedAddress, &vec![1; length]), None, "{length}");
        }
        assert_eq!(bad(NotifyType::MappedAddress, &[192, 0, 2, 1, 0, 0]), None, "port 0");
        for (kind, data) in [
            (NotifyType::RelayRequest, &b""[..]),
            (NotifyType::RelayRequest, &[0xff, 0xfe]),
            (NotifyType::RelayRequest, &[b'a'; MAX_NODE_NAME + 1]),
            (NotifyType::RelayOpened, b"\x01"),
            (NotifyType::RelayOpened, b"\x01\x02"),
            (NotifyType::RelayOpened, b"\x00\x00edge-1"),
            (NotifyType::RelayTcpOpened, &[1; RelayToken::LEN - 1]),
            (NotifyType::RelayTcpOpened, &[1; RelayToken::LEN]),
            (NotifyType::RelayTcpOpened, &[0xff; RelayToken::LEN + 1]),
            (NotifyType::RelayRefused, b""),
            (NotifyType::RelayRefused, b"\x00\x01\xff"),
            (NotifyType::Cookie2, b"\x01\x02edge-1"),
        ] {
            assert_eq!(bad(kind, data), None, "{kind} {data:?}");
        }
    }

    #[test]
    fn a_token_is_not_shown() {
        let opened = AgentNotification::RelayTcpOpened { node: "a".into(), token: RelayToken::new([0xab; 16]) };
        let text = format!("{opened:?}");
        assert!(!text.contains("171") && !text.to_lowercase().contains("abab"), "{text}");
    }
}

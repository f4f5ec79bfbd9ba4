//! Notifications for private use (RFC 7296 3.10.1) between agents of ours: the address from which a
//! node's datagrams come. An end takes them only if the other end has sent [`VENDOR_ID`], since
//! other implementations may use the same numbers otherwise (3.12).

use std::net::{IpAddr, SocketAddr};

use super::notify::Notify;
use super::numbers::NotifyType;

/// The vendor ID by which an agent of ours announces in IKE_AUTH that it understands these
/// notifications. Another format would get another text.
pub const VENDOR_ID: &[u8] = b"edge-cni agent notifications 1";

/// A notification between agents of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentNotification {
    /// MAPPED_ADDRESS: the address and port from which the receiver's datagrams come to the sender.
    /// Data: 4 or 16 octets of address, 2 of port, which is never 0.
    MappedAddress(SocketAddr),
}

impl AgentNotification {
    /// Makes the payload's contents.
    pub fn to_notify(&self) -> Notify {
        let Self::MappedAddress(address) = self;
        let ip = match address.ip().to_canonical() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        Notify::with_data(NotifyType::MappedAddress, [ip.as_slice(), &address.port().to_be_bytes()].concat())
    }

    /// Reads a notification. `None`: it is another one, or its data is malformed, in which case it
    /// is ignored like one of an unknown type.
    pub fn of(notify: &Notify) -> Option<Self> {
        if notify.kind != NotifyType::MappedAddress {
            return None;
        }
        let (ip, port) = notify.data.split_last_chunk::<2>()?;
        let v4 = <[u8; 4]>::try_from(ip).map(IpAddr::from);
        let ip = v4.or_else(|_| <[u8; 16]>::try_from(ip).map(IpAddr::from)).ok()?;
        let port = u16::from_be_bytes(*port);
        (port != 0).then(|| Self::MappedAddress(SocketAddr::new(ip.to_canonical(), port)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notification_between_agents_is_read_as_it_was_written() {
        for address in ["203.0.113.7:61000", "[2001:db8::7]:4500"] {
            let notification = AgentNotification::MappedAddress(address.parse().unwrap());
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
        assert_eq!(bad(NotifyType::Cookie2, &[192, 0, 2, 1, 17, 148]), None, "another type");
    }
}

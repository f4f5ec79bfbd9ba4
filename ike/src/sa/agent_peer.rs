//! What an IKE SA knows about a peer that is an agent of ours: that it understands our
//! notifications for private use, and the mapped addresses that both ends were told.

use std::net::SocketAddr;

use crate::config::{AgentNotifications, PeerConfig};
use crate::wire::{AgentNotification, Payload, Payloads, VENDOR_ID};

/// Maximum number of notifications that are taken from one message. Ours has one.
const MAX_TAKEN: usize = 4;

/// A peer that has sent our vendor ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AgentPeer {
    /// The address from which the peer's datagrams come, as the peer was told last.
    pub(super) told: Option<SocketAddr>,
    /// The address from which our datagrams come, as the peer told us last.
    pub(super) mapped: Option<SocketAddr>,
}

/// Our vendor ID for IKE_AUTH, if we exchange notifications with the peer.
//= RFC 7296 3.12 MUST 4: our vendor ID
pub(super) fn vendor_id(config: &PeerConfig) -> Option<Payload> {
    (config.agent_notifications != AgentNotifications::Off).then(|| Payload::VendorId(VENDOR_ID.to_vec()))
}

impl AgentPeer {
    /// Returns the state after the peer's message of IKE_AUTH. `None`: one of the ends does not
    /// exchange notifications.
    pub(super) fn negotiated(config: &PeerConfig, payloads: &Payloads) -> Option<Self> {
        let announced = payloads.iter().any(|payload| matches!(payload, Payload::VendorId(id) if id == VENDOR_ID));
        let both = announced && config.agent_notifications != AgentNotifications::Off;
        both.then(|| Self { told: None, mapped: mapped_address(payloads) })
    }

    /// The payloads of the IKE_AUTH response to a peer whose request came from `remote`.
    pub(super) fn in_response(&mut self, config: &PeerConfig, remote: SocketAddr) -> Vec<Payload> {
        let mut payloads: Vec<Payload> = vendor_id(config).into_iter().collect();
        if config.agent_notifications == AgentNotifications::TellAddress {
            self.told = Some(remote);
            payloads.push(Payload::Notify(AgentNotification::MappedAddress(remote).to_notify()));
        }
        payloads
    }
}

/// The notifications of a message that are ours, at most [`MAX_TAKEN`].
pub(super) fn notifications(payloads: &Payloads) -> impl Iterator<Item = AgentNotification> {
    payloads.notifies().filter_map(AgentNotification::of).take(MAX_TAKEN)
}

fn mapped_address(payloads: &Payloads) -> Option<SocketAddr> {
    notifications(payloads).find_map(|notification| match notification {
        AgentNotification::MappedAddress(address) => Some(address),
        _ => None,
    })
}

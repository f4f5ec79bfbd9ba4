//! Defines the messages between a scenario and the process with the peers.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnetwork::{IpNetwork, Ipv4Network};
use serde::{Deserialize, Serialize};

/// Network of the peers' own addresses. Peer `i` has the address number `i + 1`.
pub(super) const ADDRESSES: (Ipv4Addr, u8) = (Ipv4Addr::new(172, 16, 0, 0), 12);

/// Network behind all peers. Behind peer `i` is the /24 network number `i`.
const NETWORKS: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 128, 0, 0), 9);

/// Maximum number of peers in a set: the number of /24 networks in the network behind all peers.
pub(super) const MAX_PEERS: u32 = 1 << 15;

/// A set of peers with one responder.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PeerSet {
    /// Number of peers, at most 32,768.
    pub count: u32,
    /// Maximum number of simultaneous exchanges.
    pub window: u32,
    /// Address and port of the responder.
    pub responder: SocketAddr,
    /// Identity of the responder, a domain name.
    pub responder_id: String,
    /// Network behind the responder.
    pub responder_network: IpNetwork,
    /// Authentication of the peers and the responder.
    pub authentication: Authentication,
    /// Time without a message after which a peer checks whether the responder is alive.
    pub liveness: Duration,
}

/// Authentication of the peers and the responder.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Authentication {
    /// The pre-shared key of all peers.
    Psk(String),
}

impl PeerSet {
    /// Returns the network that contains the addresses of all peers.
    #[must_use]
    pub fn addresses() -> String {
        format!("{}/{}", ADDRESSES.0, ADDRESSES.1)
    }

    /// Returns the network that contains the networks behind all peers.
    #[must_use]
    pub fn networks() -> String {
        format!("{}/{}", NETWORKS.0, NETWORKS.1)
    }

    /// Returns the name of a peer.
    #[must_use]
    pub fn name(index: u32) -> String {
        format!("peer-{index:05}")
    }

    /// Returns the identity of a peer, a domain name.
    #[must_use]
    pub fn id(index: u32) -> String {
        format!("{}.example", Self::name(index))
    }

    /// Returns the address of a peer.
    #[must_use]
    pub fn address(index: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(ADDRESSES.0) + index + 1)
    }

    /// Returns the network behind a peer.
    ///
    /// # Panics
    /// Never, because 24 is a valid prefix length.
    #[must_use]
    pub fn network(index: u32) -> IpNetwork {
        Ipv4Network::new(Ipv4Addr::from(u32::from(NETWORKS.0) + (index << 8)), 24).expect("a prefix length").into()
    }
}

/// A request to the process. The request applies to all peers, at most `window` of them at the same
/// time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Request {
    /// Set up an IKE SA and a CHILD_SA.
    Up,
    /// Rekey the CHILD_SA.
    Rekey,
    /// Only report the state of the peers.
    Report,
}

/// The state of the peers when a request is done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Number of peers with a CHILD_SA.
    pub up: u32,
    /// Number of CHILD_SAs that were rekeyed since the start of the process.
    pub rekeyed: u32,
    /// Number of attempts that failed since the start of the process.
    pub failures: u32,
    /// Number of IKE SAs that ended since the start of the process.
    pub downs: u32,
    /// Number of liveness checks that peers sent since the start of the process.
    pub liveness_checks: u64,
    /// The reason for the latest failure.
    pub last_error: Option<String>,
    /// Duration of the request, in seconds.
    pub seconds: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_peer_has_its_own_address_and_network() {
        let last = MAX_PEERS - 1;
        let all = |text: String| text.parse::<IpNetwork>().unwrap();
        assert!(all(PeerSet::addresses()).contains(PeerSet::address(last).into()));
        assert!(all(PeerSet::networks()).contains(PeerSet::network(last).ip()));
        assert_ne!(PeerSet::network(last), PeerSet::network(last - 1));
    }
}

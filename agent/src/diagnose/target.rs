//! The target of a diagnosis or a ping: a peer, or an address and the peer to which it belongs.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::config::PeerSection;
use crate::status::{PolicyEntry, Status};

/// The peer or address of a diagnosis or a ping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// A peer.
    Peer(String),
    /// An address that a peer's networks contain.
    PeerAddress {
        /// The address.
        address: IpAddr,
        /// The remote network in the policy that leads to the peer.
        network: IpNetwork,
        /// The peer's name.
        peer: String,
    },
    /// An address of this node or within one of its segments.
    Local(IpAddr),
    /// An address in the cluster ranges to which no tunnel of this node leads.
    Blocked {
        /// The address.
        address: IpAddr,
        /// The range.
        range: IpNetwork,
    },
    /// An address outside of all networks known to the agent.
    Outside(IpAddr),
}

impl Target {
    /// Finds the target that the text names. `static_peers` are the `[[peer]]` tables in the
    /// configuration. Fails if the text is neither an address nor a peer's name.
    pub(crate) fn find(text: &str, status: &Status, static_peers: &[PeerSection]) -> Result<Self, String> {
        if let Some(peer) = status.peers.iter().find(|peer| peer.name == text) {
            return Ok(Self::Peer(peer.name.clone()));
        }
        let address: IpAddr = text
            .parse()
            .map_err(|_| format!("{text:?} is neither a peer nor an address; `edge-agent status` lists the peers"))?;
        if is_own(status, address) {
            return Ok(Self::Local(address));
        }
        // The kernel applies the policy with the smallest priority.
        let policies = status.policies.iter().filter(|policy| policy.direction == "out");
        let applies =
            policies.filter(|policy| policy.destination.contains(address)).min_by_key(|policy| policy.priority);
        let of_static_peer = |is_meant: &dyn Fn(&IpNetwork) -> bool| {
            static_peers.iter().find_map(|peer| {
                let network = *peer.all_remote_subnets().find(|network| is_meant(network))?;
                Some(Self::PeerAddress { address, network, peer: peer.name.to_string() })
            })
        };
        Ok(match applies {
            // Until the tunnel to a static peer was up once, packets to its networks are blocked.
            Some(policy) if policy.action == "block" => of_static_peer(&|network| *network == policy.destination)
                .unwrap_or(Self::Blocked { address, range: policy.destination }),
            Some(policy) => Self::by_policy(address, policy, status),
            // A peer that only responds has no policies before that.
            None => of_static_peer(&|network| network.contains(address)).unwrap_or(Self::Outside(address)),
        })
    }

    fn by_policy(address: IpAddr, policy: &PolicyEntry, status: &Status) -> Self {
        let range = policy.destination;
        let Some(template) = &policy.template else { return Self::Local(address) };
        match status.peers.iter().find(|peer| peer.reqid == Some(template.reqid)) {
            Some(peer) => Self::PeerAddress { address, network: range, peer: peer.name.clone() },
            None => Self::Blocked { address, range },
        }
    }

    /// Returns the target's peer.
    pub(super) fn peer(&self) -> Option<&String> {
        match self {
            Self::Peer(peer) | Self::PeerAddress { peer, .. } => Some(peer),
            Self::Local(_) | Self::Blocked { .. } | Self::Outside(_) => None,
        }
    }
}

/// Returns whether the address belongs to one of this machine's interfaces.
fn is_own(status: &Status, address: IpAddr) -> bool {
    status.host.local_addresses.contains(&address) || status.host.bridge_addresses.contains(&address)
}

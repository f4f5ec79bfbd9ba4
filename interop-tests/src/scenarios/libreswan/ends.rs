//! The configurations of both ends of the site.

use crate::edge_agent::StaticPeer;
use crate::libreswan::Conn;
use crate::scenarios::site::{Initiator, Site};
use crate::strongswan::charon::Auth;

/// Returns pluto's connection for the site, with default proposals, and these lines in addition.
pub(super) fn conn(site: &Site<'_>, auth: Auth, more: &[&str]) -> Conn {
    let (left, right) = match site.initiator {
        // The initiator comes from the address of its NAT.
        Initiator::Edge => ("203.0.113.10", "203.0.113.1"),
        Initiator::Moon => ("192.168.1.10", "203.0.113.10"),
    };
    Conn {
        left: left.to_owned(),
        right: right.to_owned(),
        left_id: "@moon.example".to_owned(),
        right_id: "@edge.example".to_owned(),
        auth,
        more: ["leftsubnet=10.2.0.0/24", "rightsubnet=10.1.0.0/24"]
            .iter()
            .chain(more)
            .map(|&line| line.into())
            .collect(),
    }
}

/// Returns the agent's peer for the site, with default proposals.
pub(super) fn peer(site: &Site<'_>, auth: Auth) -> StaticPeer {
    StaticPeer { ike: Vec::new(), esp: Vec::new(), ..site.peer(auth) }
}

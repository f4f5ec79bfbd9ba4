//! The addresses of an IKE SA, and the NATs between them (RFC 7296 2.23), which `nat_detection`
//! detects.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::{EndpointConfig, PeerConfig};
use crate::negotiate::Ends;
use crate::output::Context;

/// The plain IKE port (RFC 7296 2).
const IKE_PORT: u16 = 500;
/// The port on which peers listen for IKE and ESP in UDP (RFC 3948), even if our own port differs.
pub(super) const NAT_PORT: u16 = 4500;

/// The addresses of both ends, and the NATs between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Path {
    /// Our address and port.
    pub(crate) local: SocketAddr,
    /// The peer's address and port.
    pub(crate) remote: SocketAddr,
    /// Whether a NAT in front of us was detected or forced.
    pub(crate) nat_local: bool,
    /// Whether a NAT in front of us was detected, and not only forced.
    pub(crate) nat_found: bool,
    /// Whether a NAT in front of the peer was detected or forced.
    pub(crate) nat_remote: bool,
    /// Whether the peer supports NAT traversal: it sent NAT_DETECTION_*_IP in IKE_SA_INIT.
    pub(crate) nat_traversal: bool,
}

impl Path {
    /// Returns the path to one address of a peer, before NATs are known. We use our NAT traversal
    /// port towards ports other than 500.
    pub(crate) fn to(peer: &PeerConfig, remote: SocketAddr, cx: &mut Context<'_>) -> Self {
        let configured = peer.local.filter(|local| local.is_ipv4() == remote.is_ipv4());
        let local = configured.or_else(|| cx.env.source_address(remote.ip())).unwrap_or(match remote {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        });
        //= RFC 7296 2.23 MUST 1: from and to ports 500 and 4500
        let port = if remote.port() == IKE_PORT { cx.config.port } else { cx.config.nat_port };
        Self::without_nat(SocketAddr::new(local, port), remote)
    }

    /// Returns the path between two addresses, before NATs are known.
    pub(crate) fn without_nat(local: SocketAddr, remote: SocketAddr) -> Self {
        Self { local, remote, nat_local: false, nat_found: false, nat_remote: false, nat_traversal: false }
    }

    /// Returns whether ESP must travel in UDP.
    pub(crate) fn encapsulated(&self) -> bool {
        self.nat_local || self.nat_remote
    }

    /// Returns the ends of the IKE SA.
    pub(crate) fn ends(&self) -> Ends {
        Ends { local: self.local.ip(), remote: self.remote.ip(), nat: self.encapsulated() }
    }

    /// Switches to the NAT traversal ports if a NAT was detected (RFC 7296 2.23), or if a later
    /// path may lead through one. `mobike` states whether we use MOBIKE, which the peer may support
    /// too (RFC 4555 3.3). The initiator calls this before IKE_AUTH.
    pub(crate) fn float(&mut self, config: &EndpointConfig, mobike: bool) {
        //= RFC 4555 3.3 MUST 1: port 4500 with MOBIKE
        if self.encapsulated() || (mobike && self.nat_traversal) {
            //= RFC 7296 2.23 MUST 4: port 4500 behind a NAT
            self.local.set_port(config.nat_port);
            if self.remote.port() == IKE_PORT {
                self.remote.set_port(NAT_PORT);
            }
        }
    }
}

/// When to follow a peer whose messages come from another address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Following {
    /// After the peer has responded from that address (RFC 7296 2.23).
    Answer,
    /// After the peer's UPDATE_SA_ADDRESSES or ESP from another address, when the peer has returned
    /// COOKIE2 from that address. The peer is the initiator, and both ends support MOBIKE (RFC 4555
    /// 3.8).
    Update,
    /// After the peer has responded to our UPDATE_SA_ADDRESSES from that address.
    OwnUpdate,
}

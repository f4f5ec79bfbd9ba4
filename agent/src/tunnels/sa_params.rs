//! Derives the SAs of the kernel from a CHILD_SA.

use std::net::SocketAddr;

use edge_ike::ChildSa;
use edge_ike::config::Mode;
use edge_xfrm::{Encap, EncapProtocol, Limits, Replay, Reqid, Result, SaDirection, SaParams};

use super::esp_key::esp_key;
use crate::desired::TunnelEnds;

/// Number of packets after which an SA without extended sequence numbers is rekeyed: three quarters
/// of the range of the 32-bit counter.
const SOFT_PACKETS: u64 = 3 << 30;

/// Returns whether ESP travels in TCP.
pub(super) fn is_in_tcp(encap: Option<Encap>) -> bool {
    encap.is_some_and(|encap| encap.protocol == EncapProtocol::Tcp)
}

fn replay(sa: &ChildSa) -> Replay {
    if sa.esn { Replay::ESN } else { Replay::PLAIN }
}

fn mode(sa: &ChildSa) -> edge_xfrm::Mode {
    match sa.mode {
        Mode::Tunnel => edge_xfrm::Mode::Tunnel,
        Mode::Transport => edge_xfrm::Mode::Transport,
    }
}

fn limits(sa: &ChildSa) -> Limits {
    Limits { soft_packets: (!sa.esn).then_some(SOFT_PACKETS), ..Limits::default() }
}

/// This node's end, the peer's end, and whether ESP travels in TCP.
pub(super) type SaEnds = (SocketAddr, SocketAddr, bool);

/// Returns the ends of a CHILD_SA's tunnel. `outbound` are the parameters of its outbound SA.
pub(super) fn tunnel_ends(sa: &ChildSa, outbound: &SaParams) -> TunnelEnds {
    TunnelEnds {
        local: outbound.source,
        remote: outbound.destination,
        local_selectors: sa.local_selectors.clone(),
        remote_selectors: sa.remote_selectors.clone(),
        next_layer: sa.next_layer,
        mode: sa.mode,
        up: false,
    }
}

/// Returns the encapsulation of packets between these ends.
fn encap(source: SocketAddr, destination: SocketAddr, in_tcp: bool) -> Encap {
    if in_tcp { Encap::tcp(source.port(), destination.port()) } else { Encap::udp(source.port(), destination.port()) }
}

/// Returns the inbound SA of a CHILD_SA.
///
/// # Errors
/// If the kernel has no such cipher.
pub(super) fn inbound(sa: &ChildSa, reqid: Reqid, (local, remote, in_tcp): SaEnds) -> Result<SaParams> {
    Ok(SaParams {
        direction: SaDirection::In,
        source: remote.ip(),
        destination: local.ip(),
        spi: sa.inbound_spi,
        reqid,
        mode: mode(sa),
        key: esp_key(sa, &sa.inbound_key)?,
        encap: (sa.encapsulated || in_tcp).then(|| encap(remote, local, in_tcp)),
        replay: replay(sa),
        selector: None,
        limits: limits(sa),
    })
}

/// Returns the outbound SA of a CHILD_SA.
///
/// # Errors
/// If the kernel has no such cipher.
pub(super) fn outbound(sa: &ChildSa, reqid: Reqid, (local, remote, in_tcp): SaEnds) -> Result<SaParams> {
    Ok(SaParams {
        direction: SaDirection::Out,
        source: local.ip(),
        destination: remote.ip(),
        spi: sa.outbound_spi,
        reqid,
        mode: mode(sa),
        key: esp_key(sa, &sa.outbound_key)?,
        encap: (sa.encapsulated || in_tcp).then(|| encap(local, remote, in_tcp)),
        replay: replay(sa),
        selector: None,
        limits: limits(sa),
    })
}

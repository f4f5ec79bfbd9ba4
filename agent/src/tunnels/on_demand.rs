//! Tunnels on demand. A policy without an SA makes the kernel report the first packet (ACQUIRE),
//! and hold packets until the tunnel is up. A tunnel that nobody uses is closed, and the policy
//! stays.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use edge_ike::{ChildConfig, ChildSa, Instant, PeerName, Purpose};

use super::deferred_switch::DeferredSwitch;
use super::driver::Driver;
use super::environment::source_address;
use crate::desired::{DesiredTunnel, TunnelEnds};
use crate::logging::peer_span;

/// Whether the kernel drops packets that wait for an SA, of this network namespace.
const LARVAL_DROP: &str = "/proc/sys/net/core/xfrm_larval_drop";

/// How long a responder's packets wait at most for a sign that the initiator has its SAs.
const RESPONDER_WAIT: Duration = Duration::from_millis(500);

impl Driver {
    /// Defers the outbound SA of a new tunnel on demand for which the peer began. The peer gets our
    /// response and our first packets at the same time, and drops packets until it has installed
    /// its SAs. So the kernel holds packets until one of the peer has come, or for
    /// [`RESPONDER_WAIT`]. False: there is no reason to wait.
    pub(super) fn defer_switch(&mut self, peer: &PeerName, child: &ChildSa, now: Instant) -> bool {
        let defers =
            self.hold_packets && self.is_on_demand(peer) && !child.initiator && !self.is_up(peer, &child.purpose);
        if defers {
            let deferred =
                DeferredSwitch { peer: peer.clone(), purpose: child.purpose.clone(), until: now + RESPONDER_WAIT };
            self.deferred_switches.insert(child.id, deferred);
        }
        defers
    }

    /// Whether packets are sent for this purpose.
    pub(super) fn is_up(&self, peer: &PeerName, purpose: &Purpose) -> bool {
        self.sas.ends(peer).iter().any(|(of, ends)| *of == purpose && ends.up)
    }

    /// Another outbound SA for this purpose comes instead of one that is deferred.
    pub(super) fn cancel_deferrals(&mut self, peer: &PeerName, purpose: &Purpose) {
        self.deferred_switches.retain(|_, deferred| deferred.peer != *peer || deferred.purpose != *purpose);
    }

    /// Whether an outbound SA of the peer is deferred.
    pub(super) fn defers(&self, peer: &PeerName) -> bool {
        self.deferred_switches.values().any(|deferred| deferred.peer == *peer)
    }

    /// When [`Self::end_deferrals`] has something to do.
    pub(super) fn next_deferral_end(&self) -> Option<Instant> {
        self.deferred_switches.values().map(|deferred| deferred.until).min()
    }

    /// Installs outbound SAs that have been deferred for long enough.
    pub(super) fn end_deferrals(&mut self, now: Instant) {
        self.end_deferrals_if(|deferred| deferred.until <= now);
    }

    /// A packet of the peer has come: its SAs are installed.
    pub(super) fn end_deferrals_of(&mut self, peer: &PeerName) {
        self.end_deferrals_if(|deferred| deferred.peer == *peer);
    }

    fn end_deferrals_if(&mut self, ends: impl Fn(&DeferredSwitch) -> bool) {
        let due = self.deferred_switches.iter().filter(|(_, deferred)| ends(deferred));
        for (child, peer) in due.map(|(child, deferred)| (*child, deferred.peer.clone())).collect::<Vec<_>>() {
            let _span = peer_span(&peer).entered();
            self.switch_outbound(&peer, child);
        }
    }

    /// A tunnel is up: one on demand is closed when it is idle.
    pub(super) fn watch_if_on_demand(&mut self, peer: &PeerName, now: Instant) {
        if self.is_on_demand(peer) && self.sas.sends(peer) {
            self.idle_tunnels.watch(peer, now);
        }
    }

    /// Whether packets bring the tunnel to a peer.
    pub(super) fn is_on_demand(&self, peer: &PeerName) -> bool {
        self.desired.tunnels.get(peer).is_some_and(|tunnel| tunnel.on_demand)
    }

    /// Closes idle tunnels that this node began. A tunnel that the peer began is the peer's to
    /// close: it may want it at all times.
    pub(super) fn close_idle_tunnels(&mut self, now: Instant) {
        for peer in self.idle_tunnels.take_idle(now) {
            if !self.is_on_demand(&peer) {
                continue;
            }
            if self.endpoint.is_initiator(&peer) == Some(true) {
                let _span = peer_span(&peer).entered();
                tracing::info!("tunnel on demand closed: it is idle");
                self.endpoint.terminate(&peer, now, &mut self.environment);
            } else {
                self.watch_if_on_demand(&peer, now);
            }
        }
    }

    /// Makes the kernel hold packets that wait for a tunnel, if there are tunnels on demand.
    pub(super) fn hold_packets_if_on_demand(&mut self) {
        if !self.hold_packets || !self.desired.tunnels.values().any(|tunnel| tunnel.on_demand) {
            return;
        }
        match hold_packets() {
            Ok(false) => {}
            Ok(true) => tracing::info!("net.core.xfrm_larval_drop set to 0: packets wait for tunnels on demand"),
            Err(error) => self.environment.incidents.error(format!(
                "net.core.xfrm_larval_drop cannot be set to 0 ({error}): the first packets to a peer on demand are lost; run \
                 `sysctl -w net.core.xfrm_larval_drop=0`, or set hold_packets = false in [on_demand]"
            )),
        }
    }
}

/// True: the setting was another one.
fn hold_packets() -> io::Result<bool> {
    if fs::read_to_string(LARVAL_DROP)?.trim() == "0" {
        return Ok(false);
    }
    fs::write(LARVAL_DROP, "0").map(|()| true)
}

/// The ends of a policy without an SA. The addresses only make the kernel report a packet: the peer
/// is then dialled at all its addresses, and the policy gets those of the tunnel. `None`: no
/// address of the peer is known.
pub(super) fn acquire_ends(tunnel: &DesiredTunnel, child: &ChildConfig) -> Option<TunnelEnds> {
    let remote = tunnel.peer.remotes.first()?.ip();
    let loopback: IpAddr = if remote.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    let local = tunnel.peer.local.filter(|local| local.is_ipv4() == remote.is_ipv4());
    Some(TunnelEnds {
        local: local.or_else(|| source_address(remote)).unwrap_or(loopback),
        remote,
        local_selectors: child.local.clone(),
        remote_selectors: child.remote.clone(),
        next_layer: child.next_layer,
        mode: child.mode,
        up: false,
    })
}

//! On-demand tunnels. A policy without an SA makes the kernel report the first packet (ACQUIRE) and
//! hold packets until the tunnel is up. An unused tunnel is closed, and the policy stays.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use edge_ike::{ChildConfig, ChildSa, Instant, PeerName, Purpose};

use super::deferred_switch::DeferredSwitch;
use super::driver::Driver;
use super::event_log::{PeerEvent, info_if};
use crate::desired::{DesiredTunnel, TunnelEnds};
use crate::logging::peer_span;
use crate::source_address::source_address;

/// Sysctl of this network namespace: whether the kernel drops packets that wait for an SA.
const LARVAL_DROP: &str = "/proc/sys/net/core/xfrm_larval_drop";

/// Maximum time for which a responder's packets wait for a packet that shows that the initiator has
/// installed its SAs.
const RESPONDER_WAIT: Duration = Duration::from_millis(500);

impl Driver {
    /// Defers the outbound SA of a new on-demand tunnel that the peer initiated. The peer would
    /// receive this node's response and first packets at the same time, and drop packets until it
    /// has installed its SAs. The kernel therefore holds packets until a packet from the peer
    /// arrives, but at most for [`RESPONDER_WAIT`]. Returns `false` if there is no reason to wait.
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

    /// Returns whether an outbound SA for this purpose is in use.
    pub(super) fn is_up(&self, peer: &PeerName, purpose: &Purpose) -> bool {
        self.sas.ends(peer).iter().any(|(of, ends)| *of == purpose && ends.up)
    }

    /// Cancels the deferred outbound SAs of this purpose, because another outbound SA replaces
    /// them.
    pub(super) fn cancel_deferrals(&mut self, peer: &PeerName, purpose: &Purpose) {
        self.deferred_switches.retain(|_, deferred| deferred.peer != *peer || deferred.purpose != *purpose);
    }

    /// Returns whether an outbound SA of the peer is deferred.
    pub(super) fn defers(&self, peer: &PeerName) -> bool {
        self.deferred_switches.values().any(|deferred| deferred.peer == *peer)
    }

    /// Returns the time at which [`Self::end_deferrals`] must be called next.
    pub(super) fn next_deferral_end(&self) -> Option<Instant> {
        self.deferred_switches.values().map(|deferred| deferred.until).min()
    }

    /// Installs outbound SAs whose deferral ends at `now` or earlier.
    pub(super) fn end_deferrals(&mut self, now: Instant) {
        self.end_deferrals_if(|deferred| deferred.until <= now);
    }

    /// Installs the deferred SAs of a peer, because a packet from the peer shows that it has
    /// installed its SAs.
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

    /// Records that a tunnel is up, so that it is closed when it is idle. Does nothing if the
    /// tunnel is not on demand.
    pub(super) fn watch_if_on_demand(&mut self, peer: &PeerName, now: Instant) {
        if self.is_on_demand(peer) && self.sas.sends(peer) {
            self.idle_tunnels.watch(peer, now);
        }
    }

    /// Returns whether the tunnel to a peer is set up by the first packet.
    pub(super) fn is_on_demand(&self, peer: &PeerName) -> bool {
        self.desired.tunnels.get(peer).is_some_and(|tunnel| tunnel.on_demand)
    }

    /// Closes idle tunnels that this node initiated. A tunnel that the peer initiated is closed
    /// only by the peer, because the peer may need it at all times.
    pub(super) fn close_idle_tunnels(&mut self, now: Instant) {
        for peer in self.idle_tunnels.take_idle(now) {
            if !self.is_on_demand(&peer) {
                continue;
            }
            if self.endpoint.is_initiator(&peer) == Some(true) {
                let _span = peer_span(&peer).entered();
                let loud = self.event_log.record(PeerEvent::Idle, &peer, now);
                info_if!(loud, "tunnel on demand closed: it is idle");
                self.endpoint.terminate(&peer, now, &mut self.environment);
            } else {
                self.watch_if_on_demand(&peer, now);
            }
        }
    }

    /// Makes the kernel hold packets that wait for a tunnel, if one of the new or changed peers has
    /// an on-demand tunnel.
    pub(super) fn hold_packets_if_on_demand(&mut self, changed: &[PeerName]) {
        if !self.hold_packets || !changed.iter().any(|peer| self.is_on_demand(peer)) {
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

/// Sets [`LARVAL_DROP`] to 0. Returns `true` if the sysctl had another value before.
fn hold_packets() -> io::Result<bool> {
    if fs::read_to_string(LARVAL_DROP)?.trim() == "0" {
        return Ok(false);
    }
    fs::write(LARVAL_DROP, "0").map(|()| true)
}

/// Returns the ends for a policy without an SA. The kernel needs these addresses only to report a
/// packet. The agent then tries all addresses of the peer, and the policy is changed to the
/// addresses of the tunnel. `None` if no address of the peer is known.
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

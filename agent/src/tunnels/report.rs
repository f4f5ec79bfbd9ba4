//! The driver's data for the part of the status about tunnels.

use std::net::SocketAddr;
use std::sync::Arc;

use edge_ike::config::Mode;
use edge_ike::endpoint::{ChildUse, PeerStatus, Phase};
use edge_ike::{Instant, PeerName, Purpose};
use edge_types::IpNetwork;
use edge_types::api::{MOST_DOWN, TunnelCount};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::driver::Driver;
use super::installed_sa::InstalledSa;
use super::not_carried::not_carried;
use super::overview::{KernelSas, TunnelsOverview, newer_sas, spi};
use crate::clock::boot_time;
use crate::desired::{DesiredTunnel, Origin, PermittedTraffic};
use crate::status::{ChildStatus, Counters, IkeStatus, NatMapping, PeerReport};
use crate::tcp_encapsulation::is_tcp;

/// Maximum number of peers in one part of the report. The driver needs a few milliseconds for it.
const PEERS_AT_ONCE: usize = 256;

impl Driver {
    /// Returns the number of tunnels to peers in the view that should be up, the number of those
    /// that are up, and the first ones that are not.
    pub(super) fn count(&self) -> TunnelCount {
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let (up, wanted) = (self.up_from_view.len(), self.wanted_from_view);
        let most = MOST_DOWN.min(wanted.saturating_sub(up));
        let down = self.desired.tunnels.first_down(|peer| self.up_from_view.contains(peer), most);
        TunnelCount { up: number(up), wanted: number(wanted), down }
    }

    /// Reports the peers whose names come after `after`, in the order of their names and at most
    /// [`PEERS_AT_ONCE`]. `sas` are the SAs in the kernel a short time ago.
    pub(super) fn report_peers(&mut self, after: Option<&PeerName>, sas: Arc<KernelSas>) -> Vec<PeerReport> {
        let desired = Arc::clone(&self.desired);
        let tunnels = match after {
            Some(after) => desired.tunnels.iter_after(after),
            None => desired.tunnels.iter(),
        };
        let tunnels = tunnels.take(PEERS_AT_ONCE);
        let peers: Vec<_> = tunnels.map(|(name, tunnel)| (name, tunnel, self.endpoint.peer_status(name))).collect();
        let statuses = peers.iter().filter_map(|(_, _, status)| status.as_ref());
        let of_children = statuses.flat_map(|status| &status.children).flat_map(|child| {
            let (inbound, outbound) = self.sas.of_child(child.sa.id);
            inbound.into_iter().chain(outbound)
        });
        let newer = newer_sas(&mut self.environment.xfrm, of_children, &sas);
        let report = Reported { sas, newer, boot_time: boot_time(), wall_time: OffsetDateTime::now_utc() };
        peers.iter().map(|(name, tunnel, status)| self.peer(name, tunnel, status.as_ref(), &report)).collect()
    }

    /// Reports what all peers have in common, and copies of the SAs and policies that the kernel
    /// should have.
    pub(super) fn overview(&self) -> TunnelsOverview {
        TunnelsOverview {
            node: self.desired.node.clone(),
            role: self.desired.role.map(|role| role.to_string()),
            view_version: self.desired.view_version,
            installed: self.sas.installed(),
            policies: self.policies.installed().copied().collect(),
            relayed_pairs: self.relays.hub.pairs(),
            ike: self.ike_counts.with(self.endpoint.sent_requests()),
            refusals: self.refusals.latest(),
            missing_ciphers: self.kernel_refusals.missing_ciphers(),
            sockets: self.holding.borrow().clone(),
        }
    }

    fn peer(
        &self,
        name: &PeerName,
        tunnel: &DesiredTunnel,
        status: Option<&PeerStatus>,
        report: &Reported,
    ) -> PeerReport {
        let waits_for_packet = tunnel.on_demand && !tunnel.peer.remotes.is_empty();
        let phase = match status.map(|status| status.phase) {
            None | Some(Phase::Idle) if waits_for_packet => "on-demand",
            None | Some(Phase::Idle) => "idle",
            Some(Phase::Connecting) => "connecting",
            Some(Phase::Waiting { .. }) => "waiting",
            Some(Phase::Up) if self.sas.stands(name) => "up",
            // The kernel refused an SA, or has lost one. A rekey makes another one.
            Some(Phase::Up) => "connecting",
        };
        PeerReport {
            name: name.to_string(),
            origin: match tunnel.origin {
                Origin::View => "view",
                Origin::Configuration => "configuration",
            }
            .into(),
            phase: phase.into(),
            reqid: self
                .environment
                .reqids
                .of_purpose(name, &Purpose::whole(&tunnel.peer.child.name))
                .map(edge_xfrm::Reqid::raw),
            endpoints: tunnel.peer.remotes.iter().map(ToString::to_string).collect(),
            tcp: self.is_up_by_tcp(name),
            tcp_problem: self.tcp.fallback.error(name).map(ToOwned::to_owned),
            ike_sas: status
                .map(|status| {
                    let assumed = tunnel.peer.force_encapsulation;
                    status
                        .ike_sas
                        .iter()
                        .map(|sa| report.ike(sa, self.real_ends(sa.local, sa.remote), assumed))
                        .collect()
                })
                .unwrap_or_default(),
            child_sas: status
                .map(|status| status.children.iter().map(|child| self.child(name, child, report)).collect())
                .unwrap_or_default(),
            not_carried: status.map(|status| not_carried(tunnel, status)).unwrap_or_default(),
            blocked: self.blocked(name, tunnel),
            relayed_by: self.relay_in_use(name).map(|relay| relay.hub.to_string()),
            relay_refused: self
                .relays
                .requests
                .refusal(name)
                .map(|(hub, reason)| format!("hub {hub} does not relay: {reason}")),
            mapping: self.mapping(name, tunnel, status),
            path_mtu: self.path_mtu(name),
            last_error: self
                .kernel_refusals
                .reason(name)
                .map(str::to_owned)
                .or_else(|| status.and_then(|status| status.last_error.as_ref()).map(ToString::to_string))
                .map(|error| format!("peer {name}: {error}")),
            requests_refused: status.map_or(0, |status| status.requests_refused),
        }
    }

    /// Returns where a hub sees this node. Other peers are not believed.
    fn mapping(&self, name: &PeerName, tunnel: &DesiredTunnel, status: Option<&PeerStatus>) -> Option<NatMapping> {
        // After a rekey, the newest IKE SA is the last one.
        let ike = status?.ike_sas.last()?;
        let local = self.other_ports.ports.real(ike.local, ike.remote);
        let udp = tunnel.hub && !is_tcp(local);
        Some(NatMapping { local, mapped: udp.then(|| self.endpoint.mapped_address(name)).flatten()? })
    }

    /// Returns the networks to which packets are dropped, because the tunnel was never up.
    fn blocked(&self, name: &PeerName, tunnel: &DesiredTunnel) -> Vec<IpNetwork> {
        match &tunnel.permitted {
            PermittedTraffic::Granted { remote, .. } if !tunnel.on_demand && self.sas.ends(name).is_empty() => {
                remote.clone()
            }
            _ => vec![],
        }
    }

    /// Returns the addresses and ports that people know, and that packets have.
    pub(super) fn real_ends(&self, local: SocketAddr, remote: SocketAddr) -> (SocketAddr, SocketAddr) {
        let tcp = &self.tcp.connections;
        (tcp.real(self.other_ports.ports.real(local, remote)), tcp.real(remote))
    }

    fn child(&self, peer: &PeerName, child: &edge_ike::endpoint::ChildStatus, report: &Reported) -> ChildStatus {
        let (inbound, outbound) = self.sas.of_child(child.sa.id);
        let (local, remote) = self.real_ends(child.sa.local, child.sa.remote);
        let reqid = self.environment.reqids.of_purpose(peer, &child.sa.purpose);
        ChildStatus {
            child: child.sa.purpose.child.to_string(),
            reqid: reqid.map(edge_xfrm::Reqid::raw),
            inbound_spi: spi(child.sa.inbound_spi),
            outbound_spi: spi(child.sa.outbound_spi),
            cipher: child.sa.cipher.to_string(),
            esn: child.sa.esn,
            mode: mode_name(child.sa.mode).into(),
            encapsulated: child.sa.encapsulated,
            local: local.to_string(),
            remote: remote.to_string(),
            local_selectors: child.sa.local_selectors.clone(),
            remote_selectors: child.sa.remote_selectors.clone(),
            protocol: child.sa.next_layer.protocol,
            local_port: child.sa.next_layer.local_port,
            remote_port: child.sa.next_layer.remote_port,
            usage: match child.usage {
                ChildUse::InUse => "in-use",
                ChildUse::Successor => "successor",
                ChildUse::Lingering => "lingering",
            }
            .into(),
            since: report.wall_time(child.established),
            received: inbound.and_then(|installed| report.counters(installed)),
            sent: outbound.and_then(|installed| report.counters(installed)),
        }
    }
}

/// The input for a part of the report.
struct Reported {
    /// The SAs that were in the kernel a short time ago.
    sas: Arc<KernelSas>,
    /// SAs that were installed since.
    newer: KernelSas,
    boot_time: Instant,
    wall_time: OffsetDateTime,
}

impl Reported {
    /// `nat_assumed` says whether this node forces encapsulation in UDP.
    fn ike(
        &self,
        sa: &edge_ike::endpoint::IkeStatus,
        (local, remote): (SocketAddr, SocketAddr),
        nat_assumed: bool,
    ) -> IkeStatus {
        IkeStatus {
            initiator_spi: format!("{:016x}", sa.ike.initiator),
            responder_spi: format!("{:016x}", sa.ike.responder),
            local: local.to_string(),
            remote: remote.to_string(),
            initiator: sa.initiator,
            proposal: sa.details.proposal.to_string(),
            authentication: sa.details.authentication.to_owned(),
            nat_local: sa.details.nat_local,
            nat_remote: sa.details.nat_remote,
            nat_assumed,
            mobike: sa.details.mobike,
            internal_addresses: sa.details.internal_addresses.clone(),
            not_served: sa.details.not_served.sentences().map(str::to_owned).collect(),
            since: self.wall_time(sa.established),
            heard_seconds_ago: self.boot_time.saturating_since(sa.last_received).as_secs(),
            renewed_in_seconds: sa
                .rekey_at
                .into_iter()
                .fold(sa.reauthenticate_at, edge_ike::Instant::min)
                .saturating_since(self.boot_time)
                .as_secs(),
        }
    }

    fn counters(&self, installed: &InstalledSa) -> Option<Counters> {
        let sa = self.sas.get(&installed.id).or_else(|| self.newer.get(&installed.id))?;
        Some(Counters { packets: sa.counters.packets, bytes: sa.counters.bytes })
    }

    /// Converts a boot time to RFC 3339.
    fn wall_time(&self, moment: Instant) -> String {
        let ago = self.boot_time.saturating_since(moment);
        (self.wall_time - ago).format(&Rfc3339).unwrap_or_default()
    }
}

fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Tunnel => "tunnel",
        Mode::Transport => "transport",
    }
}

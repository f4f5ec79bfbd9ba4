//! The part of the status about tunnels.

use std::collections::HashMap;

use edge_ike::config::Mode;
use edge_ike::endpoint::{ChildUse, PeerStatus, Phase};
use edge_ike::{Instant, PeerName, Purpose};
use edge_types::api::TunnelCount;
use edge_xfrm::{Action, Policy, Sa, SaDirection, SaId, UdpEncap};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::driver::Driver;
use super::installed_sa::InstalledSa;
use super::not_carried::not_carried;
use crate::desired::{DesiredTunnel, Origin};
use crate::status::{
    ChildStatus, Counters, IkeStatus, PeerReport, PolicyEntry, StateEntry, TemplateEntry, TunnelsReport,
};

impl Driver {
    /// Returns the number of tunnels to peers in the view that should be up, and the number of
    /// those that are up.
    pub(super) fn count(&self) -> TunnelCount {
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        TunnelCount { up: number(self.up_from_view.len()), wanted: number(self.wanted_from_view) }
    }

    pub(super) fn report(&mut self) -> TunnelsReport {
        let sas = self.environment.xfrm.sas().unwrap_or_default();
        let sas: HashMap<SaId, Sa> = sas.into_iter().map(|sa| (sa.id, sa)).collect();
        let mut states: Vec<StateEntry> = self.sas.installed().iter().map(|installed| state(installed, &sas)).collect();
        states.sort_by(|one, other| {
            (one.reqid, &one.direction, &one.spi).cmp(&(other.reqid, &other.direction, &other.spi))
        });
        let report = Reported { sas, boot_time: self.now(), wall_time: OffsetDateTime::now_utc() };
        // Both iterators are in the order of the names.
        let mut statuses = self.endpoint.statuses().peekable();
        let mut status_of = |name: &PeerName| {
            while statuses.next_if(|status| status.name < *name).is_some() {}
            statuses.next_if(|status| status.name == *name)
        };
        let tunnels = self.desired.tunnels.iter();
        let peers = tunnels.map(|(name, tunnel)| self.peer(name, tunnel, status_of(name).as_ref(), &report)).collect();
        TunnelsReport {
            node: self.desired.node.clone(),
            role: self.desired.role.map(|role| role.to_string()),
            view_version: self.desired.view_version,
            peers,
            states,
            policies: self.policies.installed().map(policy).collect(),
            relayed_pairs: self.relays.hub.pairs(),
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
            Some(Phase::Up) => "up",
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
            ike_sas: status.map(|status| status.ike_sas.iter().map(|sa| report.ike(sa)).collect()).unwrap_or_default(),
            child_sas: status
                .map(|status| status.children.iter().map(|child| self.child(name, child, report)).collect())
                .unwrap_or_default(),
            not_carried: status.map(|status| not_carried(tunnel, status)).unwrap_or_default(),
            relayed_by: self.relay_in_use(name).map(|relay| relay.hub.to_string()),
            relay_refused: self
                .relays
                .requests
                .refusal(name)
                .map(|(hub, reason)| format!("hub {hub} does not relay: {reason}")),
            path_mtu: self.path_mtu(name),
            last_error: status
                .and_then(|status| status.last_error.as_ref())
                .map(|error| format!("peer {name}: {error}")),
        }
    }

    fn child(&self, peer: &PeerName, child: &edge_ike::endpoint::ChildStatus, report: &Reported) -> ChildStatus {
        let (inbound, outbound) = self.sas.of_child(child.sa.id);
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
            local: child.sa.local.to_string(),
            remote: child.sa.remote.to_string(),
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
            received: inbound.and_then(|installed| counters(installed, &report.sas)),
            sent: outbound.and_then(|installed| counters(installed, &report.sas)),
        }
    }
}

/// The input for a report, read once for all peers.
struct Reported {
    /// The SAs in the kernel.
    sas: HashMap<SaId, Sa>,
    boot_time: Instant,
    wall_time: OffsetDateTime,
}

impl Reported {
    fn ike(&self, sa: &edge_ike::endpoint::IkeStatus) -> IkeStatus {
        IkeStatus {
            initiator_spi: format!("{:016x}", sa.ike.initiator),
            responder_spi: format!("{:016x}", sa.ike.responder),
            local: sa.local.to_string(),
            remote: sa.remote.to_string(),
            initiator: sa.initiator,
            proposal: sa.details.proposal.clone(),
            authentication: sa.details.authentication.clone(),
            nat_local: sa.details.nat_local,
            nat_remote: sa.details.nat_remote,
            mobike: sa.details.mobike,
            internal_addresses: sa.details.internal_addresses.clone(),
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

    /// Converts a boot time to RFC 3339.
    fn wall_time(&self, moment: Instant) -> String {
        let ago = self.boot_time.saturating_since(moment);
        (self.wall_time - ago).format(&Rfc3339).unwrap_or_default()
    }
}

fn counters(installed: &InstalledSa, sas: &HashMap<SaId, Sa>) -> Option<Counters> {
    let sa = sas.get(&installed.id)?;
    Some(Counters { packets: sa.counters.packets, bytes: sa.counters.bytes })
}

fn spi(spi: u32) -> String {
    format!("{spi:#010x}")
}

fn state(installed: &InstalledSa, sas: &HashMap<SaId, Sa>) -> StateEntry {
    let found = sas.get(&installed.id);
    StateEntry {
        source: installed.source,
        destination: installed.id.destination,
        protocol: "esp".into(),
        spi: spi(installed.id.spi),
        reqid: installed.reqid.raw(),
        mode: installed.mode.to_string(),
        direction: match installed.direction {
            SaDirection::In => "in",
            SaDirection::Out => "out",
        }
        .into(),
        algorithm: found.and_then(|sa| sa.algorithm.clone()),
        encap: installed.encap.map(|UdpEncap { source_port, destination_port }| (source_port, destination_port)),
        in_kernel: found.is_some(),
    }
}

fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Tunnel => "tunnel",
        Mode::Transport => "transport",
    }
}

fn policy(policy: &Policy) -> PolicyEntry {
    PolicyEntry {
        direction: policy.direction.to_string(),
        source: policy.selector.source(),
        destination: policy.selector.destination(),
        priority: policy.priority,
        action: match policy.action {
            Action::Block => "block",
            Action::Allow | Action::Protect(_) => "allow",
        }
        .into(),
        template: match policy.action {
            Action::Allow => None,
            Action::Block => {
                Some(TemplateEntry { reqid: edge_xfrm::Reqid::BLOCK.raw(), source: None, destination: None })
            }
            Action::Protect(template) => Some(TemplateEntry {
                reqid: template.reqid.raw(),
                source: template.outer.map(|(source, _)| source),
                destination: template.outer.map(|(_, destination)| destination),
            }),
        },
    }
}

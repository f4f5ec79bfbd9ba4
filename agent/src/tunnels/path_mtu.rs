//! Probes the paths of tunnels that carry traffic, and publishes the path MTUs that are smaller
//! than the pods' MTU.
//!
//! A probe is an IKE_SA_INIT request ([`init_probe`]) of a given size. It takes the way of the
//! tunnel's ESP packets: the same addresses, and the same ports if ESP is encapsulated in UDP. The
//! kernel sets DF, or does not fragment in IPv6, up to its own path MTU. The answer is short, so a
//! probe measures only the direction in which this node sends.

use std::net::SocketAddr;

use edge_ike::{Environment, Instant, PeerName, Transmit};
use edge_xfrm::EncapProtocol;
use edge_xfrm::events::EspEvent;

use super::driver::Driver;
use super::environment::KernelEnvironment;
use super::event_log::{PeerEvent, info_if};
use crate::clock::boot_time;
use crate::desired::{Origin, PeerChanges, PermittedTraffic};
use crate::init_probe::{self, NON_ESP_MARKER};
use crate::logging::peer_span;
use crate::path_mtu::encapsulation::IPV6_MIN_MTU;
use crate::path_mtu::{Change, Encapsulation, PeerPath, Probe};
use crate::status::PathMtuStatus;

impl Driver {
    /// Checks the path to a peer if the outbound SA of this event has carried enough bytes since
    /// the last check. Only the paths to nodes of the cluster are checked, since other IKE daemons
    /// may count the probes as attacks.
    pub(super) fn check_path_mtu(&mut self, peer: &PeerName, event: &EspEvent, now: Instant) {
        if !self.path_mtus.enabled || self.desired.tunnels.get(peer).is_none_or(|peer| peer.origin != Origin::View) {
            return;
        }
        let (Some((local, remote)), Some(sa)) = (self.endpoint.path(peer), self.sas.installed_sa(event.id)) else {
            return;
        };
        // TCP cuts its stream into segments that fit the path.
        if sa.encap.is_some_and(|encap| encap.protocol == EncapProtocol::Tcp) {
            return;
        }
        let pod_mtu = self.host.borrow().pod_mtu;
        if pod_mtu == 0 {
            return;
        }
        let encapsulation = Encapsulation { ipv4: remote.is_ipv4(), udp: sa.encap.is_some() };
        let path = PeerPath { local, remote, encapsulation, pod_mtu };
        let counted = (event.id.spi, event.bytes);
        let random = random_numbers(&mut self.environment);
        let probes = self.path_mtus.table.esp_sent(peer, path, counted, now, random);
        self.send_probes(&probes);
    }

    /// Returns whether a datagram is the answer to a probe, and handles it if so.
    pub(super) fn take_probe_answer(&mut self, datagram: &[u8], local: SocketAddr, remote: SocketAddr) -> bool {
        if !self.path_mtus.table.expects_answers() {
            return false;
        }
        let marked = local.port() == self.endpoint.config().nat_port;
        let message = if marked { datagram.strip_prefix(&NON_ESP_MARKER) } else { Some(datagram) };
        let Some(id) = message.and_then(init_probe::answered_request) else { return false };
        if !self.path_mtus.table.is_probe(id) {
            return false;
        }
        let change = self.path_mtus.table.answered(id, remote, boot_time());
        self.path_mtus_changed(change.as_slice());
        true
    }

    /// Continues the searches whose wait for answers is over.
    pub(super) fn continue_path_mtu_searches(&mut self, now: Instant) {
        if self.path_mtus.table.due().is_none_or(|due| due > now) {
            return;
        }
        let random = random_numbers(&mut self.environment);
        let (changed, probes) = self.path_mtus.table.timeout(now, random);
        self.send_probes(&probes);
        self.path_mtus_changed(&changed);
    }

    /// Forgets the paths to peers that no longer exist, and publishes the path MTUs of peers that
    /// may have other networks.
    pub(super) fn update_path_mtus(&mut self, changes: &PeerChanges) {
        for peer in &changes.gone {
            self.path_mtus.table.remove(peer);
        }
        for peer in changes.gone.iter().chain(&changes.set) {
            if self.path_mtus.limits.contains(peer) {
                self.publish_path_mtu(peer);
            }
        }
    }

    /// Returns what is known about the path to a peer, for the report.
    pub(super) fn path_mtu(&self, peer: &PeerName) -> Option<PathMtuStatus> {
        let known = self.path_mtus.table.of(peer)?;
        let pod_mtu = self.host.borrow().pod_mtu;
        let bytes = known.limit.unwrap_or(pod_mtu);
        Some(PathMtuStatus {
            bytes,
            limited: known.limit.is_some(),
            unanswered: known.unanswered,
            ipv6_in_fragments: bytes < IPV6_MIN_MTU && known.over_ipv4,
        })
    }

    fn path_mtus_changed(&mut self, changes: &[Change]) {
        for Change { peer, new_limit } in changes {
            let _span = peer_span(peer).entered();
            let Some(known) = self.path_mtus.table.of(peer) else { continue };
            let loud = *new_limit && self.event_log.record(PeerEvent::PathMtu, peer, boot_time());
            match known.limit {
                Some(limit) if *new_limit => {
                    info_if!(loud, bytes = limit, "the path carries only smaller packets than the pods' MTU");
                }
                None if *new_limit => info_if!(loud, "the path carries packets of the pods' MTU again"),
                _ if known.unanswered => tracing::debug!("the peer does not answer probes of the path MTU"),
                _ => {}
            }
            self.publish_path_mtu(peer);
        }
    }

    /// Publishes the path MTU of a peer for its networks.
    fn publish_path_mtu(&mut self, peer: &PeerName) {
        let limit = self.path_mtus.table.of(peer).and_then(|known| known.limit);
        let permitted = self.desired.tunnels.get(peer).map(|tunnel| &tunnel.permitted);
        let limits = &mut self.path_mtus.limits;
        let concerned = match (limit, permitted) {
            (Some(limit), Some(PermittedTraffic::Granted { remote, .. })) => limits.set(peer, limit, remote),
            _ => limits.remove(peer),
        };
        self.path_mtus.to_host.send_if_modified(|published| {
            let mut changed = false;
            for network in &concerned {
                let mtu = limits.mtu(network);
                changed |= match mtu {
                    Some(mtu) => published.insert(*network, mtu),
                    None => published.remove(network),
                } != mtu;
            }
            changed
        });
    }

    fn send_probes(&mut self, probes: &[Probe]) {
        for Probe { id, size, path } in probes {
            let mut random = [0; init_probe::RANDOM];
            self.environment.fill_random(&mut random);
            let octets = path.encapsulation.udp_payload(*size);
            let payload = if path.local.port() == self.endpoint.config().nat_port {
                let request = init_probe::request(*id, &random, octets.saturating_sub(NON_ESP_MARKER.len()));
                [&NON_ESP_MARKER, request.as_slice()].concat()
            } else {
                init_probe::request(*id, &random, octets)
            };
            self.send(&Transmit { local: path.local, remote: path.remote, payload });
        }
    }
}

/// Returns random numbers that are not 0, since an IKE SPI of 0 has another meaning.
fn random_numbers(environment: &mut KernelEnvironment) -> impl FnMut() -> u64 {
    || {
        let mut bytes = [0; 8];
        environment.fill_random(&mut bytes);
        u64::from_be_bytes(bytes).max(1)
    }
}

//! Changes the UDP source port towards hubs that do not answer at the usual one.

use std::net::SocketAddr;

use edge_ike::{Environment, Instant, PeerName};
use edge_types::Role;

use super::driver::Driver;
use super::source_ports::Due;
use crate::clock::boot_time;
use crate::desired::Origin;
use crate::init_probe::{self, NON_ESP_MARKER};
use crate::tcp_encapsulation::is_tcp;

impl Driver {
    /// Handles a change of the path to a peer: the peer is up, down or has moved.
    pub(super) fn source_port_path_changed(&mut self, name: &PeerName) {
        let is_hub = self.desired.tunnels.get(name).is_some_and(|tunnel| tunnel.hub && tunnel.origin == Origin::View);
        if self.desired.role != Some(Role::Edge) || !is_hub {
            return self.other_ports.forget(name);
        }
        let now = self.now();
        match self.endpoint.path(name) {
            None => self.other_ports.unreached(name, now),
            Some((_, remote)) if is_tcp(remote) => self.other_ports.reached_by_tcp(name),
            Some((local, remote)) => {
                if self.other_ports.reached(name) {
                    let port = self.other_ports.ports.real(local, remote).port();
                    tracing::info!(
                        peer = %name, port, usual = local.port(),
                        "the hub answers at another UDP port than the usual one: a router may have kept an outdated NAT mapping"
                    );
                }
            }
        }
    }

    /// Probes silent hubs from other source ports, and changes the source ports, as far as this is
    /// due.
    pub(super) fn change_source_ports(&mut self, now: Instant) {
        for due in self.other_ports.take_due(now) {
            match due {
                Due::Probe(name) => {
                    self.probe_from_another_port(&name);
                    // One probe is enough for each attempt by UDP while TCP is used.
                    if self.is_up_by_tcp(&name) {
                        self.other_ports.reached_by_tcp(&name);
                    }
                }
                Due::Try(name) => self.try_by_udp(&name, now),
            }
        }
    }

    fn probe_from_another_port(&mut self, name: &PeerName) {
        let (mut random, mut spi) = ([0; init_probe::RANDOM], [0; 8]);
        self.environment.fill_random(&mut random);
        self.environment.fill_random(&mut spi);
        // An initiator's SPI of 0 has another meaning.
        let spi = u64::from_be_bytes(spi).max(1);
        let probe = [&NON_ESP_MARKER, init_probe::request(spi, &random, 0).as_slice()].concat();
        let Some(tunnel) = self.desired.tunnels.get(name) else { return };
        let (remotes, attempt) = (tunnel.peer.remotes.clone(), tunnel.peer.timing.longest_exchange());
        if let Err(error) = self.other_ports.probe(name, remotes, attempt, spi, &probe) {
            tracing::debug!(peer = %name, "the hub is not probed from another port: {error:#}");
        }
    }

    /// Returns whether a datagram is the answer to a probe from another port, and handles it if so.
    pub(super) fn take_port_probe_answer(&mut self, datagram: &[u8]) -> bool {
        if !self.other_ports.expects_answers() {
            return false;
        }
        let Some(message) = datagram.strip_prefix(&NON_ESP_MARKER) else { return false };
        // The header alone shows of nearly every datagram that it is something else.
        let is_answer = init_probe::answered_request(message).is_some_and(|spi| self.other_ports.is_probe(spi));
        if !is_answer {
            return false;
        }
        let now = boot_time();
        let name =
            init_probe::read_answer(message).and_then(|(spi, answer)| self.other_ports.answered(spi, answer, now));
        let Some(name) = name else { return true };
        tracing::debug!(peer = %name, "the hub answers a probe from another port; trying the usual one again");
        self.try_by_udp(&name, now);
        true
    }

    fn udp_addresses(&self, name: &PeerName) -> Vec<SocketAddr> {
        self.desired.tunnels.get(name).map(|tunnel| tunnel.peer.remotes.clone()).unwrap_or_default()
    }

    fn try_by_udp(&mut self, name: &PeerName, now: Instant) {
        if self.endpoint.path(name).is_some() {
            let remotes = self.udp_addresses(name);
            self.endpoint.try_addresses(name, &remotes, now, &mut self.environment);
        } else {
            self.endpoint.connect(name, now, &mut self.environment);
        }
    }
}

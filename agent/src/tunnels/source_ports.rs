//! Other UDP source ports towards hubs that do not answer.
//!
//! A router with two uplinks may keep the NAT mapping of a flow on the uplink that has failed, for
//! as long as packets of the flow arrive, and an edge never stops to try its hubs. Packets from
//! another source port are another flow, which gets a mapping of its own.
//!
//! An edge therefore probes a silent hub from another port. If the hub answers there, and an
//! attempt from the usual port that begins after this answer still fails, the other port takes the
//! place of the usual one. A hub that comes back answers at both, so the usual port stays in use.
//!
//! The endpoint does not know other ports: its local port is always the usual one. The port is
//! replaced where datagrams are sent and received, and in the SAs in the kernel.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use edge_ike::{Instant, PeerName};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tracing::Instrument;

use super::datagram_socket::Socket;
use super::event_sources::{Received, read};
use super::ike_sockets;
use crate::init_probe::AgentAnswer;

/// Time without an answer of a hub until the first probe.
const UNTIL_PROBE: Duration = Duration::from_secs(10);
/// Time until the next probe.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
/// Minimum time for the tunnel to come up from another port. Then the usual one is used again.
const TRIAL: Duration = Duration::from_secs(20);
/// Maximum number of hubs that are probed, or reached, from another port at a time. Others are
/// tried from the usual port only.
const MAX_HUBS: usize = 16;

/// The source ports that differ from the usual one. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct SourcePorts {
    /// The usual port.
    nat_port: u16,
    /// By remote address: at most [`MAX_HUBS`] hubs, with eight addresses each.
    others: Arc<Mutex<BTreeMap<SocketAddr, u16>>>,
}

impl SourcePorts {
    /// No port differs from the usual one.
    pub(super) fn new(nat_port: u16) -> Self {
        Self { nat_port, others: Arc::default() }
    }

    fn others(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, u16>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Uses a port in place of the usual one.
    fn set(&self, other: Option<&OtherPort>) {
        let mut others = self.others();
        for (other, remote) in other.iter().flat_map(|other| other.remotes.iter().map(move |remote| (other, remote))) {
            others.extend(other.socket(*remote).map(|socket| (*remote, socket.port())));
        }
    }

    /// Uses the usual port again.
    fn unset(&self, other: Option<&OtherPort>) {
        let mut others = self.others();
        for remote in other.iter().flat_map(|other| &other.remotes) {
            others.remove(remote);
        }
    }

    /// Returns the unspecified address of the same family. With it, the kernel chooses the source.
    fn any(remote: SocketAddr) -> IpAddr {
        if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
    }

    /// Returns the local address and port from which packets to `remote` are really sent. `local`
    /// is what the endpoint knows.
    pub(super) fn real(&self, local: SocketAddr, remote: SocketAddr) -> SocketAddr {
        if local.port() != self.nat_port {
            return local;
        }
        match self.others().get(&remote) {
            Some(port) => SocketAddr::new(local.ip(), *port),
            None => local,
        }
    }
}

/// The hubs that do not answer, and those that answer at another port only.
#[derive(Debug)]
pub(super) struct OtherPorts {
    pub(super) ports: SourcePorts,
    /// At most one entry for each hub in the view.
    hubs: BTreeMap<PeerName, Hub>,
    /// Where datagrams are delivered, once the driver runs.
    messages: Option<mpsc::Sender<Received>>,
}

#[derive(Debug)]
struct Hub {
    next: Next,
    /// The initiator's SPI of the last probe.
    probe: u64,
    /// Time for an attempt from the usual port after a probe was answered, with all
    /// retransmissions.
    attempt: Duration,
    other: Option<OtherPort>,
    /// Whether the other port is used in place of the usual one.
    used: bool,
}

impl Hub {
    fn is_probe(&self, spi: u64) -> bool {
        self.other.is_some() && !self.used && self.probe == spi
    }
}

/// What is done next about a hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Send a probe from another port.
    Probe(Instant),
    /// A probe was answered. The other port is used from the given time on.
    Use(Instant),
    /// The other port is used until the given time.
    Back(Instant),
    /// Nothing: the hub is reached.
    Nothing,
}

/// What the owner must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Due {
    /// Call [`OtherPorts::probe`].
    Probe(PeerName),
    /// Try to reach the hub now. The source port has changed.
    Try(PeerName),
}

/// A port besides the usual one.
#[derive(Debug)]
struct OtherPort {
    remotes: Vec<SocketAddr>,
    /// One for each family of `remotes`.
    sockets: Vec<(Arc<Socket>, AbortHandle)>,
}

impl Drop for OtherPort {
    fn drop(&mut self) {
        self.sockets.iter().for_each(|(_, reader)| reader.abort());
    }
}

impl OtherPort {
    /// Opens sockets for these addresses and starts to read from them. Must be called within a
    /// tokio runtime.
    fn open(remotes: Vec<SocketAddr>, nat_port: u16, messages: &mpsc::Sender<Received>) -> anyhow::Result<Self> {
        // When it is dropped after an error, it ends the readers.
        let mut other = Self { remotes, sockets: Vec::new() };
        for ipv4 in [true, false] {
            if !other.remotes.iter().any(|remote| remote.is_ipv4() == ipv4) {
                continue;
            }
            let socket = match Socket::open(ipv4, 0) {
                Err(error) if !ipv4 && error.raw_os_error() == Some(libc::EAFNOSUPPORT) => continue,
                socket => Arc::new(socket.context("a UDP socket")?.standing_for(nat_port)),
            };
            ike_sockets::set_options(&socket, true)?;
            let reader = tokio::spawn(read(socket.clone(), messages.clone()).in_current_span());
            other.sockets.push((socket, reader.abort_handle()));
        }
        Ok(other)
    }

    fn socket(&self, remote: SocketAddr) -> Option<&Socket> {
        let of_family = self.sockets.iter().find(|(socket, _)| socket.is_ipv4() == remote.is_ipv4());
        of_family.filter(|_| self.remotes.contains(&remote)).map(|(socket, _)| &**socket)
    }
}

impl OtherPorts {
    /// No hubs. `nat_port` is the usual port.
    pub(super) fn new(nat_port: u16) -> Self {
        Self { ports: SourcePorts::new(nat_port), hubs: BTreeMap::new(), messages: None }
    }

    /// Sets where datagrams are delivered.
    pub(super) fn start(&mut self, messages: &mpsc::Sender<Received>) {
        self.messages = Some(messages.clone());
    }

    /// Records that a hub does not answer.
    pub(super) fn unreached(&mut self, hub: &PeerName, now: Instant) {
        self.hub(hub, now + UNTIL_PROBE);
    }

    /// Records that a hub that is reached by TCP is tried by UDP now.
    pub(super) fn tried(&mut self, hub: &PeerName, now: Instant) {
        self.hub(hub, now);
    }

    fn hub(&mut self, hub: &PeerName, probe_at: Instant) {
        let fresh = || Hub { next: Next::Nothing, probe: 0, attempt: Duration::ZERO, other: None, used: false };
        let hub = self.hubs.entry(hub.clone()).or_insert_with(fresh);
        if hub.next == Next::Nothing {
            // If another port was in use, it may have an outdated mapping now.
            hub.next = if hub.used { Next::Back(probe_at) } else { Next::Probe(probe_at) };
        }
    }

    /// Records that a hub is reached by TCP. It is not probed until the next attempt by UDP.
    pub(super) fn reached_by_tcp(&mut self, name: &PeerName) {
        if let Some(hub) = self.hubs.get_mut(name).filter(|hub| matches!(hub.next, Next::Probe(_))) {
            hub.next = Next::Nothing;
        }
    }

    /// Records that a hub is reached by UDP. The port in use stays. Returns whether this is the
    /// first answer at another port.
    pub(super) fn reached(&mut self, name: &PeerName) -> bool {
        match self.hubs.get_mut(name) {
            Some(hub) if hub.used => std::mem::replace(&mut hub.next, Next::Nothing) != Next::Nothing,
            Some(_) => {
                self.hubs.remove(name);
                false
            }
            None => false,
        }
    }

    /// Forgets a peer that is no hub any more.
    pub(super) fn forget(&mut self, name: &PeerName) {
        if let Some(hub) = self.hubs.remove(name) {
            self.ports.unset(hub.other.as_ref());
        }
    }

    /// Returns the time of the next action.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let at = |hub: &Hub| match hub.next {
            Next::Probe(at) | Next::Use(at) | Next::Back(at) => Some(at),
            Next::Nothing => None,
        };
        self.hubs.values().filter_map(at).min()
    }

    /// Changes the ports that are due, and returns what the owner must do.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Due> {
        let mut due = Vec::new();
        for (name, hub) in &mut self.hubs {
            match hub.next {
                Next::Probe(at) if at <= now => {
                    hub.next = Next::Probe(now + PROBE_INTERVAL);
                    due.push(Due::Probe(name.clone()));
                }
                Next::Use(at) if at <= now => {
                    (hub.next, hub.used) = (Next::Back(now + hub.attempt.max(TRIAL)), true);
                    self.ports.set(hub.other.as_ref());
                    due.push(Due::Try(name.clone()));
                }
                Next::Back(at) if at <= now => {
                    self.ports.unset(hub.other.take().as_ref());
                    (hub.next, hub.used) = (Next::Probe(now + PROBE_INTERVAL), false);
                    due.push(Due::Try(name.clone()));
                }
                _ => {}
            }
        }
        due
    }

    /// Sends a probe to a hub from another port. `probe` is an IKE_SA_INIT request with this
    /// initiator's SPI, and `remotes` are the hub's addresses. `attempt` is the time that an
    /// attempt from the usual port takes if nothing answers.
    pub(super) fn probe(
        &mut self,
        name: &PeerName,
        remotes: Vec<SocketAddr>,
        attempt: Duration,
        spi: u64,
        probe: &[u8],
    ) -> anyhow::Result<()> {
        let others = self.hubs.iter().filter(|(other, hub)| *other != name && hub.other.is_some()).count();
        let (Some(messages), true) = (&self.messages, others < MAX_HUBS) else { return Ok(()) };
        let Some(hub) = self.hubs.get_mut(name).filter(|hub| !hub.used) else { return Ok(()) };
        // Each probe is another flow: the port of an earlier one may have got an outdated mapping.
        let other = OtherPort::open(remotes, self.ports.nat_port, messages)?;
        for remote in &other.remotes {
            let Some(socket) = other.socket(*remote) else { continue };
            if let Err(error) = socket.send(SourcePorts::any(*remote), *remote, probe) {
                tracing::debug!(%remote, %error, "a probe from another port cannot be sent");
            }
        }
        (hub.probe, hub.attempt, hub.other) = (spi, attempt, Some(other));
        Ok(())
    }

    /// Returns whether the last probe of a hub has this initiator's SPI.
    pub(super) fn is_probe(&self, spi: u64) -> bool {
        self.hubs.values().any(|hub| hub.is_probe(spi))
    }

    /// Returns the hub that has answered a probe with this initiator's SPI; `None` if it is no such
    /// answer. The hub must then be tried from the usual port at once. A busy hub that asks for a
    /// cookie has not answered: an attempt from the usual port may fail because the hub is busy,
    /// and then shows nothing about the port.
    pub(super) fn answered(&mut self, spi: u64, answer: AgentAnswer, now: Instant) -> Option<PeerName> {
        if answer == AgentAnswer::AsksForCookie {
            return None;
        }
        let (name, hub) = self.hubs.iter_mut().find(|(_, hub)| hub.is_probe(spi))?;
        if !matches!(hub.next, Next::Use(_)) {
            hub.next = Next::Use(now + hub.attempt);
        }
        Some(name.clone())
    }

    /// Returns whether answers to probes may arrive.
    pub(super) fn expects_answers(&self) -> bool {
        !self.hubs.is_empty()
    }

    /// Sends a datagram if another port is used to `remote`; `None` if the usual one is.
    pub(super) fn send(&self, local: SocketAddr, remote: SocketAddr, payload: &[u8]) -> Option<io::Result<()>> {
        if local.port() != self.ports.nat_port {
            return None;
        }
        let used = self.hubs.values().filter(|hub| hub.used);
        let socket = used.filter_map(|hub| hub.other.as_ref()).find_map(|other| other.socket(remote))?;
        Some(socket.send(local.ip(), remote, payload))
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use interop_tests::netns::is_root_or_skips;

    use super::*;

    const ATTEMPT: Duration = Duration::from_secs(6);

    fn at(seconds: u64) -> Instant {
        Instant::new(Duration::from_secs(seconds))
    }

    /// A hub at two addresses of loopback, and this node's other ports.
    struct Setting {
        ports: OtherPorts,
        hub: PeerName,
        sockets: [UdpSocket; 2],
        received: mpsc::Receiver<Received>,
    }

    fn setting() -> Setting {
        let sockets = ["127.0.0.1", "127.0.0.2"].map(|address| UdpSocket::bind((address, 0)).unwrap());
        let (messages, received) = mpsc::channel(4);
        let mut ports = OtherPorts::new(4500);
        ports.start(&messages);
        Setting { ports, hub: PeerName::new("hub"), sockets, received }
    }

    impl Setting {
        fn remote(&self) -> SocketAddr {
            self.sockets[0].local_addr().unwrap()
        }

        /// Sends a probe, and returns the port from which it arrives.
        fn probe(&mut self, spi: u64) -> u16 {
            self.ports.probe(&self.hub, vec![self.remote()], ATTEMPT, spi, b"probe").unwrap();
            self.arrived(b"probe")
        }

        fn arrived(&self, expected: &[u8]) -> u16 {
            let mut buffer = [0; 16];
            let (length, from) = self.sockets[0].recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], expected);
            from.port()
        }
    }

    fn local() -> SocketAddr {
        "127.0.0.1:4500".parse().unwrap()
    }

    #[test]
    fn a_hub_that_answers_no_probe_is_tried_from_the_usual_port_alone() {
        let Setting { mut ports, hub, .. } = setting();
        ports.unreached(&hub, at(0));
        ports.unreached(&hub, at(5));
        assert_eq!((ports.next_due(), ports.take_due(at(9))), (Some(at(10)), vec![]));
        for seconds in (10..600).step_by(10) {
            assert_eq!(ports.take_due(at(seconds)), [Due::Probe(hub.clone())]);
        }
        assert!(!ports.reached(&hub));
        assert_eq!((ports.next_due(), ports.expects_answers()), (None, false));
        // While TCP is used, each attempt by UDP comes with one probe.
        ports.tried(&hub, at(700));
        assert_eq!(ports.take_due(at(700)), [Due::Probe(hub.clone())]);
        ports.reached_by_tcp(&hub);
        assert_eq!(ports.next_due(), None);
    }

    #[tokio::test]
    async fn a_hub_that_answers_at_another_port_alone_is_reached_from_there() {
        if !is_root_or_skips() {
            return;
        }
        let mut it = setting();
        let (remote, hub, shared) = (it.remote(), it.hub.clone(), it.ports.ports.clone());
        it.ports.unreached(&hub, at(0));
        it.ports.take_due(at(10));
        let first = it.probe(7);
        it.ports.take_due(at(20));
        let port = it.probe(8);
        assert!(first != port && port != 4500);
        assert!(it.ports.send(local(), remote, b"x").is_none(), "the usual port is used");
        assert_eq!(
            (it.ports.answered(7, AgentAnswer::Serves, at(21)), it.ports.answered(8, AgentAnswer::Serves, at(21))),
            (None, Some(hub.clone()))
        );
        assert_eq!((it.ports.take_due(at(26)), shared.real(local(), remote)), (vec![], local()));
        assert_eq!(it.ports.take_due(at(27)), [Due::Try(hub.clone())]);
        assert_eq!(shared.real(local(), remote).port(), port);
        let (another, ike) = (it.sockets[1].local_addr().unwrap(), "127.0.0.1:500".parse().unwrap());
        assert_eq!((shared.real(local(), another), shared.real(ike, remote)), (local(), ike));
        it.ports.send(local(), remote, b"ask").unwrap().unwrap();
        assert_eq!(it.arrived(b"ask"), port);
        // The kernel passes on what begins with the non-ESP marker.
        it.sockets[0].send_to(b"\0\0\0\0answer", (local().ip(), port)).unwrap();
        let (datagram, to, by) = it.received.recv().await.unwrap();
        assert_eq!((datagram.as_slice(), to, by), (&b"\0\0\0\0answer"[..], local(), remote));
        // The port stays while the hub answers, and is left if the hub is lost at it.
        assert!(it.ports.reached(&hub) && !it.ports.reached(&hub));
        assert_eq!((it.ports.next_due(), shared.real(local(), remote).port()), (None, port));
        it.ports.unreached(&hub, at(100));
        assert_eq!(it.ports.take_due(at(110)), [Due::Try(hub.clone())]);
        assert_eq!((shared.real(local(), remote), it.ports.next_due()), (local(), Some(at(120))));
    }

    #[tokio::test]
    async fn an_attempt_from_the_usual_port_and_a_trial_take_as_long_as_the_timers_say() {
        if !is_root_or_skips() {
            return;
        }
        let mut it = setting();
        let (hub, remote) = (it.hub.clone(), it.remote());
        it.ports.unreached(&hub, at(0));
        it.ports.probe(&hub, vec![remote], Duration::from_secs(64), 7, b"probe").unwrap();
        it.ports.answered(7, AgentAnswer::Serves, at(15)).unwrap();
        assert_eq!((it.ports.take_due(at(78)), it.ports.next_due()), (vec![], Some(at(79))));
        assert_eq!((it.ports.take_due(at(79)), it.ports.next_due()), (vec![Due::Try(hub)], Some(at(143))));
    }

    #[tokio::test]
    async fn a_hub_that_comes_back_is_reached_from_the_usual_port_though_it_answers_a_probe() {
        if !is_root_or_skips() {
            return;
        }
        let mut it = setting();
        let (hub, remote) = (it.hub.clone(), it.remote());
        it.ports.unreached(&hub, at(0));
        it.probe(7);
        assert_eq!(it.ports.answered(7, AgentAnswer::AsksForCookie, at(15)), None, "a busy hub");
        assert_eq!(it.ports.next_due(), Some(at(10)));
        assert_eq!(it.ports.answered(7, AgentAnswer::Serves, at(15)), Some(hub.clone()));
        assert!(!it.ports.reached(&hub));
        assert_eq!(it.ports.take_due(at(60)), []);
        assert_eq!(it.ports.ports.real(local(), remote), local());
        // A peer that is no hub any more leaves nothing behind.
        it.ports.unreached(&hub, at(60));
        it.probe(8);
        it.ports.answered(8, AgentAnswer::Serves, at(61)).unwrap();
        it.ports.take_due(at(70));
        assert_ne!(it.ports.ports.real(local(), remote), local());
        it.ports.forget(&hub);
        assert_eq!(it.ports.ports.real(local(), remote), local());
    }
}

//! The loop around the endpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use edge_ike::{Auth, Endpoint, EndpointConfig, Instant, PeerConfig, PeerName};
use edge_types::api::TunnelCount;
use edge_xfrm::events::EventSocket;
use edge_xfrm::policy::PolicyKey;
use edge_xfrm::{Policy, Reqid, Xfrm};
use ring::rand::SystemRandom;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::environment::{Machine, source_address};
use super::report::TunnelsReport;
use super::reqids::Reqids;
use super::sa_table::SaTable;
use super::socket::{self, Socket};
use super::sockets;
use crate::clock::{CertificateClock, boot_time};
use crate::config::Config;
use crate::desired::Desired;
use crate::host::HostState;
use crate::incidents::Journal;

/// All is compared with the kernel this often, besides after every notification that something was
/// changed.
const FULL_CHECK: Duration = Duration::from_secs(10);
/// Largest IKE message in one datagram.
const DATAGRAM: usize = 65_535;
/// Datagrams that wait between sockets and endpoint; more are dropped, as the network might.
const QUEUE: usize = 256;

/// What others ask of the driver.
#[derive(Debug)]
pub enum Command {
    /// Tell everything.
    Report(oneshot::Sender<TunnelsReport>),
    /// Rekey the CHILD_SA with a peer.
    Rekey(String, oneshot::Sender<Result<(), String>>),
}

/// A datagram and between whom it travelled: to us, from the peer.
type Received = (Vec<u8>, SocketAddr, SocketAddr);

/// The tunnels of this node.
#[derive(Debug)]
pub struct Driver {
    pub(super) endpoint: Endpoint,
    pub(super) machine: Machine,
    pub(super) sas: SaTable,
    pub(super) desired: Arc<Desired>,
    /// Policies that the kernel should have.
    pub(super) policies: BTreeMap<PolicyKey, Policy>,
    /// Tunnel state changed in a way that may change policies.
    pub(super) policies_dirty: bool,
    /// When to look for a route again, for tunnels whose address is gone and that have none yet.
    pub(super) move_again_at: Option<tokio::time::Instant>,
    /// Peers to rekey once the events at hand are carried out.
    pub(super) to_rekey: Vec<PeerName>,
    /// The first complete desired state has been carried out.
    pub(super) settled: bool,
    /// The guard's policies that nobody wanted at the check before the last one, by index, and at
    /// the last one.
    pub(super) suspects: BTreeSet<u32>,
    pub(super) next_suspects: BTreeSet<u32>,
    pub(super) host: watch::Receiver<HostState>,
    sockets: Vec<Arc<Socket>>,
    pub(super) kernel_events: AsyncFd<EventSocket>,
}

impl Driver {
    /// Opens sockets and XFRM, and takes over what a former run left. To be called within a tokio
    /// runtime.
    pub fn open(
        config: &Config,
        clock: Arc<CertificateClock>,
        journal: Journal,
        host: watch::Receiver<HostState>,
    ) -> anyhow::Result<Self> {
        let mut events = EventSocket::open().context("XFRM cannot be listened to; the agent needs CAP_NET_ADMIN")?;
        let mut xfrm = Xfrm::open().context("XFRM cannot be opened; the agent needs CAP_NET_ADMIN")?;
        events.ignore_port(xfrm.port());
        let sockets = sockets::open(config.port, config.nat_port)?;
        let endpoint_config =
            EndpointConfig { port: config.port, nat_port: config.nat_port, ..EndpointConfig::default() };
        let child_lifetime = config.timing.resolve().child_lifetime;
        let mut sas = SaTable::default();
        let is_local = |address: IpAddr| source_address(address) == Some(address);
        sas.keep(xfrm.sas()?, is_local, boot_time() + child_lifetime);
        Ok(Self {
            endpoint: Endpoint::new(endpoint_config),
            machine: Machine {
                xfrm,
                reqids: Reqids::load(&config.state_dir),
                journal,
                clock,
                random: SystemRandom::new(),
            },
            sas,
            desired: Arc::default(),
            policies: BTreeMap::new(),
            policies_dirty: false,
            move_again_at: None,
            to_rekey: vec![],
            settled: false,
            suspects: BTreeSet::new(),
            next_suspects: BTreeSet::new(),
            host,
            sockets,
            kernel_events: socket::watch(events)?,
        })
    }

    /// Runs until `stop`. The kernel's state stays.
    pub async fn run(
        mut self,
        mut desired: watch::Receiver<Arc<Desired>>,
        mut commands: mpsc::Receiver<Command>,
        tunnels: watch::Sender<Option<TunnelCount>>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let (to, mut datagrams) = mpsc::channel(QUEUE);
        let readers: Vec<_> =
            self.sockets.iter().map(|socket| tokio::spawn(read(socket.clone(), to.clone()))).collect();
        let mut full_check = tokio::time::interval(FULL_CHECK);
        full_check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        desired.mark_changed();
        loop {
            self.drain();
            let wait = self.until_timeout();
            let move_again_at = self.move_again_at;
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = async { tokio::time::sleep_until(move_again_at.unwrap_or_else(tokio::time::Instant::now)).await },
                    if move_again_at.is_some() => self.move_tunnels(),
                Some((datagram, local, remote)) = datagrams.recv() => {
                    self.endpoint.handle(&datagram, local, remote, boot_time(), &mut self.machine);
                }
                () = tokio::time::sleep(wait) => self.timeout(),
                Ok(()) = desired.changed() => {
                    let new = desired.borrow_and_update().clone();
                    self.take_desired(new);
                }
                Ok(()) = self.host.changed() => self.host_changed(),
                Some(command) = commands.recv() => self.carry_out_command(command),
                ready = self.kernel_events.readable_mut() => {
                    let mut ready = ready.context("XFRM's notifications")?;
                    let events = read_events(ready.get_inner_mut());
                    ready.clear_ready();
                    self.kernel_changed(events?);
                }
                _ = full_check.tick() => {
                    self.check_all();
                    let count = Some(self.count());
                    tunnels.send_if_modified(|told| std::mem::replace(told, count) != count);
                }
            }
        }
        for reader in readers {
            reader.abort();
        }
        Ok(())
    }

    /// Carries out what the endpoint says, before what it sends.
    fn drain(&mut self) {
        loop {
            while let Some(event) = self.endpoint.poll_event() {
                self.carry_out(event);
            }
            if self.policies_dirty {
                self.update_policies();
            }
            let Some(peer) = self.to_rekey.pop() else { break };
            self.endpoint.rekey_child(&peer, boot_time(), &mut self.machine);
        }
        while let Some(transmit) = self.endpoint.poll_transmit() {
            self.send(&transmit);
        }
    }

    fn send(&self, transmit: &edge_ike::Transmit) {
        let socket = self
            .sockets
            .iter()
            .find(|socket| socket.port() == transmit.local.port() && socket.is_ipv4() == transmit.remote.is_ipv4());
        let outcome = match socket {
            Some(socket) => socket.send(transmit.local.ip(), transmit.remote, &transmit.payload),
            None => Err(io::Error::other("no socket of this family and port")),
        };
        if let Err(error) = outcome {
            // Retransmission or the next attempt takes care of it; unreachable networks are the
            // everyday life of a peer with addresses of two families.
            tracing::debug!(local = %transmit.local, remote = %transmit.remote, %error, "not sent");
        }
    }

    fn until_timeout(&self) -> Duration {
        let next = [self.endpoint.poll_timeout(), self.sas.next_expiry()].into_iter().flatten().min();
        next.map_or(FULL_CHECK, |next| next.saturating_since(boot_time()))
    }

    fn timeout(&mut self) {
        let now = boot_time();
        self.endpoint.handle_timeout(now, &mut self.machine);
        if let Err(error) = self.sas.expire(&mut self.machine.xfrm, now) {
            self.machine.journal.error(format!("SAs of a former run: {error}"));
        }
    }

    fn take_desired(&mut self, desired: Arc<Desired>) {
        let before: Vec<PeerName> = self.desired.tunnels.keys().cloned().collect();
        self.desired = desired;
        let now = boot_time();
        for problem in &self.desired.problems {
            self.machine.journal.error(problem.as_str());
        }
        for name in before.iter().filter(|name| !self.desired.tunnels.contains_key(*name)) {
            self.endpoint.remove_peer(name, now, &mut self.machine);
        }
        self.drain();
        for name in before.iter().filter(|name| !self.desired.tunnels.contains_key(*name)) {
            if let Some(reqid) = self.machine.reqid(name)
                && let Err(error) = self.sas.forget(&mut self.machine.xfrm, name, reqid)
            {
                self.machine.journal.error(format!("peer {name}: {error}"));
            }
        }
        // Reqids of peers that a view not yet known may name stay theirs.
        if self.desired.complete || self.desired.tunnels.keys().any(|name| self.machine.reqid(name).is_none()) {
            let outcome = self.machine.reqids.assign(self.desired.tunnels.keys());
            if let Err(error) = outcome {
                self.machine.journal.error(format!("reqids cannot be kept on disk: {error}"));
            }
        }
        let tunnels: Vec<_> = self.desired.tunnels.values().map(|tunnel| tunnel.peer.clone()).collect();
        for mut peer in tunnels {
            if let Some(reqid) = self.machine.reqid(&peer.name) {
                self.forget_what_is_revoked(&peer, reqid);
                peer.keep_existing = self.sas.has_kept(reqid);
                self.assume_kept_ends(&peer.name, reqid);
            }
            let name = peer.name.clone();
            if let Err(error) = self.endpoint.set_peer(peer, now, &mut self.machine) {
                self.machine.journal.error(format!("peer {name}: its credentials cannot be used: {error}"));
            }
        }
        self.policies_dirty = false;
        self.reconcile();
        if self.desired.complete && !self.settled {
            self.settled = true;
            self.remove_orphans();
        }
    }

    /// SAs of a former run that were agreed on with a certificate which does not count any more.
    /// Those of this run the endpoint ends.
    fn forget_what_is_revoked(&mut self, peer: &PeerConfig, reqid: Reqid) {
        let Auth::Certificate(auth) = &peer.auth else { return };
        let moment = self.machine.clock.to_system_clock(auth.remote_not_before);
        if let Err(error) = self.sas.forget_from_before(&mut self.machine.xfrm, reqid, moment) {
            self.machine.journal.error(format!("peer {}: {error}", peer.name));
        }
    }

    fn carry_out_command(&mut self, command: Command) {
        match command {
            Command::Report(to) => {
                let _ = to.send(self.report());
            }
            Command::Rekey(peer, to) => {
                let name = PeerName::new(&peer);
                let outcome = if !self.desired.tunnels.contains_key(&name) {
                    Err(format!("there is no peer {peer:?}; `edge-agent status` lists them"))
                } else if self.endpoint.rekey_child(&name, boot_time(), &mut self.machine) {
                    Ok(())
                } else {
                    Err(format!("peer {peer:?} has no CHILD_SA now; `edge-agent status` says why"))
                };
                let _ = to.send(outcome);
            }
        }
    }

    /// Now, on the clock of all lifetimes.
    pub(super) fn now(&self) -> Instant {
        boot_time()
    }
}

async fn read(socket: Arc<Socket>, to: mpsc::Sender<Received>) {
    let mut buffer = vec![0; DATAGRAM];
    loop {
        match socket.receive(&mut buffer).await {
            Ok((length, local, remote)) => {
                let Some(datagram) = buffer.get(..length) else { continue };
                if let Err(error) = to.try_send((datagram.to_vec(), local, remote))
                    && !matches!(error, mpsc::error::TrySendError::Full(_))
                {
                    return;
                }
            }
            // ICMP errors of earlier datagrams come here.
            Err(error) => {
                tracing::debug!(%error, "not received");
                tokio::task::yield_now().await;
            }
        }
    }
}

fn read_events(socket: &mut EventSocket) -> anyhow::Result<Vec<edge_xfrm::events::Event>> {
    let mut events = Vec::new();
    while let Some(event) = socket.next().context("XFRM's notifications")? {
        events.push(event);
    }
    Ok(events)
}

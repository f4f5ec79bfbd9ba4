//! Runs the process with the peers.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{BufRead as _, ErrorKind, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, Instant as Clock};

use anyhow::{Context as _, Result, ensure};
use edge_ike::config::{AgentNotifications, Cipher, EspProposal, Group, IkeProposal, Mode, NextLayer, Prf, Timing};
use edge_ike::{
    AddressAssignment, Auth, ChildConfig, ChildName, Childless, Endpoint, EndpointConfig, Event, Identity, Instant,
    PeerConfig, PeerName, Secret,
};
use rustix::event::{Timespec, epoll};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::protocol::{Authentication, MAX_PEERS, PeerSet, Progress, Request};
use super::system::System;

/// The UDP port of each peer, with the non-ESP marker.
const PORT: u16 = 4500;
/// Number of open files in addition to the peers' sockets.
const OTHER_FILES: u64 = 64;
/// Maximum size of a datagram, in bytes.
const MAX_DATAGRAM: usize = 65_535;
/// The epoll key of standard input. The key of a peer is its index.
const STDIN: u64 = u64::MAX;
/// Maximum time that the event loop waits.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Runs the peers of `set`, as JSON, until standard input ends.
///
/// # Errors
/// Returns an error if the set is invalid, or a socket cannot be opened or used.
pub fn main(set: &str) -> Result<ExitCode> {
    let set: PeerSet = serde_json::from_str(set).context("the set of peers is not understood")?;
    ensure!(set.count <= MAX_PEERS, "{} peers; at most {MAX_PEERS} have addresses", set.count);
    ensure!(set.window > 0, "with a window of 0 nothing is ever begun");
    Engine::new(set)?.run()?;
    Ok(ExitCode::SUCCESS)
}

/// A peer with its socket.
struct Peer {
    endpoint: Endpoint,
    name: PeerName,
    socket: UdpSocket,
    local: SocketAddr,
    /// The peer's deadline in the heap.
    deadline: Option<Instant>,
    /// Number of the peer's CHILD_SAs.
    children: u32,
    /// Whether the current request waits for the peer.
    awaited: bool,
}

/// A request that is being carried out.
struct Work {
    request: Request,
    begun: Clock,
    /// The first peer that has not begun yet.
    next: u32,
    /// Number of peers that have begun and are not done.
    under_way: u32,
}

struct Engine {
    set: PeerSet,
    peers: Vec<Peer>,
    poll: std::os::fd::OwnedFd,
    deadlines: BinaryHeap<Reverse<(Instant, u32)>>,
    system: System,
    started: Clock,
    work: Option<Work>,
    progress: Progress,
}

impl Engine {
    fn new(set: PeerSet) -> Result<Self> {
        let files = u64::from(set.count) + OTHER_FILES;
        let limit = getrlimit(Resource::Nofile);
        if limit.current.is_some_and(|current| current < files) {
            let maximum = limit.maximum.map(|maximum| maximum.max(files));
            setrlimit(Resource::Nofile, Rlimit { current: Some(files), maximum })
                .with_context(|| format!("{files} open files are not allowed"))?;
        }
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&poll, std::io::stdin(), epoll::EventData::new_u64(STDIN), epoll::EventFlags::IN)?;
        let mut peers = Vec::new();
        for index in 0..set.count {
            let local = SocketAddr::new(PeerSet::address(index).into(), PORT);
            let socket = UdpSocket::bind(local).with_context(|| format!("opening the socket on {local}"))?;
            socket.set_nonblocking(true)?;
            epoll::add(&poll, &socket, epoll::EventData::new_u64(index.into()), epoll::EventFlags::IN)?;
            let endpoint = Endpoint::new(EndpointConfig::default());
            let name = PeerName::new(&set.responder_id);
            peers.push(Peer { endpoint, name, socket, local, deadline: None, children: 0, awaited: false });
        }
        let progress =
            Progress { up: 0, rekeyed: 0, failures: 0, downs: 0, liveness_checks: 0, last_error: None, seconds: 0.0 };
        Ok(Self {
            set,
            peers,
            poll,
            deadlines: BinaryHeap::new(),
            system: System::new(),
            started: Clock::now(),
            work: None,
            progress,
        })
    }

    fn run(mut self) -> Result<()> {
        self.report(Duration::ZERO)?;
        let mut stdin = std::io::stdin().lock();
        let mut events = Vec::with_capacity(256);
        let mut buffer = vec![0; MAX_DATAGRAM];
        loop {
            let wait = self.until_deadline();
            let timeout = Timespec::try_from(wait)?;
            events.clear();
            match epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                match u32::try_from(event.data.u64()) {
                    Ok(index) => self.receive(index, &mut buffer)?,
                    Err(_) => {
                        let mut line = String::new();
                        if stdin.read_line(&mut line)? == 0 {
                            return Ok(());
                        }
                        self.begin(serde_json::from_str(&line)?)?;
                    }
                }
            }
            self.timeouts()?;
            self.begin_next()?;
        }
    }

    fn now(&self) -> Instant {
        Instant::new(self.started.elapsed())
    }

    fn until_deadline(&self) -> Duration {
        self.deadlines.peek().map_or(LONGEST_WAIT, |Reverse((at, _))| at.saturating_since(self.now()).min(LONGEST_WAIT))
    }

    fn begin(&mut self, request: Request) -> Result<()> {
        ensure!(self.work.is_none(), "{request:?} came before the last request was done");
        if request == Request::Report {
            return self.report(Duration::ZERO);
        }
        self.work = Some(Work { request, begun: Clock::now(), next: 0, under_way: 0 });
        Ok(())
    }

    /// Begins the request for further peers, or reports that the request is done.
    fn begin_next(&mut self) -> Result<()> {
        while let Some(work) = &mut self.work {
            if work.next < self.set.count && work.under_way < self.set.window {
                let (index, request) = (work.next, work.request);
                work.next += 1;
                work.under_way += 1;
                self.start(index, request)?;
            } else if work.next == self.set.count && work.under_way == 0 {
                let took = work.begun.elapsed();
                self.work = None;
                self.report(took)?;
            } else {
                break;
            }
        }
        Ok(())
    }

    fn start(&mut self, index: u32, request: Request) -> Result<()> {
        let now = self.now();
        let config = (request == Request::Up).then(|| peer_config(&self.set, index));
        let peer = &mut self.peers[index as usize];
        peer.awaited = true;
        match config {
            Some(config) => peer.endpoint.set_peer(config, now, &mut self.system)?,
            None => {
                let begun = peer.endpoint.rekey_children(&peer.name, now, &mut self.system);
                ensure!(begun, "{} has no CHILD_SA to rekey", PeerSet::name(index));
            }
        }
        self.drain(index)
    }

    fn receive(&mut self, index: u32, buffer: &mut [u8]) -> Result<()> {
        let now = self.now();
        let peer = &mut self.peers[index as usize];
        match peer.socket.recv_from(buffer) {
            Ok((length, remote)) => {
                peer.endpoint.handle(&buffer[..length], peer.local, remote, now, &mut self.system);
                self.drain(index)
            }
            // An ICMP error reports that an earlier datagram was refused; the endpoint sends it
            // again.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionRefused) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("receiving on {}", peer.local)),
        }
    }

    fn timeouts(&mut self) -> Result<()> {
        let now = self.now();
        while let Some(&Reverse((at, index))) = self.deadlines.peek()
            && at <= now
        {
            self.deadlines.pop();
            let peer = &mut self.peers[index as usize];
            // A deadline that was replaced by another one is still in the heap.
            if peer.deadline == Some(at) {
                peer.deadline = None;
                peer.endpoint.handle_timeout(now, &mut self.system);
                self.drain(index)?;
            }
        }
        Ok(())
    }

    /// Counts a peer's events, sends its datagrams, and records its deadline.
    fn drain(&mut self, index: u32) -> Result<()> {
        let peer = &mut self.peers[index as usize];
        let was_up = peer.children > 0;
        let mut done = false;
        let request = self.work.as_ref().map(|work| work.request);
        while let Some(event) = peer.endpoint.poll_event() {
            match event {
                Event::ChildUp { .. } => {
                    peer.children += 1;
                    done |= request == Some(Request::Up);
                }
                Event::ChildRekeyed { .. } => {
                    peer.children += 1;
                    self.progress.rekeyed += 1;
                    done |= request == Some(Request::Rekey);
                }
                Event::ChildDown { .. } => peer.children = peer.children.saturating_sub(1),
                Event::IkeDown { reason, .. } => {
                    self.progress.downs += 1;
                    eprintln!("{}: IKE SA down: {reason:?}", PeerSet::name(index));
                }
                Event::PeerFailed { error, .. } | Event::Refused { error, .. } => {
                    self.progress.failures += 1;
                    eprintln!("{}: {error}", PeerSet::name(index));
                    self.progress.last_error = Some(error.to_string());
                }
                Event::IkeUp { .. }
                | Event::IkeReplaced { .. }
                | Event::OutboundSwitch { .. }
                | Event::PeerMoved { .. }
                | Event::PeerSilent { .. }
                | Event::AgentNotification { .. }
                | Event::PeerHeard { .. } => {}
            }
        }
        match (was_up, peer.children > 0) {
            (false, true) => self.progress.up += 1,
            (true, false) => self.progress.up -= 1,
            _ => {}
        }
        while let Some(transmit) = peer.endpoint.poll_transmit() {
            match peer.socket.send_to(&transmit.payload, transmit.remote) {
                // The datagram is lost, as in a congested network.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionRefused) => {}
                sent => drop(sent.with_context(|| format!("sending from {}", peer.local))?),
            }
        }
        let deadline = peer.endpoint.poll_timeout();
        if deadline != peer.deadline {
            peer.deadline = deadline;
            self.deadlines.extend(deadline.map(|at| Reverse((at, index))));
        }
        if done
            && std::mem::take(&mut peer.awaited)
            && let Some(work) = &mut self.work
        {
            work.under_way -= 1;
        }
        Ok(())
    }

    fn report(&mut self, took: Duration) -> Result<()> {
        self.progress.seconds = took.as_secs_f64();
        let checks = self.peers.iter().map(|peer| peer.endpoint.sent_requests().liveness_checks);
        self.progress.liveness_checks = checks.sum();
        let mut stdout = std::io::stdout().lock();
        serde_json::to_writer(&mut stdout, &self.progress)?;
        stdout.write_all(b"\n")?;
        Ok(stdout.flush()?)
    }
}

/// Makes the configuration of the responder for peer `index`.
fn peer_config(set: &PeerSet, index: u32) -> PeerConfig {
    let Authentication::Psk(secret) = &set.authentication;
    PeerConfig {
        name: PeerName::new(&set.responder_id),
        local: Some(PeerSet::address(index).into()),
        remotes: vec![set.responder],
        local_id: Identity::Fqdn(PeerSet::id(index)),
        remote_id: Identity::Fqdn(set.responder_id.clone()),
        auth: Auth::Psk(Secret::new(secret.clone().into_bytes())),
        ike_proposals: vec![IkeProposal {
            ciphers: vec![Cipher::Aes256Gcm16],
            prfs: vec![Prf::HmacSha256],
            groups: vec![Group::X25519],
        }],
        child: ChildConfig {
            name: ChildName::new("net"),
            proposals: vec![EspProposal { ciphers: vec![Cipher::Aes256Gcm16], groups: vec![], esn: true }],
            local: vec![PeerSet::network(index)],
            remote: vec![set.responder_network],
            next_layer: NextLayer::ANY,
            mode: Mode::Tunnel,
        },
        additional_children: vec![],
        max_children: 1,
        initiate: true,
        force_encapsulation: true,
        mobike: true,
        keep_existing: false,
        agent_notifications: AgentNotifications::Off,
        address_assignment: AddressAssignment::Off,
        childless: Childless::Allow,
        timing: Timing { liveness: set.liveness, ..Timing::default() },
    }
}

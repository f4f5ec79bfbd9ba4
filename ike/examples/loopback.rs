//! Two endpoints bring up an IKE SA and a CHILD_SA with a pre-shared key, over UDP on loopback.
//!
//! `cargo run -p edge-ike --example loopback` needs no privileges. It prints what a program would
//! install in the kernel, but installs nothing. Read [`Node::run`] first: it is the loop that
//! drives an endpoint.

use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use edge_ike::config::{AgentNotifications, Cipher, EspProposal, Group, IkeProposal, Mode, NextLayer, Prf, Timing};
use edge_ike::event::IkeDetails;
use edge_ike::{
    AddressAssignment, Auth, ChildConfig, ChildName, ChildSa, Childless, Endpoint, EndpointConfig, Environment, Event,
    Identity, Instant, PeerConfig, PeerName, Secret,
};
use ring::rand::{SecureRandom, SystemRandom};

type Failure = Box<dyn Error + Send + Sync>;

/// Maximum time for which each end tries to bring the tunnel up.
const PATIENCE: Duration = Duration::from_secs(10);

/// The state of one end when its tunnel is up.
#[derive(Debug)]
pub(crate) struct Up {
    /// The parameters negotiated for the IKE SA.
    pub(crate) ike: IkeDetails,
    /// The CHILD_SA, whose keys a program would give to the kernel.
    pub(crate) child: Arc<ChildSa>,
}

fn main() -> Result<(), Failure> {
    for (name, up) in ["left.example", "right.example"].iter().zip(run()?) {
        let Up { ike, child } = up;
        println!("{name}");
        println!("  IKE SA    {} authenticated by {}", ike.proposal, ike.authentication);
        println!("  tunnel    {} to {}, ESP in UDP: {}", child.local, child.remote, child.encapsulated);
        println!("  CHILD_SA  {} in {:#010x} out {:#010x}", child.cipher, child.inbound_spi, child.outbound_spi);
        for (local, remote) in child.local_selectors.iter().zip(&child.remote_selectors) {
            println!("  traffic   {local} to {remote}");
        }
    }
    Ok(())
}

/// Brings up a tunnel between two endpoints on loopback addresses. Returns the states of the left
/// and the right end.
///
/// # Errors
/// Returns an error if a socket cannot be opened or used, or if the tunnel is not up within 10 s.
pub(crate) fn run() -> Result<[Up; 2], Failure> {
    let sockets = [UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.2:0")?];
    let [left_at, right_at] = [sockets[0].local_addr()?, sockets[1].local_addr()?];
    let [left, right] = sockets;
    // The right end waits for the left one, so that only one IKE SA is made.
    let right = Node::new(right, peer("left.example", "right.example", right_at, None), 0x2000)?;
    let left = Node::new(left, peer("right.example", "left.example", left_at, Some(right_at)), 0x1000)?;
    let right = std::thread::spawn(move || right.run());
    let left = left.run()?;
    let right = right.join().map_err(|_| "the thread of the right end panicked")??;
    Ok([left, right])
}

/// Makes one end's configuration for the other end. `remote` is the address to which this end sends
/// the first request. If it is `None`, the other end initiates.
fn peer(them: &str, us: &str, local: SocketAddr, remote: Option<SocketAddr>) -> PeerConfig {
    let everything = || vec!["0.0.0.0/0".parse().expect("a network"), "::/0".parse().expect("a network")];
    PeerConfig {
        name: PeerName::new(them),
        local: Some(local.ip()),
        remotes: remote.into_iter().collect(),
        local_id: Identity::Fqdn(us.to_owned()),
        remote_id: Identity::Fqdn(them.to_owned()),
        auth: Auth::Psk(Secret::new(b"a secret that both ends were given".to_vec())),
        ike_proposals: vec![IkeProposal {
            ciphers: vec![Cipher::Aes256Gcm16],
            prfs: vec![Prf::HmacSha256],
            groups: vec![Group::X25519],
        }],
        child: ChildConfig {
            name: ChildName::new("net"),
            proposals: vec![EspProposal { ciphers: vec![Cipher::Aes256Gcm16], groups: Vec::new(), esn: true }],
            local: everything(),
            remote: everything(),
            next_layer: NextLayer::ANY,
            mode: Mode::Tunnel,
        },
        additional_children: vec![],
        max_children: 1,
        initiate: remote.is_some(),
        force_encapsulation: true,
        mobike: true,
        keep_existing: false,
        agent_notifications: AgentNotifications::Off,
        address_assignment: AddressAssignment::Off,
        childless: Childless::Allow,
        timing: Timing::default(),
    }
}

/// An endpoint with its socket.
struct Node {
    endpoint: Endpoint,
    socket: UdpSocket,
    local: SocketAddr,
    system: System,
    started: std::time::Instant,
}

impl Node {
    fn new(socket: UdpSocket, peer: PeerConfig, first_spi: u32) -> Result<Self, Failure> {
        let local = socket.local_addr()?;
        // One socket is enough if both ends use the NAT traversal port from the first message.
        let config = EndpointConfig { nat_port: local.port(), ..EndpointConfig::default() };
        let (mut endpoint, mut system) = (Endpoint::new(config), System { next_spi: first_spi });
        endpoint.set_peer(peer, Instant::default(), &mut system)?;
        #[expect(clippy::disallowed_methods, reason = "the program around an endpoint reads the clock")]
        let started = std::time::Instant::now();
        Ok(Self { endpoint, socket, local, system, started })
    }

    /// Drives the endpoint: carries out events, sends datagrams, then waits for a datagram or the
    /// next deadline.
    fn run(mut self) -> Result<Up, Failure> {
        let (mut ike, mut child) = (None, None);
        let mut buffer = [0; 4096];
        loop {
            while let Some(event) = self.endpoint.poll_event() {
                match event {
                    Event::IkeUp { details, .. } => ike = Some(details),
                    // At this point a program installs the SAs in the kernel, before it sends
                    // anything.
                    Event::ChildUp { child: sa, .. } => child = Some(sa),
                    Event::PeerFailed { error, .. } | Event::Refused { error, .. } => return Err(error.into()),
                    _ => {}
                }
            }
            while let Some(transmit) = self.endpoint.poll_transmit() {
                self.socket.send_to(&transmit.payload, transmit.remote)?;
            }
            if let (Some(ike), Some(child)) = (ike.clone(), child.clone()) {
                return Ok(Up { ike, child });
            }
            if self.started.elapsed() > PATIENCE {
                return Err(format!("the tunnel is not up after {PATIENCE:?}").into());
            }
            let deadline = self.endpoint.poll_timeout().map_or(PATIENCE, Instant::since_start);
            let wait = deadline.saturating_sub(self.started.elapsed());
            self.socket.set_read_timeout(Some(wait.max(Duration::from_millis(1))))?;
            match self.socket.recv_from(&mut buffer) {
                Ok((length, remote)) => {
                    let now = Instant::new(self.started.elapsed());
                    self.endpoint.handle(&buffer[..length], self.local, remote, now, &mut self.system);
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    self.endpoint.handle_timeout(Instant::new(self.started.elapsed()), &mut self.system);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The functions that the endpoint needs from the system.
struct System {
    next_spi: u32,
}

impl Environment for System {
    fn fill_random(&mut self, bytes: &mut [u8]) {
        SystemRandom::new().fill(bytes).expect("the system has randomness");
    }

    fn random_is_from_system(&self) -> bool {
        true
    }

    fn unix_time(&self) -> u64 {
        UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs())
    }

    fn allocate_spi(&mut self, _: &PeerName, _: IpAddr, _: IpAddr) -> Option<u32> {
        // A real program requests the SPI from the kernel, so that no other program has the same
        // SPI.
        let spi = self.next_spi;
        self.next_spi += 1;
        Some(spi)
    }

    fn release_spi(&mut self, _: &PeerName, _: IpAddr, _: u32) {}
}

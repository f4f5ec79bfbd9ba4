//! IKE probes, which check whether a hub's agent works ([`init_probe`]).

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use ring::rand::{SecureRandom, SystemRandom};

use crate::init_probe::{self, AgentAnswer, NON_ESP_MARKER};

/// Number of probes to one address whose answers still count. A restarted agent answers probes that
/// its sockets received while it was not running.
const MAX_UNANSWERED: usize = 8;
/// Maximum number of datagrams that are read from one address in one round.
const MAX_READ: usize = 64;

/// The sockets and unanswered probes of all gateways.
#[derive(Debug)]
pub(super) struct AgentProbes {
    random: SystemRandom,
    sockets: HashMap<SocketAddr, ProbeSocket>,
}

/// A connected UDP socket. The kernel drops packets from other senders.
#[derive(Debug)]
struct ProbeSocket {
    socket: UdpSocket,
    unanswered: VecDeque<u64>,
}

impl AgentProbes {
    /// Creates a value without any sockets.
    pub(super) fn new() -> Self {
        Self { random: SystemRandom::new(), sockets: HashMap::new() }
    }

    /// Closes the sockets of all other addresses.
    pub(super) fn retain(&mut self, addresses: &[SocketAddr]) {
        self.sockets.retain(|address, _| addresses.contains(address));
    }

    /// Sends a probe. After an error, the next probe uses a new socket, since this node's address
    /// may have changed.
    pub(super) fn send(&mut self, to: SocketAddr) -> io::Result<()> {
        let sent = self.try_send(to);
        // The socket is kept if the error is an ICMP "port unreachable" message in response to an
        // earlier probe.
        if sent.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::ConnectionRefused) {
            self.sockets.remove(&to);
        }
        sent
    }

    fn try_send(&mut self, to: SocketAddr) -> io::Result<()> {
        let (mut spi, mut random) = ([0; 8], [0; init_probe::RANDOM]);
        for bytes in [&mut spi[..], &mut random[..]] {
            self.random.fill(bytes).map_err(|_| io::Error::other("the kernel gives no random numbers"))?;
        }
        let spi = u64::from_be_bytes(spi).max(1);
        let probe_socket = match self.sockets.entry(to) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(new) => new.insert(ProbeSocket::open(to)?),
        };
        probe_socket.unanswered.truncate(MAX_UNANSWERED - 1);
        probe_socket.unanswered.push_front(spi);
        probe_socket.socket.send(&[&NON_ESP_MARKER, init_probe::request(spi, &random, 0).as_slice()].concat()).map(drop)
    }

    /// Reads the datagrams from an address. Returns the answer to a probe, if one arrived.
    pub(super) fn answer(&mut self, from: SocketAddr) -> Option<AgentAnswer> {
        let probe_socket = self.sockets.get_mut(&from)?;
        let mut buffer = [0; 2048];
        let mut answer = None;
        for _ in 0..MAX_READ {
            match probe_socket.socket.recv(&mut buffer) {
                Ok(length) => {
                    let message = buffer.get(..length).and_then(|datagram| datagram.strip_prefix(&NON_ESP_MARKER));
                    let Some((spi, found)) = message.and_then(init_probe::read_answer) else { continue };
                    if probe_socket.unanswered.contains(&spi) {
                        probe_socket.unanswered.retain(|sent| *sent != spi);
                        answer = Some(found);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // An ICMP error in response to an earlier probe.
                Err(_) => {}
            }
        }
        answer
    }
}

impl ProbeSocket {
    fn open(to: SocketAddr) -> io::Result<Self> {
        let any: SocketAddr =
            if to.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
        let socket = UdpSocket::bind(any)?;
        socket.set_nonblocking(true)?;
        socket.connect(to)?;
        Ok(Self { socket, unanswered: VecDeque::new() })
    }
}

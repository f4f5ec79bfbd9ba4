//! IKE probes, which check whether a hub's agent works.
//!
//! A probe is an IKE_SA_INIT request whose key exchange uses a group that no release supports. The
//! responder answers INVALID_KE_PAYLOAD (RFC 7296 1.2), or COOKIE (2.6) under load. It keeps no
//! state, computes no key and logs nothing. An answer counts only if it contains the probe's random
//! SPI.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use edge_ike::config::{Cipher, Group, Prf};
use edge_ike::wire::{
    ExchangeType, Header, KeyExchange, Message, NotifyType, Payload, Payloads, Proposal, Protocol, Transform,
    TransformType,
};
use ring::rand::{SecureRandom, SystemRandom};

use super::hub_choice::AgentAnswer;

/// Prefix of IKE messages on the NAT traversal port (RFC 3948 2.2).
const NON_ESP_MARKER: [u8; 4] = [0; 4];
/// Number of probes to one address whose answers still count. A restarted agent answers probes that
/// its sockets received while it was not running.
const MAX_UNANSWERED: usize = 8;
/// Maximum number of datagrams that are read from one address in one round.
const MAX_READ: usize = 64;
/// The 192-bit group of RFC 5114. It is too weak to ever be supported, and its public values are
/// short.
const UNSUPPORTED_GROUP: u16 = 25;
const UNSUPPORTED_SHARE: usize = 48;

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
        let mut bytes = [0; 8 + 16 + UNSUPPORTED_SHARE];
        self.random.fill(&mut bytes).map_err(|_| io::Error::other("the kernel gives no random numbers"))?;
        let (spi, rest) = bytes.split_at(8);
        let (nonce, share) = rest.split_at(16);
        let spi = spi.try_into().map_or(1, u64::from_be_bytes).max(1);
        let probe_socket = match self.sockets.entry(to) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(new) => new.insert(ProbeSocket::open(to)?),
        };
        probe_socket.unanswered.truncate(MAX_UNANSWERED - 1);
        probe_socket.unanswered.push_front(spi);
        probe_socket.socket.send(&[&NON_ESP_MARKER, probe(spi, nonce, share).as_slice()].concat()).map(drop)
    }

    /// Reads the datagrams from an address. Returns the answer to a probe, if one arrived.
    pub(super) fn answer(&mut self, from: SocketAddr) -> Option<AgentAnswer> {
        let probe_socket = self.sockets.get_mut(&from)?;
        let mut buffer = [0; 2048];
        let mut answer = None;
        for _ in 0..MAX_READ {
            match probe_socket.socket.recv(&mut buffer) {
                Ok(length) => {
                    let Some((spi, found)) = buffer.get(..length).and_then(read_answer) else { continue };
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

fn probe(spi: u64, nonce: &[u8], share: &[u8]) -> Vec<u8> {
    let header = Header {
        initiator_spi: spi,
        responder_spi: 0,
        exchange: ExchangeType::IkeSaInit,
        from_initiator: true,
        response: false,
        message_id: 0,
    };
    let transforms = vec![
        Transform::encryption(Cipher::Aes256Gcm16),
        Transform::prf(Prf::HmacSha256),
        Transform::group(Group::X25519),
        Transform::new(TransformType::KeyExchange, UNSUPPORTED_GROUP),
    ];
    let proposal = Proposal { number: 1, protocol: Protocol::Ike, spi: vec![], transforms };
    let payloads = Payloads::from(vec![
        Payload::SecurityAssociation(vec![proposal]),
        Payload::KeyExchange(KeyExchange { group: UNSUPPORTED_GROUP, data: share.to_vec() }),
        Payload::Nonce(nonce.to_vec()),
    ]);
    Message { header, payloads }.encode()
}

/// Returns the SPI in an answer and the meaning of the answer. Every response to a probe shows that
/// the agent works.
fn read_answer(datagram: &[u8]) -> Option<(u64, AgentAnswer)> {
    let message = Message::decode(datagram.strip_prefix(&NON_ESP_MARKER)?).ok()?;
    let answer = match message.payloads.notify(NotifyType::NoProposalChosen) {
        Some(_) => AgentAnswer::HasNoPeers,
        None => AgentAnswer::Serves,
    };
    (message.header.response && !message.header.from_initiator).then_some((message.header.initiator_spi, answer))
}

//! ICMP echo (RFC 792, RFC 4443 section 4) from one address to another.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::destination::Destination;

/// ICMP types of a request and a reply, by family.
const ECHO_V4: (u8, u8) = (8, 0);
const ECHO_V6: (u8, u8) = (128, 129);
/// Length in octets of the header before the data: type, code, checksum, identifier, sequence
/// number.
const HEADER: usize = 8;
/// Length of the data in octets, as in ping(8).
const DATA: usize = 56;
/// Number of octets at the beginning of the data that distinguish this process's requests from
/// those of other programs.
const TOKEN: usize = 8;
/// Length of an IPv4 header without options, and of an IPv6 header, in octets.
const IP_HEADERS: (usize, usize) = (20, 40);
/// Maximum number of octets that are read of a datagram: an IPv4 header with options, and a reply.
/// The rest of a longer reply is not needed.
const MAX_REPLY: usize = 60 + HEADER + DATA;

/// The number of requests and their timing.
#[derive(Debug, Clone, Copy)]
pub struct PingOptions {
    /// Number of requests to each address, 1 to [`MAX_COUNT`](super::MAX_COUNT).
    pub count: u16,
    /// Time from one request to the next, at least [`MIN_INTERVAL`](super::MIN_INTERVAL).
    pub interval: Duration,
    /// Timeout for replies after the last request.
    pub timeout: Duration,
}

/// The results of the requests to one address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Answers {
    /// Number of requests, including those that the kernel refused to send.
    pub(super) sent: u16,
    /// The round-trip time of each request that was answered; at most `sent` elements.
    pub(super) round_trips: Vec<Duration>,
    /// The latest error from the operating system, as text.
    pub(super) error: Option<String>,
}

/// Sends the requests to one address and collects the replies.
pub(super) async fn ask(to: &Destination, options: PingOptions, stop: &CancellationToken) -> Answers {
    let mut answers = Answers::default();
    let socket = match EchoSocket::bind(to.source, to.address) {
        Ok(socket) => socket,
        Err(error) => {
            answers.error = Some(error.to_string());
            return answers;
        }
    };
    if let Err(error) = socket.connect(to.address) {
        // A policy or a route of the kernel refuses every request. After any other error, nothing
        // is known about the path.
        let refused = [libc::EPERM, libc::EACCES, libc::ENETUNREACH, libc::EHOSTUNREACH];
        let sent = if error.raw_os_error().is_some_and(|code| refused.contains(&code)) { options.count } else { 0 };
        return Answers { sent, error: Some(error.to_string()), ..answers };
    }
    let mut unanswered: Vec<Option<Instant>> = Vec::new();
    let begin = Instant::now();
    for sequence in 0..options.count {
        unanswered.push(Some(Instant::now()));
        answers.sent += 1;
        if let Err(error) = socket.send(sequence).await {
            answers.error = Some(error.to_string());
        }
        let last = sequence + 1 == options.count;
        let until = match last {
            true => Instant::now() + options.timeout,
            false => begin + options.interval * u32::from(answers.sent),
        };
        let collecting = timeout_at(until, socket.collect(&mut unanswered, &mut answers, last));
        tokio::select! {
            () = stop.cancelled() => break,
            _ = collecting => {}
        }
    }
    answers
}

/// A socket for echo requests from one address to another.
pub(super) struct EchoSocket {
    /// Tokio has no type for ICMP sockets. ICMP sockets send and receive datagrams like UDP
    /// sockets.
    socket: UdpSocket,
    v4: bool,
    /// Whether the kernel delivers whole IPv4 packets, with their headers.
    raw: bool,
    token: [u8; TOKEN],
}

impl EchoSocket {
    /// Opens the socket and connects it to `to`.
    pub(super) fn open(source: IpAddr, to: IpAddr) -> io::Result<Self> {
        let socket = Self::bind(source, to)?;
        socket.connect(to)?;
        Ok(socket)
    }

    /// Opens the socket. Uses an ICMP echo socket, which needs no privilege if
    /// `net.ipv4.ping_group_range` allows it, otherwise a raw socket, which needs CAP_NET_RAW.
    fn bind(source: IpAddr, to: IpAddr) -> io::Result<Self> {
        let (family, protocol) = match to {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
        };
        let open = |kind| socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, Some(protocol));
        let (fd, raw) = match open(SocketType::DGRAM) {
            Err(Errno::ACCESS | Errno::PERM) => {
                let raw = open(SocketType::RAW).map_err(|error| {
                    io::Error::other(format!(
                        "no socket for ICMP: {}; run it with CAP_NET_RAW, or allow net.ipv4.ping_group_range",
                        io::Error::from(error)
                    ))
                })?;
                (raw, true)
            }
            opened => (opened?, false),
        };
        rustix::net::bind(&fd, &SocketAddr::new(source, 0))?;
        let socket = UdpSocket::from_std(fd.into())?;
        Ok(Self { socket, v4: to.is_ipv4(), raw, token: fastrand::u64(..).to_be_bytes() })
    }

    /// Makes the kernel deliver only datagrams from this address. Fails if a policy or a route
    /// refuses packets to the address.
    fn connect(&self, to: IpAddr) -> io::Result<()> {
        Ok(rustix::net::connect(&self.socket, &SocketAddr::new(to, 0))?)
    }

    /// Makes the kernel send requests unfragmented, regardless of the path MTU that it has stored.
    pub(super) fn forbid_fragments(&self) -> io::Result<()> {
        match self.v4 {
            true => set_ip_mtu_discover(&self.socket, Ipv4PathMtuDiscovery::PROBE)?,
            false => set_ipv6_mtu_discover(&self.socket, Ipv6PathMtuDiscovery::PROBE)?,
        }
        Ok(())
    }

    async fn send(&self, sequence: u16) -> io::Result<()> {
        self.socket.send(&request(self.v4, self.token, sequence, DATA)).await.map(drop)
    }

    /// Sends a request in an IP packet of `size` octets. The packet is larger if the headers and
    /// the token do not fit.
    pub(super) async fn send_sized(&self, sequence: u16, size: usize) -> io::Result<()> {
        let header = if self.v4 { IP_HEADERS.0 } else { IP_HEADERS.1 };
        let data = size.saturating_sub(header + HEADER).max(TOKEN);
        self.socket.send(&request(self.v4, self.token, sequence, data)).await.map(drop)
    }

    /// Returns the sequence number of the next reply. `None` if the datagram is not a reply.
    pub(super) async fn receive(&self) -> io::Result<Option<u16>> {
        let mut buffer = [0; MAX_REPLY];
        let length = self.socket.recv(&mut buffer).await?;
        Ok(reply(buffer.get(..length).unwrap_or_default(), self.v4, self.raw, self.token))
    }

    /// Collects replies. With `all`, returns when all requests have been answered. Otherwise never
    /// returns.
    async fn collect(&self, unanswered: &mut [Option<Instant>], answers: &mut Answers, all: bool) {
        while !all || unanswered.iter().any(Option::is_some) {
            match self.receive().await {
                Ok(sequence) => {
                    // A second reply to a request is ignored.
                    if let Some(at) = sequence.and_then(|number| unanswered.get_mut(usize::from(number))?.take()) {
                        answers.round_trips.push(at.elapsed());
                    }
                }
                // An ICMP error in response to an earlier request.
                Err(error) => answers.error = Some(error.to_string()),
            }
        }
    }
}

/// Builds a request with `data` octets of data, at least [`TOKEN`].
fn request(v4: bool, token: [u8; TOKEN], sequence: u16, data: usize) -> Vec<u8> {
    let (kind, _) = if v4 { ECHO_V4 } else { ECHO_V6 };
    // The identifier is the beginning of the token. On echo sockets, the kernel replaces it.
    let mut message = vec![kind, 0, 0, 0, token[0], token[1]];
    message.extend_from_slice(&sequence.to_be_bytes());
    message.extend_from_slice(&token);
    message.resize(HEADER + data, 0);
    // The kernel computes the checksum of ICMPv6, which covers the addresses.
    if v4 {
        let checksum = checksum(&message).to_be_bytes();
        message[2..4].copy_from_slice(&checksum);
    }
    message
}

/// Returns the sequence number of the request to which the datagram is the reply. `None` if it is
/// not a reply to a request with this token.
fn reply(datagram: &[u8], v4: bool, raw: bool, token: [u8; TOKEN]) -> Option<u16> {
    let message = match (v4, raw) {
        (true, true) => datagram.get(usize::from(datagram.first()? & 0x0f) * 4..)?,
        _ => datagram,
    };
    let (_, kind) = if v4 { ECHO_V4 } else { ECHO_V6 };
    let (header, data) = message.split_at_checked(HEADER)?;
    match *header {
        [found, 0, _, _, _, _, high, low] if found == kind && data.starts_with(&token) => {
            Some(u16::from_be_bytes([high, low]))
        }
        _ => None,
    }
}

/// Computes the checksum of RFC 1071. A message of odd length is padded with a zero octet.
fn checksum(message: &[u8]) -> u16 {
    let (pairs, rest) = message.as_chunks::<2>();
    let last = rest.first().map_or(0, |octet| u32::from(*octet) << 8);
    let sum: u32 = pairs.iter().map(|pair| u32::from(u16::from_be_bytes(*pair))).sum::<u32>() + last;
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEST_TOKEN: [u8; TOKEN] = [1, 2, 3, 4, 5, 6, 7, 8];

    #[test]
    fn only_a_reply_to_our_request_counts() {
        for v4 in [true, false] {
            let request = request(v4, TEST_TOKEN, 513, DATA);
            assert_eq!(reply(&request, v4, false, TEST_TOKEN), None, "our own request");
            let mut answer = request.clone();
            answer[0] = if v4 { 0 } else { 129 };
            assert_eq!(reply(&answer, v4, false, TEST_TOKEN), Some(513));
            assert_eq!(reply(&answer, v4, false, [9; TOKEN]), None, "of another process");
            assert_eq!(reply(&answer, !v4, false, TEST_TOKEN), None, "of the other family");
            for length in 0..HEADER + TOKEN {
                assert_eq!(reply(&answer[..length], v4, false, TEST_TOKEN), None, "cut to {length}");
            }
            answer[1] = 1;
            assert_eq!(reply(&answer, v4, false, TEST_TOKEN), None, "with a code");
        }
    }

    #[test]
    fn a_raw_ipv4_packet_is_read_behind_its_header_of_any_length() {
        let mut answer = request(true, TEST_TOKEN, 7, DATA);
        answer[0] = 0;
        for words in [5_u8, 6, 15] {
            let mut packet = vec![0; usize::from(words) * 4];
            packet[0] = 0x40 | words;
            packet.extend_from_slice(&answer);
            assert_eq!(reply(&packet, true, true, TEST_TOKEN), Some(7));
        }
        assert_eq!(reply(&[], true, true, TEST_TOKEN), None);
        assert_eq!(reply(&[0x4f], true, true, TEST_TOKEN), None);
        assert_eq!(reply(&[0x40; 20], true, true, TEST_TOKEN), None);
    }

    /// Sends requests on the loopback interface, where the kernel answers.
    #[tokio::test]
    async fn the_kernel_answers_each_request_and_an_address_without_host_none() {
        if !interop_tests::netns::is_root_or_skips() {
            return;
        }
        let options = PingOptions { count: 3, interval: Duration::from_millis(10), timeout: Duration::from_secs(60) };
        let destination = |to: &str, from: &str| Destination {
            peer: "lo".into(),
            address: to.parse().unwrap(),
            source: from.parse().unwrap(),
        };
        let stop = CancellationToken::new();
        for (to, from) in [("127.0.0.1", "127.0.0.2"), ("::1", "::1")] {
            let answers = ask(&destination(to, from), options, &stop).await;
            assert_eq!((answers.sent, answers.round_trips.len(), answers.error), (3, 3, None), "{to}");
        }
        let foreign = ask(&destination("127.0.0.1", "192.0.2.77"), options, &stop).await;
        assert!(foreign.sent == 0 && foreign.error.is_some(), "no address of this host: {foreign:?}");
        stop.cancel();
        let stopped = ask(&destination("127.0.0.1", "127.0.0.1"), PingOptions { count: 9, ..options }, &stop).await;
        assert_eq!(stopped.sent, 1, "it was to stop");
    }

    #[test]
    fn requests_that_a_policy_of_the_kernel_refuses_count_as_not_answered() {
        use interop_tests::netns;
        if !netns::is_root_or_skips() {
            return;
        }
        let name = format!("echo-{}", std::process::id());
        netns::add(&name);
        for line in [
            "link add name near type veth peer name beyond",
            "link set beyond up",
            "addr add 10.9.9.1/24 dev near",
            "addr add fd09:9::1/64 dev near nodad",
            "link set near up",
            "xfrm policy add src 0.0.0.0/0 dst 10.9.9.2/32 dir out action block",
            "xfrm policy add src ::/0 dst fd09:9::2/128 dir out action block",
        ] {
            netns::run(&format!("ip -n {name} {line}"));
        }
        let options = PingOptions { count: 3, interval: Duration::from_millis(10), timeout: Duration::from_millis(10) };
        let answers = netns::within(&name, || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            [("10.9.9.2", "10.9.9.1"), ("fd09:9::2", "fd09:9::1")].map(|(to, from)| {
                let (address, source) = (to.parse().unwrap(), from.parse().unwrap());
                let to = Destination { peer: "far".into(), address, source };
                runtime.block_on(ask(&to, options, &CancellationToken::new()))
            })
        });
        netns::delete(&name);
        for answers in answers {
            assert_eq!((answers.sent, answers.round_trips.len()), (3, 0), "{answers:?}");
            assert!(answers.error.as_ref().is_some_and(|error| error.contains("not permitted")), "{answers:?}");
        }
    }

    #[test]
    fn the_checksum_of_a_request_is_right() {
        // With the checksum, the sum of all words is all ones (RFC 1071).
        for data in [TOKEN, DATA, DATA + 1, 1472] {
            assert_eq!(checksum(&request(true, TEST_TOKEN, 65_535, data)), 0, "{data}");
        }
        assert_eq!(checksum(&[0xff; 64]), 0);
        assert_eq!(checksum(&[0; 64]), 0xffff);
    }
}

//! The four UDP sockets for IKE: two ports, each in two address families. systemd may have opened
//! them (`edge-agent.socket`), so that no local user can bind the ports, and datagrams are queued
//! while the agent restarts. Sockets that systemd did not open come from the holder of an earlier
//! agent ([`held_sockets`]), or the agent opens them.

use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use edge_xfrm::socket as options;
use tokio::sync::watch;
use tracing::Instrument;

use super::datagram_socket::{self, Socket};
use super::held_sockets::{self, HolderPlace};
use crate::config::Config;
use crate::socket_holder::child_outlives_agent;
use crate::status::{SocketHolder, SocketHolding};

/// Maximum number of sockets that systemd may pass.
const MAX_LISTEN_FDS: RawFd = 64;

/// Time for which the agent asks a holder again that gave no sockets, while a port is in use.
const HOLDER_BUSY: Duration = Duration::from_secs(10);
/// Time between two such requests.
const HOLDER_RETRY: Duration = Duration::from_millis(250);

/// The sockets, and what becomes of them when this process ends.
pub(super) struct IkeSockets {
    pub(super) sockets: Vec<Arc<Socket>>,
    /// Whether they stay open for certain when this process ends: not in a container, where only
    /// the status says so.
    pub(super) kept: bool,
    /// What holds them now.
    pub(super) holding: watch::Receiver<SocketHolding>,
}

/// Opens all sockets, or takes them over from systemd or from a holder. With `hold_sockets`, a
/// holder keeps the sockets that systemd does not keep. Must be called within a tokio runtime.
/// Fails if a port is in use, also 10 s later if a holder may have it. The error contains the user
/// whose process has bound the port.
pub(super) fn open(config: &Config) -> anyhow::Result<IkeSockets> {
    let (port, nat_port, hold) = (config.port, config.nat_port, config.hold_sockets);
    let mut from_systemd = systemd_sockets()?;
    let place = HolderPlace::new(config);
    let (mut holder, mut held) = place.take();
    let since = Instant::now();
    let mut sockets = Vec::new();
    let (mut taken, mut opened) = (Vec::new(), Vec::new());
    for ipv4 in [true, false] {
        'ports: for (port, nat) in [(port, false), (nat_port, true)] {
            let socket = loop {
                if let Some(socket) = remove(&mut from_systemd, ipv4, port) {
                    break Arc::new(socket);
                }
                if let Some(socket) = remove(&mut held, ipv4, port) {
                    taken.push(Arc::new(socket));
                    break taken[taken.len() - 1].clone();
                }
                match Socket::open(ipv4, port) {
                    Ok(socket) => {
                        opened.push(Arc::new(socket));
                        break opened[opened.len() - 1].clone();
                    }
                    Err(error) if !ipv4 && error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                        tracing::info!("this kernel has no IPv6");
                        continue 'ports;
                    }
                    // A holder that did not answer in time may still have the port.
                    Err(error)
                        if error.kind() == io::ErrorKind::AddrInUse
                            && holder.is_none()
                            && since.elapsed() < HOLDER_BUSY
                            && place.is_taken() =>
                    {
                        std::thread::park_timeout(HOLDER_RETRY);
                        (holder, held) = place.take();
                    }
                    Err(error) => return Err(error).with_context(|| port_in_use(ipv4, port, place.is_taken())),
                }
            };
            set_options(&socket, nat)?;
            sockets.push(socket);
        }
    }
    for socket in from_systemd {
        tracing::warn!(
            port = socket.port(),
            ipv4 = socket.is_ipv4(),
            "systemd passed a socket that is not used: port is {port} and nat_port {nat_port} in the configuration; give edge-agent.socket the same ones"
        );
    }
    if !taken.is_empty() {
        tracing::info!(sockets = taken.len(), "took over the sockets from the holder of an earlier agent");
    }
    let exact = opened.is_empty() && held.is_empty() && !taken.is_empty();
    let ours: Vec<Arc<Socket>> = taken.into_iter().chain(opened).collect();
    let kept = ours.is_empty() || (hold && child_outlives_agent());
    let (state, holding) = watch::channel(match ours.is_empty() {
        true => SocketHolding::by(SocketHolder::Systemd),
        false if hold => SocketHolding::none("no process has them yet"),
        false => SocketHolding::none("hold_sockets is false"),
    });
    match holder {
        // A holder that has exactly these sockets continues to hold them.
        Some(holder) if hold && exact => {
            tokio::spawn(held_sockets::keep(place, Some(holder), ours, state).in_current_span());
        }
        _ if hold && !ours.is_empty() => {
            tokio::spawn(held_sockets::keep(place, None, ours, state).in_current_span());
        }
        Some((holder, _)) => held_sockets::end(holder),
        None => {}
    }
    Ok(IkeSockets { sockets, kept, holding })
}

/// Sets the options of a socket for IKE. `nat` says whether it takes ESP in UDP.
pub(super) fn set_options(socket: &Socket, nat: bool) -> anyhow::Result<()> {
    options::bypass(socket, !socket.is_ipv4()).context("IKE's sockets; the agent needs CAP_NET_ADMIN")?;
    if !socket.is_ipv4() {
        options::prefer_lasting_source(socket).context("the IPv6 sources")?;
    }
    options::decapsulate_esp(socket, nat).context("ESP in UDP")
}

fn remove(sockets: &mut Vec<Socket>, ipv4: bool, port: u16) -> Option<Socket> {
    let found = sockets.iter().position(|socket| socket.is_ipv4() == ipv4 && socket.port() == port)?;
    Some(sockets.swap_remove(found))
}

/// Takes the sockets that systemd passed (`sd_listen_fds(3)`); returns none if called a second
/// time.
fn systemd_sockets() -> anyhow::Result<Vec<Socket>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<i64>().ok());
    if number("LISTEN_PID") != Some(i64::from(std::process::id())) || TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(vec![]);
    }
    let Some(count) = number("LISTEN_FDS").and_then(|count| RawFd::try_from(count).ok()) else { return Ok(vec![]) };
    if !(0..=MAX_LISTEN_FDS).contains(&count) {
        bail!("LISTEN_FDS is {count}; expected at most {MAX_LISTEN_FDS} sockets: see edge-agent.socket");
    }
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let adopt = |fd| {
        let name = names.next().filter(|name| !name.is_empty()).unwrap_or("without a name").to_owned();
        Socket::adopt(fd).map_err(|problem| anyhow::anyhow!("a socket that systemd passed ({name}): {problem}"))
    };
    let sockets = datagram_socket::take_listen_fds(count).into_iter().map(adopt).collect::<anyhow::Result<Vec<_>>>()?;
    tracing::info!(sockets = sockets.len(), "taken over from systemd");
    Ok(sockets)
}

/// `holder`: whether a process listens at the place of a holder. It did not give the sockets.
fn port_in_use(ipv4: bool, port: u16, holder: bool) -> String {
    let family = if ipv4 { "IPv4" } else { "IPv6" };
    let who = match user_of(ipv4, port) {
        Some(0) if holder => {
            "perhaps `edge-agent hold-sockets` has it and does not answer: end that process (in Kubernetes, delete its pod on this node)".to_owned()
        }
        Some(0) => {
            "a process of root holds it: is another IKE daemon running? Stop it, or set port and nat_port".to_owned()
        }
        Some(user) => format!(
            "a process of user {user} holds it: end it, and let systemd open the port before any user can (edge-agent.socket), or set port and nat_port"
        ),
        None => "is another IKE daemon running? Stop it, or set port and nat_port".to_owned(),
    };
    format!("UDP port {port} ({family}) cannot be opened; {who}")
}

/// Returns the user whose process has bound a UDP port in this network namespace. For IPv4, this
/// includes IPv6 sockets, since an IPv6 socket may also accept IPv4.
fn user_of(ipv4: bool, port: u16) -> Option<u32> {
    let tables = ["/proc/self/net/udp", "/proc/self/net/udp6"];
    let tables = if ipv4 { &tables[..] } else { &tables[1..] };
    tables.iter().filter_map(|table| fs::read_to_string(table).ok()).find_map(|table| user_in(&table, port))
}

/// Parses the user from a table in the format of `udp4_seq_show` (`net/ipv4/udp.c`): slot, local
/// address, remote address, state, queues, timer, retransmissions, user.
fn user_in(table: &str, port: u16) -> Option<u32> {
    table.lines().skip(1).find_map(|line| {
        let mut words = line.split_whitespace();
        let (_, local) = words.nth(1)?.rsplit_once(':')?;
        (u16::from_str_radix(local, 16).ok()? == port).then(|| words.nth(5)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_a_port_is_read_from_the_kernels_table() {
        let table = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
                     10: 00000000:01F4 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0 0\n\
                     11: 0100007F:1194 00000000:0000 07 00000000:00000000 00:00000000 00000000  1000        0 2 2 0 0\n";
        assert_eq!([500, 4500, 4501].map(|port| user_in(table, port)), [Some(0), Some(1000), None]);
    }
}

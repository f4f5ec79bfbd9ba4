//! The four UDP sockets for IKE: two ports, each in two address families. systemd may have opened
//! them (`edge-agent.socket`), so that no local user can bind the ports, and datagrams are queued
//! while the agent restarts. Sockets that systemd did not open come from the holder of an earlier
//! agent ([`socket_holder`]), or the agent opens them.

use std::fs;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use edge_xfrm::socket as options;
use tracing::Instrument;

use super::datagram_socket::{self, Socket};
use crate::socket_holder::{self, client::HolderConnection};

/// Maximum number of sockets that systemd may pass.
const MAX_LISTEN_FDS: RawFd = 64;

/// First delay before another holder is started; doubled after each failure.
const MIN_RETRY: Duration = Duration::from_secs(1);
/// Maximum delay before another holder is started.
const MAX_RETRY: Duration = Duration::from_secs(60);

/// Opens all sockets, or takes them over from systemd or from a holder. With `hold`, a holder keeps
/// the sockets that systemd does not keep. Also returns whether the sockets stay open when this
/// process ends. Must be called within a tokio runtime. Fails if a port is in use. The error
/// contains the user whose process has bound the port.
pub(super) fn open(port: u16, nat_port: u16, hold: bool) -> anyhow::Result<(Vec<Arc<Socket>>, bool)> {
    let mut from_systemd = systemd_sockets()?;
    let (holder, mut held) = held_sockets();
    let mut sockets = Vec::new();
    let (mut taken, mut opened) = (Vec::new(), Vec::new());
    for ipv4 in [true, false] {
        for (port, nat) in [(port, false), (nat_port, true)] {
            let socket = if let Some(socket) = remove(&mut from_systemd, ipv4, port) {
                Arc::new(socket)
            } else if let Some(socket) = remove(&mut held, ipv4, port) {
                taken.push(Arc::new(socket));
                taken[taken.len() - 1].clone()
            } else {
                match Socket::open(ipv4, port) {
                    Ok(socket) => {
                        opened.push(Arc::new(socket));
                        opened[opened.len() - 1].clone()
                    }
                    Err(error) if !ipv4 && error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                        tracing::info!("this kernel has no IPv6");
                        continue;
                    }
                    Err(error) => return Err(error).with_context(|| port_in_use(ipv4, port)),
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
    // A holder that has exactly these sockets continues to hold them.
    let holder = holder.filter(|_| hold && opened.is_empty() && held.is_empty() && !taken.is_empty());
    let ours: Vec<Arc<Socket>> = taken.into_iter().chain(opened).collect();
    let kept = ours.is_empty() || (hold && socket_holder::outlives_agent());
    if hold && !ours.is_empty() {
        tokio::spawn(keep_holder(holder, ours).in_current_span());
    }
    Ok((sockets, kept))
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

/// Finds the holder of an earlier agent, and its sockets. If a holder cannot be used, logs the
/// reason and ignores it.
fn held_sockets() -> (Option<HolderConnection>, Vec<Socket>) {
    let take = || -> anyhow::Result<_> {
        let Some(holder) = socket_holder::client::find()? else { return Ok((None, vec![])) };
        let adopt = |fd| Socket::adopt(fd).map_err(|problem| anyhow!("a socket that the holder gave: {problem}"));
        let sockets = holder.take()?.into_iter().map(adopt).collect::<anyhow::Result<Vec<_>>>()?;
        Ok((Some(holder), sockets))
    };
    take().unwrap_or_else(|error| {
        tracing::warn!("{error:#}; the sockets are opened again");
        (None, vec![])
    })
}

/// Starts a holder for these sockets, unless a holder already has them. Starts another holder
/// whenever one ends.
async fn keep_holder(mut holder: Option<HolderConnection>, sockets: Vec<Arc<Socket>>) {
    let mut wait = MIN_RETRY;
    loop {
        if holder.is_none() {
            // This blocks for seconds if an earlier holder does not answer.
            let ours = sockets.clone();
            let started = tokio::task::spawn_blocking(move || start_holder(&ours)).await;
            match started.map_err(anyhow::Error::from).flatten() {
                Ok(started) => holder = Some(started),
                Err(error) => tracing::warn!(
                    "no process holds the UDP sockets, so that packets are lost while the agent restarts: {error:#}"
                ),
            }
        }
        let since = Instant::now();
        if let Some(holder) = holder.take() {
            holder.ended().await;
            tracing::warn!("the process that holds the UDP sockets exited; starting another one");
        }
        wait = if since.elapsed() > MAX_RETRY { MIN_RETRY } else { (wait * 2).min(MAX_RETRY) };
        tokio::time::sleep(wait).await;
    }
}

/// Ends the holder of other sockets, if there is one, and starts a holder for these sockets.
fn start_holder(sockets: &[Arc<Socket>]) -> anyhow::Result<HolderConnection> {
    if let Some(other) = socket_holder::client::find()? {
        other.end()?;
    }
    socket_holder::client::start(sockets)
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

fn port_in_use(ipv4: bool, port: u16) -> String {
    let family = if ipv4 { "IPv4" } else { "IPv6" };
    let who = match user_of(ipv4, port) {
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

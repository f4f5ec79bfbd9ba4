//! A TCP connection between pods that carries data, to see how it survives a smaller path MTU.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::topology::{Pod, Process};
use crate::wait;

/// Commands for a router that sends no ICMP errors about large packets from now on.
pub(crate) const NO_ICMP_ERRORS: &str = "nft add table inet silent
     nft add chain inet silent output '{ type filter hook output priority 0; }'
     nft add rule inet silent output icmp type destination-unreachable counter drop
     nft add rule inet silent output icmpv6 type packet-too-big counter drop";

/// Time for further data, with a lot of room for a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A TCP connection from one pod to another that carries about a megabyte a second.
pub(crate) struct TcpTransfer {
    receiver: Process,
    sender: Process,
    /// Position in the receiver's log at which its output begins.
    begin: usize,
}

impl TcpTransfer {
    /// Starts a connection to this address of the pod `to`.
    ///
    /// # Errors
    /// Returns an error if the receiver does not listen.
    pub(crate) fn start(from: &Pod, to: &Pod, address: IpAddr) -> Result<Self> {
        let address = address.to_string();
        let python = |pod: &Pod, name: &str, program: &str| {
            let name = format!("{name}-{}", address.replace([':', '.'], "-"));
            pod.start(&name, pod.command("python3").args(["-u", "-c", program, &address]))
        };
        let log = to.out().join(format!("{}.receiver-{}.log", to.name(), address.replace([':', '.'], "-")));
        let begin = std::fs::metadata(log).map_or(0, |meta| usize::try_from(meta.len()).unwrap_or(0));
        let receiver = python(to, "receiver", RECEIVER)?;
        wait::for_event("the receiver to listen", || {
            ensure!(receiver.log().split_off(begin).contains("listening"), "{}", receiver.log());
            Ok(())
        })?;
        Ok(Self { sender: python(from, "sender", SENDER)?, receiver, begin })
    }

    /// Waits until this number of further megabytes has arrived.
    ///
    /// # Errors
    /// Returns an error if they do not arrive in time.
    pub(crate) fn wait_more(&self, megabytes: usize) -> Result<()> {
        let before = self.received();
        wait::until("the connection to go on", PATIENCE, || {
            let now = self.received();
            ensure!(now >= before + megabytes, "{now} MB arrived, {before} before");
            Ok(())
        })
    }

    /// Returns the longest time without data so far. Times below 0.2 s count as zero.
    pub(crate) fn longest_silence(&self) -> Duration {
        let text = self.text();
        let seconds = |line: &str| line.strip_prefix("silent for ")?.strip_suffix(" s")?.parse::<f64>().ok();
        Duration::from_secs_f64(text.lines().filter_map(seconds).fold(0.0, f64::max))
    }

    /// Ends the connection and both programs.
    ///
    /// # Errors
    /// Returns an error if a program does not end.
    pub(crate) fn end(mut self) -> Result<()> {
        self.sender.kill()?;
        self.receiver.kill()
    }

    fn received(&self) -> usize {
        self.text().lines().filter(|line| *line == "a megabyte").count()
    }

    fn text(&self) -> String {
        self.receiver.log().split_off(self.begin)
    }
}

const RECEIVER: &str = "\
import socket, sys, time
family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET
server = socket.create_server((sys.argv[1], 5001), family=family)
print('listening')
connection, _ = server.accept()
total, last = 0, time.monotonic()
while block := connection.recv(65536):
    silence, last = time.monotonic() - last, time.monotonic()
    if silence > 0.2:
        print(f'silent for {silence:.2f} s')
    before, total = total, total + len(block)
    if total >> 20 > before >> 20:
        print('a megabyte')
";

const SENDER: &str = "\
import socket, sys, time
connection = socket.create_connection((sys.argv[1], 5001))
while True:
    connection.sendall(bytes(16384))
    time.sleep(0.015)
";

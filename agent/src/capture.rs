//! `edge-agent capture`: writes the decrypted IKE messages to and from one peer, in libpcap's file
//! format. The running agent copies the messages; no key leaves the agent.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use etherparse::PacketBuilder;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::{DataLink, PcapError};

use crate::admin;
use crate::admin::capture_stream::{CaptureStream, Next};
use crate::config::Config;
use crate::status::Status;
use crate::tunnels::CapturedIke;

/// The error for a full disk or a closed pipe.
const NOT_WRITTEN: &str = "the capture ends: it cannot be written";
/// Maximum number of addresses of a peer whose messages are captured. The request must fit a line
/// of the admin socket.
const MAX_ADDRESSES: usize = 64;
/// Length of the file header of libpcap's format, in octets.
const FILE_HEADER: u64 = 24;
/// Length of the header before each packet in libpcap's format, in octets.
const PACKET_HEADER: u64 = 16;
/// Hop limit of the packets that are written. The packets on the network had the kernel's default.
const HOP_LIMIT: u8 = 64;

/// What to capture, where to write it, and the limits.
#[derive(Debug, Clone)]
pub struct CaptureOptions {
    /// The peer's name.
    pub peer: String,
    /// Addresses of the peer in addition to those that the agent knows.
    pub from: Vec<IpAddr>,
    /// File to create; standard output if `None`.
    pub file: Option<PathBuf>,
    /// The capture ends after this time.
    pub duration: Duration,
    /// Maximum size of the file, in octets. The capture ends before the file would be larger.
    pub max_size: u64,
}

/// Captures until the time is over, the file is full, or standard output is closed.
///
/// # Errors
/// If no agent answers, there is no such peer, its address is not known, the file exists or cannot
/// be written, standard output is a terminal, or another capture replaces this one.
pub fn capture(config: &Config, options: &CaptureOptions) -> anyhow::Result<()> {
    let status = admin::client::request_status(&config.admin_socket())?;
    let addresses = addresses(&status, options).map_err(anyhow::Error::msg)?;
    let to = match &options.file {
        Some(path) => {
            // The file is private, since the messages name the peers and their networks.
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
            file.with_context(|| format!("{}: cannot be made", path.display()))?
        }
        None if io::stdout().is_terminal() => {
            bail!("standard output is a terminal: name a file (--write FILE), or pipe it: | wireshark -k -i -")
        }
        None => File::from(io::stdout().as_fd().try_clone_to_owned().context("standard output")?),
    };
    match write_messages(config, options, addresses, to) {
        // The program that reads standard output has closed it.
        Err(error) if is_broken_pipe(&error) => Ok(()),
        outcome => outcome,
    }
}

/// Returns all addresses from which messages from the peer may arrive.
fn addresses(status: &Status, options: &CaptureOptions) -> Result<BTreeSet<IpAddr>, String> {
    let name = &options.peer;
    let Some(peer) = status.peers.iter().find(|peer| peer.name == *name) else {
        return Err(format!("there is no peer {name:?}; `edge-agent status` lists them"));
    };
    let known = peer.endpoints.iter().chain(peer.ike_sas.iter().map(|sa| &sa.remote));
    let known = known.filter_map(|address| address.parse::<SocketAddr>().ok()).map(|address| address.ip());
    let all: BTreeSet<IpAddr> = options.from.iter().copied().chain(known).take(MAX_ADDRESSES).collect();
    if all.is_empty() {
        return Err(format!("{name}: its address is not known before it connects: name it by --from ADDRESS"));
    }
    Ok(all)
}

fn write_messages(
    config: &Config,
    options: &CaptureOptions,
    addresses: BTreeSet<IpAddr>,
    to: File,
) -> anyhow::Result<()> {
    let mut stream = CaptureStream::begin(&config.admin_socket(), addresses)?;
    let mut output = Output::begin(to, options)?;
    let end = Instant::now() + options.duration;
    loop {
        let batch = match stream.next(&output.file, end)? {
            Next::Batch(batch) => batch,
            Next::ReaderGone => return Ok(()),
            Next::TimeOver => {
                eprintln!("edge-agent: the capture ends after {:?}", options.duration);
                return Ok(());
            }
        };
        if batch.dropped > 0 {
            eprintln!("edge-agent: {} messages are missing: they came faster than they were read", batch.dropped);
        }
        for message in &batch.messages {
            let Some(packet) = packet(message, config.nat_port) else {
                eprintln!("edge-agent: a message of {} octets fits no packet and is missing", message.message.len());
                continue;
            };
            if !output.write(message.at, &packet)? {
                eprintln!("edge-agent: the capture ends: another message would exceed --max-size");
                return Ok(());
            }
        }
    }
}

/// The file, or standard output, to which packets are written. Each packet is written as a whole.
struct Output {
    file: File,
    writer: PcapWriter<File>,
    /// Whether the command created the file, as opposed to writing to standard output.
    is_ours: bool,
    size: u64,
    max_size: u64,
}

impl Output {
    fn begin(file: File, options: &CaptureOptions) -> anyhow::Result<Self> {
        // Packets begin with the IP header.
        let header = PcapHeader { datalink: DataLink::RAW, ..PcapHeader::default() };
        let writer = PcapWriter::with_header(file.try_clone()?, header).map_err(system_error).context(NOT_WRITTEN)?;
        Ok(Self { file, writer, is_ours: options.file.is_some(), size: FILE_HEADER, max_size: options.max_size })
    }

    /// Writes a packet, `at` in microseconds since 1970-01-01 UTC. Returns whether the packet fits
    /// within the maximum size.
    fn write(&mut self, at: u64, packet: &[u8]) -> anyhow::Result<bool> {
        let size = self.size + PACKET_HEADER + packet.len() as u64;
        if size > self.max_size {
            return Ok(false);
        }
        let length = u32::try_from(packet.len()).unwrap_or(u32::MAX);
        let written = self.writer.write_packet(&PcapPacket::new(Duration::from_micros(at), length, packet));
        if written.is_err() && self.is_ours {
            // Programs that read captures reject an incomplete packet.
            self.file.set_len(self.size)?;
        }
        written.map_err(system_error).context(NOT_WRITTEN)?;
        self.size = size;
        Ok(true)
    }
}

/// Returns the operating system's error without the library's description, which calls every error
/// a read failure.
fn system_error(error: PcapError) -> anyhow::Error {
    match error {
        PcapError::IoError(error) => error.into(),
        other => other.into(),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    causes.any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Builds the IP packet in which the message would have been sent without encryption. `None` if the
/// message arrived in fragments and is too large for one packet.
fn packet(captured: &CapturedIke, nat_port: u16) -> Option<Vec<u8>> {
    let CapturedIke { outgoing, local, remote, message, .. } = captured;
    let (from, to) = if *outgoing { (local, remote) } else { (remote, local) };
    // RFC 3948 2.2.
    let marker: &[u8] = if local.port() == nat_port { &[0; 4] } else { &[] };
    let payload = [marker, message].concat();
    let builder = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), HOP_LIMIT),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), HOP_LIMIT),
        _ => return None,
    };
    let builder = builder.udp(from.port(), to.port());
    let mut packet = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut packet, &payload).ok()?;
    Some(packet)
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    fn captured(outgoing: bool, local: &str, remote: &str, octets: usize) -> CapturedIke {
        let (local, remote) = (local.parse().unwrap(), remote.parse().unwrap());
        CapturedIke { at: 0, outgoing, local, remote, message: vec![7; octets] }
    }

    fn udp_of(packet: &[u8]) -> (u16, u16, Vec<u8>) {
        match SlicedPacket::from_ip(packet).unwrap().transport {
            Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port(), udp.payload().to_vec()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn messages_are_written_as_packets_of_both_families_with_the_marker_on_the_nat_port() {
        let sent = packet(&captured(true, "192.0.2.1:500", "192.0.2.2:500", 3), 4500).unwrap();
        assert_eq!(udp_of(&sent), (500, 500, vec![7; 3]));
        let Some(NetSlice::Ipv4(ip)) = SlicedPacket::from_ip(&sent).unwrap().net else { panic!("no IPv4") };
        assert_eq!(ip.header().source_addr().to_string(), "192.0.2.1");
        let came = packet(&captured(false, "[2001:db8::1]:4500", "[2001:db8::2]:1033", 3), 4500).unwrap();
        assert_eq!(udp_of(&came), (1033, 4500, vec![0, 0, 0, 0, 7, 7, 7]));
        assert_eq!(packet(&captured(true, "192.0.2.1:500", "[2001:db8::2]:500", 3), 4500), None);
        assert_eq!(packet(&captured(true, "192.0.2.1:500", "192.0.2.2:500", 66_000), 4500), None, "too large");
    }
}

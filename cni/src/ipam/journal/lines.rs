//! The encoding of the journal's lines and of its mark.

use std::net::IpAddr;

use crate::error::Result;
use crate::ipam::checksum::crc32;
use crate::ipam::leases::{Lease, LeaseRef, Leases};
use crate::ipam::line::Line;
use crate::mac::{self, Mac};

pub(super) const MAGIC: &str = "edge-cni-leases 1";

/// Usual length of a line, in bytes, from which the number of leases is estimated.
const USUAL_LINE: usize = 100;

/// The leases and the end of a journal after all its lines.
#[derive(Debug, Clone, Default)]
pub(super) struct JournalState {
    pub(super) leases: Leases,
    pub(super) end: JournalEnd,
    pub(super) lines: u64,
}

/// The number of the first line that cannot be read, and the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Damage {
    line: u64,
    why: String,
}

/// The state of a journal after its last line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct JournalEnd {
    pub(super) generation: u64,
    /// Number of bytes of the valid lines.
    pub(super) length: u64,
    /// Checksum of the last valid line.
    pub(super) chain: u32,
    pub(super) boot: String,
}

impl JournalEnd {
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?.split(' ');
        let mark = Self {
            generation: words.next()?.parse().ok()?,
            length: words.next()?.parse().ok()?,
            chain: u32::from_str_radix(words.next()?, 16).ok()?,
            boot: words.next()?.into(),
        };
        words.next().is_none().then_some(mark)
    }
}

/// A line that begins a lease.
#[derive(Debug)]
pub(super) struct LeaseLine<'a> {
    /// Container and interface, separated by a blank.
    pub(super) attachment: &'a str,
    network: &'a str,
    pod: Option<&'a str>,
    addresses: Vec<IpAddr>,
    mac: Option<Mac>,
}

impl<'a> LeaseLine<'a> {
    /// Parses a line. `before` is the checksum of the preceding line.
    pub(super) fn read(raw: &'a [u8], before: u32) -> Result<Self, String> {
        let (entry, _) = checked_entry(raw, before)?;
        Self::parse(entry).ok_or_else(|| format!("the entry {entry:?} begins no lease"))
    }

    /// Parses an entry. `None` if it has another format.
    fn parse(entry: &'a str) -> Option<Self> {
        let mut words = entry.strip_prefix("+ ")?.split(' ');
        let attachment = attachment_in(entry, words.next()?, words.next()?)?;
        let network = words.next()?;
        let pod = Some(words.next()?).filter(|pod| *pod != "-");
        let mut addresses = words.map(|word| word.parse().ok()).collect::<Option<Vec<IpAddr>>>()?;
        let mac = addresses.iter().find_map(mac_of);
        addresses.retain(|address| mac_of(address).is_none());
        Some(Self { attachment, network, pod, addresses, mac })
    }

    fn as_ref(&self) -> LeaseRef<'_> {
        let Self { attachment, network, pod, addresses, mac } = self;
        LeaseRef { attachment, network, pod: *pod, addresses, mac: *mac }
    }

    pub(super) fn into_lease(self) -> Lease {
        let Self { attachment: _, network, pod, addresses, mac } = self;
        Lease { addresses, network: network.into(), pod: pod.map(Into::into), mac }
    }
}

pub(super) fn lease_ref<'a>(attachment: &'a str, lease: &'a Lease) -> LeaseRef<'a> {
    let Lease { addresses, network, pod, mac } = lease;
    LeaseRef { attachment, network, pod: pod.as_deref(), addresses, mac: *mac }
}

/// Formats the line that begins a lease, without its checksum.
pub(super) fn entry_of(lease: LeaseRef<'_>) -> String {
    let LeaseRef { attachment, addresses, network, pod, mac } = lease;
    let pod = pod.unwrap_or("-");
    let link_local = mac.map(|mac| IpAddr::V6(mac::link_local(mac)));
    addresses
        .iter()
        .chain(&link_local)
        .fold(format!("+ {attachment} {network} {pod}"), |entry, address| format!("{entry} {address}"))
}

/// Applies the lines up to the end or to the first damaged line. Also returns the checksum at byte
/// `stop`, if a line ends there.
pub(super) fn replay(bytes: &[u8], stop: Option<u64>) -> (JournalState, Option<u32>, Option<Damage>) {
    let mut state = JournalState::default();
    state.leases.reserve(bytes.len() / USUAL_LINE);
    let mut chain_at_stop = None;
    for raw in bytes.split_inclusive(|byte| *byte == b'\n') {
        let number = state.lines + 1;
        if let Err(why) = read_line(&mut state, raw, number == 1) {
            return (state, chain_at_stop, Some(Damage { line: number, why }));
        }
        state.end.length += raw.len() as u64;
        state.lines = number;
        if stop == Some(state.end.length) {
            chain_at_stop = Some(state.end.chain);
        }
    }
    let empty = (state.lines == 0).then(|| Damage { line: 1, why: "the file is empty".into() });
    (state, chain_at_stop, empty)
}

fn read_line(state: &mut JournalState, raw: &[u8], first: bool) -> Result<(), String> {
    let (entry, chain) = checked_entry(raw, state.end.chain)?;
    let line = Line { offset: state.end.length, length: raw.len() as u32, before: state.end.chain };
    apply_entry(state, entry, line, first).ok_or_else(|| format!("the entry {entry:?} is invalid"))??;
    state.end.chain = chain;
    Ok(())
}

/// Returns the entry of a line and its checksum. Fails if the checksum is wrong.
fn checked_entry(raw: &[u8], before: u32) -> Result<(&str, u32), String> {
    let text = raw.strip_suffix(b"\n").ok_or("the line is cut off")?;
    let text = std::str::from_utf8(text).map_err(|_| "the line is not text")?;
    let (sum, entry) = text.split_once(' ').ok_or("the line has no checksum")?;
    let sum = u32::from_str_radix(sum, 16).map_err(|_| "the line has no checksum")?;
    let chain = crc32(before, entry.as_bytes());
    if sum != chain {
        return Err(format!("the checksum is {sum:08x}, expected {chain:08x}"));
    }
    Ok((entry, chain))
}

/// Applies one entry. `None` if the text does not have the format of an entry.
fn apply_entry(state: &mut JournalState, entry: &str, line: Line, first: bool) -> Option<Result<(), String>> {
    if first {
        let mut words = entry.strip_prefix(MAGIC)?.split_ascii_whitespace();
        state.end.generation = words.next()?.parse().ok()?;
        state.end.boot = words.next()?.into();
        return Some(Ok(()));
    }
    let mut words = entry.split(' ');
    match words.next()? {
        "+" => Some(state.leases.insert(LeaseLine::parse(entry)?.as_ref(), line)),
        "-" => {
            let attachment = attachment_in(entry, words.next()?, words.next()?)?;
            let at = words.next()?.parse().ok()?;
            let ended = state.leases.remove(attachment, at);
            Some(ended.map(drop).ok_or_else(|| format!("{attachment} ends a lease that it does not have")))
        }
        "~" => {
            for word in words {
                let (address, at) = word.split_once('=')?;
                state.leases.record_freed(address.parse().ok()?, at.parse().ok()?);
            }
            Some(Ok(()))
        }
        _ => None,
    }
}

/// Returns the container and the interface in an entry, which follow its first two characters.
fn attachment_in<'a>(entry: &'a str, container: &str, ifname: &str) -> Option<&'a str> {
    entry.get(2..2 + container.len() + 1 + ifname.len())
}

/// Returns the MAC address that a link-local address among the addresses of a lease encodes.
fn mac_of(address: &IpAddr) -> Option<Mac> {
    match address {
        IpAddr::V6(address) => mac::of_link_local(*address),
        IpAddr::V4(_) => None,
    }
}

pub(super) fn format_line(chain: u32, entry: &str) -> (String, u32) {
    let chain = crc32(chain, entry.as_bytes());
    (format!("{chain:08x} {entry}\n"), chain)
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: {}", self.line, self.why)
    }
}

impl std::fmt::Display for JournalEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The width is fixed, so that a new mark completely overwrites the old one.
        writeln!(f, "{:020} {:020} {:08x} {}", self.generation, self.length, self.chain, self.boot)
    }
}

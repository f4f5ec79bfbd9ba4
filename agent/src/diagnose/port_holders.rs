//! Finds the programs that hold the agent's UDP ports while no agent answers. The agent cannot
//! start until they release the ports.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Programs that hold the ports for the agent: its own socket holder, and systemd.
const OURS: [&str; 2] = ["edge-agent", "systemd"];

/// A UDP port of the agent that another program holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HeldPort {
    pub(super) port: u16,
    /// The program's name and process ID; `None` if its process is not visible here.
    pub(super) program: Option<(String, u32)>,
}

/// Returns those of `ports` that another program holds in this network namespace.
pub(super) fn held(ports: [u16; 2]) -> Vec<HeldPort> {
    let tables = ["/proc/self/net/udp", "/proc/self/net/udp6"];
    let text: Vec<String> = tables.iter().filter_map(|table| fs::read_to_string(table).ok()).collect();
    let sockets: BTreeMap<u64, u16> = text.iter().flat_map(|table| sockets_in(table, ports)).collect();
    if sockets.is_empty() {
        return vec![];
    }
    let programs = programs_of(&sockets);
    let mut held = Vec::new();
    for port in BTreeSet::from(ports) {
        let of_port = sockets.iter().filter(|(_, of)| **of == port).map(|(inode, _)| programs.get(inode));
        for program in of_port.collect::<BTreeSet<_>>() {
            if !program.is_some_and(|(name, _)| OURS.contains(&name.as_str())) {
                held.push(HeldPort { port, program: program.cloned() });
            }
        }
    }
    held
}

/// Parses the inodes and ports of sockets from a table in the format of `udp4_seq_show`
/// (`net/ipv4/udp.c`): slot, local address, remote address, state, queues, timer, retransmissions,
/// user, timeout, inode.
fn sockets_in(table: &str, ports: [u16; 2]) -> Vec<(u64, u16)> {
    let socket = |line: &str| {
        let mut words = line.split_whitespace();
        let (_, local) = words.nth(1)?.rsplit_once(':')?;
        let port = u16::from_str_radix(local, 16).ok().filter(|port| ports.contains(port))?;
        Some((words.nth(7)?.parse().ok()?, port))
    };
    table.lines().skip(1).filter_map(socket).collect()
}

/// Returns the programs that have these sockets open, by inode.
fn programs_of(sockets: &BTreeMap<u64, u16>) -> BTreeMap<u64, (String, u32)> {
    let mut programs = BTreeMap::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        for descriptor in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let Some(inode) = fs::read_link(descriptor.path()).ok().and_then(|target| inode_of(&target)) else {
                continue;
            };
            if sockets.contains_key(&inode) {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                programs.entry(inode).or_insert_with(|| (printable(&name), pid));
            }
        }
    }
    programs
}

/// Parses the target of a descriptor's link, such as `socket:[4711]`.
fn inode_of(target: &Path) -> Option<u64> {
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Replaces all but letters, digits and a few signs, since a process gives itself any name.
fn printable(name: &str) -> String {
    let sign = |c: char| if c.is_ascii_alphanumeric() || "-_.:/".contains(c) { c } else { '?' };
    name.trim_end_matches('\n').chars().map(sign).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_read_from_the_kernels_table_and_names_are_made_printable() {
        let table = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
                     10: 00000000:01F4 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 71 2 0 0\n\
                     11: 0100007F:1194 00000000:0000 07 00000000:00000000 00:00000000 00000000  1000        0 72 2 0 0\n\
                     12: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000  1000        0 73 2 0 0\n\
                     cut short\n";
        assert_eq!(sockets_in(table, [500, 4500]), [(71, 500), (72, 4500)]);
        assert_eq!(inode_of(Path::new("socket:[71]")), Some(71));
        assert_eq!(inode_of(Path::new("/dev/null")), None);
        assert_eq!(printable("a\u{1b}[31m b\n"), "a??31m?b");
    }
}

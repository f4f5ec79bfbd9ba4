//! Reads the CPU time and memory of a process and the traffic of a node.

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::topology::Namespaces;

/// The resources that a process has used so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Usage {
    /// CPU time of all threads of the process, in user and kernel mode. Its resolution is 10 ms.
    pub(super) cpu: Duration,
    /// Memory that the process has allocated and touched (RssAnon), in KiB. The program file and
    /// the kernel's memory for SAs are not included.
    pub(super) memory_kib: f64,
}

impl Usage {
    /// Reads the usage from /proc.
    ///
    /// # Errors
    /// Returns an error if the process has ended.
    pub(super) fn of(pid: u32) -> Result<Self> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            std::fs::read_to_string(&path).with_context(|| format!("reading {path}; does the process still run?"))
        };
        let ticks = ticks(&read("stat")?).context("/proc/PID/stat has another form")?;
        let memory_kib = anonymous(&read("status")?).context("/proc/PID/status has no RssAnon")?;
        let cpu = Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64);
        Ok(Self { cpu, memory_kib })
    }
}

/// Returns the sum of `utime` and `stime`, fields 14 and 15. The program's name, field 2, may
/// contain blanks.
fn ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

fn anonymous(status: &str) -> Option<f64> {
    status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.trim().parse().ok())
}

/// The octets of a node's IP packets to and from UDP ports 500 and 4500, by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    pub(super) ike: u64,
    pub(super) esp: u64,
    pub(super) keepalives: u64,
}

impl Traffic {
    pub(super) fn total(self) -> u64 {
        self.ike + self.esp + self.keepalives
    }
}

impl std::ops::Add for Traffic {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let Self { ike, esp, keepalives } = other;
        Self { ike: self.ike + ike, esp: self.esp + esp, keepalives: self.keepalives + keepalives }
    }
}

impl std::ops::Sub for Traffic {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        let Self { ike, esp, keepalives } = other;
        Self { ike: self.ike - ike, esp: self.esp - esp, keepalives: self.keepalives - keepalives }
    }
}

/// Counts the traffic of a node's agent from now on.
///
/// # Errors
/// Returns an error if nftables refuses the counters.
pub(super) fn count_traffic(node: &Namespaces) -> Result<()> {
    // A keepalive is one octet, and the non-ESP marker four of zero (RFC 3948 2.2, 2.3).
    let rules = |chain: &str, port: &str| {
        [("of_keepalives", "udp length 9"), ("of_ike", "udp length >= 12 @th,64,32 0"), ("of_esp", "")]
            .map(|(name, kind)| {
                let port = format!("udp {port} 4500 {kind} counter name {name} return");
                format!("add rule inet traffic {chain} {port}\n")
            })
            .concat()
            + &format!("add rule inet traffic {chain} udp {port} 500 counter name of_ike\n")
    };
    let (inwards, outwards) = (rules("in", "dport"), rules("out", "sport"));
    node.sh(&format!(
        "nft '
         add table inet traffic
         add counter inet traffic of_ike
         add counter inet traffic of_esp
         add counter inet traffic of_keepalives
         add chain inet traffic in {{ type filter hook input priority -400; }}
         add chain inet traffic out {{ type filter hook output priority -400; }}
         {inwards}{outwards}'"
    ))
    .map(drop)
}

/// Returns what [`count_traffic`] has counted.
///
/// # Errors
/// Returns an error if a counter is gone.
pub(super) fn traffic(node: &Namespaces) -> Result<Traffic> {
    let text = node.run(node.command("nft").args(["--json", "list", "counters", "table", "inet", "traffic"]))?;
    let listed: serde_json::Value = serde_json::from_str(&text)?;
    let counters = listed["nftables"].as_array().context("nft lists nothing")?;
    let octets = |name: &str| {
        let is = |object: &&serde_json::Value| object["counter"]["name"] == name;
        let counter = counters.iter().find(is).with_context(|| format!("the counter {name} is gone"))?;
        counter["counter"]["bytes"].as_u64().with_context(|| format!("the counter {name} has no octets"))
    };
    Ok(Traffic { ike: octets("of_ike")?, esp: octets("of_esp")?, keepalives: octets("of_keepalives")? })
}

/// Converts octets that were counted in a shorter time to megabytes a day.
pub(super) fn per_day(octets: u64, during: Duration) -> f64 {
    octets as f64 / 1e6 * 86_400.0 / during.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_and_parentheses_does_not_move_the_fields() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 31 0 0 20 0 3 0 100 0 0";
        assert_eq!(ticks(stat), Some(281));
    }

    #[test]
    fn anonymous_pages_are_the_memory() {
        assert_eq!(anonymous("Name:\ta\nVmRSS:\t 2000 kB\nRssAnon:\t    1234 kB\nRssFile:\t 7 kB\n"), Some(1234.0));
    }

    #[test]
    fn this_process_has_memory() {
        assert!(Usage::of(std::process::id()).unwrap().memory_kib > 100.0);
    }
}

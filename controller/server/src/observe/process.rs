//! Reads the kernel's data about this process, and reports it under the metric names that
//! Prometheus' client libraries use.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use rustix::process::{Resource, getrlimit};

/// A collector that reads `/proc/self` at each scrape. Values that cannot be read are left out.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut gauge = |name: &str, help: &str, unit: Option<Unit>, value: Option<f64>| {
            let Some(value) = value else { return Ok(()) };
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, unit.as_ref(), gauge.metric_type())?)
        };
        let memory = fs::read_to_string("/proc/self/statm").ok();
        let pages = |field: usize| {
            let pages: f64 = memory.as_deref()?.split_ascii_whitespace().nth(field)?.parse().ok()?;
            Some(pages * rustix::param::page_size() as f64)
        };
        gauge("process_resident_memory", "Resident memory size.", Some(Unit::Bytes), pages(1))?;
        gauge("process_virtual_memory", "Virtual memory size.", Some(Unit::Bytes), pages(0))?;
        // One of the descriptors belongs to this read itself.
        let open = fs::read_dir("/proc/self/fd").ok().map(|fds| fds.count().saturating_sub(1) as f64);
        gauge("process_open_fds", "Open file descriptors.", None, open)?;
        let most = getrlimit(Resource::Nofile).current.map(|most| most as f64);
        gauge("process_max_fds", "Most file descriptors that may be open.", None, most)?;
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let started = field(&stat(), 22).zip(boot_time()).map(|(after_boot, boot)| boot + after_boot / ticks);
        gauge("process_start_time", "Start of the process, in Unix time.", Some(Unit::Seconds), started)?;
        if let Some((user, system)) = field(&stat(), 14).zip(field(&stat(), 15)) {
            let used = ConstCounter::new((user + system) / ticks);
            let (help, unit) = ("Processor time used, user and system.", Unit::Seconds);
            used.encode(encoder.encode_descriptor("process_cpu", help, Some(&unit), used.metric_type())?)?;
        }
        Ok(())
    }
}

fn stat() -> String {
    fs::read_to_string("/proc/self/stat").unwrap_or_default()
}

/// Returns a field of `/proc/PID/stat`, counted from 1 as in proc(5). The second field, in
/// parentheses, may contain spaces, so counting begins after it.
fn field(stat: &str, number: usize) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split_ascii_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_behind_a_name_with_spaces_and_parentheses() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 140 150 16 17 18 19 20 21 2200 23";
        assert_eq!((field(stat, 14), field(stat, 15), field(stat, 22)), (Some(140.0), Some(150.0), Some(2200.0)));
        assert_eq!(field("", 14), None);
    }
}

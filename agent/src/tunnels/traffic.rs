//! Adds up the bytes that the SAs in the kernel have carried. An SA's counter starts at zero after
//! each rekey, so the sums are kept here.
//!
//! The counters are read with the regular comparison of all SAs, which already limits its cost.
//! What an SA carries between the last reading and its deletion is not counted.

use std::collections::HashMap;
use std::time::Duration;

use edge_ike::Instant;
use edge_types::traffic::TunnelTraffic;
use edge_xfrm::{Sa, SaDirection, SaId};

use super::installed_sa::InstalledSa;

const INTERVAL: Duration = Duration::from_secs(TunnelTraffic::INTERVAL_SECONDS);
/// Number of bytes up to which the tunnels count as quiet. Occasional packets thus cause no
/// reports.
const QUIET: u64 = 1024;

/// The sums, and the counter of each SA at the last reading. The size is proportional to the number
/// of SAs.
#[derive(Debug)]
pub(super) struct TrafficCounter {
    counters: HashMap<SaId, u64>,
    received: u64,
    sent: u64,
    /// The last report, and the time up to which reports account for the bytes.
    reported: TunnelTraffic,
    reported_at: Instant,
    /// Whether the last report said that the tunnels are quiet.
    quiet: bool,
}

impl TrafficCounter {
    /// Starts at zero. The bytes that `inherited` SAs have carried before are not counted.
    pub(super) fn new(inherited: &[Sa], now: Instant) -> Self {
        Self {
            counters: inherited.iter().map(|sa| (sa.id, sa.counters.bytes)).collect(),
            received: 0,
            sent: 0,
            reported: TunnelTraffic { received: 0, sent: 0, received_per_second: 0, sent_per_second: 0 },
            reported_at: now,
            quiet: false,
        }
    }

    /// Counts the bytes that the `installed` SAs have carried since the last reading. `in_kernel`
    /// are the SAs in the kernel.
    pub(super) fn count(&mut self, installed: &[InstalledSa], in_kernel: &[Sa]) {
        let directions: HashMap<SaId, SaDirection> = installed.iter().map(|sa| (sa.id, sa.direction)).collect();
        for sa in in_kernel {
            let Some(direction) = directions.get(&sa.id) else { continue };
            let bytes = sa.counters.bytes;
            let before = self.counters.insert(sa.id, bytes).unwrap_or(0);
            // A smaller number is the counter of a new SA with the same SPI.
            let more = bytes.checked_sub(before).unwrap_or(bytes);
            let sum = match direction {
                SaDirection::In => &mut self.received,
                SaDirection::Out => &mut self.sent,
            };
            *sum = sum.saturating_add(more);
        }
        self.counters.retain(|id, _| directions.contains_key(id));
    }

    /// Returns the traffic if it must be reported now: at most every [`INTERVAL`], and only once
    /// while the tunnels are quiet.
    pub(super) fn due(&mut self, now: Instant) -> Option<TunnelTraffic> {
        let elapsed = now.saturating_since(self.reported_at);
        if elapsed < INTERVAL {
            return None;
        }
        let received = self.received.saturating_sub(self.reported.received);
        let sent = self.sent.saturating_sub(self.reported.sent);
        let quiet = received.saturating_add(sent) < QUIET;
        if quiet && self.quiet {
            return None;
        }
        let rate = |bytes: u64| if quiet { 0 } else { bytes.checked_div(elapsed.as_secs()).unwrap_or(0) };
        self.reported = TunnelTraffic {
            received: self.received,
            sent: self.sent,
            received_per_second: rate(received),
            sent_per_second: rate(sent),
        };
        (self.reported_at, self.quiet) = (now, quiet);
        Some(self.reported)
    }
}

#[cfg(test)]
mod tests {
    use edge_xfrm::{Counters, Mode, Reqid};

    use super::*;

    fn id(spi: u32) -> SaId {
        SaId { destination: "192.0.2.1".parse().unwrap(), spi }
    }

    fn in_kernel(spi: u32, bytes: u64) -> Sa {
        Sa {
            id: id(spi),
            source: "192.0.2.2".parse().unwrap(),
            protocol: 50,
            reqid: Reqid::tunnel(1).unwrap().raw(),
            mode: 1,
            direction: None,
            algorithm: None,
            encap: None,
            selector: None,
            replay_window: 0,
            esn: true,
            flags: 0,
            if_id: 0,
            counters: Counters { bytes, ..Counters::default() },
        }
    }

    fn installed(spi: u32, direction: SaDirection) -> InstalledSa {
        InstalledSa {
            direction,
            source: "192.0.2.2".parse().unwrap(),
            id: id(spi),
            reqid: Reqid::tunnel(1).unwrap(),
            encap: None,
            mode: Mode::Tunnel,
        }
    }

    fn at(seconds: u64) -> Instant {
        Instant::new(Duration::from_secs(seconds))
    }

    fn traffic(received: u64, sent: u64, received_per_second: u64, sent_per_second: u64) -> Option<TunnelTraffic> {
        Some(TunnelTraffic { received, sent, received_per_second, sent_per_second })
    }

    #[test]
    fn a_rekey_continues_the_sums_and_bytes_from_before_the_start_and_of_others_do_not_count() {
        let mut counter = TrafficCounter::new(&[in_kernel(1, 5_000_000)], at(0));
        let pair = [installed(1, SaDirection::In), installed(2, SaDirection::Out)];
        counter.count(&pair, &[in_kernel(1, 5_030_000), in_kernel(2, 60_000), in_kernel(9, 77_777)]);
        assert_eq!(counter.due(at(30)), traffic(30_000, 60_000, 1_000, 2_000));
        // The outbound SA is replaced; the old one is deleted before the next reading.
        let rekeyed = [installed(1, SaDirection::In), installed(3, SaDirection::Out)];
        counter.count(&rekeyed, &[in_kernel(1, 5_030_000), in_kernel(3, 40_000)]);
        assert_eq!(counter.due(at(70)), traffic(30_000, 100_000, 0, 1_000));
        assert_eq!(counter.counters.len(), 2, "the deleted SA takes no memory");
        // The old SPI is used again.
        counter.count(&pair, &[in_kernel(1, 10_000), in_kernel(2, 20_000)]);
        assert_eq!(counter.due(at(100)), traffic(40_000, 120_000, 333, 666));
        // An SA that the kernel has lost counts again from zero only when it is new.
        counter.count(&pair, &[in_kernel(1, 10_000)]);
        counter.count(&pair, &[in_kernel(1, 10_000), in_kernel(2, 20_000)]);
        assert_eq!(counter.due(at(130)), traffic(40_000, 120_000, 0, 0));
    }

    #[test]
    fn quiet_tunnels_are_reported_once_and_slow_ones_seldom() {
        let pair = [installed(1, SaDirection::In), installed(2, SaDirection::Out)];
        let mut counter = TrafficCounter::new(&[], at(0));
        assert_eq!(counter.due(at(29)), None);
        assert_eq!(counter.due(at(30)), traffic(0, 0, 0, 0), "the operator sees that the count works");
        for second in (40..=600).step_by(10) {
            assert_eq!(counter.due(at(second)), None);
        }
        // 10 bytes per second, which take 103 seconds to be more than quiet.
        let mut reports = Vec::new();
        for second in (610..=1200).step_by(10) {
            counter.count(&pair, &[in_kernel(1, (second - 600) * 10), in_kernel(2, 0)]);
            reports.extend(counter.due(at(second)));
        }
        assert!(reports.len() < 12, "{reports:?}");
        assert!(reports.iter().all(|report| report.received_per_second <= 10), "{reports:?}");
        // After traffic, one report says that it has ended.
        counter.count(&pair, &[in_kernel(1, 600_000), in_kernel(2, 0)]);
        assert!(counter.due(at(1300)).unwrap().received_per_second > 1_000);
        assert_eq!(counter.due(at(1330)), traffic(600_000, 0, 0, 0));
        assert_eq!(counter.due(at(1360)), None);
    }

    #[test]
    fn counters_at_their_limit_stay_there() {
        let pair = [installed(1, SaDirection::In), installed(2, SaDirection::In)];
        let mut counter = TrafficCounter::new(&[], at(0));
        counter.count(&pair, &[in_kernel(1, u64::MAX), in_kernel(2, u64::MAX)]);
        assert_eq!(counter.due(at(30)), traffic(u64::MAX, 0, u64::MAX / 30, 0));
    }
}

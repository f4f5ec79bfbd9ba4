//! Wall-clock time that never runs before what is already known.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// Seconds since 1970-01-01 UTC.
pub type Seconds = i64;

/// No release of this program is older: 2026-11-01. A clock that shows less is wrong.
const EARLIEST: Seconds = 1_793_491_200;

/// Wall-clock time, at least [`EARLIEST`] and at least what [`Clock::not_before`] was told. Machines without a battery clock start in 1970;
/// a quarantine or a certificate must not be judged by that.
#[derive(Debug, Clone)]
pub struct Clock {
    floor: Arc<AtomicI64>,
    /// Tests move time by this; zero otherwise.
    offset: Arc<AtomicI64>,
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self { floor: Arc::new(AtomicI64::new(EARLIEST)), offset: Arc::new(AtomicI64::new(0)) }
    }

    /// Time now.
    pub fn now(&self) -> Seconds {
        let system = time::OffsetDateTime::now_utc().unix_timestamp() + self.offset.load(Ordering::Relaxed);
        system.max(self.floor.load(Ordering::Relaxed))
    }

    /// Time has been at least this late before: taken from the store at start.
    pub fn not_before(&self, known: Seconds) {
        self.floor.fetch_max(known, Ordering::Relaxed);
    }

    /// Moves this clock ahead of the machine's. For tests of what happens later.
    pub fn advance(&self, seconds: Seconds) {
        self.offset.fetch_add(seconds, Ordering::Relaxed);
    }
}

/// A time as people read it (RFC 3339, UTC).
pub fn rfc3339(at: Seconds) -> String {
    time::OffsetDateTime::from_unix_timestamp(at)
        .ok()
        .and_then(|t| t.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_else(|| format!("second {at}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_never_runs_before_what_was_known() {
        let clock = Clock::system();
        let future = clock.now() + 1_000_000;
        clock.not_before(future);
        assert_eq!(clock.now(), future);
        clock.not_before(0);
        assert_eq!(clock.now(), future);
    }

    #[test]
    fn times_are_shown_in_utc() {
        assert_eq!(rfc3339(EARLIEST), "2026-11-01T00:00:00Z");
    }
}

//! Determines when other programs' rules are read again, and keeps the obstacles that were found.

use std::ops::RangeInclusive;
use std::time::Duration;

use tokio::task::spawn_blocking;

use super::network_state::NetworkState;
use super::obstacles::{self, Obstacle, PodRequirements};

/// Minimum and maximum time between two readings of other programs' rules. If a reading takes long,
/// as on a host with thousands of rules, the time after it is longer.
const OBSTACLES_PAUSE: RangeInclusive<Duration> = Duration::from_millis(700)..=Duration::from_secs(30);
/// Divisor for the maximum share of the time that reading rules may take, which is 5%.
const OBSTACLES_SHARE: u32 = 20;

/// Obstacles in other programs' rules, and when to read the rules again.
#[derive(Debug)]
pub(super) struct ObstacleReader {
    pub(super) found: Vec<Obstacle>,
    /// The requirements and the interface indexes at the last reading. A new interface causes
    /// another reading: Docker adds one when it adds rules, and iptables-legacy sends no
    /// notifications.
    requirements: Option<(PodRequirements, Vec<u32>)>,
    /// Whether the rules may have changed since the last reading.
    pub(super) suspect: bool,
    not_before: tokio::time::Instant,
}

impl Default for ObstacleReader {
    fn default() -> Self {
        Self { found: vec![], requirements: None, suspect: true, not_before: tokio::time::Instant::now() }
    }
}

impl ObstacleReader {
    /// Waits until changed rules may be read again.
    pub(super) async fn due(&self) {
        if self.suspect { tokio::time::sleep_until(self.not_before).await } else { std::future::pending().await }
    }

    /// Reads the rules if they, the requirements or the interfaces have changed, unless it is too
    /// soon.
    pub(super) async fn update(&mut self, needs: PodRequirements, observed: &NetworkState) {
        // Pods' interfaces are ignored, because they appear and disappear without changes of other
        // programs' rules.
        let not_of_pods = observed.links.iter().filter(|link| !link.veth && link.controller.is_none());
        let looked_at = (needs, not_of_pods.map(|link| link.index).collect());
        self.suspect |= self.requirements.as_ref() != Some(&looked_at);
        if !self.suspect || tokio::time::Instant::now() < self.not_before {
            return;
        }
        self.suspect = false;
        let needs = looked_at.0.clone();
        let span = tracing::Span::current();
        let check = move || span.in_scope(|| obstacles::check(&needs));
        let began = tokio::time::Instant::now();
        self.found = spawn_blocking(check).await.unwrap_or_default();
        self.requirements = Some(looked_at);
        self.not_before = tokio::time::Instant::now() + pause_after_reading(began.elapsed());
    }
}

fn pause_after_reading(took: Duration) -> Duration {
    (took * OBSTACLES_SHARE).clamp(*OBSTACLES_PAUSE.start(), *OBSTACLES_PAUSE.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_programs_rules_are_read_soon_again_unless_reading_them_takes_long() {
        let pauses = [10, 100, 10_000].map(|took| pause_after_reading(Duration::from_millis(took)).as_millis());
        assert_eq!(pauses, [700, 2000, 30_000]);
    }
}

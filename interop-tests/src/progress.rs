//! Reports progress on standard error, with a spinner on a terminal and plain lines everywhere
//! else.

use std::io::IsTerminal;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Interval at which a step reports its progress, if standard error is not a terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(20);

/// Time before which the rate of a step is not known well enough for an estimate.
const ESTIMATE_AFTER: Duration = Duration::from_secs(15);

/// The spinners of steps that run at the same time, each on its own line.
static SPINNERS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// A long step that reports its progress.
pub struct Progress {
    name: String,
    started: Instant,
    last_plain: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Starts a step and reports its start.
    pub fn start(name: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {prefix} {wide_msg} [{elapsed}]")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            let bar = SPINNERS.add(ProgressBar::new_spinner().with_style(style).with_prefix(name.to_owned()));
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        if bar.is_none() {
            eprintln!("{name} ...");
        }
        let now = Instant::now();
        Self { name: name.to_owned(), started: now, last_plain: now, bar }
    }

    /// Reports the progress of the step; without a terminal only every 20 seconds.
    pub fn at(&mut self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(what.to_owned());
        } else if self.last_plain.elapsed() >= PLAIN_EVERY {
            self.last_plain = Instant::now();
            eprintln!("{}: {what} ({:.0?})", self.name, self.started.elapsed());
        }
    }

    /// Reports that `done` of about `total` equal parts of the step are done, and how long the rest
    /// will take. `what` names the last part. If there are more parts than `total`, 99% are
    /// reported.
    pub fn part(&mut self, done: usize, total: usize, what: &str) {
        let percent = (done * 100 / total.max(1)).min(99);
        let left = time_left(self.started.elapsed(), done, total).map(in_words);
        let left = left.map(|left| format!(", {left} left")).unwrap_or_default();
        self.at(&format!("{percent}%{left}: {what}"));
    }

    /// Ends the step and reports how long it took.
    pub fn done(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            SPINNERS.remove(bar);
        }
        SPINNERS.suspend(|| eprintln!("{}: done in {:.1?}", self.name, self.started.elapsed()));
    }
}

/// Returns the time that the other parts will take at the rate so far; `None` if the rate is not
/// known well enough, or there are more parts than `total`.
fn time_left(elapsed: Duration, done: usize, total: usize) -> Option<Duration> {
    let left = u32::try_from(total.checked_sub(done)?).ok()?;
    let done = u32::try_from(done).ok().filter(|done| *done > 0)?;
    (elapsed >= ESTIMATE_AFTER).then(|| elapsed / done * left)
}

fn in_words(left: Duration) -> String {
    match left.as_secs() {
        0..60 => "less than a minute".to_owned(),
        seconds => format!("about {} min", seconds.div_ceil(60)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_follows_from_the_rate_and_is_unknown_at_first() {
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        assert_eq!(time_left(minutes(2), 100, 300), Some(minutes(4)));
        assert_eq!(time_left(minutes(2), 300, 300), Some(Duration::ZERO));
        assert_eq!(time_left(Duration::from_secs(3), 100, 300), None, "too early");
        assert_eq!(time_left(minutes(2), 0, 300), None);
        assert_eq!(time_left(minutes(2), 301, 300), None, "more parts than expected");
        assert_eq!(in_words(minutes(4)), "about 4 min");
        assert_eq!(in_words(Duration::from_secs(61)), "about 2 min");
        assert_eq!(in_words(Duration::from_secs(59)), "less than a minute");
    }
}

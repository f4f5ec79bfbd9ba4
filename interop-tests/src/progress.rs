//! Reports progress on standard error, with a spinner on a terminal and plain lines everywhere
//! else.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Interval at which a step reports its progress, if standard error is not a terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(20);

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
            let bar = ProgressBar::new_spinner().with_style(style).with_prefix(name.to_owned());
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

    /// Ends the step and reports how long it took.
    pub fn done(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!("{}: done in {:.1?}", self.name, self.started.elapsed());
    }
}

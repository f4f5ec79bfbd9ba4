//! `edge-agent check`: checks a configuration without using the network or the kernel. It reads the
//! files that the configuration names and reports what would fail later, at the first attempt or
//! when a certificate expires.

mod controller;
mod peers;
mod report;
mod settings;

pub use report::{Finding, Level, Report};

use tracing::warn;

use crate::clock::CertificateClock;
use crate::config::Config;
use crate::stdout::print;

/// Checks the configuration. `clock` supplies the current time for checking the validity of
/// certificates.
pub fn report(config: &Config, clock: &CertificateClock) -> Report {
    let mut report = Report::default();
    let now = i64::try_from(clock.unix_time()).unwrap_or(i64::MAX);
    if config.controller.is_some() {
        controller::check(config, now, &mut report);
    }
    for (section, problem) in config.deprecated() {
        report.add(Level::Error, &section, problem);
    }
    settings::check(config, &mut report);
    peers::check(config, now, &mut report);
    report
}

/// Maximum number of these warnings in the log at start. `edge-agent check` prints all of them.
const MOST_LOGGED: usize = 8;

/// Logs warnings about values that only earlier releases accepted, about settings, and about
/// networks that are at both ends of a tunnel, at most 8. The agent calls this at its start; the
/// other checks would take too long with thousands of peers.
pub fn log_warnings(config: &Config) {
    let networks = config.peers.iter().flat_map(|peer| {
        let name = peer.name.clone();
        peers::networks_at_both_ends(peer).map(move |warning| (name.clone(), warning))
    });
    let deprecated = config.deprecated().into_iter().chain(controller::deprecated(config));
    let deprecated =
        deprecated.map(|(section, problem)| (section, format!("{problem}; a later release does not start with this")));
    for (section, warning) in deprecated.chain(settings::warnings(config)).chain(networks).take(MOST_LOGGED) {
        warn!(section, "{warning}; `edge-agent check` checks the whole file");
    }
}

/// Prints the report. Fails if it contains an error.
pub fn check(config: &Config, json: bool) -> anyhow::Result<()> {
    let report = report(config, &CertificateClock::default());
    print(&if json { serde_json::to_string_pretty(&report.0)? + "\n" } else { report.render() })?;
    let errors = report.0.iter().filter(|finding| finding.level == Level::Error).count();
    anyhow::ensure!(errors == 0, "{errors} of {} findings are errors", report.0.len());
    Ok(())
}

#[cfg(test)]
mod tests;

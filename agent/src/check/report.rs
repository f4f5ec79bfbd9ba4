//! The findings of a check.

use std::fmt::Write as _;

use serde::Serialize;

/// A certificate that the operator renews gets a warning if it expires within this time, in seconds
/// (30 days).
const ENDS_SOON: i64 = 30 * 24 * 3600;

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The agent accepts this part of the configuration.
    Ok,
    /// The configuration works, but probably not as the operator intended.
    Warning,
    /// The agent does not start, or the tunnel cannot come up, or a later release will not start
    /// with this.
    Error,
}

/// A finding, which is one line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The severity.
    pub level: Level,
    /// The part of the configuration: `[controller]`, or a peer's name.
    #[serde(rename = "in")]
    pub section: String,
    /// What was found, and how to correct it.
    pub what: String,
}

/// The findings, in the order of the checks. A check produces at most as many findings as the file
/// has keys.
#[derive(Debug, Default, Serialize)]
pub struct Report(pub(super) Vec<Finding>);

impl Report {
    pub(crate) fn add(&mut self, level: Level, section: &str, what: impl Into<String>) {
        self.0.push(Finding { level, section: section.into(), what: what.into() });
    }

    /// Adds at most `limit` of another report's warnings and errors. Returns their number.
    pub(crate) fn append_problems(&mut self, other: &Report, limit: usize) -> usize {
        let before = self.0.len();
        self.0.extend(other.0.iter().filter(|finding| finding.level != Level::Ok).take(limit).cloned());
        self.0.len() - before
    }

    /// Returns the findings, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Finding> {
        self.0.iter()
    }

    /// Returns the number of errors.
    pub fn errors(&self) -> usize {
        self.0.iter().filter(|finding| finding.level == Level::Error).count()
    }

    /// Returns the worst level.
    pub fn level(&self) -> Level {
        self.0.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
    }

    pub(crate) fn render(&self) -> String {
        let mut text = String::new();
        for Finding { level, section, what } in &self.0 {
            let level = match level {
                Level::Ok => "ok",
                Level::Warning => "WARNING",
                Level::Error => "ERROR",
            };
            let _ = writeln!(text, "{level:8} {section}: {what}");
        }
        text
    }
}

/// Who renews a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RenewedBy {
    /// A person, or a program unknown to the agent.
    Operator,
    /// The agent, halfway through the certificate's lifetime.
    Agent,
}

impl RenewedBy {
    /// Returns the remaining time, in seconds, below which a certificate should have been renewed.
    /// `lifetime` is in seconds.
    fn ends_soon(self, lifetime: i64) -> i64 {
        match self {
            Self::Operator => ENDS_SOON,
            Self::Agent => lifetime / 3,
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::Operator => "renew it",
            Self::Agent => {
                "the agent did not renew it when half of its lifetime was over; look at its connection to the controller"
            }
        }
    }

    fn remedy_after_end(self) -> &'static str {
        match self {
            Self::Operator => "renew it",
            Self::Agent => {
                "for grace_days (of the controller) after that the agent renews it when it reaches the controller; later it needs a new join token"
            }
        }
    }
}

/// Checks the validity of a certificate. `now` is in seconds since 1970-01-01 UTC.
pub(super) fn validity(
    report: &mut Report,
    section: &str,
    whose: &str,
    certificate: &x509_parser::certificate::X509Certificate<'_>,
    now: i64,
    renewed_by: RenewedBy,
) {
    let (from, until) = (certificate.validity().not_before.timestamp(), certificate.validity().not_after.timestamp());
    let ends = certificate.validity().not_after.to_string();
    let (level, what) = if now < from {
        (
            Level::Error,
            format!("{whose} is valid from {} on: correct the clock, or wait", certificate.validity().not_before),
        )
    } else if now > until {
        (Level::Error, format!("{whose} ended at {ends}: {}, or correct the clock", renewed_by.remedy_after_end()))
    } else if until - now < renewed_by.ends_soon(until - from) {
        (Level::Warning, format!("{whose} ends soon, at {ends}: {}", renewed_by.remedy()))
    } else {
        (Level::Ok, format!("{whose} is valid until {ends}"))
    };
    report.add(level, section, what);
}

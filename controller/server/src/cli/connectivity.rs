//! Implements `check-connectivity`, which shows whether nodes reach each other as their views
//! permit.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};

use anyhow::bail;
use edge_types::connectivity::{
    ConnectivityEvent, ConnectivityPlan, ConnectivityRequest, PathResult, RoundTrip, Verdict,
};
use serde::Serialize;

use super::args::ConnectivityArguments;
use super::client::Client;
use super::table::{print_line, rendered};

/// Number of results after which a line of progress is printed if standard error is not a terminal.
const PROGRESS_INTERVAL: usize = 500;

/// The error if some paths are not as they should be. The command has printed them before.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct PathsWrong(String);

/// The output of `check-connectivity --json`.
#[derive(Serialize)]
struct Document {
    plan: ConnectivityPlan,
    /// Whether every path is as it should be.
    right: bool,
    /// Number of results with each verdict.
    verdicts: BTreeMap<&'static str, usize>,
    results: Vec<PathResult>,
}

/// Runs a check at the server, shows the progress on standard error, and prints the results.
///
/// # Errors
/// Returns [`PathsWrong`] if any path is not as it should be, or was not measured.
pub(super) async fn check(client: &Client, json: bool, arguments: ConnectivityArguments) -> anyhow::Result<()> {
    let ConnectivityArguments { nodes, communities, paths, count, problems } = arguments;
    let request = ConnectivityRequest { nodes, communities, most_paths: paths, count };
    let (mut plan, mut results, mut ended) = (None, Vec::new(), false);
    let mut progress = Progress { terminal: io::stderr().is_terminal(), shown: 0 };
    client
        .ask_lines("/v1/connectivity", &request, |event: ConnectivityEvent| {
            match event {
                ConnectivityEvent::Plan(found) => {
                    // A closed standard error does not end the check.
                    let _ = writeln!(io::stderr(), "{}", announced(&found));
                    plan = Some(found);
                }
                ConnectivityEvent::Path(result) => results.push(*result),
                ConnectivityEvent::End => ended = true,
            }
            progress.show(&results, plan.as_ref());
        })
        .await?;
    progress.end();
    let Some(plan) = plan.filter(|_| ended) else {
        bail!("the server ended the check after {} results; is it stopping?", results.len())
    };
    results.sort_by(|one, other| key(one).cmp(&key(other)));
    let wrong = summary(&results);
    let mut verdicts: BTreeMap<&str, usize> = BTreeMap::new();
    results.iter().for_each(|result| *verdicts.entry(result.verdict.as_str()).or_default() += 1);
    let right = wrong.is_none();
    if problems {
        results.retain(|result| !result.verdict.is_right());
    }
    print_line(match json {
        true => serde_json::to_string_pretty(&Document { plan, right, verdicts, results })?,
        false => text(&results, &verdicts),
    })?;
    match wrong {
        None => Ok(()),
        Some(wrong) => Err(PathsWrong(wrong).into()),
    }
}

fn key(result: &PathResult) -> (&str, &str, Option<std::net::IpAddr>) {
    (result.from.as_str(), result.measured.node.as_str(), result.measured.address)
}

/// Returns the sentence that announces the extent of the check.
fn announced(plan: &ConnectivityPlan) -> String {
    let ConnectivityPlan { nodes, of_nodes, paths, of_paths } = plan;
    let mut text = format!("checking {paths} paths between {nodes} nodes");
    if of_nodes > nodes || of_paths > paths {
        let _ = write!(text, "; chosen at random of {of_nodes} nodes, and of {of_paths} paths between those {nodes}");
    }
    text
}

/// The progress on standard error. On a terminal it is one line that is overwritten, otherwise a
/// line after every [`PROGRESS_INTERVAL`] results.
struct Progress {
    terminal: bool,
    shown: usize,
}

impl Progress {
    fn show(&mut self, results: &[PathResult], plan: Option<&ConnectivityPlan>) {
        let Some(last) = results.last() else { return };
        let due =
            if self.terminal { results.len() > self.shown } else { results.len() >= self.shown + PROGRESS_INTERVAL };
        if !due {
            return;
        }
        self.shown = results.len();
        let wrong = results.iter().filter(|result| !result.verdict.is_right()).count();
        let paths = plan.map_or(0, |plan| plan.paths);
        let (begin, end) = if self.terminal { ("\r\x1b[K", "") } else { ("", "\n") };
        let shown =
            format!("{} results of {paths} paths, {wrong} not right; measuring from {}", results.len(), last.from);
        // A closed standard error does not end the check.
        let _ = write!(io::stderr(), "{begin}{shown}{end}");
    }

    fn end(&self) {
        if self.terminal && self.shown > 0 {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

fn text(results: &[PathResult], verdicts: &BTreeMap<&str, usize>) -> String {
    let header = ["FROM", "TO", "PERMITTED", "RESULT", "ADDRESS", "LOSS", "RTT ms", "MTU", "RATE", "REASON"];
    let mut text = format!("{}\n\n", rendered(header, results.iter().map(row)));
    let counts: Vec<String> = verdicts.iter().map(|(verdict, count)| format!("{count} {verdict}")).collect();
    text.push_str(&if counts.is_empty() { "there are no paths to check".into() } else { counts.join(", ") });
    text
}

fn row(result: &PathResult) -> [String; 10] {
    let measured = &result.measured;
    let lost = measured.sent.saturating_sub(measured.received);
    let loss = match (measured.sent, result.permitted) {
        (0, _) | (_, false) => "-".into(),
        (sent, true) => format!("{}%", u32::from(lost) * 100 / u32::from(sent)),
    };
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    [
        result.from.to_string(),
        measured.node.to_string(),
        if result.permitted { "yes" } else { "no" }.into(),
        result.verdict.as_str().into(),
        or_dash(measured.address.map(|address| address.to_string())),
        loss,
        or_dash(measured.round_trip.map(milliseconds)),
        or_dash(measured.mtu.map(|mtu| mtu.to_string())),
        or_dash(measured.bits_per_second.map(rate)),
        or_dash(result.why.clone()),
    ]
}

fn milliseconds(round_trip: RoundTrip) -> String {
    let micros = round_trip.average_us;
    format!("{}.{:02}", micros / 1000, micros % 1000 / 10)
}

/// Formats a rate in Mbit/s or Gbit/s. It has few digits, since the estimate is not exact.
fn rate(bits: u64) -> String {
    match bits {
        0..10_000_000 => format!("{}.{} Mbit/s", bits / 1_000_000, bits % 1_000_000 / 100_000),
        10_000_000..10_000_000_000 => format!("{} Mbit/s", bits / 1_000_000),
        _ => format!("{} Gbit/s", bits / 1_000_000_000),
    }
}

/// Returns a sentence about the paths that are not as they should be; `None` if there are none.
fn summary(results: &[PathResult]) -> Option<String> {
    let count = |verdict| results.iter().filter(|result| result.verdict == verdict).count();
    let kinds = [
        (Verdict::Unreached, "permitted but not reached"),
        (Verdict::Exposed, "reached although forbidden"),
        (Verdict::Unknown, "not measured"),
    ];
    let found = kinds.into_iter().map(|(verdict, what)| (count(verdict), what)).filter(|(count, _)| *count > 0);
    let found: Vec<String> = found.map(|(count, what)| format!("{count} {what}")).collect();
    (!found.is_empty()).then(|| format!("not every path is as it should be: {}", found.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(verdict: Verdict, measured: serde_json::Value) -> PathResult {
        let mut whole = serde_json::json!({"node": "b", "sent": 4, "received": 3});
        whole.as_object_mut().unwrap().extend(measured.as_object().unwrap().clone());
        let permitted = !matches!(verdict, Verdict::Separate | Verdict::Exposed);
        let measured = serde_json::from_value(whole).unwrap();
        PathResult { from: "a".parse().unwrap(), permitted, verdict, why: None, measured }
    }

    #[test]
    fn a_row_shows_what_was_measured() {
        let measured = serde_json::json!({
            "address": "fd77::1", "round_trip": {"min_us": 1, "average_us": 12_345, "max_us": 3}, "mtu": 1400,
            "bits_per_second": 94_100_000,
        });
        let shown = row(&result(Verdict::Reached, measured));
        assert_eq!(shown, ["a", "b", "yes", "reached", "fd77::1", "25%", "12.34", "1400", "94 Mbit/s", "-"]);
        let shown = row(&result(Verdict::Separate, serde_json::json!({"received": 0})));
        assert_eq!(shown, ["a", "b", "no", "separate", "-", "-", "-", "-", "-", "-"]);
        assert_eq!([rate(0), rate(1_250_000), rate(12_000_000_000)], ["0.0 Mbit/s", "1.2 Mbit/s", "12 Gbit/s"]);
    }

    #[test]
    fn one_sentence_says_what_is_wrong() {
        let of = |verdicts: &[Verdict]| {
            summary(&verdicts.iter().map(|verdict| result(*verdict, serde_json::json!({}))).collect::<Vec<_>>())
        };
        assert_eq!(of(&[Verdict::Reached, Verdict::Tunnel, Verdict::Separate]), None);
        let wrong = of(&[Verdict::Exposed, Verdict::Unknown, Verdict::Unreached, Verdict::Unreached]).unwrap();
        assert!(
            wrong.ends_with("2 permitted but not reached, 1 reached although forbidden, 1 not measured"),
            "{wrong}"
        );
    }

    #[test]
    fn a_choice_at_random_is_announced() {
        let plan = |of_nodes, of_paths| announced(&ConnectivityPlan { nodes: 3, of_nodes, paths: 6, of_paths });
        assert_eq!(plan(3, 6), "checking 6 paths between 3 nodes");
        assert!(plan(3, 7).contains("of 7 paths") && plan(9, 6).contains("of 9 nodes"));
    }
}

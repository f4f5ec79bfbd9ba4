//! Tests the alert rules: each fires for the series that `alerts.test.yaml` lists, and only for
//! those. Tests the metrics of both programs: promtool finds nothing wrong with them, and none that
//! a rule or the dashboard needs is missing.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use interop_tests::executables;
use interop_tests::suite::Test;

use crate::dashboard;
use crate::pair::{AGENT, CONTROLLER, Pair};
use crate::programs::{output, workspace};

pub(crate) const TESTS: &[Test] = &[
    ("each_alert_fires_when_it_must_and_only_then", alerts),
    ("alerts_are_about_metrics_that_the_documents_list", documented),
    ("promtool_accepts_the_metrics_of_both_programs_and_each_that_is_used_is_there", pages),
];

/// Returns the reason why the rules cannot be tested on this machine; `None` if they can.
pub(crate) fn unavailable() -> Option<String> {
    executables::find("promtool").is_none().then(|| "promtool is missing: apt-get install prometheus".to_owned())
}

fn alerts() {
    let rules = workspace("deploy/monitoring/alerts.yaml");
    output(Command::new("promtool").args(["check", "rules"]).arg(&rules)).unwrap();
    let cases = workspace("deploy/monitoring/alerts.test.yaml");
    let tried = Command::new("promtool").args(["test", "rules"]).arg(&cases).output().unwrap();
    assert!(
        tried.status.success(),
        "{}",
        String::from_utf8_lossy(&tried.stdout) + String::from_utf8_lossy(&tried.stderr)
    );
    // Every alert has a case. Otherwise an alert that never fires would not be noticed.
    let (rules, cases) = (fs::read_to_string(rules).unwrap(), fs::read_to_string(cases).unwrap());
    let names: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        let fires = cases.contains(&format!("alertname: {name}\n        exp_alerts: [{{"));
        let silent = cases.contains(&format!("alertname: {name}}}"));
        assert!(fires && silent, "{name} has no case that fires, or none that does not");
    }
}

/// Returns the names of the metrics that the rules need.
fn used_by_alerts() -> BTreeSet<String> {
    let rules = fs::read_to_string(workspace("deploy/monitoring/alerts.yaml")).unwrap();
    let expressions = rules.lines().filter_map(|line| line.trim().strip_prefix("expr: "));
    let metrics: BTreeSet<String> = expressions.flat_map(dashboard::metrics_of).collect();
    assert!(metrics.len() > 10, "{metrics:?}");
    metrics
}

fn pages() {
    let directory = tempfile::tempdir().unwrap();
    let pair = Pair::start(directory.path(), "edge-1");
    pair.until_connected();
    let mut found = BTreeSet::new();
    for address in [AGENT, CONTROLLER] {
        let page = pair.page(address).unwrap();
        let mut promtool = Command::new("promtool");
        promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut promtool = promtool.spawn().unwrap();
        promtool.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
        let said = promtool.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&said.stdout) + String::from_utf8_lossy(&said.stderr);
        assert!(said.status.success() && text.is_empty(), "{address}: {text}");
        for line in page.lines() {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            found.insert(name.to_owned());
            // A family of which there is no series yet.
            if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' ')) {
                let suffixes: &[&str] = match kind {
                    "counter" => &["", "_total"],
                    "histogram" => &["_bucket", "_sum", "_count"],
                    _ => &[""],
                };
                found.extend(suffixes.iter().map(|suffix| format!("{name}{suffix}")));
            }
        }
    }
    pair.stop();
    let used: BTreeSet<String> = used_by_alerts().into_iter().chain(dashboard::metrics()).collect();
    let missing: Vec<&String> = used.difference(&found).collect();
    assert!(missing.is_empty(), "{missing:?} are used, and neither program has them");
}

fn documented() {
    let metrics = used_by_alerts();
    let of = |document: &str| fs::read_to_string(workspace(document)).unwrap();
    let (agent, controller) = (of("docs/agent.md"), of("docs/controller.md"));
    for metric in metrics.iter().filter(|metric| metric.starts_with("edge_")) {
        let listed = match metric.strip_prefix("edge_controller_") {
            // The table omits the prefix.
            Some(name) => controller.contains(&format!("`{name}`")),
            None => agent.contains(&format!("`{metric}`")) || agent.contains(&format!("`{metric}{{")),
        };
        assert!(listed, "{metric}");
    }
}

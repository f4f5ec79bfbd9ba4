//! Tests the alert rules: each fires for the series that `alerts.test.yaml` lists, and only for
//! those.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use interop_tests::executables;
use interop_tests::suite::Test;

use crate::programs::{output, workspace};

pub(crate) const TESTS: &[Test] = &[
    ("each_alert_fires_when_it_must_and_only_then", alerts),
    ("alerts_are_about_metrics_that_the_documents_list", documented),
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

fn documented() {
    let rules = fs::read_to_string(workspace("deploy/monitoring/alerts.yaml")).unwrap();
    let expressions =
        rules.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).collect::<Vec<_>>().join("\n");
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    let metrics: BTreeSet<&str> = expressions.split(word).filter(|name| name.starts_with("edge_")).collect();
    assert!(metrics.len() > 10, "{metrics:?}");
    let of = |document: &str| fs::read_to_string(workspace(document)).unwrap();
    let (agent, controller) = (of("docs/agent.md"), of("docs/controller.md"));
    for metric in metrics {
        let listed = match metric.strip_prefix("edge_controller_") {
            // The table omits the prefix.
            Some(name) => controller.contains(&format!("`{name}`")),
            None => agent.contains(&format!("`{metric}`")) || agent.contains(&format!("`{metric}{{")),
        };
        assert!(listed, "{metric}");
    }
}

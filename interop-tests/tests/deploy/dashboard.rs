//! Tests the Grafana dashboard.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use interop_tests::suite::Test;
use serde_json::Value;

use crate::programs::{output, workspace};

pub(crate) const TESTS: &[Test] = &[("the_panels_of_the_dashboard_are_whole_and_promtool_reads_each_query", panels)];

/// Returns the names of metrics in a query.
pub(crate) fn metrics_of(expression: &str) -> Vec<String> {
    let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let ours = words.filter(|word| ["edge_agent_", "edge_controller_", "process_"].iter().any(|p| word.starts_with(p)));
    ours.map(str::to_owned).collect()
}

fn dashboard() -> Value {
    serde_json::from_str(&fs::read_to_string(workspace("deploy/monitoring/dashboard.json")).unwrap()).unwrap()
}

fn panels_of(dashboard: &Value) -> Vec<&Value> {
    dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row").collect()
}

/// Returns the names of the metrics that the dashboard needs, for panels and variables.
pub(crate) fn metrics() -> BTreeSet<String> {
    let dashboard = dashboard();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let variables = variables.iter().map(|variable| variable["definition"].as_str().unwrap().to_owned());
    variables.chain(queries(&dashboard)).flat_map(|query| metrics_of(&query)).collect()
}

/// Returns the dashboard's queries, with values in place of Grafana's variables.
fn queries(dashboard: &Value) -> Vec<String> {
    let targets = panels_of(dashboard).into_iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let expressions = targets.map(|target| target["expr"].as_str().unwrap());
    expressions.map(|expr| expr.replace("$__rate_interval", "5m").replace("$instance", ".*")).collect()
}

fn panels() {
    let dashboard = dashboard();
    let panels = panels_of(&dashboard);
    assert!(panels.len() > 15, "{}", panels.len());
    let (mut ids, mut places) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "an id is used twice: {panel}");
        let place = &panel["gridPos"];
        let at = |key: &str| place[key].as_u64().unwrap_or_else(|| panic!("{key} of {panel}"));
        assert!(at("x") + at("w") <= 24, "{panel}");
        for (x, y) in (at("x")..at("x") + at("w")).flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y))) {
            assert!(places.insert((x, y)), "panels overlap at {x}, {y}: {panel}");
        }
        assert!(panel["title"].as_str().is_some_and(|title| !title.is_empty()), "{panel}");
    }
    let source = "${DS_PROMETHEUS}";
    let inputs = dashboard["__inputs"].as_array().unwrap();
    assert!(inputs.iter().any(|input| input["name"] == "DS_PROMETHEUS" && input["pluginId"] == "prometheus"));
    for panel in &panels {
        assert_eq!(panel["datasource"]["uid"], source, "{panel}");
        assert!(panel["description"].as_str().is_some_and(|text| text.len() > 20), "{panel}");
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{panel}");
        let mut letters = BTreeSet::new();
        for target in panel["targets"].as_array().unwrap() {
            assert!(letters.insert(target["refId"].as_str().unwrap()), "{panel}");
        }
    }
    let queries = queries(&dashboard);
    assert!(queries.iter().all(|query| !query.contains('$') && !metrics_of(query).is_empty()), "{queries:?}");
    // Each query becomes a recording rule, which promtool reads.
    let mut rules = "groups:\n  - name: panels\n    rules:\n".to_owned();
    for (number, query) in queries.iter().enumerate() {
        rules += &format!("      - {{record: panel:{number}, expr: {}}}\n", Value::from(query.as_str()));
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("rules.yaml");
    fs::write(&file, rules).unwrap();
    let said = output(Command::new("promtool").args(["check", "rules"]).arg(&file)).unwrap();
    assert!(said.contains(&format!("{} rules found", queries.len())), "{said}");
}

//! Checks that the manifests in `deploy/kubernetes` are the chart with its default values.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use interop_tests::suite::Test;

use crate::helm::template;
use crate::programs::workspace;

pub(crate) const TESTS: &[Test] = &[
    ("the_plain_manifests_are_the_chart_with_its_default_values", the_chart_with_its_default_values),
    ("a_probe_waits_longer_than_the_check_that_it_asks_for", probes),
    ("a_unit_that_is_restarted_is_never_given_up", units),
];

/// How long the checks of `/healthz` and `/readyz` may wait, in seconds.
const PATIENCE: u64 = 2;

/// Environment variable that makes the test rewrite the manifests instead of comparing them.
const UPDATE: &str = "EDGE_UPDATE";

/// Returns the rendered documents with their comments, by their template.
fn rendered() -> BTreeMap<String, String> {
    let values = workspace("deploy/helm/values-manifests.yaml");
    let all = template(&["--values", values.to_str().expect("a path in UTF-8")]).unwrap();
    let mut files = BTreeMap::<String, String>::new();
    for document in all.split("---\n# Source: edge-cni/templates/").skip(1) {
        let (name, text) = document.split_once('\n').expect("a line with the name");
        let lines: Vec<&str> = text.trim_end().lines().map(str::trim_end).collect();
        let file = files
            .entry(name.to_owned())
            .or_insert_with(|| format!("# Rendered from deploy/helm/templates/{name} (docs/install/kubernetes.md).\n"));
        if file.lines().count() > 1 {
            file.push_str("---\n");
        }
        file.push_str(&lines.join("\n"));
        file.push('\n');
    }
    files
}

fn on_disk(directory: &Path) -> BTreeMap<String, String> {
    let files = fs::read_dir(directory).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(path).unwrap())
    });
    files.collect()
}

fn the_chart_with_its_default_values() {
    let (directory, rendered) = (workspace("deploy/kubernetes"), rendered());
    if std::env::var_os(UPDATE).is_some() {
        for name in on_disk(&directory).keys().filter(|name| !rendered.contains_key(*name)) {
            fs::remove_file(directory.join(name)).unwrap();
        }
        rendered.iter().for_each(|(name, text)| fs::write(directory.join(name), text).unwrap());
    }
    let there = on_disk(&directory);
    let names = |files: &BTreeMap<String, String>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&there), names(&rendered), "the files of deploy/kubernetes: run this test with {UPDATE}=1");
    for (name, text) in &rendered {
        let differs = text.lines().zip(there[name].lines()).find(|(wanted, found)| wanted != found);
        assert!(
            there[name] == *text,
            "deploy/kubernetes/{name} is not the chart's; change deploy/helm and run this test with {UPDATE}=1; the \
             first line that differs: {differs:?}"
        );
    }
}

fn probes() {
    let mut seen = 0;
    for (name, text) in on_disk(&workspace("deploy/kubernetes")) {
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| line.trim_end().ends_with("Probe:")) {
            let indent = |line: &str| line.len() - line.trim_start().len();
            let probe: Vec<&str> =
                lines[at + 1..].iter().copied().take_while(|inner| indent(inner) > indent(line)).collect();
            let timeout =
                probe.iter().find_map(|inner| inner.trim().strip_prefix("timeoutSeconds: ")?.parse::<u64>().ok());
            assert!(timeout.is_some_and(|timeout| timeout > PATIENCE), "{name}: {probe:?}");
            seen += 1;
        }
    }
    assert!(seen >= 4, "{seen} probes");
}

/// Without this line, systemd gives a unit up after five quick failures, such as with a full disk.
fn units() {
    let mut seen = 0;
    for (name, text) in on_disk(&workspace("deploy/systemd")) {
        if text.contains("\nRestart=") {
            assert!(text.contains("\nStartLimitIntervalSec=0\n"), "{name}");
            seen += 1;
        }
    }
    assert!(seen >= 2, "{seen} units");
}

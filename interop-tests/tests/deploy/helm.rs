//! Runs `helm`, which `.ci/install test` builds.

use std::process::Command;

use serde_json::Value;

use crate::programs::{output, workspace};

/// Returns the reason why the chart cannot be rendered on this machine; `None` if it can.
pub(crate) fn unavailable() -> Option<String> {
    let helm = workspace("target/helm/helm");
    (!helm.is_file()).then(|| format!("{} is missing: run .ci/install test", helm.display()))
}

pub(crate) fn helm() -> Command {
    Command::new(workspace("target/helm/helm"))
}

/// Renders the chart with further arguments, such as values.
pub(crate) fn template(arguments: &[&str]) -> Result<String, String> {
    let chart = workspace("deploy/helm");
    output(
        helm()
            .arg("template")
            .arg("edge-cni")
            .arg(chart)
            .args(["--namespace", "edge-cni", "--kube-version", "1.31.0"])
            .args(arguments),
    )
}

/// Returns the objects in a stream of YAML documents.
pub(crate) fn objects(yaml: &str) -> Vec<Value> {
    let documents = yaml.split("\n---\n").map(|text| text.trim_start_matches("---\n"));
    let parsed = documents.map(|text| serde_saphyr::from_str(text).unwrap_or_else(|e| panic!("{e}:\n{text}")));
    parsed.filter(|object: &Value| !object.is_null()).collect()
}

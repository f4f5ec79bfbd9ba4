//! Reads the output of `edge-agent status --json`.

use serde_json::Value;

/// Returns a peer's entry.
#[must_use]
pub(super) fn peer<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    status["peers"].as_array()?.iter().find(|peer| peer["name"] == name)
}

/// Returns whether an entry shows an established IKE SA with a CHILD_SA.
#[must_use]
pub(super) fn is_up(peer: &Value) -> bool {
    peer["phase"] == "up" && peer["child_sas"].as_array().is_some_and(|children| !children.is_empty())
}

/// Returns the number of repairs that the status lists, including repeated ones.
#[must_use]
pub(super) fn repairs(status: &Value) -> u64 {
    let entries = status["journal"].as_array().map(Vec::as_slice).unwrap_or_default();
    entries.iter().filter(|entry| entry["kind"] == "repaired").filter_map(|entry| entry["times"].as_u64()).sum()
}
